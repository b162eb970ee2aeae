"""Independent tasks in one process or several, each with one thread of torch: seconds do not depend on their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ..errors import Cancelled, InputError
from .hooks import Hook

T = TypeVar("T")
Task = Callable[[T, Hook | None], Any]
"""task(item, check): does an item and calls ``check`` often, which raises to stop."""

_stop = None


def run_here(task: Task[T], items: Sequence[T], check: Hook | None = None) -> Iterator[T]:
    """Do all items in this process and yield each when it is done; torch's number of threads is put back at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for item in items:
            task(item, check)
            yield item
    finally:
        torch.set_num_threads(threads)


def run_parallel(task: Task[T], items: Sequence[T], workers: int, check: Hook | None = None) -> Iterator[T]:
    """Do all items in processes, started in their order, and yield each when it is done.

    Args:
        task: can be pickled. check: called twice a second in this process; when it raises, the workers stop.

    Raises:
        BrokenProcessPool: a worker died.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang, and CUDA cannot be forked at all
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (stop,))
    try:
        waiting = {pool.submit(_do, task, item): item for item in items}
        while waiting:
            for future in wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED).done:
                future.result()
                yield waiting.pop(future)
            if check is not None:
                check()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class WorkerProcess(Generic[T]):
    """A process that does tasks one by one and ends with its parent.

    Args:
        task: can be pickled. environment: variables set in the process before it does anything.
    """

    def __init__(self, task: Task[T], environment: dict[str, str] | None = None):
        self._task, self._environment = task, environment or {}
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(1, context, _begin_worker, (self._stop, self._environment))

    def submit(self, item: T) -> Future[Any]:
        """Start a task; its future raises ``BrokenProcessPool`` if the process dies."""
        return self._pool.submit(_do, self._task, item)

    def renew(self) -> WorkerProcess[T]:
        """Start another process in place of one that died."""
        self.close()
        return WorkerProcess(self._task, self._environment)

    def stop(self) -> None:
        """End the current task at its next check."""
        self._stop.set()

    def close(self) -> None:
        """Wait until the process has ended."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def choose_workers(wanted: int, items: int, device: str, need: int) -> int:
    """Choose the number of processes: ``wanted``, or if 0 as many as cores and memory allow, and one on a GPU.

    Args:
        items: number of tasks. need: MB of memory per worker; two fit where the system does not report its free memory.

    Raises:
        InputError: ``wanted`` is negative.
    """
    if wanted < 0:
        raise InputError(f"The number of workers must be 0 (choose) or more, got {wanted}.")
    if wanted == 0:
        gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available()) or device == "mps"
        wanted = 1 if gpu else min(os.cpu_count() or 1, max(1, (free_memory_mb() or 2 * need) // need))
    return max(1, min(wanted, items))


def free_memory_mb() -> int | None:
    """Return the system's free memory in MB; None where the system does not report it."""
    kilobytes = read_proc("meminfo", "MemAvailable")
    return None if kilobytes is None else kilobytes // 1024


def read_proc(name: str, key: str) -> int | None:
    """Read a number from one of Linux's files of ``KEY: NUMBER UNIT`` lines."""
    try:
        lines = (Path("/proc") / name).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))
    except (OSError, StopIteration, ValueError):
        return None


def _begin_worker(stop: Any, environment: dict[str, str] | None = None) -> None:
    """Initialise a worker: it ignores Ctrl-C, stops when the parent process tells it to, and ends with it."""
    global _stop
    os.environ.update(environment or {})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop = stop
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Wait until the parent process is gone, however it ended; a pool's worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(task: Task[T], item: T) -> Any:
    return task(item, _check_stop)


def _check_stop() -> None:
    if _stop is not None and _stop.is_set():
        raise Cancelled
