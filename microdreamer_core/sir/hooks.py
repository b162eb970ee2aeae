"""How a run reports progress and is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..util.hooks import Hook

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total) before each step of an iteration; stage is "refine" or "reconstruct"."""


@dataclass(frozen=True)
class Hooks:
    """How a run talks to its host: plain callables, all optional.

    Attributes:
        check: called before every network evaluation and reconstruction step; raises to stop.
        progress: called before every one of them too, with how many of its stage are done.
    """

    check: Hook | None = None
    progress: Progress | None = None

    def before(self) -> None:
        if self.check is not None:
            self.check()

    def counted(self, stage: str, total: int) -> Hook:
        """A hook that reports how often it was called and then checks."""
        done = 0

        def hook() -> None:
            nonlocal done
            if self.progress is not None:
                self.progress(stage, done, total)
            self.before()
            done += 1

        return hook
