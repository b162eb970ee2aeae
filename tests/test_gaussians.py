"""3D Gaussians as a value that learns."""

import math
from dataclasses import replace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.gaussians import SH_C0, Gaussians, GaussianSettings
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.sir.losses import reconstruction_loss
from microdreamer_core.sir.reconstruct import reconstruct

SMALL = GaussianSettings(num_points=300, density=DensitySettings(every=4, until=8))


def views(count=4, size=32):
    return orbit_cameras(10.0, torch.arange(count) * (360.0 / count), 2.0, width=size)


def painted_sphere(count=1500):
    """Known splats: a sphere coloured by position."""
    draw = torch.Generator().manual_seed(5)
    points = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1) * 0.35
    sphere = Gaussians.from_points(points, points + 0.5)
    return replace(sphere, parameters=sphere.parameters._replace(opacity_logits=torch.full((count,), 2.0)))


def tensors_of(field):
    return field.to_state()[0]


def same(a, b):
    a, b = tensors_of(a), tensors_of(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def learn(field, cameras, targets, steps):
    return reconstruct(field, cameras, targets, steps).field


@pytest.fixture(scope="module")
def targets():
    return painted_sphere().render(views()).rgb


def test_the_start_ball():
    field = Gaussians.ball(GaussianSettings(num_points=2000), seed=3)
    splats, radii = field.splats(), field.parameters.means.norm(dim=1)
    assert len(field) == 2000 and float(radii.max()) <= 0.5
    assert float((radii < 0.25).float().mean()) == pytest.approx(1 / 8, abs=0.03)  # uniform in volume
    assert torch.allclose(splats.opacities, torch.tensor(0.1)) and torch.allclose(splats.colors, torch.tensor(0.5))
    nearest = torch.cdist(field.parameters.means.double(), field.parameters.means.double()).sort(1).values[:, 1:4]
    assert torch.allclose(splats.scales[:, 0].double(), nearest.square().mean(1).sqrt(), rtol=1e-4)


def test_the_ball_depends_on_its_seed_alone():
    torch.rand(7)
    again = Gaussians.ball(SMALL, seed=1)
    assert same(Gaussians.ball(SMALL, seed=1), again) and not same(Gaussians.ball(SMALL, seed=2), again)


def test_scales_begin_as_the_distance_to_three_neighbours():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    nearest = torch.cdist(points, points).topk(4, largest=False).values[:, 1:]
    expected = nearest.square().mean(1).sqrt().log()[:, None].expand(-1, 3)
    assert torch.allclose(Gaussians.from_points(points).parameters.log_scales, expected, atol=1e-4)


def test_fitting_known_views_reduces_the_loss():
    cameras, truth = views(4, 64), painted_sphere()
    targets = truth.render(cameras).rgb
    start = Gaussians.ball(GaussianSettings(num_points=1000))
    result = reconstruct(start, cameras, targets, 120)
    assert result.losses[-1] < 0.1 * result.losses[0]
    between = orbit_cameras(10.0, torch.arange(4) * 90.0 + 45.0, 2.0, width=64)
    held_out = float(reconstruction_loss(result.field.render(between).rgb, truth.render(between).rgb))
    assert held_out < 0.25 * result.losses[0]
    assert result.field.step == 120 and len(result.field) != 1000


def test_learning_never_changes_the_given_field(targets):
    field = Gaussians.ball(SMALL)
    before = field.clone()
    learned = learn(field, views(), targets, 9)
    assert same(field, before) and field.step == 0 and learned.step == 9
    again = learned.clone()
    learn(learned, views(), targets, 2)
    assert same(learned, again)


def test_a_finished_field_is_independent_of_its_optimizer(targets):
    optimizer = Gaussians.ball(SMALL).optimizer()

    def update():
        render = optimizer.render(views())
        optimizer.step(reconstruction_loss(render.rgb, targets), render)

    update()
    field = optimizer.finish()
    before = field.clone()
    update()
    assert same(field, before) and field.step == 1
    assert not any(t.requires_grad for t in tensors_of(field).values())


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_saving_and_loading_continues_bit_for_bit(targets, tmp_path, stop):
    whole = learn(Gaussians.ball(SMALL, seed=4), views(), targets, 11)
    half = learn(Gaussians.ball(SMALL, seed=4), views(), targets, stop)
    loaded = load_state(save_state(tmp_path / "half.safetensors", half)).field
    assert same(loaded, half) and (loaded.step, loaded.seed, loaded.settings) == (stop, 4, SMALL)
    assert same(learn(loaded, views(), targets, 11 - stop), whole)
    assert len(whole) != SMALL.num_points  # density control acted on the way


def test_the_learning_rate_of_the_means():
    settings = GaussianSettings()
    assert settings.means_learning_rate(0) == pytest.approx(1e-2)
    assert settings.means_learning_rate(250) == pytest.approx(math.sqrt(1e-2 * 2e-4))
    assert settings.means_learning_rate(500) == settings.means_learning_rate(9000) == pytest.approx(2e-4)


def test_first_updates_have_the_published_sizes(targets):
    """Adam's first step is its learning rate, whatever the gradient."""
    start = Gaussians.ball(GaussianSettings(num_points=300))
    moved = learn(start, views(), targets, 1)
    steps = [(a - b).abs().max().item() for a, b in zip(moved.parameters, start.parameters, strict=True)]
    assert steps == pytest.approx([start.settings.means_learning_rate(1), 0.005, 0.0005, 0.05, 0.01], rel=1e-3)


def test_a_saturated_colour_can_come_back(targets):
    field = painted_sphere(200)
    dc = torch.full_like(field.parameters.dc, 1.0 / SH_C0)  # a foreign file may lie far outside [0,1]
    white = replace(field, parameters=field.parameters._replace(dc=dc))
    assert float(white.splats().colors.max()) == 1.0
    learned = learn(white, views(), torch.zeros_like(targets), 20)
    seen = learned.views_seen > 0
    assert float(learned.splats().colors[seen].mean()) < 0.99


def test_a_field_made_in_inference_mode_learns(targets):
    with torch.inference_mode():
        field = Gaussians.ball(SMALL)
        learned = learn(field, views(), targets, 5)
    assert learned.step == 5


def test_the_default_background_is_white():
    field = Gaussians.ball(SMALL)
    corner = field.render(views()).rgb[:, 0, 0]
    assert torch.equal(corner, torch.ones_like(corner))
    red = torch.tensor([1.0, 0, 0])
    assert torch.equal(field.render(views(), red).rgb[0, 0, 0], red)


def test_a_loss_that_is_not_finite_is_named():
    optimizer = Gaussians.ball(SMALL).optimizer()
    render = optimizer.render(views())
    with pytest.raises(NumericalError, match="loss is nan at update 1"):
        optimizer.step(render.rgb.sum() * float("nan"), render)


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing():
    field = Gaussians.ball(SMALL)
    optimizer = field.optimizer()
    render = optimizer.render(views())
    tiny = (render.alpha.sum() * 0).sqrt()  # finite, its derivative is not
    with pytest.raises(NumericalError, match="gradient of means is not finite at update 1"):
        optimizer.step(tiny, render)
    assert same(optimizer.finish(), field)


def test_a_render_without_tracking_is_refused():
    optimizer = Gaussians.ball(SMALL).optimizer()
    render = optimizer.render(views())
    with pytest.raises(InputError, match="render that the loss was computed from"):
        optimizer.step(render.rgb.sum(), replace(render, means2d=None))


@pytest.mark.parametrize("wrong", [{"num_points": 2}, {"opacity": 1.0}, {"radius": 0.0}, {"lr_means_end": 0.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        GaussianSettings(**wrong)


def test_wrong_shapes():
    field = Gaussians.ball(SMALL)
    with pytest.raises(InputError, match="quats"):
        replace(field, parameters=field.parameters._replace(quats=torch.zeros(3, 4)))
    with pytest.raises(InputError, match="add points"):
        Gaussians.from_points(torch.zeros(2, 3))
