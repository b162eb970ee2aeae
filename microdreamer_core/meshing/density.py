"""The density that a mesh is extracted from: protocol, grids and silhouettes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, distance_to_hold, orbit_cameras
from ..errors import InputError
from ..fields.protocol import WHITE
from ..render.protocol import Render
from ..util.components import label_components

FOCUS_RESOLUTION = 64
_FOCUS_ROUNDS = 3
_FOCUS_SHARE = 0.01
_SILHOUETTE_SIZE = 320
_SILHOUETTE_ELEVATIONS = (0.0, 0.0, 0.0, 0.0, 35.0, 35.0, -35.0, -35.0, 80.0)
_SILHOUETTE_AZIMUTHS = (0.0, 45.0, 90.0, 135.0, 20.0, 110.0, 65.0, 155.0, 0.0)


@dataclass(frozen=True)
class DensityGrid:
    """Density on a cube of grid points.

    Attributes:
        values: [R,R,R] float32, indexed x, y, z.
        origin: [3] float32 world position of point (0,0,0).
        voxel: world distance between neighbouring points.
    """

    values: np.ndarray
    origin: np.ndarray
    voxel: float


@runtime_checkable
class DensitySource(Protocol):
    """What extraction and baking need of a representation.

    Attributes:
        name: its name in messages, a plural.
        thresholds: candidate densities of the surface, ascending.
    """

    @property
    def name(self) -> str: ...

    @property
    def thresholds(self) -> tuple[float, ...]: ...

    def density(self, resolution: int) -> DensityGrid:
        """Sample the density on the smallest cube around the object.

        Raises:
            InputError: nothing is visible, or the resolution is too small.
        """
        ...

    def render(self, cameras: Cameras, background: Tensor) -> Render:
        """Render on ``background`` [3]."""
        ...

    def colors(self, points: Tensor) -> Tensor:
        """Return the [N,3] surface colours at ``points`` [N,3], on the CPU."""
        ...

    def extent(self) -> float:
        """Return the radius around the origin that cameras must see."""
        ...


def check_resolution(resolution: int) -> None:
    """Raise InputError for a grid too coarse to hold a shape."""
    if resolution < 16:
        raise InputError(f"The density grid needs at least 16 points a side, got {resolution}; 128 is usual.")


def silhouette_cameras(extent: float) -> Cameras:
    """Return cameras around and above that just see the ball of radius ``extent``: their resolution limits the silhouettes."""
    radius = distance_to_hold(extent)
    return orbit_cameras(_SILHOUETTE_ELEVATIONS, _SILHOUETTE_AZIMUTHS, radius, width=_SILHOUETTE_SIZE)


@torch.no_grad()
def silhouettes(solid: DensitySource, cameras: Cameras) -> Tensor:
    """Render [V,H,W] bool masks, true where the object covers more than half of a pixel."""
    return solid.render(cameras, WHITE).alpha[..., 0].cpu() > 0.5


Box = tuple[np.ndarray, np.ndarray]
"""([3] lowest, [3] highest) corner."""


def shrink_box(
    low: np.ndarray,
    high: np.ndarray,
    sampled: Callable[[np.ndarray, np.ndarray, int], DensityGrid],
    occupied: Callable[[DensityGrid], Box],
) -> Box:
    """Shrink a box to the object on coarse grids; returns its (lowest, highest) corner.

    Args:
        low, high: [3] corners of the initial box.
        sampled: (low, high, resolution) -> :class:`DensityGrid` around that box.
        occupied: grid -> (low, high) corners around its dense region.
    """
    for _ in range(_FOCUS_ROUNDS):
        new_low, new_high = occupied(sampled(low, high, FOCUS_RESOLUTION))
        shrunk = float((new_high - new_low).max() / (high - low).max())
        low, high = np.maximum(low, new_low), np.minimum(high, new_high)
        if shrunk > 0.7:
            break
    return low, high


def cubic_grid(low: np.ndarray, high: np.ndarray, resolution: int) -> tuple[np.ndarray, float]:
    """Return (origin [3] float32, voxel) of the cubic grid around a box, with two empty points at each end of its longest side.

    >>> import numpy as np
    >>> round(cubic_grid(np.full(3, -0.5), np.full(3, 0.5), 16)[1], 4)
    0.0909
    """
    side = float((high - low).max())
    voxel = max(side, 1e-6) / (resolution - 5)
    return ((low + high) / 2 - voxel * (resolution - 1) / 2).astype(np.float32), voxel


def occupied_bounds(grid: DensityGrid, lowest: float, weight: Callable[[np.ndarray, int], np.ndarray]) -> Box:
    """Return the (lowest, highest) corner around the heavy clusters, two voxels wider; the whole grid if nothing is dense.

    Clusters below one percent of the heaviest are ignored: a single distant floater would otherwise shrink the object to a
    few voxels.

    Args:
        lowest: density above which a voxel belongs to a cluster.
        weight: (labels [R,R,R], clusters) -> [clusters + 1] weights by label; label 0 is empty space.
    """
    size = len(grid.values)
    labels, count = label_components(grid.values > lowest)
    if count == 0:
        return grid.origin.astype(np.float64), grid.origin + grid.voxel * (size - 1.0)
    weights = weight(labels, count)
    weights[0] = 0
    chosen = weights >= _FOCUS_SHARE * weights.max()
    chosen[0] = False
    kept = chosen[labels]
    axes = [np.flatnonzero(kept.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low = np.array([a[0] - 2.0 for a in axes]) * grid.voxel + grid.origin
    high = np.array([a[-1] + 2.0 for a in axes]) * grid.voxel + grid.origin
    return low, high
