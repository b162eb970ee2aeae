"""Ray caster for procedural toys: exact images with alpha, fast enough to render training data on the fly."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...cameras import Cameras
from ...util._numba_jit import compile_kernel
from .toys import (
    AXIS,
    BOX,
    CAP,
    CHECKER,
    DOTS,
    FREQUENCY,
    FRUSTUM,
    GRADIENT,
    PHASE,
    SHAPE,
    SPHERE,
    STRIPES,
    TEXTURE,
    TYPE,
    stack_toys,
)

_kernel = partial(compile_kernel, options={"nogil": True, "fastmath": True, "error_model": "numpy"})
_FAR = 1e9
_LIGHT = np.array([0.45, 0.82, 0.35]) / np.linalg.norm([0.45, 0.82, 0.35])


def render_toys(
    rows: np.ndarray, counts: np.ndarray, index: np.ndarray, c2w: np.ndarray, size: int, fov_y: float, samples: int = 2
) -> np.ndarray:
    """Render toys with straight alpha.

    Args:
        rows, counts: from ``toys.stack_toys``.
        index: [B] index of the toy in each image.
        c2w: [B,4,4] OpenGL camera-to-world.
        size: side in pixels of the square images.
        fov_y: vertical field of view in degrees.
        samples: rays per pixel side.

    Returns:
        [B,size,size,4] float32 RGBA in [0,1]; colours are lit by a fixed half-Lambert light, independent of the view.
    """
    out = np.zeros((len(index), size, size, 4), np.float32)
    _render(
        rows,
        counts,
        np.asarray(index, np.int64),
        np.ascontiguousarray(c2w, np.float32),
        math.tan(math.radians(fov_y) / 2),
        samples,
        out,
    )
    return out


def render_toy(toy: np.ndarray, cameras: Cameras) -> Tensor:
    """Render one toy with straight alpha; [V,S,S,4] in [0,1], S being the cameras' width."""
    rows, counts = stack_toys([toy])
    index = np.zeros(len(cameras), int)
    return torch.from_numpy(render_toys(rows, counts, index, cameras.c2w.numpy(), cameras.width, cameras.fov_y))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Composite straight-alpha images [...,4] on white, giving [...,3].

    >>> on_white(np.array([1.0, 0.0, 0.0, 0.5]))
    array([1. , 0.5, 0.5])
    """
    return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])


@_kernel
def _hit_ball(ox, oy, oz, dx, dy, dz, k, capped):
    a, b, c = dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1
    disc = b * b - a * c
    if disc <= 0:
        return _FAR, 0.0, 1.0, 0.0
    t = (-b - math.sqrt(disc)) / a
    if t > 0 and (not capped or oy + t * dy >= k):
        return t, ox + t * dx, oy + t * dy, oz + t * dz
    if capped and abs(dy) > 1e-9:
        t = (k - oy) / dy
        x, z = ox + t * dx, oz + t * dz
        if t > 0 and x * x + z * z <= 1 - k * k:
            return t, 0.0, -1.0, 0.0
    return _FAR, 0.0, 1.0, 0.0


@_kernel
def _hit_box(ox, oy, oz, dx, dy, dz):
    near, far, axis = -_FAR, _FAR, 0
    for i in range(3):
        o = ox if i == 0 else (oy if i == 1 else oz)
        d = dx if i == 0 else (dy if i == 1 else dz)
        if abs(d) < 1e-9:
            if abs(o) > 1:
                return _FAR, 0.0, 1.0, 0.0
            continue
        a, b = (-1 - o) / d, (1 - o) / d
        if a > b:
            a, b = b, a
        if a > near:
            near, axis = a, i
        far = min(far, b)
    if near >= far or near <= 0:
        return _FAR, 0.0, 1.0, 0.0
    if axis == 0:
        return near, -math.copysign(1.0, dx), 0.0, 0.0
    if axis == 1:
        return near, 0.0, -math.copysign(1.0, dy), 0.0
    return near, 0.0, 0.0, -math.copysign(1.0, dz)


@_kernel
def _hit_frustum(ox, oy, oz, dx, dy, dz, k):
    best, nx, ny, nz = _FAR, 0.0, 1.0, 0.0
    m, s = (1 + k) / 2, (k - 1) / 2  # radius(y) = m + s y
    ro, rd = m + s * oy, s * dy
    a, b, c = dx * dx + dz * dz - rd * rd, ox * dx + oz * dz - ro * rd, ox * ox + oz * oz - ro * ro
    disc = b * b - a * c
    if disc > 0 and abs(a) > 1e-9:
        root = math.sqrt(disc)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            y = oy + t * dy
            if 0 < t < best and abs(y) <= 1 and m + s * y >= 0:
                best, nx, ny, nz = t, ox + t * dx, -s * (m + s * y), oz + t * dz
    for end in (-1.0, 1.0):
        if abs(dy) < 1e-9 or end * dy > 0:
            continue
        t, r = (end - oy) / dy, m + s * end
        x, z = ox + t * dx, oz + t * dz
        if 0 < t < best and x * x + z * z <= r * r:
            best, nx, ny, nz = t, 0.0, end, 0.0
    return best, nx, ny, nz


@_kernel
def _hit_torus(ox, oy, oz, dx, dy, dz, k):
    """Sphere tracing inside the bounding ball."""
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    ex, ey, ez = dx / length, dy / length, dz / length
    b, r = ox * ex + oy * ey + oz * ez, 1 + k
    disc = b * b - (ox * ox + oy * oy + oz * oz - r * r)
    if disc <= 0:
        return _FAR, 0.0, 1.0, 0.0
    t, end = max(-b - math.sqrt(disc), 0.0), -b + math.sqrt(disc)
    for _ in range(48):
        x, y, z = ox + t * ex, oy + t * ey, oz + t * ez
        ring = math.sqrt(x * x + z * z)
        gap = math.sqrt((ring - 1) ** 2 + y * y) - k
        if gap < 1e-3:
            pull = (ring - 1) / ring if ring > 1e-6 else 0.0
            return t / length, x * pull, y, z * pull
        t += gap
        if t > end:
            break
    return _FAR, 0.0, 1.0, 0.0


@_kernel
def _hit(kind, k, ox, oy, oz, dx, dy, dz):
    """Return the nearest hit t > 0 of a ray with a unit primitive and the local normal; the camera is outside of it."""
    if kind in (SPHERE, CAP):
        return _hit_ball(ox, oy, oz, dx, dy, dz, k, kind == CAP)
    if kind == BOX:
        return _hit_box(ox, oy, oz, dx, dy, dz)
    if kind == FRUSTUM:
        return _hit_frustum(ox, oy, oz, dx, dy, dz, k)
    return _hit_torus(ox, oy, oz, dx, dy, dz, k)


@_kernel
def _mix(row, x, y, z):
    """Return the fraction of the second colour at a local point."""
    texture, f = int(row[TEXTURE]), row[FREQUENCY]
    axis = int(row[AXIS])
    q = x if axis == 0 else (y if axis == 1 else z)
    if texture == STRIPES:
        return 1.0 if math.sin(q * f * 2.2 + row[PHASE]) > 0 else 0.0
    if texture == GRADIENT:
        return min(max(q * 0.5 + 0.5, 0.0), 1.0)
    if texture == DOTS:
        u, v, w = x * f * 0.6, y * f * 0.6, z * f * 0.6
        u, v, w = u - math.floor(u) - 0.5, v - math.floor(v) - 0.5, w - math.floor(w) - 0.5
        return 1.0 if u * u + v * v + w * w < 0.12 else 0.0
    if texture == CHECKER:
        cells = math.floor(x * f * 0.5 + 0.37) + math.floor(y * f * 0.5 + 0.37) + math.floor(z * f * 0.5 + 0.37)
        return float(int(cells) & 1)
    return 0.0


@_kernel
def _render(rows, counts, index, c2w, tan_half, samples, out):
    size = out.shape[1]
    for b in range(len(index)):
        toy, n, m = rows[index[b]], counts[index[b]], c2w[b]
        ox, oy, oz = m[0, 3], m[1, 3], m[2, 3]
        local = np.empty((n, 3), np.float32)
        for i in range(n):
            for r in range(3):
                local[i, r] = toy[i, 2 + 3 * r] * ox + toy[i, 3 + 3 * r] * oy + toy[i, 4 + 3 * r] * oz + toy[i, 11 + r]
        for py in range(size):
            for px in range(size):
                red = green = blue = hits = 0.0
                for s in range(samples * samples):
                    u = ((px + (s % samples + 0.5) / samples) / size * 2 - 1) * tan_half
                    v = (1 - (py + (s // samples + 0.5) / samples) / size * 2) * tan_half
                    dx = m[0, 0] * u + m[0, 1] * v - m[0, 2]
                    dy = m[1, 0] * u + m[1, 1] * v - m[1, 2]
                    dz = m[2, 0] * u + m[2, 1] * v - m[2, 2]
                    dd = dx * dx + dy * dy + dz * dz
                    best, which, bx, by, bz = _FAR, -1, 0.0, 0.0, 0.0
                    for i in range(n):
                        p = toy[i]
                        cx, cy, cz = p[14] - ox, p[15] - oy, p[16] - oz
                        along = cx * dx + cy * dy + cz * dz
                        if cx * cx + cy * cy + cz * cz - along * along / dd > p[17] * p[17]:
                            continue
                        lx = p[2] * dx + p[3] * dy + p[4] * dz
                        ly = p[5] * dx + p[6] * dy + p[7] * dz
                        lz = p[8] * dx + p[9] * dy + p[10] * dz
                        t, nx, ny, nz = _hit(int(p[TYPE]), p[SHAPE], local[i, 0], local[i, 1], local[i, 2], lx, ly, lz)
                        if t < best:
                            best, which, bx, by, bz = t, i, nx, ny, nz
                    if which < 0:
                        continue
                    p = toy[which]
                    wx = p[2] * bx + p[5] * by + p[8] * bz
                    wy = p[3] * bx + p[6] * by + p[9] * bz
                    wz = p[4] * bx + p[7] * by + p[10] * bz
                    norm = math.sqrt(wx * wx + wy * wy + wz * wz + 1e-20)
                    shade = 0.75 + 0.3 * (wx * _LIGHT[0] + wy * _LIGHT[1] + wz * _LIGHT[2]) / norm
                    hx, hy, hz = ox + best * dx, oy + best * dy, oz + best * dz
                    x = p[2] * hx + p[3] * hy + p[4] * hz + p[11]
                    y = p[5] * hx + p[6] * hy + p[7] * hz + p[12]
                    z = p[8] * hx + p[9] * hy + p[10] * hz + p[13]
                    w = _mix(p, x, y, z)
                    red += min((p[18] * (1 - w) + p[21] * w) * shade, 1.0)
                    green += min((p[19] * (1 - w) + p[22] * w) * shade, 1.0)
                    blue += min((p[20] * (1 - w) + p[23] * w) * shade, 1.0)
                    hits += 1
                if hits > 0:
                    out[b, py, px, 0] = red / hits
                    out[b, py, px, 1] = green / hits
                    out[b, py, px, 2] = blue / hits
                    out[b, py, px, 3] = hits / (samples * samples)
