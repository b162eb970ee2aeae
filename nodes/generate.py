"""The whole of Algorithm 1 in one node."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.job.run import check_kind
from ..microdreamer_core.sir.iterations import Iteration, sir_iterations
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.start import start_field
from ..microdreamer_core.sir.step import Step
from . import types
from .compat import InterruptProcessingException, compute_device, io, notify, schema
from .field import SEED_MAX
from .native import choose_sampler, sampler_inputs
from .preview import RunProgress
from .states import keep_interrupted
from .types import Conditioned, FieldState, core_call, expect


class Generate(io.ComfyNode):
    """Run all of Algorithm 1: initialise, then K iterations of render, noise, denoise and reconstruct."""

    TITLE = "Generate"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerGenerate",
            aliases=("image to 3d", "MicroDreamer", "SIR"),
            display_name=cls.TITLE,
            category="MicroDreamer",
            description="The whole algorithm: initialise, then render, refine and reconstruct K times, with a live preview. "
            "When interrupted, the last finished iteration is kept for Load State.",
            inputs=[
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Plan.Input("plan", tooltip="K, I, noise levels."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=True,
                    tooltip="Another seed gives another result. Ignored with a linked field, which has its own.",
                ),
                types.FieldSocket.Input(
                    "field",
                    display_name="field",
                    optional=True,
                    tooltip="New Gaussians, New NeRF, or Load State to continue a saved run; without it, a new field.",
                ),
                *sampler_inputs(),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The finished field."),
                io.Image.Output(id="sheet_out", display_name="sheet", tooltip="Renders above targets of the last iteration."),
                io.String.Output(id="report_out", display_name="report", tooltip="One line for every iteration."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        condition: Conditioned,
        plan: SIRPlan,
        seed: int = 0,
        field: FieldState | None = None,
        sampler: Any = None,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        conditioned, plan = expect(condition, Conditioned, "condition"), expect(plan, SIRPlan, "plan")
        conditioned.check_cameras(plan)
        diffusion = conditioned.ready()
        if field is None:
            fresh = start_field(plan.representation, diffusion.image_size, seed, compute_device(), plan=plan)
            state = FieldState(fresh, seed)
        else:
            state = expect(field, FieldState, "field")
        check_kind(state.field, plan)
        progress, lines, latest = RunProgress(plan, state.seed, state.next_k), [], None
        try:
            for iteration in sir_iterations(
                state.field,
                diffusion,
                plan,
                state.seed,
                reference=conditioned.reference,
                first=state.next_k,
                sampler=choose_sampler(sampler, sigmas),
                hooks=progress.hooks,
            ):
                latest = iteration
                lines.append(_line(iteration))
                progress.iteration(iteration)
        except InterruptProcessingException:
            if latest is not None:
                path = keep_interrupted(FieldState(latest.field, state.seed, latest.k), conditioned, plan)
                notify(
                    f"Interrupted; iteration {latest.k} is kept in {path.name}, for Load State (press R to refresh its list).",
                    "warn",
                )
            raise
        if latest is None:
            raise InputError(f"All {plan.iterations} iterations of the plan are done for this field; raise 'iterations'.")
        after = FieldState(latest.field, state.seed, latest.k)
        return io.NodeOutput(after, latest.sheet()[None], "\n".join(lines))


def _line(iteration: Iteration) -> str:
    return (
        f"{_times(iteration.step)}, loss {iteration.losses[-1]:.1f}, {iteration.field.summary()}, "
        f"{iteration.evaluations} evaluations, {sum(iteration.seconds.values()):.1f} s"
    )


def _times(step: Step) -> str:
    """An iteration's t1 and t2 by the plan's clock, and the model's where they differ."""
    if step.times is None:
        return "start"
    planned, own = (step.times.t1, step.times.t2), (step.inversion_path[0], step.sampling_path[0])
    converted = "" if own == planned else f" (the model's {own[0]} and {own[1]}, noise-to-signal {step.noise_level:.2g})"
    return f"k {step.k}: t1 {planned[0]}, t2 {planned[1]}{converted}"


NODES = (Generate,)
