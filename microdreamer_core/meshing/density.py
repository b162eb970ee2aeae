"""A field as the density that a mesh is extracted from: the protocol, its grids and its silhouettes."""

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
        voxel: world distance between neighbours.
    """

    values: np.ndarray
    origin: np.ndarray
    voxel: float


@runtime_checkable
class DensitySource(Protocol):
    """A representation, as far as extraction and baking ask for it.

    Attributes:
        name: what to call it in messages, a plural.
        thresholds: densities among which that of the surface is searched, rising.
    """

    @property
    def name(self) -> str: ...

    @property
    def thresholds(self) -> tuple[float, ...]: ...

    def density(self, resolution: int) -> DensityGrid:
        """Density on a cube that just holds the object.

        Raises:
            InputError: there is nothing to be seen, or the resolution is too small.
        """
        ...

    def render(self, cameras: Cameras, background: Tensor) -> Render:
        """Pictures on ``background`` [3]."""
        ...

    def colors(self, points: Tensor) -> Tensor:
        """[N,3] colours on the surface at ``points`` [N,3], on the CPU."""
        ...

    def extent(self) -> float:
        """Distance from the origin to the farthest that is worth having in a picture."""
        ...


def check_resolution(resolution: int) -> None:
    """Refuse grids that hold no shape."""
    if resolution < 16:
        raise InputError(f"The density grid needs at least 16 points a side, got {resolution}; 128 is usual.")


def silhouette_cameras(extent: float) -> Cameras:
    """Views from around and above that just hold the ball of that radius: their pixels decide how exact silhouettes are."""
    radius = distance_to_hold(extent)
    return orbit_cameras(_SILHOUETTE_ELEVATIONS, _SILHOUETTE_AZIMUTHS, radius, width=_SILHOUETTE_SIZE)


@torch.no_grad()
def silhouettes(solid: DensitySource, cameras: Cameras) -> Tensor:
    """[V,H,W] bool, where the solid covers more than half of a pixel."""
    return solid.render(cameras, WHITE).alpha[..., 0].cpu() > 0.5


Box = tuple[np.ndarray, np.ndarray]
"""([3] lowest, [3] highest) corner."""


def shrink_box(
    low: np.ndarray,
    high: np.ndarray,
    sampled: Callable[[np.ndarray, np.ndarray, int], DensityGrid],
    occupied: Callable[[DensityGrid], Box],
) -> Box:
    """Shrink a box around the object, on coarse grids: (lowest, highest) corner.

    Args:
        low, high: [3] the box to begin with.
        sampled: (low, high, resolution) -> :class:`DensityGrid` around that box.
        occupied: grid -> (low, high) around what is dense in it.
    """
    for _ in range(_FOCUS_ROUNDS):
        new_low, new_high = occupied(sampled(low, high, FOCUS_RESOLUTION))
        shrunk = float((new_high - new_low).max() / (high - low).max())
        low, high = np.maximum(low, new_low), np.minimum(high, new_high)
        if shrunk > 0.7:
            break
    return low, high


def cubic_grid(low: np.ndarray, high: np.ndarray, resolution: int) -> tuple[np.ndarray, float]:
    """(origin [3] float32, voxel) of the cubic grid around a box, with two free grid points at each end of its longest side."""
    side = float((high - low).max())
    voxel = max(side, 1e-6) / (resolution - 5)
    return ((low + high) / 2 - voxel * (resolution - 1) / 2).astype(np.float32), voxel


def occupied_bounds(grid: DensityGrid, lowest: float, weight: Callable[[np.ndarray, int], np.ndarray]) -> Box:
    """(lowest, highest) corner around the clusters worth keeping, two voxels wider; everything when nothing is dense.

    Clusters below one percent of the heaviest are left out: a single far floater would otherwise shrink the object to a few
    voxels.

    Args:
        lowest: density above which a voxel belongs to a cluster.
        weight: (labels [R,R,R], clusters) -> [clusters + 1] weights by label; 0 is the empty space.
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
