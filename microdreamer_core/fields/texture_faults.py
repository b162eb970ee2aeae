"""Whether the texture coordinates of a mesh give every part of its surface texels of its own."""

from __future__ import annotations

from ..errors import InputError
from ..mesh import Mesh, face_normals
from ..render.mesh import rasterize_uv

_CHECKED = 1024
"""Largest size at which overlap is searched."""
_OVERLAP, _EDGE = 0.01, 1e-3
"""Share of the texels that more than one face may cover; barycentric weight below which a point lies on an edge."""
_FLAT, _MOST_FLAT = 0.01, 0.05
"""A face whose share of the texture is below this part of its share of the surface has no texels of its own; share of the
surface that such faces may have."""
_OUTSIDE = 1e-3


def find_fault(mesh: Mesh, size: int) -> str | None:
    """Say why the uvs of a mesh do not give every part of its surface texels of its own; None if they do or there are none.

    Args:
        size: texels a side.

    Raises:
        InputError: the mesh has no faces, or vertices that are not finite.
    """
    if not len(mesh.faces):
        raise InputError("A texture needs a mesh with faces, got none; check the file that the mesh comes from.")
    if not bool(mesh.vertices.isfinite().all()):
        raise InputError("The mesh has vertices that are not finite numbers; remove or repair them.")
    if mesh.uvs is None:
        return None
    corners = mesh.uvs.double()[mesh.faces]
    if not bool(corners.isfinite().all()):
        return "The mesh's texture coordinates hold NaN or infinite numbers"
    if bool((corners < -_OUTSIDE).any()) or bool((corners > 1 + _OUTSIDE).any()):
        return "The mesh's texture coordinates leave the texture (0..1)"
    (a, b, c), area = corners.unbind(1), face_normals(mesh.vertices, mesh.faces).norm(dim=1).double()
    u, v = b - a, c - a
    texels = (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).abs()
    if (share := doubled_share(mesh, min(size, _CHECKED))) > _OVERLAP:
        return (
            f"{100 * share:.0f} % of the mesh's texels belong to several places of its surface (mirrored or repeated uvs), "
            "which could not get colours of their own"
        )
    flat = texels < _FLAT * area / area.sum().clamp_min(1e-300)
    if (share := float(area[flat].sum() / area.sum().clamp_min(1e-300))) > _MOST_FLAT:
        return f"{100 * share:.0f} % of the mesh's surface has no area in the texture"
    return None


def doubled_share(mesh: Mesh, size: int) -> float:
    """Return the share of the covered texels that more than one face covers, as mirrored or tiling uvs do; 0 to 1.

    Which of two faces a texel keeps depends on their order, so the texels that a reversed order changes are shared, but for
    those whose centre lies on an edge.
    """
    uvs = mesh.texture_coordinates()
    forward = rasterize_uv(uvs, mesh.faces, size)
    backward = rasterize_uv(uvs, mesh.faces.flip(0), size).face_ids
    inner = forward.barycentrics.amin(-1) > _EDGE
    doubled = forward.hit & inner & (forward.face_ids != len(mesh.faces) - 1 - backward)
    return int(doubled.sum()) / max(int(forward.hit.sum()), 1)
