"""Even sampling of points on a mesh."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..mesh import face_normals
from ..util.threads import get_threads

_PLASTIC = 1.32471795724474602596  # root of x³ = x + 1: its powers give the R2 sequence's steps (Roberts 2018)
_NORMAL_REACH = 2.0  # spacings that opposite normals are apart by half, where normals count as distance


@dataclass(frozen=True)
class SurfaceSamples:
    """P points on a mesh.

    Attributes:
        faces: [P] int64, the triangle of each.
        barycentrics: [P,3] float32 weights of its corners.
        area: total area of the surface.
    """

    faces: Tensor
    barycentrics: Tensor
    area: float

    def interpolate(self, values: Tensor, faces: Tensor) -> Tensor:
        """Interpolate vertex attributes [N,C] at the points, given the mesh's faces [M,3]; returns [P,C]."""
        return torch.einsum("pk,pkc->pc", self.barycentrics.to(values.dtype), values[faces[self.faces]])


def even_samples(vertices: Tensor, faces: Tensor, count: int, generator: torch.Generator) -> SurfaceSamples:
    """Sample points that cover a surface evenly, with fewer gaps and clumps than independent samples.

    Every point has the same share of the area along a space-filling curve through the faces (systematic sampling); points of
    one face follow the R2 low-discrepancy sequence, folded into the triangle.

    Args:
        vertices: [N,3]. faces: [M,3].
        count: number of points.
        generator: CPU generator for the offsets of both sequences.

    Raises:
        InputError: the count is below 1, or the mesh has no area.
    """
    if count < 1:
        raise InputError(f"At least one point must be sampled, got {count}.")
    order = _curve(vertices[faces].mean(1)) if len(faces) else torch.zeros(0, dtype=torch.long)
    area = (face_normals(vertices.double(), faces[order]).norm(dim=1) / 2).cumsum(0)
    if not len(area) or not 0 < float(area[-1]) < float("inf"):
        raise InputError(f"Points can be spread over a mesh with some area only; this one has {len(faces)} faces without any.")
    offset, *shift = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    number = torch.arange(count, dtype=torch.float64)
    face = torch.searchsorted(area, (number + offset) / count * area[-1], right=True).clamp(max=len(area) - 1)
    along, across = ((shift[i] + number * _PLASTIC ** -(i + 1)) % 1 for i in range(2))
    outside = along + across > 1
    along, across = torch.where(outside, 1 - along, along), torch.where(outside, 1 - across, across)
    return SurfaceSamples(order[face], torch.stack([1 - along - across, along, across], 1).float(), float(area[-1]))


def relax_samples(samples: SurfaceSamples, vertices: Tensor, faces: Tensor, every: int, rounds: int = 2) -> SurfaceSamples:
    """Choose every so many of dense samples, spread more evenly than at random: no two close together, no gaps between.

    Lloyd's method (1982) on the samples: each chosen one moves to the sample nearest to the mean of those that are nearest to
    it, by position and normal, so that the two sides of a thin wall do not mix.

    Args:
        samples: P points along a curve on the mesh, as ``even_samples`` gives them.
        vertices: [N,3]. faces: [M,3].
        every: P / every points are chosen.
    """
    from scipy.spatial import KDTree

    spacing = math.sqrt(samples.area * every / len(samples.faces))
    normals = F.normalize(face_normals(vertices, faces)[samples.faces], dim=1)
    points = torch.cat([samples.interpolate(vertices, faces), _NORMAL_REACH * spacing * normals], 1).double().numpy()
    chosen, tree, workers = np.arange(every // 2, len(points), every), KDTree(points, leafsize=16), get_threads()
    for _ in range(rounds):
        owner = KDTree(points[chosen], leafsize=16).query(points, workers=workers)[1]
        count = np.bincount(owner, minlength=len(chosen))
        sums = np.stack([np.bincount(owner, column, len(chosen)) for column in points.T], 1)
        moved = tree.query(sums / np.maximum(count, 1)[:, None], workers=workers)[1]
        chosen = np.where(count > 0, moved, chosen)
    index = torch.from_numpy(chosen)
    return SurfaceSamples(samples.faces[index], samples.barycentrics[index], samples.area)


def _curve(points: Tensor) -> Tensor:
    """[N] the order of points [N,3] along a Z-order curve (Morton 1966): neighbours on it are mostly neighbours in space."""
    low = points.amin(0)
    cells = ((points - low) / (points - low).amax().clamp_min(1e-20) * 1023).long()
    key = torch.zeros(len(points), dtype=torch.long)
    for bit in range(10):
        for axis in range(3):
            key |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return key.argsort(stable=True)
