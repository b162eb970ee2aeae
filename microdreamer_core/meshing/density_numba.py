"""Density splatting for ``meshing.splat_density``, compiled by numba."""

import numpy as np

from ..util._numba_exp import exp_neg
from ..util._numba_jit import kernel

F = np.float32
CUTOFF = F(5.6)
"""Half the squared Mahalanobis distance beyond which a Gaussian is cut off: e^-5.6 < 1/255."""


@kernel
def splat_density(means, precisions, half, opacities, origin, voxel, first, last, out):
    """Add o exp(-½ dᵀ P d) of every Gaussian to the grid points of its bounding box within the slab first <= x < last.

    Args:
        means, half: [N,3] float32 centres and half sides of the boxes.
        precisions: [N,6] float32 xx, xy, xz, yy, yz, zz of the inverse covariances.
        opacities: [N] float32.
        origin: [3] float32 position of grid point (0,0,0).
        voxel: float32 spacing.
        out: [R,R,R] float32, indexed x, y, z.
    """
    size = out.shape[0]
    for g in range(means.shape[0]):
        mx, my, mz = means[g, 0] - origin[0], means[g, 1] - origin[1], means[g, 2] - origin[2]
        x0, x1 = max(int(np.ceil((mx - half[g, 0]) / voxel)), first), min(int((mx + half[g, 0]) // voxel) + 1, last)
        y0, y1 = max(int(np.ceil((my - half[g, 1]) / voxel)), 0), min(int((my + half[g, 1]) // voxel) + 1, size)
        z0, z1 = max(int(np.ceil((mz - half[g, 2]) / voxel)), 0), min(int((mz + half[g, 2]) // voxel) + 1, size)
        if x1 <= x0 or y1 <= y0 or z1 <= z0:
            continue
        xx, xy, xz = precisions[g, 0], precisions[g, 1], precisions[g, 2]
        yy, yz, zz = precisions[g, 3], precisions[g, 4], precisions[g, 5]
        opacity = opacities[g]
        start = F(z0) * voxel - mz
        for x in range(x0, x1):
            dx = F(x) * voxel - mx
            for y in range(y0, y1):
                dy = F(y) * voxel - my
                constant = F(0.5) * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
                linear = xz * dx + yz * dy
                row = out[x, y, z0:z1]
                for i in range(row.shape[0]):
                    dz = start + F(i) * voxel
                    s = (F(0.5) * zz * dz + linear) * dz + constant
                    inside = s < CUTOFF
                    s = s if inside else CUTOFF
                    row[i] += opacity * exp_neg(s) if inside else F(0)
