"""The last stage of a new texture: views refined at low noise and projected onto the mesh.

SIR makes views agree, at the price of their sharpness. Once they do, views that start from renders of the texture at low
noise are sharp and still agree, so that they can be laid onto the surface as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
import torch.nn.functional as F

from ..cameras import Cameras, concatenate
from ..diffusion.protocol import MultiViewDiffusion
from ..diffusion.samplers import Sampler
from ..errors import InputError
from ..fields.texture import TextureField
from ..mesh import Mesh, square_texture
from ..render.mesh import rasterize
from ..render.texels import fill_nearest
from ..util.hooks import Hook
from ..util.images import erode
from ..util.seeds import generator
from ..util.vocabulary import DEFAULT_FOV_Y
from .project import Projection, project_texels
from .refine import Progress, TextureRefinement, count_progress, refine_pictures, refinement_groups

Textured = TypeVar("Textured", Mesh, TextureField)

_COARSE = 64
"""Pixels a side at which a tile is searched for the object."""


@torch.no_grad()
def final_projection(
    textured: Textured,
    diffusion: MultiViewDiffusion,
    *,
    strength: float = 0.3,
    views: int = 8,
    seed: int = 0,
    elevation: float = 0.0,
    radius: float = TextureRefinement.radius,
    fov_y: float = DEFAULT_FOV_Y,
    guidance_scale: float = 1.0,
    discretization: int = 20,
    cameras: Sequence[Cameras] | None = None,
    zooms: Sequence[int] = (1,),
    projection: Projection = Projection(),  # noqa: B008 - immutable
    sampler: Sampler | None = None,
    progress: Progress | None = None,
    check: Hook | None = None,
) -> Textured:
    """Refine views of a texture at low noise and project them onto it, the last stage of a new texture.

    Where several views show a texel they are blended by cos⁴ of their angles (``project_images``). Texels that neither these
    views nor an iteration of SIR saw take the colours of their neighbours on the surface.

    Args:
        textured: a mesh with a texture, or a texture field, whose mask is respected.
        diffusion: the conditioned model.
        strength: noise level of the views as a share of T; what SIR agreed on must survive it.
        views: of one elevation, evenly spread from the front; a multiple of what the model denoises together.
        seed: of the noise.
        elevation, radius, fov_y: of the cameras; degrees, world units, degrees.
        guidance_scale, discretization: of the refinement, as in a plan.
        cameras: groups of views that are denoised together, in place of ``views`` and the angles, at the model's size.
        zooms: rounds, each of which cuts every view into so many tiles along a side (``tile_cameras``) and denoises these at
            the model's size: (1, 2, 4) adds detail step by step. For models that know no cameras; others take a tile for the
            whole object.
        sampler: in place of DDIM with η = 0.
        progress: called as ("refine", done, total) before each network call; check: likewise, raises to stop.

    Returns:
        What was given, with its new texture, a square; the given one is not changed.

    Raises:
        InputError: the mesh has no texture, or the model does not allow that number of views.
        NumericalError: the model's images are not finite.
    """
    field = textured if isinstance(textured, TextureField) else _as_field(textured)
    settings = TextureRefinement(
        views=views,
        strength=strength,
        discretization=discretization,
        guidance_scale=guidance_scale,
        elevation=elevation,
        radius=radius,
        fov_y=fov_y,
    )
    whole = refinement_groups(diffusion.view_count, settings, diffusion.image_size) if cameras is None else cameras
    rounds = [[tile for group in whole for tile in _covered_tiles(field.surface, group, zoom)] for zoom in zooms]
    rng = generator(seed, 0, "final projection")
    hook = count_progress(progress, check, "refine", sum(map(len, rounds)) * len(settings.path()))
    for groups in rounds:
        field = _project_round(field, groups, diffusion, settings, rng, projection, sampler, hook)
    field = field.complete()
    return cast(Textured, field if isinstance(textured, TextureField) else field.mesh)


def tile_cameras(cameras: Cameras, tiles: int, overlap: float = 0.2) -> list[Cameras]:
    """Cut views into ``tiles`` x ``tiles`` parts: cameras at the same places that aim at a part each, of a narrower field.

    >>> from ..cameras import orbit_cameras
    >>> [round(part.fov_y, 1) for part in tile_cameras(orbit_cameras(0.0, [0.0, 90.0], fov_y=50.0), 2, 0.0)]
    [26.2, 26.2, 26.2, 26.2]

    Args:
        cameras: V views, which keep their size in pixels, elevations and azimuths; square.
        overlap: share of a tile's side by which it is wider than its part.

    Returns:
        For each part V cameras, row by row from the upper left; ``cameras`` itself for one tile.

    Raises:
        InputError: ``tiles`` is below 1.
    """
    if tiles < 1:
        raise InputError(f"A view is cut into at least 1 tile along a side, got {tiles}; 2 doubles the detail.")
    if tiles == 1:
        return [cameras]
    half = math.tan(math.radians(cameras.fov_y) / 2)
    fov_y = 2 * math.degrees(math.atan(half / tiles * (1 + overlap)))
    centres = [half * ((2 * i + 1) / tiles - 1) for i in range(tiles)]
    return [_aim(cameras, x, -y, fov_y) for y in centres for x in centres]


def _aim(cameras: Cameras, x: float, y: float, fov_y: float) -> Cameras:
    """Turn cameras towards the point (x, y) at unit depth of their images, y upwards, without a roll."""
    right, up, backward = cameras.c2w[:, :3, :3].unbind(2)
    backward = F.normalize(backward - x * right - y * up, dim=1)
    right = F.normalize(torch.linalg.cross(up, backward), dim=1)
    c2w = cameras.c2w.clone()
    c2w[:, :3, :3] = torch.stack([right, torch.linalg.cross(backward, right), backward], 2)
    return replace(cameras, c2w=c2w, fov_y=fov_y)


def _covered_tiles(mesh: Mesh, cameras: Cameras, tiles: int) -> list[Cameras]:
    """The tiles in which at least one view shows the mesh."""
    parts = tile_cameras(cameras, tiles)
    return [part for part in parts if bool(rasterize(mesh.vertices, mesh.faces, part.resize(_COARSE)).hit.any())]


def _as_field(mesh: Mesh) -> TextureField:
    """A texture that counts as seen, so that what is not projected onto stays; shared texels are allowed."""
    mesh = square_texture(mesh)
    texture = mesh.require_texture()
    return TextureField(replace(mesh, texture=None), texture, seen=torch.ones(len(texture), len(texture), 1))


def _project_round(
    field: TextureField,
    groups: Sequence[Cameras],
    diffusion: MultiViewDiffusion,
    settings: TextureRefinement,
    rng: torch.Generator,
    projection: Projection,
    sampler: Sampler | None,
    check: Hook,
) -> TextureField:
    """Refine all groups of views from one state of the texture, then project them together."""
    mesh, images, alphas = field.mesh, [], []
    for group in groups:
        render = field.render(group)
        images.append(refine_pictures(render.rgb, group, diffusion, settings, rng, mesh, sampler=sampler, check=check))
        # a model's own silhouettes never match them exactly, and leave pale lines of background
        alphas.append(erode(render.alpha))
    used = field.texels.used
    shown = field.surface, field.texels, concatenate(groups), torch.cat(images), torch.cat(alphas)
    colors, trust = project_texels(*shown, projection)
    texture, seen = field.texture.clone(), field.seen.clone()
    texture[used] = torch.lerp(texture[used], colors, trust[:, None]).clamp(0, 1)
    seen[used] = torch.maximum(seen[used], trust[:, None])
    return replace(field, texture=fill_nearest(texture, used), seen=seen)
