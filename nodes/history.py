"""The time machine: iterations of a run, kept in ComfyUI's temporary folder, to look at and to take."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ..microdreamer_core.errors import InputError
from . import types
from .compat import FOLDER, compute_device, io, schema, temp_folder
from .states import STATE_SUFFIX, load_field, save_field
from .types import FieldState, core_call, expect

log = logging.getLogger(__name__)

RUNS = f"{FOLDER}/runs"
MOST_RUNS = 8
MOST_BYTES = 1 << 30
"""Of all runs; the oldest are removed first."""
MOST_STATES = 64
MOST_STATE_BYTES = 256 << 20
"""Of the states of one run; then every second one is removed, but never the first and the last two."""


class History:
    """Keeps the iterations of one run: its state, its sheet, and its packed splat.

    A run must not fail because the disk is full: then nothing more is kept, and the log says so.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self.run = uuid.uuid4().hex[:12]
        self._folder = _folder(self.run)
        self._iterations: list[dict] = []
        self._keeps = True

    def keep(self, state: FieldState, sheet: Image.Image, packed: bytes | None, text: str) -> None:
        """Keep a finished iteration, ``text`` says what it was."""
        if not self._keeps or state.k is None:
            return
        try:
            if not self._iterations:
                self._folder.mkdir(parents=True, exist_ok=True)
                _remove_old_runs(self._folder)
            path = _path(self._folder, state.k)
            save_field(path, state)
            sheet.save(path.with_name(f"{_number(state.k)}.jpg"), quality=85)
            if packed is not None:
                path.with_name(f"{_number(state.k)}.splat").write_bytes(packed)
            _thin_out(self._folder)
        except OSError as error:
            self._keeps = False
            log.warning("Iteration %d of the run and later ones are not kept for Take Iteration: %s.", state.k, error)
            return
        self._iterations.append({"k": state.k, "text": text, "splat": packed is not None})

    def facts(self) -> dict:
        """Return what the viewer needs to find the files ("folder" below the temporary folder, "iterations"), and "seed"."""
        return {"folder": f"{RUNS}/{self.run}", "iterations": self._iterations.copy(), "seed": self._seed}


def take(run: str, k: int) -> FieldState:
    """Return iteration ``k`` of a run.

    Raises:
        InputError: it is not kept; the message names those that are.
    """
    folder = _folder(run)
    kept = [int(path.name.partition(".")[0]) - 1 for path in _states(folder)]
    if not kept:
        raise InputError(
            f"The iterations of this run are gone: those of the last {MOST_RUNS} runs are kept; change the seed of Generate to "
            "run it again."
        )
    if k not in kept:
        raise InputError(f"Iteration {k} of this run is not kept; choose one of {', '.join(map(str, kept))} (-1 is the start).")
    state = load_field(_path(folder, k), compute_device())
    return FieldState(state.field, state.seed, state.k, run=run)


def _folder(run: str) -> Path:
    return temp_folder() / RUNS / run


def _number(k: int) -> str:
    return f"{k + 1:04d}"


def _path(folder: Path, k: int) -> Path:
    return folder / f"{_number(k)}{STATE_SUFFIX}"


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{STATE_SUFFIX}"))


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _thin_out(folder: Path) -> None:
    """Remove states until number and bytes are within bounds: each time the one whose neighbours are closest together."""
    states = _states(folder)
    while len(states) > 3 and (len(states) > MOST_STATES or _size(states) > MOST_STATE_BYTES):
        numbers = [int(path.name.partition(".")[0]) for path in states]
        least = min(range(1, len(states) - 2), key=lambda i: numbers[i + 1] - numbers[i - 1])
        states.pop(least).unlink()


def _remove_old_runs(newest: Path) -> None:
    """Remove the oldest runs until number and bytes are within bounds."""
    runs = sorted((path for path in newest.parent.iterdir() if path != newest), key=lambda path: path.stat().st_mtime)
    while runs and (len(runs) >= MOST_RUNS or _size(file for run in runs for file in run.iterdir()) > MOST_BYTES):
        shutil.rmtree(runs.pop(0), ignore_errors=True)


class TakeIteration(io.ComfyNode):
    """Take the field of an earlier iteration of a run."""

    TITLE = "Take Iteration"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerTakeIteration",
            aliases=("time machine", "history", "earlier iteration", "MicroDreamer"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="The field of any iteration of a run, as the slider on Generate shows it: mesh it, save it, or let "
            "Generate continue from it.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field of Generate; it knows its run."),
                io.Int.Input(
                    "iteration",
                    default=0,
                    min=-1,
                    max=10000,
                    tooltip="Number k as the slider shows it; -1 is the start, before the first iteration.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field of that iteration.")],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState, iteration: int = 0) -> io.NodeOutput:
        state = expect(field, FieldState, "field")
        if not state.run:
            raise InputError("This field comes from no run whose iterations are kept; link the field of Generate.")
        sheet = {"filename": f"{_number(iteration)}.jpg", "subfolder": f"{RUNS}/{state.run}", "type": "temp"}
        return io.NodeOutput(take(state.run, iteration), ui={"images": [sheet]})


NODES = (TakeIteration,)
