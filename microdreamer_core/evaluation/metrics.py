"""Metrics of images, silhouettes and surfaces against the ground truth.

scipy, scikit-image and the renderer are imported when they are needed.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch
from torch import Tensor

from ..cameras import orbit_cameras
from ..errors import InputError
from ..fields.protocol import Field
from ..mesh import Mesh
from ..reference import Reference, prepare_reference

_WINDOW = 11  # pixels of the Gaussian window, which scikit-image derives from sigma


def psnr(a: Tensor, b: Tensor) -> float:
    """Compute the peak signal-to-noise ratio in dB of two images in [0,1] of the same shape; inf if they are equal.

    >>> round(psnr(torch.zeros(2, 2, 3), torch.full((2, 2, 3), 0.1)), 1)
    20.0
    """
    _check_same(a, b)
    error = float((_exact(a) - _exact(b)).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Tensor, b: Tensor) -> float:
    """Compute the structural similarity (Wang et al. 2004) of images in [0,1], averaged over pixels, channels and views.

    Gaussian window of 11 pixels, σ = 1.5, K1 = 0.01, K2 = 0.03; windows that cross the border are left out.

    Args:
        a, b: [H,W,C] or [V,H,W,C], at least 11 pixels in each dimension.

    Raises:
        InputError: shapes differ or images are too small.
    """
    _check_same(a, b)
    if a.ndim not in (3, 4) or min(a.shape[-3:-1]) < _WINDOW:
        raise InputError(f"SSIM needs pictures [H,W,C] or [V,H,W,C] of at least {_WINDOW} pixels, got {list(a.shape)}.")
    from skimage.metrics import structural_similarity

    views = zip(*(_exact(images).reshape(-1, *images.shape[-3:]).numpy() for images in (a, b)), strict=True)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": -1}
    found = (structural_similarity(x, y, **options) for x, y in views)
    return statistics.mean(map(float, found))  # pyright: ignore[reportArgumentType] - a tuple only with other options


def _exact(picture: Tensor) -> Tensor:
    """Convert to float64 on the CPU, because not every device supports it."""
    return picture.detach().cpu().double()


def silhouette_iou(a: Tensor, b: Tensor, threshold: float = 0.5) -> float:
    """Compute the intersection over union of two coverage maps, thresholded; 1 if both are empty.

    >>> silhouette_iou(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    0.5
    """
    _check_same(a, b)
    inside_a, inside_b = a > threshold, b > threshold
    union = int((inside_a | inside_b).sum())
    return 1.0 if union == 0 else int((inside_a & inside_b).sum()) / union


def chamfer(a: Tensor, b: Tensor) -> float:
    """Compute the Chamfer distance of point sets [N,3] and [M,3]: mean of the two directed mean distances (not squared)."""
    forth, back = _nearest(a, b)
    return float((forth.mean() + back.mean()) / 2)


def f_score(a: Tensor, b: Tensor, threshold: float) -> float:
    """Compute the F-score of points ``a`` [N,3] against true points ``b`` [M,3]: harmonic mean of precision and recall within
    a distance ``threshold``."""
    if threshold <= 0:
        raise InputError(f"The F-score's distance must be positive, got {threshold}; 0.02 of the object's size is usual.")
    forth, back = _nearest(a, b)
    precision, recall = float((forth <= threshold).mean()), float((back <= threshold).mean())
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _nearest(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each point of one set to the nearest of the other, both ways, as numpy arrays."""
    from scipy.spatial import KDTree

    for points in (a, b):
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise InputError(f"Points must be [N,3] with N >= 1, got {list(points.shape)}.")
    first, second = a.detach().cpu().double().numpy(), b.detach().cpu().double().numpy()
    return KDTree(second, leafsize=16).query(first)[0], KDTree(first, leafsize=16).query(second)[0]


def sample_points(vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample points uniformly on a mesh's surface.

    Args:
        vertices: [N,3]. faces: [F,3] indices into them.
        count: number of points.
        generator: CPU generator.

    Returns:
        [count,3], dtype and device of the vertices.

    Raises:
        InputError: the mesh has no area.
    """
    if count < 1:
        raise InputError(f"At least one point must be sampled, got {count}.")
    corners = vertices.double()[faces.long()]
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = torch.linalg.cross(u, v).norm(dim=1).cumsum(0)
    if not len(area) or not float(area[-1]) > 0:
        raise InputError(f"Points can be sampled from a mesh with some area only; this one has {len(faces)} faces without any.")
    pick, along, across = torch.rand(3, count, generator=generator, dtype=torch.float64).to(vertices.device)
    face = torch.searchsorted(area, pick * area[-1], right=True).clamp(max=len(area) - 1)
    outside = along + across > 1
    along, across = torch.where(outside, 1 - along, along), torch.where(outside, 1 - across, across)
    return (corners[face, 0] + along[:, None] * u[face] + across[:, None] * v[face]).to(vertices.dtype)


def _check_same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise InputError(f"Both must have one shape, got {list(a.shape)} and {list(b.shape)}; resize one of them.")


@torch.no_grad()
def compare_front(result: Field | Mesh, wanted: Reference, elevation: float) -> tuple[float, float]:
    """Compare the front view of a mesh or a field with its image, each cropped to its object because scales differ.

    Args:
        wanted: the image, framed at 0.8.

    Returns:
        (PSNR, at most 100, IoU).
    """
    from ..job.outputs import extent_of, film_cameras, render_result

    size = wanted.image.shape[-2]
    far = float(film_cameras(extent_of(result), 1, size, elevation).orbit()[2][0])
    render = render_result(result, orbit_cameras(elevation, 0.0, far, width=2 * size))
    seen = prepare_reference(render.rgb[0].cpu().clamp(0, 1), render.alpha[0, ..., 0].cpu(), 0.8, size)
    return min(psnr(seen.image, wanted.image), 100.0), silhouette_iou(seen.alpha, wanted.alpha)
