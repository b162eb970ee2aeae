"""Where a run starts, and cleaning where it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.density_control import clean
from ..microdreamer_core.fields.from_mesh import Fit, fitted, gaussians_on_mesh
from ..microdreamer_core.fields.from_nerf import USUAL_COUNT, gaussians_from_nerf
from ..microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from ..microdreamer_core.fields.hashgrid import ENCODERS
from ..microdreamer_core.fields.nerf import NeRF
from ..microdreamer_core.fields.start import AUTO, NERF_SIZES, gaussian_settings, nerf_settings, settings_of_plan
from ..microdreamer_core.job import with_reference
from ..microdreamer_core.schedule import Background, SIRPlan
from . import types
from .compat import compute_device, interrupt_check, io, schema
from .types import Conditioned, FieldState, LoadedModel, core_call, expect, expect_gaussians, from_native_mesh

RENDERERS = ("auto", "numba", "torch", "cuda", "gsplat")
SEED_MAX = 0xFFFFFFFFFFFFFFFF


class NewGaussians(io.ComfyNode):
    """A ball of faint grey Gaussians."""

    TITLE = "New Gaussians"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerNewGaussians",
            aliases=("3dgs", "gaussian splatting", "splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="A fresh ball of 3D Gaussians, and the seed from which all draws of the run derive.",
            inputs=[
                types.Model.Input("model", tooltip="Its picture size decides how many Gaussians are worth having."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=True,
                    tooltip="Another seed gives another result; it travels with the field through the whole run.",
                ),
                io.Int.Input(
                    "num_points", default=0, min=0, max=1_000_000, tooltip="Gaussians to start with; 0 suits them to the model."
                ),
                io.Combo.Input(
                    "renderer",
                    options=list(RENDERERS),
                    default="auto",
                    tooltip="What draws the Gaussians; 'auto' takes the fastest that works here.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The start of a run.")],
        )

    @classmethod
    @core_call
    def execute(cls, model, seed=0, num_points=0, renderer="auto"):
        return io.NodeOutput(new_gaussians(expect(model, LoadedModel, "model").model.image_size, seed, num_points, renderer))


class NewNeRF(io.ComfyNode):
    """A faint grey blob."""

    TITLE = "New NeRF"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerNewNeRF",
            aliases=("radiance field", "hash grid", "instant ngp"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="A fresh neural radiance field, and the seed from which all draws of the run derive.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=True,
                    tooltip="Another seed gives another result; it travels with the field through the whole run.",
                ),
                io.Combo.Input(
                    "size",
                    options=list(NERF_SIZES),
                    default=AUTO,
                    tooltip="small suits a CPU, full is the published one; 'auto' takes full on a GPU.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(get_args(Background)),
                    default="white",
                    tooltip="learned: a small network for what is behind the object, as in the published runs of MVDream.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=list(ENCODERS),
                    default="auto",
                    tooltip="What looks positions up in the hash grid; 'auto' takes the fastest that works here.",
                ),
                types.Plan.Input(
                    "plan", optional=True, tooltip="The run's plan: its cameras decide how large the ball around the object is."
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The start of a run.")],
        )

    @classmethod
    @core_call
    def execute(cls, seed=0, size=AUTO, background="white", encoder="auto", plan=None):
        device = compute_device()
        settings = replace(nerf_settings(size, background, device), encoder=encoder)
        settings = settings if plan is None else settings_of_plan(settings, expect(plan, SIRPlan, "plan"))
        return io.NodeOutput(FieldState(NeRF.start(settings, seed, device), seed))


def new_gaussians(image_size: int, seed: int, num_points: int = 0, renderer: str = "auto") -> FieldState:
    """A fresh run for a model of that picture size; 0 points leaves the number to the core."""
    settings = replace(gaussian_settings(image_size), renderer=renderer)
    if num_points:
        settings = replace(settings, num_points=num_points)
    return FieldState(Gaussians.ball(settings, seed, compute_device()), seed)


def refined_inputs() -> list:
    """What every field that SIR shall refine is asked for."""
    return [
        io.Int.Input("seed", default=0, min=0, max=SEED_MAX, tooltip="Seed of a run that goes on from here."),
        io.Boolean.Input(
            "initialised", default=True, tooltip="On: a run goes on with iteration 0. Off: it initialises from pure noise."
        ),
        types.Model.Input(
            "model", optional=True, tooltip="The model that shall refine it decides how many Gaussians are worth having."
        ),
    ]


def settings_for(model) -> GaussianSettings:
    """Settings that suit the linked model; the published ones without any."""
    return GaussianSettings() if model is None else gaussian_settings(expect(model, LoadedModel, "model").model.image_size)


class FieldFromMesh(io.ComfyNode):
    """Gaussians that look like a mesh."""

    TITLE = "Field from Mesh"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerFieldFromMesh",
            aliases=("mesh to splat", "mesh to gaussians", "3dgs", "refine mesh"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Spreads flat Gaussians over any mesh, in its colours, so that SIR can refine it.",
            inputs=[
                io.Mesh.Input(
                    "mesh", tooltip="Any mesh; its texture or its vertex colours are taken along, without both it is grey."
                ),
                io.Int.Input(
                    "num_points",
                    default=10_000,
                    min=4,
                    max=1_000_000,
                    tooltip="Gaussians; more keep finer detail and take longer.",
                ),
                io.Combo.Input(
                    "normalise",
                    options=list(get_args(Fit)),
                    default="auto",
                    tooltip="Whether the mesh is centred with its longest side 1, where the cameras look; 'auto': only when it "
                    "is far from there.",
                ),
                *refined_inputs(),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="Gaussians that look like the mesh.")
            ],
        )

    @classmethod
    @core_call
    def execute(cls, mesh, num_points=10_000, normalise="auto", seed=0, initialised=True, model=None):
        surface = fitted(from_native_mesh(mesh), normalise)
        gaussians = gaussians_on_mesh(surface, num_points, settings_for(model), seed, compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


class NeRFToGaussians(io.ComfyNode):
    """The other representation."""

    TITLE = "NeRF to Gaussians"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerNeRFToGaussians",
            aliases=("nerf to splat", "convert", "3dgs"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Spreads Gaussians over the surface of a NeRF and fits them to its pictures, to save it as a splat or "
            "to refine it as Gaussians.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="A NeRF that shows an object."),
                io.Int.Input(
                    "num_points",
                    default=USUAL_COUNT,
                    min=4,
                    max=1_000_000,
                    tooltip="Gaussians; more keep finer detail and take longer.",
                ),
                *refined_inputs(),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="Gaussians that look like the NeRF.")
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field, num_points=USUAL_COUNT, seed=0, initialised=True, model=None):
        nerf = expect(field, FieldState, "field").field
        if nerf.kind != "nerf":
            raise InputError(f"The field must be a NeRF, got {nerf.summary()}; link it where this node's output goes.")
        gaussians = gaussians_from_nerf(nerf, num_points, settings_for(model), seed, check=interrupt_check)
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


class CleanGaussians(io.ComfyNode):
    """The last prune."""

    TITLE = "Clean Gaussians"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerCleanGaussians",
            aliases=("prune", "floaters"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Removes faint and oversized Gaussians, and white ones that float around the object (section V).",
            inputs=[
                types.FieldSocket.Input("field", tooltip="Finished Gaussians."),
                types.Condition.Input(
                    "condition",
                    optional=True,
                    tooltip="Its reference, if any, is laid over the Gaussians as small discs, for splats that are shown or "
                    "saved.",
                ),
                types.Plan.Input(
                    "plan", optional=True, tooltip="Where the reference's camera stands; needed beside a condition only."
                ),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="Without what does not belong to it.")
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field, condition=None, plan=None):
        state = expect_gaussians(field, "field")
        cleaned = clean(state.field)
        if condition is not None:
            reference = expect(condition, Conditioned, "condition").reference
            cleaned = with_reference(cleaned, reference, expect(plan, SIRPlan, "plan"))
        return io.NodeOutput(replace(state, field=cleaned))


NODES = (NewGaussians, NewNeRF, FieldFromMesh, NeRFToGaussians, CleanGaussians)
