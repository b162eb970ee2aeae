"""Drawing for the pictures of the help pages: rows of pictures with captions, curves, graphs of nodes.

The help panel is narrow, so writing is large. Pillow's own font knows no Greek letters.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from microdreamer_core.util.images import to_uint8

WIDTH = 640
LIMIT = 40_000
"""Bytes that a picture may take."""
INK, PALE, LINK = "#202020", "#c8c8c8", "#2f6fb3"
CURVES = ("#2f6fb3", "#d0651b", "#3c8d40", "#8a4fa8", "#b3273f")
_GAP, _TEXT, _TITLE = 6, 25, 28
_SOCKET, _HEADER = 25, 32
_QUALITIES = (90, 84, 76, 66, 54)


@dataclass(frozen=True)
class Row:
    """Equally wide pictures in a row.

    Attributes:
        pictures: [H,W,3] tensors or arrays in [0,1].
        captions: one below each picture, or none.
        title: a line above all of them.
        smooth: whether enlarging interpolates.
    """

    pictures: Sequence
    captions: Sequence[str] = ()
    title: str = ""
    smooth: bool = True


def font(size: int = _TEXT) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def to_pillow(picture) -> Image.Image:
    """[H,W,3] or [H,W] in [0,1]."""
    return Image.fromarray(to_uint8(np.asarray(picture, np.float32))).convert("RGB")


def sheet(*rows: Row) -> Image.Image:
    """Rows below each other, as wide as the help panel's pictures."""
    drawn = [_row(row) for row in rows]
    canvas = Image.new("RGB", (WIDTH, sum(row.height for row in drawn) + _GAP * (len(drawn) - 1)), "white")
    top = 0
    for row in drawn:
        canvas.paste(row, (0, top))
        top += row.height + _GAP
    return canvas


def _row(row: Row) -> Image.Image:
    side = (WIDTH - _GAP * (len(row.pictures) - 1)) / len(row.pictures)
    method = Image.Resampling.BICUBIC if row.smooth else Image.Resampling.NEAREST
    tiles = [to_pillow(picture) for picture in row.pictures]
    tiles = [tile.resize((int(side), round(side * tile.height / tile.width)), method) for tile in tiles]
    above, below = (_TITLE + 8 if row.title else 0), (_TEXT + 8 if row.captions else 0)
    height = max(tile.height for tile in tiles)
    canvas = Image.new("RGB", (WIDTH, above + height + below), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 2), row.title, INK, font(_TITLE))
    for i, tile in enumerate(tiles):
        left = round(i * (side + _GAP))
        canvas.paste(tile, (left, above))
        draw.rectangle((left, above, left + tile.width - 1, above + tile.height - 1), outline=PALE)
        if row.captions:
            draw.text((left + side / 2, above + height + 2), row.captions[i], INK, font(_TEXT), anchor="ma")
    return canvas


@dataclass(frozen=True)
class Curve:
    """A line of (x, y) points with its name; a thin one is not named."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    thin: bool = False


def plot(curves: Sequence[Curve], x_name: str, y_name: str, x_end: float, y_end: float, y_step: float) -> Image.Image:
    """Curves over axes that begin at 0, with a legend."""
    left, right, top, bottom = 70, WIDTH - 20, 46, 330
    canvas = Image.new("RGB", (WIDTH, 404 + 34 * len([c for c in curves if c.name])), "white")
    draw = ImageDraw.Draw(canvas)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_end, bottom - (bottom - top) * y / y_end

    for tick in np.arange(0, y_end + 1e-9, y_step):
        draw.line((at(0, tick), at(x_end, tick)), PALE)
        draw.text((left - 8, at(0, tick)[1]), f"{tick:g}", INK, font(), anchor="rm")
    for tick in np.linspace(0, x_end, 6):
        draw.text((at(tick, 0)[0], bottom + 6), f"{tick:g}", INK, font(), anchor="ma")
    draw.text((4, 4), y_name, INK, font(_TITLE))
    draw.text((right, bottom + 34), x_name, INK, font(_TITLE), anchor="ra")
    row = 396
    for curve in curves:
        points = [at(*point) for point in curve.points]
        draw.line(points, curve.color, 2 if curve.thin else 4, joint="curve")
        if curve.name:
            draw.line((8, row + 16, 44, row + 16), curve.color, 2 if curve.thin else 5)
            draw.text((54, row), curve.name, INK, font(_TITLE))
            row += 34
    return canvas


@dataclass(frozen=True)
class Box:
    """A node of a drawn graph.

    Attributes:
        title: what it is called; links name it so.
        column, top: third of the picture that it stands in, and pixels from above.
        inputs, outputs: names of the sockets that matter; an empty one leaves its row free.
        note: what its widgets say.
        marked: whether it is the node that the page is about.
    """

    title: str
    column: float
    top: int
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    note: str = ""
    marked: bool = False

    @property
    def left(self) -> int:
        return round(7 + self.column * 218)

    @property
    def height(self) -> int:
        return _HEADER + _SOCKET * max(len(self.inputs), len(self.outputs)) + (28 if self.note else 0) + 8

    def socket(self, name: str, side: str) -> tuple[int, int]:
        """Where a socket of the "in" or "out" side lies."""
        index = (self.inputs if side == "in" else self.outputs).index(name)
        return self.left + (0 if side == "in" else _BOX), self.top + _HEADER + _SOCKET * index + _SOCKET // 2 + 2


_BOX = 190


def wiring(boxes: Sequence[Box], links: Sequence[tuple[str, str]]) -> Image.Image:
    """A graph of nodes; links are ("Title.output", "Title.input")."""
    named = {box.title: box for box in boxes}
    canvas = Image.new("RGB", (WIDTH, max(box.top + box.height for box in boxes) + 4), "white")
    draw = ImageDraw.Draw(canvas)
    for box in boxes:
        _draw_box(draw, box)
    for source, target in links:
        (a, out), (b, into) = (end.rsplit(".", 1) for end in (source, target))
        _draw_link(draw, named[a].socket(out, "out"), named[b].socket(into, "in"))
    return canvas


def way_back(picture: Image.Image, start: int, end: int, tops: tuple[int, int], text: str) -> Image.Image:
    """The same graph with an arrow below it, from pixel column ``start`` to ``end``; ``tops`` are where its ends begin."""
    canvas = Image.new("RGB", (WIDTH, picture.height + 50), "white")
    canvas.paste(picture)
    draw, bottom, color = ImageDraw.Draw(canvas), picture.height + 16, CURVES[1]
    draw.line(((start, tops[0]), (start, bottom), (end, bottom), (end, tops[1])), color, 3, joint="curve")
    draw.polygon(((end, tops[1]), (end - 7, tops[1] + 14), (end + 7, tops[1] + 14)), fill=color)
    draw.text(((start + end) / 2, bottom + 4), text, INK, font(), anchor="ma")
    return canvas


def _draw_box(draw: ImageDraw.ImageDraw, box: Box) -> None:
    frame = (box.left, box.top, box.left + _BOX, box.top + box.height)
    draw.rounded_rectangle(
        frame, 8, fill="#eef1f4", outline=CURVES[1] if box.marked else "#666666", width=3 if box.marked else 1
    )
    draw.rounded_rectangle((*frame[:3], box.top + _HEADER - 4), 8, fill=CURVES[1] if box.marked else "#555f6a")
    size = next(size for size in range(18, 8, -1) if font(size).getlength(box.title) < _BOX - 14)
    draw.text((box.left + 8, box.top + 14), box.title, "white", font(size), anchor="lm")
    for side, names in (("in", box.inputs), ("out", box.outputs)):
        for name in filter(None, names):
            x, y = box.socket(name, side)
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=LINK)
            draw.text((x + (10 if side == "in" else -10), y), name, INK, font(18), anchor="lm" if side == "in" else "rm")
    if box.note:
        draw.text((box.left + 8, box.top + box.height - 30), box.note, "#555555", font(17))


def _draw_link(draw: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int]) -> None:
    (x0, y0), (x3, y3) = start, end
    reach = max(30.0, abs(x3 - x0) / 2) if x3 > x0 else 40.0
    t = np.linspace(0, 1, 40)[:, None]
    corners = np.array([[x0, y0], [x0 + reach, y0], [x3 - reach, y3], [x3, y3]], float)
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    for a, b in pairwise((weights @ corners).tolist()):
        draw.line((*a, *b), LINK, 3)


def encoded(picture: Image.Image, drawn: bool) -> tuple[str, bytes]:
    """(ending, content) of the file: a palette PNG for drawings, the best JPEG that is small enough for pictures.

    Raises:
        ValueError: it cannot be made small enough.
    """
    kinds = [("PNG", {"optimize": True})] if drawn else [("JPEG", {"quality": q, "optimize": True}) for q in _QUALITIES]
    for kind, options in kinds:
        file = io.BytesIO()
        (picture.quantize(48) if drawn else picture).save(file, kind, **options)
        if file.tell() <= LIMIT:
            return (".png" if drawn else ".jpg"), file.getvalue()
    raise ValueError(f"A picture of {picture.width}x{picture.height} takes {file.tell()} bytes, at most {LIMIT} fit; crop it.")
