"""Saving of files, and turntables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.mesh_files import write_mesh
from ..microdreamer_core.io.ply import Up, write_splat_ply
from ..microdreamer_core.io.video import render_frames
from ..microdreamer_core.job.outputs import film_cameras
from ..microdreamer_core.sir.plan import SIRPlan
from . import types
from .compat import FOLDER, ProgressBar, graph_record, interrupt_check, io, save_path, schema
from .render import viewer
from .states import STATE_SUFFIX, save_field
from .types import Conditioned, FieldState, core_call, expect, expect_gaussians, from_native_mesh


def _prefix_input(name: str) -> io.Input:
    return io.String.Input(
        "filename_prefix", default=f"{FOLDER}/{name}", tooltip="Folder and name in ComfyUI's output folder; a number is added."
    )


def _announce(key: str, path: Path, subfolder: str) -> io.NodeOutput:
    """The output of a node that saves a file: its path for viewers, and its history entry for API clients."""
    relative = f"{subfolder}/{path.name}" if subfolder else path.name
    return io.NodeOutput(relative, ui={key: [{"filename": path.name, "subfolder": subfolder, "type": "output"}]})


def _path_output() -> io.Output:
    return io.String.Output(
        id="path_out", display_name="path", tooltip="Path below ComfyUI's output folder, e.g. for Preview 3D."
    )


class SaveMesh(io.ComfyNode):
    """Save a mesh as GLB, OBJ or PLY."""

    TITLE = "Save Mesh"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSaveMesh",
            aliases=("export glb", "obj", "gltf"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Saves a mesh with its texture; link the path to Preview 3D to view it. A glb keeps the graph that "
            "made it.",
            is_output_node=True,
            inputs=[
                io.Mesh.Input("mesh", tooltip="The mesh to save."),
                _prefix_input("mesh"),
                io.Combo.Input(
                    "format",
                    options=["glb", "obj", "ply"],
                    default="glb",
                    tooltip="glb and obj keep the texture, ply vertex colours.",
                ),
            ],
            outputs=[_path_output()],
        )

    @classmethod
    @core_call
    def execute(cls, mesh: Any, filename_prefix: str = f"{FOLDER}/mesh", format: str = "glb") -> io.NodeOutput:
        if format not in ("glb", "obj", "ply"):
            raise InputError(f"The format must be glb, obj or ply, got {format!r}.")
        path, subfolder = save_path(filename_prefix, f".{format}")
        record = {"source": "ComfyUI", **graph_record(cls.hidden)}
        return _announce("3d", write_mesh(path, from_native_mesh(mesh), record), subfolder)


class SaveSplat(io.ComfyNode):
    """Save Gaussians as a 3DGS PLY."""

    TITLE = "Save Splat"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSaveSplat",
            aliases=("export ply", "3dgs"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Saves the Gaussians as the .ply that splat viewers read.",
            is_output_node=True,
            inputs=[
                types.FieldSocket.Input("field", tooltip="The Gaussians to save."),
                _prefix_input("splat"),
                io.Combo.Input(
                    "up",
                    options=list(get_args(Up)),
                    default="-y",
                    optional=True,
                    tooltip="Up axis of the file: -y is what splat viewers expect, +y is this pack's own.",
                ),
            ],
            outputs=[_path_output()],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState, filename_prefix: str = f"{FOLDER}/splat", up: Up = "-y") -> io.NodeOutput:
        _, gaussians = expect_gaussians(field, "field")
        path, subfolder = save_path(filename_prefix, ".ply")
        return _announce("3d", write_splat_ply(path, gaussians, up), subfolder)


class SaveState(io.ComfyNode):
    """Save everything needed to continue a run."""

    TITLE = "Save State"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSaveState",
            aliases=("checkpoint run", "resume"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Saves a field with its optimiser state, seed and count, so that the run can continue exactly.",
            is_output_node=True,
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field to save."),
                _prefix_input("run"),
                types.Condition.Input(
                    "condition", optional=True, tooltip="With it and the plan, the command line can resume the run too."
                ),
                types.Plan.Input(
                    "plan", optional=True, tooltip="With it and the condition, the command line can resume the run too."
                ),
            ],
            outputs=[_path_output()],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        field: FieldState,
        filename_prefix: str = f"{FOLDER}/run",
        condition: Conditioned | None = None,
        plan: SIRPlan | None = None,
    ) -> io.NodeOutput:
        path, subfolder = save_path(filename_prefix, STATE_SUFFIX)
        if condition is not None:
            expect(condition, Conditioned, "condition")
        if plan is not None:
            expect(plan, SIRPlan, "plan")
        return _announce("files", save_field(path, expect(field, FieldState, "field"), condition, plan), subfolder)


class Turntable(io.ComfyNode):
    """Render one turn around a field or a mesh."""

    TITLE = "Turntable"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerTurntable",
            aliases=("orbit video", "spin", "360"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Renders one turn around a field or a mesh; link the images to any node that saves videos.",
            inputs=[
                types.FieldSocket.Input("field", optional=True, tooltip="What to render; this or a mesh."),
                io.Mesh.Input("mesh", optional=True, tooltip="What to render; this or a field."),
                io.Int.Input("frames", default=48, min=1, max=1000, tooltip="Images of the turn."),
                io.Int.Input("size", default=384, min=16, max=4096, tooltip="Side of the square images in pixels."),
                io.Float.Input("elevation", default=10.0, min=-89.0, max=89.0, step=1.0, tooltip="Degrees above the horizon."),
            ],
            outputs=[io.Image.Output(id="images_out", display_name="images", tooltip="The turn, starting at the front.")],
        )

    @classmethod
    @core_call
    def execute(
        cls, field: FieldState | None = None, mesh: Any = None, frames: int = 48, size: int = 384, elevation: float = 10.0
    ) -> io.NodeOutput:
        render, extent = viewer(field, mesh)
        bar = ProgressBar(frames)
        cameras = film_cameras(extent, frames, size, elevation)
        film = render_frames(render, cameras, lambda done, total: bar.update_absolute(done, total), interrupt_check)
        return io.NodeOutput(film)


NODES = (SaveMesh, SaveSplat, SaveState, Turntable)
