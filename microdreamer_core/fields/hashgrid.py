"""The multi-resolution hash grid: positions to features (Müller et al. 2022, instant neural graphics primitives, section 3).

Layout and arithmetic are those of tiny-cuda-nn's "HashGrid": a level is a grid of scale s = base b^l - 1 at x s + 1/2,
with trilinear weights; a level whose corners fit the table is dense, a larger one is hashed. So all encoders share tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError

Encoder = Callable[[Tensor, Tensor, "HashGrid"], Tensor]
"""(points [M,3] in [0,1], table [entries,features], grid) -> [M, levels * features]; only the table gets gradients."""

PRIMES = (1, 2654435761, 805459861)  # of the spatial hash, Müller et al., Eq. 4
_FEATURES = (1, 2, 4, 8)
_MAX_RESOLUTION = 2**16  # beyond it float32 positions no longer tell cells apart


@dataclass(frozen=True)
class HashGrid:
    """The levels of a hash grid and their layout in the table.

    >>> grid = HashGrid(levels=2, log2_table=12, base_resolution=8, per_level_scale=2.0)
    >>> grid.resolutions, grid.sizes, grid.is_dense(1)
    ((8, 16), (512, 4096), True)

    Attributes:
        levels: number of grids.
        features: per corner and level: 1, 2, 4 or 8.
        log2_table: a level has at most 2**log2_table entries.
        base_resolution: of the coarsest level.
        per_level_scale: ratio of the resolutions of neighbouring levels, at least 1.

    Raises:
        InputError: a value is out of range, or levels are finer than float32 positions.
    """

    levels: int = 8
    features: int = 2
    log2_table: int = 15
    base_resolution: int = 16
    per_level_scale: float = 1.39

    def __post_init__(self):
        if not 1 <= self.levels <= 32 or self.features not in _FEATURES or not 4 <= self.log2_table <= 24:
            raise InputError(
                f"A hash grid needs 1 to 32 levels of {_FEATURES} features and 2^4 to 2^24 entries, got {self.levels}, "
                f"{self.features} and 2^{self.log2_table}; 16 levels of 2 features and 2^19 entries are usual."
            )
        if self.base_resolution < 2 or not self.per_level_scale >= 1:
            raise InputError(
                f"A hash grid starts at a resolution of at least 2 and grows by at least 1 per level, got "
                f"{self.base_resolution} and {self.per_level_scale}; 16 and 1.4473 are usual."
            )
        finest = self.base_resolution * self.per_level_scale ** (self.levels - 1)
        if not finest <= _MAX_RESOLUTION:
            raise InputError(
                f"The finest level of the hash grid would have resolution {finest:.0f}, expected at most {_MAX_RESOLUTION}; "
                "use fewer levels or a smaller per_level_scale."
            )

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return self.levels * self.features

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """s_l of each level."""
        return tuple(self.base_resolution * self.per_level_scale**level - 1.0 for level in range(self.levels))

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Corners along an axis of each level."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each level: its corners rounded up to a multiple of eight, at most 2**log2_table."""
        return tuple(min(-(-(r**3) // 8) * 8, 2**self.log2_table) for r in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first entry of each level."""
        return tuple(sum(self.sizes[:level]) for level in range(self.levels))

    @property
    def entries(self) -> int:
        """Number of rows of the table."""
        return sum(self.sizes)

    def is_dense(self, level: int) -> bool:
        """Return True if every corner of the level has its own entry."""
        return self.resolutions[level] ** 3 <= 2**self.log2_table


def encode_torch(points: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """Encode points in plain torch, on any device, in the table's dtype; see :data:`Encoder`.

    >>> grid = HashGrid(levels=4)
    >>> encode_torch(torch.rand(5, 3), torch.zeros(grid.entries, grid.features), grid).shape
    torch.Size([5, 8])
    """
    corners = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)], device=points.device)
    features = []
    for level, (scale, offset) in enumerate(zip(grid.scales, grid.offsets, strict=True)):
        position = points.detach() * scale + 0.5
        cell = position.floor()
        fraction = (position - cell)[:, None]
        weights = torch.where(corners.bool(), fraction, 1 - fraction).prod(-1)
        index = _entries(cell.long()[:, None] + corners, grid, level) + offset
        values = table.index_select(0, index.reshape(-1)).view(*index.shape, grid.features)
        features.append((values * weights[..., None]).sum(1))
    return torch.cat(features, 1)


def _entries(corner: Tensor, grid: HashGrid, level: int) -> Tensor:
    """Return the indices [M,8] of corners [M,8,3] within their level."""
    x, y, z = corner.unbind(-1)
    if grid.is_dense(level):
        resolution = grid.resolutions[level]
        return (x + resolution * (y + resolution * z)) % grid.sizes[level]  # corners beyond the last wrap, as in tiny-cuda-nn
    return (x ^ (y * PRIMES[1]) ^ (z * PRIMES[2])) & (2**grid.log2_table - 1)
