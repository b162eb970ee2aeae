"""UV unwrapping by xatlas, in compact submeshes that are packed together.

xatlas takes superlinear time in the faces of one mesh (measured: 19 s for 30,000 faces at once, 4 s in twelve parts), and
charts never need to span the whole object. It runs in a process of its own (see ``_xatlas_process``).
"""

from __future__ import annotations

import io
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mesh import Mesh, vertex_normals

logger = logging.getLogger(__name__)

_FACES_PER_PART = 2500
_LLOYD_ROUNDS = 8
_PROGRAM = Path(__file__).with_name("_xatlas_process.py")
_SECONDS, _SECONDS_PER_FACE = 60.0, 0.02  # thirty times what a slow core takes
_THINNEST = 1e-12
"""Least area of a face, with the mesh scaled to the unit cube; below it, float32 cannot tell the face's direction."""


def unwrap(
    mesh: Mesh,
    texture_size: int = 1024,
    padding: int = 2,
    faces_per_part: int = _FACES_PER_PART,
    detail: Tensor | None = None,
) -> Mesh:
    """Compute uvs that give every face its own area of the texture; vertices on seams are duplicated.

    Faces without an area are dropped.

    Args:
        mesh: vertices and faces; missing normals are computed, colours are kept, an old texture and other maps are dropped.
        texture_size: T, side in pixels of the texture that will be baked.
        padding: free texels between charts.
        faces_per_part: faces of one submesh; smaller meshes are not split.
        detail: [M] relative texels per world unit of each face; a submesh takes the mean of its faces. Uniform if None.

    Raises:
        InputError: the mesh has no faces with an area, or numbers that are not finite, or the texture is smaller than 16
            pixels, or xatlas fails.
    """
    if len(mesh.faces) == 0:
        raise InputError("The mesh has no faces to unwrap, at least 1 is needed; extract it at a lower threshold.")
    if texture_size < 16:
        raise InputError(f"A texture needs at least 16 pixels a side, got {texture_size}; 1024 is usual.")
    if mesh.maps is not None and mesh.maps.named():
        logger.warning("The mesh is unwrapped again; dropped from its material: %s.", ", ".join(mesh.maps.named()))
    vertices = _to_unit_cube(mesh.vertices.numpy())
    whole = _areas(vertices, mesh.faces.numpy()) > _THINNEST
    if not whole.any():
        raise InputError(f"None of the mesh's {len(whole)} faces has an area; check its vertices.")
    faces = mesh.faces.numpy()[whole]
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    parts, used_by_part = [], []
    for part in split_faces(vertices, faces, math.ceil(len(faces) / faces_per_part)):
        used, local = np.unique(faces[part], return_inverse=True)
        # charts are proportional to the surface, so an enlarged submesh gets more texels
        scale = 1.0 if detail is None else float(detail.numpy()[whole][part].mean())
        parts.append((np.float32(scale) * vertices[used], local.reshape(-1, 3).astype(np.uint32)))
        used_by_part.append(used)
    origins, indices, uvs, start = [], [], [], 0
    for used, (mapping, local, uv) in zip(used_by_part, _run_xatlas(parts, texture_size, padding), strict=True):
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


def _to_unit_cube(vertices: np.ndarray) -> np.ndarray:
    """Shift and scale vertices [N,3] into 0..1, because the thresholds of xatlas are absolute."""
    low, high = vertices.min(0), vertices.max(0)
    if not np.isfinite([low, high]).all():
        raise InputError("The mesh has vertices that are not finite numbers; remove or repair them.")
    return ((vertices - low) / max(float((high - low).max()), np.finfo(np.float32).tiny)).astype(np.float32)


def _areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _run_xatlas(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], resolution: int, padding: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (original vertices, faces, uvs) of each part (vertices, faces), packed into one atlas.

    Raises:
        InputError: xatlas crashed, or did not end in time.
    """
    given: dict[str, Any] = {"count": np.int64(len(parts)), "resolution": np.int64(resolution), "padding": np.int64(padding)}
    for i, (vertices, faces) in enumerate(parts):
        given |= {f"vertices{i}": vertices, f"faces{i}": faces}
    content = io.BytesIO()
    np.savez(content, **given)
    count = sum(len(faces) for _, faces in parts)
    try:
        done = subprocess.run(
            [sys.executable, str(_PROGRAM)],
            input=content.getvalue(),
            capture_output=True,
            timeout=_SECONDS + _SECONDS_PER_FACE * count,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"xatlas did not unwrap {count} faces in {error.timeout:.0f} s; use fewer faces.") from error
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise InputError(f"xatlas cannot unwrap this mesh of {count} faces ({why[0]}); repair it or remesh it.")
    found = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    return [(found[f"m{i}"], found[f"f{i}"], found[f"u{i}"]) for i in range(len(parts))]


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
