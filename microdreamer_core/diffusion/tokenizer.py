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
"""The size of CLIP's vocabulary minus the bytes, the word-final bytes and the two special tokens; the list has more merges."""


@cache
def load_tokenizer() -> Any:
    """Build transformers' CLIPTokenizer from the shipped vocabulary, once.

    Its settings are transformers' defaults: in some repositories the published settings define "!" as the padding token, which
    turns every exclamation mark of a prompt into padding.
    """
    from transformers import CLIPTokenizer

    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        merges = [line.rstrip("\n") for line in islice(file, 1, 1 + _MERGES)]
    letters = _byte_letters()
    # CLIP's order: bytes, word-final bytes, merges, the two special tokens
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:  # transformers before 5 only reads files
        files = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        files[0].write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        files[1].write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizer(*map(str, files))


def _byte_letters() -> list[str]:
    """Return a printable letter for every byte, in the order of CLIP and GPT-2: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
