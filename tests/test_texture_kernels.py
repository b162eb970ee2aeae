"""The kernels that sample textures and images against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.mesh import Mesh
from microdreamer_core.render.mesh import render_mesh, texture_view
from microdreamer_core.render.texels import TexelVisibility, gather
from microdreamer_core.util import threads


@pytest.fixture
def pool():
    before = threads.get_threads()
    yield threads.set_threads
    threads.set_threads(before)


def _mesh():
    rng = torch.Generator().manual_seed(0)
    corners = torch.randn(60, 3, generator=rng) * 0.4
    return Mesh(
        corners,
        torch.arange(60).view(20, 3),
        uvs=torch.rand(60, 2, generator=rng),
        texture=torch.rand(33, 33, 3, generator=rng),
    )


def _close(a, b):
    return float((a - b).detach().abs().max()) < 1e-5


def test_images_are_gathered_as_grid_sample_does(pool):
    rng, count = torch.Generator().manual_seed(1), 500
    seen = []
    for _ in range(3):
        texels = torch.rand(count, generator=rng).argsort()[:300].sort().values
        grid = torch.rand(1, 1, 300, 2, generator=rng) * 2.4 - 1.2  # also beside the image
        seen.append(TexelVisibility(texels, grid, torch.rand(300, generator=rng), torch.rand(300, generator=rng)))
    images = torch.rand(3, 20, 31, 4, generator=rng)
    expected = torch.zeros(count, 4)
    for visible, image in zip(seen, images, strict=True):
        samples = F.grid_sample(image.permute(2, 0, 1)[None], visible.grid, align_corners=False)[0, :, 0].T
        expected[visible.texels] += visible.weights[:, None] * samples
    made = []
    for number in (1, 2, 7):
        pool(number)
        made.append(torch.cat([part.view(count, -1) for part in gather(seen, images, count)], 1))
    assert _close(made[0], expected)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_texture_views_are_the_same_with_and_without_gradients(pool):
    mesh = _mesh()
    view = texture_view(mesh, orbit_cameras(10.0, [0.0, 90.0, 200.0], width=24, height=18), supersample=3)
    background = torch.tensor([0.1, 0.5, 0.9])
    texture = mesh.require_texture().clone().requires_grad_()
    expected = view.render(texture, background)
    assert expected.requires_grad
    made = []
    for number in (1, 3):
        pool(number)
        made.append(view.render(texture.detach(), background))
    assert _close(made[0], expected) and torch.equal(*made)
    with torch.no_grad():
        assert torch.equal(view.render(texture, background), made[0])


@pytest.mark.parametrize("supersample", [1, 3])
def test_textured_meshes_are_shaded_as_by_torch(pool, supersample):
    mesh, cameras = _mesh(), orbit_cameras(10.0, [0.0, 90.0, 200.0], width=24, height=18)
    background = torch.tensor([[0.1, 0.5, 0.9], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    expected = render_mesh(mesh, cameras, background.clone().requires_grad_(), supersample)
    pool(2)
    made = render_mesh(mesh, cameras, background, supersample)
    for name in ("rgb", "alpha", "depth"):
        assert getattr(made, name).shape == getattr(expected, name).shape
        assert _close(getattr(made, name), getattr(expected, name)), name
    assert 0.05 < float(made.alpha.mean()) < 0.95
