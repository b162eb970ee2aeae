"""One process at a time writes the files of one name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError
from .atomic import unfinished

_WINDOWS_OFFSET = 1 << 20  # Windows lets nobody read the locked bytes, and the process number must be read


@contextmanager
def lock_output(path: Path) -> Iterator[None]:
    """Hold the lock of ``path`` and of all files with its stem, in an existing folder.

    The system frees the lock when the process ends, however it ends; a file system without locks is written unguarded.

    Raises:
        InputError: another process, or another lock of this one, holds it.
    """
    lock = path.with_name(f".{path.stem}.lock")
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    held = False
    try:
        held = _try_lock(file)
        if not held:
            holder = os.read(file, 20).decode(errors="replace").strip() or "unknown"
            raise InputError(
                f"{path} is being written by the process {holder}; wait for it, stop it, or give another name with -o."
            )
        unfinished.add(lock)
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield
    finally:
        if held:
            with suppress(OSError):  # Windows keeps a file that is open
                lock.unlink()
            unfinished.discard(lock)
        os.close(file)


def _try_lock(file: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, _WINDOWS_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(file, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
