"""Progress bar, live preview and viewer of a run."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..microdreamer_core.cli.progress import TimeLeft, count_steps
from ..microdreamer_core.sir.hooks import Hooks
from ..microdreamer_core.sir.iterations import Iteration
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.util.images import to_uint8
from .compat import ProgressBar, interrupt_check
from .history import History
from .stream import LiveView, pack_field
from .types import FieldState

PREVIEW_SIDE = 512
_CAPTION, _LETTERS = 26, 17


class RunProgress:
    """Progress of a SIR run in ComfyUI; its ``hooks`` are passed to the core. Every step can be interrupted.

    Args:
        first: the first iteration of the run.
        elevation: of the reference in degrees; the viewer starts with its camera.

    Attributes:
        run: name of the kept iterations, for ``FieldState.run``.
    """

    def __init__(self, plan: SIRPlan, seed: int, first: int, elevation: float = 0.0):
        steps = count_steps(plan, seed, first)
        self._plan, self._seed = plan, seed
        self._total, self._done = sum(steps.values()), 0
        self._bar = ProgressBar(max(self._total, 1))
        self._left = TimeLeft(steps)
        self._history = History(seed)
        self._view = LiveView.of_plan(plan, elevation)
        self.run = self._history.run
        self.hooks = Hooks(interrupt_check, self._advance, self._view.hook())

    def iteration(self, iteration: Iteration) -> None:
        """Show a finished iteration and keep it."""
        self._left.ends()
        text = self._caption(iteration)
        picture = captioned(iteration.sheet().numpy(), text)
        self._bar.update_absolute(self._done, self._total, ("JPEG", picture, PREVIEW_SIDE))
        packed = None if self._view.target is None else pack_field(iteration.field)
        self._history.keep(FieldState(iteration.field, self._seed, iteration.k), picture, packed, text)
        self._view.show(packed, **self._history.facts())

    def ui(self) -> dict:
        """Return what a node tells the page when it has ended: where the iterations lie, for the slider."""
        return {"microdreamer_run": [{"camera": self._view.camera, **self._history.facts()}]}

    def _advance(self, kind: str, done: int, total: int) -> None:
        self._left.begins(kind)
        self._bar.update_absolute(self._done, self._total)
        self._done = min(self._done + 1, self._total)

    def _caption(self, iteration: Iteration) -> str:
        name = "start" if iteration.times is None else f"{iteration.k + 1}/{self._plan.iterations}  t2 {iteration.times.t2}"
        seconds = round(self._left.seconds() or 0)
        left = f"  {seconds} s left" if seconds else ""
        return f"{name}  loss {iteration.losses[-1]:.0f}{left}"


def show_pass(iteration: Iteration, bar: ProgressBar, total: int, elevation: float = 0.0) -> Tensor:
    """Show a pass of a loop in the node that ends it: its sheet as preview, its field in the viewer.

    Args:
        bar: of the node, with ``total`` steps.
        elevation: of the reference in degrees.

    Returns:
        The sheet [2S, V S, 3].
    """
    sheet = iteration.sheet()
    times = iteration.times
    name = "start" if times is None else f"{iteration.k + 1}/{iteration.step.plan.iterations}  t2 {times.t2}"
    picture = captioned(sheet.numpy(), f"{name}  loss {iteration.losses[-1]:.0f}")
    bar.update_absolute(total, total, ("JPEG", picture, PREVIEW_SIDE))
    view = LiveView.of_plan(iteration.step.plan, elevation)
    if view.target is not None:
        view.show(pack_field(iteration.field))
    return sheet


def captioned(sheet: np.ndarray, text: str) -> Image.Image:
    """Return an image [H,W,3] in [0,1] with a line of text below, enlarged by a whole number if it is small."""
    picture = Image.fromarray(to_uint8(sheet))
    scale = max(1, PREVIEW_SIDE // picture.width)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (picture.width, picture.height + _CAPTION), "white")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((6, picture.height + 2), text, fill="black", font=ImageFont.load_default(_LETTERS))
    return canvas
