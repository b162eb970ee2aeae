"""Saved runs, shared between the nodes and the command line."""

from __future__ import annotations

from pathlib import Path

import torch

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.state import load_state, save_state
from ..microdreamer_core.job.run import run_record
from ..microdreamer_core.sir.plan import SIRPlan
from .compat import FOLDER, output_folder
from .types import Conditioned, FieldState

STATE_SUFFIX = ".state.safetensors"
INTERRUPTED = f"interrupted{STATE_SUFFIX}"


def save_field(path: Path, state: FieldState, conditioned: Conditioned | None = None, plan: SIRPlan | None = None) -> Path:
    """Save a field with its seed and count; with condition and plan, ``microdreamer resume`` can continue it."""
    record = run_record(state.seed, state.k, "ComfyUI", plan)
    if conditioned is not None:
        record = run_record(
            state.seed,
            state.k,
            "ComfyUI",
            plan,
            conditioned.source.name,
            conditioned.reference,
            options=conditioned.source.options,
            prompt=conditioned.prompt,
            negative=conditioned.negative,
        )
    return save_state(path, state.field, record)


def keep_interrupted(state: FieldState, conditioned: Conditioned | None, plan: SIRPlan | None) -> Path:
    """Save what an interrupted run has finished where Load State offers it, in place of what was kept there before."""
    folder = output_folder() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return save_field(folder / INTERRUPTED, state, conditioned, plan)


def load_field(path: Path, device: torch.device | str) -> FieldState:
    """Read a saved field.

    Raises:
        InputError: not a saved field.
    """
    saved = load_state(path, device)
    seed, k = saved.extra.get("seed", 0), saved.extra.get("k")
    if type(seed) is not int or not isinstance(k, int | None):
        raise InputError(f"{path.name} claims seed {seed!r} and iteration {k!r}, whole numbers are expected; use another copy.")
    return FieldState(saved.field, seed, k)
