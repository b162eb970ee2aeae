"""Independent runs: a run's settings are hashed into its key, and its result is a JSON file of that name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from dataclasses import field as default
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError, NumericalError, out_of_memory
from ..job.record import hash_values, read_json, write_json
from ..sir.hooks import Hooks
from ..util.hooks import Hook
from ..util.processes import run_here, run_parallel
from ..util.task_bar import task_bar
from .statistics import Estimate, Samples

REVISION = 2
"""Incremented when the same settings give different results than before, which invalidates old results."""


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        kind: first part of its key. function: does it; function(run, folder, hooks) returns JSON values.
        settings: JSON values that the result depends on.
        place: JSON values that it does not depend on, such as paths.
        work: approximate duration in any unit, for the time left.
    """

    kind: str
    function: Callable[[Run, Path, Hooks], dict]
    settings: dict
    place: dict = default(default_factory=dict)
    work: float = 1.0

    @property
    def sample(self) -> tuple[Any, int]:
        """The object's index or the path of the image, and the seed."""
        return self.settings.get("object", self.place.get("picture")), self.settings.get("seed", self.place.get("seed", 0))

    @property
    def key(self) -> str:
        """Kind, and a hash of everything that determines the result."""
        return f"{self.kind}-{hash_values([REVISION, __version__, self.kind, self.settings])}"

    def load(self, folder: Path) -> dict:
        """Read the result from the folder of runs: empty if there is none, ``{"failed": why}`` of a failed run."""
        content = read_json(folder / f"{self.key}.json")
        result = content.get("result") if content.get("key") == self.key else None
        return result if isinstance(result, dict) else {}

    def execute(self, check: Hook | None = None, *, folder: Path) -> dict:
        """Do the run and save its result, atomically; if the input or the numbers fail, that is the result.

        Args:
            check: called before every network evaluation and reconstruction step; raises to stop.
        """
        try:
            result = self.function(self, folder, Hooks(check=check))
        except (InputError, NumericalError) as error:
            result = {"failed": str(error)}
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            result = {"failed": "The memory is full; use fewer --workers, another --device, or Gaussians alone."}
        write_json(folder / f"{self.key}.json", self.record(result))
        return result

    def record(self, result: dict | None) -> dict:
        """The run with its result, as JSON."""
        return {"key": self.key, "kind": self.kind, "settings": self.settings, "result": result}


def is_done(result: dict) -> bool:
    """Whether a run came to an end with this result."""
    return bool(result) and "failed" not in result


def to_json(value: Any) -> dict:
    """Convert a dataclass to the values that reading it back from JSON would give."""
    return json.loads(json.dumps(asdict(value)))


def run_all(
    runs: Sequence[Run], folder: Path, workers: int = 1, *, kept: int = 0, quiet: bool = True, check: Hook | None = None
) -> None:
    """Do all runs and save every result immediately, so that nothing finished is lost when stopped.

    A run's seconds do not depend on the number of workers: each uses one thread.

    Args:
        runs: without duplicates. workers: processes; 1 uses this one. kept: runs done before, for the progress display.
        check: called before every step of a run in this process, or twice a second while workers run; raises to stop.

    Raises:
        InputError: a worker died.
    """
    task = partial(Run.execute, folder=folder)
    longest_first = sorted(runs, key=lambda run: -run.work)  # so that no worker is busy alone at the end
    finished = run_here(task, runs, check) if workers <= 1 else run_parallel(task, longest_first, workers, check)
    try:
        with task_bar(sum(run.work for run in runs), quiet or not runs) as bar:
            bar.set_postfix_str(f"{len(runs)} runs to do, {kept} kept from before; {workers} at a time")
            for done, run in enumerate(finished, 1):
                bar.set_postfix_str(f"{done}/{len(runs)} runs", refresh=False)
                bar.update(run.work)
    except BrokenProcessPool as error:
        raise InputError(
            "A worker died, perhaps from lack of memory; finished runs are kept: try again with fewer --workers."
        ) from error


@dataclass(frozen=True)
class Series:
    """Runs of one method, and their results."""

    name: str
    runs: tuple[Run, ...]
    results: tuple[dict, ...] = ()

    def attach(self, folder: Path) -> Series:
        """Return the series with its runs' results."""
        return replace(self, results=tuple(run.load(folder) for run in self.runs))

    @property
    def finished(self) -> list[tuple[Run, dict]]:
        """The runs that came to an end, with their results."""
        return [(run, result) for run, result in zip(self.runs, self.results, strict=True) if is_done(result)]

    def measure(self, read: Callable[..., float | None], *others: Series) -> Samples:
        """Read a number from every result, or from it and those of other series of the same subject and seed, where all are."""
        results = [{run.sample: result for run, result in one.finished} for one in (self, *others)]
        shared = [sample for sample in results[0] if all(sample in one for one in results)]
        found = {sample: read(*(one[sample] for one in results)) for sample in shared}
        return {sample: value for sample, value in found.items() if value is not None and not math.isnan(value)}

    def pick(self, value: str, row: int = -1) -> Samples:
        """Read a number from a row, the last one, of each run's scores."""
        return self.measure(lambda result: result["rows"][row][value])

    def estimate(self, value: str, row: int = -1) -> Estimate:
        """Estimate a number at the ends of the runs, or at another mark."""
        return Estimate.of_runs(self.pick(value, row))

    def minus(self, other: Series, value: str = "psnr") -> Estimate:
        """Estimate the paired difference to another series at the ends of the runs."""
        return Estimate.of_runs(self.measure(lambda ours, theirs: ours["rows"][-1][value] - theirs["rows"][-1][value], other))
