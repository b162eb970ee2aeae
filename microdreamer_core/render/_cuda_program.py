"""The CUDA kernels: compiled at first use, cached in the user's cache folder, and launched.

This uses NVIDIA's ``cuda.bindings``: the CUDA builds of torch for Linux depend on it and on NVRTC, so no CUDA toolkit, no C++
compiler and no further package is needed there; elsewhere :func:`_how_to_get` gives the command to install them.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..util.atomic import replace_file
from .projection import ALPHA_MAX, ALPHA_MIN, BLUR, FAR, FRUSTUM_MARGIN, MAX_EXTENT, MAX_RADIUS, NEAR, T_MIN

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("_cuda_kernels.cu")
KERNELS = ("project", "raster_forward", "raster_backward", "project_backward")
CACHE_VARIABLE = "MICRODREAMER_CACHE"
_CONSTANTS = {
    "NEAR": NEAR,
    "FAR": FAR,
    "BLUR": BLUR,
    "MARGIN": 0.5 * FRUSTUM_MARGIN,
    "ALPHA_MIN": ALPHA_MIN,
    "ALPHA_MAX": ALPHA_MAX,
    "T_MIN": T_MIN,
    "MAX_EXTENT": MAX_EXTENT,
    "MAX_RADIUS": MAX_RADIUS,
    "FLOAT_MAX": torch.finfo(torch.float32).max,
}
_CHECKSUM = 32  # bytes of SHA-256 before the code in a cache file

Launch = Callable[[str, tuple[int, int, int], int, tuple, tuple], None]
"""launch(kernel, blocks, threads per block, argument values, their ctypes) launches one kernel on the current stream."""


class CudaUnavailable(RuntimeError):
    """The CUDA kernels cannot be compiled or run here; the message says how to fix it."""


def source() -> str:
    """Return the CUDA C++ of the kernels, with the constants of :mod:`.projection` as macros."""
    macros = "".join(f"#define {name} {value:.9e}f\n" for name, value in _CONSTANTS.items())
    return macros + SOURCE.read_text(encoding="utf-8")


def architecture(capability: tuple[int, int]) -> str:
    """Choose the target of compilation: the GPU itself if NVRTC supports it, else PTX of the newest older architecture.

    Raises:
        CudaUnavailable: NVRTC is missing, or supports only newer GPUs.
    """
    nvrtc_version()
    nvrtc, _ = _bindings()
    this, known = 10 * capability[0] + capability[1], _check(nvrtc.nvrtcGetSupportedArchs())
    older = [each for each in known if each <= this]
    if not older:
        raise CudaUnavailable(
            f"NVRTC {nvrtc_version()} compiles for compute capability {min(known) / 10} and newer, this GPU has "
            f"{this / 10}; install an older nvidia-cuda-nvrtc or choose another renderer."
        )
    return f"sm_{this}" if this in known else f"compute_{max(older)}"


def _options(arch: str) -> tuple[str, ...]:
    return f"--gpu-architecture={arch}", "--std=c++17", "--fmad=true"


def _how_to_get() -> str:
    major = (torch.version.cuda or "13").split(".")[0]  # the packages must have the major version of torch's CUDA
    nvrtc = "nvidia-cuda-nvrtc-cu12" if major == "12" else "nvidia-cuda-nvrtc"
    return f"pip install 'cuda-bindings=={major}.*' '{nvrtc}=={major}.*'"


def _bindings() -> tuple[Any, Any]:
    """Import ``cuda.bindings``' nvrtc and driver modules, which are compiled and untyped."""
    try:
        driver, nvrtc = (importlib.import_module(f"cuda.bindings.{name}") for name in ("driver", "nvrtc"))
    except ImportError as error:
        raise CudaUnavailable(f"NVIDIA's package cuda-bindings is missing: {_how_to_get()}.") from error
    return nvrtc, driver


def nvrtc_version() -> str:
    """Return the version of the run-time compiler, such as ``13.0``.

    Raises:
        CudaUnavailable: it is not installed.
    """
    nvrtc, _ = _bindings()
    try:
        return "{}.{}".format(*_check(nvrtc.nvrtcVersion()))
    except CudaUnavailable:
        raise
    except Exception as error:  # the exception for a missing library differs between versions
        raise CudaUnavailable(f"The CUDA run-time compiler NVRTC does not load ({error}): {_how_to_get()}.") from error


def compile_kernels(arch: str) -> bytes:
    """Compile the kernels for an :func:`architecture`: a cubin for "sm_90", PTX for "compute_90". Needs no GPU.

    Raises:
        CudaUnavailable: NVRTC is missing or fails; the message has its log.
    """
    nvrtc_version()
    nvrtc, _ = _bindings()
    program = _check(nvrtc.nvrtcCreateProgram(source().encode(), SOURCE.name.encode(), 0, [], []))
    try:
        options = [option.encode() for option in _options(arch)]
        status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
        if status != 0:
            log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program))
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            words = log.decode(errors="replace").strip(" \n\0")
            raise CudaUnavailable(f"NVRTC cannot compile for {arch}: {status.name}: {words}")
        kind = "CUBIN" if arch.startswith("sm_") else "PTX"
        code = b" " * _check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program))
        _check(getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code


def _check(answer: tuple) -> Any:
    """Check the status of a ``cuda.bindings`` call and return its values."""
    status, *values = answer
    if status != 0:
        raise CudaUnavailable(f"CUDA answered {status.name}; check the driver with nvidia-smi.")
    return values[0] if len(values) == 1 else tuple(values)


def cache_folder() -> Path:
    """Return the cache folder of machine code: the variable MICRODREAMER_CACHE, else the system's folder for user caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    local = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(local) if local else Path.home() / ".cache") / "microdreamer"


def load_kernels(capability: tuple[int, int]) -> bytes:
    """Like :func:`compile_kernels`, but compiled once per machine; without a writable folder, once per process."""
    arch = architecture(capability)
    key = hashlib.sha256("\0".join([source(), nvrtc_version(), *_options(arch)]).encode()).hexdigest()[:32]
    try:
        path = cache_folder() / f"splats-{arch}-{key}.bin"
        stored = path.read_bytes() if path.is_file() else b""
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        logger.debug("The cache of CUDA kernels cannot be read: %s", error)
        return compile_kernels(arch)
    if stored and hashlib.sha256(stored[_CHECKSUM:]).digest() == stored[:_CHECKSUM]:
        return stored[_CHECKSUM:]
    code = compile_kernels(arch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
    except OSError as error:
        logger.debug("The CUDA kernels are not cached: %s", error)
    return code


def check_usable() -> None:
    """Check for an NVIDIA GPU and the packages that it needs, before anything is moved to it.

    Raises:
        CudaUnavailable: one is missing; the message says how to fix it.
    """
    if torch.version.hip is not None:
        raise CudaUnavailable("This is a ROCm build of torch, the CUDA kernels are NVIDIA's: choose the torch renderer.")
    if not torch.cuda.is_available():
        raise CudaUnavailable("There is no CUDA GPU that torch can use: install torch's CUDA build and NVIDIA's driver.")
    nvrtc_version()


@cache
def _load(device: int) -> tuple:
    """Return a device's primary context, which torch uses too, and the kernels by name, loaded into it."""
    _, driver = _bindings()
    _check(driver.cuInit(0))
    context = _check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(device))))
    _check(driver.cuCtxSetCurrent(context))
    code = load_kernels(torch.cuda.get_device_capability(device))
    try:
        module = _check(driver.cuModuleLoadData(code))
    except CudaUnavailable as error:
        raise CudaUnavailable(f"{error} NVRTC {nvrtc_version()} may be newer than the driver: {_how_to_get()}.") from error
    return context, {name: _check(driver.cuModuleGetFunction(module, name.encode())) for name in KERNELS}


def launch(name: str, blocks: tuple[int, int, int], threads: int, values: tuple, types: tuple) -> None:
    """Launch a kernel on torch's current stream of the current device; see :data:`Launch`."""
    _, driver = _bindings()
    context, kernels = _load(torch.cuda.current_device())
    _check(driver.cuCtxSetCurrent(context))  # contexts are per thread, and this thread may not have used CUDA yet
    stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
    _check(driver.cuLaunchKernel(kernels[name], *blocks, threads, 1, 1, 0, stream, (values, types), 0))


def arguments(*given: int | Tensor) -> tuple[tuple, tuple]:
    """Return values and ctypes of kernel arguments: integers become C ints, contiguous tensors the addresses of their data."""
    values = tuple(a.data_ptr() if isinstance(a, Tensor) else int(a) for a in given)
    return values, tuple(ctypes.c_void_p if isinstance(a, Tensor) else ctypes.c_int for a in given)
