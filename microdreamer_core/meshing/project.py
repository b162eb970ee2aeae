"""Project images of an object onto the texture of its mesh at full resolution: the reference, or views made by a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..mesh import Mesh, face_normals, square_texture
from ..reference import ReferenceView
from ..render.mesh import rasterize
from ..render.texels import Texels, blend_textures, check_images, continue_on_surface, fill_nearest, texel_map, texel_visibility
from ..util.images import resize
from ..util.threads import get_threads
from .tone import match_tone

_AROUND, _SAMPLES = 24, 20_000
"""Nearest clean texels that a stain takes its colour from; clean texels searched on the whole surface."""
_COARSE = 128
"""Side in pixels of the reduced reference that is searched for white."""
_TURNED_AWAY = -0.3
"""Cosine of the viewing angle below which texels are not filled from their neighbours."""


@dataclass(frozen=True)
class Projection:
    """How far an image is trusted.

    Attributes:
        grazing, facing: cosines between normal and direction to the camera at which trust begins and is full.
        margin: share of the image's side over which colours are extended beyond the silhouette, because the mesh's outline
            may be a little wider.
        border: share of the image's side over which trust fades towards the image's border, where the object may go on.
        reach: share of the mesh's diagonal over which an image's colours are extended on the surface: into texels hidden by
            relief, and around the edge.
    """

    grazing: float = 0.15
    facing: float = 0.55
    margin: float = 0.01
    border: float = 0.02
    reach: float = 0.04

    def __post_init__(self):
        if not 0 <= self.grazing < self.facing <= 1:
            raise InputError(f"Projection needs 0 <= grazing < facing <= 1, got {self.grazing} and {self.facing}.")
        if not (0 <= self.margin < 0.5 and 0 <= self.border < 0.5 and 0 <= self.reach < 1):
            got = f"{self.margin}, {self.border} and {self.reach}"
            raise InputError(f"Projection needs margin and border in [0,0.5) and reach in [0,1), got {got}.")


@torch.no_grad()
def project_images(
    mesh: Mesh,
    cameras: Cameras,
    images: Tensor,
    alpha: Tensor,
    settings: Projection = Projection(),  # noqa: B008 - immutable
) -> Mesh:
    """Replace the texture by images where they show the surface, and keep it elsewhere.

    An image's trust grows from 0 to 1 with the cosine of the viewing angle and ends at its silhouette. Several images are
    blended by their trust times cos⁴ of that angle, so that where they disagree the one that looks straight on prevails.
    Unseen texels with seen neighbours on the surface take the neighbours' colours, fading with distance, so that occlusion by
    relief leaves no gaps in the texture.

    Args:
        mesh: with uvs and a texture [T,T,3].
        cameras: V views of the size of the images.
        images: [V,H,W,3] in [0,1], on white.
        alpha: [V,H,W,1] coverage of the object.

    Returns:
        The mesh with the new texture; the given one is not changed.

    Raises:
        InputError: the mesh has no texture or no uvs, or number or size of images and cameras differ.
    """
    texture = square_texture(mesh).require_texture()
    texels = texel_map(mesh, len(texture))
    shown, trust = project_texels(mesh, texels, cameras, images, alpha, settings)
    return _replace_colors(mesh, texels, _lay_over(texture[texels.used], shown, trust))


def project_texels(
    mesh: Mesh, texels: Texels, cameras: Cameras, images: Tensor, alpha: Tensor, settings: Projection
) -> tuple[Tensor, Tensor]:
    """Return what V images show at each texel, ([P,3] colours, [P] trust in 0..1); arguments as for ``project_images``.

    Raises:
        InputError: number or size of images and cameras differ.
    """
    check_images(cameras, images)
    shown, trust = _sample_images(
        mesh, texels, cameras.to("cpu"), images.detach().cpu().float(), alpha.detach().cpu().float(), settings
    )
    openness = ((_largest_cosines(texels, cameras) - _TURNED_AWAY) / 0.5).clamp(0, 1)
    return continue_on_surface(texels, shown, trust, settings.reach * mesh.diagonal, openness)


def _lay_over(colors: Tensor, shown: Tensor, trust: Tensor) -> Tensor:
    return torch.lerp(colors, shown, trust[:, None]).clamp(0, 1)


def _replace_colors(mesh: Mesh, texels: Texels, colors: Tensor) -> Mesh:
    """The mesh with new texel colours [P,3], and gutters filled from them."""
    texture = square_texture(mesh).require_texture().clone()
    texture[texels.used] = colors
    return replace(mesh, texture=fill_nearest(texture, texels.used))


@torch.no_grad()
def project_reference(
    mesh: Mesh,
    view: ReferenceView | None,
    settings: Projection = Projection(),  # noqa: B008 - immutable
    *,
    mask: Tensor | None = None,
) -> Mesh:
    """Project the reference onto the texture, the last step of a mesh; returns the mesh unchanged without a reference.

    White stains, which inconsistent views leave on the surface, are removed first, and the tone of what the reference does not
    show is matched to it, so that its edge is no seam.

    Args:
        mask: [T,T,1] how much of a texel may change, for a square texture; texels at 0 stay bit for bit.

    Raises:
        InputError: the mesh has no texture or no uvs.
    """
    if view is None:
        return mesh
    texture = square_texture(mesh).require_texture()
    texels = texel_map(mesh, len(texture))
    seen = view.cameras, view.image, view.alpha
    colors = _clean_colors(texels, texture[texels.used], *seen)
    shown, trust = project_texels(mesh, texels, *seen, settings)
    colors = match_tone(mesh, len(texture), colors, shown, trust)
    made = _replace_colors(mesh, texels, _lay_over(colors, shown, trust))
    return made if mask is None else replace(made, texture=blend_textures(texture, made.require_texture(), mask))


@torch.no_grad()
def remove_stains(mesh: Mesh, cameras: Cameras, image: Tensor, alpha: Tensor) -> Mesh:
    """Remove white texels where the reference is not white, by the colours around them.

    Where views are inconsistent, reconstruction leaves white Gaussians: invisible on the white training background, but pale
    patches on a mesh. An object may be white, so the reference decides: every texel, in front or behind, is compared with the
    reference at its projection, within a sixteenth of the image.

    Args:
        cameras: the one camera of the reference.
        image: [1,H,W,3] on white; alpha: [1,H,W,1] coverage.

    Raises:
        InputError: the mesh has no texture or no uvs.
    """
    texture = square_texture(mesh).require_texture()
    texels = texel_map(mesh, len(texture))
    before = texture[texels.used]
    colors = _clean_colors(texels, before, cameras, image, alpha)
    return mesh if colors is before else _replace_colors(mesh, texels, colors)


def _clean_colors(texels: Texels, colors: Tensor, cameras: Cameras, image: Tensor, alpha: Tensor) -> Tensor:
    """[P,3] colours of the texels after ``remove_stains``; the given tensor itself if there are no stains."""
    from scipy.spatial import KDTree

    white = _whiteness(colors)
    if not bool((white > 0.1).any()):
        return colors
    stained = (white - _photo_whiteness(cameras, image, alpha, texels.positions)).clamp(0, 1)
    clean, open_ = (stained < 0.1).nonzero()[:, 0], (stained > 0.1).nonzero()[:, 0]
    if not len(open_) or len(clean) < _AROUND:
        return colors
    clean = clean[:: max(1, len(clean) // _SAMPLES)]
    tree = KDTree(texels.positions[clean].numpy(), leafsize=16)
    distance, index = tree.query(texels.positions[open_].numpy(), k=min(_AROUND, len(clean)), workers=get_threads())
    weight = torch.from_numpy(1 / (distance**2 + 1e-8)).float()[..., None]
    around = (weight * colors[clean[torch.from_numpy(index)]]).sum(1) / weight.sum(1)
    painted = torch.lerp(colors[open_], around, (2 * stained[open_]).clamp(max=1)[:, None])
    return colors.index_copy(0, open_, painted)


def _whiteness(colors: Tensor) -> Tensor:
    """[...] whiteness of RGB [...,3]: 0 for clearly coloured or dark, 1 for nearly white."""
    return ((colors.amin(-1) - 0.5) / 0.3).clamp(0, 1)


def _photo_whiteness(cameras: Cameras, image: Tensor, alpha: Tensor, points: Tensor) -> Tensor:
    """[P] largest whiteness of the object in the reference around each point's projection."""
    image, alpha, cameras = image.detach().cpu().float(), alpha.detach().cpu().float(), cameras.to("cpu")
    white = _whiteness(_remove_background(image[0], alpha[0]))
    most = F.adaptive_max_pool2d((white * (alpha[0, ..., 0] > 0.9))[None, None], _COARSE)
    most = F.max_pool2d(most, 2 * (_COARSE // 16) + 1, 1, _COARSE // 16)
    pixels, _ = cameras[:1].project(points)
    grid = pixels[0] / torch.tensor([cameras.width, cameras.height]) * 2 - 1
    return F.grid_sample(most, grid[None, None], padding_mode="border", align_corners=False)[0, 0, 0]


def _sample_images(
    mesh: Mesh, texels: Texels, cameras: Cameras, images: Tensor, alpha: Tensor, settings: Projection
) -> tuple[Tensor, Tensor]:
    """([P,3] colours, [P] trust in 0..1) of the texels visible in the images."""
    count = len(texels.positions)
    images, alpha, cameras = _reduce_to_texels(texels, mesh, cameras, images, alpha)
    depth = rasterize(mesh.vertices, mesh.faces, cameras).depth
    total, weight, trust = torch.zeros(count, 3), torch.zeros(count), torch.zeros(count)
    for visible, image, coverage in zip(texel_visibility(mesh, texels, cameras, depth), images, alpha, strict=True):
        layers = torch.cat([_remove_background(image, coverage), _extent(coverage, settings.margin)], -1)
        samples = F.grid_sample(layers.permute(2, 0, 1)[None], visible.grid, align_corners=False)[0, :, 0].T
        facing = ((visible.cosines - settings.grazing) / (settings.facing - settings.grazing)).clamp(0, 1)
        # in units of the image's side, which grid_sample counts from -1 to 1
        inside = 0.5 * (1 - visible.grid[0, 0].abs().amax(1))
        trusted = facing * samples[:, 3] * (inside / max(settings.border, 1e-6)).clamp(0, 1)
        blend = trusted * visible.weights
        total[visible.texels] += blend[:, None] * samples[:, :3]
        weight[visible.texels] += blend
        trust[visible.texels] = torch.maximum(trust[visible.texels], trusted)
    return total / weight.clamp_min(1e-12)[:, None], trust


def _largest_cosines(texels: Texels, cameras: Cameras) -> Tensor:
    """[P] largest cosine between a texel's normal and the direction to a camera."""
    eyes = cameras.c2w[:, :3, 3].cpu()
    cosines = ((F.normalize(eye - texels.positions, dim=1) * texels.normals).sum(1) for eye in eyes)
    return torch.stack(list(cosines)).amax(0)


def _reduce_to_texels(
    texels: Texels, mesh: Mesh, cameras: Cameras, images: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Cameras]:
    """Reduce images and cameras until pixels are not smaller than texels, to avoid aliasing."""
    area = float(face_normals(mesh.vertices, mesh.faces).norm(dim=1).sum()) / 2
    texel = math.sqrt(area / len(texels.positions))
    share = float(cameras.pixel_size()) / texel
    if share >= 1:
        return images, alpha, cameras
    size = max(1, round(share * cameras.height)), max(1, round(share * cameras.width))
    return resize(images, *size), resize(alpha, *size), cameras.resize(size[1], size[0])


def _remove_background(image: Tensor, alpha: Tensor) -> Tensor:
    """[H,W,3] colours of the object without background, extended beyond its silhouette."""
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
