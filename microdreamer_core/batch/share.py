"""A queue of tasks and the workers that take from it: nothing is lost when a worker dies, and nothing is done twice."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from ..errors import Cancelled, InputError
from ..util.hooks import Hook
from .tasks import Task, save_result

MOST_LOSSES = 3
"""Workers that a task may lose before it is given up."""


class WorkerLost(Exception):
    """A worker is gone, and its task with it; the message says why."""


class Worker(Protocol):
    """Does one task at a time."""

    def submit(self, task: Task, /) -> Future[dict]:
        """Start a task; its future raises if the worker is gone."""
        ...

    def renew(self) -> Worker | None:
        """Return what takes this worker's place when it is lost; None if nothing can."""
        ...

    def stop(self) -> None:
        """End the current task soon."""
        ...

    def close(self) -> None:
        """Wait until the worker has ended."""
        ...


class ThreadWorker:
    """A thread that has tasks done elsewhere.

    Args:
        do: do(task, check) returns a result and calls ``check`` often, which raises to stop.
    """

    def __init__(self, do: Callable[[Task, Hook], dict]):
        self._do = do
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def submit(self, task: Task) -> Future[dict]:
        return self._pool.submit(self._do, task, self._check)

    def renew(self) -> Worker | None:
        return None

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled


def share(tasks: Iterable[Task], workers: Sequence[Worker], check: Hook | None = None) -> Iterator[tuple[Task, dict]]:
    """Let workers do all tasks, started in their order, and yield each with its result when it is done.

    The task of a lost worker goes to another one; after ``MOST_LOSSES`` it has failed.

    Args:
        check: called twice a second; when it raises, the workers stop.

    Raises:
        InputError: no worker is left.
    """
    waiting = deque((task, 0) for task in tasks)
    idle, running, reason = deque(workers), {}, ""
    try:
        while waiting or running:
            while waiting and idle:
                worker, entry = idle.popleft(), waiting.popleft()
                running[worker.submit(entry[0])] = worker, entry
            if not running:
                raise InputError(f"No worker is left ({reason}); what is finished is kept, and the same command continues.")
            for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                worker, (task, losses) = running.pop(future)
                try:
                    result = future.result()
                except (WorkerLost, BrokenProcessPool) as error:
                    reason, worker, losses = str(error), worker.renew(), losses + 1
                    if losses < MOST_LOSSES:
                        waiting.appendleft((task, losses))
                    else:
                        result = {"failed": f"{losses} workers died of it ({reason}); perhaps the memory is full."}
                        save_result(task, result)
                        yield task, result
                else:
                    yield task, result
                if worker is not None:
                    idle.append(worker)
            if check is not None:
                check()
    finally:
        everyone = [*idle, *(worker for worker, _ in running.values())]
        for worker in everyone:
            worker.stop()
        for worker in everyone:
            worker.close()
