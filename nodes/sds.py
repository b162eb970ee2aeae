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
from ..microdreamer_core.sir.sds import SDS_PRESETS, Form, SDSSettings, get_sds, sds_steps
from ..microdreamer_core.sir.stages import reference_view
from ..microdreamer_core.sir.step import INITIALISATION
from . import types
from .compat import ProgressBar, interrupt_check, io, schema
from .preview import PREVIEW_SIDE, add_caption
from .types import Conditioned, FieldState, core_call, expect

CUSTOM = "custom"
"""The preset that uses the node's own widgets."""

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
                    "steps", default=500, min=1, max=100_000, tooltip="Updates, each with one network call for all views."
                ),
                io.Combo.Input(
                    "form",
                    options=list(get_args(Form)),
                    default="noise",
                    tooltip="noise: Eq. 5 in latent space. data: Eq. 6 in latent space, weight 1. pixels: Eq. 6 in pixels.",
                ),
                io.Float.Input(
                    "guidance",
                    default=3.0,
                    min=0.0,
                    max=200.0,
                    step=0.5,
                    tooltip="Classifier-free guidance; SDS usually needs more than sampling.",
                ),
                io.Float.Input(
                    "t_min", default=0.02, min=0.001, max=0.999, step=0.01, tooltip="Lowest noise level, as a share of T."
                ),
                io.Float.Input(
                    "t_max", default=0.98, min=0.001, max=0.999, step=0.01, tooltip="Highest noise level, as a share of T."
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Factor on the distillation's gradient, relative to the reference's losses.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM, *SDS_PRESETS],
                    default=CUSTOM,
                    tooltip="custom: form, guidance, times and weight as above. Others replace these; steps is always used.",
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
    @core_call
    def execute(
        cls,
        field: FieldState,
        condition: Conditioned,
        plan: SIRPlan,
        steps: int = 500,
        form: str = "noise",
        guidance: float = 3.0,
        t_min: float = 0.02,
        t_max: float = 0.98,
        weight: float = 1.0,
        preset: str = CUSTOM,
    ) -> io.NodeOutput:
        state, plan = expect(field, FieldState, "field"), expect(plan, SIRPlan, "plan")
        conditioned = expect(condition, Conditioned, "condition")
        own = {"form": form, "guidance_scale": guidance, "t_range": (t_min, t_max), "weight": weight}
        settings = chosen(preset, steps, own)
        diffusion = conditioned.ready()
        bar, begin = ProgressBar(steps), time.perf_counter()
        hooks = Hooks(check=interrupt_check, progress=lambda _, done, total: bar.update_absolute(done, total))
        view = reference_view(conditioned.reference, plan, diffusion.image_size)
        done = sheet = None
        for done in sds_steps(
            state.field, diffusion, plan, settings, state.seed, first=state.field.step, reference=view, hooks=hooks
        ):
            sheet = around(done.field, plan, diffusion.image_size)
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


def chosen(preset: str, steps: int, own: dict[str, Any]) -> SDSSettings:
    """Return the settings of a preset, or of the widgets' ``own`` values.

    Raises:
        InputError: no such preset, or values outside their ranges.
    """
    every = max(1, steps // _PREVIEWS)
    if preset != CUSTOM:
        return get_sds(preset, steps=steps, report_every=every)
    low, high = own["t_range"]
    if low > high:
        raise InputError(f"t_min must not exceed t_max, got {low} and {high}; swap them.")
    return SDSSettings(CUSTOM, steps, **own, report_every=every)


def _times(settings: SDSSettings) -> str:
    low, high = settings.t_range
    text = f"t {low:g} to {high:g}"
    if settings.times == "falling":
        return f"t falling within {low:g} to {high:g}"
    return text if settings.t_range_end is None else "{}, later {:g} to {:g}".format(text, *settings.t_range_end)


def around(field: Field, plan: SIRPlan, size: int) -> Tensor:
    """Render the field at eye level from all around, starting at the front; [H, V W, 3]."""
    with torch.no_grad():
        renders = field.render(turntable(plan.views, 0.0, plan.radius, plan.fov_y, size), WHITE).rgb
    return torch.cat(list(renders.cpu()), 1).clamp(0, 1)


NODES = (SDSSteps,)
