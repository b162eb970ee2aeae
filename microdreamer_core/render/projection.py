"""Projection of 3D Gaussians to the screen, in torch.

The semantics are those of gsplat 1.5.3 (Ye et al. 2025, arXiv 2409.06765; Apache-2.0), whose formulas follow EWA splatting
(Zwicker et al. 2001) and 3D Gaussian splatting (Kerbl et al. 2023, Eq. 5 and 6); ``antialiased`` is the opacity compensation
of Mip-Splatting (Yu et al. 2024, Eq. 9). The numba and CUDA kernels have the same equations with analytic derivatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR, FAR = 0.01, 1e10
BLUR = 0.3  # low-pass filter in square pixels, gsplat's eps2d
FRUSTUM_MARGIN = 0.3  # the Jacobian's centre is clamped this fraction of the half width outside the image
ALPHA_MIN = 1.0 / 255.0  # fainter contributions are skipped
ALPHA_MAX = 0.999
T_MIN = 1e-4  # a pixel is finished before its transmittance falls to this
MAX_EXTENT = 3.33  # standard deviations; sqrt(2 ln 255) = 3.329 reaches ALPHA_MIN at full opacity
MAX_RADIUS = 1e9  # pixels; keeps the radii of huge splats inside int32


@dataclass(frozen=True)
class Projection:
    """Gaussians on the screen, [...] being the pairs of Gaussian and view.

    Attributes:
        means2d: [...,2] pixels, pixel centres at +0.5.
        conics: [...,3] inverse 2D covariance (a, b, c) of [[a, b], [b, c]].
        depths: [...] z in the camera's OpenCV axes.
        opacities: [...] after the compensation of ``antialiased``.
        extents: [...,2] half extents in pixels of the region with alpha >= 1/255.
        visible: [...] bool, False where the Gaussian is culled in that view, non-finite ones included.
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    opacities: Tensor
    extents: Tensor
    visible: Tensor

    @property
    def radii(self) -> Tensor:
        """[...,2] int32 half extents rounded up, 0 where culled."""
        rounded = self.extents.nan_to_num(0.0, MAX_RADIUS, 0.0).ceil().clamp_max(MAX_RADIUS).to(torch.int32)
        return rounded * self.visible[..., None]


def rotation_matrices(quats: Tensor) -> Tensor:
    """Convert wxyz quaternions [...,4] of any norm to rotations [...,3,3]; NaN for the zero quaternion.

    >>> rotation_matrices(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,  # noqa: N803 - the field's name for intrinsics
    width: int,
    height: int,
    antialiased: bool = False,
) -> Projection:
    """Project Gaussians to the screen; leading dimensions broadcast, for all pairs of Gaussian and view or selected ones.

    With p = R m + t, M = Rot(q/|q|) diag(s) and the Jacobian J of the pinhole projection at the clamped p:
    B = J R M, S2 = B B^T + 0.3 I, conic = S2^-1, and o' = o sqrt(|B B^T| / |S2|) when antialiased.
    |B B^T| is the squared norm of the cross product of B's rows, which does not cancel for needles.

    Args:
        means, quats, scales, opacities: [...,3], [...,4], [...,3], [...]; see :class:`~.protocol.Splats`.
        viewmats, Ks: [...,4,4] world-to-camera (OpenCV) and [...,3,3] pixels.
        width, height: pixels.
    """
    fx, fy, cx, cy = Ks[..., 0, 0], Ks[..., 1, 1], Ks[..., 0, 2], Ks[..., 1, 2]
    rotation, translation = viewmats[..., :3, :3], viewmats[..., :3, 3]
    x, y, z = ((rotation @ means[..., None])[..., 0] + translation).unbind(-1)

    tx = z * _clamp(x / z, cx, width, fx)
    ty = z * _clamp(y / z, cy, height, fy)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], -1).unflatten(-1, (2, 3))
    b = jacobian @ rotation @ (rotation_matrices(quats) * scales[..., None, :])
    xx, xy, yy = (b[..., 0, :] ** 2).sum(-1), (b[..., 0, :] * b[..., 1, :]).sum(-1), (b[..., 1, :] ** 2).sum(-1)
    sharp = (torch.linalg.cross(b[..., 0, :], b[..., 1, :]) ** 2).sum(-1)
    determinant = sharp + BLUR * (xx + yy) + BLUR**2
    xx, yy = xx + BLUR, yy + BLUR

    opacity = opacities * (sharp / determinant).sqrt() if antialiased else opacities.expand_as(z)
    deviations = (2 * (opacity.detach() / ALPHA_MIN).log()).sqrt().clamp_max(MAX_EXTENT)
    extents = deviations[..., None] * torch.stack([xx, yy], -1).detach().sqrt()
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    reach = extents.ceil()
    visible = (z > NEAR) & (z < FAR) & (determinant < math.inf) & (opacity >= ALPHA_MIN) & (opacity < math.inf)
    visible &= (extents > 0).all(-1) & (means2d + reach > 0).all(-1)
    visible &= (means2d[..., 0] - reach[..., 0] < width) & (means2d[..., 1] - reach[..., 1] < height)
    conics = torch.stack([yy, -xy, xx], -1) / determinant[..., None]
    return Projection(means2d, conics, z, opacity, extents, visible)


def _clamp(slope: Tensor, centre: Tensor, size: int, focal: Tensor) -> Tensor:
    margin = FRUSTUM_MARGIN * 0.5 * size / focal
    return torch.minimum(torch.maximum(slope, -(centre / focal + margin)), (size - centre) / focal + margin)
