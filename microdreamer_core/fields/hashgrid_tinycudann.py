"""Hash grid encoder of tiny-cuda-nn, with an external table.

Importing this module imports tinycudann, which is not in a package registry and is built from NVlabs/tiny-cuda-nn.
"""

from __future__ import annotations

from functools import lru_cache

import tinycudann  # pyright: ignore[reportMissingImports] - optional, in no registry
import torch
from torch import Tensor
from torch.func import functional_call

from .hashgrid import HashGrid, encode_torch


class TinyCudaEncoder:
    """The :data:`~.hashgrid.Encoder` of CUDA in float32.

    Order and sizes of levels are those of tiny-cuda-nn, so its flat parameters are the rows of the table in order;
    ``encoders.get_encoder`` probes that before use.
    """

    def __init__(self, grid: HashGrid):
        self._encoding = _encoding(grid)

    def __call__(self, points: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
        if not len(points):
            return encode_torch(points, table, grid)
        features = functional_call(self._encoding, {"params": table.reshape(-1)}, (points.detach(),))
        return features.to(table.dtype)


@lru_cache(maxsize=4)
def _encoding(grid: HashGrid) -> torch.nn.Module:
    """Create the encoding; cached, because it allocates parameters, which are never read."""
    config = {
        "otype": "HashGrid",
        "n_levels": grid.levels,
        "n_features_per_level": grid.features,
        "log2_hashmap_size": grid.log2_table,
        "base_resolution": grid.base_resolution,
        "per_level_scale": grid.per_level_scale,
        "interpolation": "Linear",
    }
    return tinycudann.Encoding(3, config, dtype=torch.float32)
