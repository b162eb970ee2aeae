"""Fields from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.ply import Up, read_splat
from . import types
from .compat import FOLDER, compute_device, input_folder, io, output_folder, schema
from .field import refined_inputs, settings_for
from .states import STATE_SUFFIX, load_field
from .types import EXAMPLES, FieldState, LoadedModel, core_call

LINKED = "linked path"
"""The choice in a file list that uses the path linked to ``path`` instead."""


def _file_inputs(suffix: str, tooltip: str) -> list:
    """Return the inputs for a file, chosen from a list or linked from the node that writes it."""
    return [
        io.Combo.Input("file", options=[*_files(suffix), LINKED], tooltip=tooltip),
        io.String.Input(
            "path",
            optional=True,
            force_input=True,
            tooltip=f"Path below the output folder, from a node that saves; then choose {LINKED!r} as file.",
        ),
    ]


def _choose_file(file: str, path: str | None, suffix: str) -> Path:
    """The file named by the two inputs.

    Raises:
        InputError: no such file, or the inputs contradict each other.
    """
    if (file == LINKED) != bool(path):
        fix = "link the output of a node that saves" if file == LINKED else f"choose {LINKED!r} as file, or unlink the path"
        raise InputError(f"The file is {file!r} and the path {path!r}; {fix}.")
    return _known_file(f"output/{path}" if path else file, suffix)


class LoadSplat(io.ComfyNode):
    """Read Gaussians from a 3DGS PLY file as a field."""

    TITLE = "Field from Splat"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldFromSplat",
            aliases=("load splat", "load ply", "3dgs"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Reads 3D Gaussians from a .ply in the input or output folder, to refine or to mesh them.",
            inputs=[
                *_file_inputs(".ply", "A .ply with 3D Gaussians; those of samples/ come with the pack."),
                *refined_inputs(),
                io.Combo.Input(
                    "up",
                    options=["auto", *get_args(Up)],
                    default="auto",
                    optional=True,
                    tooltip="Up axis of the file: -y in 3D Gaussian splatting scenes, +y in some programs that make objects; "
                    "'auto' reads it from files of this pack and takes -y for others.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The Gaussians.")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return _validate(file, ".ply")

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return _read_time(file)

    @classmethod
    @core_call
    def execute(
        cls,
        file: str,
        seed: int = 0,
        initialised: bool = True,
        path: str | None = None,
        model: LoadedModel | None = None,
        up: Up | Literal["auto"] = "auto",
    ) -> io.NodeOutput:
        chosen, way = _choose_file(file, path, ".ply"), None if up == "auto" else up
        gaussians = read_splat(chosen, settings_for(model), seed, way).to(compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


class LoadState(io.ComfyNode):
    """Read a saved run, to continue it."""

    TITLE = "Load State"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerLoadState",
            aliases=("resume", "continue run"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Reads a field saved by Save State, an interrupted run or the command line, to continue its run.",
            inputs=[
                *_file_inputs(STATE_SUFFIX, "A saved state in the output or input folder."),
            ],
            outputs=[
                types.FieldSocket.Output(
                    id="field_out", display_name="field", tooltip="The field with its seed and iteration count."
                ),
                io.Int.Output(
                    id="k_out", display_name="k", tooltip="Its last finished iteration; -1 after the initialisation, -2 before."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return _validate(file, STATE_SUFFIX)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return _read_time(file)

    @classmethod
    @core_call
    def execute(cls, file: str, path: str | None = None) -> io.NodeOutput:
        state = load_field(_choose_file(file, path, STATE_SUFFIX), compute_device())
        return io.NodeOutput(state, state.next_k - 1)


def _folders() -> dict[str, Path]:
    return {"output": output_folder(), "input": input_folder(), "samples": EXAMPLES}


def _files(suffix: str) -> list[str]:
    """Names like "output/microdreamer/..." and "input/..." of the files with that suffix, newest first and the pack's own last.
    ComfyUI calls this often, so only the pack's output folder and the input folder itself are searched; other files can still
    be named."""
    folders, found = _folders(), []
    searched = {
        "output": (folders["output"] / FOLDER).rglob(f"*{suffix}"),
        "input": folders["input"].glob(f"*{suffix}"),
        "samples": EXAMPLES.glob(f"*{suffix}"),
    }
    for name, paths in searched.items():
        found += [
            (name != "samples", path.stat().st_mtime, f"{name}/{path.relative_to(folders[name]).as_posix()}")
            for path in paths
            if path.is_file()
        ]
    return [name for *_, name in sorted(found, reverse=True)]


def _validate(name: str, suffix: str) -> bool | str:
    """For ``validate_inputs``: True, or the error; a linked path is checked when the node runs."""
    try:
        if name != LINKED:
            _known_file(name, suffix)
    except InputError as error:
        return str(error)
    return True


def _known_file(name: str, suffix: str) -> Path:
    """The path of a file by name; nothing outside the known folders is ever opened.

    Raises:
        InputError: no such file there.
    """
    place, _, rest = name.partition("/")
    folder = _folders().get(place)
    path = None if folder is None else (folder / rest).resolve()
    if (
        folder is None
        or path is None
        or not path.is_relative_to(folder.resolve())
        or not path.is_file()
        or not path.name.endswith(suffix)
    ):
        raise InputError(
            f"There is no file {name!r} ending in {suffix}; give 'output/...', 'input/...' or 'samples/...' of one that exists."
        )
    return path


def _read_time(name: str) -> float:
    if name == LINKED:  # nodes that save give every file a new name
        return 0.0
    place, _, rest = name.partition("/")
    path = _folders().get(place, Path()) / rest
    return path.stat().st_mtime if path.is_file() else float("nan")


NODES = (LoadSplat, LoadState)
