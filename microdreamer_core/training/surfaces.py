"""Triangle soups with colours and paints, and their fast renderer: the form of classless shapes and meshes in training.

A soup is rasterised by the z-buffer of ``render.mesh`` and shaded here per pixel: half-Lambert light, an optional highlight and
procedural paints in world space, so that large flat triangles have patterns too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..cameras import Cameras
from ..render.zbuffer_numba import fill
from ..util._numba_jit import compile_kernel

NO_PAINT, STRIPES, CHECKER, DOTS, GRADIENT, CLOUDS, PATCHES, DECAL, BAND = range(9)
PAINT = 9
"""Columns of a paint: kind, a vector (direction, or a decal's centre), frequency (or radius), phase, RGB."""

BOUND = 0.62
"""Radius of the ball that every orbit camera of the training sees completely."""

_kernel = partial(compile_kernel, options={"nogil": True, "fastmath": True, "error_model": "numpy"})


@dataclass(frozen=True)
class Surface:
    """A triangle soup: triangles without shared vertices.

    Attributes:
        corners, normals, colors: [M,3,3] float32, one row per corner; RGB in [0,1].
        paint: [M] int64 index into ``paints`` [K,PAINT] of each triangle; 0 is no paint.
    """

    corners: np.ndarray
    normals: np.ndarray
    colors: np.ndarray
    paint: np.ndarray
    paints: np.ndarray

    @classmethod
    def plain(cls, corners: np.ndarray, normals: np.ndarray, colors: np.ndarray) -> Surface:
        """Without paints."""
        corners, normals, colors = (np.ascontiguousarray(x, np.float32) for x in (corners, normals, colors))
        return cls(corners, normals, colors, np.zeros(len(corners), np.int64), np.zeros((1, PAINT), np.float32))

    def __len__(self) -> int:
        return len(self.corners)


@dataclass(frozen=True)
class Light:
    """Shading colour * (ambient + diffuse n·l) + gloss (n·h)^power; the light is fixed in the world."""

    direction: tuple[float, float, float]
    ambient: float = 0.75
    diffuse: float = 0.3
    gloss: float = 0.0
    power: float = 20.0


TOY_LIGHT = Light((0.45, 0.82, 0.35))
"""The light of ``raycast``."""


def sample_light(rng: np.random.Generator) -> Light:
    """Sample soft to hard light from above the horizon; a quarter of the objects are glossy."""
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(-0.1, 1.0)
    flat = math.sqrt(max(1 - height * height, 0.0))
    diffuse = rng.uniform(0.05, 0.45)
    gloss = rng.uniform(0.1, 0.5) if rng.random() < 0.25 else 0.0
    direction = (flat * math.sin(azimuth), height, flat * math.cos(azimuth))
    return Light(direction, rng.uniform(0.9, 1.05) - 0.7 * diffuse, diffuse, gloss, rng.uniform(6, 40))


def render_surface(surface: Surface, cameras: Cameras, light: Light = TOY_LIGHT, samples: int = 2) -> np.ndarray:
    """Render square views as [V,S,S,4] float32 straight RGBA in [0,1], with ``samples``² z-buffer samples per pixel."""
    size = cameras.width
    fine = size * samples
    out = np.zeros((len(cameras), size, size, 4), np.float32)
    views, focal = cameras.viewmats.double().numpy(), float(cameras.Ks[0, 0, 0]) * samples
    flat = surface.corners.reshape(-1, 3).astype(np.float64)
    faces = np.arange(len(flat)).reshape(-1, 3)
    towards = np.asarray(light.direction, np.float64)
    lamp = np.array([*(towards / np.linalg.norm(towards)), light.ambient, light.diffuse, light.gloss, light.power])
    for i, view in enumerate(views):
        seen = flat @ view[:3, :3].T + view[:3, 3]
        points = seen[:, :2] / np.maximum(seen[:, 2:], 0.01) * focal + fine / 2
        ids, weights = np.full((fine, fine), -1, np.int32), np.zeros((fine, fine, 3), np.float32)
        fill(points, np.ascontiguousarray(seen[:, 2]), faces, 0.01, ids, weights, np.full((fine, fine), np.inf, np.float32))
        eye = -view[:3, :3].T @ view[:3, 3]
        arrays = (surface.corners, surface.normals, surface.colors, surface.paint, surface.paints)
        _shade(ids, weights, *arrays, eye, lamp, samples, out[i])
    return out


def frame_surface(surface: Surface, c2w: np.ndarray, fov_y: float, fill_share: float) -> Surface:
    """Scale and move a surface as a job frames its reference: the silhouette seen from ``c2w`` [4,4] is centred and its longest
    side takes ``fill_share`` of the image, or less if the surface would leave the ball that all cameras see."""
    fine = len(surface) > 2000  # one corner of each small triangle suffices
    points = surface.corners[:, 0] if fine else surface.corners.reshape(-1, 3)
    middle = (points.min(0) + points.max(0)) / 2
    reach = float(np.linalg.norm(points - middle, axis=1).max())
    scale, shift, tan_half = BOUND / reach, np.zeros(3), math.tan(math.radians(fov_y) / 2)
    for _ in range(4):
        seen = (points - middle) @ (scale * c2w[:3, :3]) + (shift - c2w[:3, 3]) @ c2w[:3, :3]
        flat = seen[:, :2] / (-seen[:, 2:] * tan_half)
        low, high = flat.min(0), flat.max(0)
        scale *= fill_share * 2 / float((high - low).max())
        scale = min(scale, BOUND / reach)
        centre = (low + high) / 2 * tan_half * float(np.linalg.norm(c2w[:3, 3]))
        shift = shift - c2w[:3, :2] @ centre
    return _place(surface, scale, shift - middle * scale)


def _place(surface: Surface, scale: float, shift: np.ndarray) -> Surface:
    return replace(surface, corners=(surface.corners * scale + shift).astype(np.float32))


def join_surfaces(surfaces: list[Surface]) -> Surface:
    """Concatenate the triangles of several surfaces, each with its paints."""
    first = np.cumsum([0] + [len(s.paints) for s in surfaces])
    paint = np.concatenate([s.paint + n for s, n in zip(surfaces, first[:-1], strict=True)])
    corners, normals, colors = (np.concatenate([getattr(s, n) for s in surfaces]) for n in ("corners", "normals", "colors"))
    return Surface(corners, normals, colors, paint, np.concatenate([s.paints for s in surfaces]))


def transform_surface(surface: Surface, matrix: np.ndarray) -> Surface:
    """Transform a surface by a 3x3 matrix, and its normals by the inverse transpose."""
    normals = surface.normals @ np.linalg.inv(matrix)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    return replace(surface, corners=(surface.corners @ matrix.T).astype(np.float32), normals=normals.astype(np.float32))


def deform_surface(surface: Surface, rng: np.random.Generator) -> Surface:
    """Taper, twist or bend a surface within the unit ball; normals are approximate, which suffices for shading."""
    kind, axis = int(rng.integers(3)), int(rng.choice([0, 1, 1, 1, 2]))
    taper, twist, bend = rng.uniform(-0.5, 0.5), rng.uniform(-1.5, 1.5), rng.uniform(0.3, 1.4) * rng.choice([-1, 1])

    def warp(p: np.ndarray) -> np.ndarray:
        u, v, w = (p[..., (axis + i) % 3] for i in range(3))
        if kind == 0:
            v, w = v * (1 + taper * u), w * (1 + taper * u)
        elif kind == 1:
            c, s = np.cos(twist * u), np.sin(twist * u)
            v, w = c * v - s * w, s * v + c * w
        else:
            radius, angle = 1 / bend + v, bend * u
            u, v = radius * np.sin(angle), radius * np.cos(angle) - 1 / bend
        out = np.empty_like(p)
        for i, value in enumerate((u, v, w)):
            out[..., (axis + i) % 3] = value
        return out

    corners = warp(surface.corners)
    normals = warp(surface.corners + np.float32(0.01) * surface.normals) - corners
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    return replace(surface, corners=corners.astype(np.float32), normals=normals.astype(np.float32))


def centre_surface(surface: Surface) -> Surface:
    """Move and scale into the unit ball around the bounding box's centre."""
    points = surface.corners.reshape(-1, 3)
    middle = (points.min(0) + points.max(0)) / 2
    scale = 1 / max(float(np.linalg.norm(points - middle, axis=1).max()), 1e-6)
    return _place(surface, scale, -middle * scale)


def sample_palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """Sample [count,3] RGB colours: free, of one hue, or natural (wood, stone, cloth: little saturation)."""
    hue = rng.random(count) if rng.random() < 0.5 else rng.random() + rng.normal(0, 0.06, count)
    saturation, value = rng.uniform(0.3, 1.0, count), rng.uniform(0.3, 1.0, count)
    natural = rng.random(count) < (0.25 if rng.random() < 0.6 else 0.8)
    hue = np.where(natural & (rng.random(count) < 0.7), rng.uniform(0.03, 0.15, count), hue)
    saturation = np.where(natural, rng.uniform(0, 0.5, count), saturation)
    value = np.where(natural, rng.uniform(0.1, 1.0, count), value)
    k = (np.array([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    return (value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


def sample_paint(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Sample a [PAINT] pattern of ``color`` for a surface within the unit ball."""
    kind = int(rng.integers(STRIPES, BAND + 1))
    way = rng.normal(size=3) if rng.random() < 0.3 else np.eye(3)[rng.choice([0, 1, 1, 2])]
    way = way / np.linalg.norm(way)
    frequency, phase = rng.uniform(4, 14), rng.uniform(0, 2 * math.pi)
    if kind == DECAL:
        way, frequency = way * rng.uniform(0.3, 0.8) * rng.choice([-1, 1]), rng.uniform(0.15, 0.4)
    elif kind == BAND:
        frequency, phase = rng.uniform(0.04, 0.2), rng.uniform(-0.6, 0.6)
    elif kind in (CHECKER, DOTS):
        frequency = rng.uniform(2, 5)
    return np.array([kind, *way, frequency, phase, *color], np.float32)


@_kernel
def _pattern(paint, x, y, z):
    """Weight of the paint's colour at a point."""
    kind, ux, uy, uz, f, phase = int(paint[0]), paint[1], paint[2], paint[3], paint[4], paint[5]
    q = ux * x + uy * y + uz * z
    if kind == STRIPES:
        return 1.0 if math.sin(q * f + phase) > 0 else 0.0
    if kind == CHECKER:
        cells = math.floor(x * f + phase) + math.floor(y * f + phase) + math.floor(z * f + phase)
        return float(int(cells) & 1)
    if kind == DOTS:
        u, v, w = x * f + phase, y * f + phase, z * f + phase
        u, v, w = u - math.floor(u) - 0.5, v - math.floor(v) - 0.5, w - math.floor(w) - 0.5
        return 1.0 if u * u + v * v + w * w < 0.14 else 0.0
    if kind == GRADIENT:
        return min(max(q * 0.7 + 0.5, 0.0), 1.0)
    if kind in (CLOUDS, PATCHES):
        wave = (
            math.sin(f * (0.6 * x + 0.4 * z) + phase)
            + math.sin(f * (0.7 * y - 0.3 * x) + 2.1 * phase)
            + math.sin(f * (0.5 * z + 0.5 * y) + 3.7 * phase)
        )
        if kind == PATCHES:
            return 1.0 if wave > 0.6 else 0.0
        return min(max(wave * 0.3 + 0.4, 0.0), 1.0)
    if kind == DECAL:
        return 1.0 if (x - ux) ** 2 + (y - uy) ** 2 + (z - uz) ** 2 < f * f else 0.0
    if kind == BAND:
        return 1.0 if abs(q - phase) < f else 0.0
    return 0.0


@_kernel
def _shade(ids, weights, corners, normals, colors, paint, paints, eye, lamp, samples, out):
    size = out.shape[0]
    for py in range(size):
        for px in range(size):
            red = green = blue = 0.0
            hits = 0
            for s in range(samples * samples):
                y, x = py * samples + s // samples, px * samples + s % samples
                f = ids[y, x]
                if f < 0:
                    continue
                a, b, c = weights[y, x, 0], weights[y, x, 1], weights[y, x, 2]
                nx = a * normals[f, 0, 0] + b * normals[f, 1, 0] + c * normals[f, 2, 0]
                ny = a * normals[f, 0, 1] + b * normals[f, 1, 1] + c * normals[f, 2, 1]
                nz = a * normals[f, 0, 2] + b * normals[f, 1, 2] + c * normals[f, 2, 2]
                wx = a * corners[f, 0, 0] + b * corners[f, 1, 0] + c * corners[f, 2, 0]
                wy = a * corners[f, 0, 1] + b * corners[f, 1, 1] + c * corners[f, 2, 1]
                wz = a * corners[f, 0, 2] + b * corners[f, 1, 2] + c * corners[f, 2, 2]
                ex, ey, ez = eye[0] - wx, eye[1] - wy, eye[2] - wz
                length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
                if nx * ex + ny * ey + nz * ez < 0:
                    length = -length
                nx, ny, nz = nx / length, ny / length, nz / length
                light = lamp[3] + lamp[4] * (nx * lamp[0] + ny * lamp[1] + nz * lamp[2])
                shine = 0.0
                if lamp[5] > 0:
                    away = math.sqrt(ex * ex + ey * ey + ez * ez)
                    hx, hy, hz = ex / away + lamp[0], ey / away + lamp[1], ez / away + lamp[2]
                    half = (nx * hx + ny * hy + nz * hz) / (math.sqrt(hx * hx + hy * hy + hz * hz) + 1e-9)
                    if half > 0:
                        shine = lamp[5] * half ** lamp[6]
                p = paints[paint[f]]
                m = _pattern(p, wx, wy, wz)
                for k in range(3):
                    base = a * colors[f, 0, k] + b * colors[f, 1, k] + c * colors[f, 2, k]
                    value = min(max((base * (1 - m) + p[6 + k] * m) * light + shine, 0.0), 1.0)
                    if k == 0:
                        red += value
                    elif k == 1:
                        green += value
                    else:
                        blue += value
                hits += 1
            if hits > 0:
                out[py, px, 0] = red / hits
                out[py, px, 1] = green / hits
                out[py, px, 2] = blue / hits
                out[py, px, 3] = hits / (samples * samples)
