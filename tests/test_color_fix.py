"""The colour fix: broad colours of the renders, details of the refined views."""

import pytest
import torch

from microdreamer_core.render.protocol import Render
from microdreamer_core.sir.color_fix import fix_colors

SIZE = 48


@pytest.fixture
def render():
    """A disc, red on its left, blue on its right, on white."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    alpha = ((x**2 + y**2) < 0.6).float()[None, ..., None]
    color = torch.stack([0.5 - 0.3 * x, torch.full_like(x, 0.3), 0.5 + 0.3 * x], -1)[None]
    return Render(color * alpha + 1 - alpha, alpha, torch.zeros(1, SIZE, SIZE, 1))


def test_a_tint_is_taken_back_up_to_the_outline(render):
    tinted = render.rgb + render.alpha * torch.tensor([0.1, -0.1, 0.2])
    assert torch.allclose(fix_colors(tinted, render, 0.1), render.rgb, atol=1e-5)


def test_details_of_the_refined_views_stay(render):
    checks = 0.1 * (1 - 2 * (torch.arange(SIZE)[:, None] + torch.arange(SIZE)).remainder(2))[None, ..., None]
    detailed = render.rgb + render.alpha * checks
    difference = (fix_colors(detailed, render, 0.1) - detailed).abs()
    assert difference.max() < 0.02 and difference.mean() < 0.002


def test_the_scale_decides_what_is_broad(render):
    stripes = 0.1 * torch.sin(torch.arange(SIZE) * 2 * torch.pi / 16)[None, None, :, None]  # 16 pixels long
    striped = render.rgb + render.alpha * stripes
    inner = render.alpha[..., 0] > 0.5
    left = [float((fix_colors(striped, render, scale) - render.rgb)[inner].abs().mean()) for scale in (0.02, 0.3)]
    whole = float((striped - render.rgb)[inner].abs().mean())
    assert left[0] < 0.15 * whole and left[1] > 0.9 * whole


def test_new_outlines_and_white_ground_are_left_alone(render):
    grown = torch.where(render.alpha.roll(4, 2) > 0.5, torch.tensor(0.4), torch.tensor(1.0)).expand(-1, -1, -1, 3).contiguous()
    fixed, shared = fix_colors(grown, render, 0.1), (render.alpha * render.alpha.roll(4, 2)).expand(-1, -1, -1, 3) > 0
    assert torch.equal(fixed[~shared], grown[~shared])
    assert (fixed[shared] - render.rgb[shared]).abs().mean() < 0.05


def test_views_that_share_nothing_with_the_render_stay_as_they_are(render):
    assert fix_colors(torch.ones(1, SIZE, SIZE, 3), render, 0.1).eq(1).all()
    empty = Render(torch.ones_like(render.rgb), torch.zeros_like(render.alpha), render.depth)
    assert torch.equal(fix_colors(render.rgb, empty, 0.1), render.rgb)
