"""Procedural toys: objects of known shape and colour, training data of the shipped checkpoint and ground truth of benchmarks.

A toy is a union of affinely placed unit primitives in the core's world (y up, front +z), centred, inside a ball of radius
``BOUND``. It is a float32 array [P, ROW]: one row per primitive, read by ``raycast``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike

from ...mesh import Mesh

SPHERE, BOX, FRUSTUM, TORUS, CAP = range(5)
"""Unit primitives: ball of radius 1; cube [-1,1]^3; frustum |y| <= 1 with radius 1 at the bottom and k at the top; torus of
radius 1 around y with tube radius k; the part y >= k of the ball."""
SOLID, STRIPES, GRADIENT, DOTS, CHECKER = range(5)

BOUND = 0.6
ROW = 28
TYPE, SHAPE, AFFINE, OFFSET, CENTRE, RADIUS = 0, 1, slice(2, 11), slice(11, 14), slice(14, 17), 17
COLOR_A, COLOR_B, TEXTURE, FREQUENCY, AXIS, PHASE = slice(18, 21), slice(21, 24), 24, 25, 26, 27
MAX_PRIMITIVES = 16


class Paint:
    """Colours and pattern of a primitive."""

    def __init__(self, rng: np.random.Generator, plain: float = 0.6):
        self.a, self.b = _color(rng), _color(rng)
        self.texture = SOLID if rng.random() < plain else int(rng.integers(1, 5))
        self.frequency = float(rng.integers(2, 4))
        self.axis = int(rng.choice([0, 1, 1, 2]))
        self.phase = rng.random() * 2 * math.pi

    @classmethod
    def flat(cls, rng: np.random.Generator, color: ArrayLike) -> Paint:
        """Create paint of one given colour."""
        paint = cls(rng, plain=1.0)
        paint.a = np.asarray(color, float)
        return paint


class Builder:
    """Collects primitives and packs them into a normalised toy."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self._parts: list[tuple] = []

    def paint(self, plain: float = 0.6) -> Paint:
        """Sample a paint; ``plain`` is the probability of no pattern."""
        return Paint(self.rng, plain)

    def add(
        self,
        kind: int,
        centre: ArrayLike,
        size: ArrayLike,
        paint: Paint,
        rotation: Sequence[float] = (0.0, 0.0, 0.0),
        shape: float = 1.0,
    ) -> None:
        """Add a primitive: ``size`` scales its axes (one number or three), ``rotation`` is in radians about x, y, z."""
        size = np.broadcast_to(np.asarray(size, float), (3,))
        self._parts.append((kind, shape, _rotation(*rotation), size, np.asarray(centre, float), paint))

    def pack(self, scale: float = 1.0) -> np.ndarray:
        """Return the toy [P, ROW] float32, centred on its bounding box, farthest corner at ``scale * BOUND``."""
        extents = np.array([_extent(kind, shape, rot, size) for kind, shape, rot, size, _, _ in self._parts])
        centres = np.array([part[4] for part in self._parts])
        middle = ((centres - extents).min(0) + (centres + extents).max(0)) / 2
        # primitives rarely fill the corners of their box: 0.85 of the half diagonal is a tight bound for round ones
        reach = np.linalg.norm(np.abs(centres - middle) + 0.85 * extents, axis=1).max()
        grow = scale * BOUND / reach
        rows = np.zeros((len(self._parts), ROW), np.float32)
        for row, (kind, shape, rot, size, centre, paint) in zip(rows, self._parts, strict=True):
            position = (centre - middle) * grow
            to_local = (rot / (size * grow)).T
            row[TYPE], row[SHAPE] = kind, shape
            row[AFFINE], row[OFFSET], row[CENTRE] = to_local.ravel(), -to_local @ position, position
            row[RADIUS] = _bound(kind, shape, size * grow)
            row[COLOR_A], row[COLOR_B] = paint.a, paint.b
            row[TEXTURE], row[FREQUENCY], row[AXIS], row[PHASE] = (
                paint.texture,
                paint.frequency,
                paint.axis,
                paint.phase,
            )
        return rows


def make_toy(seed: int, category: str | None = None) -> np.ndarray:
    """Create the toy of a seed, [P, ROW] float32; training uses seeds below ``HELD_OUT``, tests and benchmarks the others.

    >>> make_toy(HELD_OUT, "mushroom").shape
    (2, 28)
    """
    rng = np.random.default_rng(seed)
    names = list(CATEGORIES)
    sampled = names[int(rng.integers(len(names)))]
    builder = Builder(rng)
    CATEGORIES[category or sampled](builder)
    return builder.pack(scale=rng.uniform(0.88, 1.0))


HELD_OUT = 1 << 40
"""The first seed that never occurs in training; nor do larger ones."""


def make_held_out_toy(index: int) -> np.ndarray:
    """Make the index-th toy held out of training; categories alternate."""
    names = list(CATEGORIES)
    return make_toy(HELD_OUT + index, names[index % len(names)])


def stack_toys(toys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stack toys to (rows [S, MAX_PRIMITIVES, ROW], counts [S]), for one call of the ray caster."""
    rows = np.zeros((len(toys), MAX_PRIMITIVES, ROW), np.float32)
    counts = np.array([len(toy) for toy in toys], np.int64)
    for row, toy in zip(rows, toys, strict=True):
        row[: len(toy)] = toy
    return rows, counts


def occupancy(toy: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Test exactly which points [M,3] are inside a toy: [M] bool, the ground truth of meshes.

    >>> occupancy(make_toy(HELD_OUT), np.array([[0.0, 5.0, 0.0]]))
    array([False])
    """
    inside = np.zeros(len(points), bool)
    for row in toy:
        x, y, z = (points @ row[AFFINE].reshape(3, 3).T + row[OFFSET]).T
        inside |= _INSIDE[int(row[TYPE])](x, y, z, float(row[SHAPE]))
    return inside


def true_surface(toy: np.ndarray, resolution: int = 96) -> Mesh:
    """Extract a toy's surface by marching cubes on the exact inside test."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    axis = np.linspace(-0.7, 0.7, resolution)
    plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    slices = (occupancy(toy, np.insert(plane, 0, x, axis=1)) for x in axis)
    inside = np.stack(list(slices)).reshape((resolution,) * 3).astype(np.float32)
    vertices, faces, _, _ = marching_cubes(gaussian_filter(inside, 0.7), 0.5)
    vertices = torch.from_numpy(np.ascontiguousarray(vertices * (axis[1] - axis[0]) + axis[0], dtype=np.float32))
    return Mesh(vertices, torch.from_numpy(faces.astype(np.int64)))


_INSIDE: dict[int, Callable] = {
    SPHERE: lambda x, y, z, k: x * x + y * y + z * z <= 1,
    BOX: lambda x, y, z, k: np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(z)) <= 1,
    FRUSTUM: lambda x, y, z, k: (np.abs(y) <= 1) & (x * x + z * z <= ((1 + k) / 2 + (k - 1) / 2 * y) ** 2),
    TORUS: lambda x, y, z, k: (np.sqrt(x * x + z * z) - 1) ** 2 + y * y <= k * k,
    CAP: lambda x, y, z, k: (x * x + y * y + z * z <= 1) & (y >= k),
}


def _rotation(rx: float, ry: float, rz: float) -> np.ndarray:
    cx, sx, cy, sy, cz, sz = math.cos(rx), math.sin(rx), math.cos(ry), math.sin(ry), math.cos(rz), math.sin(rz)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _extent(kind: int, shape: float, rotation: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the half extents of the placed primitive's axis-aligned box."""
    if kind == TORUS:
        size = size * np.array([1 + shape, shape, 1 + shape])
    if kind in (SPHERE, CAP):
        return np.sqrt(((rotation * size) ** 2).sum(1))
    return np.abs(rotation * size).sum(1)


def _bound(kind: int, shape: float, size: np.ndarray) -> float:
    """Return the radius of the primitive's bounding ball."""
    if kind in (SPHERE, CAP):
        return float(size.max())
    if kind == BOX:
        return float(np.linalg.norm(size))
    if kind == TORUS:
        return float(size.max() * (1 + shape))
    return math.hypot(max(size[0], size[2]) * max(1.0, shape), size[1])


def _color(rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = rng.random(), rng.uniform(0.35, 1.0), rng.uniform(0.35, 1.0)
    if rng.random() < 0.15:
        saturation = rng.uniform(0, 0.15)
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


# The categories. Sizes are relative: pack() normalises.


def _mushroom(b: Builder) -> None:
    r = b.rng
    height, width, cap = r.uniform(0.3, 0.5), r.uniform(0.12, 0.24), r.uniform(0.45, 0.7)
    b.add(FRUSTUM, (0, 0, 0), (width, height, width), b.paint(0.8), shape=r.uniform(0.6, 1.1))
    b.add(CAP, (0, height, 0), (cap, r.uniform(0.35, 0.6), cap), b.paint(0.4), shape=r.uniform(-0.2, 0.15))


def _snowman(b: Builder) -> None:
    r = b.rng
    body, dark = b.paint(0.8), Paint.flat(r, (0.1, 0.1, 0.1))
    low, mid, head = r.uniform(0.38, 0.5), r.uniform(0.28, 0.36), r.uniform(0.2, 0.27)
    y1, y2 = low + mid * 0.6, low + mid * 1.3 + head * 0.6
    for y, size in ((0, low), (y1, mid), (y2, head)):
        b.add(SPHERE, (0, y, 0), size, body)
    b.add(FRUSTUM, (0, y2, head + 0.1), (0.06, 0.14, 0.06), b.paint(1), (math.pi / 2, 0, 0), shape=0.0)
    for side in (-1, 1):
        b.add(SPHERE, (side * 0.09, y2 + 0.09, head * 0.88), 0.045, dark)
    hat = b.paint()
    b.add(FRUSTUM, (0, y2 + head * 0.85, 0), (head * 1.1, 0.03, head * 1.1), hat)
    b.add(FRUSTUM, (0, y2 + head * 0.85 + 0.15, 0), (head * 0.7, 0.15, head * 0.7), hat)


def _rocket(b: Builder) -> None:
    r = b.rng
    height, width, fins = r.uniform(0.45, 0.65), r.uniform(0.2, 0.3), int(r.integers(3, 5))
    b.add(FRUSTUM, (0, 0, 0), (width, height, width), b.paint(0.5))
    b.add(FRUSTUM, (0, height + 0.2, 0), (width, 0.2, width), b.paint(0.8), shape=0.0)
    b.add(FRUSTUM, (0, -height - 0.06, 0), (width * 0.6, 0.07, width * 0.6), b.paint(1), shape=1.5)
    fin = b.paint(0.8)
    for i in range(fins):
        a = 2 * math.pi * i / fins + math.pi / 2
        b.add(
            BOX,
            (math.cos(a) * width * 1.4, -height * 0.7, -math.sin(a) * width * 1.4),
            (width * 0.7, height * 0.3, 0.04),
            fin,
            (0, a, 0),
        )
    b.add(SPHERE, (0, height * 0.4, width * 0.75), width * 0.45, b.paint(1))


def _house(b: Builder) -> None:
    r = b.rng
    x, y, z = r.uniform(0.35, 0.55), r.uniform(0.25, 0.45), r.uniform(0.35, 0.55)
    roof = b.paint(0.6)
    b.add(BOX, (0, 0, 0), (x, y, z), b.paint(0.7))
    if r.random() < 0.5:
        b.add(FRUSTUM, (0, y + 0.22, 0), (x * 1.4, 0.22, z * 1.4), roof, shape=0.0)
    else:
        tilt = r.uniform(0.5, 0.75)
        for side in (-1, 1):
            centre = (side * x * 0.55, y + x * 0.45 * math.tan(tilt), 0)
            b.add(BOX, centre, (x * 0.72 / math.cos(tilt), 0.04, z * 1.1), roof, (0, 0, -side * tilt))
    b.add(BOX, (0, -y * 0.4, z), (0.11, y * 0.6, 0.03), b.paint(1))
    window = b.paint(1)
    for side in (-1, 1):
        b.add(BOX, (side * x * 0.6, y * 0.3, z), (0.09, 0.09, 0.025), window)
    b.add(BOX, (x * 0.4, y + 0.3, -z * 0.4), (0.08, 0.22, 0.08), b.paint(1))


def _car(b: Builder) -> None:
    r = b.rng
    width, height, length = r.uniform(0.28, 0.38), r.uniform(0.13, 0.2), r.uniform(0.5, 0.7)
    b.add(BOX, (0, 0, 0), (width, height, length), b.paint(0.7))
    b.add(
        BOX,
        (0, height + 0.13, r.uniform(-0.2, 0.05)),
        (width * 0.88, 0.15, length * r.uniform(0.45, 0.6)),
        b.paint(0.8),
    )
    wheel, lamp, size = b.paint(1), b.paint(1), r.uniform(0.14, 0.19)
    for sx in (-1, 1):
        for sz in (-1, 1):
            b.add(FRUSTUM, (sx * width, -height, sz * length * 0.6), (size, 0.07, size), wheel, (0, 0, math.pi / 2))
        b.add(SPHERE, (sx * width * 0.6, 0.02, length), 0.07, lamp)


def _tree(b: Builder) -> None:
    r = b.rng
    height, leaf = r.uniform(0.25, 0.4), b.paint(0.5)
    trunk = r.uniform(0.08, 0.14)
    b.add(FRUSTUM, (0, -height, 0), (trunk, height, trunk), b.paint(0.9))
    if r.random() < 0.5:
        width = r.uniform(0.4, 0.55)
        for i in range(int(r.integers(2, 4))):
            b.add(FRUSTUM, (0, 0.12 + i * 0.3, 0), (width * (1 - 0.22 * i), 0.26, width * (1 - 0.22 * i)), leaf, shape=0.0)
        return
    b.add(SPHERE, (0, 0.35, 0), r.uniform(0.38, 0.5), leaf)
    fruit = b.paint(1)
    for _ in range(int(r.integers(0, 5))):
        a = r.random() * 2 * math.pi
        b.add(SPHERE, (0.4 * math.sin(a), 0.35 + r.uniform(-0.15, 0.2), 0.4 * math.cos(a)), 0.1, fruit)


def _robot(b: Builder) -> None:
    r = b.rng
    body, limb, eye = b.paint(), b.paint(0.8), b.paint(1)
    width, height, head = r.uniform(0.22, 0.34), r.uniform(0.25, 0.36), r.uniform(0.15, 0.22)
    b.add(BOX, (0, 0, 0), (width, height, 0.18), body)
    if r.random() < 0.5:
        b.add(BOX, (0, height + head + 0.04, 0), head, b.paint(0.8))
    else:
        b.add(SPHERE, (0, height + head + 0.02, 0), head * 1.15, b.paint(0.8))
    lift = r.uniform(-0.1, 0.7)
    for side in (-1, 1):
        b.add(FRUSTUM, (side * width * 0.55, -height - 0.2, 0), (0.09, 0.22, 0.09), limb)
        b.add(FRUSTUM, (side * (width + 0.09), 0.02, 0), (0.07, 0.28, 0.07), limb, (0, 0, side * lift))
        b.add(SPHERE, (side * 0.08, height + head + 0.06, head), 0.055, eye)


def _bird(b: Builder) -> None:
    r = b.rng
    body, dark = b.paint(0.8), Paint.flat(r, (0.08, 0.08, 0.08))
    w, h, d, head = r.uniform(0.3, 0.4), r.uniform(0.28, 0.38), r.uniform(0.4, 0.55), r.uniform(0.2, 0.27)
    y, z = h + head * 0.6, d * r.uniform(0.35, 0.6)
    b.add(SPHERE, (0, 0, 0), (w, h, d), body)
    b.add(SPHERE, (0, y, z), head, body if r.random() < 0.6 else b.paint(0.8))
    b.add(FRUSTUM, (0, y - 0.03, z + head + 0.06), (0.09, 0.12, 0.06), b.paint(1), (math.pi / 2, 0, 0), shape=0.2)
    wing = b.paint(0.7)
    for side in (-1, 1):
        b.add(SPHERE, (side * head * 0.5, y + 0.07, z + head * 0.8), 0.045, dark)
        b.add(SPHERE, (side * w * 0.95, 0.04, -d * 0.1), (0.07, h * 0.55, d * 0.6), wing)
    b.add(FRUSTUM, (0, h * 0.45, -d), (0.12, 0.2, 0.06), wing, (-0.9, 0, 0), shape=0.4)


def _vase(b: Builder) -> None:
    """Build a solid of revolution: vases, bottles, barrels, ice-cream cones, lamps."""
    r = b.rng
    shared = b.paint(0.5) if r.random() < 0.5 else None
    radius, y = r.uniform(0.12, 0.45), 0.0
    for _ in range(int(r.integers(2, 5))):
        height, top = r.uniform(0.1, 0.32), r.uniform(0.1, 0.48)
        b.add(FRUSTUM, (0, y + height, 0), (radius, height, radius), shared or b.paint(0.7), shape=top / radius)
        y, radius = y + 2 * height, top
    if r.random() < 0.5:
        ball = radius * r.uniform(0.9, 1.3)
        b.add(SPHERE, (0, y + ball * 0.5, 0), ball, b.paint())
    if r.random() < 0.25:
        b.add(TORUS, (0, y * 0.5, 0), (0.3, 0.3, 0.5), b.paint(1), (math.pi / 2, 0, 0), shape=0.2)


CATEGORIES: dict[str, Callable[[Builder], None]] = {
    "mushroom": _mushroom,
    "snowman": _snowman,
    "rocket": _rocket,
    "house": _house,
    "car": _car,
    "tree": _tree,
    "robot": _robot,
    "bird": _bird,
    "vase": _vase,
}
