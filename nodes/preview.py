"""Progress bar, live preview and viewer of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..microdreamer_core.cameras import DEFAULT_FOV_Y, distance_to_hold, orbit_cameras
from ..microdreamer_core.cli.progress import TimeLeft, count_steps
from ..microdreamer_core.fields.gaussians import Gaussians
from ..microdreamer_core.fields.protocol import WHITE
from ..microdreamer_core.sir.hooks import Hooks
from ..microdreamer_core.sir.iterations import Iteration
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.util.images import to_uint8
from .compat import ProgressBar, interrupt_check
from .history import History
from .pace import PaceMeter
from .stream import LiveView, pack_field
from .types import FieldState

PREVIEW_SIDE = 512
_CAPTION, _LETTERS = 26, 17
_PARTS = 100  # of a stage
_ELEVATION, _DISTANCE = 15.0, distance_to_hold(0.85)


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
        self._seed = seed
        self._total, self._done = sum(steps.values()), 0
        self._bar = ProgressBar(max(self._total, 1))
        self._left = TimeLeft(steps)
        self._pace = PaceMeter(plan)
        self._history = History(seed)
        self._view = LiveView.of_plan(plan, elevation, folder=self._history.facts()["folder"])
        self.run = self._history.run
        self.hooks = Hooks(interrupt_check, self._advance, self._view.hook())

    def iteration(self, iteration: Iteration) -> None:
        """Show a finished iteration and keep it."""
        self._left.ends()
        self._pace.add(iteration)
        text = self._caption(iteration)
        picture = add_caption(iteration.sheet().numpy(), text)
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
        seconds = round(self._left.seconds() or 0)
        left = f"  {seconds} s left" if seconds else ""
        return f"{_describe(iteration)}{left}"


def _describe(iteration: Iteration) -> str:
    times = iteration.times
    name = "start" if times is None else f"{iteration.k + 1}/{iteration.step.plan.iterations}  t2 {times.t2}"
    return f"{name}  loss {iteration.losses[-1]:.0f}"


def show_pass(iteration: Iteration, bar: ProgressBar, total: int, elevation: float = 0.0) -> Tensor:
    """Show a pass of a loop in the node that ends it: its sheet as preview, its field in the viewer.

    Args:
        bar: of the node, with ``total`` steps.
        elevation: of the reference in degrees.

    Returns:
        The sheet [2S, V S, 3].
    """
    sheet = iteration.sheet()
    picture = add_caption(sheet.numpy(), _describe(iteration))
    bar.update_absolute(total, total, ("JPEG", picture, PREVIEW_SIDE))
    view = LiveView.of_plan(iteration.step.plan, elevation)
    if view.target is not None:
        view.show(pack_field(iteration.field))
    return sheet


class FitProgress:
    """Progress of a fit whose Gaussians are shown while they form, from a camera that sees all of a usual object."""

    def __init__(self, steps: int):
        self._steps, self._bar = steps, ProgressBar(steps)
        self.view = LiveView((_ELEVATION, 0.0, _DISTANCE, DEFAULT_FOV_Y))

    def check(self) -> None:
        """Count a step; raises if the user has cancelled."""
        interrupt_check()
        self._bar.update(1)

    def end(self, field: Gaussians) -> None:
        """Show the result."""
        sides = [0.0, 90.0, 180.0, 270.0]
        cameras = orbit_cameras(_ELEVATION, sides, _DISTANCE, width=PREVIEW_SIDE // len(sides), device=field.device)
        picture = Image.fromarray(to_uint8(torch.cat(list(field.render(cameras, WHITE).rgb.cpu()), 1).numpy()))
        self._bar.update_absolute(self._steps, self._steps, ("JPEG", picture, PREVIEW_SIDE))
        if self.view.target is not None:
            self.view.show(pack_field(field))


class StageProgress:
    """Progress and previews of a computation in stages.

    Args:
        stages: names, in their order.
    """

    def __init__(self, stages: Sequence[str]):
        self._stages, self._current = stages, 0
        self._total = _PARTS * len(stages)
        self._bar = ProgressBar(self._total)

    def begin(self, name: str, *_: int) -> None:
        """Begin a stage."""
        self._current = self._stages.index(name)
        self._bar.update_absolute(_PARTS * self._current, self._total)

    def show(self, image: Tensor, part: float) -> None:
        """Show an image [H,W,3] in [0,1] of the result so far; ``part`` of the stage is done."""
        picture = Image.fromarray(to_uint8(image.detach().cpu().numpy()))
        done = round(_PARTS * (self._current + part))
        self._bar.update_absolute(done, self._total, ("JPEG", picture, PREVIEW_SIDE))


def add_caption(sheet: np.ndarray, text: str) -> Image.Image:
    """Return an image [H,W,3] in [0,1] with a line of text below, enlarged by a whole number if it is small."""
    picture = Image.fromarray(to_uint8(sheet))
    scale = max(1, PREVIEW_SIDE // picture.width)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (picture.width, picture.height + _CAPTION), "white")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((6, picture.height + 2), text, fill="black", font=ImageFont.load_default(_LETTERS))
    return canvas
