"""A drawing of camera positions, seen from above and from the side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras

SIDE = 256
_SAMPLES = 2  # supersampling factor, for smooth edges
_MARGIN = 42
_MOST_NUMBERS = 16
Point = Sequence[float]
Color = tuple[int, ...]

_INK, _FAINT_INK, _FAINT, _OBJECT = (60, 60, 66), (150, 150, 156), (205, 205, 210), (225, 225, 230)
_LOW, _LEVEL, _HIGH = (40, 90, 200), (110, 110, 116), (214, 96, 24)


def rig_picture(cameras: Cameras) -> Tensor:
    """Draw cameras as numbered cones, blue below the horizon, grey on it, orange above; returns [256,512,3] in [0,1].

    Left: from above, the front of the object at the bottom, azimuth 90 at the right. Right: from the side, cameras in front of
    the object at the left of its axis, those behind at the right, all at their true elevation and distance.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (2 * SIDE * _SAMPLES, SIDE * _SAMPLES), "white")
    pen = _Pen(ImageDraw.Draw(canvas))
    eyes = cameras.c2w[:, :3, 3].cpu().double()
    forward = -cameras.c2w[:, :3, 2].cpu().double()
    flat = eyes[:, [0, 2]].norm(dim=1)
    elevations = torch.rad2deg(torch.atan2(eyes[:, 1], flat)).tolist()
    half = math.radians(cameras.fov_y) / 2 * cameras.width / cameras.height
    pen.scale = (SIDE / 2 - _MARGIN) / max(float(eyes.norm(dim=1).max()), 1e-6)

    pen.centre = (SIDE / 2, SIDE / 2 + 4)
    _compass(pen, float(flat.max()))
    _cameras(pen, eyes[:, [0, 2]], forward[:, [0, 2]], elevations, half)
    pen.text((6, 4), "from above", anchor="la")

    pen.centre = (SIDE * 1.5, SIDE / 2 + 4)
    _ladder(pen, float(eyes.norm(dim=1).max()))
    side = torch.where(eyes[:, 2] > -1e-4 * flat.max(), -1.0, 1.0)
    outwards = torch.nn.functional.normalize(eyes[:, [0, 2]], dim=1)
    seen = torch.stack([side * flat, -eyes[:, 1]], 1)
    towards = torch.stack([side * (forward[:, [0, 2]] * outwards).sum(1), -forward[:, 1]], 1)
    _cameras(pen, seen, towards, elevations, half)
    pen.text((SIDE + 6, 4), "from the side", anchor="la")
    pixels = np.asarray(canvas.resize((2 * SIDE, SIDE), Image.Resampling.BOX), np.float32)
    return torch.from_numpy(pixels / 255)


class _Pen:
    """Draws in image coordinates, or in world units around ``centre``."""

    def __init__(self, draw: Any):
        self._draw, self.centre, self.scale = draw, (0.0, 0.0), 1.0

    def at(self, point: Point | torch.Tensor) -> tuple[float, float]:
        """Convert world units to image coordinates."""
        return self.centre[0] + self.scale * float(point[0]), self.centre[1] + self.scale * float(point[1])

    def line(self, a: Point, b: Point, color: Color, width: float = 1.0) -> None:
        self._draw.line([_fine(a), _fine(b)], fill=color, width=round(width * _SAMPLES))

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        self._draw.polygon([_fine(point) for point in points], fill=color)

    def dot(self, point: Point, radius: float, fill: Color | None = None, outline: Color | None = None) -> None:
        low, high = ([c + sign * radius for c in point] for sign in (-1, 1))
        self._draw.ellipse([_fine(low), _fine(high)], fill=fill, outline=outline, width=_SAMPLES)

    def text(self, point: Point, words: str, color: Color = _INK, size: int = 11, anchor: str = "mm") -> None:
        font = _font(size * _SAMPLES)
        self._draw.text(_fine(point), words, fill=color, font=font, anchor=anchor, stroke_width=_SAMPLES, stroke_fill="white")


@lru_cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fine(point: Point) -> tuple[float, float]:
    return point[0] * _SAMPLES, point[1] * _SAMPLES


def _compass(pen: _Pen, distance: float) -> None:
    """The object, a ring at the farthest camera, and the azimuths."""
    radius = distance * pen.scale
    pen.dot(pen.centre, radius, outline=_FAINT)
    pen.dot(pen.centre, max(0.5 * pen.scale, 4), _OBJECT)
    x, y = pen.centre
    front = min(0.5 * pen.scale, radius / 3) + 5
    pen.polygon([(x - 5, y + front - 6), (x + 5, y + front - 6), (x, y + front + 3)], _INK)
    edge = SIDE / 2 - 12
    for words, point in (
        ("front", (x, y + edge)),
        ("90°", (x + edge, y)),
        ("180°", (x, y - edge + 2)),
        ("-90°", (x - edge, y)),
    ):
        pen.text(point, words, _INK if words == "front" else _FAINT_INK, 10)


def _ladder(pen: _Pen, distance: float) -> None:
    """The object, the horizon and rays of every 30 degrees."""
    pen.dot(pen.centre, max(0.5 * pen.scale, 4), _OBJECT)
    x, y = pen.centre
    for angle in range(-60, 61, 30):
        across, up = (distance * pen.scale * f(math.radians(angle)) for f in (math.cos, math.sin))
        for side in (-1, 1):
            pen.line(pen.centre, (x + side * across, y - up), _FAINT, 1.5 if angle == 0 else 0.7)
    edge = SIDE / 2 - 12
    pen.text((x - edge + 6, y + edge - 2), "front", _INK)
    pen.text((x + edge - 6, y + edge - 2), "back", _LEVEL)


def _cameras(pen: _Pen, eyes: Tensor, forward: Tensor, elevations: list[float], half: float) -> None:
    """A dot for each camera, the cone it sees, and its number on the outer side."""
    many = len(eyes) > _MOST_NUMBERS
    step, size = math.ceil(len(eyes) / _MOST_NUMBERS), 14.0 if many else 22.0
    labels: list[tuple[float, float]] = []
    for i, (eye, ahead) in enumerate(zip(eyes, forward, strict=True)):
        x, y = pen.at(eye)
        length = float(ahead.norm())
        # a camera straight above has no direction in the drawing
        dx, dy = (ahead / length).tolist() if length > 1e-3 else (0.0, 1.0)
        opening = size * max(math.tan(min(half, 0.7)), 0.2)
        color = elevation_color(elevations[i])
        cone = [(x, y)] + [(x + size * dx - s * opening * dy, y + size * dy + s * opening * dx) for s in (-1, 1)]
        pen.polygon(cone, tuple((c + 2 * 255) // 3 for c in color))
        pen.dot((x, y), 2.0 if many else 4.0, color)
        label = (x - 11 * dx, y - 11 * dy)
        if i % step == 0 and all(math.dist(label, other) > 12 for other in labels):
            labels.append(label)
            pen.text(label, str(i + 1), color)


def elevation_color(elevation: float) -> tuple[int, int, int]:
    """Return the colour of an elevation in degrees, RGB in 0..255: blue far below the horizon, grey on it, orange far above."""
    share = max(-1.0, min(1.0, elevation / 45))
    end = _HIGH if share > 0 else _LOW
    red, green, blue = (round(level + abs(share) * (e - level)) for level, e in zip(_LEVEL, end, strict=True))
    return red, green, blue
