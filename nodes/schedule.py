"""The plan of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.presets import PRESETS, get_plan
from ..microdreamer_core.util.vocabulary import SAMPLERS
from . import types
from .compat import io, schema
from .types import core_call, expect

PRESET = "preset"
_UNSET = -1


class Plan(io.ComfyNode):
    """K, I, noise levels, guidance."""

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
                    default="embedded",
                    tooltip="Numbers that suit a model; 'embedded' is for the checkpoint that comes with the pack.",
                ),
                io.Int.Input(
                    "iterations",
                    default=-1,
                    min=-1,
                    max=10000,
                    tooltip="K: rounds of refinement; -1 takes the preset's number.",
                ),
                io.Int.Input(
                    "steps", default=-1, min=-1, max=10000, tooltip="I: reconstruction steps of a round; -1 takes the preset's."
                ),
                io.Float.Input(
                    "t2_start",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level of the first round as a share of the whole diffusion; -1 takes the preset's.",
                ),
                io.Float.Input(
                    "t2_end",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level that the rounds fall towards, at most t2_start; -1 takes the preset's.",
                ),
                io.Combo.Input(
                    "forward",
                    options=[PRESET, "hybrid", "noise", "invert"],
                    default=PRESET,
                    tooltip="How pictures are noised: hybrid adds noise to t1 and inverts to t2 (Eq. 9), noise only adds, "
                    "invert only inverts.",
                ),
                io.Float.Input(
                    "eta",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="DDIM's η: 0 is deterministic, other samplers have none; -1 takes the preset's.",
                ),
                io.Float.Input(
                    "guidance",
                    default=-1.0,
                    min=-1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance: how much the reference counts; -1 takes the preset's.",
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
    @core_call
    def execute(
        cls,
        preset: str,
        iterations: int = -1,
        steps: int = -1,
        t2_start: float = -1.0,
        t2_end: float = -1.0,
        forward: str = PRESET,
        eta: float = -1.0,
        guidance: float = -1.0,
    ) -> io.NodeOutput:
        numbers = {
            "iterations": iterations,
            "steps": steps,
            "t2_start": t2_start,
            "t2_end": t2_end,
            "eta": eta,
            "guidance_scale": guidance,
        }
        overrides = {name: value for name, value in numbers.items() if value != _UNSET}
        if forward != PRESET:
            overrides["forward"] = forward
        plan = get_plan(preset, **overrides)
        return io.NodeOutput(plan, plan.iterations + 1, summary(plan))


class PlanOptions(io.ComfyNode):
    """The rarer numbers of a plan."""

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
                io.Int.Input("views", default=-1, min=-1, max=64, tooltip="Cameras of a round; -1 keeps the plan's."),
                io.Int.Input(
                    "discretization",
                    default=-1,
                    min=-1,
                    max=999,
                    tooltip="Steps of the sampler's full grid; -1 keeps the plan's.",
                ),
                io.Int.Input(
                    "init_steps", default=-1, min=-1, max=10000, tooltip="Steps of the initialisation; -1 keeps the plan's."
                ),
                io.Combo.Input(
                    "t2_curve",
                    options=[PRESET, "linear", "square", "cosine", "random"],
                    default=PRESET,
                    tooltip="How t2 goes from start to end (Fig. 12c).",
                ),
                io.Combo.Input(
                    "t1_rule", options=[PRESET, "ratio", "square"], default=PRESET, tooltip="t1 = 0.6 t2, or t1 = t2² / T."
                ),
                io.Combo.Input(
                    "sampler",
                    options=[PRESET, *SAMPLERS],
                    default=PRESET,
                    tooltip="What samples back when no SAMPLER is linked.",
                ),
                io.Combo.Input(
                    "loss", options=[PRESET, "l1", "l2"], default=PRESET, tooltip="Norm of the reconstruction loss."
                ),
                io.Combo.Input(
                    "loss_space",
                    options=[PRESET, "pixel", "latent"],
                    default=PRESET,
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
    @core_call
    def execute(cls, plan: SIRPlan, **options: Any) -> io.NodeOutput:
        changed = {name: value for name, value in options.items() if value not in (_UNSET, PRESET)}
        plan = replace(expect(plan, SIRPlan, "plan"), **changed)
        return io.NodeOutput(plan, summary(plan))


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
