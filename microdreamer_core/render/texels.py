"""Bake images onto a mesh: texel map, back-projection, inpainting of unseen texels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..mesh import Mesh, vertex_normals
from ..util.threads import get_threads, run_all, split_range
from .mesh import interpolate, rasterize, rasterize_uv
from .protocol import Splats

WEIGHT_POWER = 4
"""Views are weighted by the cosine between normal and direction to the camera, to this power."""
_SMALLEST_COSINE = 0.15
_DEPTH_TOLERANCE = 0.01
"""Depth tolerance between images and mesh, as a share of the mesh's diagonal."""
_COLOR_PRIOR = 1e-3
"""Weight of the vertex colours against the views; it matters only where views have almost no weight."""
_BLOCK = 1 << 20
"""Texels at once: memory of larger temporary tensors is given back and cleared anew every time."""
_NEIGHBOURS = 4
_SAMPLES = 200_000
"""Trusted texels that are searched for those without, on the whole surface."""
_NEIGHBOUR_TRUST = 0.5
_FULL_TRUST = 0.98
"""Trust from which neighbours would add next to nothing, so that most texels need no search for them."""
_NORMAL_REACH = 0.6
"""Distance between unit normals in units of the reach: perpendicular texels are hardly neighbours, opposite ones never."""


@dataclass(frozen=True)
class Texels:
    """The P texels of a texture that the mesh covers.

    Attributes:
        used: [T,T] bool.
        positions: [P,3] world positions, in the order of ``used.nonzero()``.
        normals: [P,3] unit normals.
        colors: [P,3] interpolated vertex colours, None if the mesh has none.
    """

    used: Tensor
    positions: Tensor
    normals: Tensor
    colors: Tensor | None


def texel_map(mesh: Mesh, size: int) -> Texels:
    """Find the surface point at each texel centre of a [size,size] texture.

    Raises:
        InputError: the mesh has no uvs.
    """
    if mesh.uvs is None:
        raise InputError("A mesh needs uvs before it can be baked, got none; unwrap the mesh first.")
    fragments = rasterize_uv(mesh.uvs, mesh.faces, size)
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    rows = interpolate(torch.cat([mesh.vertices, normals], 1), mesh.faces, fragments)
    colors = None if mesh.colors is None else interpolate(mesh.colors, mesh.faces, fragments)
    return Texels(fragments.hit[0], rows[:, :3], F.normalize(rows[:, 3:], dim=1), colors)


def bake(
    mesh: Mesh,
    cameras: Cameras,
    images: Tensor,
    alpha: Tensor | None = None,
    background: Tensor | None = None,
    texture_size: int = 1024,
) -> Mesh:
    """Project images of the object back onto its mesh.

    Every texel takes the mean of the views that see it, weighted by cos⁴ of the viewing angle and by the image's coverage.
    The background is first removed from half-covered pixels, so that silhouettes leave no pale seams. Texels that almost no
    view sees take the vertex colours, or without these the nearest texel's colour.

    Args:
        mesh: with uvs.
        cameras: V views, at the size of the images.
        images: [V,H,W,3] in [0,1].
        alpha: [V,H,W,1] coverage of the images; the mesh's silhouette if None.
        background: [3] colour that the images are composited on, white if None; used only with ``alpha``.
        texture_size: T.

    Returns:
        The mesh with a [T,T,3] texture.

    Raises:
        InputError: number or size of images and cameras differ, no view sees a texel, or the mesh has no uvs.
    """
    check_images(cameras, images)
    texels = texel_map(mesh, texture_size)
    fragments = rasterize(mesh.vertices, mesh.faces, cameras)
    coverage = fragments.hit[..., None].float() if alpha is None else alpha.detach().cpu().float()
    white = torch.ones(3) if background is None else background.detach().cpu().float()
    colour = images.detach().cpu().float()
    premultiplied = colour * coverage if alpha is None else colour - (1 - coverage) * white
    seen = texel_visibility(mesh, texels, cameras.to("cpu"), fragments.depth)
    total, weight = gather(seen, torch.cat([premultiplied, coverage], -1), len(texels.positions))
    if texels.colors is not None:
        total, weight = total + _COLOR_PRIOR * texels.colors, weight + _COLOR_PRIOR
    known = weight > 1e-6
    if not bool(known.any()):
        raise InputError("None of the pictures shows the mesh; check that the cameras look at it.")
    texture = torch.zeros(texture_size, texture_size, 3)
    filled = torch.zeros(texture_size, texture_size, dtype=torch.bool)
    filled[texels.used] = known
    texture[filled] = (total[known] / weight[known, None]).clamp(0, 1)
    return replace(mesh, texture=fill_nearest(texture, filled))


def check_images(cameras: Cameras, images: Tensor) -> None:
    """Refuse images whose number or size is not the cameras'.

    Raises:
        InputError: they differ.
    """
    expected = [len(cameras), cameras.height, cameras.width, 3]
    if list(images.shape) != expected:
        raise InputError(f"Images of the mesh must have shape {expected} to match the cameras, got {list(images.shape)}.")


@dataclass(frozen=True)
class TexelVisibility:
    """The texels that one view sees.

    Attributes:
        texels: [Q] indices among the P texels, ascending.
        grid: [1,1,Q,2] their positions in the view's image, in ``grid_sample`` coordinates.
        cosines: [Q] cosines of the viewing angles.
        weights: [Q] blending weights, cos⁴ of the viewing angle.
    """

    texels: Tensor
    grid: Tensor
    cosines: Tensor
    weights: Tensor


def texel_visibility(mesh: Mesh, texels: Texels, cameras: Cameras, depth: Tensor) -> list[TexelVisibility]:
    """Find the texels that each of V views sees; once per set of cameras, for all images from them.

    Args:
        depth: [V,H,W] z-buffers of the mesh for ``cameras``.
    """
    # the nearest surface within a pixel: the colour of anything behind it may be mixed with the occluder's
    nearest = -F.max_pool2d(-depth[:, None], 3, stride=1, padding=1)[:, 0] + _DEPTH_TOLERANCE * mesh.diagonal
    size, found = torch.tensor([cameras.width, cameras.height]), []
    for view, zbuffer in enumerate(nearest):
        blocks = range(0, max(1, len(texels.positions)), _BLOCK)
        parts = [_visible_block(cameras[view : view + 1], zbuffer, texels, slice(begin, begin + _BLOCK)) for begin in blocks]
        seen, pixels, cosines = map(torch.cat, zip(*parts, strict=True))
        found.append(TexelVisibility(seen, (pixels / size * 2 - 1)[None, None], cosines, cosines**WEIGHT_POWER))
    return found


def _visible_block(camera: Cameras, zbuffer: Tensor, texels: Texels, block: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Find the texels of a block that a view sees: their indices [Q], pixels [Q,2] and cosines [Q]."""
    positions, eye = texels.positions[block], camera.c2w[0, :3, 3]
    cosine = (F.normalize(eye - positions, dim=1) * texels.normals[block]).sum(1)
    front = (cosine > _SMALLEST_COSINE).nonzero()[:, 0]
    cosine = cosine[front]
    (pixels,), (z,) = camera.project(positions[front])
    size = torch.tensor([camera.width, camera.height])
    inside = ((pixels > 0.5) & (pixels < size - 0.5)).all(1) & (z > 0)
    column, row = torch.where(inside[:, None], pixels, 0.5).long().unbind(1)
    slope = 1.5 * z / camera.focal * (1 - cosine**2).clamp_min(0).sqrt() / cosine
    visible = inside & (z <= zbuffer[row, column] + slope)
    return front[visible] + block.start, pixels[visible], cosine[visible]


def gather(seen: list[TexelVisibility], pictures: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Accumulate images in the texels that the views see.

    Args:
        pictures: [V,H,W,4] premultiplied colours and coverage; uncovered pixels do not count.
        count: P.

    Returns:
        ([P,3] weighted sums of the premultiplied colours, [P] sums of the weights times coverage).
    """
    from ._numba_texture import add_image_samples

    total = torch.zeros(count, 4)
    parts = [
        (picture, visible.grid.numpy().reshape(-1, 2), visible.weights.numpy(), visible.texels.numpy())
        for visible, picture in zip(seen, pictures.detach().contiguous().numpy(), strict=True)
    ]

    def add(low: int, high: int) -> None:
        for picture, grid, weights, texels in parts:
            add_image_samples(picture, grid, weights, texels, *np.searchsorted(texels, (low, high)), total.numpy())

    run_all([partial(add, *span) for span in split_range(count)])
    return total[:, :3], total[:, 3]


def fill_nearest(texture: Tensor, known: Tensor) -> Tensor:
    """Give every unknown texel the colour of the nearest known one, so that gutters do not bleed into mipmaps.

    Args:
        texture: [T,T,3].
        known: [T,T] bool, at least one true.
    """
    from scipy import ndimage

    nearest = np.empty((2, *known.shape), np.int32)
    ndimage.distance_transform_edt(~known.numpy(), return_distances=False, return_indices=True, indices=nearest)
    rows, columns = torch.from_numpy(nearest).long()
    return texture[rows, columns]


def blend_textures(before: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
    """Blend textures [T,T,3] by a mask [T,T,1] in [0,1]; exactly ``before`` where the mask is 0."""
    return torch.where(mask > 0, torch.lerp(before, texture, mask), before)


def continue_on_surface(
    texels: Texels, values: Tensor, trust: Tensor, reach: float, openness: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fill texels of low trust from trusted neighbours on the surface.

    Neighbours are near in position and in normal direction, so that they lie on the same side of thin parts and on the same
    wall of a groove. Their influence fades with distance.

    Args:
        values: [P,C], weighted by their trust.
        trust: [P] in 0..1.
        reach: world distance at which a neighbour's influence is 0.
        openness: [P] in 0..1, how much a texel takes from its neighbours; 1 if None, texels at 0 are left unchanged.

    Returns:
        Values [P,C] and trust [P] after filling; texels of almost full trust (0.98) stay as they are.
    """
    from scipy.spatial import KDTree

    openness = torch.ones_like(trust) if openness is None else openness
    known = (trust > _NEIGHBOUR_TRUST).nonzero()[:, 0]
    open_ = ((trust < _FULL_TRUST) & (openness > 0)).nonzero()[:, 0]
    if not reach or not len(known) or not len(open_):
        return values, trust
    places = torch.cat([texels.positions, _NORMAL_REACH * reach * texels.normals], 1)
    tree = KDTree(places[known].numpy(), leafsize=16, balanced_tree=False, compact_nodes=False)
    nearest = [*range(1, _NEIGHBOURS + 1)]
    within: dict[str, Any] = {"k": nearest, "distance_upper_bound": reach, "workers": get_threads()}
    distance, index = tree.query(places[open_].numpy(), **within)
    near = (1 - torch.from_numpy(distance).float() / reach).clamp_min(0) ** 2  # infinite if there are fewer
    index = known[torch.from_numpy(index).clamp_max(len(known) - 1)]
    fill = (near[..., None] * values[index]).sum(1) / near.sum(1, keepdim=True).clamp_min(1e-9)
    own = trust[open_]
    strength = (1 - own) * near.amax(1) * openness[open_]
    values, trust = values.clone(), trust.clone()
    trust[open_] = own + strength
    mixed = own[:, None] * values[open_] + strength[:, None] * fill
    values[open_] = mixed / trust[open_, None].clamp_min(1e-9)
    return values, trust


def fill_from_surface(texels: Texels, colors: Tensor, trust: Tensor, reach: float) -> Tensor:
    """Blend the colours of texels of low trust with those of their nearest trusted neighbours on the surface, however far.

    Args:
        colors: [P,3]; trust: [P] in 0..1, how much of its own colour a texel keeps; texels of full trust stay as they are.
        reach: world distance that weighs as much as a turn of the normal by about 90 degrees.

    Returns:
        [P,3]; the given colours if no texel is trusted.
    """
    from scipy.spatial import KDTree

    known, open_ = (trust > _NEIGHBOUR_TRUST).nonzero()[:, 0], (trust < 1 - _NEIGHBOUR_TRUST).nonzero()[:, 0]
    if not len(known) or not len(open_):
        return colors
    known = known[:: math.ceil(len(known) / _SAMPLES)]
    places = torch.cat([texels.positions, _NORMAL_REACH * reach * texels.normals], 1)
    tree = KDTree(places[known].numpy(), leafsize=16, balanced_tree=False, compact_nodes=False)
    nearest: Any = [*range(1, min(_NEIGHBOURS, len(known)) + 1)]
    distance, index = tree.query(places[open_].numpy(), k=nearest, workers=get_threads())
    weight = 1 / (torch.from_numpy(distance).float() ** 2 + 1e-12)
    around = (weight[..., None] * colors[known[torch.from_numpy(index)]]).sum(1) / weight.sum(1, keepdim=True)
    return colors.index_copy(0, open_, torch.lerp(around, colors[open_], trust[open_, None]))


def splat_colors(splats: Splats, vertices: Tensor, neighbours: int = 8) -> Tensor:
    """Colour vertices by the Gaussians around them, weighted by opacity and proximity; returns [N,3].

    Args:
        vertices: [N,3].
        neighbours: number of nearest Gaussians averaged.
    """
    from scipy.spatial import KDTree

    means, scales, opacities = (t.detach().cpu().double().numpy() for t in (splats.means, splats.scales, splats.opacities))
    colors = splats.colors.detach().cpu().double().clamp(0, 1).numpy()
    count = min(neighbours, len(means))
    nearest: Any = [*range(1, count + 1)]
    distances, index = KDTree(means, leafsize=16).query(vertices.numpy().astype(np.float64), k=nearest)
    spread = scales[index].max(-1)
    weight = opacities.reshape(-1)[index] * np.exp(-0.5 * np.minimum((distances / spread) ** 2, 50.0)) + 1e-12
    return torch.from_numpy(np.float32((weight[..., None] * colors[index]).sum(1) / weight.sum(1, keepdims=True)))
