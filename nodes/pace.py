"""How long a plan takes on this device: the seconds of earlier runs with the same preset, measured and kept."""

from __future__ import annotations

import json
import logging

from ..microdreamer_core.sir.iterations import Iteration
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.util.atomic import replace_file
from ..microdreamer_core.util.readable import readable_time
from .compat import compute_device, user_folder

log = logging.getLogger(__name__)

FILE = "microdreamer_pace.json"
_SHORT = 100
_MEMORY = 0.8  # of the running means: five iterations back still count a third


class PaceMeter:
    """Measures a run: seconds of a network evaluation and of an update, running means over the iterations.

    The first iteration, which may compile kernels and load the model, is not counted.
    """

    def __init__(self, plan: SIRPlan):
        self._plan = plan
        self._evaluations: int | None = None
        self._pace: tuple[float, float] | None = None

    def add(self, iteration: Iteration) -> None:
        """Add a finished iteration and keep the pace for the next plan."""
        before, self._evaluations = self._evaluations, iteration.evaluations
        if before is None or iteration.evaluations == before or not iteration.losses:
            return
        evaluation = iteration.seconds["refine"] / (iteration.evaluations - before)
        update = iteration.seconds["reconstruct"] / len(iteration.losses)
        old = self._pace or (evaluation, update)
        evaluation, update = (_MEMORY * o + (1 - _MEMORY) * n for o, n in zip(old, (evaluation, update), strict=True))
        self._pace = evaluation, update
        _write({**_read(), _key(self._plan): (evaluation, update)})


def expected_seconds(plan: SIRPlan) -> float | None:
    """Return how long all of a plan takes on this device; None before the first run with its preset.

    Evaluations are counted per view and per branch, so another number of views, guidance, steps or iterations than those of the
    measured run are allowed for; the sizes of images and field are taken as they were.
    """
    pace = _read().get(_key(plan))
    if pace is None:
        return None
    return pace[0] * plan.evaluations().total + pace[1] * (plan.init_steps + plan.iterations * plan.steps)


def expected_time(plan: SIRPlan) -> str:
    """Say how long a plan will take."""
    seconds = expected_seconds(plan)
    if seconds is None:
        return "the first run with this preset measures how long it takes on this device"
    length = f"{seconds:.0f} s" if seconds < _SHORT else f"{readable_time(seconds)} min"
    return f"about {length} on this device, as measured in the last run with this preset"


def _key(plan: SIRPlan) -> str:
    return f"{plan.name} on {compute_device().type}"


def _read() -> dict[str, tuple[float, float]]:
    try:
        return json.loads((user_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged
        return {}


def _write(paces: dict[str, tuple[float, float]]) -> None:
    try:
        with replace_file(user_folder() / FILE) as temporary:
            temporary.write_text(json.dumps(paces), encoding="utf-8")
    except (OSError, ValueError) as error:
        log.debug("The pace of this run is not kept: %s.", error)
