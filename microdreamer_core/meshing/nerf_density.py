"""A NeRF as the source of a mesh: its density on a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..fields.nerf import NeRF
from ..render.protocol import Render
from .density import (
    FOCUS_RESOLUTION,
    DensityGrid,
    check_resolution,
    cubic_grid,
    occupied_bounds,
    shrink_box,
    silhouette_cameras,
    silhouettes,
)

STEP = 1 / 128
"""World units over which density is converted to opacity: a voxel of the usual grid around an object of size 1."""
THRESHOLDS = tuple(round(1 - 0.99 ** (1.35**i), 4) for i in range(21))
"""Candidate opacities of such a step, 0.01 to 0.98; evenly spaced in the logarithm of the density, 1.3 to 520."""
_POINTS = 1 << 18


@dataclass(frozen=True)
class NeRFDensity:
    """A NeRF as a :class:`~.density.DensitySource`.

    Its grid holds opacities 1 - exp(-σ STEP): σ itself jumps from 0 to hundreds within a voxel, and marching cubes would put
    the whole surface onto the outer grid points.
    """

    field: NeRF
    name: str = "NeRF's densities"
    thresholds: tuple[float, ...] = THRESHOLDS

    def density(self, resolution: int) -> DensityGrid:
        """Sample the opacity of a step on the smallest cube around the object; clusters are weighted by their sum.

        Raises:
            InputError: a density is not finite, or the resolution is too small.
        """
        check_resolution(resolution)
        reach = np.full(3, float(self.field.settings.radius))
        low, high = shrink_box(-reach, reach, self._sample_opacity, self._find_box)
        return self._sample_opacity(low, high, resolution)

    @torch.no_grad()
    def render(self, cameras: Cameras, background: Tensor) -> Render:
        """Render the NeRF on ``background`` [3], one view at a time: the rays of many large views do not fit into memory."""
        device = self.field.device
        views = [cameras[i : i + 1].to(device) for i in range(len(cameras))]
        renders = [self.field.render(view, background.to(device)) for view in views]
        return Render(*(torch.cat([getattr(r, name).cpu() for r in renders]) for name in ("rgb", "alpha", "depth")))

    @torch.no_grad()
    def colors(self, points: Tensor) -> Tensor:
        """Return the field's [N,3] colours at the points."""
        return self._query_points(self.field.colors, points).clamp(0, 1)

    def extent(self) -> float:
        """Return the radius of 99 percent of the visible points of a coarse grid; the NeRF's bound if none is visible."""
        grid = self.density(FOCUS_RESOLUTION)
        dense = np.argwhere(self._find_visible(grid) & (grid.values > THRESHOLDS[0])) * grid.voxel + grid.origin
        if not len(dense):
            return float(self.field.settings.radius)
        return float(np.quantile(np.linalg.norm(dense, axis=1), 0.99)) + grid.voxel

    def _sample_opacity(self, low: np.ndarray, high: np.ndarray, resolution: int) -> DensityGrid:
        origin, voxel = cubic_grid(low, high, resolution)
        axes = [torch.from_numpy(origin[i] + voxel * np.arange(resolution, dtype=np.float32)).float() for i in range(3)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        with torch.no_grad():
            density = self._query_points(self.field.density, points)
        if not bool(torch.isfinite(density).all()):
            raise InputError("The NeRF holds NaN or infinite densities; optimise it again.")
        opacity = 1 - torch.exp(-STEP * density)
        return DensityGrid(opacity.reshape((resolution,) * 3).numpy(), origin, voxel)

    @cached_property
    def _render_outlines(self) -> tuple[Cameras, Tensor]:
        """Cameras that see the whole bound, and [V,1,H,W], 1 where the field covers half of a pixel or of its neighbour."""
        cameras = silhouette_cameras(self.field.settings.radius)
        return cameras, F.max_pool2d(silhouettes(self, cameras)[:, None].float(), 3, 1, 1)

    def _find_visible(self, grid: DensityGrid) -> np.ndarray:
        """[R,R,R] bool: the points inside every outline.

        Density alone does not decide: a NeRF trained briefly is full of haze, which may be as dense as the object.
        """
        cameras, outlines = self._render_outlines
        size = len(grid.values)
        points = torch.from_numpy(np.indices((size,) * 3).reshape(3, -1).T * grid.voxel + grid.origin).float()
        seen = torch.ones(len(points), dtype=torch.bool)
        for view, outline in enumerate(outlines):
            (pixels,), _ = cameras[view : view + 1].project(points)
            column, row = pixels.long().clamp(0, outline.shape[-1] - 1).unbind(-1)
            seen &= outline[0, row, column] > 0
        return seen.view((size,) * 3).numpy()

    def _find_box(self, grid: DensityGrid) -> tuple[np.ndarray, np.ndarray]:
        """The box around the visible clusters with the most opacity."""
        shown = DensityGrid(np.where(self._find_visible(grid), grid.values, 0), grid.origin, grid.voxel)

        def opacities(labels: np.ndarray, count: int) -> np.ndarray:
            return np.bincount(labels.ravel(), shown.values.ravel(), count + 1)

        return occupied_bounds(shown, THRESHOLDS[0], opacities)

    def _query_points(self, query: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        return torch.cat([query(part.to(self.field.device)).cpu().float() for part in points.split(_POINTS)])
