"""Camera sampler."""

from __future__ import annotations

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.schedule import SIRPlan
from ..microdreamer_core.sir import iteration_cameras
from . import types
from .compat import io, schema
from .types import CameraRig, Conditioned, FieldState, core_call, expect


class SampleCameras(io.ComfyNode):
    """The cameras of the next iteration."""

    TITLE = "Sample Cameras"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerSampleCameras",
            aliases=("orbit", "poses", "camera rig"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="The cameras of the iteration that comes next for this field, with its noise levels (section V). A "
            "fresh field gets the initialisation, the one after it the first of the K iterations, and so on.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field whose next iteration this is; it brings seed and count."),
                types.Plan.Input("plan", tooltip="Views, elevations, distance and noise levels."),
                types.Condition.Input("condition", tooltip="The conditioned model; it decides the picture size."),
            ],
            outputs=[
                types.Rig.Output(id="cameras_out", display_name="cameras", tooltip="For all stages of this iteration."),
                io.Int.Output(id="k_out", display_name="k", tooltip="The iteration; -1 is the initialisation."),
                io.Int.Output(id="t2_out", display_name="t2", tooltip="Its noise level of 0..999; 999 stands for pure noise."),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field, plan, condition):
        state, plan = expect(field, FieldState, "field"), expect(plan, SIRPlan, "plan")
        rig = next_rig(state, plan, expect(condition, Conditioned, "condition").diffusion.image_size)
        return io.NodeOutput(rig, rig.k, 999 if rig.times is None else rig.times.t2)


def next_rig(state: FieldState, plan: SIRPlan, size: int) -> CameraRig:
    """Cameras and times of the iteration after ``state``.

    Raises:
        InputError: the plan has no further iteration.
    """
    k = state.next_k
    if k >= plan.iterations and k >= 0:
        raise InputError(f"The plan has {plan.iterations} iterations and all are done; raise them or lower the loop's count.")
    times = None if k < 0 else plan.times(state.seed)[k]
    return CameraRig(iteration_cameras(plan, state.seed, k, size), plan, state.seed, k, times)


NODES = (SampleCameras,)
