"""Compiles the CUDA kernels at first use, keeps the result in the user's cache folder and launches it.

NVIDIA's own ``cuda.bindings`` does it: the CUDA builds of torch for Linux bring it along with NVRTC, so no CUDA toolkit, no
C++ compiler and no further package is needed there; elsewhere :func:`_how_to_get` says what to install.
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

from ..util.atomic import replacing
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
"""(kernel, blocks, threads per block, argument values, their ctypes): puts one kernel on the current stream."""


class CudaUnavailable(RuntimeError):
    """The CUDA kernels cannot be compiled or run here; the message says how to mend it."""


def source() -> str:
    """The kernels' CUDA C++ with the constants of :mod:`.projection` as macros."""
    macros = "".join(f"#define {name} {value:.9e}f\n" for name, value in _CONSTANTS.items())
    return macros + SOURCE.read_text(encoding="utf-8")


def architecture(capability: tuple[int, int]) -> str:
    """What to compile for: the GPU itself where NVRTC knows it, else the newest older kind, as PTX for the driver to finish.

    Raises:
        CudaUnavailable: NVRTC is missing, or knows newer GPUs only.
    """
    nvrtc_version()
    nvrtc, _ = _bindings()
    wanted, known = 10 * capability[0] + capability[1], _check(nvrtc.nvrtcGetSupportedArchs())
    older = [each for each in known if each <= wanted]
    if not older:
        raise CudaUnavailable(
            f"NVRTC {nvrtc_version()} compiles for compute capability {min(known) / 10} and newer, this GPU has "
            f"{wanted / 10}; install an older nvidia-cuda-nvrtc or choose another renderer."
        )
    return f"sm_{wanted}" if wanted in known else f"compute_{max(older)}"


def _options(arch: str) -> tuple[str, ...]:
    return f"--gpu-architecture={arch}", "--std=c++17", "--fmad=true"


def _how_to_get() -> str:
    major = (torch.version.cuda or "13").split(".")[0]  # the packages must be as old or new as torch's own CUDA
    nvrtc = "nvidia-cuda-nvrtc-cu12" if major == "12" else "nvidia-cuda-nvrtc"
    return f"pip install 'cuda-bindings=={major}.*' '{nvrtc}=={major}.*'"


def _bindings() -> tuple[Any, Any]:
    """``cuda.bindings``' nvrtc and driver modules, which are compiled and come without types."""
    try:
        driver, nvrtc = (importlib.import_module(f"cuda.bindings.{name}") for name in ("driver", "nvrtc"))
    except ImportError as error:
        raise CudaUnavailable(f"NVIDIA's package cuda-bindings is missing: {_how_to_get()}.") from error
    return nvrtc, driver


def nvrtc_version() -> str:
    """Version of the run-time compiler, such as ``13.0``.

    Raises:
        CudaUnavailable: if it is not installed.
    """
    nvrtc, _ = _bindings()
    try:
        return "{}.{}".format(*_check(nvrtc.nvrtcVersion()))
    except CudaUnavailable:
        raise
    except Exception as error:  # how a missing library is reported differs between versions
        raise CudaUnavailable(f"The CUDA run-time compiler NVRTC does not load ({error}): {_how_to_get()}.") from error


def compile_kernels(arch: str) -> bytes:
    """What the driver loads for an :func:`architecture`: a cubin for "sm_90", PTX for "compute_90". Needs no GPU.

    Raises:
        CudaUnavailable: if NVRTC is missing or refuses, with its own words.
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
    """What a function of ``cuda.bindings`` returned behind its status."""
    status, *values = answer
    if status != 0:
        raise CudaUnavailable(f"CUDA answered {status.name}; check the driver with nvidia-smi.")
    return values[0] if len(values) == 1 else tuple(values)


def cache_folder() -> Path:
    """Where machine code is kept: the variable MICRODREAMER_CACHE, else the system's place for a user's caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    local = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(local) if local else Path.home() / ".cache") / "microdreamer"


def cached_kernels(capability: tuple[int, int]) -> bytes:
    """Like :func:`compile_kernels`, but compiled once per machine; a folder that cannot be written is no error."""
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
        with replacing(path) as temporary:
            temporary.write_bytes(hashlib.sha256(code).digest() + code)
    except OSError as error:
        logger.debug("The CUDA kernels are not cached: %s", error)
    return code


def check_usable() -> None:
    """Refuse before anything is moved to a GPU that is none of NVIDIA's, absent or without its packages.

    Raises:
        CudaUnavailable: the message says how to mend it.
    """
    if torch.version.hip is not None:
        raise CudaUnavailable("This is a ROCm build of torch, the CUDA kernels are NVIDIA's: choose the torch renderer.")
    if not torch.cuda.is_available():
        raise CudaUnavailable("There is no CUDA GPU that torch can use: install torch's CUDA build and NVIDIA's driver.")
    nvrtc_version()


@cache
def _load(device: int) -> tuple:
    """That device's primary context, which torch uses too, and the kernels loaded into it by name."""
    _, driver = _bindings()
    _check(driver.cuInit(0))
    context = _check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(device))))
    _check(driver.cuCtxSetCurrent(context))
    code = cached_kernels(torch.cuda.get_device_capability(device))
    try:
        module = _check(driver.cuModuleLoadData(code))
    except CudaUnavailable as error:
        raise CudaUnavailable(f"{error} NVRTC {nvrtc_version()} may be newer than the driver: {_how_to_get()}.") from error
    return context, {name: _check(driver.cuModuleGetFunction(module, name.encode())) for name in KERNELS}


def launch(name: str, blocks: tuple[int, int, int], threads: int, values: tuple, types: tuple) -> None:
    """Put a kernel on torch's current stream of the current device; see :data:`Launch`."""
    _, driver = _bindings()
    context, kernels = _load(torch.cuda.current_device())
    _check(driver.cuCtxSetCurrent(context))  # contexts belong to threads, and this one may not have met CUDA yet
    stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
    _check(driver.cuLaunchKernel(kernels[name], *blocks, threads, 1, 1, 0, stream, (values, types), 0))


def arguments(*given: int | Tensor) -> tuple[tuple, tuple]:
    """Values and ctypes of kernel arguments: integers are C ints, contiguous tensors the addresses of their data."""
    values = tuple(a.data_ptr() if isinstance(a, Tensor) else int(a) for a in given)
    return values, tuple(ctypes.c_void_p if isinstance(a, Tensor) else ctypes.c_int for a in given)
