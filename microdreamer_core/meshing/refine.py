"""Texture refinement by SIR (paper section V): one iteration on a mesh of fixed geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..diffusion.ddim import noise_forward
from ..diffusion.noise import PAPER_SIDE
from ..diffusion.protocol import MultiViewDiffusion, ViewCount, condition_model
from ..diffusion.samplers import Sampler, get_sampler
from ..diffusion.timesteps import DIFFUSION_STEPS, sampling_path
from ..errors import InputError, NumericalError
from ..mesh import Mesh, square_texture
from ..reference import ReferenceView
from ..render.mesh import TextureView, interpolate, rasterize, render_mesh, supersample_cameras, view_of_fragments
from ..util.hooks import Hook
from ..util.seeds import generator
from ..util.settings import check_settings, setting
from ..util.vocabulary import DEFAULT_FOV_Y
from .bake import Texels, TexelVisibility, continue_on_surface, fill_nearest, gather, texel_map, texel_visibility

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total); stage is "refine" (network calls) or "texture" (optimisation steps)."""

_FINEST_PICTURE = 512
_FULL_SIZE = 128
"""Image size in pixels from which a model's images are fitted with the full step."""
_REACH = 0.04
"""Share of the mesh's diagonal over which a change is extended to unseen texels: without it, creases keep old colours and
show as scars."""
_HALF_TRUST = 0.01
"""Sum of cos⁴ weights at which a texel takes half of its change: refinement fades out where no view sees well."""


@dataclass(frozen=True)
class TextureRefinement:
    """Settings of texture refinement; the defaults are the released code's (main2.py, guidance/zero123_utils.py) unless said.

    Ranges and meaning of the fields are their :class:`~..util.settings.Setting`.

    Attributes:
        views: of one elevation, azimuths evenly spread from the front; a multiple of the model's group.
        strength: the released "strength 0.8" is an index into the descending grid of N = 50 times: entry int(50 · 0.8) = 40,
            t = 981 − 40 · 20 = 181 of 1000.
        reference_weight: the released loss is the reference's mean squared error plus that of 8 views together, so 8. Not
            Table I's weight, which belongs to an L1 sum in 3D training.
        step_size: steps times step_size around 3 fits the model's images, much more fits their noise.
        elevation, radius, fov_y: of the cameras; degrees, world units, degrees.
    """

    views: int = setting(8, "images; a multiple of what the model denoises at once", 1, 256)
    strength: float = setting(0.181, "how much the model may change: the noise level as a share of T", 0.001, 0.999)
    discretization: int = setting(50, "N, steps that DDIM would take over the whole of T", 1, 999)
    guidance_scale: float = setting(2.0, "classifier-free guidance of this stage; not the plan's", 0)
    reference_weight: float = setting(8.0, "weight of the reference against one view, per unit of surface", 0, 1000)
    steps: int = setting(30, "gradient steps on the texture", 1, 10_000)
    step_size: float = setting(0.1, "share of a texel's mean error that one step takes off", 1e-6, 1)
    elevation: float = 0.0
    radius: float = 2.0
    fov_y: float = DEFAULT_FOV_Y

    def __post_init__(self):
        check_settings(self, "texture refinement")

    @classmethod
    def suited_to(cls, image_size: int, radius: float, fov_y: float, **changes: Any) -> TextureRefinement:
        """Settings for a model of ``image_size`` pixels and a plan's cameras.

        A 64-pixel model adds little texture detail, and its noise would show as mottle: it gets a quarter of each step, and a
        tenth of the sampling steps, which look the same (within 0.06 dB on three toys).
        """
        small = {} if image_size >= _FULL_SIZE else {"step_size": cls.step_size / 4, "discretization": cls.discretization // 10}
        return cls(**{**small, "radius": radius, "fov_y": fov_y, **changes})

    def path(self) -> tuple[int, ...]:
        """Return the times of the evaluations, descending; the images are noised to the first, 1..T-1."""
        start = min(DIFFUSION_STEPS - 1, max(1, round(self.strength * DIFFUSION_STEPS)))
        return sampling_path(start, self.discretization)


def refine_texture(
    mesh: Mesh,
    diffusion: MultiViewDiffusion,
    settings: TextureRefinement = TextureRefinement(),  # noqa: B008 - immutable
    seed: int = 0,
    *,
    reference: ReferenceView | None = None,
    background: Tensor | None = None,
    sampler: Sampler | None = None,
    progress: Progress | None = None,
    check: Hook | None = None,
) -> Mesh:
    """Refine a texture by one SIR iteration: render, add noise, denoise by DDIM with η = 0, optimise (paper section V).

    The mesh is rasterised once. The loss is the squared error between its renders, averaged down to the model's size, and the
    denoised images; a step distributes the error of each pixel smoothly to all texels that it shows, so that detail finer
    than the model's resolution stays. (Adam moves every texel by about its learning rate whatever its error, and leaves
    speckles wherever texels outnumber pixels.) Views are weighted by cos⁴ of the viewing angle; pixels on the silhouette are
    ignored, because the model's silhouette never quite matches the mesh's.

    Args:
        mesh: with uvs and a texture.
        seed: determines the noise.
        reference: the reference image as one more target, weighted by ``settings.reference_weight``; its own weights belong
            to 3D training and are not used here.
        background: [3], white if None.
        sampler: in place of DDIM with η = 0.
        check: called before each network call and step; raises (usually ``errors.Cancelled``) to stop.

    Returns:
        The mesh with its refined texture, a square; the given one is not changed.

    Raises:
        InputError: the mesh has no texture, or the model does not allow that number of views.
        NumericalError: the model's images are not finite.
    """
    if mesh.texture is None:
        raise InputError("Texture refinement needs a textured mesh, got one without; bake a texture first.")
    mesh = square_texture(mesh)
    texture = mesh.require_texture()
    groups = refinement_groups(diffusion.view_count, settings, diffusion.image_size)
    background = torch.ones(3) if background is None else background.detach().cpu()
    with torch.no_grad():
        texels = texel_map(mesh, len(texture))
        rng = generator(seed, 0, "texture")
        calls = len(groups) * len(settings.path())
        hook = _count_progress(progress, check, "refine", calls)
        targets = []
        for cameras in groups:
            view, seen = _rasterise(mesh, texels, cameras)
            pictures = view.render(texture, background)
            refined = refine_pictures(pictures, cameras, diffusion, settings, rng, mesh, sampler=sampler, check=hook)
            targets.append(_Target(view, refined, seen))
        if reference is not None and settings.reference_weight:
            targets.append(_reference_target(mesh, texels, reference, settings.reference_weight))
        hook = _count_progress(progress, check, "texture", settings.steps)
        return replace(mesh, texture=_descend(texture, texels, targets, background, settings, hook))


def refinement_groups(count: ViewCount, settings: TextureRefinement, size: int) -> list[Cameras]:
    """Return the V cameras in the groups that the model denoises together, each evenly spread around the object, interleaved.

    Raises:
        InputError: the model does not allow V views.
    """
    count.check(settings.views)
    groups = 1 if count.group is None else settings.views // count.group
    azimuths = torch.arange(settings.views) * (360.0 / settings.views)
    return [
        orbit_cameras(settings.elevation, azimuths[i::groups], settings.radius, settings.fov_y, size) for i in range(groups)
    ]


@torch.no_grad()
def refine_pictures(
    pictures: Tensor,
    cameras: Cameras,
    diffusion: MultiViewDiffusion,
    settings: TextureRefinement,
    rng: torch.Generator,
    mesh: Mesh | None = None,
    *,
    sampler: Sampler | None = None,
    check: Hook | None = None,
) -> Tensor:
    """Noise one group of views to ``strength`` and denoise it (Eq. 10 after noise only, η = 0); [V,H,W,3] to [V,H,W,3].

    Args:
        mesh: for models that look at renders of it.
    """
    conditioning = condition_model(diffusion, cameras, None if mesh is None else partial(render_mesh, mesh))
    process = diffusion.process
    path = process.convert_times(settings.path(), diffusion.latent_shape[-1] / PAPER_SIDE)

    def guided(x: Tensor, t: int) -> Tensor:
        return diffusion.denoised(x, t, conditioning, settings.guidance_scale)

    sampler = sampler or get_sampler("ddim", 0.0)
    noisy = noise_forward(diffusion.encode(pictures.to(diffusion.device)), path[0], process, generator=rng)
    images = diffusion.decode(sampler(guided, noisy, path, process, rng, check)).cpu().float()
    if not bool(torch.isfinite(images).all()):
        raise NumericalError("Texture refinement gave pictures that are not finite; try float32 or a lower strength.")
    return images


@dataclass(frozen=True)
class _Target:
    """Target images [V,S,S,3] of the texture seen through ``view``, and the visible texels."""

    view: TextureView
    pictures: Tensor
    seen: list[TexelVisibility]

    def residual(self, texture: Tensor, background: Tensor) -> Tensor:
        """[V,S,S,4] error of each fully covered pixel, and 1 where a pixel is fully covered."""
        covered = (self.view.alpha > 0.999).float()
        return torch.cat([(self.pictures - self.view.render(texture, background)) * covered, covered], -1)


def _rasterise(mesh: Mesh, texels: Texels, cameras: Cameras) -> tuple[TextureView, list[TexelVisibility]]:
    """Rasterise once everything that stays fixed while the texture is optimised."""
    pool = max(1, math.ceil(_FINEST_PICTURE / max(cameras.width, cameras.height)))
    fine = supersample_cameras(cameras, pool)
    fragments = rasterize(mesh.vertices, mesh.faces, fine)
    view = view_of_fragments(fragments, interpolate(mesh.texture_coordinates(), mesh.faces, fragments), pool)
    return view, texel_visibility(mesh, texels, fine, fragments.depth)


def _reference_target(mesh: Mesh, texels: Texels, reference: ReferenceView, weight: float) -> _Target:
    view, seen = _rasterise(mesh, texels, reference.cameras.to("cpu"))
    shown = (reference.alpha.detach().cpu() > 0.999).float()
    view = replace(view, alpha=view.alpha * shown)
    weighted = [replace(visible, weights=visible.weights * weight) for visible in seen]
    return _Target(view, reference.image.detach().cpu().clone(), weighted)


def _descend(
    texture: Tensor, texels: Texels, targets: list[_Target], background: Tensor, settings: TextureRefinement, hook: Hook
) -> Tensor:
    """Gradient steps on the weighted squared error, each texel's divided by its own total weight (SIRT, Gilbert 1972)."""
    start, count = texture[texels.used], len(texels.positions)
    weight = start.new_zeros(count)
    for _ in range(settings.steps):
        hook()
        sums = [gather(t.seen, t.residual(texture, background), count) for t in targets]
        total, weight = (reduce(torch.add, parts) for parts in zip(*sums, strict=True))
        step = torch.where(weight[:, None] > 0, total / weight[:, None].clamp_min(1e-9), 0.0)
        texture = texture.clone()
        texture[texels.used] = (texture[texels.used] + settings.step_size * step).clamp(0, 1)
    change = texture[texels.used] - start
    span = texels.positions.amax(0) - texels.positions.amin(0)
    change, trust = continue_on_surface(texels, change, weight / (weight + _HALF_TRUST), _REACH * float(span.norm()))
    texture[texels.used] = start + trust[:, None] * change
    return fill_nearest(texture, texels.used)


def _count_progress(progress: Progress | None, check: Hook | None, stage: str, total: int) -> Hook:
    """A hook to call before each step: reports how many are done, then checks."""
    done = 0

    def hook() -> None:
        nonlocal done
        if progress is not None:
            progress(stage, done, total)
        if check is not None:
            check()
        done += 1

    return hook
