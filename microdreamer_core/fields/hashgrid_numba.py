"""Hash grid encoder for the CPU: numba kernels with analytic derivatives on the renderers' thread pool, deterministic.

Importing this module imports numba.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import InputError
from ..util.threads import run_all, split_range
from ._numba_hash import hash_backward, hash_forward
from .hashgrid import HashGrid

FEATURES = 2


class NumbaEncoder:
    """The :data:`~.hashgrid.Encoder` of the CPU, in the table's dtype; bit-identical for any number of threads.

    Raises:
        InputError: the grid does not have 2 features per level.
    """

    def __init__(self, grid: HashGrid):
        if grid.features != FEATURES:
            raise InputError(f"The numba encoder takes {FEATURES} features per level, got {grid.features}; use 'torch'.")

    def __call__(self, points: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        return _Encode.apply(points.detach().to(table.dtype).contiguous(), table.contiguous(), grid)


class _Levels(NamedTuple):
    """A grid as arrays for the kernels."""

    scales: np.ndarray
    resolutions: np.ndarray  # 0 where hashed
    sizes: np.ndarray
    offsets: np.ndarray


def _levels(grid: HashGrid, dtype: np.dtype) -> _Levels:
    resolutions = [r if grid.is_dense(level) else 0 for level, r in enumerate(grid.resolutions)]
    integers = (np.array(resolutions, np.uint32), np.array(grid.sizes, np.uint32), np.array(grid.offsets, np.uintp))
    return _Levels(np.array(grid.scales, dtype), *integers)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        arrays = points.numpy(), table.detach().numpy()
        levels = _levels(grid, arrays[1].dtype)
        features = np.empty((len(points), grid.width), arrays[1].dtype)
        run_all([partial(hash_forward, a, b, *arrays, *levels, features) for a, b in split_range(len(points))])
        ctx.save_for_backward(points)
        ctx.levels, ctx.shape = levels, table.shape
        return torch.from_numpy(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_features: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - torch declares any number
        (points,) = ctx.saved_tensors
        v_table = torch.zeros(ctx.shape, dtype=points.dtype)
        arrays = points.numpy(), v_features.contiguous().numpy(), *ctx.levels, v_table.numpy()
        run_all([partial(hash_backward, level, *arrays) for level in reversed(range(len(ctx.levels.scales)))])
        return None, v_table, None
