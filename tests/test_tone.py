"""The tone of what a reference does not show."""

from dataclasses import replace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.mesh import Mesh
from microdreamer_core.meshing.project import project_reference
from microdreamer_core.meshing.tone import match_tone
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.reference import ReferenceView
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.render.texels import texel_map

trimesh = pytest.importorskip("trimesh")

FRONT, BACK = (orbit_cameras(0.0, azimuth, 2.5, width=128) for azimuth in (0.0, 180.0))
SIZE = 256
WARM = torch.tensor([0.8, 0.6, 0.3])


def unwrapped(*shapes) -> Mesh:
    shape = trimesh.util.concatenate(shapes)
    return unwrap(Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)), SIZE)


@pytest.fixture(scope="module")
def ball():
    return unwrapped(trimesh.creation.icosphere(4, radius=0.5))


def photo_of(mesh: Mesh, color: torch.Tensor) -> ReferenceView:
    alpha = render_mesh(mesh, FRONT).alpha
    return ReferenceView(FRONT, color * alpha + 1 - alpha, alpha, 1.0, 1.0)


def test_the_tone_of_the_seen_side_reaches_the_back_and_its_detail_stays(ball):
    texels = texel_map(ball, SIZE)
    stripes = 1 + 0.2 * torch.sin(40 * texels.positions[:, 1:2])
    colors = 0.5 * stripes * torch.ones(3)
    seen = (texels.positions[:, 2] > 0.2).float()
    made = match_tone(ball, SIZE, colors, WARM * stripes, seen)
    torch.testing.assert_close(made, WARM * stripes, atol=0.03, rtol=0)
    assert match_tone(ball, SIZE, colors, colors * 2, torch.zeros(len(colors))) is colors


def test_two_tones_meet_half_way(ball):
    texels = texel_map(ball, SIZE)
    height = texels.positions[:, 1:2]
    shown = torch.where(height > 0, 0.8, 0.2).expand(-1, 3)
    made = match_tone(ball, SIZE, torch.full_like(shown, 0.5), shown, (height[:, 0].abs() > 0.3).float())
    middle = made[height[:, 0].abs() < 0.02].mean(0)
    torch.testing.assert_close(middle, torch.full((3,), (0.85 * 0.25) ** 0.5 - 0.05), atol=0.02, rtol=0)


def test_a_part_that_is_not_seen_keeps_its_tone():
    behind = trimesh.creation.icosphere(3, radius=0.3)
    behind.apply_translation([0, 0, -1.5])
    both = unwrapped(trimesh.creation.icosphere(3, radius=0.5), behind)
    texels = texel_map(both, SIZE)
    far = texels.positions[:, 2] < -1
    colors = torch.full((len(far), 3), 0.5)
    made = match_tone(both, SIZE, colors, WARM.expand_as(colors), (texels.positions[:, 2] > 0.2).float())
    torch.testing.assert_close(made[far], colors[far], atol=1e-4, rtol=0)
    torch.testing.assert_close(made[~far], WARM.expand_as(colors)[~far], atol=0.03, rtol=0)


def test_the_edge_of_the_reference_is_no_seam(ball):
    grey = replace(ball, texture=torch.full((SIZE, SIZE, 3), 0.5))
    made = project_reference(grey, photo_of(ball, WARM))
    for cameras in (FRONT, BACK, orbit_cameras(0.0, 75.0, 2.5, width=128)):
        shown = render_mesh(made, cameras)
        inside = shown.alpha[0, ..., 0] == 1
        assert (shown.rgb[0][inside] - WARM).abs().max() < 0.05


def test_texels_outside_a_mask_stay_bit_for_bit(ball):
    texture = torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(SIZE, SIZE, 1)
    mask[: SIZE // 2] = 1
    made = project_reference(replace(ball, texture=texture), photo_of(ball, WARM), mask=mask).require_texture()
    assert torch.equal(made[SIZE // 2 :], texture[SIZE // 2 :])
    assert (made[: SIZE // 2] - texture[: SIZE // 2]).abs().max() > 0.1
