"""Which splat renderers work here, and the best one for a device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch

from ..cameras import orbit_cameras
from ..errors import InputError
from ..seeds import generator
from .protocol import SplatRenderer, Splats

logger = logging.getLogger(__name__)

PROBE_TOLERANCE = 1e-3  # relative; a wrong kernel misses by far more, float32 rounding by far less


def _torch() -> SplatRenderer:
    from .splat_torch import TorchSplatRenderer

    return TorchSplatRenderer()


def _numba() -> SplatRenderer:
    from .splat_numba import NumbaSplatRenderer

    return NumbaSplatRenderer()


_BACKENDS: dict[str, Callable[[], SplatRenderer]] = {"torch": _torch, "numba": _numba}
_PREFERENCE = {"cpu": ("numba", "torch")}  # device type -> backends, best first
_PREFERENCE_ELSEWHERE = ("torch", "numba")


def get_renderer(name: str = "auto", device: torch.device | str = "cpu") -> SplatRenderer:
    """The renderer of that name, or the best one that works for tensors on ``device``.

    A backend counts as working once it has drawn a tiny scene like the torch renderer, tried once per process and device
    type; one that fails is logged once as a warning and not offered again.

    Args:
        name: ``"auto"``, ``"torch"`` (any device) or ``"numba"`` (computes on the CPU).

    Raises:
        InputError: if there is no such renderer or it does not work here; the message lists what is available.
    """
    device_type = torch.device(device).type
    if name == "auto":
        working = (_load(candidate, device_type) for candidate in _preference(device_type))
        return next(renderer for renderer in working if renderer is not None)
    renderer = _load(name, device_type) if name in _BACKENDS else None
    if renderer is None:
        known = "does not work here" if name in _BACKENDS else "is not known"
        available = ", ".join(("auto", *available_renderers(device)))
        raise InputError(f"The splat renderer {name!r} {known}; expected one of {available}: choose one of these.")
    return renderer


def available_renderers(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the renderers that work for tensors on ``device``, best first."""
    device_type = torch.device(device).type
    return tuple(name for name in _preference(device_type) if _load(name, device_type) is not None)


def _preference(device_type: str) -> tuple[str, ...]:
    return _PREFERENCE.get(device_type, _PREFERENCE_ELSEWHERE)


@cache
def _load(name: str, device_type: str) -> SplatRenderer | None:
    """The renderer, or None if it cannot be used; torch is the yardstick and needs no probe."""
    if name == "torch":
        return _BACKENDS[name]()
    try:
        renderer = _BACKENDS[name]()
        _compare(_probe(renderer, device_type), _probe(_torch(), device_type))
    except Exception as error:  # whatever a compiler or a driver raises, another backend can still draw
        logger.warning("The splat renderer %r is skipped: %s: %s", name, type(error).__name__, error)
        return None
    return renderer


def _probe(renderer: SplatRenderer, device_type: str) -> list[torch.Tensor]:
    """Pictures and gradients of a tiny scene."""
    draw = generator(0, -1, "renderer probe")
    count = 24

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        values = low + (high - low) * torch.rand(*shape, generator=draw)
        return values.to(device_type).requires_grad_()

    with torch.inference_mode(False), torch.enable_grad():  # hosts call under inference_mode, where no gradient exists
        shapes = uniform(-0.4, 0.4, count, 3), uniform(-1, 1, count, 4), uniform(0.03, 0.1, count, 3)
        splats = Splats(*shapes, opacities=uniform(0.2, 0.9, count), colors=uniform(0, 1, count, 3))
        cameras = orbit_cameras(10.0, [20.0, 140.0], width=30, height=22, device=device_type)
        render = renderer(splats, cameras, splats.means.new_ones(3), track_means2d=True)
        outputs = [render.rgb, render.alpha, render.depth]
        weights = [torch.rand(o.shape, generator=draw).to(device_type) for o in outputs]
        leaves = [splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, render.means2d]
        return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def _compare(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        error = float((a - b).detach().norm() / b.detach().norm())
        if not error <= PROBE_TOLERANCE:
            raise ArithmeticError(f"its probe differs from torch by {error:.2e} in output {i}, expected {PROBE_TOLERANCE:.0e}")
