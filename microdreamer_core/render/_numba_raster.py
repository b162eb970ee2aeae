"""Numba kernels that sort Gaussians into tiles and blend them; the equations are those of :func:`.splat_torch._blend`.

They are fast because LLVM emits straight-line SIMD for them, which requires the following:

* two rows of a tile are one vector, from an even row on: the inner loop over ``LANES`` pixels has a constant trip count and no
  branch, and vectors lie within cache lines;
* all pixel planes lie in one buffer at constant offsets (many arrays exceed LLVM's alias checks), indexed by ``uintp``
  (signed indices wrap around); masks are selects, never conditional stores; the sign of T marks a finished pixel;
* exp(-x) is a polynomial, no library call (``_numba_exp``);
* every (Gaussian, tile) pair has its range of rows, and its own slot for its gradient, Gaussian-major: no atomics, and sums
  that do not depend on the number of threads;
* the backward pass runs back to front from each pixel's final T and last Gaussian, as in Kerbl et al. (2023): T is recovered
  by the same factors that produced it, which keeps float32's precision behind nearly opaque Gaussians.
"""

from __future__ import annotations

import numpy as np

from ..util._numba_exp import exp_neg
from ..util._numba_jit import inlined, kernel
from ._numba_project import HALF, ONE, TWO, ZERO, F
from .projection import ALPHA_MAX as _ALPHA_MAX
from .projection import T_MIN as _T_MIN

TILE_W, TILE_H = 8, 16
LANES = 2 * TILE_W
LINE = 64  # bytes of a cache line
PIXELS = TILE_W * TILE_H
ALPHA_MAX, T_MIN = F(_ALPHA_MAX), F(_T_MIN)
FOUR = F(4)
U = np.uintp

# Planes of the pixel buffer: T and the last live index in the list (both kept between the passes), forward r, g, b, depth;
# backward rest, four gradients, those of the colours with their painted part, weight, v_sigma, x, y.
T_, LAST, RED, GREEN, BLUE, DEPTH = (U(i * PIXELS) for i in range(6))
REST, V_RED, V_GREEN, V_BLUE, V_DEPTH, C_RED, C_GREEN, C_BLUE, WEIGHT, V_SIGMA, COLUMN, ROW = (
    U(i * PIXELS) for i in range(2, 14)
)
KEPT = 2 * PIXELS


@inlined
def _tile_range(mean, extent, tile, tiles):
    first = max(np.floor((mean - extent) / F(tile)), ZERO)
    last = min(np.floor((mean + extent) / F(tile)) + ONE, F(tiles))
    return int(min(first, F(tiles))), int(max(last, ZERO))


@inlined
def _tile_rows(params, g, ey, tx, ty):
    """Return the rows [first, last) of a tile in which {sigma <= limit} intersects the tile's columns of pixel centres.

    ``first`` is even, and may be a row before.
    """
    mx, my, ha, b, hc = params[g, 0], params[g, 1], params[g, 2], params[g, 3], params[g, 4]
    limit = params[g, 10] + F(1e-4)
    left, right = F(tx * TILE_W) + HALF - mx, F(tx * TILE_W + TILE_W) - HALF - mx
    # The ellipse's highest point has dy = +ey at dx = highest, its lowest dy = -ey at -highest.
    highest = -b * ey / (TWO * ha)
    top, bottom = ey, -ey
    empty = False
    if highest < left or highest > right:
        x = left if highest < left else right
        discriminant = b * b * x * x - FOUR * hc * (ha * x * x - limit)
        empty = empty or discriminant < ZERO
        top = (-b * x + np.sqrt(max(discriminant, ZERO))) / (TWO * hc)
    if -highest < left or -highest > right:
        x = left if -highest < left else right
        discriminant = b * b * x * x - FOUR * hc * (ha * x * x - limit)
        empty = empty or discriminant < ZERO
        bottom = (-b * x - np.sqrt(max(discriminant, ZERO))) / (TWO * hc)
    y0 = my - F(ty * TILE_H) - HALF
    first = max(np.ceil(y0 + bottom - F(1e-3)), ZERO)
    last = min(np.floor(y0 + top + F(1e-3)) + ONE, F(TILE_H))
    if empty or not first < last:
        return 0, 0
    return int(first) & -2, int(last)


@inlined
def _sort_by_depth(members, params):
    """Return ``members`` front to back: a stable radix sort, since the bits of positive floats sort like the floats."""
    count = members.shape[0]
    depth = np.empty(count, np.float32)
    for i in range(count):
        depth[i] = params[members[i], 9]
    key, key2 = depth.view(np.uint32), np.empty(count, np.uint32)
    order, order2 = members.copy(), np.empty(count, np.int32)
    for digit in range(3):
        shift = np.uint32(11 * digit)
        place = np.zeros(2049, np.int64)
        for i in range(count):
            place[((key[i] >> shift) & np.uint32(2047)) + 1] += 1
        for i in range(2048):
            place[i + 1] += place[i]
        for i in range(count):
            d = (key[i] >> shift) & np.uint32(2047)
            j = place[d]
            place[d] = j + 1
            key2[j] = key[i]
            order2[j] = order[i]
        key, key2 = key2, key
        order, order2 = order2, order
    return order


@kernel
def bin_view(params, extents, tiles_x, tiles_y):
    """List the Gaussians of each tile, front to back.

    Returns:
        tile_start [tiles+1]: tile t's list is start[t]..start[t+1] of the next three.
        splat, slot, rows [L,2]: index of the Gaussian, its gradient slot, the rows of the tile that it covers.
        slot_start [N+1]: first slot of every Gaussian.
    """
    n = params.shape[0]
    rect = np.zeros((n, 4), np.int32)
    slot_start = np.zeros(n + 1, np.int64)
    tile_start = np.zeros(tiles_x * tiles_y + 1, np.int64)
    visible = np.empty(n, np.int32)
    count = 0
    for g in range(n):
        if extents[g, 0] > ZERO:
            x0, x1 = _tile_range(params[g, 0], extents[g, 0], TILE_W, tiles_x)
            y0, y1 = _tile_range(params[g, 1], extents[g, 1], TILE_H, tiles_y)
            if x1 > x0 and y1 > y0:
                rect[g, 0] = x0
                rect[g, 1] = x1
                rect[g, 2] = y0
                rect[g, 3] = y1
                visible[count] = g
                count += 1
        slot_start[g + 1] = slot_start[g] + (rect[g, 1] - rect[g, 0]) * (rect[g, 3] - rect[g, 2])

    touched = np.empty((slot_start[n], 2), np.int8)
    for i in range(count):
        g = visible[i]
        k = slot_start[g]
        for ty in range(rect[g, 2], rect[g, 3]):
            for tx in range(rect[g, 0], rect[g, 1]):
                first, last = _tile_rows(params, g, extents[g, 1], tx, ty)
                touched[k, 0] = first
                touched[k, 1] = last
                if last > first:
                    tile_start[ty * tiles_x + tx + 1] += 1
                k += 1
    for t in range(tiles_x * tiles_y):
        tile_start[t + 1] += tile_start[t]

    length = tile_start[tiles_x * tiles_y]
    splat = np.empty(length, np.int32)
    slot = np.empty(length, np.int32)
    rows = np.empty((length, 2), np.int8)
    cursor = tile_start[: tiles_x * tiles_y].copy()
    order = _sort_by_depth(visible[:count], params)
    for i in range(count):
        g = order[i]
        k = slot_start[g]
        for ty in range(rect[g, 2], rect[g, 3]):
            for tx in range(rect[g, 0], rect[g, 1]):
                if touched[k, 1] > touched[k, 0]:
                    t = ty * tiles_x + tx
                    j = cursor[t]
                    cursor[t] = j + 1
                    splat[j] = g
                    slot[j] = k
                    rows[j, 0] = touched[k, 0]
                    rows[j, 1] = touched[k, 1]
                k += 1
    return tile_start, splat, slot, rows, slot_start


@inlined
def _pixel_buffer(size):
    """Return an uninitialised buffer that begins at a cache line, so that no vector lies in two."""
    buffer = np.empty(size + LINE // 4, np.float32)
    shift = -buffer.ctypes.data % LINE // 4
    return buffer[shift : shift + size]


@kernel
def raster_forward(params, tile_start, splat, rows, background, W, H, tiles_x, tiles, rgb, alpha, depth, stop, kept):
    """Blend the given tiles of one view into rgb [H,W,3], alpha and depth [H,W].

    Writes for the backward pass stop[t], where tile t's list ended, and kept [tiles,KEPT], T and LAST of its pixels.
    """
    pix = _pixel_buffer(6 * PIXELS)
    for t in tiles:
        tx, ty = t % tiles_x, t // tiles_x
        x0, y0 = F(tx * TILE_W), F(ty * TILE_H)
        for i in range(PIXELS):
            pix[T_ + U(i)] = ONE
            pix[LAST + U(i)] = -ONE
        for i in range(4 * PIXELS):
            pix[RED + U(i)] = ZERO
        k = tile_start[t]
        end = tile_start[t + 1]
        while k < end:
            until = min(k + 8, end)
            for j in range(k, until):
                g = splat[j]
                mx, my = params[g, 0] - x0 - HALF, params[g, 1] - y0 - HALF
                ha, b, hc, o, limit = params[g, 2], params[g, 3], params[g, 4], params[g, 5], params[g, 10]
                red, green, blue, far = params[g, 6], params[g, 7], params[g, 8], params[g, 9]
                place = F(j - tile_start[t])
                y, last = rows[j, 0], rows[j, 1]
                while y < last:
                    base, from_mean = U(y * TILE_W), F(y) - my
                    y += 2
                    for x in range(LANES):
                        i = base + U(x)
                        dx, dy = F(x % TILE_W) - mx, F(x // TILE_W) + from_mean
                        sigma = (ha * dx + b * dy) * dx + hc * dy * dy
                        al = o * exp_neg(sigma)
                        al = al if al < ALPHA_MAX else ALPHA_MAX
                        al = al if sigma <= limit else ZERO
                        T = pix[T_ + i]
                        after = T * (ONE - al)
                        live = after > T_MIN
                        w = al * T if live else ZERO
                        pix[T_ + i] = after if live else -abs(T)
                        pix[LAST + i] = place if live else pix[LAST + i]
                        pix[RED + i] += w * red
                        pix[GREEN + i] += w * green
                        pix[BLUE + i] += w * blue
                        pix[DEPTH + i] += w * far
            k = until
            left = ZERO
            for i in range(PIXELS):
                T = pix[T_ + U(i)]
                left += T if T > ZERO else ZERO
            if left == ZERO:
                break
        stop[t] = k
        for i in range(PIXELS):
            kept[t, i] = abs(pix[T_ + U(i)])
            kept[t, PIXELS + i] = pix[LAST + U(i)]
        for yy in range(min(TILE_H, H - ty * TILE_H)):
            for xx in range(min(TILE_W, W - tx * TILE_W)):
                i = U(yy * TILE_W + xx)
                u, v = tx * TILE_W + xx, ty * TILE_H + yy
                T = abs(pix[T_ + i])
                rgb[v, u, 0] = pix[RED + i] + T * background[0]
                rgb[v, u, 1] = pix[GREEN + i] + T * background[1]
                rgb[v, u, 2] = pix[BLUE + i] + T * background[2]
                alpha[v, u] = ONE - T
                depth[v, u] = pix[DEPTH + i]


@kernel
def raster_backward(
    params,
    tile_start,
    splat,
    slot,
    rows,
    background,
    W,
    H,
    tiles_x,
    tiles,
    stop,
    kept,
    v_rgb,
    v_alpha,
    v_depth,
    v_painted,
    slots,
    v_background,
):
    """Compute the moments of the gradient of every (Gaussian, tile) pair of the given tiles of one view.

    slots [S,MOMENTS] = sums over the tile's pixels of w (v_rgb + v_painted) (3), w v_depth, s, s dx, s dy, s dx^2, s dx dy,
    s dy^2 with s = dL/dsigma; v_background [tiles,3]. With f = c . v_rgb + z v_depth and the rest behind the Gaussian
    R = sum of later w f + T_final (background . v_rgb - v_alpha): v_alpha_i = T f - R / (1 - alpha_i).
    """
    pix = _pixel_buffer(14 * PIXELS)
    for i in range(PIXELS):
        pix[COLUMN + U(i)] = F(i % TILE_W)
        pix[ROW + U(i)] = F(i // TILE_W)
    for t in tiles:
        tx, ty = t % tiles_x, t // tiles_x
        x0, y0 = F(tx * TILE_W), F(ty * TILE_H)
        for i in range(KEPT):
            pix[U(i)] = kept[t, i]
        for i in range(8 * PIXELS):
            pix[REST + U(i)] = ZERO
        arrives = False
        b0, b1, b2 = ZERO, ZERO, ZERO
        for yy in range(min(TILE_H, H - ty * TILE_H)):
            for xx in range(min(TILE_W, W - tx * TILE_W)):
                i = U(yy * TILE_W + xx)
                u, v = tx * TILE_W + xx, ty * TILE_H + yy
                vr, vg, vb, vd, va = v_rgb[v, u, 0], v_rgb[v, u, 1], v_rgb[v, u, 2], v_depth[v, u], v_alpha[v, u]
                cr, cg, cb = vr + v_painted[v, u, 0], vg + v_painted[v, u, 1], vb + v_painted[v, u, 2]
                T = pix[T_ + i]
                b0 += T * cr
                b1 += T * cg
                b2 += T * cb
                pix[V_RED + i] = vr
                pix[V_GREEN + i] = vg
                pix[V_BLUE + i] = vb
                pix[V_DEPTH + i] = vd
                pix[C_RED + i] = cr
                pix[C_GREEN + i] = cg
                pix[C_BLUE + i] = cb
                pix[REST + i] = T * (vr * background[0] + vg * background[1] + vb * background[2] - va)
                arrives = arrives or vr != ZERO or vg != ZERO or vb != ZERO or vd != ZERO or va != ZERO
                arrives = arrives or cr != ZERO or cg != ZERO or cb != ZERO
        v_background[t, 0] = b0
        v_background[t, 1] = b1
        v_background[t, 2] = b2
        if not arrives:
            continue
        for j in range(stop[t] - 1, tile_start[t] - 1, -1):
            place = F(j - tile_start[t])
            g = splat[j]
            mx, my = params[g, 0] - x0 - HALF, params[g, 1] - y0 - HALF
            ha, b, hc, o, limit = params[g, 2], params[g, 3], params[g, 4], params[g, 5], params[g, 10]
            red, green, blue, far = params[g, 6], params[g, 7], params[g, 8], params[g, 9]
            first, last = rows[j, 0], rows[j, 1]
            y = first
            while y < last:
                base, from_mean = U(y * TILE_W), F(y) - my
                y += 2
                for x in range(LANES):
                    i = base + U(x)
                    dx, dy = F(x % TILE_W) - mx, F(x // TILE_W) + from_mean
                    sigma = (ha * dx + b * dy) * dx + hc * dy * dy
                    free = o * exp_neg(sigma)
                    al = free if free < ALPHA_MAX else ALPHA_MAX
                    al = al if sigma <= limit else ZERO
                    al = al if place <= pix[LAST + i] else ZERO
                    grow = ONE / (ONE - al)
                    T = pix[T_ + i] * grow
                    w = al * T
                    f = red * pix[V_RED + i] + green * pix[V_GREEN + i] + blue * pix[V_BLUE + i] + far * pix[V_DEPTH + i]
                    rest = pix[REST + i]
                    s = al * (rest * grow - T * f)
                    s = s if free < ALPHA_MAX else ZERO
                    pix[T_ + i] = T
                    pix[REST + i] = rest + w * f
                    pix[WEIGHT + i] = w
                    pix[V_SIGMA + i] = s
            m0, m1, m2, m3, m4, m5, m6, m7, m8, m9 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            base = U(first * TILE_W)
            for ii in range((y - first) * TILE_W):
                i = base + U(ii)
                w = pix[WEIGHT + i]
                m0 += w * pix[C_RED + i]
                m1 += w * pix[C_GREEN + i]
                m2 += w * pix[C_BLUE + i]
                m3 += w * pix[V_DEPTH + i]
                s = pix[V_SIGMA + i]
                dx, dy = pix[COLUMN + i] - mx, pix[ROW + i] - my
                sx, sy = s * dx, s * dy
                m4 += s
                m5 += sx
                m6 += sy
                m7 += sx * dx
                m8 += sx * dy
                m9 += sy * dy
            k = slot[j]
            slots[k, 0] = m0
            slots[k, 1] = m1
            slots[k, 2] = m2
            slots[k, 3] = m3
            slots[k, 4] = m4
            slots[k, 5] = m5
            slots[k, 6] = m6
            slots[k, 7] = m7
            slots[k, 8] = m8
            slots[k, 9] = m9
