"""Standard streams that cannot end a run: they may be closed, lose their reader, or be unable to encode a file's name."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from ..util.readable import escape_controls

_NAME_WIDTH = 14


class _LenientFile(io.FileIO):
    """A file that drops what nobody can read any more, because progress is not worth a run."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def say(text: object, name: str | None = None) -> None:
    """Write a line to stdout, in two columns if it has a name, such as "mesh" for a path."""
    line = str(text) if name is None else f"{name:{_NAME_WIDTH}s} {text}"
    sys.stdout.write(escape_controls(line) + "\n")


def secure_streams() -> None:
    """Open closed standard streams, keep errors of stderr from the work, and escape what cannot be encoded."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file that is opened would take its number, and with it what is written there
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None or os.name == "posix":  # elsewhere a terminal is no plain file
        raw = io.BufferedWriter(_LenientFile(2, "w", closefd=False))
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        sys.stderr = io.TextIOWrapper(raw, encoding, line_buffering=True, write_through=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
