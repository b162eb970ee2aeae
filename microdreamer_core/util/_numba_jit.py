"""Compilation of numba kernels, with its options and disk cache.

numba's disk cache watches the kernel's own file only: after a change of constants that a kernel imports, touch the kernel's
file too, or existing caches keep the old constants.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile

logger = logging.getLogger(__name__)

# No "nnan" or "ninf": the kernels cull non-finite Gaussians by comparisons.
_OPTIONS = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
    "boundscheck": False,
}

_CHECKSUM_BYTES = 16

inlined = numba.njit(inline="always")


def kernel(function: Callable) -> Callable:
    """Compile a serial kernel that releases the GIL; cached on disk, because compiling all kernels takes ten seconds."""
    return compile_kernel(function, _OPTIONS)


def compile_kernel(function: Callable, options: dict) -> Callable:
    """Compile with ``numba.njit`` and cache the result on disk.

    If neither the package's folder nor the user's cache is writable, each process compiles the kernel again.
    """
    # Cache files contain the module's name, but are named after file and function only. This package is imported under
    # several names (ComfyUI names it after the pack's path), and one could not load what another compiled.
    name = hashlib.blake2b(str(function.__module__).encode(), digest_size=4).hexdigest()
    function.__qualname__ = f"{function.__qualname__}_{name}"
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
        if cache := getattr(dispatcher, "_cache", None):  # a plain function has none, with NUMBA_DISABLE_JIT
            cache._cache_file.__class__ = _CheckedCacheFile
        return dispatcher
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        logger.debug("%s; set NUMBA_CACHE_DIR to a writable folder to keep compiled kernels", error)
        return numba.njit(**options)(function)


class _CheckedCacheFile(IndexDataCacheFile):
    """The cache files of a kernel with a checksum at their end, so that damaged ones are compiled again.

    Without it, a truncated file raises an error at every start, and a changed one may end the process: it is machine code.
    """

    def load(self, key: Any) -> Any:
        self._remove_damaged()
        return super().load(key)

    def save(self, key: Any, data: Any) -> None:
        self._remove_damaged()
        super().save(key, data)

    def _remove_damaged(self) -> None:
        for path in Path(self._cache_path).glob(escape(self._index_name.removesuffix(".nbi")) + ".*nb[ic]"):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # replaced by another process
                continue
            if _checksum(content[:-_CHECKSUM_BYTES]) != content[-_CHECKSUM_BYTES:]:
                path.unlink(missing_ok=True)

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[Any]:
        buffer = io.BytesIO()
        yield buffer
        content = buffer.getvalue()
        with super()._open_for_write(filepath) as file:
            file.write(content + _checksum(content))  # unpickling ignores what follows


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM_BYTES).digest()
