"""Initial fields, conversions to Gaussians, and the final clean-up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from ..microdreamer_core.convert.mesh_to_gaussians import Fit, gaussians_on_mesh, normalise_mesh
from ..microdreamer_core.convert.nerf_to_gaussians import FIT_STEPS, USUAL_COUNT, gaussians_from_nerf
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.clean import clean
from ..microdreamer_core.fields.encoders import ENCODERS
from ..microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from ..microdreamer_core.fields.nerf import NeRF
from ..microdreamer_core.fields.nerf_settings import AUTO, NERF_SIZES, nerf_settings
from ..microdreamer_core.io.mesh_files import READABLE, read_mesh
from ..microdreamer_core.job.run import with_reference
from ..microdreamer_core.mesh import Mesh
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.start import gaussian_settings, settings_of_plan
from ..microdreamer_core.util.vocabulary import Background
from . import types
from .compat import compute_device, io, mesh_input, model_info_input, schema
from .files import known_file, list_files, modification_time, validate_file
from .native_mesh import placement_of
from .preview import FitProgress
from .types import Conditioned, FieldState, LoadedModel, core_call, expect, expect_gaussians, from_native_mesh
from .widgets import SEED_MAX, seed_input, setting_input

RENDERERS = ("auto", "numba", "torch", "cuda", "gsplat")
LINKED_MESH = "linked mesh"
"""The choice in the list of mesh files that uses the linked mesh instead."""


class NewGaussians(io.ComfyNode):
    """Start a run from a ball of faint grey Gaussians."""

    TITLE = "New Gaussians"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerNewGaussians",
            aliases=("3dgs", "gaussian splatting", "splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="A new ball of 3D Gaussians, and the seed of all random numbers of the run.",
            inputs=[
                types.Model.Input("model", tooltip="Its image size decides the number of Gaussians."),
                seed_input(),
                io.Int.Input(
                    "num_points", default=0, min=0, max=1_000_000, tooltip="Gaussians to start with; 0 chooses by the model."
                ),
                io.Combo.Input(
                    "renderer",
                    options=list(RENDERERS),
                    default="auto",
                    tooltip="Renderer of the Gaussians; 'auto' takes the fastest that works here.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The start of a run.")],
        )

    @classmethod
    @core_call
    def execute(cls, model: LoadedModel, seed: int = 0, num_points: int = 0, renderer: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(new_gaussians(expect(model, LoadedModel, "model").model.image_size, seed, num_points, renderer))


class NewNeRF(io.ComfyNode):
    """Start a run from a NeRF of a faint grey blob."""

    TITLE = "New NeRF"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerNewNeRF",
            aliases=("radiance field", "hash grid", "instant ngp"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="A new neural radiance field, and the seed of all random numbers of the run.",
            inputs=[
                seed_input(),
                io.Combo.Input(
                    "size",
                    options=list(NERF_SIZES),
                    default=AUTO,
                    tooltip="small suits a CPU, full is the published size; 'auto' takes full on a GPU.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(get_args(Background)),
                    default="white",
                    tooltip="learned: a small network for the background, as in the published runs of MVDream.",
                ),
                io.Combo.Input(
                    "encoder",
                    options=list(ENCODERS),
                    default="auto",
                    tooltip="Backend of the hash grid; 'auto' takes the fastest that works here.",
                ),
                types.Plan.Input(
                    "plan", optional=True, tooltip="The run's plan: its cameras decide how large the ball around the object is."
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The start of a run.")],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        seed: int = 0,
        size: str = AUTO,
        background: Background = "white",
        encoder: str = "auto",
        plan: SIRPlan | None = None,
    ) -> io.NodeOutput:
        device = compute_device()
        settings = replace(nerf_settings(size, background, device), encoder=encoder)
        settings = settings if plan is None else settings_of_plan(settings, expect(plan, SIRPlan, "plan"))
        return io.NodeOutput(FieldState(NeRF.start(settings, seed, device), seed))


def new_gaussians(image_size: int, seed: int, num_points: int = 0, renderer: str = "auto") -> FieldState:
    """Make the initial Gaussians for a model of that image size; 0 points chooses the number automatically."""
    settings = replace(gaussian_settings(image_size), renderer=renderer)
    if num_points:
        settings = replace(settings, num_points=num_points)
    return FieldState(Gaussians.ball(settings, seed, compute_device()), seed)


def refined_inputs() -> list:
    """Return the inputs shared by all nodes that make a field for SIR to refine."""
    return [
        io.Int.Input("seed", default=0, min=0, max=SEED_MAX, tooltip="Seed of a run that continues from here."),
        io.Boolean.Input(
            "initialised", default=True, tooltip="On: a run continues with iteration 0. Off: it initialises from pure noise."
        ),
        types.Model.Input("model", optional=True, tooltip="The model that will refine it; it decides the number of Gaussians."),
    ]


def change_input() -> io.Input:
    """Return the input that limits what a run may change of the Gaussians."""
    return setting_input(GaussianSettings, "change", optional=True)


def settings_for(model: LoadedModel | None) -> GaussianSettings:
    """Return settings that suit the linked model, or the published ones without a model."""
    return GaussianSettings() if model is None else gaussian_settings(expect(model, LoadedModel, "model").model.image_size)


class FieldFromMesh(io.ComfyNode):
    """Convert a mesh to Gaussians on its surface."""

    TITLE = "Field from Mesh"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldFromMesh",
            aliases=("mesh to splat", "mesh to gaussians", "3dgs", "refine mesh", "load glb", "load obj", "import mesh"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Spreads flat Gaussians over any mesh or mesh file, in its colours, so that SIR can refine it.",
            inputs=[
                mesh_input(
                    "mesh",
                    optional=True,
                    tooltip="Any mesh or 3D file (glb, gltf, obj, ply, stl), coloured by its materials, textures and vertex "
                    "colours; one without any is shaded grey, so that its shape can be seen.",
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
                    tooltip="Centre the mesh and scale its longest side to 1, where the cameras look; 'auto': only if it is "
                    "far from that.",
                ),
                *refined_inputs(),
                io.Combo.Input(
                    "file",
                    options=[LINKED_MESH, *list_files(*READABLE)],
                    default=LINKED_MESH,
                    optional=True,
                    tooltip="A mesh in the input or output folder, in place of a linked one; drop files on the node to upload "
                    "them, an .obj together with its .mtl and pictures.",
                ),
                *model_info_input(),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="Gaussians that look like the mesh.")
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str = LINKED_MESH) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return validate_file(file, *READABLE, linked=LINKED_MESH)

    @classmethod
    def fingerprint_inputs(cls, file: str = LINKED_MESH, **_: Any) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return modification_time(file, LINKED_MESH)

    @classmethod
    @core_call
    def execute(
        cls,
        mesh: Any = None,
        num_points: int = 10000,
        normalise: Fit = "auto",
        seed: int = 0,
        initialised: bool = True,
        model: LoadedModel | None = None,
        file: str = LINKED_MESH,
        model_3d_info: Any = None,
    ) -> io.NodeOutput:
        surface = normalise_mesh(placement_of(model_3d_info).apply(chosen_mesh(mesh, file)), normalise)
        gaussians = gaussians_on_mesh(surface, num_points, settings_for(model), seed, compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


def chosen_mesh(mesh: Any, file: str) -> Mesh:
    """Return the linked mesh, or that of the file.

    Raises:
        InputError: both, none, or a file that cannot be read as a mesh.
    """
    if (file == LINKED_MESH) == (mesh is None):
        fix = "link a mesh, or choose a file" if mesh is None else f"choose {LINKED_MESH!r} as file, or unlink the mesh"
        raise InputError(f"The file is {file!r} and a mesh is {'not ' if mesh is None else ''}linked; {fix}.")
    return from_native_mesh(mesh) if file == LINKED_MESH else read_mesh(known_file(file, *READABLE))


class NeRFToGaussians(io.ComfyNode):
    """Convert a NeRF to Gaussians on its surface, fitted to its renders."""

    TITLE = "NeRF to Gaussians"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerNeRFToGaussians",
            aliases=("nerf to splat", "convert", "3dgs"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Spreads Gaussians over the surface of a NeRF and fits them to its renders, to save it as a splat or "
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
    def execute(
        cls,
        field: FieldState,
        num_points: int = USUAL_COUNT,
        seed: int = 0,
        initialised: bool = True,
        model: LoadedModel | None = None,
    ) -> io.NodeOutput:
        nerf = expect(field, FieldState, "field").field
        if not isinstance(nerf, NeRF):
            raise InputError(f"The field must be a NeRF, got {nerf.summary()}; link it where this node's output goes.")
        progress = FitProgress(FIT_STEPS)
        hooks = {"check": progress.check, "watch": progress.view.hook()}
        gaussians = gaussians_from_nerf(nerf, num_points, settings_for(model), seed, **hooks)
        progress.end(gaussians)
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


class CleanGaussians(io.ComfyNode):
    """Remove Gaussians that do not belong to the object, after the last iteration (section V)."""

    TITLE = "Clean Gaussians"

    @classmethod
    def define_schema(cls) -> io.Schema:
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
                    tooltip="Its reference, if any, is added to the Gaussians as small discs, for splats to show or save.",
                ),
                types.Plan.Input("plan", optional=True, tooltip="Gives the reference's camera; needed only with a condition."),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The cleaned Gaussians.")],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState, condition: Conditioned | None = None, plan: SIRPlan | None = None) -> io.NodeOutput:
        state, gaussians = expect_gaussians(field, "field")
        cleaned = clean(gaussians)
        if condition is not None:
            reference = expect(condition, Conditioned, "condition").reference
            cleaned = with_reference(cleaned, reference, expect(plan, SIRPlan, "plan"))
        return io.NodeOutput(replace(state, field=cleaned))


NODES = (NewGaussians, NewNeRF, FieldFromMesh, NeRFToGaussians, CleanGaussians)
