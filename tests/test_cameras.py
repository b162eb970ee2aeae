"""Cameras: the conventions that everything else trusts."""

import pytest
import torch

from microdreamer_core.cameras import Cameras, concatenate, orbit_cameras, sample_orbit, turntable
from microdreamer_core.errors import InputError
from microdreamer_core.util.seeds import generator


def project(cameras: Cameras, point) -> torch.Tensor:
    """[V,3] pixel x, pixel y and depth of a world point, by the OpenCV matrices."""
    homogeneous = torch.tensor([*point, 1.0])
    seen = (cameras.viewmats @ homogeneous)[:, :3]
    pixels = (cameras.Ks @ seen[:, :, None])[:, :, 0]
    return torch.cat([pixels[:, :2] / pixels[:, 2:], seen[:, 2:]], -1)


def test_front_camera_stands_on_plus_z_and_looks_at_the_origin():
    camera = orbit_cameras(0, 0, 2.0)
    assert torch.allclose(camera.c2w[0], torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]))
    x, y, depth = project(camera, (0, 0, 0))[0]
    assert (x, y, depth) == (128, 128, 2)


def test_directions_on_the_picture():
    camera = orbit_cameras(0, 0, 2.0)
    right, up = project(camera, (0.1, 0, 0))[0], project(camera, (0, 0.1, 0))[0]
    assert right[0] > 128 and right[1] == 128
    assert up[1] < 128 and up[0] == 128


def test_azimuth_moves_to_plus_x_and_elevation_up():
    side, above = orbit_cameras([0, 30], [90, 0], 2.0).c2w[:, :3, 3]
    assert torch.allclose(side, torch.tensor([2.0, 0, 0]), atol=1e-6)
    assert above[1] == pytest.approx(1.0, abs=1e-6) and above[2] > 0


def test_viewmats_invert_c2w():
    cameras = orbit_cameras([10, -20, 60], [5, 130, 250], [1.0, 2.0, 3.0])
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    assert torch.allclose(cameras.viewmats, flip @ torch.linalg.inv(cameras.c2w), atol=1e-6)


def test_field_of_view_spans_the_height():
    camera = orbit_cameras(0, 0, 2.0, fov_y=60.0, width=200, height=100)
    top = 2.0 * torch.tan(torch.deg2rad(torch.tensor(30.0)))
    assert project(camera, (0, float(top), 0))[0, 1] == pytest.approx(0.0, abs=1e-3)


def test_the_sampler_spreads_azimuths_evenly_and_keeps_elevations_in_range():
    cameras = sample_orbit(6, (-10, 30), 1.5, generator(3, 0, "cameras"))
    gaps = cameras.azimuth.diff()
    assert torch.allclose(gaps, torch.full((5,), 60.0), atol=1e-3)
    assert bool(((cameras.elevation >= -10) & (cameras.elevation <= 30)).all())
    again = sample_orbit(6, (-10, 30), 1.5, generator(3, 0, "cameras"))
    other = sample_orbit(6, (-10, 30), 1.5, generator(3, 1, "cameras"))
    assert torch.equal(cameras.c2w, again.c2w) and not torch.equal(cameras.c2w, other.c2w)


def test_indexing_and_concatenation_keep_the_orbit():
    cameras = turntable(8)
    picked = concatenate([cameras[:2], cameras[[5]]])
    assert picked.azimuth.tolist() == [0, 45, 225] and len(picked) == 3
    assert torch.equal(picked.c2w[2], cameras.c2w[5])


@pytest.mark.parametrize(
    "build",
    [
        lambda: orbit_cameras(90, 0),
        lambda: orbit_cameras(0, 0, 0.0),
        lambda: Cameras(torch.eye(4)),
        lambda: Cameras(torch.eye(4)[None], fov_y=0.0),
        lambda: Cameras(torch.eye(4)[None], width=0),
        lambda: sample_orbit(4, (10, -10), 2.0, torch.Generator()),
        lambda: concatenate([turntable(2), turntable(2, size=64)]),
    ],
)
def test_impossible_cameras_are_refused(build):
    with pytest.raises(InputError):
        build()
