"""Clean-up of an extracted surface: remove floaters, smooth the grid's steps, decimate."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mesh import Mesh, face_normals


def keep_largest_components(mesh: Mesh, share: float = 0.02) -> Mesh:
    """Drop connected components whose area is below ``share`` of the largest one's; 1 keeps only the largest.

    Raises:
        InputError: the mesh has no faces, or the share is not in [0,1].
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _check_faces(mesh)
    if not 0 <= share <= 1:
        raise InputError(f"The share of the largest piece lies in [0,1], got {share}; 0.02 is usual.")
    count, faces = len(mesh.vertices), mesh.faces.numpy()
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    piece = labels[faces[:, 0]]
    areas = np.bincount(piece, weights=face_normals(mesh.vertices.double(), mesh.faces).norm(dim=1).numpy())
    return select_faces(mesh, torch.from_numpy((areas >= share * areas.max())[piece]))


def select_faces(mesh: Mesh, chosen: Tensor) -> Mesh:
    """Return the mesh of the chosen faces ([M] bool), without unused vertices; the texture stays."""
    faces = mesh.faces[chosen]
    used, compact = torch.unique(faces, return_inverse=True)
    rows = {k: None if getattr(mesh, k) is None else getattr(mesh, k)[used] for k in ("uvs", "normals", "colors")}
    return Mesh(mesh.vertices[used], compact, texture=mesh.texture, **rows)


def decimate(mesh: Mesh, target_faces: int) -> Mesh:
    """Reduce a mesh to about ``target_faces`` faces by quadric error; only vertices and faces are kept.

    Raises:
        InputError: the mesh has no faces, or the target is below 4.
    """
    _check_faces(mesh)
    if target_faces < 4:
        raise InputError(f"A closed mesh has at least 4 faces, got a target of {target_faces}; 30000 is usual.")
    if len(mesh.faces) <= target_faces:
        return Mesh(mesh.vertices, mesh.faces)
    import fast_simplification

    points, triangles = np.ascontiguousarray(mesh.vertices.numpy()), mesh.faces.numpy().astype(np.int32)
    vertices, faces, *_ = fast_simplification.simplify(points, triangles, target_count=target_faces)
    return _drop_empty_faces(torch.from_numpy(np.float32(vertices)), torch.from_numpy(faces.astype(np.int64)))


def smooth(mesh: Mesh, iterations: int = 5) -> Mesh:
    """Remove the grid's steps by Taubin smoothing, which does not shrink; only vertices and faces are kept.

    Args:
        iterations: rounds of one shrinking and one inflating step; 0 returns the mesh unchanged.
    """
    _check_faces(mesh)
    if iterations == 0:
        return Mesh(mesh.vertices, mesh.faces)
    import trimesh

    used, compact = torch.unique(mesh.faces, return_inverse=True)  # trimesh's matrix has no row for an unused last vertex
    shape = trimesh.Trimesh(mesh.vertices[used].numpy(), compact.numpy(), process=False)
    trimesh.smoothing.filter_taubin(shape, lamb=0.5, nu=0.53, iterations=2 * iterations)
    return Mesh(mesh.vertices.index_copy(0, used, torch.from_numpy(np.float32(shape.vertices))), mesh.faces)


def _drop_empty_faces(vertices: Tensor, faces: Tensor) -> Mesh:
    """Drop degenerate faces, which use a vertex twice: they have no normal."""
    a, b, c = faces.unbind(1)
    mesh = Mesh(vertices, faces)
    return select_faces(mesh, (a != b) & (b != c) & (a != c))


def _check_faces(mesh: Mesh) -> None:
    if len(mesh.faces) == 0:
        raise InputError("The mesh has no faces, at least 1 is needed; extract it at a lower threshold.")
