"""Score distillation sampling, the baseline of SIR (Eq. 5 and its data-prediction form, Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import field as default
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..cameras import Cameras, concatenate, sample_orbit
from ..diffusion.ddim import add_noise, guide, predict_noise
from ..diffusion.protocol import Conditioning, MultiViewDiffusion, condition_model
from ..errors import InputError, NumericalError
from ..fields.protocol import Field, FieldOptimizer
from ..reference import ReferenceView
from ..render.protocol import Render
from ..util.clock import Clock
from ..util.images import resize
from ..util.seeds import generator
from ..util.settings import choose_preset
from .hooks import Hooks
from .plan import SIRPlan
from .reconstruct import reference_view_loss
from .stages import plan_background
from .step import model_times

Form = Literal["noise", "data", "pixels"]
Times = Literal["random", "falling"]

COMPONENTS = ("render", "encode", "diffusion", "decode", "update")
"""The components whose time is measured (Fig. 4); ``encode`` includes the encoder's backward pass."""


@dataclass(frozen=True)
class SDSSettings:
    """Settings of the SDS baseline.

    Attributes:
        name: the preset's, or a name of your choice.
        steps: updates, one diffusion call each.
        form: ``"noise"`` is Eq. 5 in latent space with w(t) = σ_t², threestudio's; ``"data"`` its data-prediction form Eq. 6 in
            latent space with w(t) α_t / σ_t = 1, threestudio's for multi-view models; ``"pixels"`` is Eq. 6 with
            w(t) = σ_t² and the one-step prediction decoded to pixels, whose failure Fig. 11 shows.
        guidance_scale: classifier-free guidance; SDS usually needs more than sampling does.
        rescale: guidance rescale, 0..1 (arXiv 2305.08891): brings the guided prediction's standard deviation back towards the
            conditional one's; for the data form only.
        times: ``"random"`` samples t uniformly from the range, ``"falling"`` goes linearly from T to 0, clamped to the range.
        t_range: lowest and highest time, as fractions of T.
        t_range_end: the range at the end of annealing; None for a constant range.
        anneal: start and end of annealing, as fractions of the steps.
        weight: factor of the distillation gradient, relative to the sum-type losses of the reference.
        reference_ramp: whether the reference's weight grows from 0 to 1 over the steps.
        report_every: updates between two yielded states.

    Raises:
        InputError: a value is out of range.
    """

    name: str = "sds"
    steps: int = 500
    form: Form = "noise"
    guidance_scale: float = 3.0
    rescale: float = 0.0
    times: Times = "random"
    t_range: tuple[float, float] = (0.02, 0.98)
    t_range_end: tuple[float, float] | None = None
    anneal: tuple[float, float] = (0.0, 1.0)
    weight: float = 1.0
    reference_ramp: bool = False
    report_every: int = 50

    def __post_init__(self):
        for name, allowed in (("form", get_args(Form)), ("times", get_args(Times))):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(repr, allowed))
                raise InputError(f"The SDS {name} must be one of {choices}, got {getattr(self, name)!r}.")
        if self.steps < 1 or self.report_every < 1:
            raise InputError(f"SDS needs at least 1 step and 1 between reports, got {self.steps} and {self.report_every}.")
        for name in ("t_range", "t_range_end"):
            low, high = getattr(self, name) or (0.5, 0.5)
            if not 0 < low <= high < 1:
                raise InputError(f"{name} must satisfy 0 < low <= high < 1, got {getattr(self, name)}.")
        if not 0 <= self.anneal[0] < self.anneal[1] <= 1:
            raise InputError(f"anneal must satisfy 0 <= begin < end <= 1, got {self.anneal}.")
        if not 0 <= self.rescale <= 1 or (self.rescale and self.form != "data"):
            raise InputError(f"rescale must lie in 0..1 and is for form 'data' alone, got {self.rescale} for {self.form!r}.")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SDSSettings:
        """Restore settings from the JSON of ``dataclasses.asdict``."""
        known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**known)

    def range_at(self, step: int) -> tuple[float, float]:
        """Return the lowest and highest time of an update, as fractions of T."""
        if self.t_range_end is None:
            return self.t_range
        begin, end = self.anneal
        moved = min(max((step / self.steps - begin) / (end - begin), 0.0), 1.0)
        low, high = (a + moved * (b - a) for a, b in zip(self.t_range, self.t_range_end, strict=True))
        return low, high

    def time(self, step: int, total: int, rng: torch.Generator) -> int:
        """Sample the time t of an update.

        Args:
            step: 0 .. steps - 1. total: T.
        """
        low, high = (int(fraction * total) for fraction in self.range_at(step))
        if self.times == "falling":
            return min(max(round((1 - (step + 1) / self.steps) * total), low), high)
        return int(torch.randint(low, high + 1, (), generator=rng))


# Times, guidance and forms are from the configurations of threestudio (zero123, stable-zero123, mvdream-sd21), of ImageDream's
# fork of it, and of DreamGaussian for images. Cameras, sizes and regularisers are the plan's and the field's, not theirs.
_MULTI_VIEW = SDSSettings(
    form="data", steps=10_000, t_range=(0.98, 0.98), t_range_end=(0.02, 0.5), anneal=(0.0, 0.8), report_every=100
)
_PRESETS = (
    SDSSettings(),
    replace(_MULTI_VIEW, name="mvdream", guidance_scale=50.0, rescale=0.5),
    replace(_MULTI_VIEW, name="imagedream", steps=12_500, anneal=(0.0, 0.64), guidance_scale=5.0, rescale=0.2),
    SDSSettings("zero123", steps=600, t_range=(0.4, 0.85), t_range_end=(0.2, 0.5), anneal=(0.0, 1 / 3)),
    SDSSettings("stable-zero123", steps=600, t_range=(0.7, 0.98), t_range_end=(0.3, 0.8), anneal=(1 / 12, 1 / 3)),
    SDSSettings("dreamgaussian", times="falling", guidance_scale=5.0, reference_ramp=True),
    SDSSettings("pixels", form="pixels"),
)
SDS_PRESETS: dict[str, SDSSettings] = {settings.name: settings for settings in _PRESETS}
"""Baselines by name: plain SDS, those of the multi-view models, DreamGaussian's, and Eq. 6 in pixels (Fig. 11)."""


def get_sds(name: str, **overrides: Any) -> SDSSettings:
    """Return a preset, with some of its fields changed.

    >>> get_sds("mvdream", steps=500).guidance_scale
    50.0

    Raises:
        InputError: the preset or a field is unknown, or a value is out of range.
    """
    return choose_preset(SDS_PRESETS, name, "SDS preset", overrides)


@dataclass(frozen=True)
class SDSState:
    """The field after ``step`` updates, the network evaluations so far, and the seconds so far by ``COMPONENTS``."""

    step: int
    field: Field
    evaluations: int
    seconds: dict[str, float] = default(default_factory=dict)


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
        first: index of the first update for its random numbers. Passing the number of earlier updates makes a continued run
            equal one long run, unless times are annealed or the reference ramps: those schedules restart.
        reference: its view, fitted beside the distillation.

    Raises:
        InputError: the model does not allow the plan's number of views.
        NumericalError: the loss is not finite; the message names the step.
    """
    diffusion.view_count.check(plan.views)
    reference = None if reference is None else reference.to(diffusion.device)
    if reference is not None and plan.background == "learned":
        reference = reference.on_any_background()
    hook = hooks.count("sds", settings.steps)
    clock = _Components(diffusion.device)
    done = 0
    while done < settings.steps:
        block = min(settings.report_every, settings.steps - done)
        with torch.inference_mode(False), torch.enable_grad():
            optimizer = field.optimizer()
            for step in range(done, done + block):
                hook()
                _update(optimizer, diffusion, plan, settings, reference, step, generator(seed, first + step, "sds"), clock)
            field = optimizer.finish()
        done += block
        yield SDSState(done, field, diffusion.evaluations, dict(clock.seconds))


class _Components(Clock):
    """Seconds by component, synchronised with the GPU after each."""

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with super().stage(name):
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)


def _render_size(plan: SIRPlan, step: int, steps: int, model_size: int) -> int:
    """Return the render size of an update: the plan's resolutions in equal shares of the steps, or the model's size."""
    if not plan.resolutions:
        return model_size
    return min(plan.resolutions[step * len(plan.resolutions) // steps], model_size)


def _update(
    optimizer: FieldOptimizer[Field],
    diffusion: MultiViewDiffusion,
    plan: SIRPlan,
    settings: SDSSettings,
    reference: ReferenceView | None,
    step: int,
    rng: torch.Generator,
    clock: Clock,
) -> None:
    size = _render_size(plan, step, settings.steps, diffusion.image_size)
    elevation = 0.0 if reference is None else float(reference.cameras.orbit()[0][0])
    cameras = sample_orbit(plan.views, plan.elevations(elevation), plan.radius, rng, plan.fov_y, size)
    (t,) = model_times(plan, [settings.time(step, len(diffusion.process), rng)], diffusion)
    views = len(cameras)
    reference = None if reference is None else _resize_reference(reference, size)
    background = plan_background(plan, diffusion.device)
    with clock.stage("render"):
        seen = cameras if reference is None else concatenate([cameras, reference.cameras])
        render = optimizer.render(seen, background)
    current = partial(optimizer.render, background=background)
    loss = _distillation_loss(render.rgb[:views], diffusion, cameras, t, settings, rng, clock, current)
    with clock.stage("update"):
        if reference is not None:
            share = (step + 1) / settings.steps if settings.reference_ramp else 1.0
            loss = loss + share * reference_view_loss(reference, optimizer, render, seen, background)
        if not bool(torch.isfinite(loss.detach())):
            raise NumericalError(f"The SDS loss is not finite at step {step}, t = {t}.")
        optimizer.step(loss, render)


def _resize_reference(reference: ReferenceView, size: int) -> ReferenceView:
    if reference.cameras.width == size:
        return reference
    image, alpha = resize(reference.image, size), resize(reference.alpha, size)
    return replace(reference, cameras=reference.cameras.resize(size), image=image, alpha=alpha)


def _distillation_loss(
    rgb: Tensor,
    diffusion: MultiViewDiffusion,
    cameras: Cameras,
    t: int,
    settings: SDSSettings,
    rng: torch.Generator,
    clock: Clock,
    render: Callable[[Cameras], Render] | None = None,
) -> Tensor:
    """Return a scalar whose gradient with respect to the renders is that of Eq. 5 or 6, per view.

    The backward pass of the encoder runs here, so that it is timed apart from the renderer's.
    """
    leaf = rgb.detach().requires_grad_()
    with clock.stage("encode"):
        sized = resize(leaf, diffusion.image_size)
        latents = diffusion.encode(sized)
    with torch.no_grad(), clock.stage("diffusion"):
        noise = torch.randn(latents.shape, generator=rng).to(latents.device)
        noisy = add_noise(latents.detach(), t, noise, diffusion.process)
        x0 = _guided_x0(noisy, t, diffusion, condition_model(diffusion, cameras, render), settings)
    alpha, sigma = diffusion.process.alpha_sigma(t)
    if settings.form == "pixels":
        with torch.no_grad(), clock.stage("decode"):
            predicted = diffusion.decode(x0)
        gradient = alpha * sigma * (rgb.detach() - resize(predicted, rgb.shape[1]))  # w α / σ = α σ
    else:
        residual = latents.detach() - x0
        if settings.form == "noise":
            residual = sigma**2 * (predict_noise(noisy, x0, t, diffusion.process) - noise)
        with clock.stage("encode"):
            (gradient,) = torch.autograd.grad(latents, leaf, residual)
    return settings.weight * (gradient * rgb).sum() / len(rgb)


def _guided_x0(
    noisy: Tensor, t: int, diffusion: MultiViewDiffusion, conditioning: Conditioning, settings: SDSSettings
) -> Tensor:
    """Estimate x0 with guidance, its standard deviation over all views rescaled towards the conditional one's."""
    if not settings.rescale:
        return diffusion.denoised(noisy, t, conditioning, settings.guidance_scale)
    unconditional, plain = (diffusion.denoised(noisy, t, conditioning, branch) for branch in (0.0, 1.0))
    guided = guide(unconditional, plain, settings.guidance_scale)
    return guided * (1 - settings.rescale + settings.rescale * plain.std() / guided.std().clamp(min=1e-8))
