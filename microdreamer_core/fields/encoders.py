"""Choice of the hash grid backend: the fastest that agrees with torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..util.probe import check_close, choose_backend, failure, works
from ..util.seeds import generator
from .hashgrid import Encoder, HashGrid, encode_torch

PROBE_TOLERANCE = {"torch": 1e-4, "numba": 1e-4, "tinycudann": 2e-2}  # relative; tiny-cuda-nn may compute in half precision


def _torch(grid: HashGrid) -> Encoder:
    return encode_torch


def _numba(grid: HashGrid) -> Encoder:
    from .hashgrid_numba import NumbaEncoder

    return NumbaEncoder(grid)


def _tinycudann(grid: HashGrid) -> Encoder:
    from .hashgrid_tinycudann import TinyCudaEncoder

    return TinyCudaEncoder(grid)


_ENCODERS: dict[str, Callable[[HashGrid], Encoder]] = {"torch": _torch, "numba": _numba, "tinycudann": _tinycudann}
_PREFERENCE = {"cpu": ("numba", "torch"), "cuda": ("tinycudann", "torch")}  # device type -> encoders, best first
_PREFERENCE_ELSEWHERE = ("torch",)
ENCODERS = ("auto", "numba", "torch", "tinycudann")


def get_encoder(name: str, grid: HashGrid, device: torch.device | str = "cpu") -> Encoder:
    """Return the encoder of that name, or for "auto" the fastest that works for tensors on ``device``.

    An encoder works if it agrees with the torch encoder on a few points of a small grid, gradients included; this is probed
    once per process, device type and number of features.

    >>> get_encoder("torch", HashGrid()) is encode_torch
    True

    Args:
        name: one of :data:`ENCODERS`: ``"numba"`` (CPU), ``"torch"`` (anywhere), ``"tinycudann"`` (CUDA, if installed).

    Raises:
        InputError: the encoder is unknown or does not work here; the message lists the available ones.
    """
    device_type = torch.device(device).type
    preference = _PREFERENCE.get(device_type, _PREFERENCE_ELSEWHERE)

    def load(candidate: str) -> Encoder | None:
        return _load(candidate, grid, device_type) if candidate in preference else None

    return choose_backend("hash grid encoder", name, device_type, preference, ENCODERS[1:], load)


def probe_encoders(device: torch.device | str = "cpu") -> dict[str, str]:
    """Probe every encoder for ``device``, torch included: name -> why it fails, empty if it works."""
    device_type = torch.device(device).type
    names = _PREFERENCE.get(device_type, _PREFERENCE_ELSEWHERE)
    return {name: failure(lambda name=name: _check(name, 2, device_type)) for name in names}


def _load(name: str, grid: HashGrid, device_type: str) -> Encoder | None:
    return _ENCODERS[name](grid) if _works(name, grid.features, device_type) else None


@cache
def _works(name: str, features: int, device_type: str) -> bool:
    """Return True if the encoder agrees with torch, the reference; a failure is logged once."""
    if name == "torch":
        return True
    if name == "numba" and features != 2:  # its kernels are written for two
        return False
    return works(f"The hash grid encoder {name!r}", lambda: _check(name, features, device_type))


def _check(name: str, features: int, device_type: str) -> None:
    grid = HashGrid(levels=4, features=features, log2_table=10, base_resolution=4, per_level_scale=1.9)
    got, expected = (_probe(encode, grid, device_type) for encode in (_ENCODERS[name](grid), encode_torch))
    check_close(got, expected, ("features", "gradients"), PROBE_TOLERANCE[name])


def _probe(encode: Encoder, grid: HashGrid, device_type: str) -> list[Tensor]:
    """Compute features of a few points, and the table's gradient."""
    rng = generator(0, -1, "encoder probe")
    with torch.inference_mode(False), torch.enable_grad():
        points = torch.rand(200, 3, generator=rng).to(device_type)
        table = (torch.rand(grid.entries, grid.features, generator=rng) - 0.5).to(device_type).requires_grad_()
        features = encode(points, table, grid)
        weights = torch.rand(features.shape, generator=rng).to(device_type)
        return [features.detach(), *torch.autograd.grad(features, table, weights)]
