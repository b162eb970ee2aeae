"""Place a given mesh where a picture of it was taken, so that the picture's colours land where they belong."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..mesh import Mesh, Placement, face_normals
from ..reference import ReferenceView
from ..render.mesh import rasterize, render_mesh

_SIZE = 128  # pixels; boxes are found to a pixel
_ROUNDS = 4
_INSIDE_OUT = 0.9
"""Share of the visible surface that faces away from the cameras from which a mesh is inside out."""


@torch.no_grad()
def align_to_reference(mesh: Mesh, view: ReferenceView) -> tuple[Placement, float]:
    """Scale and shift a mesh until the box of its outline, seen by the reference's camera, is the reference's.

    Pictures are framed by their object when they are prepared, meshes by their box in space, so the two differ by a few per
    cent. The mesh is not turned: its front faces +z.

    Args:
        mesh: roughly where the cameras look.
        view: the reference with its camera.

    Returns:
        The placement, and the IoU of the outlines after it, 0 to 1: low if the picture shows something else or another side.
    """
    camera = view.cameras.to("cpu").resize(_SIZE)
    wanted = torch.nn.functional.interpolate(view.alpha.detach().cpu().permute(0, 3, 1, 2), size=(_SIZE, _SIZE), mode="area")[
        0, 0
    ]
    placement = Placement.identity()
    goal = _box(wanted)
    if goal is None:
        return placement, 0.0
    for _ in range(_ROUNDS):
        seen = _box(render_mesh(placement.apply(mesh), camera).alpha[0, ..., 0])
        if seen is None:
            return Placement.identity(), 0.0
        placement = placement.then(_shift_and_scale(camera, seen, goal))
    moved = render_mesh(placement.apply(mesh), camera).alpha[0, ..., 0] > 0.5
    union = float((moved | (wanted > 0.5)).sum())
    return placement, float((moved & (wanted > 0.5)).sum()) / max(union, 1.0)


@torch.no_grad()
def face_outwards(mesh: Mesh) -> Mesh:
    """Turn all faces and normals of a mesh that is inside out, so that views find the texels that they see.

    Some programs write such meshes, and viewers that show both sides hide it. A mesh of which only parts are inside out is
    left as it is.

    Args:
        mesh: where the cameras look.
    """
    cameras = orbit_cameras([10.0] * 4 + [-80.0, 80.0], [0.0, 90.0, 180.0, 270.0, 0.0, 0.0], 2.5, width=_SIZE)
    fragments = rasterize(mesh.vertices, mesh.faces, cameras)
    facing = torch.nn.functional.normalize(face_normals(mesh.vertices, mesh.faces), dim=1)
    away = [(facing[ids[ids >= 0]] @ c2w[:3, 2] < 0).float() for ids, c2w in zip(fragments.face_ids, cameras.c2w, strict=True)]
    if not len(seen := torch.cat(away)) or float(seen.mean()) < _INSIDE_OUT:
        return mesh
    return replace(mesh, faces=mesh.faces.flip(1), normals=None if mesh.normals is None else -mesh.normals)


def _box(alpha: Tensor) -> Tensor | None:
    """[4] left, top, right, bottom in pixels; None without an outline."""
    rows, columns = (alpha > 0.5).any(1).nonzero()[:, 0], (alpha > 0.5).any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    return torch.tensor([float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1])


def _shift_and_scale(camera: Cameras, seen: Tensor, goal: Tensor) -> Placement:
    """The placement that takes one box onto the other, for points in the plane through the origin that faces the camera."""
    scale = float((goal[2:] - goal[:2]).max() / (seen[2:] - seen[:2]).max())
    pixel, middle = float(camera.pixel_size()), torch.tensor([camera.width, camera.height]) / 2
    from_middle, to_middle = ((box[:2] + box[2:]) / 2 - middle for box in (seen, goal))
    right, down = (to_middle - scale * from_middle) * pixel
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] *= scale
    matrix[:3, 3] = (right * camera.c2w[0, :3, 0] - down * camera.c2w[0, :3, 1]).double()
    return Placement(matrix)
