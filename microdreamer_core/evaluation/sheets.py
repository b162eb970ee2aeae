"""Contact sheets: what the methods made, beside the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..io.pictures import read_picture
from .content import Series, Setup, Sheet
from .runs import FOLDER, SHOWN_VIEWS, views_strip
from .sources import base_plan, picture_size, subject_for

_LABEL, _LETTERS, _GAP = 230, 15, 2
_SMALLEST_VIEW = 96


def truth_sheet(setup: Setup, series: list[Series], name: str) -> Sheet:
    """For each object the truth and below it the last field of every method, of the first seed."""
    plan = base_plan(setup.model)
    rows: list[tuple[str, Path | Tensor]] = []
    for index in range(setup.objects):
        subject = subject_for(index, plan.radius, plan.fov_y, picture_size(setup.model))
        rows.append((f"{subject.name} {index}: truth", views_strip(subject.pictures[list(SHOWN_VIEWS)])))
        rows += [(one.name, picture) for one in series if (picture := _picture(setup, one, index)) is not None]
    return Sheet(name, "Held-out views of every object, the last field of each method, first seed.", tuple(rows))


def _picture(setup: Setup, series: Series, index: int) -> Path | None:
    for run, result in zip(series.runs, series.results, strict=True):
        if result is not None and run.settings["object"] == index:
            return setup.folder / FOLDER / result["picture"]
    return None


def sheet_picture(sheet: Sheet) -> Tensor:
    """[H,W,3] in [0,1]: the strips below each other with their labels to the left; missing files are left out."""
    strips = [(label, _loaded(strip)) for label, strip in sheet.rows]
    strips = [(label, _enlarged(strip)) for label, strip in strips if strip is not None]
    width = max((strip.shape[1] for _, strip in strips), default=_SMALLEST_VIEW)
    lines = [_line(label, strip, width) for label, strip in strips]
    return torch.cat(lines) if lines else torch.ones(_SMALLEST_VIEW, width, 3)


def _loaded(strip: Path | Tensor) -> Tensor | None:
    if isinstance(strip, Tensor):
        return strip
    return read_picture(strip)[..., :3] if strip.is_file() else None


def _enlarged(strip: Tensor) -> Tensor:
    """Small pictures by a whole number, so that one can see them."""
    factor = -(-_SMALLEST_VIEW // strip.shape[0])
    return strip.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def _line(label: str, strip: Tensor, width: int) -> Tensor:
    from PIL import Image, ImageDraw, ImageFont

    height = strip.shape[0]
    canvas = Image.new("L", (_LABEL, height), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LETTERS)
    for i, words in enumerate(label.split(", ")):
        draw.text((6, 8 + i * (_LETTERS + 4)), words, fill=0, font=font)
    text = torch.from_numpy(np.array(canvas, np.float32) / 255)[..., None].expand(-1, -1, 3)
    line = torch.ones(height + _GAP, _LABEL + width, 3)
    line[:height, :_LABEL] = text
    line[:height, _LABEL : _LABEL + strip.shape[1]] = strip
    return line
