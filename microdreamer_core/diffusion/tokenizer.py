"""CLIP's tokenizer: where its vocabulary is found, for neither we nor transformers ship one.

The vocabulary is the same for every CLIP: two files, vocab.json and merges.txt, in the ``tokenizer`` folder of any Stable
Diffusion repository in diffusers' layout and in ComfyUI's own ``comfy/sd1_tokenizer``. The package open_clip brings it as one
compressed list of merges, which is used when it is installed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError

FILES = ("vocab.json", "merges.txt")

_MERGES = 49408 - 2 * 256 - 2
"""CLIP's vocabulary less the bytes, the bytes that end a word, and the two marks."""


def load_tokenizer(folders: Iterable[Path | str] = ()) -> Any:
    """transformers' CLIPTokenizer from the first place that has the vocabulary.

    Only the two files are read: the tokenizer settings beside them would make "!" a padding mark in some repositories, and with
    it every exclamation mark of a prompt.

    Args:
        folders: where to look, each itself or in its subfolder ``tokenizer``; then open_clip's installed package.

    Raises:
        InputError: no place has it; names the files and where they may go.
    """
    folders = [Path(folder) for folder in folders]
    for place in (place for folder in folders for place in (folder, folder / "tokenizer")):
        if all((place / name).is_file() for name in FILES):
            return _from_files(place)
    merges = _open_clip_merges()
    if merges is None:
        looked = ", ".join(str(folder) for folder in folders) or "no folder given"
        raise InputError(
            f"CLIP's vocabulary is missing: put {' and '.join(FILES)} (from the tokenizer folder of any Stable Diffusion "
            "repository, or ComfyUI's comfy/sd1_tokenizer) into a folder named tokenizer beside the checkpoint, or "
            f"install open_clip_torch. Looked in: {looked}."
        )
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), merges)
        return _from_files(Path(folder))


def _from_files(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    try:
        _check_files(folder)
        return CLIPTokenizer(*(str(folder / name) for name in FILES))
    except Exception as error:  # the tokenizers' own library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"CLIP's vocabulary in {folder} cannot be read ({reason}); put {' and '.join(FILES)} there again."
        ) from error


def _check_files(folder: Path) -> None:
    """Raise for files of another kind, of which some versions of transformers make a tokenizer without words."""
    words = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
    if not (isinstance(words, dict) and words and all(type(number) is int and number >= 0 for number in words.values())):
        raise ValueError(f"{FILES[0]} is no table of words and their numbers")
    first, *merges = (folder / FILES[1]).read_text(encoding="utf-8").split("\n")[: 1 + _MERGES]
    if "#version" not in first or any(len(merge.split()) != 2 for merge in merges if merge):
        raise ValueError(f"{FILES[1]} is no list of merges")


def _open_clip_merges() -> list[str] | None:
    """The merges in open_clip's package, without importing it (it needs torchvision)."""
    spec = importlib.util.find_spec("open_clip")
    path = None if spec is None or spec.origin is None else Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    if path is None or not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 1 + _MERGES]


def _write_files(folder: Path, merges: list[str]) -> None:
    """vocab.json and merges.txt of a list of merges, in CLIP's order: bytes, bytes ending a word, merges, the two marks."""
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / FILES[0]).write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / FILES[1]).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _byte_letters() -> list[str]:
    """A printable letter for every byte, in CLIP's order (GPT-2's): printable bytes stand for themselves, the rest follow."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
