"""Texture refinement by SIR (paper section V): one iteration on a mesh of fixed geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras, concatenate, orbit_cameras
from ..diffusion.ddim import noise_forward
from ..diffusion.noise import PAPER_SIDE
from ..diffusion.protocol import MultiViewDiffusion, ViewCount, condition_model
from ..diffusion.samplers import Sampler, get_sampler
from ..diffusion.timesteps import DIFFUSION_STEPS, sampling_path
from ..errors import InputError, NumericalError
from ..fields.texture import TextureField, TextureOptimizer, TextureSettings
from ..mesh import Mesh, square_texture
from ..reference import ReferenceView
from ..render.mesh import render_mesh
from ..render.texels import continue_on_surface, fill_nearest
from ..util.hooks import Hook
from ..util.seeds import generator
from ..util.settings import check_settings, setting
from ..util.vocabulary import DEFAULT_FOV_Y

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total); stage is "refine" (network calls) or "texture" (optimisation steps)."""

_FULL_SIZE = 128
"""Image size in pixels from which a model's images are fitted with the full step."""
_REACH = 0.04
"""Share of the mesh's diagonal over which a change is extended to unseen texels: without it, creases keep old colours and
show as scars."""
_COVERED = 0.999
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
        """Choose settings for a model of ``image_size`` pixels and a plan's cameras; ``changes`` replace some.

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

    It is a plan of K = 1 on a :class:`~..fields.texture.TextureField`, from noise alone: the loss is the squared error between
    its renders, at the model's size, and the denoised images.

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
    groups = refinement_groups(diffusion.view_count, settings, diffusion.image_size)
    start = TextureField(replace(mesh, texture=None), mesh.require_texture(), TextureSettings(settings.step_size, fading=False))
    # ComfyUI runs nodes in inference mode, whose tensors cannot be saved for backward
    with torch.inference_mode(False), torch.enable_grad():
        optimizer, cameras = start.optimizer(), concatenate(groups)
        pictures = optimizer.render(cameras, background).rgb.detach().split([len(group) for group in groups])
        rng = generator(seed, 0, "texture")
        hook = count_progress(progress, check, "refine", len(groups) * len(settings.path()))
        targets = torch.cat(
            [
                refine_pictures(shown, group, diffusion, settings, rng, mesh, sampler=sampler, check=hook)
                for shown, group in zip(pictures, groups, strict=True)
            ]
        ).clone()
        hook = count_progress(progress, check, "texture", settings.steps)
        for _ in range(settings.steps):
            hook()
            render = optimizer.render(cameras, background)
            loss = (render.rgb - targets).square().sum() / len(cameras)
            if reference is not None and settings.reference_weight:
                loss = loss + _reference_error(reference, optimizer, background, settings.reference_weight)
            optimizer.step(loss, render)
        return _extend_change(start, optimizer.finish())


def _reference_error(reference: ReferenceView, optimizer: TextureOptimizer, background: Tensor | None, weight: float) -> Tensor:
    """Compute the weighted squared error of the reference where the object covers it fully."""
    trust = weight * (reference.alpha.detach().cpu() > _COVERED).float()
    shown = optimizer.render(reference.cameras.to("cpu"), background, weights=trust).rgb
    return (trust * (shown - reference.image.detach().cpu()).square()).sum()


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


def _extend_change(start: TextureField, fitted: TextureField) -> Mesh:
    """Fade the change out where no view sees well, and continue it into creases that none sees."""
    mesh, texels = fitted.mesh, fitted.texels
    texture, before, weight = (values[texels.used] for values in (fitted.texture, start.texture, fitted.seen))
    trust = (weight / (weight + _HALF_TRUST))[:, 0]
    change, trust = continue_on_surface(texels, texture - before, trust, _REACH * mesh.diagonal)
    texture = fitted.texture.clone()
    texture[texels.used] = before + trust[:, None] * change
    return replace(mesh, texture=fill_nearest(texture, texels.used))


def count_progress(progress: Progress | None, check: Hook | None, stage: str, total: int) -> Hook:
    """Return a hook to call before each step: it reports how many are done, then checks."""
    done = 0

    def hook() -> None:
        nonlocal done
        if progress is not None:
            progress(stage, done, total)
        if check is not None:
            check()
        done += 1

    return hook
