"""Score distillation sampling, the baseline."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from ..microdreamer_core.cameras import turntable
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.protocol import WHITE, Field
from ..microdreamer_core.schedule import SIRPlan
from ..microdreamer_core.sds import Form, SDSSettings, sds_steps
from ..microdreamer_core.sir import INITIALISATION, Hooks, reference_view
from . import types
from .compat import ProgressBar, interrupt_check, io, schema
from .preview import PREVIEW_SIDE, captioned
from .types import Conditioned, FieldState, core_call, expect

_PREVIEWS = 10


class SDSSteps(io.ComfyNode):
    """Eq. 5 and 6."""

    TITLE = "SDS Steps"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerSDSSteps",
            aliases=("score distillation", "dreamfusion", "dreamgaussian", "baseline"),
            display_name=cls.TITLE,
            category="MicroDreamer/Baseline",
            description="Optimises the field by score distillation (Eq. 5), or by its data-prediction form in pixels (Eq. 6): "
            "the baselines that SIR is compared with.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="Where to start; it brings the seed."),
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Plan.Input("plan", tooltip="Views, elevations, distance and the reference's weights; no noise levels."),
                io.Int.Input(
                    "steps", default=500, min=1, max=100_000, tooltip="Updates, one call of the network for all views each."
                ),
                io.Combo.Input(
                    "form",
                    options=list(get_args(Form)),
                    default="noise",
                    tooltip="noise: Eq. 5 in latent space. pixels: Eq. 6, the one-step prediction decoded to pictures.",
                ),
                io.Float.Input(
                    "guidance",
                    default=3.0,
                    min=0.0,
                    max=200.0,
                    step=0.5,
                    tooltip="Classifier-free guidance; SDS usually needs more than sampling does.",
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
                    tooltip="Factor on the gradient of the noise form, against the reference's losses.",
                ),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field; it counts as initialised."),
                io.Image.Output(id="sheet_out", display_name="sheet", tooltip="The field from all around."),
                io.String.Output(id="report_out", display_name="report", tooltip="Steps, evaluations, seconds."),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field, condition, plan, steps=500, form="noise", guidance=3.0, t_min=0.02, t_max=0.98, weight=1.0):
        state, plan = expect(field, FieldState, "field"), expect(plan, SIRPlan, "plan")
        conditioned = expect(condition, Conditioned, "condition")
        if t_min > t_max:
            raise InputError(f"t_min must not exceed t_max, got {t_min} and {t_max}; swap them.")
        diffusion = conditioned.ready()
        settings = SDSSettings(steps, form, guidance, (t_min, t_max), weight, report_every=max(1, steps // _PREVIEWS))
        bar, begin = ProgressBar(steps), time.perf_counter()
        hooks = Hooks(check=interrupt_check, progress=lambda _, done, total: bar.update_absolute(done, total))
        view = reference_view(conditioned.reference, plan, diffusion.image_size)
        for done in sds_steps(
            state.field, diffusion, plan, settings, state.seed, first=state.field.step, reference=view, hooks=hooks
        ):
            sheet = around(done.field, plan, diffusion.image_size)
            caption = f"SDS {done.step}/{steps}  {done.evaluations} evaluations"
            bar.update_absolute(done.step, steps, ("JPEG", captioned(sheet.numpy(), caption), PREVIEW_SIDE))
        report = (
            f"SDS, form {form}: {steps} steps on {plan.views} views, t {t_min:g} to {t_max:g}, guidance {guidance:g}; "
            f"{done.field.summary()}, {done.evaluations} evaluations, {time.perf_counter() - begin:.1f} s"
        )
        after = replace(state, field=done.field, k=INITIALISATION if state.k is None else state.k)
        return io.NodeOutput(after, sheet[None], report)


def around(field: Field, plan: SIRPlan, size: int) -> Tensor:
    """[H, V W, 3]: the field at eye level from all around, starting in front."""
    with torch.no_grad():
        renders = field.render(turntable(plan.views, 0.0, plan.radius, plan.fov_y, size), WHITE).rgb
    return torch.cat(list(renders.cpu()), 1).clamp(0, 1)


NODES = (SDSSteps,)
