"""The whole of Algorithm 1 in one node."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..microdreamer_core.cameras import orbit_cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.evaluation.metrics import psnr
from ..microdreamer_core.fields.protocol import WHITE
from ..microdreamer_core.job.run import check_kind
from ..microdreamer_core.sir.iterations import Iteration, sir_iterations
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.start import start_field
from ..microdreamer_core.sir.step import Step, reference_elevation
from . import types
from .compat import ADVANCED, InterruptProcessingException, compute_device, io, notify, schema
from .native import choose_sampler, sampler_inputs
from .preview import RunProgress
from .states import keep_interrupted
from .types import Conditioned, FieldState, core_call, expect
from .widgets import seed_input


class Generate(io.ComfyNode):
    """Run all of Algorithm 1: initialise, then K iterations of render, noise, denoise and reconstruct."""

    TITLE = "SIR Generate"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerGenerate",
            aliases=("generate", "image to 3d", "MicroDreamer", "SIR"),
            display_name=cls.TITLE,
            category="MicroDreamer",
            description="The whole algorithm: initialise, then render, refine and reconstruct K times, with a live preview. "
            "When interrupted, the last finished iteration is kept for Load State.",
            inputs=[
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Plan.Input("plan", tooltip="K, I, noise levels."),
                seed_input("Another seed gives another result. Ignored with a linked field, which has its own."),
                types.FieldSocket.Input(
                    "field",
                    display_name="field",
                    optional=True,
                    tooltip="New Gaussians, New NeRF, or Load State to continue a saved run; without it, a new field.",
                ),
                *sampler_inputs(),
                io.Boolean.Input(
                    "keep_best",
                    default=False,
                    optional=True,
                    tooltip="Give the iteration that is most similar to the reference (PSNR within its silhouette) in place of "
                    "the last. It judges the front only.",
                    **ADVANCED,
                ),
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
        keep_best: bool = False,
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
        reference = conditioned.reference
        progress = RunProgress(plan, state.seed, state.next_k, reference_elevation(reference))
        best = BestView(conditioned, plan, diffusion.image_size) if keep_best else None
        lines, latest = [], None
        try:
            for iteration in sir_iterations(
                state.field,
                diffusion,
                plan,
                state.seed,
                reference=reference,
                first=state.next_k,
                sampler=choose_sampler(sampler, sigmas),
                hooks=progress.hooks,
            ):
                latest = iteration
                lines.append(_line(iteration))
                progress.iteration(iteration)
                if best is not None:
                    best.compare(iteration)
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
        if best is not None:
            latest = best.iteration
            lines.append(f"kept k {latest.k}: {best.decibels:.1f} dB from the reference within its silhouette")
        after = FieldState(latest.field, state.seed, latest.k, run=progress.run)
        return io.NodeOutput(after, latest.sheet()[None], "\n".join(lines), ui=progress.ui())


class BestView:
    """The iteration that is most similar to the reference: the highest PSNR within the silhouette of the reference view.

    Raises:
        InputError: the condition has no reference.
    """

    def __init__(self, conditioned: Conditioned, plan: SIRPlan, size: int):
        reference = conditioned.reference
        if reference is None:
            raise InputError("keep_best compares with the reference, and this condition has none; switch it off.")
        sized = reference.at_size(size)
        self._camera = orbit_cameras(reference.elevation, 0.0, plan.radius, plan.fov_y, size)
        self._inside = sized.alpha[..., 0] > 0.5
        self._colors = sized.image[self._inside]
        self.iteration: Iteration
        self.decibels = -math.inf

    def compare(self, iteration: Iteration) -> None:
        """Remember an iteration if it is better than all before."""
        render = iteration.field.render(self._camera.to(iteration.field.device), WHITE).rgb[0].cpu()
        decibels = psnr(render[self._inside].clamp(0, 1), self._colors)
        if decibels > self.decibels:
            self.iteration, self.decibels = iteration, decibels


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
