"""The z-buffer kernel of ``render.mesh``: the nearest triangle of each pixel."""

from functools import partial

import numpy as np

from ..util._numba_jit import compile_kernel

# no fastmath: contracted products would break the symmetry of the edge functions, on which ``fill`` relies
_OPTIONS = {"nogil": True, "error_model": "numpy"}


@partial(compile_kernel, options=_OPTIONS)
def fill(points, depths, faces, near, face_ids, barycentrics, zbuffer):
    """Rasterise all triangles of one view, both sides; the nearest wins, among equals the first.

    The three edge functions are evaluated with the same operations from both sides of a shared edge, so that their signs are
    exactly opposite and no pixel between two neighbours is missed. Barycentrics are perspective-correct:
    b_i = (e_i / z_i) / Σ (e_j / z_j).

    Args:
        points: [N,2] float64 pixel coordinates, pixel centres at +0.5.
        depths: [N] float64 distances along the viewing axis; triangles with a vertex nearer than ``near`` are dropped.
        faces: [M,3] int64.
        face_ids: [H,W] int32, filled with -1 by the caller.
        barycentrics: [H,W,3] float32, filled with 0 by the caller.
        zbuffer: [H,W] float32, filled with infinity by the caller.
    """
    height, width = zbuffer.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = depths[a], depths[b], depths[c]
        if za <= near or zb <= near or zc <= near:
            continue
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0 or not np.isfinite(area):
            continue
        x0 = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        x1 = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        y0 = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        y1 = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                e0 = (bx - px) * (cy - py) - (by - py) * (cx - px)
                e1 = (cx - px) * (ay - py) - (cy - py) * (ax - px)
                e2 = (ax - px) * (by - py) - (ay - py) * (bx - px)
                if area < 0.0:
                    e0, e1, e2 = -e0, -e1, -e2
                if e0 < 0.0 or e1 < 0.0 or e2 < 0.0:
                    continue
                u0, u1, u2 = e0 / za, e1 / zb, e2 / zc
                total = u0 + u1 + u2
                if total <= 0.0:
                    continue
                z = (e0 + e1 + e2) / total
                if z < zbuffer[y, x]:
                    zbuffer[y, x] = z
                    face_ids[y, x] = f
                    barycentrics[y, x, 0] = u0 / total
                    barycentrics[y, x, 1] = u1 / total
                    barycentrics[y, x, 2] = u2 / total
