"""CLIP's tokenizer, loaded from a vocabulary on this machine: neither this package nor transformers ships one.

The vocabulary is the same for every CLIP: two files, vocab.json and merges.txt, in the ``tokenizer`` folder of any Stable
Diffusion repository in diffusers' layout and in ComfyUI's ``comfy/sd1_tokenizer``. The package open_clip contains it as one
compressed list of merges, which is used if it is installed.
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
"""The size of CLIP's vocabulary minus the bytes, the word-final bytes and the two special tokens."""


def load_tokenizer(folders: Iterable[Path | str] = ()) -> Any:
    """Load transformers' CLIPTokenizer from the first place that has the vocabulary.

    Only the two files are read: in some repositories the tokenizer settings beside them define "!" as the padding token, which
    would turn every exclamation mark of a prompt into padding.

    Args:
        folders: searched in order, each with its subfolder ``tokenizer``; then open_clip's installed package.

    Raises:
        InputError: the vocabulary is not found; the message names the files and where to put them.
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

    for name in FILES:
        if not (folder / name).stat().st_size:
            raise InputError(f"CLIP's vocabulary in {folder} cannot be read: {name} is empty; put it there again.")
    try:
        return CLIPTokenizer(*(str(folder / name) for name in FILES))
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"CLIP's vocabulary in {folder} cannot be read ({reason}); put {' and '.join(FILES)} there again."
        ) from error


def _open_clip_merges() -> list[str] | None:
    """Read the merges from open_clip's package, without importing it (it needs torchvision)."""
    spec = importlib.util.find_spec("open_clip")
    path = None if spec is None or spec.origin is None else Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    if path is None or not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 1 + _MERGES]


def _write_files(folder: Path, merges: list[str]) -> None:
    """Write vocab.json and merges.txt, in CLIP's order: bytes, word-final bytes, merges, the two special tokens."""
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / FILES[0]).write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / FILES[1]).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def _byte_letters() -> list[str]:
    """Return a printable letter for every byte, in the order of CLIP and GPT-2: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
