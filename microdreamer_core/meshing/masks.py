"""Masks of a texture: what a retexturing may change, painted in views, given as a box in space, and feathered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..mesh import Mesh
from ..render.mesh import rasterize
from ..render.texels import Texels, fill_nearest, texel_visibility
from ..util.threads import get_threads

_HARD = 0.5


def mask_from_view(mesh: Mesh, texels: Texels, cameras: Cameras, image_mask: Tensor) -> Tensor:
    """Carry masks painted in views over to the texels that these views see; hidden ones stay outside.

    Args:
        texels: of the mesh (``texel_map``, ``TextureField.texels``).
        cameras: V views, of any size in pixels.
        image_mask: [V,H,W] or [V,H,W,1] in [0,1].

    Returns:
        [T,T,1] in [0,1]; where views overlap the largest, beside the charts as on them.

    Raises:
        InputError: the number of masks is not that of the cameras, or a mask is not finite.
    """
    images = image_mask.detach().cpu().float()
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or len(images) != len(cameras) or images.shape[3] != 1:
        raise InputError(f"Masks of {len(cameras)} views have shape [{len(cameras)},H,W], got {list(image_mask.shape)}.")
    if not bool(images.isfinite().all()):
        raise InputError("The mask holds NaN or infinite numbers; paint it again.")
    cameras = cameras.to("cpu").resize(images.shape[2], images.shape[1])
    depth = rasterize(mesh.vertices, mesh.faces, cameras).depth
    inside = torch.zeros(len(texels.positions), 1)
    for visible, image in zip(texel_visibility(mesh, texels, cameras, depth), images, strict=True):
        shown = F.grid_sample(image.permute(2, 0, 1)[None], visible.grid, align_corners=False)[0, :, 0].T
        inside[visible.texels] = torch.maximum(inside[visible.texels], shown)
    return _to_texture(texels, inside.clamp(0, 1))


def mask_from_box(texels: Texels, low: Sequence[float], high: Sequence[float]) -> Tensor:
    """Mark the texels whose surface points lie within a box.

    >>> used = torch.ones(1, 2, dtype=torch.bool)
    >>> mask_from_box(Texels(used, torch.tensor([[0.0, 0, 0], [2, 0, 0]]), torch.zeros(2, 3), None), [-1] * 3, [1] * 3)[0, :, 0]
    tensor([1., 0.])

    Args:
        low, high: [3] corners in world units.

    Returns:
        [T,T,1], 0 or 1.

    Raises:
        InputError: the corners are not three finite numbers, or low is above high.
    """
    corners = torch.tensor([list(low), list(high)], dtype=torch.float32) if len(low) == len(high) == 3 else None
    if corners is None or not bool(corners.isfinite().all()) or bool((corners[0] > corners[1]).any()):
        raise InputError(f"A box has a lower and an upper corner of 3 numbers, got {list(low)} and {list(high)}.")
    inside = ((texels.positions >= corners[0]) & (texels.positions <= corners[1])).all(1, keepdim=True)
    return _to_texture(texels, inside.float())


def feather_mask(texels: Texels, mask: Tensor, width: float) -> Tensor:
    """Let a mask rise from its edge inwards, so that what is outside of it stays and no edge shows.

    Args:
        mask: [T,T,1] in [0,1]; texels above a half are inside.
        width: world units on the surface from the edge to 1.

    Returns:
        [T,T,1] the mask times the share of the width that lies between a texel and the nearest one outside.
    """
    from scipy.spatial import KDTree

    values = mask[texels.used]
    inside = values[:, 0] > _HARD
    outside = texels.positions[~inside]
    if width <= 0 or not len(outside):
        return mask
    tree = KDTree(outside.numpy(), leafsize=16, balanced_tree=False, compact_nodes=False)
    distance, _ = tree.query(texels.positions[inside].numpy(), distance_upper_bound=width, workers=get_threads())
    share = torch.zeros_like(values)
    share[inside] = (torch.from_numpy(distance).float()[:, None] / width).clamp(max=1)
    return _to_texture(texels, values * share)


def _to_texture(texels: Texels, values: Tensor) -> Tensor:
    """[T,T,1] of values [P,1]; texels beside the charts as the nearest, because samples at the border reach them."""
    texture = torch.zeros(*texels.used.shape, 1)
    texture[texels.used] = values
    return fill_nearest(texture, texels.used) if bool(texels.used.any()) else texture
