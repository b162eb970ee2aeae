"""Cameras: the conventions that everything else trusts."""

import math
from dataclasses import replace

import pytest
import torch

from microdreamer_core.cameras import (
    Cameras,
    concatenate,
    distance_to_hold,
    orbit_cameras,
    parse_poses,
    sample_orbit,
    spread_cameras,
    turntable,
)
from microdreamer_core.errors import InputError
from microdreamer_core.util.seeds import generator
from microdreamer_core.util.vocabulary import DEFAULT_FOV_Y


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


def test_the_sampler_starts_at_a_random_azimuth():
    """Uniform over one gap from -180 degrees on, so that over the iterations every direction is seen."""
    starts = torch.tensor([float(sample_orbit(6, (0, 0), 1.5, generator(0, k, "cameras")).azimuth[0]) for k in range(300)])
    counts = torch.histc(starts, 6, -180.0, -120.0)
    assert int(counts.sum()) == 300 and float(counts.min()) > 25, counts


def test_the_sampler_draws_start_and_elevations_from_its_generator():
    got = sample_orbit(3, (-10.0, 30.0), 1.5, torch.Generator().manual_seed(4), 40.0, 32)
    draw = torch.Generator().manual_seed(4)
    start, elevations = torch.rand((), generator=draw), torch.rand(3, generator=draw)
    expected = orbit_cameras(-10.0 + 40.0 * elevations, start * 120.0 - 180.0 + torch.arange(3) * 120.0, 1.5, 40.0, 32)
    torch.testing.assert_close(got.c2w, expected.c2w, rtol=0, atol=1e-6)
    assert (got.fov_y, got.width, got.height) == (40.0, 32, 32)
    usual = sample_orbit(1, (5.0, 5.0), 1.5, draw)
    assert (usual.fov_y, usual.width, usual.height, float(usual.elevation)) == (DEFAULT_FOV_Y, 256, 256, 5.0)


def test_spread_cameras_leave_the_end_of_a_whole_turn_out():
    def azimuths(*args):
        return spread_cameras(*args).azimuth.tolist()

    assert azimuths(4) == [0, 90, 180, 270] and azimuths(4, 0.0, 10.0, -360.0) == [10, -80, -170, -260]
    assert azimuths(3, 0.0, -45.0, 90.0) == [-45, 0, 45] and azimuths(3, 0.0, 0.0, 359.0) == [0, 179.5, 359]
    assert (
        azimuths(1, 0.0, 30.0, 90.0) == [30]
        and azimuths(2, 0.0, 0.0, 90.0) == [0, 90]
        and azimuths(1) == [0]
        and azimuths(2, 0.0, 0.0, 720.0) == [0, 360]
    )
    usual, own = spread_cameras(2), spread_cameras(2, 15.0, 0.0, 90.0, 3.0, 40.0, 32)
    assert torch.equal(usual.elevation, torch.zeros(2)) and torch.equal(usual.radius, torch.full((2,), 2.0))
    assert (usual.fov_y, usual.width, usual.height) == (DEFAULT_FOV_Y, 256, 256)
    assert own.elevation.tolist() == [15, 15] and own.radius.tolist() == [3, 3]
    assert (own.fov_y, own.width, own.height) == (40.0, 32, 32)


def test_a_turntable_begins_in_front():
    usual, own = turntable(3), turntable(2, 15.0, 3.0, 40.0, 32)
    assert usual.azimuth.tolist() == [0, 120, 240] and usual.elevation.tolist() == [0] * 3 and usual.radius.tolist() == [2] * 3
    assert (usual.fov_y, usual.width, usual.height) == (DEFAULT_FOV_Y, 256, 256)
    assert own.azimuth.tolist() == [0, 180] and own.elevation.tolist() == [15, 15] and own.radius.tolist() == [3, 3]
    assert (own.fov_y, own.width, own.height) == (40.0, 32, 32)


def test_orbits_broadcast_and_remember_what_they_were_asked_for():
    cameras = orbit_cameras(10.0, [0.0, 90.0], [1.0, 2.0], 40.0, 32, 16)
    assert cameras.elevation.tolist() == [10, 10] and cameras.radius.tolist() == [1, 2] and cameras.azimuth.tolist() == [0, 90]
    assert (cameras.fov_y, cameras.width, cameras.height, cameras.c2w.dtype) == (40.0, 32, 16, torch.float32)
    usual = orbit_cameras(0, 0)
    assert (float(usual.radius), usual.fov_y, usual.width, usual.height) == (2.0, DEFAULT_FOV_Y, 256, 256)
    assert torch.equal(usual.c2w[:, 3], torch.tensor([[0.0, 0, 0, 1]])) and usual.c2w.device.type == "cpu"
    rotation = orbit_cameras([25.0, -60.0], [70.0, 200.0]).c2w[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(2, 3, 3))
    assert bool((rotation[:, 1, 1] > 0).all()) and torch.allclose(rotation[:, 1, 0], torch.zeros(2)), "the horizon is level"


def test_intrinsics_have_square_pixels_and_a_centred_axis():
    cameras = orbit_cameras(0.0, [0.0, 90.0], fov_y=60.0, width=200, height=100)
    focal = 50 / math.tan(math.radians(30))
    expected = torch.tensor([[focal, 0, 100], [0, focal, 50], [0, 0, 1]])
    torch.testing.assert_close(cameras.Ks, expected.expand(2, 3, 3))
    assert cameras.viewmats[:, 3].tolist() == [[0, 0, 0, 1]] * 2


def test_an_orbit_is_asked_for_where_there_is_one():
    cameras = turntable(3, 15.0, 3.0)
    assert [tensor.tolist() for tensor in cameras.orbit()] == [[15] * 3, [0, 120, 240], [3] * 3]
    for lacking in ("elevation", "azimuth", "radius"):
        with pytest.raises(InputError, match=r"^Expected cameras on an orbit, got poses without .* use orbit_cameras\.$"):
            replace(cameras, **{lacking: None}).orbit()


def test_points_are_projected_into_every_view():
    cameras = orbit_cameras([0.0, 20.0], [0.0, 120.0], [2.0, 3.0], 60.0, 200, 100)
    points = torch.tensor([[0.0, 0, 0], [0.1, 0.2, 0.3], [0.0, 0.0, 2.5]])
    pixels, depth = cameras.project(points)
    assert (
        pixels.shape == (2, 3, 2) and depth.shape == (2, 3) and cameras.focal == pytest.approx(50 / math.tan(math.radians(30)))
    )
    for i, point in enumerate(points):
        expected = project(cameras, point)
        torch.testing.assert_close(torch.cat([pixels[:, i], depth[:, i, None]], -1), expected)
    assert float(depth[0, 2]) == pytest.approx(-0.5), "behind the camera"


def test_a_camera_holds_a_ball_with_a_little_to_spare():
    assert distance_to_hold(0.5, 60.0) == pytest.approx(1.05 * 0.5 / 0.5)
    assert distance_to_hold(0.5) == distance_to_hold(0.5, DEFAULT_FOV_Y)


def test_a_pixel_at_the_origin():
    cameras = orbit_cameras(0.0, [0.0, 90.0], [1.0, 3.0], fov_y=60.0, width=200, height=100)
    assert float(cameras.pixel_size()) == pytest.approx(2.0 * 2 * math.tan(math.radians(30)) / 100)


def test_matrices_made_in_inference_mode_serve_learning():
    with torch.inference_mode():
        cameras = orbit_cameras(0.0, 0.0)
    with torch.inference_mode():
        kept = cameras.viewmats, cameras.Ks
    assert not any(matrix.is_inference() for matrix in kept)


def test_other_sizes_and_devices_show_the_same_views():
    cameras = orbit_cameras([5.0, 10.0], 20.0, width=32)
    assert (cameras.resize(8).width, cameras.resize(8).height) == (8, 8)
    assert (cameras.resize(8, 4).width, cameras.resize(8, 4).height) == (8, 4)
    assert cameras.resize(8).c2w is cameras.c2w and cameras.to("cpu") is cameras
    there, free = cameras.to("meta"), replace(cameras, radius=None).to("meta")
    assert {there.c2w.device.type, there.elevation.device.type, there.radius.device.type} == {"meta"}
    assert free.radius is None and free.azimuth.device.type == "meta"


def test_cameras_off_orbits_have_none_to_keep():
    free = Cameras(torch.eye(4).repeat(3, 1, 1))
    assert free[:2].elevation is None and len(free[:2]) == 2 and len(free[[True, False, True]]) == 2
    assert free.elevation is free.azimuth is free.radius is None
    assert (free.fov_y, free.width, free.height) == (DEFAULT_FOV_Y, 256, 256)
    mixed = concatenate([free, turntable(2)])
    assert len(mixed) == 5 and mixed.azimuth is None
    picked = turntable(4)[torch.tensor([1, 3])]
    assert picked.azimuth.tolist() == [90, 270] and picked.elevation.tolist() == [0, 0] and picked.radius.tolist() == [2, 2]


def test_poses_are_read_line_by_line():
    text = "20, -45\n\n  # a remark\n 0 90  # the side\n-5.5,1e1"
    assert parse_poses(text) == [(20.0, -45.0), (0.0, 90.0), (-5.5, 10.0)] and parse_poses("") == []
    for wrong, message in (
        ("0 0\n1, 2, 3", r"^Line 2 of the poses must be 'elevation, azimuth' in degrees, got '1, 2, 3'\.$"),
        ("up, 0", r"^Line 1 .* got 'up, 0'\.$"),
        ("nan 0", r"^Line 1 of the poses must hold finite numbers, got 'nan 0'\.$"),
        ("0 inf", r"^Line 1 of the poses must hold finite numbers, got '0 inf'\.$"),
    ):
        with pytest.raises(InputError, match=message):
            parse_poses(wrong)


def test_indexing_and_concatenation_keep_the_orbit():
    cameras = turntable(8)
    picked = concatenate([cameras[:2], cameras[[5]]])
    assert picked.azimuth.tolist() == [0, 45, 225] and len(picked) == 3
    assert torch.equal(picked.c2w[2], cameras.c2w[5])


EYE = torch.eye(4)[None]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: orbit_cameras([0, 90], 0), r"between -90 and 90 degrees, got \[0\.0, 90\.0\]"),
        (lambda: orbit_cameras(-90, 0), "between -90 and 90 degrees"),
        (lambda: orbit_cameras(0, 0, [1.0, 0.0]), r"radii must be positive, got \[1\.0, 0\.0\]"),
        (lambda: Cameras(torch.eye(4)), r"c2w of shape \[V,4,4\], got \[4, 4\]"),
        (lambda: Cameras(torch.zeros(2, 3, 4)), r"got \[2, 3, 4\]"),
        (lambda: Cameras(EYE, fov_y=0.0), "between 0 and 180 degrees, got 0.0"),
        (lambda: Cameras(EYE, fov_y=180.0), "between 0 and 180 degrees, got 180.0"),
        (lambda: Cameras(EYE, width=0), "at least one pixel, got 0x256"),
        (lambda: Cameras(EYE, height=0), "at least one pixel, got 256x0"),
        (lambda: sample_orbit(4, (10, -10), 2.0, torch.Generator()), r"\(lowest, highest\), got \(10, -10\); swap"),
        (lambda: concatenate([turntable(2), turntable(2, size=64)]), "must share .* got 49.1/256x256 and 49.1/64x64"),
        (lambda: concatenate([turntable(2), turntable(2, fov_y=30.0)]), "and 30.0/256x256"),
    ],
)
def test_impossible_cameras_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_cameras_at_the_edge_of_what_is_possible():
    assert len(orbit_cameras([89.9, -89.9], 0, 0.01)) == 2 and len(Cameras(EYE, 179.0, 1, 1)) == 1
