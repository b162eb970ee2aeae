"""Score distillation sampling, the baseline."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from ..microdreamer_core.cameras import turntable
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.protocol import WHITE, Field
from ..microdreamer_core.sir.hooks import Hooks
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.sds import SDS_PRESETS, Form, SDSSettings, Times, get_sds, sds_steps
from ..microdreamer_core.sir.stages import reference_view
from ..microdreamer_core.sir.step import INITIALISATION
from . import types
from .compat import ProgressBar, interrupt_check, io, schema
from .preview import PREVIEW_SIDE, add_caption
from .types import Conditioned, FieldState, core_call, expect
from .widgets import drop_open

CUSTOM = "custom"
"""The preset that leaves the widgets as they are."""

_DEFAULT = SDSSettings(CUSTOM)
_PREVIEWS = 10


class SDSSteps(io.ComfyNode):
    """Optimise a field by score distillation, the baseline (Eq. 5, or Eq. 6 in pixels)."""

    TITLE = "SDS Steps"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSDSSteps",
            aliases=("score distillation", "dreamfusion", "dreamgaussian", "baseline"),
            display_name=cls.TITLE,
            category="MicroDreamer/Baseline",
            description="Optimises the field by score distillation (Eq. 5), or by its data-prediction form in pixels (Eq. 6): "
            "the baselines that SIR is compared with.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The initial field; its seed is used."),
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Plan.Input("plan", tooltip="Views, elevations, distance and the reference's weights; no noise levels."),
                io.Int.Input(
                    "steps",
                    optional=True,
                    default=500,
                    min=1,
                    max=100_000,
                    tooltip="Updates, each with one network call for all views.",
                ),
                io.Combo.Input(
                    "form",
                    optional=True,
                    options=list(get_args(Form)),
                    default=_DEFAULT.form,
                    tooltip="noise: Eq. 5 in latent space. data: Eq. 6 in latent space, weight 1. pixels: Eq. 6 in pixels.",
                ),
                _number("guidance", 0.0, 200.0, 0.5, "Classifier-free guidance; SDS usually needs more than sampling."),
                _number(
                    "t_min", 0.001, 0.999, 0.01, "Lowest noise level, as a share of T; at the start, if a preset moves it."
                ),
                _number(
                    "t_max", 0.001, 0.999, 0.01, "Highest noise level, as a share of T; at the start, if a preset moves it."
                ),
                _number(
                    "weight", 0.0, 1000.0, 0.1, "Factor on the distillation's gradient, relative to the reference's losses."
                ),
                io.Combo.Input(
                    "preset",
                    optional=True,
                    options=[CUSTOM, *SDS_PRESETS],
                    default=CUSTOM,
                    tooltip="A known baseline, whose numbers fill the other widgets except steps; custom leaves them.",
                ),
                io.Combo.Input(
                    "times",
                    optional=True,
                    options=list(get_args(Times)),
                    default=_DEFAULT.times,
                    tooltip="random: uniform between t_min and t_max. falling: from the highest to the lowest over the steps.",
                ),
            ],
            outputs=[
                types.FieldSocket.Output(
                    id="field_out", display_name="field", tooltip="The optimised field; it counts as initialised."
                ),
                io.Image.Output(id="sheet_out", display_name="sheet", tooltip="The field from all around."),
                io.String.Output(id="report_out", display_name="report", tooltip="Steps, evaluations, seconds."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        form: Any = None,
        guidance: Any = None,
        t_min: Any = None,
        t_max: Any = None,
        weight: Any = None,
        times: Any = None,
    ) -> bool:
        """Leave ranges to the settings: ComfyUI does not check inputs named here, so that widgets may be left open."""
        return True

    @classmethod
    @core_call
    def execute(
        cls,
        field: FieldState,
        condition: Conditioned,
        plan: SIRPlan,
        steps: int = 500,
        form: str | None = None,
        guidance: float | None = None,
        t_min: float | None = None,
        t_max: float | None = None,
        weight: float | None = None,
        preset: str = CUSTOM,
        times: str | None = None,
    ) -> io.NodeOutput:
        state, plan = expect(field, FieldState, "field"), expect(plan, SIRPlan, "plan")
        conditioned = expect(condition, Conditioned, "condition")
        settings = choose_settings(
            preset, steps, form=form, guidance=guidance, t_min=t_min, t_max=t_max, weight=weight, times=times
        )
        diffusion = conditioned.ready()
        bar, begin = ProgressBar(steps), time.perf_counter()
        hooks = Hooks(check=interrupt_check, progress=lambda _, done, total: bar.update_absolute(done, total))
        view = reference_view(conditioned.reference, plan, diffusion.image_size)
        done = sheet = None
        for done in sds_steps(
            state.field, diffusion, plan, settings, state.seed, first=state.field.step, reference=view, hooks=hooks
        ):
            sheet = render_around(done.field, plan, diffusion.image_size)
            caption = f"SDS {done.step}/{steps}  {done.evaluations} evaluations"
            bar.update_absolute(done.step, steps, ("JPEG", add_caption(sheet.numpy(), caption), PREVIEW_SIDE))
        if done is None or sheet is None:
            raise InputError(f"All {settings.steps} steps are done for this field; raise 'steps'.")
        shares = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in done.seconds.items())
        report = (
            f"SDS, form {settings.form}: {steps} steps on {plan.views} views, {_times(settings)}, guidance "
            f"{settings.guidance_scale:g}; {done.field.summary()}, {done.evaluations} evaluations, "
            f"{time.perf_counter() - begin:.1f} s\n{shares}"
        )
        after = replace(state, field=done.field, k=INITIALISATION if state.k is None else state.k)
        return io.NodeOutput(after, sheet[None], report)


def choose_settings(preset: str, steps: int, **widgets: Any) -> SDSSettings:
    """Return a preset's settings with the widgets that were given in place of its own.

    Raises:
        InputError: no such preset, or values outside their ranges.
    """
    base = _DEFAULT if preset == CUSTOM else get_sds(preset)
    values = drop_open(**widgets)
    if preset != CUSTOM and "times" not in values and len(values) == len(widgets) - 1:
        values = {}  # a graph of an earlier version, which had no times, and whose preset replaced all other widgets
    values = {**widget_values(base), **values}
    low, high, guidance = (values.pop(name) for name in ("t_min", "t_max", "guidance"))
    if low > high:
        raise InputError(f"t_min must not exceed t_max, got {low} and {high}; swap them.")
    rescale = base.rescale if values["form"] == "data" else 0.0
    return replace(
        base,
        steps=steps,
        report_every=max(1, steps // _PREVIEWS),
        guidance_scale=guidance,
        t_range=(low, high),
        rescale=rescale,
        **values,
    )


def widget_values(settings: SDSSettings) -> dict[str, Any]:
    """Return the values of the widgets that a preset fills."""
    (low, high), names = settings.t_range, ("form", "weight", "times")
    return {
        "guidance": settings.guidance_scale,
        "t_min": low,
        "t_max": high,
        **{name: getattr(settings, name) for name in names},
    }


def preset_widgets() -> dict[str, dict[str, Any]]:
    """Return the widget values of each preset, for the frontend: preset -> widget -> value."""
    return {CUSTOM: {}, **{name: widget_values(settings) for name, settings in SDS_PRESETS.items()}}


def _number(name: str, low: float, high: float, step: float, tooltip: str) -> io.Input:
    """A widget that may be left out; it shows the default's value."""
    value = widget_values(_DEFAULT)[name]
    return io.Float.Input(name, optional=True, default=value, min=low, max=high, step=step, tooltip=tooltip)


def _times(settings: SDSSettings) -> str:
    low, high = settings.t_range
    text = f"t {low:g} to {high:g}"
    if settings.times == "falling":
        return f"t falling within {low:g} to {high:g}"
    return text if settings.t_range_end is None else "{}, later {:g} to {:g}".format(text, *settings.t_range_end)


def render_around(field: Field, plan: SIRPlan, size: int) -> Tensor:
    """Render the field at eye level from all around, starting at the front; [H, V W, 3]."""
    with torch.no_grad():
        renders = field.render(turntable(plan.views, 0.0, plan.radius, plan.fov_y, size), WHITE).rgb
    return torch.cat(list(renders.cpu()), 1).clamp(0, 1)


NODES = (SDSSteps,)
