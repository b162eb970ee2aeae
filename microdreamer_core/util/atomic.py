"""Atomic file writing: a crash, a full disk or a cancelled run never leaves a partial file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from ..errors import InputError

unfinished: set[Path] = set()
"""Files of this process that go when it ends."""


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, with the same suffix, which replaces ``path`` if the block succeeds.

    If the block fails, the temporary file is removed and an existing file at ``path`` is left unchanged.

    Raises:
        InputError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} to write {path.name} into; create it first.")
    temporary = temporary_name(path)
    unfinished.add(temporary)
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        yield temporary
        os.chmod(temporary, mode)  # some writers create files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        unfinished.discard(temporary)


def temporary_name(path: Path) -> Path:
    """Return the name under which this process writes ``path``."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


def remove_unfinished() -> None:
    """Remove what must not outlive the process, for one that ends without returning."""
    for temporary in list(unfinished):
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of ``path`` that dead processes left; the caller holds its lock."""
    for temporary in path.parent.glob(f".{escape(path.stem)}.*.tmp{escape(path.suffix)}"):
        if temporary not in unfinished and temporary.name.removeprefix(f".{path.stem}.").split(".", 1)[0].isdigit():
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file, atomically."""
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def prepare_folder(folder: Path, content: str, size: int = 0, mend: str = "choose another folder") -> None:
    """Create a folder and check that a file can be written into it.

    Args:
        content: what will be written, for the message: "The report".
        size: bytes that must fit.

    Raises:
        InputError: it cannot be created or written.
    """
    probe = temporary_name(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(size))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{content} cannot be written into {folder} ({error.strerror}); {mend}.") from error
