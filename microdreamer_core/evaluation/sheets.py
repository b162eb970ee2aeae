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

MOST_OBJECTS = 6
"""Beside each other on a sheet."""

_LABEL, _LETTERS, _GAP = 190, 15, 2
_SMALLEST_VIEW = 96
_FRONT_AND_BACK = (0, 2)


def truth_sheet(setup: Setup, series: list[Series], name: str) -> Sheet:
    """The truth of each object, and below it the last field of every method, of the first seed."""
    plan = base_plan(setup.model)
    objects = range(min(setup.objects, MOST_OBJECTS))
    subjects = [subject_for(i, plan.radius, plan.fov_y, picture_size(setup.model)) for i in objects]
    truth = tuple(two_views(views_strip(subject.pictures[list(SHOWN_VIEWS)])) for subject in subjects)
    rows = [("truth", truth), *((one.name, tuple(_picture(setup, one, i) for i in objects)) for one in series)]
    which = "every object" if setup.objects <= MOST_OBJECTS else f"the first {MOST_OBJECTS} objects"
    return Sheet(name, f"Two held-out views of {which}, first seed, the last field of each method.", tuple(rows))


def _picture(setup: Setup, series: Series, index: int) -> Tensor:
    """Two views of an object's first run; white where it failed."""
    for run, result in zip(series.runs, series.results, strict=True):
        if result is not None and run.settings["object"] == index:
            return two_views(read_picture(setup.folder / FOLDER / result["picture"])[..., :3])
    return torch.ones(_SMALLEST_VIEW, 2 * _SMALLEST_VIEW, 3)


def two_views(strip: Tensor) -> Tensor:
    """[S,4 S,3], views evenly spread around -> [S,2 S,3], two of them from opposite sides."""
    side = strip.shape[0]
    return torch.cat([strip[:, i * side : (i + 1) * side] for i in _FRONT_AND_BACK], 1)


def sheet_picture(sheet: Sheet) -> Tensor:
    """[H,W,3] in [0,1]: the rows below each other with their labels to the left."""
    lines = [_line(label, [_enlarge(_load_picture(picture)) for picture in pictures]) for label, pictures in sheet.rows]
    width = max(line.shape[1] for line in lines)
    return torch.cat([torch.nn.functional.pad(line, (0, 0, 0, width - line.shape[1]), value=1.0) for line in lines])


def _load_picture(picture: Tensor | Path) -> Tensor:
    return picture if isinstance(picture, Tensor) else read_picture(picture)[..., :3]


def _enlarge(picture: Tensor) -> Tensor:
    """Small pictures by a whole number, so that one can see them."""
    factor = -(-_SMALLEST_VIEW // picture.shape[0])
    return picture.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def _line(label: str, pictures: list[Tensor]) -> Tensor:
    """A row of pictures of any heights, as high as the highest."""
    from PIL import Image, ImageDraw, ImageFont

    height = max(picture.shape[0] for picture in pictures)
    canvas = Image.new("L", (_LABEL, height), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LETTERS)
    draw.multiline_text((6, 8), label.replace(", ", "\n").replace(" as ", "\nas "), fill=0, font=font, spacing=4)
    text = torch.from_numpy(np.array(canvas, np.float32) / 255)[..., None].expand(-1, -1, 3)
    pads = ((0, 0, 0, _GAP, 0, height + _GAP - picture.shape[0]) for picture in (text, *pictures))
    padded = [torch.nn.functional.pad(p, pad, value=1.0) for p, pad in zip((text, *pictures), pads, strict=True)]
    return torch.cat(padded, 1)
