"""Progress bar and live preview of a run."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..microdreamer_core.cli.progress import TimeLeft, count_steps
from ..microdreamer_core.sir.hooks import Hooks
from ..microdreamer_core.sir.iterations import Iteration
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.util.images import to_uint8
from .compat import ProgressBar, interrupt_check

PREVIEW_SIDE = 512
_CAPTION, _LETTERS = 26, 17


class RunProgress:
    """Progress of a SIR run in ComfyUI; its ``hooks`` are passed to the core. Every step can be interrupted."""

    def __init__(self, plan: SIRPlan, seed: int, first: int):
        steps = count_steps(plan, seed, first)
        self._plan = plan
        self._total, self._done = sum(steps.values()), 0
        self._bar = ProgressBar(max(self._total, 1))
        self._left = TimeLeft(steps)
        self.hooks = Hooks(check=interrupt_check, progress=self._advance)

    def iteration(self, iteration: Iteration) -> None:
        """Show the sheet of a finished iteration."""
        self._left.ends()
        picture = add_caption(iteration.sheet().numpy(), self._caption(iteration))
        self._bar.update_absolute(self._done, self._total, ("JPEG", picture, PREVIEW_SIDE))

    def _advance(self, kind: str, done: int, total: int) -> None:
        self._left.begins(kind)
        self._bar.update_absolute(self._done, self._total)
        self._done = min(self._done + 1, self._total)

    def _caption(self, iteration: Iteration) -> str:
        name = "start" if iteration.times is None else f"{iteration.k + 1}/{self._plan.iterations}  t2 {iteration.times.t2}"
        seconds = self._left.seconds()
        left = "" if seconds is None else f"  {round(seconds)} s left"
        return f"{name}  loss {iteration.losses[-1]:.0f}{left}"


def add_caption(sheet: np.ndarray, text: str) -> Image.Image:
    """Return an image [H,W,3] in [0,1] with a line of text below, enlarged by a whole number if it is small."""
    picture = Image.fromarray(to_uint8(sheet))
    scale = max(1, PREVIEW_SIDE // picture.width)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (picture.width, picture.height + _CAPTION), "white")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((6, picture.height + 2), text, fill="black", font=ImageFont.load_default(_LETTERS))
    return canvas
