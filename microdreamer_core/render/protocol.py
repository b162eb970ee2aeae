"""Inputs and outputs of renderers, and the protocol of splat renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..cameras import Cameras


@dataclass(frozen=True)
class Splats:
    """3D Gaussians after activation, the input of a splat renderer.

    Attributes:
        means: [N,3] world positions.
        quats: [N,4] rotations, wxyz, any norm.
        scales: [N,3] standard deviations along the axes, positive.
        opacities: [N] in (0,1).
        colors: [N,3] RGB, view-independent.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor

    def __len__(self) -> int:
        return self.means.shape[0]


@dataclass(frozen=True)
class Render:
    """Renders of one object from V views.

    Attributes:
        rgb: [V,H,W,3] composited on the background.
        alpha: [V,H,W,1] coverage, 1 - final transmittance.
        depth: [V,H,W,1] accumulated depth, sum of w z; divide by alpha for the expected depth.
        radii: [V,N,2] int32 half extents in pixels, 0 where culled; None for other representations than splats.
        means2d: [V,N,2] zero leaf whose ``.grad`` after backward is the gradient of the projected means in pixels; None
            without ``track_means2d``.
        painted: [V,H,W,3] ``rgb`` once more, through which only colours and the background get gradients, as if the geometry
            were detached; None if the renderer has no such output.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    radii: Tensor | None = None
    means2d: Tensor | None = None
    painted: Tensor | None = None


class SplatRenderer(Protocol):
    """A differentiable rasteriser of 3D Gaussians, all views in one call."""

    name: str

    def __call__(
        self,
        splats: Splats,
        cameras: Cameras,
        background: Tensor,
        *,
        antialiased: bool = False,
        track_means2d: bool = False,
    ) -> Render:
        """Render ``splats`` on ``background`` ([3] or [V,3]), differentiable in every tensor of ``splats`` and the background.

        Args:
            antialiased: compensate opacities for the screen's low-pass filter (Mip-Splatting).
            track_means2d: provide ``Render.means2d``, for density control.
        """
        ...
