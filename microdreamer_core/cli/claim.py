"""The outputs of a command: checked before the work, and kept from other processes while it lasts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..util.atomic import prepare_folder, remove_leftovers, temporary_name
from ..util.lock import lock_output
from ..util.readable import shorten_name

_LONGEST_NAME = 255
"""Bytes of any name on usual file systems."""
_LONGEST_STEM = 180
"""Bytes of a default name without its ending."""
_PROBE_BYTES = 8 << 20


@contextmanager
def claim(outputs: Iterable[Path], sources: tuple[Path | None, ...]) -> Iterator[None]:
    """Check before the work that the outputs, all in one folder, can be written; create the folder; keep other processes off.

    Raises:
        InputError: an output is a folder or a source, or its name is too long, or its folder cannot be created or written, or
            the disk is full, or another process writes there.
    """
    outputs = list(outputs)
    protected = [source.resolve() for source in sources if source is not None]
    for path in outputs:
        check_name(path)
        if path.is_dir():
            raise InputError(f"The output {path} is a folder; move it away or give another name with -o.")
        if path.resolve() in protected:
            raise InputError(f"The output {path} would overwrite what it is made from; give another name with -o.")
    mend = f"choose another folder with -o, or give it write permission and {_PROBE_BYTES >> 20} MB of disk space"
    prepare_folder(outputs[0].parent, outputs[0].name, _PROBE_BYTES, mend)
    with lock_output(outputs[0]):
        for path in outputs:
            remove_leftovers(path)
        yield


def check_name(path: Path) -> None:
    """Check that a file of this name can be written, under its temporary name too.

    Raises:
        InputError: it is too long.
    """
    length = len(os.fsencode(temporary_name(path).name))
    if length > _LONGEST_NAME:
        raise InputError(
            f"The name {path.name} is too long by {length - _LONGEST_NAME} bytes to be written; give a shorter one with -o."
        )


def check_suffix(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Return an output's path.

    Raises:
        InputError: it is of the wrong kind.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"The output must end in {' or '.join(suffixes)}, got {path.name!r}; change its name.")
    return path


def with_suffix(path: Path, suffix: str) -> Path:
    """Return the default output path for an input; ``suffix`` may begin with more of the name.

    Raises:
        InputError: the input is a folder.
    """
    if not path.name:
        raise InputError(f"{path} is a folder; give the name of a file.")
    return path.with_name(shorten_name(path.stem, _LONGEST_STEM) + suffix)
