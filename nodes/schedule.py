"""The plan of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from ..microdreamer_core.sir.plan import Curve, Forward, SIRPlan, T1Rule
from ..microdreamer_core.sir.presets import PRESETS, get_plan
from ..microdreamer_core.util.vocabulary import SAMPLERS
from . import types
from .compat import io, schema
from .types import core_call, expect

_DEFAULT = PRESETS["embedded"]

_LEFT_OPEN = (None, -1, "preset")
"""Values of inputs that say nothing. Graphs of earlier versions hold -1 or "preset" where a number is the preset's; so do
widgets where the frontend cannot know the preset, because something is linked to it."""


class Plan(io.ComfyNode):
    """Choose the numbers of a run: those of a preset, or others in their place. An input that is absent is the preset's."""

    TITLE = "SIR Plan"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSIRPlan",
            aliases=("schedule", "steps", "preset", "MicroDreamer"),
            display_name=cls.TITLE,
            category="MicroDreamer/Schedule",
            description="How often to render, refine and reconstruct, and from which noise level: a preset of the paper's "
            "Table I, or your own numbers on top of it.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=_DEFAULT.name,
                    tooltip="Numbers that suit a model, filled in below; 'embedded' is for the checkpoint of the pack.",
                ),
                io.Int.Input(
                    "iterations",
                    optional=True,
                    default=_DEFAULT.iterations,
                    min=0,
                    max=10000,
                    tooltip="K: rounds of refinement; 0 leaves the initialisation.",
                ),
                io.Int.Input(
                    "steps",
                    optional=True,
                    default=_DEFAULT.steps,
                    min=1,
                    max=10000,
                    tooltip="I: reconstruction steps of a round.",
                ),
                io.Float.Input(
                    "t2_start",
                    optional=True,
                    default=_DEFAULT.t2_start,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level of the first round as a share of the whole diffusion.",
                ),
                io.Float.Input(
                    "t2_end",
                    optional=True,
                    default=_DEFAULT.t2_end,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level that the rounds fall towards, at most t2_start.",
                ),
                io.Combo.Input(
                    "forward",
                    optional=True,
                    options=list(get_args(Forward)),
                    default=_DEFAULT.forward,
                    tooltip="How pictures are noised: hybrid adds noise to t1 and inverts to t2 (Eq. 9), noise only adds, "
                    "invert only inverts.",
                ),
                io.Float.Input(
                    "eta",
                    optional=True,
                    default=_DEFAULT.eta,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="DDIM's η: 0 is deterministic, other samplers have none.",
                ),
                io.Float.Input(
                    "guidance",
                    optional=True,
                    default=_DEFAULT.guidance_scale,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance: how much the reference counts.",
                ),
            ],
            outputs=[
                types.Plan.Output(id="plan_out", display_name="plan", tooltip="The numbers of the run."),
                io.Int.Output(id="passes_out", display_name="passes", tooltip="K + 1: loop passes with the initialisation."),
                io.String.Output(
                    id="summary_out", display_name="summary", tooltip="The plan in words, with its network evaluations."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        iterations: Any = None,
        steps: Any = None,
        t2_start: Any = None,
        t2_end: Any = None,
        forward: Any = None,
        eta: Any = None,
        guidance: Any = None,
    ) -> bool:
        """Leave ranges to the plan: the host checks no input that is named here, so that -1 of earlier versions passes."""
        return True

    @classmethod
    @core_call
    def execute(
        cls,
        preset: str,
        iterations: int | None = None,
        steps: int | None = None,
        t2_start: float | None = None,
        t2_end: float | None = None,
        forward: str | None = None,
        eta: float | None = None,
        guidance: float | None = None,
    ) -> io.NodeOutput:
        overrides = _given(
            iterations=iterations,
            steps=steps,
            t2_start=t2_start,
            t2_end=t2_end,
            forward=forward,
            eta=eta,
            guidance_scale=guidance,
        )
        plan = get_plan(preset, **overrides)
        text = summary(plan)
        return io.NodeOutput(plan, plan.iterations + 1, text, ui={"text": [text]})


class PlanOptions(io.ComfyNode):
    """Change the rarer numbers of a plan. An input that is absent is the plan's."""

    TITLE = "SIR Plan Options"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSIRPlanOptions",
            aliases=("views", "eta", "loss"),
            display_name=cls.TITLE,
            category="MicroDreamer/Schedule",
            description="Changes the rarer numbers of a plan: views, discretisation, schedules, sampler, loss.",
            inputs=[
                types.Plan.Input("plan", tooltip="The plan to change."),
                io.Int.Input(
                    "views",
                    optional=True,
                    default=_DEFAULT.views,
                    min=1,
                    max=64,
                    tooltip="Cameras of a round.",
                ),
                io.Int.Input(
                    "discretization",
                    optional=True,
                    default=_DEFAULT.discretization,
                    min=1,
                    max=999,
                    tooltip="Steps of the sampler's full grid.",
                ),
                io.Int.Input(
                    "init_steps",
                    optional=True,
                    default=_DEFAULT.init_steps,
                    min=1,
                    max=10000,
                    tooltip="Steps of the initialisation.",
                ),
                io.Combo.Input(
                    "t2_curve",
                    optional=True,
                    options=list(get_args(Curve)),
                    default=_DEFAULT.t2_curve,
                    tooltip="How t2 goes from start to end (Fig. 12c).",
                ),
                io.Combo.Input(
                    "t1_rule",
                    optional=True,
                    options=list(get_args(T1Rule)),
                    default=_DEFAULT.t1_rule,
                    tooltip="t1 = 0.6 t2, or t1 = t2² / T.",
                ),
                io.Combo.Input(
                    "sampler",
                    optional=True,
                    options=list(SAMPLERS),
                    default=_DEFAULT.sampler,
                    tooltip="What samples back when no SAMPLER is linked.",
                ),
                io.Combo.Input(
                    "loss",
                    optional=True,
                    options=["l1", "l2"],
                    default=_DEFAULT.loss,
                    tooltip="Norm of the reconstruction loss.",
                ),
                io.Combo.Input(
                    "loss_space",
                    optional=True,
                    options=["pixel", "latent"],
                    default=_DEFAULT.loss_space,
                    tooltip="Compare pictures (Eq. 12) or latents (Eq. 11).",
                ),
            ],
            outputs=[
                types.Plan.Output(id="plan_out", display_name="plan", tooltip="The changed plan."),
                io.String.Output(
                    id="summary_out", display_name="summary", tooltip="The plan in words, with its network evaluations."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, **_: Any) -> bool:
        """Leave ranges to the plan, as ``Plan`` does."""
        return True

    @classmethod
    @core_call
    def execute(cls, plan: SIRPlan, **options: int | str) -> io.NodeOutput:
        plan = replace(expect(plan, SIRPlan, "plan"), **_given(**options))
        text = summary(plan)
        return io.NodeOutput(plan, text, ui={"text": [text]})


def preset_widgets() -> dict[str, dict[str, Any]]:
    """Tell the frontend what the widgets of both nodes are in each preset: preset -> widget -> value."""
    names = [socket.id for node in NODES for socket in node.define_schema().inputs if socket.id not in ("preset", "plan")]
    fields = {name: "guidance_scale" if name == "guidance" else name for name in names}
    return {preset: {name: getattr(plan, field) for name, field in fields.items()} for preset, plan in PRESETS.items()}


def _given(**options: Any) -> dict[str, Any]:
    """The options that say something."""
    return {name: value for name, value in options.items() if value not in _LEFT_OPEN}


def summary(plan: SIRPlan) -> str:
    """A plan in one paragraph."""
    counted = plan.evaluations()
    return (
        f"{plan.name}: K {plan.iterations} rounds of I {plan.steps} steps on {plan.views} views, t2 {plan.t2_start:g} to "
        f"{plan.t2_end:g} ({plan.t2_curve}), forward {plan.forward}, {plan.sampler} with eta {plan.eta:g} on "
        f"{plan.discretization} steps, guidance {plan.guidance_scale:g}; {counted.per_view_paper} network evaluations a view "
        f"as the paper counts, {counted.total} in all"
    )


NODES = (Plan, PlanOptions)
