"""Procedural objects without a class: training data beyond the categories of ``toys``.

Parts (ellipsoids, boxes, cones, rings, turned and radial profiles, open vessels) are joined sharply or smoothly, repeated, made
symmetric and cut, as signed distances on a grid; marching cubes extracts a surface, which is then tapered, twisted or bent and
painted.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..diffusion.embedded.toys import HELD_OUT
from ..util._numba_jit import compile_kernel
from ..util.components import label_components
from .surfaces import PAINT, Surface, centre_surface, deform_surface, sample_paint, sample_palette

ELLIPSOID, BOX, CONE, RING, TURNED, RADIAL, VESSEL = range(7)
_WEIGHTS = np.array([0.2, 0.23, 0.17, 0.1, 0.14, 0.1, 0.06])
JOIN, CUT = 0, 1

KIND, OPERATION, COLOR, BLEND, CENTRE, TURN, SIZE, SHAPE = 0, 1, 2, 3, slice(4, 7), slice(7, 16), slice(16, 19), slice(19, 25)
ROW = 25
MAX_PARTS = 24
_GRID = 36

_kernel = partial(compile_kernel, options={"nogil": True, "fastmath": True, "error_model": "numpy"})


def make_shape(seed: int) -> Surface:
    """Make the classless object of a seed, within the unit ball. Training uses seeds below ``HELD_OUT``."""
    rng = np.random.default_rng([seed % HELD_OUT, seed // HELD_OUT, 77])
    while True:
        surface = _surface(_sample_parts(rng), rng)
        if surface is not None:
            return surface


def _sample_parts(rng: np.random.Generator) -> np.ndarray:
    """[P,ROW] parts that touch, fitted into the grid's cube."""
    parts: list[np.ndarray] = []
    smooth = rng.uniform(0.03, 0.2) if rng.random() < 0.4 else 0.0
    symmetric = rng.random() < 0.6
    colors = int(rng.integers(1, 5))
    upright = rng.random() < 0.7
    for number in range(int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.2, 0.3, 0.2, 0.15, 0.1, 0.05]))):
        part = _sample_part(rng, upright, number, colors, smooth)
        if parts:
            base = parts[int(rng.integers(len(parts)))]
            way = rng.normal(size=3) * np.array([1, 1.3, 1])
            way = np.eye(3)[rng.choice([0, 1, 1, 2])] * rng.choice([-1, 1]) if rng.random() < 0.5 else way / np.linalg.norm(way)
            reach = 1 / math.sqrt(float(((way / _extent(base)) ** 2).sum()))
            part[CENTRE] = base[CENTRE] + way * (reach + 0.6 * float((np.abs(way) * _extent(part)).sum()) * rng.uniform(0.2, 1))
        parts += _repeat(part, rng, symmetric) if parts else [part]
    if rng.random() < 0.25:
        cutter = _sample_part(rng, upright, 0, colors, 0.0)
        base = parts[int(rng.integers(len(parts)))]
        cutter[OPERATION], cutter[SIZE] = CUT, cutter[SIZE] * rng.uniform(0.3, 0.7)
        way = np.eye(3)[rng.choice([0, 1, 2, 2])] * rng.choice([0, 1, 1])
        cutter[CENTRE] = base[CENTRE] + way * _extent(base) * rng.uniform(0.5, 1)
        parts.append(cutter)
    rows = np.array(parts[-MAX_PARTS:])
    solid = rows[rows[:, OPERATION] == JOIN]
    extents = np.array([_extent(row) for row in solid])
    low, high = (solid[:, CENTRE] - extents).min(0), (solid[:, CENTRE] + extents).max(0)
    scale = 1.9 / float((high - low).max())
    rows[:, CENTRE] = (rows[:, CENTRE] - (low + high) / 2) * scale
    rows[:, SIZE] *= scale
    rows[:, BLEND] *= scale
    return rows


def _sample_part(rng: np.random.Generator, upright: bool, number: int, colors: int, smooth: float) -> np.ndarray:
    part = np.zeros(ROW)
    part[KIND] = rng.choice(len(_WEIGHTS), p=_WEIGHTS)
    part[COLOR] = rng.integers(colors)
    part[BLEND] = smooth * rng.uniform(0.5, 1)
    size = np.exp(rng.uniform(math.log(0.12 if number else 0.25), 0, 3)) * (0.9 if number == 0 else rng.uniform(0.35, 0.9))
    if rng.random() < 0.5:
        size[2] = size[0]
    part[SIZE] = np.maximum(size, 0.06)
    if upright and rng.random() < 0.7:
        angles = (0.0, rng.choice([0, 0, math.pi / 4, rng.uniform(0, math.pi)]), 0.0)
    elif rng.random() < 0.5:
        angles = rng.choice([0, math.pi / 2], 3)
    else:
        angles = rng.uniform(-math.pi, math.pi, 3)
    part[TURN] = rotation(*angles).ravel()
    shape = part[SHAPE]
    kind = int(part[KIND])
    if kind == BOX:
        shape[0] = rng.choice([0, 0, 0.1, 0.3, 0.6]) * rng.random()
    elif kind == CONE:
        shape[0] = rng.choice([0.0, 1.0, rng.uniform(0.2, 1.6)])
    elif kind == RING:
        shape[0] = rng.uniform(0.12, 0.45)
    elif kind in (TURNED, VESSEL):
        shape[:] = rng.uniform(0.25, 1.0, 6) if rng.random() < 0.5 else np.clip(0.6 + np.cumsum(rng.normal(0, 0.2, 6)), 0.15, 1)
    elif kind == RADIAL:
        shape[:3] = rng.integers(2, 8), rng.uniform(0.1, 0.55), rng.uniform(0, math.pi)
    return part


def _repeat(part: np.ndarray, rng: np.random.Generator, symmetric: bool) -> list[np.ndarray]:
    """The part alone, with its mirror image, as a ring around y (legs, petals, wheels) or as a row."""
    choice = rng.random()
    if choice < 0.2:
        count = int(rng.integers(3, 7))
        radius = max(float(np.hypot(part[4], part[6])), 0.25)
        first = rng.choice([0, math.pi / count])
        copies = []
        for i in range(count):
            angle = first + 2 * math.pi * i / count
            copy = part.copy()
            copy[CENTRE] = radius * math.sin(angle), part[5], radius * math.cos(angle)
            copy[TURN] = (rotation(0, angle, 0) @ part[TURN].reshape(3, 3)).ravel()
            copies.append(copy)
        return copies
    if choice < 0.28:
        step = np.eye(3)[rng.integers(3)] * _extent(part) * rng.uniform(1, 2)
        return [_move(part, part[CENTRE] + step * i) for i in range(int(rng.integers(2, 5)))]
    if symmetric and abs(part[4]) > 0.1:
        mirror = part.copy()
        mirror[4] *= -1
        flip = np.diag([-1.0, 1, 1])
        mirror[TURN] = (flip @ part[TURN].reshape(3, 3) @ flip).ravel()
        return [part, mirror]
    if symmetric:
        part[4] = 0
    return [part]


def _move(part: np.ndarray, centre: np.ndarray) -> np.ndarray:
    part = part.copy()
    part[CENTRE] = centre
    return part


def _extent(part: np.ndarray) -> np.ndarray:
    """Half extents of a part's axis-aligned box (an upper bound for round parts)."""
    size = part[SIZE].copy()
    if int(part[KIND]) == CONE:
        size[[0, 2]] *= max(1.0, part[SHAPE][0])
    if int(part[KIND]) == RING:
        size = size * np.array([1 + part[SHAPE][0], 1, 1 + part[SHAPE][0]])
        size[1] = max(part[SIZE][0], part[SIZE][2]) * part[SHAPE][0]
    turn = part[TURN].reshape(3, 3)
    if int(part[KIND]) == ELLIPSOID:
        return np.sqrt(((turn * size) ** 2).sum(1))
    return np.abs(turn * size).sum(1)


def rotation(rx: float, ry: float, rz: float) -> np.ndarray:
    """Return the [3,3] rotation about z, then y, then x, in radians."""
    cx, sx, cy, sy, cz, sz = math.cos(rx), math.sin(rx), math.cos(ry), math.sin(ry), math.cos(rz), math.sin(rz)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _surface(rows: np.ndarray, rng: np.random.Generator) -> Surface | None:
    """Extract the parts' surface by marching cubes, deform and paint it; None if nothing is left."""
    from skimage.measure import marching_cubes

    axis = np.linspace(-1.08, 1.08, _GRID)
    values = np.empty((_GRID,) * 3, np.float32)
    _fill_grid(rows, axis, values)
    if not values.min() < -0.01:
        return None
    pieces, count = label_components(values < 0)
    if count > 1 and rng.random() < 0.9:  # real objects are mostly connected
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        values = np.where((pieces > 0) & (pieces != largest), -values, values)
    values[[0, -1]] = values[:, [0, -1]] = values[:, :, [0, -1]] = 1.0
    vertices, faces, normals, _ = marching_cubes(values, 0.0)
    vertices = vertices * (axis[1] - axis[0]) + axis[0]
    owner = np.empty(len(vertices), np.int64)
    _owners(rows, vertices, owner)
    owner = owner[faces[:, 0]]
    colors = sample_palette(rng, int(rows[:, COLOR].max()) + 1)[rows[owner, COLOR].astype(int)]
    surface = Surface.plain(vertices[faces], normals[faces], np.repeat(colors[:, None], 3, 1))
    surface = centre_surface(surface)
    if rng.random() < 0.35:
        surface = centre_surface(deform_surface(surface, rng))
    paints = np.zeros((1 + len(rows), PAINT), np.float32)
    by_color = rng.random() < 0.5
    for i in range(len(rows)):
        if rng.random() < 0.35:
            paints[1 + i] = sample_paint(rng, sample_palette(rng, 1)[0])
    paint = 1 + (rows[owner, COLOR].astype(np.int64) % len(rows) if by_color else owner)
    return Surface(surface.corners, surface.normals, surface.colors, paint, paints)


@_kernel
def _profile(shape, y):
    """Radius of a turned part at height y in [-1,1]: linear between six knots."""
    u = min(max((y + 1) * 2.5, 0.0), 4.999)
    i = int(u)
    return shape[i] * (1 - (u - i)) + shape[i + 1] * (u - i)


@_kernel
def _distance(row, x, y, z):
    """Approximate signed distance to one part, negative inside."""
    kind = int(row[0])
    x, y, z = x - row[4], y - row[5], z - row[6]
    lx = row[7] * x + row[10] * y + row[13] * z
    ly = row[8] * x + row[11] * y + row[14] * z
    lz = row[9] * x + row[12] * y + row[15] * z
    sx, sy, sz = row[16], row[17], row[18]
    shape = row[19:25]
    if kind == BOX:
        corner = shape[0] * min(sx, sy, sz)
        qx, qy, qz = abs(lx) - sx + corner, abs(ly) - sy + corner, abs(lz) - sz + corner
        outside = math.sqrt(max(qx, 0.0) ** 2 + max(qy, 0.0) ** 2 + max(qz, 0.0) ** 2)
        return outside + min(max(qx, qy, qz), 0.0) - corner
    ux, uy, uz = lx / sx, ly / sy, lz / sz
    if kind == ELLIPSOID:
        k0 = math.sqrt(ux * ux + uy * uy + uz * uz)
        k1 = math.sqrt((ux / sx) ** 2 + (uy / sy) ** 2 + (uz / sz) ** 2)
        return k0 * (k0 - 1) / max(k1, 1e-6)
    ring = math.sqrt(ux * ux + uz * uz)
    flat = min(sx, sz)
    if kind == RING:
        tall = ly / flat
        return (math.sqrt((ring - 1) ** 2 + tall * tall) - shape[0]) * flat
    caps = abs(ly) - sy
    if kind == CONE:
        return max((ring - ((1 + shape[0]) / 2 + (shape[0] - 1) / 2 * min(max(uy, -1.0), 1.0))) * flat * 0.8, caps)
    if kind == RADIAL:
        angle = math.atan2(uz, ux)
        edge = (1 + shape[1] * math.cos(shape[0] * angle + shape[2])) / (1 + shape[1])
        return max((ring - edge) * flat * 0.7, caps)
    radius = _profile(shape, uy)
    solid = max((ring - radius) * flat * 0.8, caps)
    if kind == VESSEL:
        wall = 0.14 / flat * 0.5
        hollow = max((ring - radius + wall) * flat * 0.8, -ly - sy + 0.1)
        return max(solid, -hollow)
    return solid


@_kernel
def _fill_grid(rows, axis, out):
    n = len(axis)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                value = 1e3
                for r in range(len(rows)):
                    d = _distance(rows[r], axis[i], axis[j], axis[k])
                    if rows[r, 1] == CUT:
                        value = max(value, -d)
                        continue
                    blend = rows[r, 3]
                    h = max(blend - abs(value - d), 0.0)
                    value = min(value, d) - (h * h / (4 * blend) if h > 0 else 0.0)
                out[i, j, k] = value


@_kernel
def _owners(rows, points, out):
    """The part whose surface is nearest to each point."""
    for i in range(len(points)):
        best = 1e9
        for r in range(len(rows)):
            d = abs(_distance(rows[r], points[i, 0], points[i, 1], points[i, 2]))
            if d < best:
                best = d
                out[i] = r
