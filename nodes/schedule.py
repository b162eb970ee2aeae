"""The plan of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..microdreamer_core.diffusion.noise import STABLE_DIFFUSION
from ..microdreamer_core.diffusion.timesteps import DIFFUSION_STEPS
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.presets import PRESETS, get_plan
from ..microdreamer_core.sir.step import model_times
from . import types
from .compat import io, scheduled_sigmas, scheduler_names, schema
from .native import sigmas_from
from .native_process import host_process
from .pace import expected_time
from .types import Conditioned, core_call, expect
from .widgets import drop_open, setting_input

_DEFAULT = PRESETS["embedded"]


def _widget(name: str, field: str = "", step: float = 1, advanced: bool = False) -> io.Input:
    """A widget that may be left out; it shows the default preset's value."""
    default = getattr(_DEFAULT, field or name)
    return setting_input(SIRPlan, name, field, default=default, step=step, optional=True, advanced=advanced)


class Plan(io.ComfyNode):
    """Make the plan of a run from a preset and changes to it; absent inputs keep the preset's values."""

    TITLE = "SIR Plan"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSIRPlan",
            aliases=("schedule", "steps", "preset", "MicroDreamer"),
            display_name=cls.TITLE,
            category="MicroDreamer/Schedule",
            description="Number of iterations, steps and noise levels of a run: a preset of the paper's Table I, optionally "
            "with changes.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=_DEFAULT.name,
                    tooltip="Numbers that suit a model, filled in below; 'embedded' is for the checkpoint of the pack.",
                ),
                _widget("iterations"),
                _widget("steps"),
                _widget("t2_start", step=0.01),
                _widget("t2_end", step=0.01),
                _widget("forward"),
                _widget("eta", step=0.05),
                _widget("guidance", "guidance_scale", step=0.1),
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
        """Leave ranges to the plan: ComfyUI does not check inputs named here, so that -1 of earlier versions passes."""
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
        overrides = drop_open(
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
        return io.NodeOutput(plan, plan.iterations + 1, text, ui={"text": [f"{text}; {expected_time(plan)}"]})


class PlanOptions(io.ComfyNode):
    """Change the less common settings of a plan; absent inputs keep the plan's values."""

    TITLE = "SIR Plan Options"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSIRPlanOptions",
            aliases=("views", "eta", "loss"),
            display_name=cls.TITLE,
            category="MicroDreamer/Schedule",
            description="Changes the less common settings of a plan: views, discretisation, schedules, sampler, loss, clock.",
            inputs=[
                types.Plan.Input("plan", tooltip="The plan to change."),
                *map(_widget, ("views", "discretization", "init_steps")),
                *map(_widget, ("t2_curve", "t1_rule", "sampler", "loss", "loss_space")),
                *(_widget(name, advanced=True) for name in ("spacing", "inversion_branch", "poses", "clock")),
                _widget("clock_factor", step=0.1, advanced=True),
                _widget("color_fix", step=0.01, advanced=True),
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
        plan = replace(expect(plan, SIRPlan, "plan"), **drop_open(**options))
        text = summary(plan)
        return io.NodeOutput(plan, text, ui={"text": [f"{text}; {expected_time(plan)}"]})


def preset_widgets() -> dict[str, dict[str, Any]]:
    """Return the widget values of both nodes for each preset, for the frontend: preset -> widget -> value."""
    names = [
        socket.id
        for node in (Plan, PlanOptions)
        for socket in node.define_schema().inputs
        if socket.id not in ("preset", "plan")
    ]
    fields = {name: "guidance_scale" if name == "guidance" else name for name in names}
    return {preset: {name: getattr(plan, field) for name, field in fields.items()} for preset, plan in PRESETS.items()}


class PlanSigmas(io.ComfyNode):
    """Make SIGMAS for our models with ComfyUI's schedulers, whose own nodes need a native MODEL."""

    TITLE = "Sigmas of Plan"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerPlanSigmas",
            aliases=("basic scheduler", "sgm_uniform", "karras", "noise schedule", "sigmas"),
            display_name=cls.TITLE,
            category="MicroDreamer/Schedule",
            description="Noise levels by one of ComfyUI's schedulers, within those of this model: for the input sigmas of DDIM "
            "Refine and Generate, beside a sampler.",
            inputs=[
                types.Plan.Input("plan", tooltip="Its discretization is the number of steps, unless one is given below."),
                types.Condition.Input("condition", tooltip="The conditioned model, which has the noise levels."),
                io.Combo.Input(
                    "scheduler",
                    options=scheduler_names(),
                    default="sgm_uniform",
                    tooltip="How the steps are spread, as in ComfyUI's BasicScheduler.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Steps from pure noise to 0; 0 takes the plan's discretization. Below t2 there are fewer.",
                ),
                io.Int.Input(
                    "t2",
                    default=999,
                    min=0,
                    max=999,
                    optional=True,
                    tooltip="Time of the first noise level, e.g. t2 of Sample Cameras. DDIM Refine and Generate leave out what "
                    "lies above their own t2, so that 999, all, is right for both.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(id="sigmas_out", display_name="sigmas", tooltip="Descending noise levels; the last is 0.")
            ],
        )

    @classmethod
    @core_call
    def execute(cls, plan: SIRPlan, condition: Conditioned, scheduler: str, steps: int = 0, t2: int = 999) -> io.NodeOutput:
        plan, diffusion = expect(plan, SIRPlan, "plan"), expect(condition, Conditioned, "condition").diffusion
        if scheduler not in scheduler_names():
            raise InputError(f"There is no scheduler {scheduler!r}; choose one of {', '.join(scheduler_names())}.")
        host = host_process(diffusion.process)
        sigmas = scheduled_sigmas(host.sampling, scheduler, steps or plan.discretization)
        if t2 < DIFFUSION_STEPS - 1:
            (first,) = model_times(plan, [t2], diffusion)
            sigmas = sigmas_from(sigmas, host, first).to(sigmas)
        return io.NodeOutput(sigmas)


def summary(plan: SIRPlan) -> str:
    """Describe a plan in one paragraph."""
    counted = plan.evaluations()
    clock = "the model's own time"
    if plan.clock == "paper":
        first, last = (
            STABLE_DIFFUSION.level(min(int(t2 * DIFFUSION_STEPS), DIFFUSION_STEPS - 1)) for t2 in (plan.t2_start, plan.t2_end)
        )
        clock = f"Stable Diffusion's time, noise-to-signal {first:.2g} to {last:.2g}"
    return (
        f"{plan.name}: K {plan.iterations} rounds of I {plan.steps} steps on {plan.views} views, t2 {plan.t2_start:g} to "
        f"{plan.t2_end:g} ({plan.t2_curve}), forward {plan.forward}, {plan.sampler} with eta {plan.eta:g} on "
        f"{plan.discretization} steps, guidance {plan.guidance_scale:g}; {counted.per_view_paper} network evaluations a view "
        f"as the paper counts, {counted.total} in all; t2 counts {clock}"
    )


NODES = (Plan, PlanOptions, PlanSigmas)
