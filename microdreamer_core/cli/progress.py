"""Progress display of the command line: a bar with the time left on a terminal, a few plain lines if output is piped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from ..checkpoints.download import Listener
from ..job.run import Job
from ..sir.hooks import Hooks
from ..sir.iterations import Iteration
from ..sir.plan import SIRPlan
from ..util.readable import readable_time
from . import interrupts

if TYPE_CHECKING:
    from tqdm import tqdm

STAGES = {
    "load model": "loading the model",
    "sir": "optimising",
    "clean": "cleaning the Gaussians",
    "mesh": "making the mesh",
    "refine texture": "refining the texture",
    "files": "writing the files",
}
_MOST_LINES = 20
_MEMORY = 0.05
_BAR = "{percentage:3.0f}%|{bar:16}| {elapsed}{postfix}"


class TimeLeft:
    """Remaining seconds of an optimisation, estimated from its latest steps.

    Network calls and reconstruction steps take different times and alternate, so each kind has its own running mean. The first
    step of a kind, which may compile kernels, is ignored.

    Args:
        steps: number of steps by kind.
        clock: returns seconds.
    """

    def __init__(self, steps: dict[str, int], clock: Callable[[], float] = time.monotonic):
        self._left = dict(steps)
        self._clock = clock
        self._seen = dict.fromkeys(steps, 0)
        self._pace: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def begins(self, kind: str) -> None:
        """Start timing a step of this kind, which ends the one before."""
        self.ends()
        self._current = (kind, self._clock())

    def ends(self) -> None:
        """End the current step."""
        if self._current is None:
            return
        kind, since = self._current
        self._current = None
        self._left[kind] = max(self._left[kind] - 1, 0)
        self._seen[kind] += 1
        if self._seen[kind] == 1:
            return
        seconds = self._clock() - since
        self._pace[kind] = (1 - _MEMORY) * self._pace.get(kind, seconds) + _MEMORY * seconds

    def seconds(self) -> float | None:
        """Return the remaining seconds; None until every kind of step still to come has been timed."""
        kinds = [kind for kind, left in self._left.items() if left]
        if any(kind not in self._pace for kind in kinds):
            return None
        return sum(self._left[kind] * self._pace[kind] for kind in kinds)


def count_steps(plan: SIRPlan, seed: int, first: int) -> dict[str, int]:
    """Count the network calls and reconstruction steps of the iterations from ``first`` on."""
    times = plan.times(seed)[max(first, 0) :]
    steps = {"refine": sum(t.calls for t in times), "reconstruct": plan.steps * len(times)}
    if first < 0:
        steps["refine"] += plan.discretization
        steps["reconstruct"] += plan.init_steps
    return steps


class JobProgress:
    """Progress display of a job on stderr; a context manager whose ``hooks`` are passed to the job.

    Args:
        quiet: show nothing.
        stream: stderr if None; shows a bar on a terminal, otherwise at most about 20 lines for the iterations.
        goal: what is made after the iterations.
    """

    def __init__(self, job: Job, quiet: bool = False, stream: TextIO | None = None, goal: str = "the mesh"):
        plan = job.plan
        steps = count_steps(plan, job.seed, job.first)
        self.hooks = Hooks(check=interrupts.check, progress=self._advance)
        self._iterations, self._goal = plan.iterations, goal
        self._every = math.ceil(max(plan.iterations, 1) / _MOST_LINES)
        self._left = TimeLeft(steps)
        self._stage = self._finished = ""
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._bar = None
        if not quiet and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=sum(steps.values()), file=self._stream, bar_format=_BAR, dynamic_ncols=True)

    def __enter__(self) -> JobProgress:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        if self._bar is None:
            return
        if error_type is None:
            self._bar.set_postfix_str("done")
        self._bar.close()

    def stage(self, name: str) -> None:
        """Show that a stage of the job begins."""
        self._left.ends()
        self._stage = name
        self._finished = STAGES.get(name, name)
        self._show(self._finished)

    def iteration(self, iteration: Iteration) -> None:
        """Show that an iteration is finished."""
        self._left.ends()
        self._finished = _describe(iteration, self._iterations)
        if self._bar is not None:  # the next step shows it
            return
        if iteration.k < 0 or iteration.k + 1 == self._iterations or (iteration.k + 1) % self._every == 0:
            self._show(f"{self._finished}{self._time_left(', ', f', then {self._goal}')}")

    def _advance(self, kind: str, done: int, total: int) -> None:
        self._left.begins(kind)
        if self._bar is None:
            return
        self._bar.set_postfix_str(f"{self._time_left('', ', ')}{self._finished}", refresh=False)
        self._bar.update(1)

    def _show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._quiet:
            self._stream.write(f"microdreamer: {text}\n")
            self._stream.flush()

    def _time_left(self, before: str, after: str) -> str:
        seconds = self._left.seconds()
        if self._stage != "sir" or not seconds:
            return ""
        return f"{before}{readable_time(seconds)} left{after}"


def _describe(iteration: Iteration, iterations: int) -> str:
    name = "start" if iteration.times is None else f"k {iteration.k + 1}/{iterations}, t2 {iteration.times.t2}"
    return f"{name}, loss {iteration.losses[-1]:.0f}, {iteration.field.summary()}"


class DownloadProgress(Listener):
    """Bytes, rate and time left of a download on stderr: a bar on a terminal, a line every half minute elsewhere.

    Args:
        stream: stderr when None.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._bar: tqdm[Any] | None = None

    def note(self, text: str) -> None:
        """Write a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(f"microdreamer: {text}\n")

    def progress(self, done: int, total: int | None) -> None:
        """Show how many of a file's bytes are there; stops the download when the user asks for it."""
        interrupts.check()
        if self._bar is None:
            from tqdm import tqdm

            pause = 0.2 if self._stream.isatty() else 30.0
            self._bar = tqdm(
                total=total, initial=done, unit="B", unit_scale=True, file=self._stream, mininterval=pause, dynamic_ncols=True
            )
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
