"""Mesh extraction and texture baking."""

from __future__ import annotations

from typing import Any, get_args

from ..microdreamer_core.convert.mesh_to_gaussians import Fit, fit_placement, placement_on
from ..microdreamer_core.fields.texture import TextureField
from ..microdreamer_core.job.outputs import box_of
from ..microdreamer_core.mesh import Placement
from ..microdreamer_core.meshing.pipeline import STAGES, bake_pictures, surface_mesh
from ..microdreamer_core.meshing.project import project_reference
from ..microdreamer_core.meshing.settings import EXTRACTORS, MeshSettings
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.stages import reference_view
from . import types
from .compat import interrupt_check, io, mesh_input, model_info_input, schema
from .native_mesh import placement_of
from .preview import StageProgress
from .types import Conditioned, FieldState, core_call, expect, from_native_mesh, texture_image, to_native_mesh
from .widgets import setting_input


class ExtractMesh(io.ComfyNode):
    """Extract a closed surface with vertex colours from a field by marching cubes."""

    TITLE = "MicroDreamer Extract Mesh"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerExtractMesh",
            aliases=("extract mesh", "marching cubes", "splat to mesh"),
            display_name=cls.TITLE,
            category="MicroDreamer/Mesh",
            description="Extracts a closed, cleaned surface with vertex colours; the threshold is found automatically. Of a "
            "texture, it gives the mesh that the texture belongs to, as it is.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="A finished field; for Gaussians, use Clean Gaussians before."),
                setting_input(MeshSettings, "resolution"),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Density of the surface; 0 finds the largest that does not leak, or takes 5 with lgm.",
                ),
                setting_input(MeshSettings, "target_faces"),
                setting_input(MeshSettings, "smoothing"),
                io.Combo.Input(
                    "extractor",
                    options=list(EXTRACTORS),
                    default="density",
                    optional=True,
                    tooltip="density: the field's own density. lgm: the paper's way, a NeRF fitted to the field first (a "
                    "minute on a CPU); published with resolution 256, threshold 5, 50000 faces.",
                ),
            ],
            outputs=[io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The surface, without a texture yet.")],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        field: FieldState,
        resolution: int = 128,
        threshold: float = 0.0,
        target_faces: int = 30000,
        smoothing: int = 5,
        extractor: str = "density",
    ) -> io.NodeOutput:
        source = expect(field, FieldState, "field").field
        if isinstance(source, TextureField):
            return io.NodeOutput(to_native_mesh(source.mesh))
        settings = MeshSettings.of_extractor(
            extractor,
            resolution=resolution,
            threshold=threshold or None,
            target_faces=target_faces,
            smoothing=smoothing,
        )
        return io.NodeOutput(to_native_mesh(surface_mesh(source, settings, **_stages()).mesh))


class BakeTexture(io.ComfyNode):
    """Unwrap a mesh and bake renders of a field onto it by back-projection."""

    TITLE = "MicroDreamer Bake Texture"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerBakeTexture",
            aliases=("bake texture", "uv unwrap", "xatlas", "texture"),
            display_name=cls.TITLE,
            category="MicroDreamer/Mesh",
            description="Unwraps a mesh and bakes renders of the field onto it.",
            inputs=[
                mesh_input(
                    "mesh",
                    tooltip="From Extract Mesh, or any mesh or 3D file: one that Field from Mesh normalised comes back in its "
                    "own place and size.",
                ),
                types.FieldSocket.Input("field", tooltip="The Gaussians or NeRF that give the colours."),
                setting_input(MeshSettings, "texture_size", step=64),
                setting_input(MeshSettings, "views"),
                setting_input(MeshSettings, "view_size", step=64),
                types.Condition.Input(
                    "condition",
                    optional=True,
                    tooltip="Its reference, if any, is projected onto the texture at full size. Refine Texture does that too.",
                ),
                types.Plan.Input("plan", optional=True, tooltip="Gives the reference's camera; needed only with a condition."),
            ],
            outputs=[
                io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The textured mesh."),
                io.Image.Output(id="texture_out", display_name="texture", tooltip="Its texture."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        mesh: Any,
        field: FieldState,
        texture_size: int = 1024,
        views: int = 18,
        view_size: int = 512,
        condition: Conditioned | None = None,
        plan: SIRPlan | None = None,
    ) -> io.NodeOutput:
        settings = MeshSettings(texture_size=texture_size, views=views, view_size=view_size)
        source = expect(field, FieldState, "field").field
        view = None
        if condition is not None:
            view = reference_view(expect(condition, Conditioned, "condition").reference, expect(plan, SIRPlan, "plan"))
        mesh = from_native_mesh(mesh)
        placement = fit_placement(mesh)
        if not placement.is_identity:  # the field lies where its mesh was normalised to, or was never moved
            placement = placement_on(mesh, box_of(source))
        mesh = bake_pictures(placement.apply(mesh), source, settings, **_stages()).mesh
        mesh = placement.undo(project_reference(mesh, view))
        return io.NodeOutput(to_native_mesh(mesh), texture_image(mesh))


class FitMesh(io.ComfyNode):
    """Move a mesh to where the cameras look, and remember from where."""

    TITLE = "Fit Mesh"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFitMesh",
            aliases=("normalise mesh", "normalize", "center mesh", "scale mesh", "load mesh"),
            display_name=cls.TITLE,
            category="MicroDreamer/Mesh",
            description="Centres a mesh and scales its longest side to 1, where the cameras look; Undo Fit brings a result "
            "back into the mesh's own place and size.",
            inputs=[
                mesh_input("mesh", tooltip="Any mesh or 3D file."),
                io.Combo.Input(
                    "normalise",
                    options=list(get_args(Fit)),
                    default="always",
                    tooltip="'auto' moves only a mesh that is far from the origin or from that size; 'never' only turns it as "
                    "in the viewer.",
                ),
                *model_info_input(),
            ],
            outputs=[
                io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The mesh where the cameras look."),
                types.Transform.Output(id="transform_out", display_name="transform", tooltip="How it was moved, for Undo Fit."),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, mesh: Any, normalise: Fit = "always", model_3d_info: Any = None) -> io.NodeOutput:
        mesh, turned = from_native_mesh(mesh), placement_of(model_3d_info)
        placement = turned.then(fit_placement(turned.apply(mesh), normalise))
        return io.NodeOutput(to_native_mesh(placement.apply(mesh)), placement)


class UndoFit(io.ComfyNode):
    """Move a mesh back to where Fit Mesh took it from."""

    TITLE = "Undo Fit"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerUndoFit",
            aliases=("restore transform", "original scale", "denormalise mesh"),
            display_name=cls.TITLE,
            category="MicroDreamer/Mesh",
            description="Moves a mesh back into the place and size that it had before Fit Mesh.",
            inputs=[
                mesh_input("mesh", tooltip="A mesh that lies where the cameras look, e.g. of Extract Mesh or Bake Texture."),
                types.Transform.Input("transform", tooltip="From Fit Mesh."),
            ],
            outputs=[io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The mesh in its own place and size.")],
        )

    @classmethod
    @core_call
    def execute(cls, mesh: Any, transform: Placement) -> io.NodeOutput:
        return io.NodeOutput(to_native_mesh(expect(transform, Placement, "transform").undo(from_native_mesh(mesh))))


def _stages() -> dict:
    progress = StageProgress(STAGES)
    return {"on_stage": progress.begin, "show": progress.show, "check": interrupt_check}


NODES = (ExtractMesh, BakeTexture, FitMesh, UndoFit)
