"""The command line's progress bar: iteration, t2, loss, Gaussians and the time left."""

from __future__ import annotations

import sys

from .job import Job
from .sir import Hooks, Iteration


class JobProgress:
    """A tqdm bar over the network calls and reconstruction steps of a job; a context manager."""

    def __init__(self, job: Job, quiet: bool = False):
        from tqdm import tqdm

        plan = job.plan
        times = plan.times(job.seed)[max(job.first, 0) :]
        total = sum(t.calls + plan.steps for t in times)
        if job.first < 0:
            total += plan.discretization + plan.init_steps
        self._bar = tqdm(total=total, disable=quiet, file=sys.stderr, unit="step", dynamic_ncols=True, leave=True)
        self._started = False
        self.hooks = Hooks(progress=self._advance)

    def __enter__(self) -> JobProgress:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def stage(self, name: str) -> None:
        """A stage of the job begins."""
        self._bar.set_description(name)

    def iteration(self, iteration: Iteration) -> None:
        """An iteration is finished."""
        t2 = "-" if iteration.times is None else iteration.times.t2
        text = f"k={iteration.k} t2={t2} loss={iteration.losses[-1]:.0f} gaussians={len(iteration.field)}"
        self._bar.set_postfix_str(text)

    def _advance(self, stage: str, done: int, total: int) -> None:
        # a hook tells how much of its stage was done before the step that begins now
        self._bar.update(1)
