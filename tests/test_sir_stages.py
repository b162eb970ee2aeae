"""The stages of one iteration, each with a model that notes what it is asked for."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras, sample_orbit
from microdreamer_core.diffusion import ddim
from microdreamer_core.diffusion.noise import STABLE_DIFFUSION
from microdreamer_core.diffusion.protocol import ViewCount
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.reference import Reference
from microdreamer_core.sir import iterations, stages, start, step
from microdreamer_core.sir.forward import forward_process
from microdreamer_core.sir.hooks import Hooks
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.plan import IterationTimes, SIRPlan
from microdreamer_core.sir.reconstruct import LatentTargets, Reconstruction
from microdreamer_core.util.images import resize
from microdreamer_core.util.seeds import generator

SIZE = 8
PLAN = SIRPlan("test", iterations=3, steps=4, init_steps=5, discretization=10, guidance_scale=2.5, eta=0.5, radius=1.5)
TIMES = IterationTimes(1, 501, 301, 2, 6)
CAMERAS = orbit_cameras(10.0, torch.arange(4) * 90.0, 1.5, width=SIZE)
STEP = step.Step(CAMERAS, PLAN, 3, 1, TIMES)
FIRST = step.Step(CAMERAS, PLAN, 3, step.INITIALISATION)


@dataclass
class Model:
    """Latents are pictures at half size in [-1,1]; the estimate is near to them and grows with guidance."""

    image_size: int = SIZE
    latent_shape: tuple = (3, SIZE // 2, SIZE // 2)
    device: torch.device = torch.device("cpu")
    view_count: ViewCount = ViewCount()
    evaluations: int = 0
    asked: list = field(default_factory=list)
    conditioned: list = field(default_factory=list)
    process = STABLE_DIFFUSION

    def encode(self, images):
        assert images.shape[1:] == (self.image_size, self.image_size, 3)
        return torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2), 2) * 2 - 1

    def decode(self, latents):
        return (torch.nn.functional.interpolate(latents, scale_factor=2.0).permute(0, 2, 3, 1) + 1) / 2

    def condition(self, cameras):
        self.conditioned.append(cameras)
        return len(self.conditioned)

    def denoised(self, latents, t, conditioning, guidance_scale):
        self.asked.append((t, conditioning, guidance_scale))
        self.evaluations += len(latents)
        return 0.1 * latents + 0.01 * (1 + guidance_scale)


class Scene:
    """A field of one colour."""

    device, kind = torch.device("cpu"), "gaussians"

    def __init__(self, value=0.25):
        self.value, self.renders = value, []

    def render(self, cameras, background=None):
        self.renders.append((cameras, background))
        rgb = torch.full((len(cameras), cameras.height, cameras.width, 3), self.value)
        return stages.Render(rgb, rgb[..., :1], rgb[..., :1])


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def fitted(monkeypatch):
    """What ``reconstruct`` is called with."""
    calls = []

    def note(*args, **kwargs):
        calls.append((args, kwargs))
        return Reconstruction(args[0], (2.0, 1.0))

    monkeypatch.setattr(stages, "reconstruct", note)
    return calls


def noise(stage, *shape, k=1, seed=3):
    return torch.randn(shape, generator=generator(seed, k, stage))


# --- cameras and references


def test_cameras_of_an_iteration_are_the_plans():
    plan = replace(PLAN, elevation_range=(-10.0, 20.0), fov_y=40.0, resolutions=(4, 6), views=5)
    got = step.iteration_cameras(plan, 3, 2, SIZE, 15.0)
    expected = sample_orbit(5, (-10.0, 35.0), 1.5, generator(3, 2, "cameras"), 40.0, 6)
    assert torch.equal(got.c2w, expected.c2w) and (got.fov_y, got.width, got.height) == (40.0, 6, 6)
    assert torch.equal(step.iteration_cameras(plan, 3, 2, SIZE).elevation.abs() <= 20, torch.ones(5, dtype=torch.bool))


def test_a_reference_is_seen_from_its_elevation_at_any_size():
    picture = Reference(torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0)), torch.ones(16, 16, 1), 25.0)
    plan = replace(PLAN, ref_color_weight=0.3, ref_opacity_weight=0.02, ref_paint_weight=0.7, loss="l2", fov_y=30.0)
    view = stages.reference_view(picture, plan)
    assert torch.equal(view.image[0], picture.image) and torch.equal(view.alpha[0], picture.alpha)
    cameras = view.cameras
    assert (float(cameras.elevation), float(cameras.azimuth), float(cameras.radius)) == (25.0, 0.0, 1.5)
    assert (cameras.fov_y, cameras.width) == (30.0, 16)
    assert (view.color_weight, view.opacity_weight, view.paint_weight, view.norm) == (0.3, 0.02, 0.7, "l2")
    small = stages.reference_view(picture, plan, 4)
    assert small.image.shape == (1, 4, 4, 3) and small.alpha.shape == (1, 4, 4, 1) and small.cameras.width == 4
    assert step.reference_elevation(picture) == 25.0 and step.reference_elevation(None) == 0.0


@pytest.mark.parametrize("weight", ["ref_color_weight", "ref_opacity_weight", "ref_paint_weight"])
def test_a_reference_without_weight_is_left_out(weight):
    picture = Reference(torch.ones(8, 8, 3), torch.ones(8, 8, 1))
    assert stages.reference_view(picture, PLAN) is None
    assert stages.reference_view(picture, replace(PLAN, **{weight: 0.1})) is not None
    assert stages.reference_view(None, replace(PLAN, **{weight: 0.1})) is None


def test_resizing_keeps_what_fits_and_averages_what_shrinks():
    images = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert resize(images, 8) is images
    stripes = torch.zeros(1, 9, 9, 1)
    stripes[:, :, ::2] = 1.0
    assert float((resize(stripes, 3)[0, 1, 1, 0] - 0.5).abs()) < 0.1, "antialiased"
    assert resize(images[:, :4], 8).shape == (2, 8, 8, 3) and resize(images[:, :, :4], 8).shape == (2, 8, 8, 3)
    ramp = torch.arange(4.0)[None, None, :, None].expand(1, 4, 4, 1)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])  # pixel centres, not corners
    assert torch.allclose(resize(ramp, 8)[0, 0, :, 0], expected)


def test_renders_are_on_the_plans_background():
    scene = Scene()
    stages.render_views(STEP, scene)
    stages.render_views(replace(STEP, plan=replace(PLAN, background="learned")), scene)
    (seen, white), (_, own) = scene.renders
    assert seen is CAMERAS and torch.equal(white, torch.ones(3)) and own is None


# --- forward process and sampling


@pytest.mark.parametrize("forward", ["hybrid", "noise", "invert"])
def test_the_plans_forward_process_runs(forward, model):
    x0, plan, checks = noise("x", 4, 3, 4, 4), replace(PLAN, forward=forward), []
    conditioning = model.condition(CAMERAS)

    def denoise(x, t):
        return model.denoised(x, t, conditioning, 0.0)

    path = {"hybrid": (301, 401, 501), "noise": (501,), "invert": (0, 1, 101, 201, 301, 401, 501)}[forward]
    rng = generator(3, 1, "noise")
    got = forward_process(x0, denoise, path, plan, model.process, rng, lambda: checks.append(1))
    drawn = noise("noise", *x0.shape)
    expected = {
        "hybrid": lambda: ddim.hybrid_forward(x0, path, denoise, model.process, noise=drawn),
        "noise": lambda: ddim.noise_forward(x0, 501, model.process, noise=drawn),
        "invert": lambda: ddim.invert_forward(x0, path, denoise, model.process),
    }[forward]()
    assert torch.equal(got, expected)
    assert len(checks) == {"hybrid": 2, "noise": 0, "invert": 6}[forward]


def test_views_go_forward_without_condition(model):
    images, checks = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(1)), []
    step_ = STEP.with_model(model)
    got = stages.forward_views(step_, images, check=lambda: checks.append(1))
    assert model.asked == [(301, 1, 0.0), (401, 1, 0.0)] and len(checks) == 2 and model.conditioned == [CAMERAS]
    latents = model.encode(resize(images, SIZE))
    drawn = noise("noise", *latents.shape)
    expected = ddim.hybrid_forward(
        latents, (301, 401, 501), lambda x, t: model.denoised(x, t, None, 0.0), model.process, noise=drawn
    )
    assert torch.equal(got, expected) and not got.requires_grad
    assert torch.equal(stages.forward_views(step_, images), got) and len(model.conditioned) == 1, "conditioned once"
    with pytest.raises(InputError, match=r"^The forward process of iteration 1 needs images, got none; render"):
        stages.forward_views(step_, None)


def test_the_initialisation_starts_from_noise_alone(model):
    got = stages.forward_views(FIRST.with_model(model), None)
    assert torch.equal(got, noise("noise", 4, 3, 4, 4, k=-1)) and not model.asked and not model.conditioned


def test_views_are_sampled_back_with_guidance(model):
    latents, checks = noise("latents", 4, 3, 4, 4), []
    clean, images = stages.denoise_views(STEP.with_model(model), latents, check=lambda: checks.append(1))
    assert model.asked == [(t, 1, 2.5) for t in (501, 401, 301, 201, 101, 1)] and len(checks) == 6
    assert model.conditioned == [CAMERAS]
    expected = ddim.sample(
        latents,
        (501, 401, 301, 201, 101, 1),
        lambda x, t: model.denoised(x, t, None, 2.5),
        model.process,
        eta=0.5,
        generator=generator(3, 1, "sampler"),
    )
    assert torch.equal(clean, expected) and torch.equal(images, model.decode(clean))
    asked = len(model.asked)
    stages.denoise_views(FIRST.with_model(model), latents)
    assert model.asked[asked:] == [(t, 2, 2.5) for t in range(901, 0, -100)]


def test_another_sampler_is_given_what_it_needs(model):
    seen = []

    def sampler(denoise, latents, path, process, draw, check=None):
        seen.append((latents, path, process, torch.rand(3, generator=draw).tolist(), check))
        return denoise(latents, path[0])

    latents, check = noise("latents", 4, 3, 4, 4), lambda: None
    clean, _ = stages.denoise_views(STEP.with_model(model), latents, sampler=sampler, check=check)
    ((given, *rest),) = seen
    drawn = torch.rand(3, generator=generator(3, 1, "sampler")).tolist()
    assert given is latents and rest == [(501, 401, 301, 201, 101, 1), model.process, drawn, check]
    assert torch.equal(clean, 0.1 * latents + 0.01 * 3.5)


def test_images_that_are_not_finite_name_their_iteration(model):
    with pytest.raises(NumericalError, match="not finite at iteration 1; try float32"):
        stages.denoise_views(STEP.with_model(model), noise("latents", 4, 3, 4, 4), sampler=lambda eps, x, *_: x * torch.inf)


def test_refinement_conditions_once_and_counts_itself(model):
    scene, seen = Scene(), []
    model.evaluations = 100
    got = stages.refine_views(STEP.with_model(model), scene, hooks=Hooks(progress=lambda *now: seen.append(now)))
    assert got.evaluations == model.evaluations - 100 == 4 * (2 + 6) and len(model.conditioned) == 1
    assert seen == [("refine", done, 8) for done in range(8)] and len(scene.renders) == 1
    again = STEP.with_model(Model())
    latents = stages.forward_views(again, torch.full((4, SIZE, SIZE, 3), 0.25))
    clean, images = stages.denoise_views(again, latents)
    assert torch.equal(got.latents, clean) and torch.equal(got.images, images)

    def keep(eps_fn, latents, *_):
        return latents

    assert torch.equal(stages.refine_views(again, scene, sampler=keep).latents, latents)


def test_the_initialisation_renders_nothing(model):
    scene, seen = Scene(), []
    got = stages.refine_views(FIRST.with_model(model), scene, hooks=Hooks(progress=lambda *now: seen.append(now)))
    assert not scene.renders and got.evaluations == 4 * 10 and seen == [("refine", done, 10) for done in range(10)]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: stages.forward_views(FIRST.with_model(model), None),
        lambda model: stages.denoise_views(STEP.with_model(model), torch.zeros(4, 3, 4, 4)),
        lambda model: stages.refine_views(STEP.with_model(model), Scene()),
        lambda model: next(sir_iterations(Scene(), model, PLAN, 0)),
    ],
    ids=["forward", "denoise", "refine", "run"],
)
def test_a_model_that_wants_other_views_refuses_every_stage(model, call):
    model.view_count = ViewCount(3)
    with pytest.raises(InputError, match="a multiple of 3 views, got 4"):
        call(model)
    assert not model.asked and not model.conditioned


def test_a_step_knows_its_part_of_the_run(model):
    made = step.Step.of_plan(PLAN, 3, 1, SIZE, elevation=20.0, diffusion=model)
    assert torch.equal(made.cameras.c2w, step.iteration_cameras(PLAN, 3, 1, SIZE, 20.0).c2w)
    assert (made.plan, made.seed, made.k, made.times, made.diffusion) == (PLAN, 3, 1, PLAN.times(3)[1], model)
    assert (made.updates, made.calls, made.updates_after) == (4, made.times.calls, 4)
    begin = step.Step.of_plan(PLAN, 3, step.INITIALISATION, SIZE)
    assert (begin.times, begin.diffusion, begin.updates, begin.calls, begin.updates_after) == (None, None, 5, 10, 12)
    assert torch.equal(begin.cameras.c2w, step.iteration_cameras(PLAN, 3, -1, SIZE).c2w)
    assert [replace(STEP, k=k).updates_after for k in (0, 2, 5)] == [8, 0, 0]
    with pytest.raises(InputError, match=r"^This step has no diffusion model; bind it with with_model\(\.\.\.\) first\.$"):
        stages.forward_views(begin, None)


# --- reconstruction and iterations


def test_fitting_takes_the_plans_loss_background_and_reference(fitted):
    plan = replace(PLAN, loss="l2", ref_color_weight=0.5)
    picture, scene, check = Reference(torch.rand(16, 16, 3), torch.full((16, 16, 1), 0.5)), Scene(), lambda: None
    images = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    stages.fit_views(replace(STEP, plan=plan, k=0), scene, images, reference=picture, check=check)
    (((field_, cameras, targets, updates), keywords),) = fitted
    assert field_ is scene and cameras is CAMERAS and updates == 4 and torch.equal(targets, resize(images, SIZE))
    assert keywords["norm"] == "l2" and keywords["after"] == 2 * 4 and keywords["check"] is check
    assert torch.equal(keywords["background"], torch.ones(3))
    assert keywords["reference"].image.shape == (1, SIZE, SIZE, 3) and not keywords["reference"].inside


def test_a_learned_background_is_not_told_by_the_reference(fitted):
    plan = replace(PLAN, background="learned", ref_color_weight=0.5)
    picture = Reference(torch.ones(SIZE, SIZE, 3), torch.zeros(SIZE, SIZE, 1))
    stages.fit_views(replace(STEP, plan=plan), Scene(), torch.zeros(4, SIZE, SIZE, 3), 7, reference=picture)
    (*_, updates), keywords = fitted[0]
    assert (
        keywords["background"] is None
        and keywords["reference"].inside
        and not keywords["reference"].image.any()
        and updates == 7
    )
    stages.fit_views(replace(STEP, plan=plan), Scene(), torch.zeros(4, SIZE, SIZE, 3))
    assert fitted[1][1]["reference"] is None


def test_a_plan_with_a_colour_fix_keeps_the_broad_colours_of_the_field(fitted):
    plan, scene = replace(PLAN, color_fix=0.2), Scene(0.75)  # which covers as much of each pixel
    images = torch.full((4, SIZE, SIZE, 3), 0.5)
    stages.fit_views(replace(STEP, plan=plan), scene, images)
    assert fitted[0][0][2].allclose(torch.tensor(0.75))
    for other in (replace(FIRST, plan=plan), replace(STEP, plan=replace(plan, background="learned")), STEP):
        stages.fit_views(other, scene, images)
        assert torch.equal(fitted[-1][0][2], images)
    scene.kind = "texture"
    stages.fit_views(replace(STEP, plan=plan), scene, images)
    assert torch.equal(fitted[-1][0][2], images)


def test_latent_losses_encode_the_renders_at_the_models_size(model, fitted):
    latents = noise("latents", 4, 3, 4, 4)
    step_ = replace(STEP, plan=replace(PLAN, loss_space="latent"), cameras=CAMERAS.resize(4), diffusion=model)
    stages.fit_views(step_, Scene(), torch.zeros(4, SIZE, SIZE, 3), latents=latents)
    targets = fitted[0][0][2]
    assert isinstance(targets, LatentTargets) and targets.latents is latents
    rgb = torch.rand(4, 4, 4, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(targets.encode(rgb), model.encode(resize(rgb, SIZE)))
    with pytest.raises(InputError, match=r"^The plan's loss is latent, got no latents; give those of denoise_views\.$"):
        stages.fit_views(step_, Scene(), torch.zeros(4, SIZE, SIZE, 3))


def test_a_run_hands_everything_to_its_stages(model, fitted):
    plan = replace(PLAN, ref_color_weight=0.5)
    reference, seen, scene = Reference(torch.ones(SIZE, SIZE, 3), torch.ones(SIZE, SIZE, 1), 20.0), [], Scene()
    run = list(sir_iterations(scene, model, plan, 3, reference=reference, hooks=Hooks(progress=lambda *now: seen.append(now))))
    assert [i.k for i in run] == [-1, 0, 1, 2] and all(i.losses == (2.0, 1.0) and i.field is scene for i in run)
    assert [i.times for i in run] == [None, *plan.times(3)]
    assert [call[0][3] for call in fitted] == [5, 4, 4, 4] and [call[1]["after"] for call in fitted] == [12, 8, 4, 0]
    for iteration, (_, keywords) in zip(run, fitted, strict=True):
        assert torch.equal(iteration.step.cameras.c2w, step.iteration_cameras(plan, 3, iteration.k, SIZE, 20.0).c2w)
        assert keywords["reference"].color_weight == 0.5 and set(iteration.seconds) == {"refine", "reconstruct"}
        assert all(0 <= seconds < 60 for seconds in iteration.seconds.values())
    counts = [plan.discretization, *(times.calls for times in plan.times(3))]
    assert run[-1].evaluations == 4 * sum(counts) and len(seen) == sum(counts), "fitting is another's here"
    fitted[0][1]["check"](), fitted[1][1]["check"]()
    assert seen[-2:] == [("reconstruct", 0, 5), ("reconstruct", 0, 4)]


def test_a_run_goes_on_where_it_was_left(model, fitted):
    assert [i.k for i in sir_iterations(Scene(), model, PLAN, 3, first=2)] == [2]
    assert [i.k for i in sir_iterations(Scene(), model, PLAN, 3, first=3)] == []
    for first in (-2, 4):
        with pytest.raises(InputError, match=rf"^The first iteration must lie in -1\.\.3, got {first}\.$"):
            next(sir_iterations(Scene(), model, PLAN, 3, first=first))


def test_a_sheet_shows_renders_above_targets():
    targets = torch.full((2, 4, 4, 3), 1.5)
    scene = Scene(0.25)
    cameras = orbit_cameras(0.0, [0.0, 90.0], width=SIZE)
    sheet = iterations.Iteration(replace(STEP, cameras=cameras), scene, targets, (), 0).sheet()
    assert sheet.shape == (2 * SIZE, 2 * SIZE, 3)
    assert torch.equal(sheet[:SIZE], torch.full((SIZE, 2 * SIZE, 3), 0.25)) and bool((sheet[SIZE:] == 1).all())
    assert torch.equal(scene.renders[0][1], torch.ones(3))
    larger = iterations.Iteration(replace(STEP, cameras=cameras.resize(2)), scene, targets, (), 0).sheet()
    assert larger.shape == (8, 8, 3)


def test_hooks_report_before_they_check():
    seen = []
    hooks = Hooks(check=lambda: seen.append("check"), progress=lambda *now: seen.append(now))
    first, second = hooks.count("a", 2), hooks.count("b", 1)
    first(), second(), first()
    assert seen == [("a", 0, 2), "check", ("b", 0, 1), "check", ("a", 1, 2), "check"]
    Hooks().count("a", 1)()
    Hooks().before()


# --- where a run begins


def test_gaussians_begin_as_the_picture_size_allows():
    published = GaussianSettings()
    assert start.gaussian_settings(256) == published
    small = start.gaussian_settings(32)
    assert (small.num_points, small.density.max_points) == (768, 1536)
    assert small == replace(published, num_points=768, density=replace(published.density, max_points=1536))
    field_ = start.start_field("gaussians", 32, 5)
    same = Gaussians.ball(small, seed=5)
    assert len(field_) == 768 and torch.equal(field_.parameters.means, same.parameters.means)
    with pytest.raises(InputError, match=r"^The representation must be one of gaussians, nerf, got 'voxels'\.$"):
        start.start_field("voxels", 32, 0)


@pytest.mark.parametrize(("size", "most"), [(33, 1633), (256, GaussianSettings().density.max_points)])
def test_limits_are_whole_numbers(size, most):
    settings = start.gaussian_settings(size)
    assert settings.density.max_points == most and isinstance(settings.num_points, int)


def test_a_field_begins_on_its_device(monkeypatch):
    made = []
    monkeypatch.setattr(Gaussians, "ball", lambda *args: made.append(args))
    monkeypatch.setattr(NeRF, "start", lambda *args: made.append(args))
    start.start_field("gaussians", 32, 5, "cuda")
    start.start_field("nerf", 32, 5, "cuda")
    assert made[0] == (start.gaussian_settings(32), 5, "cuda")
    assert made[1][0].size == "full" and made[1][1:] == (5, "cuda"), "the size for an accelerator"


def test_a_nerf_holds_what_the_plans_cameras_show():
    far = replace(PLAN, representation="nerf", radius=3.0, fov_y=60.0)
    settings = start.settings_of_plan(NeRFSettings(), far)
    assert settings.radius == pytest.approx(math.sqrt(2) * 0.8 * 3.0 * math.tan(math.radians(30.0)))
    near = start.settings_of_plan(NeRFSettings(), replace(far, radius=0.5, lr_networks=0.5))
    assert near == NeRFSettings(), "never smaller than usual, and the small size has its own rates"
    full = NeRFSettings.of_size("full")
    assert start.settings_of_plan(full, replace(far, radius=0.5)) == full
    tuned = start.settings_of_plan(full, replace(far, radius=0.5, lr_networks=0.5))
    assert tuned == replace(full, lr_networks=0.5, lr_background=0.5)


def test_a_nerf_begins_with_the_plans_background():
    plan = replace(PLAN, representation="nerf", background="learned", radius=3.0, fov_y=60.0)
    learned = start.start_field("nerf", 32, 5, plan=plan)
    assert learned.settings == start.settings_of_plan(replace(learned.settings, radius=1.0), plan)
    assert learned.settings.background == "learned" and learned.settings.size == "small"
    plain = start.start_field("nerf", 32, 5, nerf_size="small")
    assert plain.settings == NeRFSettings(background="white") and plain.seed == learned.seed == 5
