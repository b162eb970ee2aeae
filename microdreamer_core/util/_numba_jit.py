"""Compilation of numba kernels, with its options and disk cache.

numba's disk cache watches the kernel's own file only: after a change of constants that a kernel imports, touch the kernel's
file too, or existing caches keep the old constants.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

import numba

logger = logging.getLogger(__name__)

# No "nnan" or "ninf": the kernels cull non-finite Gaussians by comparisons.
_OPTIONS = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
    "boundscheck": False,
}

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
        return numba.njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        logger.debug("%s; set NUMBA_CACHE_DIR to a writable folder to keep compiled kernels", error)
        return numba.njit(**options)(function)
