"""The drawing of a camera rig, free layouts, and lists of poses."""

from __future__ import annotations

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras, parse_poses, spread_cameras, turntable
from microdreamer_core.errors import InputError
from microdreamer_core.io.rig_picture import SIDE, elevation_color, rig_picture

INK = 0.12


def coloured(picture):
    """[H,W] -1 where it is blue, 1 where it is orange."""
    difference = picture[..., 0] - picture[..., 2]
    return (difference > INK).int() - (difference < -INK).int()


def middle(mask):
    row, column = mask.nonzero().float().mean(0).tolist()
    return row, column


@pytest.mark.parametrize("azimuth, right, down", [(0, 0, 1), (90, 1, 0), (180, 0, -1), (-90, -1, 0)])
def test_the_view_from_above_has_the_front_at_the_bottom(azimuth, right, down):
    picture = rig_picture(orbit_cameras(40.0, float(azimuth), 2.0))
    assert picture.shape == (SIDE, 2 * SIDE, 3) and 0 <= float(picture.min()) <= float(picture.max()) == 1
    row, column = middle(coloured(picture)[:, :SIDE] == 1)
    offset = torch.tensor([column - SIDE / 2, row - SIDE / 2 - 4])
    assert float(offset.norm()) > 20
    assert torch.allclose(offset / offset.norm(), torch.tensor([float(right), float(down)]), atol=0.15)


@pytest.mark.parametrize("azimuth, side", [(0, -1), (180, 1)])
@pytest.mark.parametrize("elevation", [30.0, -30.0])
def test_the_view_from_the_side_shows_elevations(azimuth, side, elevation):
    picture = rig_picture(orbit_cameras(elevation, float(azimuth), 2.0))
    colour = 1 if elevation > 0 else -1
    row, column = middle(coloured(picture)[:, SIDE:] == colour)
    assert not bool((coloured(picture) == -colour).any())
    right, up = column - SIDE / 2, SIDE / 2 + 4 - row
    assert right * side > 20 and up * elevation > 0
    assert abs(up / right) == pytest.approx(0.577, abs=0.08)


def test_colours_and_odd_rigs():
    assert elevation_color(0) != elevation_color(20) != elevation_color(45) == elevation_color(80)
    above = orbit_cameras(89.999, 0.0, 2.0)
    for cameras in (above, turntable(60), orbit_cameras([0.0, 0.0], 0.0, [1e-3, 50.0])):
        assert bool(rig_picture(cameras).isfinite().all())


def test_spread():
    assert spread_cameras(4, 10.0, 30.0).azimuth.tolist() == [30, 120, 210, 300]
    assert spread_cameras(4, azimuth=-45.0, spread=90.0).azimuth.tolist() == [-45, -15, 15, 45]
    assert spread_cameras(3, spread=-360.0).azimuth.tolist() == [0, -120, -240]
    assert spread_cameras(1, azimuth=7.0, spread=20.0).azimuth.tolist() == [7]
    whole, turn = spread_cameras(5, 20.0, radius=1.5, fov_y=30.0, size=64), turntable(5, 20.0, 1.5, 30.0, 64)
    assert torch.equal(whole.c2w, turn.c2w) and (whole.fov_y, whole.width) == (30.0, 64)


def test_poses():
    assert parse_poses("") == [] and parse_poses("# nothing\n\n") == []
    assert parse_poses("0, 0\n 20,-45 # left\n\n-10 90.5") == [(0, 0), (20, -45), (-10, 90.5)]
    for text in ("0, 0\nfront", "1, 2, 3", "5"):
        with pytest.raises(InputError, match="of the poses must be 'elevation, azimuth'"):
            parse_poses(text)
    with pytest.raises(InputError, match="Line 2 .* finite"):
        parse_poses("0, 0\nnan, 1")
