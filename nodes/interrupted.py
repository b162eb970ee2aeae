"""Loops that a run left unfinished: their last pass is kept in a file, and the next run of the same graph goes on after it.

"The same graph" must never be taken for granted: nodes may read files, and random seeds change. ComfyUI's cache knows, but does
not tell. So a loop is continued only if

* everything that its end depends on stands in the prompt as it did (classes, links and widgets), and
* the result of the first pass, whose nodes are the user's, is the very object of the interrupted run: ComfyUI then took it from
  its cache, because nothing above it has changed, files included.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .compat import at_prompt_end, notify
from .states import keep_interrupted
from .types import FieldState

if TYPE_CHECKING:
    from .loop import Box


@dataclass(frozen=True)
class UnfinishedLoop:
    """A loop after some of its passes.

    Attributes:
        prompt: all nodes that its end depends on, as text; None if that is not all that decides what a pass does.
        first: the result of the first pass.
        box: what the next pass starts with.
        index: the number of that pass.
    """

    prompt: str | None
    first: weakref.ref[FieldState]
    box: Box
    index: int


class _Loops:
    """The loops of the running prompt, and those that earlier prompts left unfinished, by the id of their end."""

    def __init__(self) -> None:
        self.running: dict[str, UnfinishedLoop] = {}
        self.left: dict[str, UnfinishedLoop] = {}
        self.latest: FieldState | None = None


_loops = _Loops()


def continue_after(end: str, prompt: str | None, first: FieldState, box: Box) -> UnfinishedLoop:
    """Note the first pass of a loop; return where it goes on: after that pass, or where an earlier prompt left the same loop.

    Args:
        end: the loop's end, a node of the user.
        prompt: see ``UnfinishedLoop``; None for a loop that is not continued.
        first: the result of the pass.
        box: what the next pass starts with.
    """
    left = _loops.left.pop(end, None)
    if left is not None and prompt is not None and left.prompt == prompt and left.first() is first:
        notify(f"The loop goes on after pass {left.index - 1} of the interrupted run.")
        loop = left
    else:
        loop = UnfinishedLoop(prompt, weakref.ref(first), box, 1)
    _loops.running[end] = loop
    return loop


def go_on(end: str, box: Box, index: int) -> None:
    """Note a later pass of such a loop; ``box`` and ``index`` are those of the pass that follows."""
    _loops.running[end] = replace(_loops.running[end], box=box, index=index)


def note_result(result: FieldState) -> None:
    """Note the result of a pass of any loop, which is kept in a file if the prompt ends before its loops do."""
    if _loops.latest is None:
        at_prompt_end(_keep_unfinished)
    _loops.latest = result


def forget(end: str) -> None:
    """Forget a loop that has ended."""
    _loops.running.pop(end, None)


def _keep_unfinished() -> None:
    """Keep the last pass of the prompt that has ended, if a loop has not."""
    latest, _loops.latest = _loops.latest, None
    _loops.left, _loops.running = _loops.running, {}
    if not _loops.left or latest is None:
        return
    for loop in _loops.left.values():
        loop.box.free_last()
    fit = latest.fit
    try:
        path = keep_interrupted(latest, None if fit is None else fit.condition(), None if fit is None else fit.plan)
    except OSError as error:
        notify(f"The last finished pass could not be kept in a file ({error}); free some disk space.", "error")
        return
    notify(
        f"The loop stopped before its end. Its last finished pass is kept in {path.name}, for Load State (press R to refresh "
        "its list); queue the same graph again to go on after it.",
        "warn",
    )
