"""Score distillation sampling, the baselines that SIR is compared with (Eq. 5 and its data-prediction form, Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from .cameras import concatenate, sample_orbit
from .diffusion.ddim import add_noise, predict_x0
from .diffusion.protocol import MultiViewDiffusion
from .errors import InputError, NumericalError
from .fields.protocol import Field
from .losses import ReferenceView, reconstruction_loss
from .schedule import SIRPlan
from .seeds import generator
from .sir import Hooks

Form = Literal["noise", "pixels"]


@dataclass(frozen=True)
class SDSSettings:
    """How the baseline optimises.

    Attributes:
        steps: updates, one diffusion call each.
        form: ``"noise"`` is Eq. 5 in latent space; ``"pixels"`` is the data-prediction form of Eq. 6 with the one-step
            prediction decoded to pixels, whose failure Fig. 11 shows.
        guidance: classifier-free guidance; SDS usually needs more than sampling does.
        t_range: lowest and highest time, as fractions of T, drawn uniformly (threestudio's range).
        weight: factor on the noise form's gradient, to bring it to the scale of the sum-type reconstruction loss.
        report_every: updates between two yielded states.
    """

    steps: int = 500
    form: Form = "noise"
    guidance: float = 3.0
    t_range: tuple[float, float] = (0.02, 0.98)
    weight: float = 1.0
    report_every: int = 50

    def __post_init__(self):
        if self.form not in ("noise", "pixels"):
            raise InputError(f"The SDS form must be 'noise' or 'pixels', got {self.form!r}.")
        if self.steps < 1 or self.report_every < 1:
            raise InputError(f"SDS needs at least 1 step and 1 between reports, got {self.steps} and {self.report_every}.")
        low, high = self.t_range
        if not 0 < low <= high < 1:
            raise InputError(f"t_range must satisfy 0 < low <= high < 1, got {self.t_range}.")


@dataclass(frozen=True)
class SDSState:
    """The field after ``step`` updates and the network evaluations so far."""

    step: int
    field: Field
    evaluations: int


def sds_steps(
    field: Field,
    diffusion: MultiViewDiffusion,
    plan: SIRPlan,
    settings: SDSSettings,
    seed: int,
    *,
    first: int = 0,
    reference: ReferenceView | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> Iterator[SDSState]:
    """Optimise a field by SDS with the cameras of a SIR plan; yields a state every ``report_every`` updates and at the end.

    Args:
        first: number of the first update's draws; the updates behind a field make a continued run equal one long run.

    Raises:
        InputError: the model does not allow the plan's views.
        NumericalError: the loss is not finite; the message names the step.
    """
    diffusion.view_count.check(plan.views)
    reference = None if reference is None else reference.to(diffusion.device)
    hook = hooks.counted("sds", settings.steps)
    done = 0
    while done < settings.steps:
        block = min(settings.report_every, settings.steps - done)
        with torch.inference_mode(False), torch.enable_grad():
            optimizer = field.optimizer()
            for step in range(done, done + block):
                hook()
                _update(optimizer, diffusion, plan, settings, reference, seed, first + step)
            field = optimizer.finish()
        done += block
        yield SDSState(done, field, diffusion.evaluations)


def _update(optimizer, diffusion, plan, settings, reference, seed, step) -> None:
    draw = generator(seed, step, "sds")
    cameras = sample_orbit(plan.views, plan.elevation_range, plan.radius, draw, plan.fov_y, diffusion.image_size)
    total = len(diffusion.alphas_cumprod)
    low, high = (int(fraction * total) for fraction in settings.t_range)
    t = int(torch.randint(low, high + 1, (), generator=draw))
    render = optimizer.render(cameras if reference is None else concatenate([cameras, reference.cameras]))
    views = len(cameras)
    loss = _distillation_loss(render.rgb[:views], diffusion, cameras, t, settings, draw)
    if reference is not None:
        loss = loss + reference.loss(render.rgb[views:], render.alpha[views:])
    if not bool(torch.isfinite(loss.detach())):
        raise NumericalError(f"The SDS loss is not finite at step {step}, t = {t}.")
    optimizer.step(loss, render)


def _distillation_loss(rgb, diffusion, cameras, t, settings, draw):
    """A scalar whose gradient with respect to the renders is Eq. 5 (or Eq. 6 through the decoder), per view."""
    conditioning = diffusion.condition(cameras)
    alphas_cumprod = diffusion.alphas_cumprod
    latents = diffusion.encode(rgb)
    with torch.no_grad():
        noise = torch.randn(latents.shape, generator=draw).to(latents.device)
        noisy = add_noise(latents.detach(), t, noise, alphas_cumprod)
        eps = diffusion.eps(noisy, t, conditioning, settings.guidance)
        if settings.form == "pixels":
            predicted = diffusion.decode(predict_x0(noisy, eps, t, alphas_cumprod))
        else:
            # w(t) = σ_t², threestudio's weighting
            gradient = settings.weight * float(1 - alphas_cumprod[t]) * (eps - noise)
    if settings.form == "pixels":
        return reconstruction_loss(rgb, predicted, "l2")  # Eq. 6 is the gradient of a squared error
    return (gradient * latents).sum() / len(rgb)
