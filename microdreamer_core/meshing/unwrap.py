"""UV unwrapping by xatlas, in compact submeshes that are packed together.

xatlas takes superlinear time in the faces of one mesh (measured: 19 s for 30,000 faces at once, 4 s in twelve parts), and
charts never need to span the whole object.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mesh import Mesh, vertex_normals

logger = logging.getLogger(__name__)

_FACES_PER_PART = 2500
_LLOYD_ROUNDS = 8


def unwrap(
    mesh: Mesh,
    texture_size: int = 1024,
    padding: int = 2,
    faces_per_part: int = _FACES_PER_PART,
    detail: Tensor | None = None,
) -> Mesh:
    """Compute uvs that give every face its own area of the texture; vertices on seams are duplicated.

    Args:
        mesh: vertices and faces; missing normals are computed, colours are kept, an old texture and other maps are dropped.
        texture_size: T, side in pixels of the texture that will be baked.
        padding: free texels between charts.
        faces_per_part: faces of one submesh; smaller meshes are not split.
        detail: [M] relative texels per world unit of each face; a submesh takes the mean of its faces. Uniform if None.

    Raises:
        InputError: the mesh has no faces or the texture is smaller than 16 pixels.
    """
    import xatlas

    if len(mesh.faces) == 0:
        raise InputError("The mesh has no faces to unwrap, at least 1 is needed; extract it at a lower threshold.")
    if texture_size < 16:
        raise InputError(f"A texture needs at least 16 pixels a side, got {texture_size}; 1024 is usual.")
    if mesh.maps is not None and mesh.maps.named():
        logger.warning("The mesh is unwrapped anew; dropped from its material: %s.", ", ".join(mesh.maps.named()))
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    atlas = xatlas.Atlas()
    used_by_part = []
    for part in split_faces(vertices, faces, math.ceil(len(faces) / faces_per_part)):
        used, local = np.unique(faces[part], return_inverse=True)
        # charts are proportional to the surface, so an enlarged submesh gets more texels
        scale = 1.0 if detail is None else float(detail[part].mean())
        atlas.add_mesh(np.float32(scale) * vertices[used], local.reshape(-1, 3).astype(np.uint32))
        used_by_part.append(used)
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear = texture_size, padding, True
    atlas.generate(xatlas.ChartOptions(), options)
    origins, indices, uvs, start = [], [], [], 0
    for i, used in enumerate(used_by_part):
        mapping, local, uv = atlas[i]
        origins.append(used[mapping])
        indices.append(local.astype(np.int64) + start)
        uvs.append(uv)
        start += len(mapping)
    origin = torch.from_numpy(np.concatenate(origins).astype(np.int64))
    return Mesh(
        mesh.vertices[origin],
        torch.from_numpy(np.concatenate(indices)),
        uvs=torch.from_numpy(np.concatenate(uvs).astype(np.float32)).clamp(0, 1),
        normals=normals[origin],
        colors=None if mesh.colors is None else mesh.colors[origin],
    )


def split_faces(vertices: np.ndarray, faces: np.ndarray, parts: int) -> list[np.ndarray]:
    """Split faces [M,3] into compact groups by k-means on their centres, deterministically (farthest-point initialisation).

    Returns:
        At most ``parts`` arrays of face indices, disjoint and complete; none is empty.
    """
    from scipy.spatial import KDTree

    if parts <= 1:
        return [np.arange(len(faces))]
    points = vertices[faces].mean(1).astype(np.float64)
    centres = [points[0]]
    distance = np.full(len(points), np.inf)
    while len(centres) < parts:
        distance = np.minimum(distance, ((points - centres[-1]) ** 2).sum(1))
        centres.append(points[distance.argmax()])
    centres, owner = np.array(centres), np.zeros(len(points), np.int64)
    for _ in range(_LLOYD_ROUNDS):
        owner = KDTree(centres, leafsize=16).query(points)[1]
        sums = np.stack([np.bincount(owner, points[:, k], len(centres)) for k in range(3)], 1)
        counts = np.bincount(owner, minlength=len(centres))
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    groups = [np.flatnonzero(owner == i) for i in range(len(centres))]
    return [group for group in groups if len(group)]
