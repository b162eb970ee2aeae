"""CLIP's tokenizer, from OpenAI's list of byte pairs beside this file (MIT, LICENSE-CLIP), the same for every CLIP."""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")

_MERGES = 49408 - 2 * 256 - 2
"""CLIP's vocabulary less the bytes, the bytes that end a word, and the two marks; the list goes on, CLIP does not."""


@cache
def load_tokenizer() -> Any:
    """Build transformers' CLIPTokenizer from the shipped vocabulary, once.

    Its settings are transformers' own: those that some repositories publish make "!" a padding mark, and with it every
    exclamation mark of a prompt.
    """
    from transformers import CLIPTokenizer

    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        merges = [line.rstrip("\n") for line in islice(file, 1, 1 + _MERGES)]
    letters = _byte_letters()
    # CLIP's order: bytes, bytes ending a word, merges, the two marks
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:  # transformers before 5 reads files only
        files = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        files[0].write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        files[1].write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer(*map(str, files))


def _byte_letters() -> list[str]:
    """A printable letter for every byte, in CLIP's order (GPT-2's): printable bytes stand for themselves, the rest follow."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
