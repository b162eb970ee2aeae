"""SIR, meshes and conversion with a NeRF in place of Gaussians: the same stages, growing renders, learned backgrounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from microdreamer_core.cameras import orbit_cameras, turntable
from microdreamer_core.convert.fit import fit_to
from microdreamer_core.convert.nerf_to_gaussians import gaussians_from_nerf
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, toy_renderer
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings, nerf_settings
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.job.run import check_kind
from microdreamer_core.meshing.extract import extract_mesh
from microdreamer_core.meshing.nerf_density import STEP, NeRFDensity
from microdreamer_core.meshing.pipeline import texture_mesh
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.meshing.source import density_source
from microdreamer_core.reference import Reference
from microdreamer_core.render.volume import as_render, camera_rays
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.losses import reference_loss
from microdreamer_core.sir.presets import PRESETS, get_plan
from microdreamer_core.sir.stages import denoise_views, fit_views, forward_views, reference_view, render_views
from microdreamer_core.sir.start import settings_of_plan, start_field
from microdreamer_core.sir.step import Step
from microdreamer_core.util.images import resize

SIZE = 32
TINY = NeRFSettings(
    levels=4,
    log2_table=10,
    base_resolution=16,
    per_level_scale=1.6,
    hidden=8,
    samples=24,
    occupancy_resolution=16,
    lr_grid=0.01,
    lr_networks=0.01,
)
PLAN = get_plan("embedded-nerf", iterations=2, init_steps=5, steps=2, discretization=4, resolutions=(12, 24))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def oracle():
    renderer = toy_renderer([toys.make_toy(toys.HELD_OUT + i, name) for i, name in enumerate(["mushroom", "bird"])])
    picture = renderer(orbit_cameras(0, 0, 1.5, width=SIZE))[1, 0]
    reference = Reference(picture, (picture.min(-1, keepdim=True).values < 0.99).float())
    return AnalyticDiffusion(renderer, SIZE, reference=reference)


@pytest.fixture(scope="module")
def ball():
    """An opaque grey ball with a sharp rim; the blob that a NeRF usually starts as fades out over a third of its radius."""
    blob = {"density_scale": 100.0, "blob_scale": 60.0, "blob_radius": 0.6}
    return NeRF.start(replace(TINY, **blob, samples=96, occupancy_resolution=32), 0)


def start(seed=1, **changes):
    return NeRF.start(replace(TINY, **changes), seed)


def run(oracle, plan=PLAN, seed=1, field=None, **kwargs):
    field = start(seed) if field is None else field
    return list(sir_iterations(field, oracle, plan, seed, reference=oracle.reference, **kwargs))


def same(a, b):
    tensors, values = a.to_state()
    others, other_values = b.to_state()
    return values == other_values and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


# --- SIR -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(oracle):
    return run(oracle)


def test_renders_grow_and_targets_stay_the_models(whole):
    iterations = whole
    assert [i.step.cameras.width for i in iterations] == [12, 12, 24]
    assert all(i.targets.shape == (PLAN.views, SIZE, SIZE, 3) for i in iterations)
    assert iterations[0].sheet().shape == (2 * SIZE, PLAN.views * SIZE, 3)
    assert iterations[0].losses[-1] < iterations[0].losses[0]


def test_stages_called_one_by_one_give_the_generators_nerf(oracle, whole):
    field = start()
    for k in range(-1, PLAN.iterations):
        step = Step.of_plan(PLAN, 1, k, SIZE, diffusion=oracle)
        _, images = denoise_views(step, forward_views(step, render_views(step, field).rgb))
        field = fit_views(step, field, images, reference=oracle.reference).field
    assert same(field, whole[-1].field)


def test_a_saved_nerf_continues_bit_for_bit(oracle, whole, tmp_path):
    save_state(tmp_path / "state.safetensors", whole[1].field)
    rest = run(oracle, field=load_state(tmp_path / "state.safetensors").field, first=1)
    assert same(rest[-1].field, whole[-1].field)
    assert not same(run(oracle, seed=2)[-1].field, whole[-1].field)


def test_latent_losses_enlarge_the_renders(oracle):
    plan = replace(PLAN, loss_space="latent", resolutions=(16,))
    iterations = run(oracle, plan)
    assert iterations[0].step.cameras.width == 16 and iterations[0].losses[-1] < iterations[0].losses[0]


def test_a_plan_on_white_never_sees_the_learned_background(oracle):
    field, step = start(background="learned"), Step.of_plan(PLAN, 0, 0, SIZE)
    cameras = step.cameras
    plan = replace(PLAN, background="learned")
    own, white = render_views(replace(step, plan=plan), field).rgb, render_views(step, field).rgb
    assert torch.equal(own, field.render(cameras).rgb) and torch.equal(white, field.render(cameras, WHITE).rgb)
    corner = (slice(None), 0, 0)
    assert torch.allclose(white[corner], torch.ones(PLAN.views, 3), atol=0.01)
    assert not torch.allclose(own[corner], white[corner], atol=0.1)
    learned = {name: p for name, p in run(oracle, plan, field=field)[-1].field.parameters.items() if "background" in name}
    kept = run(oracle, PLAN, field=field)[-1].field.parameters
    for name, parameter in learned.items():
        assert not torch.equal(parameter, field.parameters[name]) and torch.equal(kept[name], field.parameters[name])


def test_the_reference_says_nothing_about_a_learned_background(oracle):
    view = reference_view(oracle.reference, PLAN, SIZE)
    inside = view.on_any_background()
    on_dark = view.image * view.alpha + 0.2 * (1 - view.alpha)
    assert set(view.alpha.unique().tolist()) == {0.0, 1.0}
    assert float(reference_loss(inside, on_dark, view.alpha)) == pytest.approx(0, abs=1e-3)
    assert float(reference_loss(view, on_dark, view.alpha)) > 100
    wrong = on_dark + 0.1 * view.alpha
    assert float(reference_loss(inside, wrong, view.alpha)) == pytest.approx(0.1 * 3 * float(view.alpha.sum()), rel=1e-3)


def test_render_sizes_share_the_iterations_evenly():
    plan = get_plan("stable-zero123-nerf")
    sizes = [plan.render_size(k, 256) for k in range(-1, plan.iterations)]
    assert sizes == [64] * 11 + [128] * 10 + [196] * 10
    plan = get_plan("mvdream-nerf")
    assert [plan.render_size(k, 256) for k in (-1, 24, 25, 49)] == [64, 64, 128, 128]
    assert plan.render_size(49, 100) == 100
    assert get_plan("mvdream-nerf", iterations=0).render_size(-1, 256) == 64
    assert get_plan("stable-zero123-gaussians").render_size(3, 256) == 256


def test_resizing_keeps_what_is_constant_and_the_mean():
    pictures = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    assert resize(pictures, 32) is pictures
    assert torch.allclose(resize(torch.full((1, 32, 32, 3), 0.3), 20), torch.tensor(0.3))
    assert float((resize(pictures, 16).mean() - pictures.mean()).abs()) < 5e-3
    checkers = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).float()[None, ..., None]
    assert float(resize(checkers, 16).std()) < 0.1, "fine detail is averaged, not sampled"


# --- start -----------------------------------------------------------------------------------------------------------


def test_start_fields_are_what_was_asked_for():
    assert isinstance(start_field("gaussians", 32, 0), Gaussians)
    nerf = start_field("nerf", 32, 0, plan=replace(PLAN, background="learned"))
    assert (nerf.kind, nerf.settings.size, nerf.settings.background) == ("nerf", "small", "learned")
    assert nerf_settings("full").size == "full" and nerf_settings(device="cuda").size == "full"
    for arguments, message in (
        (("voxels", 32, 0), "gaussians, nerf"),
        (("nerf", 32, 0, "cpu"), "auto, small, full"),
    ):
        with pytest.raises(InputError, match=message):
            start_field(*arguments, nerf_size="huge")


@pytest.mark.parametrize("name", [name for name, plan in PRESETS.items() if plan.representation == "nerf"])
def test_the_ball_of_every_preset_holds_what_its_references_show(name):
    plan = PRESETS[name]
    camera = orbit_cameras(0.0, 0.0, plan.radius, plan.fov_y, 500)
    square = 0.8 * plan.radius * math.tan(math.radians(plan.fov_y / 2))  # half a side of what fills the picture to 0.8
    for size in ("small", "full"):
        ball = settings_of_plan(nerf_settings(size, plan.background), plan).radius
        assert ball >= math.hypot(square, square) and ball >= 1
        rays = camera_rays(camera, ball)
        assert bool((rays.far > rays.near).reshape(500, 500)[51:449, 51:449].all()), "each ray to it meets the ball"


def test_the_ball_grows_with_the_cameras_distance():
    """At ImageDream's released distance of 2.5 a ball of 1 leaves out 5 % of a square that fills 0.8 of the picture."""
    for radius, expected in ((1.5, 1.0), (2.0, 1.034), (2.5, 1.292)):
        assert start_field("nerf", 32, 0, plan=replace(PLAN, radius=radius)).settings.radius == pytest.approx(
            expected, abs=1e-3
        )


def test_learning_rates_of_nerfs_are_those_published_for_threestudio():
    rates = {}
    for name in ("mvdream-nerf", "imagedream-nerf", "stable-zero123-nerf"):
        settings = settings_of_plan(nerf_settings("full"), PRESETS[name])
        rates[name] = settings.lr_grid, settings.lr_networks
    assert rates == {
        "mvdream-nerf": (0.01, 0.001),
        "imagedream-nerf": (0.01, 0.001),
        "stable-zero123-nerf": (0.01, 0.01),
    }
    assert settings_of_plan(nerf_settings("small"), PRESETS["mvdream-nerf"]).lr_networks == 0.005


def test_a_field_of_the_wrong_kind_is_refused():
    check_kind(start(), PLAN)
    with pytest.raises(InputError, match="optimises nerf; choose a plan for gaussians"):
        check_kind(Gaussians.ball(GaussianSettings(num_points=20)), PLAN)
    with pytest.raises(InputError, match="optimises gaussians; choose a plan for nerf"):
        check_kind(start(), get_plan("embedded"))


# --- meshes ----------------------------------------------------------------------------------------------------------


def test_density_grid_is_the_opacity_of_a_step(ball):
    grid = density_source(ball).density(24)
    axes = [torch.from_numpy(grid.origin[i] + grid.voxel * np.arange(24, dtype=np.float32)) for i in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    expected = 1 - torch.exp(-ball.density(points.reshape(-1, 3)) * STEP)
    assert np.allclose(grid.values.reshape(-1), expected.numpy(), atol=1e-5)
    assert 1.0 < (24 - 5) * grid.voxel < 1.4, "the box is the ball's, not the whole bound's"


def test_the_mesh_of_a_ball_is_a_ball_as_large_as_it_looks(ball):
    found = extract_mesh(ball, resolution=48)
    shape = trimesh.Trimesh(found.mesh.vertices.numpy(), found.mesh.faces.numpy(), process=False)
    assert shape.is_watertight and shape.body_count == 1 and found.iou > 0.96
    radii = found.mesh.vertices.norm(dim=1)
    alpha = ball.render(turntable(1, radius=2.0, size=96), WHITE).alpha[0, ..., 0]
    half = math.sqrt(float((alpha > 0.5).sum()) / math.pi)  # pixels
    seen = half / 96 * 2 * math.tan(math.radians(49.1 / 2))
    assert float(radii.std()) < 0.02
    assert float(radii.mean()) == pytest.approx(2 * math.sin(math.atan(seen)), rel=0.06)
    assert density_source(ball).extent() == pytest.approx(float(radii.mean()), rel=0.15)


def test_the_given_threshold_is_used(ball):
    inner, outer = (extract_mesh(ball, resolution=32, threshold=t).mesh.vertices.norm(dim=1).mean() for t in (0.9, 0.2))
    assert float(inner) < float(outer) - 0.02
    with pytest.raises(InputError, match="no surface at density 2"):
        extract_mesh(ball, resolution=32, threshold=2.0)


class _TwoBalls:
    """A dense ball, above it one so thin that a step through it covers 6 %, and haze all around that covers less than half."""

    settings, device = NeRFSettings(), torch.device("cpu")
    balls = ((-0.3, 0.25, 400.0), (0.3, 0.25, 8.0), (0.0, 1.0, 0.3))  # height, radius, density

    def density(self, points):
        inside = ((points - torch.tensor([0.0, y, 0.0])).norm(dim=1) < r for y, r, _ in self.balls)
        return sum(density * ball for (_, _, density), ball in zip(self.balls, inside, strict=True))

    def render(self, cameras, background):
        thickness = 0.0
        for y, r, density in self.balls:
            lowered = cameras.c2w.clone()
            lowered[:, 1, 3] -= y
            rays = camera_rays(replace(cameras, c2w=lowered), r)
            thickness = thickness + density * (rays.far - rays.near).clamp_min(0)
        return as_render(cameras, torch.zeros(len(rays), 3), 1 - torch.exp(-thickness), thickness)


def test_what_is_thick_and_thin_as_haze_belongs_to_the_mesh():
    solid = NeRFDensity(_TwoBalls())
    assert 1.0 < 40 * solid.density(45).voxel < 1.4, "the box holds both balls, not the haze"
    assert solid.extent() == pytest.approx(0.55, abs=0.08)
    found = extract_mesh(solid, resolution=64)
    assert found.iou > 0.92
    for side, height in ((found.mesh.vertices[:, 1].min(), -0.55), (found.mesh.vertices[:, 1].max(), 0.55)):
        assert float(side) == pytest.approx(height, abs=0.03)


def test_a_fog_has_no_surface():
    with pytest.raises(InputError, match="show no surface"):
        extract_mesh(start(density_scale=1e-3), resolution=24)


def test_whole_pipeline_with_a_nerf(ball):
    settings = MeshSettings(resolution=32, target_faces=600, texture_size=64, views=12, view_size=32)
    result = texture_mesh(ball, settings)
    assert result.mesh.texture.shape == (64, 64, 3) and len(result.mesh.faces) <= 600 and result.iou > 0.95
    expected = ball.colors(result.mesh.vertices)
    assert torch.allclose(result.mesh.colors, expected, atol=1e-6)
    assert float((result.mesh.texture.mean((0, 1)) - expected.mean(0)).abs().max()) < 0.1


def test_what_is_no_field_makes_no_mesh():
    with pytest.raises(InputError, match="Gaussians or a NeRF"):
        density_source(torch.zeros(3))


# --- conversion ------------------------------------------------------------------------------------------------------


def test_gaussians_of_a_nerf_look_like_it(ball):
    settings = GaussianSettings(num_points=123)
    gaussians = gaussians_from_nerf(ball, 1500, settings, seed=4, resolution=32, size=40)
    assert (len(gaussians), gaussians.step, gaussians.seed, gaussians.settings) == (1500, 0, 4, settings)
    assert float(gaussians.exp_avg.means.abs().max()) == 0
    cameras = orbit_cameras([10.0, -25.0], [30.0, 200.0], 2.0, width=48)
    ours, theirs = gaussians.render(cameras, WHITE), ball.render(cameras, WHITE)
    assert float((ours.rgb - theirs.rgb).abs().mean()) < 0.004  # 0.024 without the fit, 0.0043 after 50 steps
    assert float(((ours.alpha > 0.5) != (theirs.alpha > 0.5)).float().mean()) < 0.02


def test_a_nerf_learns_from_gaussians():
    draw = torch.Generator().manual_seed(0)
    points = 0.4 * torch.nn.functional.normalize(torch.randn(600, 3, generator=draw), dim=1)
    red = Gaussians.from_points(points, torch.tensor([0.9, 0.1, 0.1]).expand(600, 3), GaussianSettings(opacity=0.9))
    before, nerf = start(), fit_to(start(), red, 40, size=20)
    cameras = turntable(2, size=24)
    truth = red.render(cameras, WHITE).rgb
    errors = [float((field.render(cameras, WHITE).rgb - truth).abs().mean()) for field in (before, nerf)]
    assert nerf.step == 40 and errors[1] < 0.5 * errors[0]
