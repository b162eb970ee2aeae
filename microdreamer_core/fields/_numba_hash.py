"""Numba kernels of the hash grid with two features per level; the equations are those of ``fields.hashgrid.encode_torch``.

The forward pass is split by points, the backward pass by levels: writes never overlap, and sums do not depend on the number of
threads.
A level is a row of ``scales`` [L], ``resolutions`` [L] (0 where hashed), ``sizes`` [L] and ``offsets`` [L].
"""

from __future__ import annotations

import numpy as np

from ..util._numba_jit import inlined, kernel

_Y, _Z = np.uint32(2654435761), np.uint32(805459861)  # Müller et al. 2022, Eq. 4
_ONE = np.uint32(1)


@inlined
def _entry(x, y, z, resolution, size):
    """Return the index of a corner within its level; the size of a hashed level is a power of two."""
    if resolution > 0:
        place = x + resolution * (y + resolution * z)
        return place if place < size else place % size
    return (x ^ (y * _Y) ^ (z * _Z)) & (size - _ONE)


@kernel
def hash_forward(begin, end, points, table, scales, resolutions, sizes, offsets, features):
    """Write features [M,2L] of points [begin,end)."""
    half, one = scales.dtype.type(0.5), scales.dtype.type(1)
    for level in range(len(scales)):
        scale, resolution, size, offset = scales[level], resolutions[level], sizes[level], offsets[level]
        for m in range(begin, end):
            px, py, pz = points[m, 0] * scale + half, points[m, 1] * scale + half, points[m, 2] * scale + half
            x0, y0, z0 = np.uint32(px), np.uint32(py), np.uint32(pz)
            fx, fy, fz = px - np.floor(px), py - np.floor(py), pz - np.floor(pz)
            first, second = scales.dtype.type(0), scales.dtype.type(0)
            for dz in range(2):
                wz = fz if dz else one - fz
                for dy in range(2):
                    wyz = wz * (fy if dy else one - fy)
                    y, z = y0 + np.uint32(dy), z0 + np.uint32(dz)
                    a = offset + np.uintp(_entry(x0, y, z, resolution, size))
                    b = offset + np.uintp(_entry(x0 + _ONE, y, z, resolution, size))
                    first += wyz * ((one - fx) * table[a, 0] + fx * table[b, 0])
                    second += wyz * ((one - fx) * table[a, 1] + fx * table[b, 1])
            features[m, 2 * level] = first
            features[m, 2 * level + 1] = second


@kernel
def hash_backward(level, points, v_features, scales, resolutions, sizes, offsets, v_table):
    """Add one level's gradient to v_table [entries,2]."""
    half, one = scales.dtype.type(0.5), scales.dtype.type(1)
    scale, resolution, size, offset = scales[level], resolutions[level], sizes[level], offsets[level]
    for m in range(len(points)):
        v0, v1 = v_features[m, 2 * level], v_features[m, 2 * level + 1]
        if v0 == 0 and v1 == 0:
            continue
        px, py, pz = points[m, 0] * scale + half, points[m, 1] * scale + half, points[m, 2] * scale + half
        x0, y0, z0 = np.uint32(px), np.uint32(py), np.uint32(pz)
        fx, fy, fz = px - np.floor(px), py - np.floor(py), pz - np.floor(pz)
        for dz in range(2):
            wz = fz if dz else one - fz
            for dy in range(2):
                wyz = wz * (fy if dy else one - fy)
                y, z = y0 + np.uint32(dy), z0 + np.uint32(dz)
                a = offset + np.uintp(_entry(x0, y, z, resolution, size))
                b = offset + np.uintp(_entry(x0 + _ONE, y, z, resolution, size))
                near, far = wyz * (one - fx), wyz * fx
                v_table[a, 0] += near * v0
                v_table[a, 1] += near * v1
                v_table[b, 0] += far * v0
                v_table[b, 1] += far * v1
