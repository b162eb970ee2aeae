"""Doing the runs of a report that are not done yet, one after the other or in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TextIO

import torch

from ..errors import Cancelled, InputError
from ..util.hooks import Hook
from ..util.readable import readable_time
from .execute import execute
from .runs import Run, Store

MEMORY_MB = 1500
"""What a worker with a small model needs."""

_stop = None


class Progress:
    """Runs done and the time left, on stderr: a bar on a terminal, plain lines where the output is piped.

    Args:
        runs: still to be done. workers: processes that do them. kept: how many were done before.
        stream: stderr when None.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        workers: int,
        *,
        kept: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
    ):
        self._left = {run.key: run for run in runs}
        self._workers = workers
        self._seconds: dict[str, float] = {}
        self._work: dict[str, float] = {}
        self._total, self._quiet, self._stream = len(runs), quiet, stream or sys.stderr
        self._bar = None
        if runs and not quiet and self._stream.isatty():
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar:16}| {elapsed}{postfix}"
            self._bar = tqdm(total=self._total, file=self._stream, bar_format=form)
        if runs:
            self._tell(f"{len(runs)} runs to do, {kept} kept from before; {workers} at a time")

    def done(self, run: Run, seconds: float) -> None:
        """A run is finished and took this long."""
        self._left.pop(run.key, None)
        self._seconds[run.group] = self._seconds.get(run.group, 0.0) + seconds
        self._work[run.group] = self._work.get(run.group, 0.0) + run.work
        left = self.seconds_left()
        text = f"{self._total - len(self._left)}/{self._total} runs" + (f", {readable_time(left)} left" if left else "")
        if self._bar is not None:
            self._bar.update(1)
        self._tell(text)

    def _tell(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif not self._quiet:
            self._stream.write(f"microdreamer: {text}\n")
            self._stream.flush()

    def seconds_left(self) -> float | None:
        """From the pace of the runs of each kind; of all kinds for one that was not seen yet. None before the first."""
        if not self._seconds:
            return None
        overall = sum(self._seconds.values()) / sum(self._work.values())
        paces = {group: self._seconds[group] / self._work[group] for group in self._seconds}
        work = sum(run.work * paces.get(run.group, overall) for run in self._left.values())
        return work / max(1, min(self._workers, len(self._left)))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def run_all(
    runs: Sequence[Run],
    store: Store,
    workers: int = 1,
    *,
    check: Hook | None = None,
    on_done: Callable[[Run, float], None] | None = None,
) -> None:
    """Do all runs; every result is saved as soon as it is there, so that nothing finished is lost when this is stopped.

    Args:
        runs: none twice. workers: processes; 1 works in this one.
        check: called before every step of a run in this process, and twice a second while others work; raises to stop.
        on_done: called with each finished run and its seconds.

    Raises:
        InputError: a worker died.
    """
    if workers <= 1:
        _run_here(runs, store, check, on_done)
        return
    _run_parallel(runs, store, workers, check, on_done)


def choose_workers(wanted: int, runs: int, device: str, need: int = MEMORY_MB) -> int:
    """Processes to use: those wanted, or for 0 as many as cores and memory allow, and one on a GPU.

    Args:
        runs: how many there are to do. need: MB of memory of a worker.
    """
    if wanted < 0:
        raise InputError(f"The number of workers must be 0 (choose) or more, got {wanted}.")
    if wanted == 0:
        gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available()) or device == "mps"
        wanted = 1 if gpu else min(os.cpu_count() or 1, max(1, available_mb() // need))
    return max(1, min(wanted, runs))


def available_mb() -> int:
    """Free memory in MB; where the system does not tell, enough for two workers."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2 * MEMORY_MB


def _run_here(runs, store, check, on_done) -> None:
    """One after the other on one thread, as workers do, so that seconds do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in runs:
            begin = time.monotonic()
            execute(run, store, check)
            if on_done is not None:
                on_done(run, time.monotonic() - begin)
    finally:
        torch.set_num_threads(threads)


def _run_parallel(runs, store, workers, check, on_done) -> None:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang, and CUDA cannot be forked at all
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin, (stop,))
    try:
        # the longest first, so that no worker is left with one at the end
        waiting = {pool.submit(_run_timed, run, store): run for run in sorted(runs, key=lambda run: -run.work)}
        while waiting:
            for future in _wait_for_finished(waiting, check):
                run = waiting.pop(future)
                seconds = future.result()
                if on_done is not None:
                    on_done(run, seconds)
    except BrokenProcessPool as error:
        raise InputError(
            "A worker died, perhaps for want of memory; finished runs are kept: try again with fewer --workers."
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for_finished(waiting, check) -> set:
    """Futures that are done, after a wait of half a second at most."""
    done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
    if check is not None:
        check()
    return done


def _begin(stop) -> None:
    """A worker's first act: the parent alone answers Ctrl-C, and tells the workers to stop."""
    global _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop = stop
    torch.set_num_threads(1)


def _run_timed(run: Run, store: Store) -> float:
    begin = time.monotonic()
    execute(run, store, _check_stop)
    return time.monotonic() - begin


def _check_stop() -> None:
    if _stop is not None and _stop.is_set():
        raise Cancelled
