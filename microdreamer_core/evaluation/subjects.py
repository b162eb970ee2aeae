"""Procedural objects of known truth, and how close a field comes to one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..diffusion.embedded import toys
from ..errors import InputError
from ..fields.protocol import WHITE, Field
from ..reference import Reference
from . import metrics

NEAR = 0.03
"""Distance threshold of the F-score; the objects are about 1 across."""

_VIEWS, _POINTS, _GRID = 8, 10_000, 96
_REFERENCE_ELEVATION, _ELEVATION = 5.0, 10.0


@dataclass(frozen=True)
class Subject:
    """A toy's ground truth: reference, held-out images [8,S,S,3], silhouettes [8,S,S,1], surface points [M,3]."""

    reference: Reference
    cameras: Cameras
    images: Tensor
    silhouettes: Tensor
    surface: Tensor


@lru_cache(maxsize=8)
def make_subject(index: int, radius: float, fov_y: float, size: int) -> Subject:
    """Render the index-th held-out toy from the front, as reference, and from eight other directions; takes a second.

    Args:
        radius, fov_y: of all cameras. size: side of the images in pixels.
    """
    from ..diffusion.embedded.raycast import on_white, render_toys

    toy = toys.make_held_out_toy(index)
    front = orbit_cameras(_REFERENCE_ELEVATION, 0.0, radius, fov_y, size)
    azimuth = torch.arange(_VIEWS) * (360.0 / _VIEWS) + 180.0 / _VIEWS
    around = orbit_cameras(_ELEVATION, azimuth, radius, fov_y, size)
    rows, counts = toys.stack_toys([toy])
    c2w = torch.cat([front.c2w, around.c2w]).numpy()
    seen = torch.from_numpy(render_toys(rows, counts, np.zeros(len(c2w), int), c2w, size, fov_y))
    images = torch.from_numpy(on_white(seen.numpy()))
    reference = Reference(images[0], seen[0, ..., 3:], elevation=_REFERENCE_ELEVATION)
    surface = toys.true_surface(toy, _GRID)
    points = metrics.sample_points(surface.vertices, surface.faces, _POINTS, torch.Generator().manual_seed(0))
    return Subject(reference, around, images[1:], seen[1:, ..., 3:], points)


@torch.no_grad()
def score_field(field: Field, subject: Subject, geometry: bool = True) -> dict[str, float | None]:
    """Compare a field with the ground truth on held-out views.

    Args:
        geometry: also compare the surface without small components, which takes longer than the rest.

    Returns:
        psnr (dB, mean over the views), ssim, iou of the silhouettes, f_score of the surface at ``NEAR`` and its chamfer
        distance: both None without ``geometry``, 0 and None if there is no surface.
    """
    render = field.render(subject.cameras, WHITE)
    rgb, alpha = render.rgb.cpu().clamp(0, 1), render.alpha.cpu()
    f_score, chamfer = _score_surface(field, subject) if geometry else (None, None)
    return {
        "psnr": statistics.mean(map(metrics.psnr, rgb, subject.images)),
        "ssim": metrics.ssim(rgb, subject.images),
        "iou": metrics.silhouette_iou(alpha, subject.silhouettes),
        "f_score": f_score,
        "chamfer": chamfer,
    }


def _score_surface(field: Field, subject: Subject) -> tuple[float, float | None]:
    from ..meshing.clean import keep_largest_components
    from ..meshing.extract import extract_mesh

    try:
        mesh = keep_largest_components(extract_mesh(field, resolution=_GRID).mesh)
        points = metrics.sample_points(mesh.vertices, mesh.faces, len(subject.surface), torch.Generator().manual_seed(1))
    except InputError:  # there is no surface
        return 0.0, None
    return metrics.f_score(points, subject.surface, NEAR), metrics.chamfer(points, subject.surface)
