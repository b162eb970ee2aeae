"""Our camera conversions against the functions of the model families."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion import mvdream, zero123

FIXTURES = Path(os.environ.get("MICRODREAMER_FIXTURES", Path(__file__).parents[1] / "fixtures"))
TOLERANCE = {"rtol": 0, "atol": 1e-6}

with safe_open(FIXTURES / "camera.safetensors", "pt") as _file:
    METADATA = _file.metadata()
    TENSORS = {key: _file.get_tensor(key) for key in _file.keys()}  # noqa: SIM118 - not a dict
GET_CAMERA = list(enumerate(json.loads(METADATA["get_camera_args"])))


def released_orbit():
    """The cases of orbit_camera, whose elevation is positive below, as our cameras."""
    elevation, azimuth, radius = TENSORS["inp.orbit.params"].unbind(1)
    return orbit_cameras(-elevation, azimuth, radius)


def test_orbit():
    torch.testing.assert_close(released_orbit().c2w, TENSORS["out.orbit.c2w"], **TOLERANCE)


def test_matrices_of_an_orbit():
    rows = mvdream.normalized_translation(mvdream.to_z_up(released_orbit().c2w)).flatten(1)
    torch.testing.assert_close(rows, TENSORS["out.orbit.mv_condition"], **TOLERANCE)


@pytest.mark.parametrize(("index", "arguments"), GET_CAMERA)
def test_get_camera(index, arguments):
    frames = arguments["num_frames"]
    azimuth = arguments["azimuth_start"] + torch.arange(frames) * (arguments["azimuth_span"] / frames)
    expected = TENSORS[f"out.get_camera.{index}"]
    if not arguments["blender_coord"]:
        c2w = orbit_cameras(arguments["elevation"], azimuth, 1.7).c2w
        torch.testing.assert_close(mvdream.normalized_translation(c2w).flatten(1), expected, **TOLERANCE)
        return
    ours = orbit_cameras(arguments["elevation"], azimuth - mvdream.FRONT_AZIMUTH, 1.7)
    torch.testing.assert_close(mvdream.camera_matrices(ours), expected, **TOLERANCE)
    with_extra = mvdream.camera_matrices(ours, extra_view=True)
    torch.testing.assert_close(with_extra, TENSORS[f"out.get_camera_extra.{index}"], **TOLERANCE)


def test_front_is_front():
    """Our front view is the view that the family's own text-to-image script calls the front (azimuth 90)."""
    front = [(i, a) for i, a in GET_CAMERA if a["azimuth_start"] == 90 and a["blender_coord"]]
    for index, arguments in front:
        rows = mvdream.camera_matrices(orbit_cameras(arguments["elevation"], 0.0))
        torch.testing.assert_close(rows[0], TENSORS[f"out.get_camera.{index}"][0], **TOLERANCE)


@pytest.mark.parametrize("stable", [False, True])
def test_zero123(stable):
    params = TENSORS["inp.zero123.params_elev_azim_radius_default"]
    expected = TENSORS["out.zero123.T_stable" if stable else "out.zero123.T_xl"]
    for (down, turn, farther, default), row in zip(params.tolist(), expected, strict=True):
        reference = -default  # given positive below
        cameras = orbit_cameras(reference - down, turn, 2.0 + farther)
        got = zero123.camera_embedding(cameras, reference, stable=stable, reference_radius=None if stable else 2.0)
        torch.testing.assert_close(got[0], row, **TOLERANCE)


def test_zero123_training_function():
    """Extrinsics of a z-up world, [target, reference] pairs; ours read the position, not an orbit."""
    w2c = TENSORS["inp.zero123.RT_target_cond"]
    c2w = torch.linalg.inv(torch.cat([w2c, w2c.new_tensor([0, 0, 0, 1]).expand(*w2c.shape[:2], 1, 4)], 2))
    position = c2w[:, :, :3, 3]
    y_up = torch.stack([position[..., 0], position[..., 2], -position[..., 1]], -1)
    for pair, expected in zip(y_up, TENSORS["out.zero123.get_T"], strict=True):
        radius = pair.norm(dim=1)
        elevation = torch.rad2deg(torch.asin(pair[:, 1] / radius))
        azimuth = torch.rad2deg(torch.atan2(pair[:, 0], pair[:, 2]))
        matrix = torch.eye(4, dtype=pair.dtype)[None].clone()
        matrix[0, :3, 3] = pair[0]
        got = zero123.camera_embedding(
            Cameras(matrix), float(elevation[1]), float(azimuth[1]), stable=False, reference_radius=float(radius[1])
        )
        torch.testing.assert_close(got[0, 0], expected, **TOLERANCE)


def test_zero123_as_comfyui():
    """ComfyUI's native node: the stable form with an input view at elevation 0."""
    elevation, azimuth = TENSORS["inp.comfy.params_elev_azim"].unbind(1)
    got = zero123.camera_embedding(orbit_cameras(elevation, azimuth), stable=True)
    torch.testing.assert_close(got, TENSORS["out.comfy.T"], **TOLERANCE)
