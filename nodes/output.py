"""Saving of files, and turntables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.glb import glb_bytes
from ..microdreamer_core.io.mesh_files import SUFFIXES, write_mesh
from ..microdreamer_core.io.splats import ply_bytes, write_gaussians
from ..microdreamer_core.io.video import render_frames
from ..microdreamer_core.job.outputs import film_cameras
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.util.vocabulary import SPLAT_FORMATS, UPS, Up
from . import types
from .compat import (
    FOLDER,
    ProgressBar,
    file_3d,
    file_3d_class,
    file_3d_output,
    graph_record,
    interrupt_check,
    io,
    mesh_input,
    save_path,
    schema,
)
from .render import viewer
from .states import STATE_SUFFIX, save_field
from .types import Conditioned, FieldState, core_call, expect, expect_gaussians, from_native_mesh

FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)


def _prefix_input(name: str) -> io.Input:
    return io.String.Input(
        "filename_prefix", default=f"{FOLDER}/{name}", tooltip="Folder and name in ComfyUI's output folder; a number is added."
    )


def _announce(key: str, path: Path, subfolder: str, *more: Any) -> io.NodeOutput:
    """The output of a node that saves a file: its path for viewers, and its history entry for API clients."""
    relative = f"{subfolder}/{path.name}" if subfolder else path.name
    return io.NodeOutput(relative, *more, ui={key: [{"filename": path.name, "subfolder": subfolder, "type": "output"}]})


def _path_output() -> io.Output:
    return io.String.Output(
        id="path_out", display_name="path", tooltip="Path below ComfyUI's output folder, e.g. for Preview 3D."
    )


class SaveMesh(io.ComfyNode):
    """Save a mesh as GLB, OBJ or PLY."""

    TITLE = "MicroDreamer Save Mesh"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSaveMesh",
            aliases=("save mesh", "export glb", "obj", "gltf"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Saves a mesh with its texture; link the path to Preview 3D to view it. A glb keeps the graph that "
            "made it.",
            is_output_node=True,
            inputs=[
                mesh_input("mesh", tooltip="The mesh, or 3D file, to save."),
                _prefix_input("mesh"),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="glb",
                    tooltip="glb and obj keep the texture, ply vertex colours, stl the shape alone; glb also keeps the other "
                    "maps of a material.",
                ),
            ],
            outputs=[
                _path_output(),
                *file_3d_output("File3DGLB", "The mesh as glb, whatever the format saved, for ComfyUI's nodes of 3D files."),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, mesh: Any, filename_prefix: str = f"{FOLDER}/mesh", format: str = "glb") -> io.NodeOutput:
        if format not in FORMATS:
            raise InputError(f"The format must be one of {', '.join(FORMATS)}, got {format!r}.")
        path, subfolder = save_path(filename_prefix, f".{format}")
        record, shape = {"source": "ComfyUI", **graph_record(cls.hidden)}, from_native_mesh(mesh)
        write_mesh(path, shape, record)
        content = path if format == "glb" or file_3d_class() is None else glb_bytes(shape, record)
        return _announce("3d", path, subfolder, *file_3d(content, ".glb"))


class SaveSplat(io.ComfyNode):
    """Save Gaussians as a splat file."""

    TITLE = "MicroDreamer Save Splat"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSaveSplat",
            aliases=("save splat", "export ply", "3dgs", "spz", "supersplat", "khr_gaussian_splatting"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Saves the Gaussians in a format that splat viewers read.",
            is_output_node=True,
            inputs=[
                types.FieldSocket.Input("field", tooltip="The Gaussians to save."),
                _prefix_input("splat"),
                io.Combo.Input(
                    "up",
                    options=list(UPS),
                    default="-y",
                    optional=True,
                    tooltip="Up axis of the file: -y is what splat viewers expect, +y is this pack's own. A glb is always +y.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(SPLAT_FORMATS),
                    default="ply",
                    optional=True,
                    tooltip="ply keeps all numbers; compressed.ply (SuperSplat), spz and splat are smaller, with 8 to 11 bits "
                    "a number; glb is glTF with KHR_gaussian_splatting.",
                ),
            ],
            outputs=[
                _path_output(),
                *file_3d_output(
                    "File3DPLY", "The splat as ply, whatever the format saved, for Preview Splat and ComfyUI's 3D files."
                ),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls, field: FieldState, filename_prefix: str = f"{FOLDER}/splat", up: Up = "-y", format: str = "ply"
    ) -> io.NodeOutput:
        if format not in SPLAT_FORMATS:
            raise InputError(f"The format must be one of {', '.join(SPLAT_FORMATS)}, got {format!r}.")
        _, gaussians = expect_gaussians(field, "field")
        path, subfolder = save_path(filename_prefix, f".{format}")
        write_gaussians(path, gaussians, up)
        content = path if format == "ply" or file_3d_class() is None else ply_bytes(gaussians, up)
        return _announce("3d", path, subfolder, *file_3d(content, ".ply"))


class SaveState(io.ComfyNode):
    """Save everything needed to continue a run."""

    TITLE = "SIR Save State"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerSaveState",
            aliases=("save state", "checkpoint run", "resume"),
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

    TITLE = "MicroDreamer Turntable"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerTurntable",
            aliases=("turntable", "orbit video", "spin", "360"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Renders one turn around a field or a mesh; link the images to any node that saves videos.",
            inputs=[
                types.FieldSocket.Input("field", optional=True, tooltip="What to render; this or a mesh."),
                mesh_input("mesh", optional=True, tooltip="What to render, a mesh or 3D file of any size; this or a field."),
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
