"""Choice of the splat renderer: the fastest that works on a device and agrees with torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache

import torch

from ..cameras import orbit_cameras
from ..util.probe import check_close, choose_backend, failure
from ..util.seeds import generator
from .protocol import SplatRenderer, Splats

logger = logging.getLogger(__name__)

_LEAVES = ("means", "quats", "scales", "opacities", "colors", "means2d")
_PROBED = ("rgb", "alpha", "depth", *(f"gradients of {name}" for name in _LEAVES))
PROBE_TOLERANCE = 1e-3  # relative; wrong kernels differ by much more, float32 rounding by much less


def _torch() -> SplatRenderer:
    from .splat_torch import TorchSplatRenderer

    return TorchSplatRenderer()


def _numba() -> SplatRenderer:
    from .splat_numba import NumbaSplatRenderer

    return NumbaSplatRenderer()


def _cuda() -> SplatRenderer:
    from ._cuda_program import check_usable
    from .splat_cuda import CudaSplatRenderer

    check_usable()
    return CudaSplatRenderer()


def _gsplat() -> SplatRenderer:
    from .splat_gsplat import GsplatSplatRenderer

    return GsplatSplatRenderer()


_BACKENDS: dict[str, Callable[[], SplatRenderer]] = {"cuda": _cuda, "gsplat": _gsplat, "torch": _torch, "numba": _numba}
_PREFERENCE = {"cpu": ("numba", "torch"), "cuda": ("cuda", "gsplat", "torch", "numba")}  # device type -> best first
_UNDECIDED = ("torch", "numba")  # for other devices, ordered by measured time
_TIMED_SCENE = 2000, 128  # Gaussians and pixels per side: large enough that transfers and launches do not dominate


def get_renderer(name: str = "auto", device: torch.device | str = "cpu") -> SplatRenderer:
    """Return the renderer of that name, or for "auto" the best one that works for tensors on ``device``.

    A backend works if it renders a tiny scene like the torch renderer, gradients included; this is probed once per process and
    device type. A failure is logged once as a warning.

    >>> get_renderer("torch").name
    'torch'

    Args:
        name: ``"auto"``, ``"cuda"`` (NVIDIA GPUs, own kernels), ``"gsplat"`` (if its compiled extension is installed),
            ``"torch"`` (any device) or ``"numba"`` (computes on the CPU).

    Raises:
        InputError: the renderer is unknown or does not work here; the message lists the available ones.
    """
    device_type = torch.device(device).type
    return choose_backend(
        "splat renderer", name, device_type, _preference(device_type), _BACKENDS, lambda n: _load(n, device_type)
    )


def available_renderers(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Return the names of the renderers that work for tensors on ``device``, best first."""
    device_type = torch.device(device).type
    return tuple(name for name in _preference(device_type) if _load(name, device_type) is not None)


def probe_renderers(device: torch.device | str = "cpu") -> dict[str, str]:
    """Probe every renderer for ``device``, torch included: name -> why it fails, empty if it works."""
    device_type = torch.device(device).type
    names = _UNDECIDED if _is_undecided(device_type) else _PREFERENCE[device_type]
    return {name: failure(lambda name=name: _load_checked(name, device_type)) for name in names}


def _preference(device_type: str) -> tuple[str, ...]:
    return _order_by_speed(device_type) if _is_undecided(device_type) else _PREFERENCE[device_type]


def _is_undecided(device_type: str) -> bool:
    rocm = device_type == "cuda" and torch.version.hip is not None  # torch calls AMD's GPUs cuda too
    return rocm or device_type not in _PREFERENCE


@cache
def _order_by_speed(device_type: str) -> tuple[str, ...]:
    """Order the working backends of devices without a fixed preference, fastest first; timed once per process."""
    renderers = {name: _load(name, device_type) for name in _UNDECIDED}
    seconds = {name: _seconds(renderer, device_type) for name, renderer in renderers.items() if renderer is not None}
    order = tuple(sorted(seconds, key=seconds.__getitem__))
    logger.debug("Splat renderers for %s, fastest first: %s", device_type, {name: seconds[name] for name in order})
    return order


def _seconds(renderer: SplatRenderer, device_type: str) -> float:
    """Measure the wall-clock seconds of a render and its gradients, after a warm-up, until they are on the CPU."""
    begin = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        for result in _probe(renderer, device_type, *_TIMED_SCENE):
            result.to("cpu")  # synchronises
    return time.perf_counter() - begin


@cache
def _load(name: str, device_type: str) -> SplatRenderer | None:
    """Return the renderer, or None if it does not work; torch is the reference and needs no probe."""
    if name == "torch":
        return _BACKENDS[name]()
    try:
        return _load_checked(name, device_type)
    except Exception as error:  # compilers and drivers raise anything; another backend can still work
        logger.warning("The splat renderer %r is skipped: %s: %s", name, type(error).__name__, error)
        return None


def _load_checked(name: str, device_type: str) -> SplatRenderer:
    renderer = _BACKENDS[name]()
    check_close(_probe(renderer, device_type), _probe(_torch(), device_type), _PROBED, PROBE_TOLERANCE)
    return renderer


def _probe(renderer: SplatRenderer, device_type: str, count: int = 24, size: int = 22) -> list[torch.Tensor]:
    """Render a tiny scene and its gradients."""
    rng = generator(0, -1, "renderer probe")

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        values = low + (high - low) * torch.rand(*shape, generator=rng)
        return values.to(device_type).requires_grad_()

    with torch.inference_mode(False), torch.enable_grad():  # ComfyUI calls in inference mode, without gradients
        shapes = uniform(-0.4, 0.4, count, 3), uniform(-1, 1, count, 4), uniform(0.03, 0.1, count, 3)
        splats = Splats(*shapes, opacities=uniform(0.2, 0.9, count), colors=uniform(0, 1, count, 3))
        cameras = orbit_cameras(10.0, [20.0, 140.0], width=size + 8, height=size, device=device_type)
        render = renderer(splats, cameras, splats.means.new_ones(3), track_means2d=True)
        outputs = [render.rgb, render.alpha, render.depth]
        weights = [torch.rand(o.shape, generator=rng).to(device_type) for o in outputs]
        leaves = [splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, render.means2d]
        # one number, because the gradient of several imports torch's symbolic shapes, which takes half a second
        total = torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()
        return [*outputs, *torch.autograd.grad(total, leaves)]
