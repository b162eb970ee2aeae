"""Numba kernels that sample textures and images bilinearly; the equations are those of torch's ``grid_sample``."""

from __future__ import annotations

import numpy as np

from ..util._numba_jit import inlined, kernel

F = np.float32
ZERO, HALF, ONE = F(0), F(0.5), F(1)


@inlined
def _between(position, size):
    """Return the two neighbours of a position in pixels, clamped to the border, and the weight of the second."""
    position = min(max(position, ZERO), F(size - 1))
    first = int(position)
    return first, min(first + 1, size - 1), position - F(first)


@kernel
def add_texture_samples(texture, uvs, pixels, first, last, share, image):
    """Add ``share`` of the texture's colours at uvs [P,2] of the samples first..last to their pixels of image [N,3]."""
    height, width = texture.shape[0], texture.shape[1]
    for i in range(first, last):
        x0, x1, a = _between(uvs[i, 0] * F(width) - HALF, width)
        y0, y1, b = _between(uvs[i, 1] * F(height) - HALF, height)
        w00, w01 = share * (ONE - a) * (ONE - b), share * a * (ONE - b)
        w10, w11 = share * (ONE - a) * b, share * a * b
        p = pixels[i]
        for c in range(3):
            image[p, c] += (
                w00 * texture[y0, x0, c] + w01 * texture[y0, x1, c] + w10 * texture[y1, x0, c] + w11 * texture[y1, x1, c]
            )


@kernel
def add_image_samples(image, grid, weights, texels, first, last, total):
    """Add the weighted samples first..last of image [H,W,4] at grid [Q,2] to their texels of total [P,4]; 0 outside."""
    height, width = image.shape[0], image.shape[1]
    for i in range(first, last):
        x, y = ((grid[i, 0] + ONE) * F(width) - ONE) * HALF, ((grid[i, 1] + ONE) * F(height) - ONE) * HALF
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        t, w, a, b = texels[i], weights[i], x - F(x0), y - F(y0)
        left, right = (ONE - a if 0 <= x0 < width else ZERO), (a if -1 <= x0 < width - 1 else ZERO)
        above, below = (w * (ONE - b) if 0 <= y0 < height else ZERO), (w * b if -1 <= y0 < height - 1 else ZERO)
        w00, w01, w10, w11 = left * above, right * above, left * below, right * below
        x1, y1 = min(max(x0 + 1, 0), width - 1), min(max(y0 + 1, 0), height - 1)
        x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        for c in range(4):
            total[t, c] += w00 * image[y0, x0, c] + w01 * image[y0, x1, c] + w10 * image[y1, x0, c] + w11 * image[y1, x1, c]


@kernel
def shade_textured(face_ids, barycentrics, zbuffer, faces, uvs, texture, background, side, rgb, alpha, depth):
    """Shade one view by a texture: the means over ``side`` x ``side`` samples of rgb [H,W,3], alpha [H,W] and depth [H,W].

    Args:
        face_ids, barycentrics, zbuffer: [H side,W side,...] fragments; faces [M,3], uvs [N,2].
        background: [3] colour of the samples that hit nothing, whose depth is 0.
    """
    height, width = texture.shape[0], texture.shape[1]
    share = ONE / F(side * side)
    for row in range(rgb.shape[0]):
        for column in range(rgb.shape[1]):
            red, green, blue, far, hits = ZERO, ZERO, ZERO, ZERO, 0
            for v in range(row * side, row * side + side):
                for u in range(column * side, column * side + side):
                    face = face_ids[v, u]
                    if face < 0:
                        continue
                    x, y = ZERO, ZERO
                    for k in range(3):
                        weight, corner = barycentrics[v, u, k], faces[face, k]
                        x += weight * uvs[corner, 0]
                        y += weight * uvs[corner, 1]
                    x0, x1, a = _between(x * F(width) - HALF, width)
                    y0, y1, b = _between(y * F(height) - HALF, height)
                    w00, w01, w10, w11 = (ONE - a) * (ONE - b), a * (ONE - b), (ONE - a) * b, a * b
                    t00, t01, t10, t11 = texture[y0, x0], texture[y0, x1], texture[y1, x0], texture[y1, x1]
                    red += w00 * t00[0] + w01 * t01[0] + w10 * t10[0] + w11 * t11[0]
                    green += w00 * t00[1] + w01 * t01[1] + w10 * t10[1] + w11 * t11[1]
                    blue += w00 * t00[2] + w01 * t01[2] + w10 * t10[2] + w11 * t11[2]
                    far += zbuffer[v, u]
                    hits += 1
            missed = F(side * side - hits)
            rgb[row, column, 0] = (red + missed * background[0]) * share
            rgb[row, column, 1] = (green + missed * background[1]) * share
            rgb[row, column, 2] = (blue + missed * background[2]) * share
            alpha[row, column] = F(hits) * share
            depth[row, column] = far * share
