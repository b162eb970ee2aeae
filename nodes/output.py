"""Files and films."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.mesh_files import write_mesh
from ..microdreamer_core.io.ply import read_splat_ply, write_splat_ply
from ..microdreamer_core.io.video import render_frames
from ..microdreamer_core.job_files import film_cameras
from ..microdreamer_core.render.mesh import render_mesh
from ..microdreamer_core.schedule import SIRPlan
from . import types
from .compat import FOLDER, ProgressBar, compute_device, input_folder, interrupt_check, io, output_folder, save_path, schema
from .states import load_field, save_field
from .types import Conditioned, FieldState, core_call, expect, from_native_mesh

STATE_SUFFIX = ".state.safetensors"


def _prefix_input(name: str):
    return io.String.Input(
        "filename_prefix", default=f"{FOLDER}/{name}", tooltip="Folder and name in the host's output folder; a number is added."
    )


def _saved(key: str, path: Path, subfolder: str):
    """The result of a node that saved a file: its path for viewers, and its entry in the history for API clients."""
    relative = f"{subfolder}/{path.name}" if subfolder else path.name
    return io.NodeOutput(relative, ui={key: [{"filename": path.name, "subfolder": subfolder, "type": "output"}]})


def _path_output():
    return io.String.Output(
        id="path_out", display_name="path", tooltip="Path below the host's output folder; Preview 3D takes it."
    )


class SaveMesh(io.ComfyNode):
    """GLB, OBJ or PLY."""

    TITLE = "Save Mesh"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerSaveMesh",
            aliases=("export glb", "obj", "gltf"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Writes a mesh with its texture; link the path to Preview 3D to look at it.",
            is_output_node=True,
            inputs=[
                io.Mesh.Input("mesh", tooltip="The mesh to write."),
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
    def execute(cls, mesh, filename_prefix=f"{FOLDER}/mesh", format="glb"):
        if format not in ("glb", "obj", "ply"):
            raise InputError(f"The format must be glb, obj or ply, got {format!r}.")
        path, subfolder = save_path(filename_prefix, f".{format}")
        return _saved("3d", write_mesh(path, from_native_mesh(mesh), {"source": "ComfyUI"}), subfolder)


class SaveSplat(io.ComfyNode):
    """3DGS PLY."""

    TITLE = "Save Splat"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerSaveSplat",
            aliases=("export ply", "3dgs"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Writes the Gaussians as the .ply that splat viewers read.",
            is_output_node=True,
            inputs=[types.FieldSocket.Input("field", tooltip="The Gaussians to write."), _prefix_input("splat")],
            outputs=[_path_output()],
        )

    @classmethod
    @core_call
    def execute(cls, field, filename_prefix=f"{FOLDER}/splat"):
        path, subfolder = save_path(filename_prefix, ".ply")
        return _saved("3d", write_splat_ply(path, expect(field, FieldState, "field").field), subfolder)


class LoadSplat(io.ComfyNode):
    """3DGS PLY."""

    TITLE = "Field from Splat"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerFieldFromSplat",
            aliases=("load splat", "load ply", "3dgs"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Reads 3D Gaussians from a .ply of the input or output folder, to refine or to mesh them.",
            inputs=[
                io.Combo.Input("file", options=_files(".ply"), tooltip="A .ply with 3D Gaussians."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, tooltip="Seed of a run that goes on from here."),
                io.Boolean.Input(
                    "initialised",
                    default=True,
                    tooltip="On: a run goes on with iteration 0. Off: it initialises from pure noise.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The Gaussians.")],
        )

    @classmethod
    def validate_inputs(cls, file):
        """Files that came after the list was shown are welcome too."""
        return _validated(file, ".ply")

    @classmethod
    def fingerprint_inputs(cls, file, **_):
        """Read again when the file has changed."""
        return _changed(file)

    @classmethod
    @core_call
    def execute(cls, file, seed=0, initialised=True):
        gaussians = read_splat_ply(_known_file(file, ".ply"), seed=seed).to(compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


class SaveState(io.ComfyNode):
    """All that a run needs to go on."""

    TITLE = "Save State"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerSaveState",
            aliases=("checkpoint run", "resume"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Writes a field with its optimiser, seed and count, so that the run can go on as if it never stopped.",
            is_output_node=True,
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field to keep."),
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
    def execute(cls, field, filename_prefix=f"{FOLDER}/run", condition=None, plan=None):
        path, subfolder = save_path(filename_prefix, STATE_SUFFIX)
        if condition is not None:
            expect(condition, Conditioned, "condition")
        if plan is not None:
            expect(plan, SIRPlan, "plan")
        return _saved("files", save_field(path, expect(field, FieldState, "field"), condition, plan), subfolder)


class LoadState(io.ComfyNode):
    """A saved run."""

    TITLE = "Load State"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerLoadState",
            aliases=("resume", "continue run"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Reads a field that Save State, an interrupted Generate or the command line left, to go on with it.",
            inputs=[
                io.Combo.Input("file", options=_files(STATE_SUFFIX), tooltip="A saved state of the output or input folder.")
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field with its seed and count."),
                io.Int.Output(
                    id="k_out", display_name="k", tooltip="Its last finished iteration; -1 after the initialisation."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file):
        """Files that came after the list was shown are welcome too."""
        return _validated(file, STATE_SUFFIX)

    @classmethod
    def fingerprint_inputs(cls, file):
        """Read again when the file has changed."""
        return _changed(file)

    @classmethod
    @core_call
    def execute(cls, file):
        state = load_field(_known_file(file, STATE_SUFFIX), compute_device())
        return io.NodeOutput(state, state.next_k - 1)


class Turntable(io.ComfyNode):
    """A film."""

    TITLE = "Turntable"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerTurntable",
            aliases=("orbit video", "spin", "360"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Pictures of one turn around a field or a mesh; link them to any node that saves films.",
            inputs=[
                types.FieldSocket.Input("field", optional=True, tooltip="What to film; this or a mesh."),
                io.Mesh.Input("mesh", optional=True, tooltip="What to film; this or a field."),
                io.Int.Input("frames", default=48, min=1, max=1000, tooltip="Pictures of the turn."),
                io.Int.Input("size", default=384, min=16, max=4096, tooltip="Pixels of the square pictures."),
                io.Float.Input("elevation", default=10.0, min=-89.0, max=89.0, step=1.0, tooltip="Degrees above the horizon."),
            ],
            outputs=[io.Image.Output(id="images_out", display_name="images", tooltip="The turn, starting in front.")],
        )

    @classmethod
    @core_call
    def execute(cls, field=None, mesh=None, frames=48, size=384, elevation=10.0):
        if (field is None) == (mesh is None):
            raise InputError("Turntable films a field or a mesh, got both or none; link exactly one.")
        if mesh is not None:
            mesh = from_native_mesh(mesh)
            extent = float(mesh.vertices.norm(dim=1).max())
            render = lambda views: render_mesh(mesh, views, supersample=2).rgb  # noqa: E731 - one of two
        else:
            gaussians = expect(field, FieldState, "field").field
            splats = gaussians.splats()
            extent = float(np.quantile((splats.means.norm(dim=1) + 2 * splats.scales.amax(1)).cpu().numpy(), 0.99))
            render = lambda views: gaussians.render(views).rgb  # noqa: E731 - one of two
        bar = ProgressBar(frames)
        cameras = film_cameras(extent, frames, size, elevation)
        film = render_frames(render, cameras, lambda done, total: bar.update_absolute(done, total), interrupt_check)
        return io.NodeOutput(film)


def _folders() -> dict[str, Path]:
    return {"output": output_folder(), "input": input_folder()}


def _files(suffix: str) -> list[str]:
    """Names like "output/microdreamer/..." and "input/..." of the files with that ending, newest first. Hosts ask often, so
    only the pack's own output folder and the input folder itself are searched; other files can still be named."""
    folders, found = _folders(), []
    searched = {"output": (folders["output"] / FOLDER).rglob(f"*{suffix}"), "input": folders["input"].glob(f"*{suffix}")}
    for name, paths in searched.items():
        found += [
            (path.stat().st_mtime, f"{name}/{path.relative_to(folders[name]).as_posix()}") for path in paths if path.is_file()
        ]
    return [name for _, name in sorted(found, reverse=True)]


def _validated(name: str, suffix: str) -> bool | str:
    """For ``validate_inputs``: True, or what is wrong."""
    try:
        _known_file(name, suffix)
    except InputError as error:
        return str(error)
    return True


def _known_file(name: str, suffix: str) -> Path:
    """The path of a file by name; nothing outside the two folders is ever opened.

    Raises:
        InputError: no such file there.
    """
    place, _, rest = name.partition("/")
    folder = _folders().get(place)
    path = None if folder is None else (folder / rest).resolve()
    if path is None or not path.is_relative_to(folder.resolve()) or not path.is_file() or not path.name.endswith(suffix):
        raise InputError(f"There is no file {name!r} ending in {suffix}; give 'output/...' or 'input/...' of one that exists.")
    return path


def _changed(name: str) -> float:
    place, _, rest = name.partition("/")
    path = _folders().get(place, Path()) / rest
    return path.stat().st_mtime if path.is_file() else float("nan")


NODES = (SaveMesh, SaveSplat, LoadSplat, SaveState, LoadState, Turntable)
