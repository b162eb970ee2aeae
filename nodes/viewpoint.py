"""The camera of ComfyUI's 3D viewers to this pack's cameras, and back; the nodes exist in versions that have the type.

A LOAD3D_CAMERA is that of three.js: right-handed, y up, looking along -z, a vertical field of view divided by the zoom; the
orientation is its quaternion or, without one, from position to target with y up. That is this pack's convention, but its
world is the viewer's, in which the file is placed by a LOAD3D_MODEL_INFO.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.mesh import Placement
from ..microdreamer_core.render.projection import rotation_matrices
from ..microdreamer_core.sir.step import Step
from . import types
from .compat import has_3d_cameras, io, model_info_input, schema
from .native_mesh import placement_of
from .types import core_call, expect, rig_of

_USUAL_FOV = 35.0  # of ComfyUI's viewers, where a camera says none
_PARALLEL_FOV = 1.0
"""Field of view in degrees that stands for a parallel projection, from far away."""


def _transform_input() -> io.Input:
    return types.Transform.Input(
        "transform", optional=True, tooltip="From Fit Mesh, if the viewer shows the file that it fitted; needed for its place."
    )


class CamerasFromView(io.ComfyNode):
    """Convert the viewpoint of a 3D viewer to cameras."""

    TITLE = "Cameras from View"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerCamerasFromView",
            aliases=("viewpoint", "camera info", "render from view", "load 3d camera"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="Renders from where you look: the camera of Load 3D or Create Camera Info, for Render Views.",
            inputs=[
                io.Load3DCamera.Input("camera_info", tooltip="The viewer's camera."),
                io.Int.Input("width", default=512, min=16, max=4096, tooltip="Width of the images in pixels."),
                io.Int.Input("height", default=512, min=16, max=4096, tooltip="Height of the images in pixels."),
                *model_info_input(),
                _transform_input(),
            ],
            outputs=[types.Rig.Output(id="cameras_out", display_name="cameras", tooltip="One camera, for Render Views.")],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        camera_info: Any,
        width: int = 512,
        height: int = 512,
        model_3d_info: Any = None,
        transform: Placement | None = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(cameras_of_view(camera_info, width, height, _to_object(model_3d_info, transform)))


class ViewFromCameras(io.ComfyNode):
    """Convert one of our cameras to the viewpoint of a 3D viewer."""

    TITLE = "View from Cameras"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerViewFromCameras",
            aliases=("viewpoint", "camera info", "preview 3d camera"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="One of the cameras as camera_info, for Preview 3D, Render Splat and Render Mesh.",
            inputs=[
                types.Rig.Input("cameras", tooltip="From Sample Cameras, Camera Layout or Cameras from View."),
                io.Int.Input("index", default=0, min=0, max=100_000, tooltip="Which of the cameras, from 0."),
                *model_info_input(),
                _transform_input(),
            ],
            outputs=[io.Load3DCamera.Output(id="camera_info_out", display_name="camera_info", tooltip="The camera.")],
        )

    @classmethod
    @core_call
    def execute(
        cls, cameras: Step | Cameras, index: int = 0, model_3d_info: Any = None, transform: Placement | None = None
    ) -> io.NodeOutput:
        rig = rig_of(cameras)
        if index >= len(rig):
            raise InputError(f"There are {len(rig)} cameras, got index {index}; the last is {len(rig) - 1}.")
        return io.NodeOutput(view_of_camera(rig[[index]], _to_object(model_3d_info, transform).inverse()))


def _to_object(model_3d_info: Any, transform: Placement | None) -> Placement:
    """From the viewer's world to that of the object: the file's own frame, then that of Fit Mesh."""
    fitted = Placement.identity() if transform is None else expect(transform, Placement, "transform")
    return placement_of(model_3d_info).inverse().then(fitted)


def cameras_of_view(view: Any, width: int, height: int, to_object: Placement) -> Cameras:
    """Convert a LOAD3D_CAMERA to one camera.

    Args:
        to_object: from the viewer's world to the object's.

    Raises:
        InputError: it has no position, or looks nowhere.
    """
    try:
        position, target = (_vector(view.get(name), name) for name in ("position", "target"))
        fov, zoom = float(view.get("fov") or _USUAL_FOV), float(view.get("zoom") or 1.0)
        turned = None if not view.get("quaternion") else [float(view["quaternion"][axis]) for axis in "wxyz"]
        parallel, frustum = str(view.get("cameraType", "")).lower().startswith("ortho"), view.get("frustum") or {}
        half = abs(float(frustum.get("top", 0.0))) if parallel else 0.0
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"A camera_info needs position and target, got {str(view)[:80]!r}; turn the viewer once, or link another."
        ) from error
    toward, up = target - position, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    if turned is not None:
        axes = rotation_matrices(torch.tensor([turned], dtype=torch.float64))[0]
        toward, up = -axes[:, 2] * max(float(toward.norm()), 1e-6), axes[:, 1]
    moved = to_object.move(torch.stack([position, position + toward, position + up]))
    position, toward, up = moved[0], moved[1] - moved[0], moved[2] - moved[0]
    distance, tangent = float(toward.norm()), math.tan(math.radians(fov) / 2) / zoom
    backward = -F.normalize(toward, dim=0)
    right = torch.linalg.cross(up, backward)
    if float(right.norm()) < 1e-3 * float(up.norm()):  # straight up or down: the viewers keep x to the right
        right = torch.linalg.cross(torch.tensor([0.0, 0.0, -float(backward[1].sign())], dtype=torch.float64), backward)
    right = F.normalize(right, dim=0)
    if not distance or not bool(torch.cat([position, right, backward]).isfinite().all()):
        raise InputError("The camera's position and target are the same; move it away from what it looks at.")
    if parallel:
        scale = float(to_object.matrix[:3, :3].det().abs()) ** (1 / 3)
        seen = half * scale / zoom if half else distance * tangent  # half the height of what it sees
        fov_y = _PARALLEL_FOV
        position = position + toward + seen / math.tan(math.radians(fov_y) / 2) * backward
    else:
        fov_y = math.degrees(2 * math.atan(tangent))
    c2w = torch.eye(4, dtype=torch.float64)
    c2w[:3] = torch.stack([right, torch.linalg.cross(backward, right), backward, position], 1)
    return Cameras(c2w[None].float(), fov_y, width, height)


def view_of_camera(camera: Cameras, to_viewer: Placement) -> dict[str, Any]:
    """Convert one camera to a LOAD3D_CAMERA that looks at the point of its axis nearest to the object's origin.

    Args:
        to_viewer: from the object's world to the viewer's.
    """
    c2w = camera.c2w[0].detach().cpu().double()
    position, up, forward = c2w[:3, 3], c2w[:3, 1], -c2w[:3, 2]
    ahead = float(-(position @ forward))
    target = position + forward * (ahead if ahead > 0 else 1.0)
    position, target, above = to_viewer.move(torch.stack([position, target, position + up]))
    backward = F.normalize(position - target, dim=0)
    right = F.normalize(torch.linalg.cross(above - position, backward), dim=0)
    x, y, z, w = _quaternion(torch.stack([right, torch.linalg.cross(backward, right), backward], 1))
    return {
        "position": _named(position),
        "target": _named(target),
        "quaternion": {"x": x, "y": y, "z": z, "w": w},
        "fov": float(camera.fov_y),
        "aspect": camera.width / camera.height,
        "zoom": 1.0,
        "cameraType": "perspective",
    }


def _vector(values: Any, name: str) -> Tensor:
    vector = torch.tensor([float(values[axis]) for axis in "xyz"], dtype=torch.float64)
    if not bool(vector.isfinite().all()):
        raise ValueError(f"{name} is not finite")
    return vector


def _named(vector: Tensor) -> dict[str, float]:
    return dict(zip("xyz", vector.tolist(), strict=True))


def _quaternion(rotation: Tensor) -> list[float]:
    """[3,3] rotation to a unit quaternion xyzw: the eigenvector of Bar-Itzhack (2000), good at every angle."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    symmetric = torch.tensor(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ],
        dtype=torch.float64,
    )
    quaternion = torch.linalg.eigh(symmetric / 3).eigenvectors[:, -1]
    return (quaternion * (1.0 if float(quaternion[3]) >= 0 else -1.0)).tolist()


NODES = (CamerasFromView, ViewFromCameras) if has_3d_cameras() else ()
