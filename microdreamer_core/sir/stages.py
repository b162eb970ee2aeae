"""The stages of one iteration of Algorithm 1: render, forward process, denoising, reconstruction.

Each stage samples from a generator derived from (seed, k, stage), so that a ComfyUI graph, which calls the stages one by one,
and :func:`.iterations.sir_iterations` give the same field.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cameras import orbit_cameras
from ..diffusion.protocol import HintedDiffusion
from ..diffusion.samplers import Sampler, get_sampler
from ..errors import InputError, NumericalError
from ..fields.protocol import WHITE, Field, FieldT
from ..reference import Reference, ReferenceView
from ..render.protocol import Render
from ..util import devices
from ..util.hooks import Hook
from ..util.images import resize, resize_by_height
from ..util.seeds import generator
from .color_fix import fix_colors
from .forward import forward_process
from .hooks import Hooks, Watch
from .plan import SIRPlan
from .reconstruct import LatentTargets, Reconstruction, reconstruct
from .step import Step


@dataclass(frozen=True)
class RefinedViews:
    """The result of refinement: latents [V,C,h,w], images [V,H,W,3], and the number of network evaluations."""

    latents: Tensor
    images: Tensor
    evaluations: int


def reference_view(reference: Reference | None, plan: SIRPlan, size: int | None = None) -> ReferenceView | None:
    """Make the front view that reconstruction fits beside its targets; None without a reference or if the plan's weights are 0.

    Args:
        size: pixels a side; the reference's own size when None.
    """
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


def plan_background(plan: SIRPlan, device: torch.device | str) -> Tensor | None:
    """Return the background of the plan's renders: white, or None for the field's own."""
    return None if plan.background == "learned" else WHITE.to(device)


def show_field(step: Step, field: Field) -> Step:
    """Return a step whose model sees renders of this field, if it looks at them; other steps as they are."""
    if not isinstance(step.diffusion, HintedDiffusion):
        return step
    return replace(step, render=lambda cameras: field.render(cameras, plan_background(step.plan, field.device)))


def render_views(step: Step, field: Field) -> Render:
    """Render g(θ, c) of Eq. 7: the step's cameras, on the plan's background."""
    return field.render(step.cameras, plan_background(step.plan, field.device))


@torch.no_grad()
def forward_views(step: Step, images: Tensor | None, *, check: Hook | None = None) -> Tensor:
    """Encode images and diffuse them to t2 (Eq. 9; Algorithm 1 line 5).

    Args:
        images: [V,H,W,3] in [0,1] of any size, resized to the model's by :func:`.util.images.resize_by_height`; unused in the
            initialisation, which gives pure noise.
        check: called before every network evaluation.

    Returns:
        [V,C,h,w] latents at t2.

    Raises:
        InputError: the model does not allow this number of views, or images are missing.
    """
    model, rng = step.model, generator(step.seed, step.k, "noise")
    if step.times is None:
        noise = torch.randn(len(step.cameras), *model.latent_shape, generator=rng)
        return devices.to_device_async(noise, model.device)
    if images is None:
        raise InputError(f"The forward process of iteration {step.k} needs images, got none; render the field first.")

    branch = 1.0 if step.plan.inversion_branch == "conditional" else 0.0

    def denoise(x: Tensor, t: int) -> Tensor:
        return model.denoised(x, t, step.conditioning, branch)

    latents = model.encode(resize_by_height(images.to(model.device), model.image_size, model.image_size))
    return forward_process(latents, denoise, step.inversion_path, step.plan, model.process, rng, check)


@torch.no_grad()
def denoise_views(
    step: Step, latents: Tensor, *, sampler: Sampler | None = None, check: Hook | None = None
) -> tuple[Tensor, Tensor]:
    """Denoise latents from t2 to 0 with guidance (Eq. 10; Algorithm 1 line 6).

    Args:
        latents: [V,C,h,w] from ``forward_views``.
        sampler: in place of the plan's.
        check: called before every network evaluation.

    Returns:
        Clean latents [V,C,h,w] and their images [V,S,S,3].

    Raises:
        InputError: the model does not allow this number of views.
        NumericalError: images or latents are not finite; the message names iteration and stage.
    """
    model, plan = step.model, step.plan

    def guided(x: Tensor, t: int) -> Tensor:
        return model.denoised(x, t, step.conditioning, plan.guidance_scale)

    sampler = sampler or get_sampler(plan.sampler, plan.eta)
    # not the generator of the forward process: samples do not depend on whether it ran in the same call
    rng = generator(step.seed, step.k, "sampler")
    clean = sampler(guided, latents, step.sampling_path, model.process, rng, check)
    images = model.decode(clean)
    if not bool(torch.isfinite(images).all()):
        raise NumericalError(f"Refinement gave images that are not finite at iteration {step.k}; try float32 or another seed.")
    return clean, images


@torch.no_grad()
def refine_views(
    step: Step,
    field: Field,
    *,
    sampler: Sampler | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> RefinedViews:
    """Render, diffuse and denoise (Eq. 7, 9, 10; Algorithm 1 lines 4 to 6); the initialisation samples from pure noise.

    Args:
        sampler: in place of the plan's.
        hooks: progress and cancellation.

    Raises:
        InputError: the model does not allow this number of views.
        NumericalError: images or latents are not finite; the message names iteration and stage.
    """
    step = show_field(step, field)
    before, check = step.model.evaluations, hooks.count("refine", step.calls)
    images = None if step.times is None else render_views(step, field).rgb
    latents = forward_views(step, images, check=check)
    clean, images = denoise_views(step, latents, sampler=sampler, check=check)
    return RefinedViews(clean, images, step.model.evaluations - before)


def fit_views(
    step: Step,
    field: FieldT,
    images: Tensor,
    updates: int | None = None,
    *,
    latents: Tensor | None = None,
    reference: Reference | None = None,
    check: Hook | None = None,
    watch: Watch | None = None,
) -> Reconstruction[FieldT]:
    """Fit the field to refined images (Eq. 8; Algorithm 1 lines 7 to 10), at the cameras' size and on the plan's background.

    A plan's colour fix keeps the broad colours of the field (``fix_colors``): on white, not in the initialisation, and not of
    a texture, which begins with colours that shall go.

    Args:
        field: that the images are refined renders of.
        images: [V,H,W,3], resized to the cameras' size by :func:`.util.images.resize_by_height`.
        updates: I; the plan's when None.
        latents: [V,C,h,w] of the images; required for a latent loss (Eq. 11), whose renders are resized to the model's size and
            encoded.
        reference: the user's image, with the plan's weights.
        check: called before every update; watch: after every update, as in ``reconstruct``.

    Raises:
        InputError: the loss is latent and there are no latents.
        NumericalError: the loss is not finite.
    """
    plan, cameras = step.plan, step.cameras
    targets: Tensor | LatentTargets = resize_by_height(images, cameras.height, cameras.width)
    if plan.loss_space == "latent":
        if latents is None:
            raise InputError("The plan's loss is latent, got no latents; give those of denoise_views.")
        model = step.model
        targets = LatentTargets(latents, lambda rgb: model.encode(resize(rgb, model.image_size)))
    elif _fixes_colors(step, field):
        with torch.no_grad():
            targets = fix_colors(targets, render_views(step, field), plan.color_fix)
    view = reference_view(reference, plan, cameras.height)
    if view is not None:
        view = view.of_width(cameras.width)
        view = view.on_any_background() if plan.background == "learned" else view
    return reconstruct(
        field,
        cameras,
        targets,
        step.updates if updates is None else updates,
        norm=plan.loss,
        reference=view,
        background=plan_background(plan, field.device),
        after=step.updates_after,
        check=check,
        watch=watch,
    )


def _fixes_colors(step: Step, field: Field) -> bool:
    on_white = step.plan.background == "white"
    return step.plan.color_fix > 0 and on_white and step.times is not None and field.kind != "texture"
