"""From Gaussians to a closed surface: density grid, interior flood fill, automatic threshold, marching cubes.

Paper section V extracts with marching cubes at a hand-chosen threshold; here the threshold is the largest one whose solid does
not leak and whose silhouettes agree with those of the splats themselves.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..cameras import DEFAULT_FOV_Y, Cameras, orbit_cameras
from ..errors import InputError
from ..render.mesh import rasterize
from ..render.protocol import SplatRenderer, Splats
from ..render.threads import get_threads, run_all
from .types import Mesh

log = logging.getLogger(__name__)

THRESHOLDS = tuple(round(0.1 * 1.2**i, 4) for i in range(22))
"""Densities tried, 0.1 to 4.6: sums of opacities, so that 1 is one opaque Gaussian's centre."""
_IOU_TOLERANCE = 0.01
_LEAK_SHARE = 0.01
_FAINTEST_OPACITY = 0.005
_SMALLEST_SCALE_IN_VOXELS = 0.5
_FOCUS_RESOLUTION = 64
_FOCUS_ROUNDS = 3
_FOCUS_SHARE = 0.01
_SILHOUETTE_SIZE = 160
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


@dataclass(frozen=True)
class Extraction:
    """A surface and how it was found.

    Attributes:
        mesh: vertices and faces only, closed, faces outwards.
        threshold: the density of the surface.
        iou: mean silhouette IoU between this surface and the splats; nan when the threshold was given.
    """

    mesh: Mesh
    threshold: float
    iou: float


def density_grid(splats: Splats, resolution: int = 128) -> DensityGrid:
    """Sum of o exp(-½ dᵀ Σ⁻¹ d) over the Gaussians, on a cube that just holds the object.

    The cube is found on coarse grids first, leaving out clusters with less than one percent of the largest one's opacity: a
    single far floater would otherwise shrink the object to a few voxels. Scales are held above half a voxel, or thin Gaussians
    would fall between the grid points.

    Raises:
        InputError: there is no Gaussian that can be seen, or the resolution is too small.
    """
    if resolution < 16:
        raise InputError(f"The density grid needs at least 16 points a side, got {resolution}; 128 is usual.")
    cloud = _Cloud.of(splats)
    low, high = cloud.bounds()
    for _ in range(_FOCUS_ROUNDS):
        coarse = _splat(cloud, low, high, _FOCUS_RESOLUTION)
        new_low, new_high = _occupied_bounds(coarse, cloud)
        shrunk = float((new_high - new_low).max() / (high - low).max())
        low, high = np.maximum(low, new_low), np.minimum(high, new_high)
        if shrunk > 0.7:
            break
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
        return _Cloud(means[seen], _rotations(quats[seen]), scales[seen], opacities.reshape(-1)[seen])

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(lowest, highest) corner of a box with twice the largest scale around every mean."""
        reach = 2 * self.scales.max(1, keepdims=True)
        return (self.means - reach).min(0), (self.means + reach).max(0)


def _rotations(quats: np.ndarray) -> np.ndarray:
    """[N,4] wxyz of any norm -> [N,3,3]."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], 1)


def _splat(cloud: _Cloud, low: np.ndarray, high: np.ndarray, resolution: int) -> DensityGrid:
    """The density on the cube around the box, with two free grid points at each end of its longest side."""
    from .density_numba import CUTOFF, splat_density

    side = float((high - low).max())
    voxel = max(side, 1e-6) / (resolution - 5)
    origin = ((low + high) / 2 - voxel * (resolution - 1) / 2).astype(np.float32)
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


def _occupied_bounds(grid: DensityGrid, cloud: _Cloud) -> tuple[np.ndarray, np.ndarray]:
    """(lowest, highest) corner around the clusters worth keeping, two voxels wider; everything when nothing is dense."""
    from scipy import ndimage

    size = len(grid.values)
    labels, count = ndimage.label(grid.values > THRESHOLDS[0])
    if count == 0:
        return grid.origin.astype(np.float64), grid.origin + grid.voxel * (size - 1.0)
    nearest = np.rint((cloud.means - grid.origin) / grid.voxel).astype(int)
    inside = ((nearest >= 0) & (nearest < size)).all(1)
    opacity = np.bincount(labels[tuple(nearest[inside].T)], cloud.opacities[inside], count + 1)
    opacity[0] = 0
    chosen = opacity >= _FOCUS_SHARE * opacity.max()
    chosen[0] = False
    kept = chosen[labels]
    axes = [np.flatnonzero(kept.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low = np.array([a[0] - 2.0 for a in axes]) * grid.voxel + grid.origin
    high = np.array([a[-1] + 2.0 for a in axes]) * grid.voxel + grid.origin
    return low, high


def fill_interior(solid: np.ndarray) -> np.ndarray:
    """[R,R,R] bool -> the solid together with every cavity that cannot be reached from the grid's border.

    Optimised Gaussians form a shell; without this step marching cubes would also find its inside.
    """
    from scipy import ndimage

    labels, count = ndimage.label(~solid)
    reached = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            reached[np.unique(np.take(labels, end, axis))] = True
    reached[0] = False
    return ~reached[labels]


def extract_mesh(
    splats: Splats,
    resolution: int = 128,
    threshold: float | None = None,
    renderer: SplatRenderer | None = None,
) -> Extraction:
    """The surface of the object that the Gaussians draw.

    Args:
        resolution: grid points along a side; 128 is usual, finer grids hardly gain.
        threshold: density of the surface; found automatically when None.
        renderer: draws the silhouettes that the surface is compared with; the automatic choice for the CPU when None.

    Raises:
        InputError: no Gaussian can be seen, or they hold no surface at the threshold or at any.
    """
    grid = density_grid(splats, resolution)
    grid = DensityGrid(_open_border(grid.values), grid.origin, grid.voxel)
    if threshold is not None:
        return Extraction(_surface(grid, threshold, fill_interior(grid.values > threshold)), float(threshold), math.nan)
    return _best_threshold(grid, splats, renderer)


def _open_border(values: np.ndarray) -> np.ndarray:
    """The same grid with empty faces, so that every surface closes inside it."""
    padded = np.zeros_like(values)
    padded[1:-1, 1:-1, 1:-1] = values[1:-1, 1:-1, 1:-1]
    return padded


def _best_threshold(grid: DensityGrid, splats: Splats, renderer: SplatRenderer | None) -> Extraction:
    """The largest threshold that does not leak and whose silhouette IoU is within one percent of the best."""
    cameras = _silhouette_cameras(grid)
    wanted = _splat_silhouettes(splats, cameras, renderer)
    found: list[Extraction] = []
    enclosed = None
    for threshold in THRESHOLDS:
        solid = grid.values > threshold
        if not solid.any():
            break
        filled = fill_interior(solid)
        if enclosed is not None and (enclosed & ~filled).sum() > _LEAK_SHARE * filled.sum():
            log.info("The solid leaks at density %.2f; lower thresholds are kept.", threshold)
            break
        enclosed = filled & ~solid
        mesh = _surface(grid, threshold, filled)
        found.append(Extraction(mesh, threshold, _silhouette_iou(mesh, cameras, wanted)))
        if found[-1].iou < max(e.iou for e in found) - 3 * _IOU_TOLERANCE:
            break
    if not found or max(e.iou for e in found) <= 0:
        raise InputError(
            f"The Gaussians hold no surface: their density reaches {float(grid.values.max()):.3f}, at least {THRESHOLDS[0]} "
            "and a visible silhouette are needed; optimise longer or remove fewer Gaussians."
        )
    best = max(e.iou for e in found)
    return [e for e in found if e.iou >= best - _IOU_TOLERANCE][-1]


def _surface(grid: DensityGrid, threshold: float, filled: np.ndarray) -> Mesh:
    """Marching cubes on the filled grid; faces outwards."""
    from skimage.measure import marching_cubes

    if not filled.any():
        top = float(grid.values.max())
        raise InputError(f"There is no surface at density {threshold}, the Gaussians reach {top:.3f}; lower the threshold.")
    inside = np.where(filled, np.maximum(grid.values, np.float32(1.01 * threshold)), grid.values)
    inside[~filled] = np.minimum(inside[~filled], np.float32(threshold))
    vertices, faces, _, _ = marching_cubes(inside, threshold, gradient_direction="ascent", allow_degenerate=False)
    vertices = (vertices * grid.voxel + grid.origin).astype(np.float32)
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces.astype(np.int64)))


def _silhouette_cameras(grid: DensityGrid) -> Cameras:
    """Views from around and above that hold the whole grid."""
    half = grid.voxel * (len(grid.values) - 1) / 2
    centre = float(np.abs(grid.origin + half).max())
    radius = max(2.0, 1.1 * math.sqrt(3.0) * (half + centre) / math.sin(math.radians(DEFAULT_FOV_Y / 2)))
    return orbit_cameras(_SILHOUETTE_ELEVATIONS, _SILHOUETTE_AZIMUTHS, radius, width=_SILHOUETTE_SIZE)


def _splat_silhouettes(splats: Splats, cameras: Cameras, renderer: SplatRenderer | None) -> Tensor:
    """[V,H,W] bool, where the splats cover more than half of a pixel."""
    if renderer is None:
        from ..render.backends import get_renderer

        renderer = get_renderer("auto", device="cpu")
    with torch.no_grad():
        return renderer(splats, cameras, torch.ones(3)).alpha[..., 0].cpu() > 0.5


def _silhouette_iou(mesh: Mesh, cameras: Cameras, wanted: Tensor) -> float:
    hit = rasterize(mesh.vertices, mesh.faces, cameras).hit
    return float((hit & wanted).sum() / (hit | wanted).sum().clamp_min(1))
