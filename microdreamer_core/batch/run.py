"""A batch: kept results, the work that is left, the progress display and the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..job.record import write_json
from ..util.atomic import write_bytes
from ..util.hooks import Hook
from ..util.task_bar import task_bar
from .items import Item
from .page import write_page
from .share import Worker, share
from .tasks import Task, find_result

_PAUSE = 10.0
"""Least seconds between two writings of the page while the batch runs."""


@dataclass
class Batch:
    """A batch's output folder and what is known of its items.

    Attributes:
        results: by the items' names, in their order; None for one that is not done yet.
        kept: number of results from before.
    """

    folder: Path
    items: Sequence[Item]
    results: dict[str, dict | None] = field(default_factory=dict)
    kept: int = 0

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def numbers(self) -> Path:
        return self.folder / "results.json"

    @property
    def failures(self) -> dict[str, str]:
        """Why, by name."""
        return {name: result["failed"] for name, result in self.results.items() if result and "failed" in result}

    @property
    def made(self) -> int:
        """Number of assets made now."""
        return sum(result is not None for result in self.results.values()) - len(self.failures) - self.kept

    def write(self) -> None:
        """Write the page and the numbers."""
        write_bytes(self.page, write_page(self.folder.resolve().name, self.items, self.results).encode())
        write_json(self.numbers, {"items": [{"name": name, **(result or {})} for name, result in self.results.items()]})


def run_batch(
    folder: Path,
    items: Sequence[Item],
    plan: Callable[[Item], Task],
    start: Callable[[int], Sequence[Worker]],
    *,
    quiet: bool = True,
    check: Hook | None = None,
) -> Batch:
    """Make what is not made yet, and write the page now and then and at the end, also of a batch that is stopped.

    Args:
        folder: exists; no other process writes there.
        plan: plans an item's task; its error is the item's failure.
        start: starts workers for a number of tasks.
        check: called twice a second; raises to stop.

    Raises:
        InputError: no worker is left.
    """
    batch, tasks = Batch(folder, items, dict.fromkeys(item.name for item in items)), []
    for item in items:
        try:
            task = plan(item)
        except (InputError, OSError, UnicodeDecodeError) as error:
            batch.results[item.name] = {"failed": str(error)}
            continue
        batch.results[item.name] = find_result(task)
        if batch.results[item.name] is None:
            tasks.append(task)
        else:
            batch.kept += 1
    batch.write()
    written = time.monotonic()
    try:
        for task, result in _show(tasks, batch, start, quiet, check):
            batch.results[task.item.name] = result
            if time.monotonic() - written > _PAUSE:
                batch.write()
                written = time.monotonic()
    finally:
        batch.write()
    return batch


def _show(
    tasks: Sequence[Task], batch: Batch, start: Callable[[int], Sequence[Worker]], quiet: bool, check: Hook | None
) -> Iterable[tuple[Task, dict]]:
    """Do the tasks and show their progress on stderr."""
    if not tasks:
        return
    workers = start(len(tasks))
    with task_bar(len(tasks), quiet) as bar:
        bar.set_postfix_str(f"{len(tasks)} to make, {batch.kept} kept from before; {len(workers)} at a time")
        for done, (task, result) in enumerate(share(tasks, workers, check), 1):
            yield task, result
            failed = f", {len(batch.failures)} failed" if batch.failures else ""
            bar.set_postfix_str(f"{done}/{len(tasks)}{failed}", refresh=False)
            bar.update()
