"""Damaged files as hypothesis makes them: changes of bytes, and of the numbers in a text.

``MICRODREAMER_HOSTILE_EXAMPLES`` says how many examples each family gets (``make hostile`` takes 10,000, with new seeds); by
default it is 1,000, always the same.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from microdreamer_core.errors import InputError

_EXAMPLES = int(os.environ.get("MICRODREAMER_HOSTILE_EXAMPLES", 0))
hostile = settings(
    max_examples=_EXAMPLES or 1000,
    derandomize=not _EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

TextOf = Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]]
"""content -> (its part that is text, changed text -> whole file)."""

_POSITION = st.integers(0, 2**32 - 1)
_BYTES = st.binary(min_size=1, max_size=8)
_WORDS = tuple(bytes.fromhex(word) for word in ("00000000", "ffffffff", "ffffff7f", "00000080", "0000c07f", "0000807f"))
_NUMBERS = tuple(b'0|-1|1|1.5|1e38|-1e38|1e400|nan|4294967296|99999999999999999999||"x"|null'.split(b"|"))
_KINDS = ("flip", "cut", "insert", "remove", "copy", "word", "number", "token")
_CHANGES = st.lists(st.tuples(st.sampled_from(_KINDS), _POSITION, _POSITION, _BYTES), min_size=1, max_size=5)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_TOKEN = re.compile(rb'"[^"]*"|\S+')


def check_refusal(read: Callable, *arguments: Any) -> Any:
    """Call a reader; anything but a result, or a refusal in one sentence (None), is raised."""
    try:
        return read(*arguments)
    except InputError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 600, text
        return None


def damage(content: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    """Apply the changes in turn."""
    for kind, first, second, new in changes:
        if not content:
            return new
        at = first % len(content)
        end = min(len(content), at + 1 + second % 64)
        if kind == "flip":
            content = content[:at] + bytes([content[at] ^ (1 << second % 8)]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + new + content[at:]
        elif kind == "remove":
            content = content[:at] + content[end:]
        elif kind == "copy":
            content = content[:end] + content[at:]
        elif kind == "word":
            content = content[: at & ~3] + _WORDS[second % len(_WORDS)] + content[(at & ~3) + 4 :]
        else:
            pattern, values = (_NUMBER, _NUMBERS) if kind == "number" else (_TOKEN, (new, *_NUMBERS))
            found = list(pattern.finditer(content, 0, 1 << 16))
            if found:
                place = found[first % len(found)]
                content = content[: place.start()] + values[second % len(values)] + content[place.end() :]
    return content


def damaged(
    *contents: bytes, text: Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]] | None = None
) -> st.SearchStrategy:
    """Make a strategy of damaged files.

    Args:
        contents: whole files.
        text: for formats that state the length of their text; half of the damage is then done to the text alone.
    """

    def apply(content: bytes, changes: list, inside: bool) -> bytes:
        if text is None or not inside:
            return damage(content, changes)
        part, wrap = text(content)
        return wrap(damage(part, changes))

    return st.builds(apply, st.sampled_from(contents), _CHANGES, st.booleans())


def text_of_safetensors(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Return the header of a safetensors file, and what puts another one in its place."""
    length = struct.unpack("<Q", content[:8])[0]
    return content[8 : 8 + length], lambda text: struct.pack("<Q", len(text)) + text + content[8 + length :]


def text_of_glb(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Return the document of a GLB, and what puts another one in its place."""
    length = struct.unpack("<I", content[12:16])[0]
    rest = content[20 + length :]

    def wrap(text: bytes) -> bytes:
        text += b" " * (-len(text) % 4)
        return (
            content[:8] + struct.pack("<I", 20 + len(text) + len(rest)) + struct.pack("<I", len(text)) + b"JSON" + text + rest
        )

    return content[20 : 20 + length], wrap


def text_of_state(content: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Return the record of a saved run, which lies as text in the header, and what puts another one in its place."""
    header, wrap = text_of_safetensors(content)
    document = json.loads(header)

    def put(text: bytes) -> bytes:
        changed = {**document["__metadata__"], "extra": text.decode("utf-8", errors="replace")}
        return wrap(json.dumps({**document, "__metadata__": changed}).encode())

    return document["__metadata__"]["extra"].encode(), put
