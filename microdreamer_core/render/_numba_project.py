"""Numba kernels of the projection and of its derivative; the equations are those of :mod:`.projection`.

Packed parameters of a visible Gaussian, ``params[g]``: mean x, mean y, a/2, b, c/2 (conic), opacity, r, g, b, depth,
largest sigma with alpha >= 1/255. The derivative of rotation and covariance follows gsplat (Apache-2.0).
"""

from __future__ import annotations

import numpy as np

from ..util._numba_jit import inlined, kernel
from .projection import ALPHA_MIN as _ALPHA_MIN
from .projection import BLUR as _BLUR
from .projection import FAR as _FAR
from .projection import FRUSTUM_MARGIN, MAX_EXTENT, MAX_RADIUS
from .projection import NEAR as _NEAR

F = np.float32
PARAMS = 11
MOMENTS = 10
ZERO, HALF, ONE, TWO, INF = F(0), F(0.5), F(1), F(2), F(np.inf)
NEAR, FAR, BLUR, ALPHA_MIN = F(_NEAR), F(_FAR), F(_BLUR), F(_ALPHA_MIN)
EXTENT_MAX, RADIUS_MAX, MARGIN = F(MAX_EXTENT), F(MAX_RADIUS), F(0.5 * FRUSTUM_MARGIN)


@inlined
def _dot(u, v):
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


@inlined
def _mix(a, u, b, v):
    """Return a u + b v."""
    return a * u[0] + b * v[0], a * u[1] + b * v[1], a * u[2] + b * v[2]


@inlined
def _scale(u, s):
    return u[0] * s[0], u[1] * s[1], u[2] * s[2]


@inlined
def _row_times(u, m):
    """Return u^T m for a matrix given by its rows."""
    return (
        u[0] * m[0][0] + u[1] * m[1][0] + u[2] * m[2][0],
        u[0] * m[0][1] + u[1] * m[1][1] + u[2] * m[2][1],
        u[0] * m[0][2] + u[1] * m[1][2] + u[2] * m[2][2],
    )


@inlined
def _axes(quats, scales, g):
    """Return the rows of Rot(q / |q|), the rows of M = Rot(q / |q|) diag(s), the unit quaternion and 1 / |q|."""
    w, x, y, z = quats[g, 0], quats[g, 1], quats[g, 2], quats[g, 3]
    n = ONE / np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * n, x * n, y * n, z * n
    q0 = (ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y))
    q1 = (TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x))
    q2 = (TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y))
    s = (scales[g, 0], scales[g, 1], scales[g, 2])
    return (q0, q1, q2), (_scale(q0, s), _scale(q1, s), _scale(q2, s)), (w, x, y, z), n


@inlined
def _view(V, K, W, H):
    """Return rows of the rotation, and per image axis (focal, centre, lowest and highest slope of the clamped Jacobian)."""
    r0, r1, r2 = (V[0, 0], V[0, 1], V[0, 2]), (V[1, 0], V[1, 1], V[1, 2]), (V[2, 0], V[2, 1], V[2, 2])
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    w, h = F(W), F(H)
    mx, my = MARGIN * w / fx, MARGIN * h / fy
    return (r0, r1, r2), (fx, cx, -(cx / fx + mx), (w - cx) / fx + mx), (fy, cy, -(cy / fy + my), (h - cy) / fy + my)


@inlined
def _half_covariance(r, m, fx, fy, rz, sx, sy):
    """Return A = J R and B = A M by rows, for the clamped slopes sx = tx / z and sy = ty / z and rz = 1 / z."""
    a0 = _mix(fx * rz, r[0], -fx * sx * rz, r[2])
    a1 = _mix(fy * rz, r[1], -fy * sy * rz, r[2])
    return a0, a1, _row_times(a0, m), _row_times(a1, m)


@kernel
def project_view(means, quats, scales, opacities, colors, V, K, W, H, antialiased, params, extents, radii):
    """Project all Gaussians into one view.

    Writes params [N,PARAMS] of the visible ones, extents [N,2] (pixels, 0 = culled) and radii [N,2].
    Every comparison is written so that it is false for NaN.
    """
    r, (fx, cx, lx, hx), (fy, cy, ly, hy) = _view(V, K, W, H)
    for g in range(means.shape[0]):
        extents[g, 0] = ZERO
        extents[g, 1] = ZERO
        radii[g, 0] = 0
        radii[g, 1] = 0
        p = (means[g, 0], means[g, 1], means[g, 2])
        z = _dot(r[2], p) + V[2, 3]
        if not (z > NEAR and z < FAR):
            continue
        rz = ONE / z
        ux, uy = (_dot(r[0], p) + V[0, 3]) * rz, (_dot(r[1], p) + V[1, 3]) * rz
        _, m, _, _ = _axes(quats, scales, g)
        _, _, b0, b1 = _half_covariance(r, m, fx, fy, rz, min(max(ux, lx), hx), min(max(uy, ly), hy))
        xx, xy, yy = _dot(b0, b0), _dot(b0, b1), _dot(b1, b1)
        c0, c1, c2 = b0[1] * b1[2] - b0[2] * b1[1], b0[2] * b1[0] - b0[0] * b1[2], b0[0] * b1[1] - b0[1] * b1[0]
        sharp = c0 * c0 + c1 * c1 + c2 * c2
        det = sharp + BLUR * (xx + yy) + BLUR * BLUR
        o = opacities[g]
        if antialiased:
            o = o * np.sqrt(sharp / det)
        color_sum = abs(colors[g, 0]) + abs(colors[g, 1]) + abs(colors[g, 2])
        if not (det < INF and o >= ALPHA_MIN and o < INF and color_sum < INF):
            continue
        xx += BLUR
        yy += BLUR
        limit = np.log(o / ALPHA_MIN)
        deviations = min(np.sqrt(TWO * limit), EXTENT_MAX)
        ex, ey = deviations * np.sqrt(xx), deviations * np.sqrt(yy)
        rx, ry = np.ceil(ex), np.ceil(ey)
        mx, my = fx * ux + cx, fy * uy + cy
        if not (ex > ZERO and ey > ZERO and mx + rx > ZERO and mx - rx < F(W) and my + ry > ZERO and my - ry < F(H)):
            continue
        extents[g, 0] = ex
        extents[g, 1] = ey
        radii[g, 0] = int(min(rx, RADIUS_MAX))
        radii[g, 1] = int(min(ry, RADIUS_MAX))
        inverse = ONE / det
        params[g, 0] = mx
        params[g, 1] = my
        params[g, 2] = HALF * yy * inverse
        params[g, 3] = -xy * inverse
        params[g, 4] = HALF * xx * inverse
        params[g, 5] = o
        params[g, 6] = colors[g, 0]
        params[g, 7] = colors[g, 1]
        params[g, 8] = colors[g, 2]
        params[g, 9] = z
        params[g, 10] = min(limit, HALF * EXTENT_MAX * EXTENT_MAX)


@inlined
def _sum_slots(slots, first, last):
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for k in range(first, last):
        s0 += slots[k, 0]
        s1 += slots[k, 1]
        s2 += slots[k, 2]
        s3 += slots[k, 3]
        s4 += slots[k, 4]
        s5 += slots[k, 5]
        s6 += slots[k, 6]
        s7 += slots[k, 7]
        s8 += slots[k, 8]
        s9 += slots[k, 9]
    return (s0, s1, s2), s3, s4, (s5, s6), (s7, s8, s9)


@inlined
def _covariance_gradient(a, b, c, v00, v01, v11):
    """Return -Q v Q for the symmetric conic Q = [[a, b], [b, c]] and its gradient v."""
    t00, t01 = a * v00 + b * v01, a * v01 + b * v11
    t10, t11 = b * v00 + c * v01, b * v01 + c * v11
    return -(t00 * a + t01 * b), -(t00 * b + t01 * c), -(t10 * b + t11 * c)


@inlined
def _quat_gradient(unit, n, v0, v1, v2):
    """Return the gradient of the unnormalised quaternion from the rows of the rotation's gradient (as in gsplat)."""
    w, x, y, z = unit
    vw = TWO * (x * (v2[1] - v1[2]) + y * (v0[2] - v2[0]) + z * (v1[0] - v0[1]))
    vx = TWO * (-TWO * x * (v1[1] + v2[2]) + y * (v1[0] + v0[1]) + z * (v2[0] + v0[2]) + w * (v2[1] - v1[2]))
    vy = TWO * (x * (v1[0] + v0[1]) - TWO * y * (v0[0] + v2[2]) + z * (v2[1] + v1[2]) + w * (v0[2] - v2[0]))
    vz = TWO * (x * (v2[0] + v0[2]) + y * (v2[1] + v1[2]) - TWO * z * (v0[0] + v1[1]) + w * (v1[0] - v0[1]))
    along = vw * w + vx * x + vy * y + vz * z
    return (vw - along * w) * n, (vx - along * x) * n, (vy - along * y) * n, (vz - along * z) * n


@kernel
def project_backward(
    g0,
    g1,
    means,
    quats,
    scales,
    opacities,
    Vs,
    Ks,
    W,
    H,
    antialiased,
    params,
    slot_start,
    slots,
    v_means,
    v_quats,
    v_scales,
    v_opacities,
    v_colors,
    v_means2d,
):
    """Sum the slots of Gaussians g0..g1 over tiles and views and backpropagate them through the projection.

    slots [S,MOMENTS] are the moments that the raster kernel wrote; view v's Gaussian g owns slot_start[v, g : g + 2].
    With dL/dsigma = s per pixel and d the pixel's offset from the mean: v_mean2d = -Q sum(s d), v_Q = sum(s d d^T) / 2,
    v_S2 = -Q v_Q Q, v_B = 2 v_S2 B, v_A = v_B M^T, v_M = A^T v_B; the clamped Jacobian depends on z only.
    The caller fills the v_ arrays of the parameters with zeros.
    """
    for g in range(g0, g1):
        p = (means[g, 0], means[g, 1], means[g, 2])
        q, m, unit, n = _axes(quats, scales, g)
        v_mean, v_color, v_opacity = (ZERO, ZERO, ZERO), (ZERO, ZERO, ZERO), ZERO
        vm0, vm1, vm2 = (ZERO, ZERO, ZERO), (ZERO, ZERO, ZERO), (ZERO, ZERO, ZERO)
        seen = False
        for v in range(Vs.shape[0]):
            v_means2d[v, g, 0] = ZERO
            v_means2d[v, g, 1] = ZERO
            first, last = slot_start[v, g], slot_start[v, g + 1]
            if first == last:
                continue
            seen = True
            rgb, depth, s, (sx, sy), (sxx, sxy, syy) = _sum_slots(slots, first, last)
            v_color = _mix(ONE, v_color, ONE, rgb)
            a, b, c, o = TWO * params[v, g, 2], params[v, g, 3], TWO * params[v, g, 4], params[v, g, 5]
            gx, gy = -(a * sx + b * sy), -(b * sx + c * sy)
            v_means2d[v, g, 0] = gx
            v_means2d[v, g, 1] = gy
            w00, w01, w11 = _covariance_gradient(a, b, c, HALF * sxx, HALF * sxy, HALF * syy)
            vo = -s / o
            if antialiased:
                # k = sqrt(|S0| / |S2|), S2 = S0 + blur I: dk = ((1 - k^2) Q - blur |Q| I) dS / 2k
                k = o / opacities[g]
                rest = ONE - k * k
                shrink = BLUR * (a * c - b * b)
                t = HALF * vo * opacities[g] / k
                w00 += t * (rest * a - shrink)
                w01 += t * rest * b
                w11 += t * (rest * c - shrink)
                vo *= k
            v_opacity += vo

            V = Vs[v]
            r, (fx, cx, lx, hx), (fy, cy, ly, hy) = _view(V, Ks[v], W, H)
            rz = ONE / (_dot(r[2], p) + V[2, 3])
            ux, uy = (_dot(r[0], p) + V[0, 3]) * rz, (_dot(r[1], p) + V[1, 3]) * rz
            tx, ty = min(max(ux, lx), hx), min(max(uy, ly), hy)
            a0, a1, b0, b1 = _half_covariance(r, m, fx, fy, rz, tx, ty)
            d0, d1 = _mix(TWO * w00, b0, TWO * w01, b1), _mix(TWO * w01, b0, TWO * w11, b1)
            vm0 = _mix(ONE, vm0, ONE, _mix(a0[0], d0, a1[0], d1))
            vm1 = _mix(ONE, vm1, ONE, _mix(a0[1], d0, a1[1], d1))
            vm2 = _mix(ONE, vm2, ONE, _mix(a0[2], d0, a1[2], d1))
            e0 = (_dot(d0, m[0]), _dot(d0, m[1]), _dot(d0, m[2]))
            e1 = (_dot(d1, m[0]), _dot(d1, m[1]), _dot(d1, m[2]))
            fxz, fyz = fx * rz, fy * rz
            j00, j02, j11, j12 = _dot(e0, r[0]), _dot(e0, r[2]), _dot(e1, r[1]), _dot(e1, r[2])
            vx, vy = fxz * gx, fyz * gy
            vz = depth - fxz * ux * gx - fyz * uy * gy - (fxz * j00 + fyz * j11) * rz
            if tx == ux:
                vx -= fxz * rz * j02
                vz += TWO * fxz * tx * rz * j02
            else:
                vz += fxz * tx * rz * j02
            if ty == uy:
                vy -= fyz * rz * j12
                vz += TWO * fyz * ty * rz * j12
            else:
                vz += fyz * ty * rz * j12
            v_mean = _mix(ONE, v_mean, ONE, _row_times((vx, vy, vz), r))
        if not seen:
            continue
        v_opacities[g] = v_opacity
        for i in range(3):
            v_means[g, i] = v_mean[i]
            v_colors[g, i] = v_color[i]
            v_scales[g, i] = vm0[i] * q[0][i] + vm1[i] * q[1][i] + vm2[i] * q[2][i]
        s = (scales[g, 0], scales[g, 1], scales[g, 2])
        v_quat = _quat_gradient(unit, n, _scale(vm0, s), _scale(vm1, s), _scale(vm2, s))
        for i in range(4):
            v_quats[g, i] = v_quat[i]
