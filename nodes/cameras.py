"""Camera sampler and free camera layouts."""

from __future__ import annotations

from dataclasses import replace

from ..microdreamer_core.cameras import orbit_cameras, parse_poses, spread_cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.rig_picture import rig_picture
from ..microdreamer_core.job.run import check_kind
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.stages import show_field
from ..microdreamer_core.sir.step import Step, reference_elevation
from ..microdreamer_core.util.vocabulary import DEFAULT_FOV_Y
from . import types
from .compat import io, schema
from .types import Conditioned, ConditionedStep, FieldState, core_call, expect


def _picture_output() -> io.Output:
    return io.Image.Output(
        id="picture_out",
        display_name="picture",
        tooltip="Where the cameras stand, from above and from the side.",
    )


class SampleCameras(io.ComfyNode):
    """Sample the cameras of a field's next iteration."""

    TITLE = "SIR Sample Cameras"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSampleCameras",
            aliases=("sample cameras", "orbit", "poses", "camera rig"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="The cameras of the iteration that comes next for this field, with its noise levels (section V). A "
            "new field gets the initialisation, then the first of the K iterations, and so on. Plan and conditioned model "
            "travel in the cameras, so that the stages need no links of their own to them.",
            inputs=[
                types.FieldSocket.Input(
                    "field", tooltip="The field; its seed and number of finished iterations decide the cameras."
                ),
                types.Plan.Input("plan", tooltip="Views, elevations, distance and noise levels."),
                types.Condition.Input(
                    "condition", tooltip="The conditioned model; it decides the image size and travels in the cameras."
                ),
            ],
            outputs=[
                types.Rig.Output(
                    id="cameras_out",
                    display_name="cameras",
                    tooltip="For all stages of this iteration, with the plan and the conditioned model.",
                ),
                io.Int.Output(id="k_out", display_name="k", tooltip="The iteration; -1 is the initialisation."),
                io.Int.Output(id="t2_out", display_name="t2", tooltip="Its noise level in 0..999; 999 is pure noise."),
                _picture_output(),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState, plan: SIRPlan, condition: Conditioned) -> io.NodeOutput:
        state, plan = expect(field, FieldState, "field"), expect(plan, SIRPlan, "plan")
        conditioned = expect(condition, Conditioned, "condition")
        conditioned.check_cameras(plan)
        step = next_step(state, plan, conditioned.diffusion.image_size, conditioned)
        t2 = 999 if step.times is None else step.times.t2
        return io.NodeOutput(step, step.k, t2, rig_picture(step.cameras)[None])


def next_step(state: FieldState, plan: SIRPlan, size: int, conditioned: Conditioned | None = None) -> ConditionedStep:
    """Make the step after ``state``; its cameras are as large as the plan wants, and as the field was fitted to.

    Args:
        size: pixels of the model's images.
        conditioned: travels in the step; the elevation of its reference shifts those of the cameras.

    Raises:
        InputError: the plan has no further iteration, or is for another representation.
    """
    check_kind(state.field, plan)
    k = state.next_k
    if k >= plan.iterations and k >= 0:
        raise InputError(
            f"The plan has {plan.iterations} iterations and all are done ({state.describe()}); raise them, lower the loop's "
            "count, or, for a further loop with a plan of its own, set 'restart' of its SIR Loop Start."
        )
    elevation = reference_elevation(None if conditioned is None else conditioned.reference)
    step = Step.of_plan(plan, state.seed, k, size, elevation=elevation)
    cameras = step.cameras.resize(max(step.cameras.width, fitted_size(state)))
    step = ConditionedStep(cameras, plan, state.seed, k, step.times, condition=conditioned)
    if conditioned is None:
        return step
    # a model that looks at renders sees the current field; other steps keep no field in memory
    return replace(step, render=show_field(step.with_model(conditioned.diffusion), state.field).render)


def fitted_size(state: FieldState) -> int:
    """Return the size in pixels of the enlarged targets that a field was fitted to; 0 if there were none."""
    return 0 if state.fit is None else state.fit.size


class CameraLayout(io.ComfyNode):
    """Make cameras chosen by the user: an orbit, a turntable or a list of poses."""

    TITLE = "MicroDreamer Camera Layout"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerCameraLayout",
            aliases=("camera layout", "orbit", "turntable", "poses", "custom cameras", "camera rig"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="Cameras where you want them: an orbit, a turntable, or a list of poses. With field and plan they "
            "serve the field's next iteration in place of Sample Cameras; without, they are for rendering.",
            inputs=[
                io.Int.Input("views", default=4, min=1, max=1000, tooltip="Number of cameras, unless poses are given."),
                io.Float.Input(
                    "elevation",
                    default=0.0,
                    min=-89.0,
                    max=89.0,
                    step=1.0,
                    tooltip="Degrees above the horizon.",
                ),
                io.Float.Input(
                    "azimuth",
                    default=0.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Degrees of the first camera; 0 is in front, 90 to the right of that, 180 behind.",
                ),
                io.Float.Input(
                    "spread",
                    default=360.0,
                    min=-360.0,
                    max=360.0,
                    step=1.0,
                    tooltip="Degrees over which the cameras are spread evenly; 360 is a turntable, less an arc with both ends.",
                ),
                io.Float.Input(
                    "radius",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="Distance from the centre of the object; 0 takes the plan's, or 2 without a plan.",
                ),
                io.Float.Input(
                    "fov",
                    default=0.0,
                    min=0.0,
                    max=170.0,
                    step=0.1,
                    tooltip="Vertical field of view in degrees; 0 takes the plan's, or 49.1 without a plan.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Image size in pixels; 0 takes what suits plan, model and field if a condition is linked, else "
                    "256.",
                ),
                io.String.Input(
                    "poses",
                    default="",
                    multiline=True,
                    tooltip="One 'elevation, azimuth' per line in degrees, in place of views, elevation, azimuth and spread.",
                ),
                types.FieldSocket.Input(
                    "field", optional=True, tooltip="With the plan: the field whose next iteration these cameras serve."
                ),
                types.Plan.Input("plan", optional=True, tooltip="With the field: noise levels, distance and field of view."),
                types.Condition.Input(
                    "condition",
                    optional=True,
                    tooltip="The conditioned model; it decides the image size and travels in the cameras.",
                ),
            ],
            outputs=[
                types.Rig.Output(id="cameras_out", display_name="cameras", tooltip="For Render Views, or all stages."),
                _picture_output(),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        views: int = 4,
        elevation: float = 0.0,
        azimuth: float = 0.0,
        spread: float = 360.0,
        radius: float = 0.0,
        fov: float = 0.0,
        size: int = 0,
        poses: str = "",
        field: FieldState | None = None,
        plan: SIRPlan | None = None,
        condition: Conditioned | None = None,
    ) -> io.NodeOutput:
        if (field is None) != (plan is None):
            raise InputError("Field and plan belong together, got one of them; link both for an iteration, or none to render.")
        plan = None if plan is None else expect(plan, SIRPlan, "plan")
        condition = None if condition is None else expect(condition, Conditioned, "condition")
        if condition is not None and not size:
            size = condition.diffusion.image_size
            if plan is not None:
                state = expect(field, FieldState, "field")
                size = max(plan.render_size(state.next_k, size), fitted_size(state))
        size = size or 256
        radius = radius or (2.0 if plan is None else plan.radius)
        fov = fov or (DEFAULT_FOV_Y if plan is None else plan.fov_y)
        if listed := parse_poses(poses):
            elevations, azimuths = zip(*listed, strict=True)
            cameras = orbit_cameras(elevations, azimuths, radius, fov, size)
        else:
            cameras = spread_cameras(views, elevation, azimuth, spread, radius, fov, size)
        picture = rig_picture(cameras)[None]
        if plan is None:
            return io.NodeOutput(cameras, picture)
        if condition is not None:
            condition.diffusion.view_count.check(len(cameras), "change 'views' or 'poses' here")
        step = next_step(expect(field, FieldState, "field"), plan, size, condition)
        return io.NodeOutput(replace(step, cameras=cameras), picture)


NODES = (SampleCameras, CameraLayout)
