"""Lay images of an object over the texture of its mesh, at their own size: the photo, or views that a model has painted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..losses import ReferenceView
from ..render.mesh import rasterize
from ..render.threads import get_threads
from .bake import Texels, check_images, fill_nearest, sights, texel_map
from .types import Mesh, face_normals

_NEIGHBOURS = 4
_NEIGHBOUR_TRUST = 0.5
_NORMAL_REACH = 0.6
"""Distance between unit normals in units of the reach: texels at right angles are hardly neighbours, opposite ones never."""
_TURNED_AWAY = -0.3
"""Cosine towards the camera below which nothing is continued."""


@dataclass(frozen=True)
class Projection:
    """How far an image is trusted.

    Attributes:
        grazing, facing: cosines between normal and direction to the camera, where trust begins and where it is full.
        margin: share of the image's side over which colours are continued beyond the silhouette, where the mesh's outline may
            be a little wider.
        reach: share of the mesh's diagonal over which what an image shows is continued on the surface: into the shadow of its
            own relief and around its edge.
    """

    grazing: float = 0.12
    facing: float = 0.5
    margin: float = 0.01
    reach: float = 0.04

    def __post_init__(self):
        if not 0 <= self.grazing < self.facing <= 1:
            raise InputError(f"Projection needs 0 <= grazing < facing <= 1, got {self.grazing} and {self.facing}.")
        if not (0 <= self.margin < 0.5 and 0 <= self.reach < 1):
            raise InputError(f"Projection needs margin in [0,0.5) and reach in [0,1), got {self.margin} and {self.reach}.")


@torch.no_grad()
def project_images(
    mesh: Mesh,
    cameras: Cameras,
    images: Tensor,
    alpha: Tensor,
    settings: Projection = Projection(),  # noqa: B008 - immutable
) -> Mesh:
    """Replace the texture by images where they show the surface, and keep it elsewhere.

    An image's trust grows from 0 to 1 with the cosine of the viewing angle and ends at its silhouette. Several images blend
    by their trust. Texels that no image sees but whose neighbours on the surface are seen take their colours, fading with the
    distance, so that relief casts no shadows into the texture.

    Args:
        mesh: with uvs and a texture [T,T,3].
        cameras: V views of the size of the images.
        images: [V,H,W,3] in [0,1], on white.
        alpha: [V,H,W,1] coverage of the object.

    Returns:
        The mesh with the new texture; the given one is not changed.

    Raises:
        InputError: the mesh has no texture or no uvs, or images and cameras disagree.
    """
    if mesh.texture is None or mesh.texture.shape[0] != mesh.texture.shape[1]:
        got = "none" if mesh.texture is None else f"one of {list(mesh.texture.shape[:2])}"
        raise InputError(f"Images are laid over a square texture, got {got}; bake a texture first.")
    check_images(cameras, images)
    texels = texel_map(mesh, mesh.texture.shape[0])
    colors, trust = _seen(
        mesh, texels, cameras.to("cpu"), images.detach().cpu().float(), alpha.detach().cpu().float(), settings
    )
    diagonal = float((mesh.vertices.amax(0) - mesh.vertices.amin(0)).norm())
    colors, trust = _continued(texels, colors, trust, cameras, settings.reach * diagonal)
    texture = mesh.texture.clone()
    texture[texels.used] = torch.lerp(texture[texels.used], colors, trust[:, None]).clamp(0, 1)
    return replace(mesh, texture=fill_nearest(texture, texels.used))


def project_reference(mesh: Mesh, view: ReferenceView | None, settings: Projection = Projection()) -> Mesh:  # noqa: B008
    """Lay the reference over the texture, as the last step of a mesh; the mesh as it is when there is no reference."""
    return mesh if view is None else project_images(mesh, view.cameras, view.image, view.alpha, settings)


def _seen(
    mesh: Mesh, texels: Texels, cameras: Cameras, images: Tensor, alpha: Tensor, settings: Projection
) -> tuple[Tensor, Tensor]:
    """([P,3] colours, [P] trust in 0..1) of the texels that the images show."""
    count = len(texels.positions)
    images, alpha, cameras = _no_finer_than(texels, mesh, cameras, images, alpha)
    depth = rasterize(mesh.vertices, mesh.faces, cameras).depth
    total, weight, trust = torch.zeros(count, 3), torch.zeros(count), torch.zeros(count)
    for sight, image, coverage in zip(sights(mesh, texels, cameras, depth), images, alpha, strict=True):
        layers = torch.cat([_without_background(image, coverage), _extent(coverage, settings.margin)], -1)
        samples = F.grid_sample(layers.permute(2, 0, 1)[None], sight.grid, align_corners=False)[0, :, 0].T
        facing = ((sight.cosines - settings.grazing) / (settings.facing - settings.grazing)).clamp(0, 1)
        trusted = facing * samples[:, 3]
        total[sight.texels] += trusted[:, None] * samples[:, :3]
        weight[sight.texels] += trusted
        trust[sight.texels] = torch.maximum(trust[sight.texels], trusted)
    return total / weight.clamp_min(1e-6)[:, None], trust


def _no_finer_than(
    texels: Texels, mesh: Mesh, cameras: Cameras, images: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Cameras]:
    """Images and cameras at a size whose pixels are not smaller than the texels, or these would pick some and miss others."""
    area = float(face_normals(mesh.vertices, mesh.faces).norm(dim=1).sum()) / 2
    texel = math.sqrt(area / len(texels.positions))
    share = cameras.pixel_size() / texel
    if share >= 1:
        return images, alpha, cameras
    size = max(1, round(share * cameras.height)), max(1, round(share * cameras.width))
    images, alpha = (
        F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True).permute(0, 2, 3, 1) for x in (images, alpha)
    )
    return images, alpha, cameras.resized(size[1], size[0])


def _without_background(image: Tensor, alpha: Tensor) -> Tensor:
    """[H,W,3] colours of the object alone, continued beyond its silhouette."""
    solid = alpha[..., 0] > 0.9
    if not bool(solid.any()):
        return image
    return fill_nearest(image, solid)


def _extent(alpha: Tensor, margin: float) -> Tensor:
    """[H,W,1] 1 inside the silhouette, falling to 0 over the margin around it."""
    from scipy import ndimage

    outside = ndimage.distance_transform_edt(alpha[..., 0].numpy() <= 0.5)
    width = max(1.0, margin * max(alpha.shape[:2]))
    return (1 - torch.from_numpy(outside).float() / width).clamp(0, 1)[..., None]


def _continued(texels: Texels, colors: Tensor, trust: Tensor, cameras: Cameras, reach: float) -> tuple[Tensor, Tensor]:
    """Colours and trust with texels beside the trusted ones filled from them.

    Neighbours are near in space and in the direction of their normals, so that they lie on the same side of thin parts and on
    the same wall of a groove. Texels that turn away from every camera take less.
    """
    from scipy.spatial import cKDTree

    known = (trust > _NEIGHBOUR_TRUST).nonzero()[:, 0]
    toward = torch.full((len(trust),), -1.0)
    for eye in cameras.c2w[:, :3, 3]:
        toward = torch.maximum(toward, (F.normalize(eye - texels.positions, dim=1) * texels.normals).sum(1))
    open_ = ((trust < 1) & (toward > _TURNED_AWAY)).nonzero()[:, 0]
    if not reach or not len(known) or not len(open_):
        return colors, trust
    places = torch.cat([texels.positions, _NORMAL_REACH * reach * texels.normals], 1).numpy()
    search = cKDTree(places[known], balanced_tree=False, compact_nodes=False)
    nearest = [*range(1, _NEIGHBOURS + 1)]
    distance, index = search.query(places[open_], k=nearest, distance_upper_bound=reach, workers=get_threads())
    near = (1 - torch.from_numpy(distance).float() / reach).clamp_min(0) ** 2  # infinite where there are fewer
    index = known[torch.from_numpy(index).clamp_max(len(known) - 1)]
    fill = (near[..., None] * colors[index]).sum(1) / near.sum(1, keepdim=True).clamp_min(1e-9)
    own = trust[open_]
    strength = (1 - own) * near.amax(1) * ((toward[open_] - _TURNED_AWAY) / 0.5).clamp(0, 1)
    colors, trust = colors.clone(), trust.clone()
    trust[open_] = own + strength
    mixed = own[:, None] * colors[open_] + strength[:, None] * fill
    colors[open_] = mixed / trust[open_, None].clamp_min(1e-9)
    return colors, trust
