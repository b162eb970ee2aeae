"""The stages of one iteration of Algorithm 1, which the nodes of a graph call one by one.

Each stage draws from a generator derived from (seed, k, stage), so that a graph and :func:`.iterations.sir_iterations` give the
same field.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, orbit_cameras, sample_orbit
from ..diffusion.protocol import Conditioning, MultiViewDiffusion
from ..diffusion.samplers import Sampler, get_sampler
from ..errors import NumericalError
from ..fields.protocol import WHITE, Field
from ..reference import Reference, ReferenceView
from ..render.protocol import Render
from ..util import devices
from ..util.hooks import Hook
from ..util.seeds import generator
from .forward import forward_process
from .hooks import Hooks
from .plan import IterationTimes, SIRPlan
from .reconstruct import LatentTargets, Reconstruction, reconstruct


@dataclass(frozen=True)
class RefinedViews:
    """What refinement makes of V views: latents [V,C,h,w], pictures [V,H,W,3], and the evaluations it took."""

    latents: Tensor
    images: Tensor
    evaluations: int


def reference_view(reference: Reference | None, plan: SIRPlan, size: int | None = None) -> ReferenceView | None:
    """The reference picture as the front view that reconstruction also looks at; None when there is none or the plan gives it
    no weight. ``size`` in pixels, the picture's own when None."""
    if reference is None or not plan.weighs_reference:
        return None
    sized = reference if size is None else reference.at_size(size)
    camera = orbit_cameras(reference.elevation, 0.0, plan.radius, plan.fov_y, len(sized.image))
    return ReferenceView(
        camera,
        sized.image[None],
        sized.alpha[None],
        plan.ref_color_weight,
        plan.ref_opacity_weight,
        plan.loss,
        paint_weight=plan.ref_paint_weight,
    )


def iteration_cameras(plan: SIRPlan, seed: int, k: int, size: int, elevation: float = 0.0) -> Cameras:
    """The camera poses c^(k) of one iteration (section V), at the size of its renders.

    Args:
        size: of the diffusion model's pictures, which the plan's resolutions may stay below.
        elevation: the reference picture's, which the range of elevations follows.
    """
    draw = generator(seed, k, "cameras")
    return sample_orbit(plan.views, plan.elevations(elevation), plan.radius, draw, plan.fov_y, plan.render_size(k, size))


def reference_elevation(reference: Reference | None) -> float:
    """Degrees from which the reference was taken; 0 without one."""
    return 0.0 if reference is None else reference.elevation


def resize(images: Tensor, size: int) -> Tensor:
    """[V,H,W,C] -> [V,size,size,C], antialiased where it shrinks."""
    if images.shape[1:3] == (size, size):
        return images
    channels_first = images.permute(0, 3, 1, 2)
    sized = F.interpolate(channels_first, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return sized.permute(0, 2, 3, 1)


def plan_background(plan: SIRPlan, device: torch.device | str) -> Tensor | None:
    """What the plan's renders are composited on: white, or None for the field's own."""
    return None if plan.background == "learned" else WHITE.to(device)


def render_views(field: Field, cameras: Cameras, plan: SIRPlan) -> Render:
    """g(θ, c) of Eq. 7 as an iteration needs it: on the plan's background, at the cameras' size."""
    return field.render(cameras, plan_background(plan, field.device))


@torch.no_grad()
def forward_views(
    images: Tensor | None,
    diffusion: MultiViewDiffusion,
    cameras: Cameras,
    plan: SIRPlan,
    times: IterationTimes | None,
    seed: int,
    k: int,
    *,
    conditioning: Conditioning | None = None,
    check: Hook | None = None,
) -> Tensor:
    """Take pictures through the forward process (Eq. 9; Algorithm 1 line 5).

    Args:
        images: [V,S,S,3], brought to the model's size; not looked at when ``times`` is None.
        times: t1 and t2 of this iteration; None gives pure noise, from which θ0 is initialised.
        conditioning: of ``diffusion.condition(cameras)``, when the caller has it already.
        check: called before every network evaluation.

    Returns:
        [V,C,h,w] latents at t2.

    Raises:
        InputError: the model does not allow that many views.
    """
    diffusion.view_count.check(len(cameras))
    draw = generator(seed, k, "noise")
    if times is None:
        return devices.to_device_async(torch.randn(len(cameras), *diffusion.latent_shape, generator=draw), diffusion.device)
    conditioning = diffusion.condition(cameras) if conditioning is None else conditioning

    def unconditional(x: Tensor, t: int) -> Tensor:
        return diffusion.eps(x, t, conditioning, 0.0)

    latents = diffusion.encode(resize(images.to(diffusion.device), diffusion.image_size))
    return forward_process(latents, unconditional, times, plan, diffusion.alphas_cumprod, draw, check)


@torch.no_grad()
def denoise_views(
    latents: Tensor,
    diffusion: MultiViewDiffusion,
    cameras: Cameras,
    plan: SIRPlan,
    times: IterationTimes | None,
    seed: int,
    k: int,
    *,
    sampler: Sampler | None = None,
    conditioning: Conditioning | None = None,
    check: Hook | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample noised latents back with guidance (Eq. 10; Algorithm 1 line 6).

    Args:
        latents: [V,C,h,w] of ``forward_views``.
        times: None samples from the end of the grid.
        sampler: in place of the plan's.
        conditioning: of ``diffusion.condition(cameras)``, when the caller has it already.
        check: called before every network evaluation.

    Returns:
        Clean latents [V,C,h,w] and their pictures [V,S,S,3].

    Raises:
        InputError: the model does not allow that many views.
        NumericalError: pictures or latents are not finite; the message names iteration and stage.
    """
    diffusion.view_count.check(len(cameras))
    conditioning = diffusion.condition(cameras) if conditioning is None else conditioning

    def guided(x: Tensor, t: int) -> Tensor:
        return diffusion.eps(x, t, conditioning, plan.guidance_scale)

    sampler = sampler or get_sampler(plan.sampler, plan.eta)
    start = plan.grid()[-1] if times is None else times.t2
    # its own generator: the draws do not depend on whether the forward process ran in the same call
    draw = generator(seed, k, "sampler")
    clean = sampler(guided, latents, start, plan.discretization, diffusion.alphas_cumprod, draw, check)
    images = diffusion.decode(clean)
    if not bool(torch.isfinite(images).all()):
        raise NumericalError(f"Refinement gave pictures that are not finite at iteration {k}; try float32 or another seed.")
    return clean, images


@torch.no_grad()
def refine_views(
    field: Field,
    diffusion: MultiViewDiffusion,
    cameras: Cameras,
    plan: SIRPlan,
    times: IterationTimes | None,
    seed: int,
    k: int,
    *,
    sampler: Sampler | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> RefinedViews:
    """Render, take the pictures through the forward process and sample them back (Eq. 7, 9, 10; Algorithm 1 lines 4 to 6).

    Args:
        times: t1 and t2 of this iteration; None samples from pure noise, which initialises θ0.
        sampler: in place of the plan's.

    Raises:
        InputError: the model does not allow that many views.
        NumericalError: pictures or latents are not finite; the message names iteration and stage.
    """
    diffusion.view_count.check(len(cameras))
    before = diffusion.evaluations
    run = {
        "conditioning": diffusion.condition(cameras),
        "check": hooks.counted("refine", plan.discretization if times is None else times.calls),
    }
    images = None if times is None else render_views(field, cameras, plan).rgb
    latents = forward_views(images, diffusion, cameras, plan, times, seed, k, **run)
    clean, images = denoise_views(latents, diffusion, cameras, plan, times, seed, k, sampler=sampler, **run)
    return RefinedViews(clean, images, diffusion.evaluations - before)


def fit_views(
    field: Field,
    diffusion: MultiViewDiffusion,
    cameras: Cameras,
    images: Tensor,
    plan: SIRPlan,
    steps: int,
    *,
    k: int | None = None,
    latents: Tensor | None = None,
    reference: Reference | None = None,
    check: Hook | None = None,
) -> Reconstruction:
    """Fit the field to refined pictures (Eq. 8; Algorithm 1 lines 7 to 10), at the cameras' size and on the plan's background.

    Args:
        images: [V,S,S,3], brought to the cameras' size.
        steps: I.
        k: of this iteration, -1 for the initialisation; density control then knows how much of the run is left.
        latents: [V,C,h,w] of the pictures; needed when the plan's loss is latent (Eq. 11): the renders are then brought to the
            model's size and encoded.
        reference: the picture of image-to-3D, looked at as far as the plan weighs it.

    Raises:
        NumericalError: the loss is not finite.
    """
    targets = resize(images, cameras.width)
    if plan.loss_space == "latent":
        targets = LatentTargets(latents, lambda rgb: diffusion.encode(resize(rgb, diffusion.image_size)))
    view = reference_view(reference, plan, cameras.width)
    if view is not None and plan.background == "learned":
        view = view.on_any_background()
    background = plan_background(plan, field.device)
    after = None if k is None else max(plan.iterations - 1 - k, 0) * plan.steps
    return reconstruct(
        field, cameras, targets, steps, norm=plan.loss, reference=view, background=background, after=after, check=check
    )
