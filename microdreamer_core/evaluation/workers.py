"""Execution of a report's pending runs, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from ..errors import InputError, NumericalError, out_of_memory
from ..sir.hooks import Hooks
from ..util.hooks import Hook
from ..util.processes import run_here, run_parallel
from ..util.task_bar import task_bar
from .pictures import execute_clip, execute_generation, execute_mesh
from .refinement import execute_refinement, execute_scores
from .runs import Run, Store, execute_on_object

EXECUTORS: dict[str, Callable[[Run, Store, Hooks], dict]] = {
    **dict.fromkeys(("sir", "sds"), execute_on_object),
    "generation": execute_generation,
    "mesh": execute_mesh,
    "clip": execute_clip,
    "scores": execute_scores,
    "refinement": execute_refinement,
}
MEMORY_MB = 1500
"""Memory of a worker with a small model."""


def run_all(
    runs: Sequence[Run], store: Store, workers: int = 1, *, kept: int = 0, quiet: bool = True, check: Hook | None = None
) -> None:
    """Do all runs and save every result immediately, so that nothing finished is lost when stopped.

    A run's seconds do not depend on the number of workers: each uses one thread.

    Args:
        runs: without duplicates. workers: processes; 1 uses this one. kept: runs done before, for the progress display.
        check: called before every step of a run in this process, or twice a second while workers run; raises to stop.

    Raises:
        InputError: a worker died.
    """
    task, total = partial(_execute, store=store), sum(run.work for run in runs)
    longest_first = sorted(runs, key=lambda run: -run.work)  # so that no worker is busy alone at the end
    finished = run_here(task, runs, check) if workers <= 1 else run_parallel(task, longest_first, workers, check)
    try:
        with task_bar(total, quiet or not runs) as bar:
            bar.set_postfix_str(f"{len(runs)} runs to do, {kept} kept from before; {workers} at a time")
            for done, run in enumerate(finished, 1):
                bar.set_postfix_str(f"{done}/{len(runs)} runs", refresh=False)
                bar.update(run.work)
    except BrokenProcessPool as error:
        raise InputError(
            "A worker died, perhaps from lack of memory; finished runs are kept: try again with fewer --workers."
        ) from error


def _execute(run: Run, check: Hook | None, store: Store) -> None:
    execute(run, store, check)


def execute(run: Run, store: Store, check: Hook | None = None) -> dict:
    """Do a run and save its result; a run that fails by its input or numerically is saved as failed, with the reason.

    Args:
        check: called before every network evaluation and reconstruction step; raises to stop.
    """
    try:
        result = EXECUTORS[run.kind](run, store, Hooks(check=check))
    except (InputError, NumericalError) as error:
        result = {"failed": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        result = {"failed": "The memory is full; use fewer --workers, another --device, or Gaussians alone."}
    store.save(run, result)
    return result
