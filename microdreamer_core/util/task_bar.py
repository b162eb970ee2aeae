"""The progress display of a queue of tasks."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_BAR = "microdreamer: {percentage:3.0f}%|{bar:16}| {elapsed}<{remaining}{postfix}"


def task_bar(total: float, quiet: bool) -> tqdm[Any]:
    """Open the bar on stderr, as a context manager; it is written less often to a log than to a terminal.

    Args:
        total: work of all tasks, in any unit. quiet: show nothing.
    """
    return tqdm(total=total, bar_format=_BAR, mininterval=0.5 if sys.stderr.isatty() else 10.0, disable=quiet)
