"""Gaussians as the source of a mesh: the sum of their densities on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..render.projection import rotation_matrices
from ..render.protocol import Render, SplatRenderer, Splats
from ..render.texels import splat_colors
from ..util.threads import get_threads, run_all
from .density import DensityGrid, check_resolution, cubic_grid, occupied_bounds, shrink_box

THRESHOLDS = tuple(round(0.1 * 1.2**i, 4) for i in range(22))
"""Candidate densities, 0.1 to 4.6: sums of opacities, so that 1 is one opaque Gaussian's centre."""
_FAINTEST_OPACITY = 0.005
_SMALLEST_SCALE_IN_VOXELS = 0.5


@dataclass(frozen=True)
class SplatDensity:
    """Splats as a :class:`~.density.DensitySource`.

    Attributes:
        renderer: the automatic choice for the splats' device if None.
    """

    splats: Splats
    renderer: SplatRenderer | None = None
    name: str = "Gaussians"
    thresholds: tuple[float, ...] = THRESHOLDS

    def density(self, resolution: int) -> DensityGrid:
        """See ``density_grid``."""
        return density_grid(self.splats, resolution)

    def render(self, cameras: Cameras, background: Tensor) -> Render:
        """Render the splats on ``background`` [3], antialiased: the screen-space low-pass would thicken distant Gaussians."""
        device, renderer = self.splats.means.device, self.renderer
        if renderer is None:
            from ..render.backends import get_renderer

            renderer = get_renderer("auto", device=device)
        return renderer(self.splats, cameras.to(device), background.to(device), antialiased=True)

    def colors(self, points: Tensor) -> Tensor:
        """Return the [N,3] colours of the Gaussians around each point."""
        return splat_colors(self.splats, points)

    def extent(self) -> float:
        """Return the radius that holds all Gaussians except the farthest percent."""
        reach = self.splats.means.norm(dim=1) + 2 * self.splats.scales.amax(1)
        return float(np.quantile(reach.detach().cpu().numpy(), 0.99))


def density_grid(splats: Splats, resolution: int = 128) -> DensityGrid:
    """Sum o exp(-½ dᵀ Σ⁻¹ d) over the Gaussians on the smallest cube around the object.

    Clusters are weighted by the opacity of their Gaussians. Scales are clamped to at least half a voxel, because thinner
    Gaussians would fall between the grid points.

    Raises:
        InputError: no Gaussian is visible, or the resolution is too small.
    """
    check_resolution(resolution)
    cloud = _Cloud.of(splats)
    low, high = shrink_box(*cloud.bounds(), partial(_splat, cloud), partial(_find_box, cloud))
    return _splat(cloud, low, high, resolution)


@dataclass(frozen=True)
class _Cloud:
    """Visible Gaussians as float64 arrays: means [N,3], rotations [N,3,3], scales [N,3], opacities [N]."""

    means: np.ndarray
    rotations: np.ndarray
    scales: np.ndarray
    opacities: np.ndarray

    @staticmethod
    def of(splats: Splats) -> _Cloud:
        fields = (splats.means, splats.quats, splats.scales, splats.opacities)
        means, quats, scales, opacities = (t.detach().cpu().double().numpy() for t in fields)
        if not all(np.isfinite(a).all() for a in (means, quats, scales, opacities)):
            raise InputError("The Gaussians hold NaN or infinite numbers; clean or optimise them again.")
        seen = opacities.reshape(-1) > _FAINTEST_OPACITY
        if not seen.any():
            raise InputError(
                f"A mesh needs Gaussians with opacity above {_FAINTEST_OPACITY}, got {len(means)} Gaussians and none of them "
                "so opaque; optimise the Gaussians first."
            )
        rotations = rotation_matrices(torch.from_numpy(quats[seen])).numpy()
        return _Cloud(means[seen], rotations, scales[seen], opacities.reshape(-1)[seen])

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(lowest, highest) corner of a box around the means, wider by twice the largest scale."""
        reach = 2 * self.scales.max(1, keepdims=True)
        return (self.means - reach).min(0), (self.means + reach).max(0)


def _splat(cloud: _Cloud, low: np.ndarray, high: np.ndarray, resolution: int) -> DensityGrid:
    """The density on the cube around the box."""
    from .density_numba import CUTOFF, splat_density

    origin, voxel = cubic_grid(low, high, resolution)
    scales = np.maximum(cloud.scales, _SMALLEST_SCALE_IN_VOXELS * voxel)
    precisions = np.einsum("nij,nj,nkj->nik", cloud.rotations, scales**-2.0, cloud.rotations)
    variances = np.einsum("nij,nj->ni", cloud.rotations**2, scales**2)
    packed = np.ascontiguousarray(precisions[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], np.float32)
    half = np.sqrt(2 * float(CUTOFF) * variances).astype(np.float32)
    values = np.zeros((resolution,) * 3, np.float32)
    inputs = (cloud.means.astype(np.float32), packed, half, cloud.opacities.astype(np.float32), origin, np.float32(voxel))
    edges = np.linspace(0, resolution, 4 * get_threads() + 1).astype(int)
    run_all([partial(splat_density, *inputs, first, last, values) for first, last in pairwise(edges)])
    return DensityGrid(values, origin, voxel)


def _find_box(cloud: _Cloud, grid: DensityGrid) -> tuple[np.ndarray, np.ndarray]:
    """The box around the clusters with the most opacity."""
    size = len(grid.values)

    def opacities(labels: np.ndarray, count: int) -> np.ndarray:
        nearest = np.rint((cloud.means - grid.origin) / grid.voxel).astype(int)
        inside = ((nearest >= 0) & (nearest < size)).all(1)
        return np.bincount(labels[tuple(nearest[inside].T)], cloud.opacities[inside], count + 1)

    return occupied_bounds(grid, THRESHOLDS[0], opacities)
