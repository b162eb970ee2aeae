"""Hints for control networks, against shapes whose depth and normals are known."""

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.mesh import Mesh
from microdreamer_core.render.hints import HINTS, depth_hint, normal_hint
from microdreamer_core.render.mesh import render_mesh

SIZE, RADIUS = 96, 0.4
CAMERAS = orbit_cameras([0.0, 30.0], [0.0, 100.0], 2.0, width=SIZE)


@pytest.fixture(scope="module")
def sphere():
    """A finely divided sphere, from latitudes and longitudes."""
    lat, lon = torch.meshgrid(torch.linspace(0, torch.pi, 80), torch.linspace(0, 2 * torch.pi, 160), indexing="ij")
    vertices = RADIUS * torch.stack([lat.sin() * lon.cos(), lat.cos(), lat.sin() * lon.sin()], -1).reshape(-1, 3)
    corner = torch.arange(79 * 160).reshape(79, 160)[:, :-1].flatten()
    faces = torch.cat(
        [torch.stack([corner, corner + 160, corner + 1], 1), torch.stack([corner + 1, corner + 160, corner + 161], 1)]
    )
    return Mesh(vertices, faces, colors=(vertices[:, 1:2] > 0).float().expand(-1, 3).contiguous())


def test_normals_are_those_of_the_camera(sphere):
    """Of a sphere: the direction from its centre, in the camera's axes; green above, red on the right, blue in the middle."""
    hint = normal_hint(render_mesh(sphere, CAMERAS), CAMERAS)
    assert torch.allclose(hint[:, 0, 0], torch.tensor([0.5, 0.5, 1.0]).expand(2, 3))
    offset = torch.arange(SIZE) + 0.5 - SIZE / 2
    rays = torch.stack([offset.expand(SIZE, SIZE), -offset[:, None].expand(SIZE, SIZE), torch.full((SIZE, SIZE), -1.0)], -1)
    rays[..., :2] /= CAMERAS.Ks[0, 0, 0]
    rays = torch.nn.functional.normalize(rays, dim=-1)
    along = -2.0 * rays[..., 2]  # the centre is 2 before the camera
    inside = along**2 - 4 + RADIUS**2
    hit = inside > 0.03
    points = (along - inside.clamp_min(0).sqrt())[..., None] * rays - torch.tensor([0.0, 0.0, -2.0])
    expected = points / RADIUS
    for view in hint:
        assert float(((view * 2 - 1) * expected).sum(-1)[hit].min()) > 0.97


def test_depth_is_inverse_and_shares_its_scale(sphere):
    """1 where the sphere is nearest to the cameras, at least 0.1 on it, 0 behind; linear in 1 / z."""
    hint = depth_hint(render_mesh(sphere, CAMERAS), CAMERAS)
    assert (
        hint.shape == (2, SIZE, SIZE, 3) and float(hint[:, 0].max()) == 0 and float(hint[hint > 0].min()) == pytest.approx(0.1)
    )
    middle = hint[:, SIZE // 2, SIZE // 2, 0]
    assert torch.allclose(middle, torch.ones(2), atol=0.01)
    render = render_mesh(sphere, CAMERAS)
    covered = render.alpha[..., 0] > 0.5
    inverse, drawn = 1 / render.depth[..., 0][covered], hint[..., 0][covered]
    slope = 0.9 / (inverse.max() - inverse.min())
    assert torch.allclose(drawn, 0.1 + slope * (inverse - inverse.min()), atol=1e-5)


def test_a_normal_does_not_bend_where_one_surface_ends_before_another():
    """Two squares that face the camera at different depths: their border shows no slanted normals."""
    square = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.5, 0.5, 0.0], [-0.5, 0.5, 0.0]])
    corners = torch.cat([square, 0.4 * square + torch.tensor([0.0, 0.0, 0.5])])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    camera = orbit_cameras(0.0, 0.0, 2.0, width=SIZE)
    hint = normal_hint(render_mesh(Mesh(corners, faces), camera), camera)
    assert torch.allclose(hint, torch.tensor([0.5, 0.5, 1.0]).expand_as(hint), atol=1e-3)


def test_edges_lie_where_the_colour_changes(sphere):
    render = render_mesh(sphere, CAMERAS)
    covered = render.alpha[0, :, :, 0] > 0.5
    rows = torch.arange(SIZE)[:, None].expand(SIZE, SIZE)
    equator = (rows - SIZE / 2).abs() < 3
    inner = torch.nn.functional.max_pool2d((~covered).float()[None], 9, 1, 4)[0] == 0
    for name in ("canny", "soft edge"):
        hint = HINTS[name](render, CAMERAS)[0, ..., 0]
        assert float(hint.max()) == 1 and float(hint[inner & equator].max()) > 0.5
        assert float(hint[inner & (rows > SIZE / 2 + 5)].max()) < 0.05
    assert torch.equal(HINTS["tile"](render, CAMERAS), render.rgb)


@pytest.mark.parametrize("name", HINTS)
def test_nothing_to_see_is_no_error(name):
    empty = Mesh(torch.tensor([[9.0, 9, 9], [9.1, 9, 9], [9, 9.1, 9]]), torch.tensor([[0, 1, 2]]))
    hint = HINTS[name](render_mesh(empty, CAMERAS), CAMERAS)
    assert hint.shape == (2, SIZE, SIZE, 3) and bool(hint.isfinite().all()) and 0 <= float(hint.min()) <= float(hint.max()) <= 1
