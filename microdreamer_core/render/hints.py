"""Hints for control networks: what renders show, drawn as the networks learned it.

All are images [V,H,W,3] in [0,1]; where a picture is to be filled in, -1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from .protocol import Render

_COVERED = 0.5
_FARTHEST = 0.1
_STRONGEST = 0.98
"""Quantile of the edges' strength that is drawn white."""


def depth_hint(render: Render, cameras: Cameras) -> Tensor:
    """Draw inverse depth, as MiDaS estimates it: 1 at the nearest covered point of all views, 0.1 at the farthest, 0 behind."""
    covered = render.alpha > _COVERED
    inverse = render.alpha / render.depth.clamp_min(1e-6)
    if not bool(covered.any()):
        return torch.zeros_like(render.rgb)
    far, near = inverse[covered].min(), inverse[covered].max()
    share = ((inverse - far) / (near - far).clamp_min(1e-6)).clamp(0, 1)
    return ((_FARTHEST + (1 - _FARTHEST) * share) * covered).expand(-1, -1, -1, 3)


def normal_hint(render: Render, cameras: Cameras) -> Tensor:
    """Draw normals in the camera's frame, (n + 1) / 2 with x right, y up and z towards the camera; the background faces it.

    They are those of the depth: the cross product of the slopes of the points that neighbouring pixels show.
    """
    covered = render.alpha[..., 0] > _COVERED
    z = (render.depth / render.alpha.clamp_min(1e-6))[..., 0]
    height, width = z.shape[1:]
    intrinsics = cameras.Ks.to(z)[:, :, :, None, None]
    column, row = torch.arange(width, device=z.device) + 0.5, torch.arange(height, device=z.device)[:, None] + 0.5
    x = (column - intrinsics[:, 0, 2]) / intrinsics[:, 0, 0] * z
    y = (intrinsics[:, 1, 2] - row) / intrinsics[:, 1, 1] * z
    points = torch.stack([x, y, -z], 1)
    right, up = _slope(points, covered, 3), -_slope(points, covered, 2)
    normals = F.normalize(torch.linalg.cross(right, up, dim=1), dim=1).permute(0, 2, 3, 1)
    facing = normals.new_tensor([0.0, 0.0, 1.0])
    known = covered & (normals.abs().sum(-1) > 0)
    return (torch.where(known[..., None], normals, facing) + 1) / 2


def edge_hint(render: Render, cameras: Cameras) -> Tensor:
    """Draw white Canny edges of the luminance on black."""
    from skimage.feature import canny

    drawn = [torch.from_numpy(canny(grey.numpy(), sigma=1.0)).float() for grey in _luminance(render)]
    return torch.stack(drawn)[..., None].expand(-1, -1, -1, 3).to(render.rgb)


def soft_edge_hint(render: Render, cameras: Cameras) -> Tensor:
    """Draw the strength of the luminance's edges (Sobel), white at the strongest."""
    from skimage.filters import sobel

    strength = torch.stack([torch.from_numpy(sobel(grey.numpy())).float() for grey in _luminance(render)])
    strongest = strength.flatten().quantile(_STRONGEST) if strength.numel() < 2**24 else strength.max()
    return (strength / strongest.clamp_min(1e-6)).clamp(0, 1)[..., None].expand(-1, -1, -1, 3).to(render.rgb)


def tile_hint(render: Render, cameras: Cameras) -> Tensor:
    """Show the render itself."""
    return render.rgb.clamp(0, 1)


def inpaint_hint(render: Render, cameras: Cameras) -> Tensor:
    """Show the render around the object, and -1 where the object is: what inpainting networks have to fill in."""
    return torch.where(render.alpha > _COVERED, -1.0, render.rgb.clamp(0, 1))


HINTS: dict[str, Callable[[Render, Cameras], Tensor]] = {
    "depth": depth_hint,
    "normal": normal_hint,
    "canny": edge_hint,
    "soft edge": soft_edge_hint,
    "tile": tile_hint,
    "inpaint": inpaint_hint,
}
"""Hints by name."""


def _luminance(render: Render) -> Tensor:
    return (render.rgb.detach().float().cpu() * torch.tensor([0.299, 0.587, 0.114])).sum(-1)


def _slope(points: Tensor, covered: Tensor, axis: int) -> Tensor:
    """Slope of points [V,3,H,W] along an axis: to that neighbour whose depth is nearer, 0 where a pixel is alone.

    The nearer of the two lies on the same surface where one surface ends before another.
    """

    def step(offset: int) -> Tensor:
        there, seen = points.roll(-offset, axis), covered.roll(-offset, axis - 1)
        edge = [slice(None)] * 3
        edge[axis - 1] = slice(-1, None) if offset > 0 else slice(0, 1)
        seen = seen.clone()
        seen[tuple(edge)] = False
        return torch.where((seen & covered)[:, None], (there - points) * offset, torch.inf)

    ahead, behind = step(1), step(-1)
    nearer = torch.where(ahead[:, 2:].abs() < behind[:, 2:].abs(), ahead, behind)
    return torch.where(nearer.isfinite(), nearer, 0.0)
