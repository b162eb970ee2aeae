"""Files of the input and output folders as inputs of nodes: chosen from a list, or linked."""

from __future__ import annotations

from pathlib import Path

from ..microdreamer_core.errors import InputError
from .compat import FOLDER, input_folder, io, output_folder
from .types import EXAMPLES

MODELS = "3d"
"""Folder of 3D files in ComfyUI's input folder."""
LINKED = "linked path"
"""The choice in a file list that uses the path linked to ``path`` instead."""


def file_inputs(suffixes: tuple[str, ...], tooltip: str) -> list:
    """Return the inputs for a file, chosen from a list or linked from the node that writes it."""
    return [
        io.Combo.Input("file", options=[*list_files(*suffixes), LINKED], tooltip=tooltip),
        io.String.Input(
            "path",
            optional=True,
            force_input=True,
            tooltip=f"Path below the output folder, from a node that saves; then choose {LINKED!r} as file.",
        ),
    ]


def choose_file(file: str, path: str | None, *suffixes: str) -> Path:
    """Return the file named by the two inputs.

    Raises:
        InputError: no such file, or the inputs contradict each other.
    """
    if (file == LINKED) != bool(path):
        fix = "link the output of a node that saves" if file == LINKED else f"choose {LINKED!r} as file, or unlink the path"
        raise InputError(f"The file is {file!r} and the path {path!r}; {fix}.")
    return known_file(f"output/{path}" if path else file, *suffixes)


def _folders() -> dict[str, Path]:
    return {"output": output_folder(), "input": input_folder(), "samples": EXAMPLES}


def list_files(*suffixes: str) -> list[str]:
    """Return names like "output/microdreamer/..." and "input/..." of files with these suffixes, newest first and the pack's own
    last.

    ComfyUI calls this often, so only the pack's output folder, the input folder itself and its folder of 3D files are
    searched; other files can still be named.
    """
    folders, found = _folders(), []
    searched = [
        ("output", (folders["output"] / FOLDER).rglob("*")),
        ("input", folders["input"].glob("*")),
        ("input", (folders["input"] / MODELS).rglob("*")),
        ("samples", EXAMPLES.glob("*")),
    ]
    for name, paths in searched:
        found += [
            (name != "samples", path.stat().st_mtime, f"{name}/{path.relative_to(folders[name]).as_posix()}")
            for path in paths
            if path.name.lower().endswith(suffixes) and path.is_file()
        ]
    return [name for *_, name in sorted(found, reverse=True)]


def validate_file(name: str, *suffixes: str, linked: str = LINKED) -> bool | str:
    """For ``validate_inputs``: return True, or the error; what is ``linked`` is checked when the node runs."""
    try:
        if name != linked:
            known_file(name, *suffixes)
    except InputError as error:
        return str(error)
    return True


def known_file(name: str, *suffixes: str) -> Path:
    """Return the path of a file by name; nothing outside the known folders is ever opened.

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
        or not path.name.lower().endswith(suffixes)
    ):
        raise InputError(
            f"There is no file {name!r} ending in {' or '.join(suffixes)}; give 'output/...', 'input/...' or 'samples/...' of "
            "one that exists."
        )
    return path


def modification_time(name: str, linked: str = LINKED) -> float:
    """For ``fingerprint_inputs``: return when the file was changed, nan if it is missing."""
    if name == linked:  # nodes that save give every file a new name
        return 0.0
    place, _, rest = name.partition("/")
    path = _folders().get(place, Path()) / rest
    return path.stat().st_mtime if path.is_file() else float("nan")
