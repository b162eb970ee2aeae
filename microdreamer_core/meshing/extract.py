"""Extraction of a closed surface from a field: density grid, interior flood fill, automatic threshold, marching cubes.

Paper section V follows LGM instead: a NeRF fitted to the Gaussians, and its level set at density 5 (``meshing.lgm``, the
extractor "lgm"). Here the threshold is the largest one whose solid does not leak and whose silhouettes match the field's; on
objects of known shape that surface is closer to the true one.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..mesh import Mesh
from ..render.mesh import rasterize
from ..render.protocol import SplatRenderer
from ..util.components import label_components
from .density import DensityGrid, DensitySource, silhouette_cameras, silhouettes
from .source import Source, density_source

log = logging.getLogger(__name__)

_IOU_TOLERANCE = 0.003
_GIVE_UP = 0.03
_TUNNEL = 0.025
_LEAK_SHARE = 0.01


@dataclass(frozen=True)
class Extraction:
    """An extracted surface.

    Attributes:
        mesh: vertices and faces only, closed, faces outwards.
        threshold: density of the surface.
        iou: mean silhouette IoU between this surface and the field; nan if the threshold was given.
    """

    mesh: Mesh
    threshold: float
    iou: float


def fill_interior(solid: np.ndarray) -> np.ndarray:
    """Fill every cavity of a solid [R,R,R] bool that cannot be reached from the grid's border.

    Optimised fields form a shell; otherwise marching cubes would also extract its inner side.
    """
    labels, count = label_components(~solid)
    reached = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            reached[np.unique(np.take(labels, end, axis))] = True
    reached[0] = False
    return ~reached[labels]


def extract_mesh(
    source: Source,
    resolution: int = 128,
    threshold: float | None = None,
    renderer: SplatRenderer | None = None,
) -> Extraction:
    """Extract the surface of a field as a closed mesh.

    Args:
        source: Gaussians, their splats, a NeRF, or a :class:`~.density.DensitySource`.
        resolution: grid points along a side; 128 is usual, finer grids hardly help.
        threshold: density of the surface; found automatically if None.
        renderer: renders the silhouettes of splats; the automatic choice for their device if None.

    Raises:
        InputError: nothing is visible, or there is no surface at the given threshold or at any.
    """
    solid = density_source(source, renderer)
    grid = solid.density(resolution)
    grid = DensityGrid(_open_border(_close_tunnels(grid.values)), grid.origin, grid.voxel)
    if threshold is not None:
        return Extraction(_march(grid, threshold, fill_interior(grid.values > threshold)), float(threshold), math.nan)
    return _find_threshold(grid, solid)


def _close_tunnels(values: np.ndarray) -> np.ndarray:
    """Fill gaps and tunnels narrower than 2.5 percent of the grid (grey closing).

    Optimised fields are full of them, which gives the surface a high genus; a cup's or a teapot's handle is wider.
    """
    from scipy import ndimage

    width = max(1, round(_TUNNEL * len(values)))
    return ndimage.grey_closing(np.pad(values, width), size=width)[(slice(width, -width),) * 3]


def _open_border(values: np.ndarray) -> np.ndarray:
    """Empty the grid's six faces, so that every surface closes inside it."""
    padded = np.zeros_like(values)
    padded[1:-1, 1:-1, 1:-1] = values[1:-1, 1:-1, 1:-1]
    return padded


def _find_threshold(grid: DensityGrid, solid: DensitySource) -> Extraction:
    """Find the largest threshold that does not leak and whose silhouette IoU is within 0.3 percent of the best.

    The margin compensates for alpha > 0.5, which outlines even an antialiased splat a little too wide (measured on fits of
    known objects: the true outlines match best one threshold higher).
    """
    cameras = silhouette_cameras(solid.extent())
    wanted = silhouettes(solid, cameras)
    found: list[Extraction] = []
    enclosed = None
    for threshold in solid.thresholds:
        dense = grid.values > threshold
        if not dense.any():
            break
        filled = fill_interior(dense)
        if enclosed is not None and (enclosed & ~filled).sum() > _LEAK_SHARE * filled.sum():
            log.info("The solid leaks at density %.2f; lower thresholds are kept.", threshold)
            break
        enclosed = filled & ~dense
        mesh = _march(grid, threshold, filled)
        found.append(Extraction(mesh, threshold, _silhouette_iou(mesh, cameras, wanted)))
        if found[-1].iou < max(e.iou for e in found) - _GIVE_UP:
            break
    if not found or max(e.iou for e in found) <= 0:
        raise InputError(
            f"The {solid.name} show no surface: the density reaches {float(grid.values.max()):.3f}, at least "
            f"{solid.thresholds[0]} and a visible silhouette are needed; optimise longer, or remove less."
        )
    best = max(e.iou for e in found)
    return [e for e in found if e.iou >= best - _IOU_TOLERANCE][-1]


def _march(grid: DensityGrid, threshold: float, filled: np.ndarray) -> Mesh:
    """Marching cubes on the filled grid; faces outwards."""
    from skimage.measure import marching_cubes

    if not filled.any():
        top = float(grid.values.max())
        raise InputError(f"There is no surface at density {threshold}, the highest is {top:.3f}; lower the threshold.")
    inside = np.where(filled, np.maximum(grid.values, np.float32(1.01 * threshold)), grid.values)
    inside[~filled] = np.minimum(inside[~filled], np.float32(threshold))
    vertices, faces, _, _ = marching_cubes(inside, threshold, gradient_direction="ascent", allow_degenerate=False)
    vertices = (vertices * grid.voxel + grid.origin).astype(np.float32)
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces.astype(np.int64)))


def _silhouette_iou(mesh: Mesh, cameras: Cameras, wanted: Tensor) -> float:
    hit = rasterize(mesh.vertices, mesh.faces, cameras).hit
    return float((hit & wanted).sum() / (hit | wanted).sum().clamp_min(1))
