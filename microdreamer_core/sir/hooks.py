"""Callbacks by which a run reports progress and is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..fields.protocol import Field
from ..util.hooks import Hook

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total) before each step of an iteration; stage is "refine" or "reconstruct"."""

Watch = Callable[[Callable[[], Field]], None]
"""watch(current) after each step of a reconstruction; ``current()`` copies the field as it is at that moment."""


@dataclass(frozen=True)
class Hooks:
    """Optional callbacks of a run, for progress and cancellation.

    Attributes:
        check: called before every network evaluation and reconstruction step; raises to stop.
        progress: called at the same points, with the number of steps of the stage that are done.
        watch: called after every reconstruction step, to show the field while it forms.
    """

    check: Hook | None = None
    progress: Progress | None = None
    watch: Watch | None = None

    def before(self) -> None:
        """Call ``check``, if there is one."""
        if self.check is not None:
            self.check()

    def count(self, stage: str, total: int) -> Hook:
        """Return a hook that reports the number of its earlier calls as progress of ``stage`` and then checks.

        >>> hook = Hooks(progress=lambda *done: print(done)).count("refine", 2)
        >>> hook(); hook()
        ('refine', 0, 2)
        ('refine', 1, 2)
        """
        done = 0

        def hook() -> None:
            nonlocal done
            if self.progress is not None:
                self.progress(stage, done, total)
            self.before()
            done += 1

        return hook
