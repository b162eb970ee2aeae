"""The numba kernel of ray marching."""

from __future__ import annotations

import numpy as np

from ..util._numba_jit import kernel


@kernel
def mark_samples(begin, end, origins, directions, near, far, offsets, occupied, radius, step, kept):
    """Write kept [R,bins] of rays [begin,end): True for samples in the ball and in an occupied cell, see ``volume.march``."""
    cells, bins = len(occupied), kept.shape[1]
    half, top = near.dtype.type(0.5), np.intp(cells - 1)
    per_length = near.dtype.type(1) / (near.dtype.type(2) * radius)
    for r in range(begin, end):
        for k in range(bins):
            t = near[r] + (near.dtype.type(k) + offsets[r]) * step
            if not t < far[r]:
                for rest in range(k, bins):
                    kept[r, rest] = False
                break
            x = np.intp(((origins[r, 0] + t * directions[r, 0]) * per_length + half) * cells)
            y = np.intp(((origins[r, 1] + t * directions[r, 1]) * per_length + half) * cells)
            z = np.intp(((origins[r, 2] + t * directions[r, 2]) * per_length + half) * cells)
            kept[r, k] = occupied[min(max(x, 0), top), min(max(y, 0), top), min(max(z, 0), top)]
