"""Execution of a single run, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import InputError, NumericalError, out_of_memory
from ..sir.hooks import Hooks
from ..util.hooks import Hook
from .pictures import clip_run, generation_run, mesh_run
from .runs import Run, Store, sds_run, sir_run

EXECUTORS: dict[str, Callable[[Run, Store, Hooks], dict]] = {
    "sir": sir_run,
    "sds": sds_run,
    "generation": generation_run,
    "mesh": mesh_run,
    "clip": clip_run,
}


def execute(run: Run, store: Store, check: Hook | None = None) -> dict:
    """Do a run and save its result; one that fails by its own numbers or input is saved as failed, with the reason.

    Args:
        check: called before every network evaluation and reconstruction step; raises to stop.
    """
    hooks = Hooks(check=check)
    try:
        result = EXECUTORS[run.kind](run, store, hooks)
    except (InputError, NumericalError) as error:
        result = {"failed": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        result = {"failed": "The memory is full; use fewer --workers, another --device, or Gaussians alone."}
    store.save(run, result)
    return result
