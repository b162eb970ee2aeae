"""Procedural objects of known truth, and how close a field comes to one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..cameras import Cameras, orbit_cameras
from ..diffusion.embedded import toys
from ..errors import InputError
from ..fields.protocol import WHITE, Field
from ..mesh.types import Mesh
from ..reference import Reference

NEAR = 0.03
"""The F-score's distance; the objects are about 1 across."""

_VIEWS, _POINTS, _GRID = 8, 10_000, 96
_REFERENCE_ELEVATION, _ELEVATION = 5.0, 10.0


@dataclass(frozen=True)
class Subject:
    """A toy with its truth: reference picture, held-out pictures [8,S,S,3], silhouettes [8,S,S,1], surface points [M,3]."""

    name: str
    toy: np.ndarray
    reference: Reference
    cameras: Cameras
    pictures: Tensor
    silhouettes: Tensor
    surface: Tensor


@dataclass(frozen=True)
class Score:
    """How close a field is to the truth on views that no run saw, and what it cost.

    Attributes:
        psnr: dB, mean over the views; ssim; iou: of the silhouettes.
        evaluations: of the network, per view and per branch, summed over the views.
        seconds: of the run without its scoring.
        f_score: of the surface at ``NEAR``; chamfer: its distance. None when not asked for; 0 and None without a surface.
    """

    psnr: float
    ssim: float
    iou: float
    evaluations: int
    seconds: float
    f_score: float | None = None
    chamfer: float | None = None


def toy_of(index: int) -> tuple[str, np.ndarray]:
    """The index-th held-out toy and the name of its category."""
    names = list(toys.CATEGORIES)
    name = names[index % len(names)]
    return name, toys.make_toy(toys.HELD_OUT + index, name)


def make_subject(index: int, radius: float, fov_y: float, size: int) -> Subject:
    """The index-th held-out toy, seen from the front for reference and from eight other directions for evaluation.

    Args:
        radius, fov_y: of all cameras. size: pixels of the pictures.
    """
    from ..diffusion.embedded.raycast import on_white, render_toys

    name, toy = toy_of(index)
    front = orbit_cameras(_REFERENCE_ELEVATION, 0.0, radius, fov_y, size)
    azimuth = torch.arange(_VIEWS) * (360.0 / _VIEWS) + 180.0 / _VIEWS
    around = orbit_cameras(_ELEVATION, azimuth, radius, fov_y, size)
    rows, counts = toys.stack_toys([toy])
    c2w = torch.cat([front.c2w, around.c2w]).numpy()
    seen = torch.from_numpy(render_toys(rows, counts, np.zeros(len(c2w), int), c2w, size, fov_y))
    pictures = torch.from_numpy(on_white(seen.numpy()))
    reference = Reference(pictures[0], seen[0, ..., 3:], elevation=_REFERENCE_ELEVATION)
    return Subject(name, toy, reference, around, pictures[1:], seen[1:, ..., 3:], surface_points(toy))


def true_surface(toy: np.ndarray, resolution: int = _GRID) -> Mesh:
    """The surface of a toy, by marching cubes on the exact inside test."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    axis = np.linspace(-0.7, 0.7, resolution)
    plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    slices = (toys.occupancy(toy, np.insert(plane, 0, x, axis=1)) for x in axis)
    inside = np.stack(list(slices)).reshape((resolution,) * 3).astype(np.float32)
    vertices, faces, _, _ = marching_cubes(gaussian_filter(inside, 0.7), 0.5)
    vertices = torch.from_numpy(np.ascontiguousarray(vertices * (axis[1] - axis[0]) + axis[0], dtype=np.float32))
    return Mesh(vertices, torch.from_numpy(faces.astype(np.int64)))


def surface_points(toy: np.ndarray, resolution: int = _GRID, count: int = _POINTS) -> Tensor:
    """[count,3] points on the true surface."""
    mesh = true_surface(toy, resolution)
    return metrics.sample_points(mesh.vertices, mesh.faces, count, torch.Generator().manual_seed(0))


@torch.no_grad()
def score(field: Field, subject: Subject, evaluations: int, seconds: float, geometry: bool = True) -> Score:
    """Compare with the truth; ``geometry`` also extracts the surface, which takes longer than the rest."""
    render = field.render(subject.cameras, WHITE)
    rgb, alpha = render.rgb.cpu().clamp(0, 1), render.alpha.cpu()
    psnr = statistics.mean(metrics.psnr(a, b) for a, b in zip(rgb, subject.pictures, strict=True))
    shown = (psnr, metrics.ssim(rgb, subject.pictures), metrics.silhouette_iou(alpha, subject.silhouettes))
    return Score(*shown, evaluations, seconds, *(_geometry(field, subject) if geometry else ()))


def _geometry(field: Field, subject: Subject) -> tuple[float, float | None]:
    """F-score and Chamfer distance."""
    try:
        mesh = surface(field)
        points = metrics.sample_points(mesh.vertices, mesh.faces, len(subject.surface), torch.Generator().manual_seed(1))
    except InputError:  # there is no surface
        return 0.0, None
    return metrics.f_score(points, subject.surface, NEAR), metrics.chamfer(points, subject.surface)


def surface(field: Field) -> Mesh:
    """The surface of a field without its specks.

    Raises:
        InputError: it has none.
    """
    from ..mesh.clean import keep_largest_components
    from ..mesh.extract import extract_mesh

    return keep_largest_components(extract_mesh(field, resolution=_GRID).mesh)
