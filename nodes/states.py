"""Saved runs: what the nodes and the command line read from each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..microdreamer_core.io.state import load_state, save_state
from ..microdreamer_core.schedule import SIRPlan
from .types import Conditioned, FieldState


def save_field(path: Path, state: FieldState, conditioned: Conditioned | None = None, plan: SIRPlan | None = None) -> Path:
    """Write a field with its seed and count; with condition and plan, ``microdreamer resume`` can go on with it."""
    extra = {"seed": state.seed, "k": state.k, "source": "ComfyUI"}
    if conditioned is not None:
        extra |= {"model": conditioned.source.name, "reference": conditioned.reference.to_json()}
    if plan is not None:
        extra["plan"] = asdict(plan)
    return save_state(path, state.field, extra)


def load_field(path: Path, device) -> FieldState:
    """Read a saved field.

    Raises:
        InputError: not a saved field.
    """
    saved = load_state(path, device)
    return FieldState(saved.field, int(saved.extra.get("seed", 0)), saved.extra.get("k"))
