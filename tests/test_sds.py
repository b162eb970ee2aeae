"""SDS: its gradients against Eq. 5 and 6 written out, its times, its presets."""

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras, sample_orbit
from microdreamer_core.diffusion.analytic import AnalyticDiffusion
from microdreamer_core.diffusion.ddim import add_noise, predict_noise
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.reference import Reference, ReferenceView
from microdreamer_core.render.protocol import Render
from microdreamer_core.sir import sds
from microdreamer_core.sir.hooks import Hooks
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.sds import COMPONENTS, SDS_PRESETS, SDSSettings, _distillation_loss, get_sds, sds_steps
from microdreamer_core.util.clock import Clock
from microdreamer_core.util.seeds import generator

SIZE, T = 16, 400


def render(cameras):
    """[2,V,H,W,3] striped discs on white, whose stripes turn with the camera: two objects."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, cameras.width)] * 2, indexing="ij")
    turn = torch.deg2rad(cameras.azimuth)[:, None, None]
    waves = torch.stack([torch.sin(frequency * (x * turn.cos() + y * turn.sin()) + turn) for frequency in (3.0, 7.0)])
    colours = 0.5 + 0.4 * waves[..., None] * torch.tensor([1.0, -0.5, 0.3])
    return torch.where((x**2 + y**2 < 0.6)[..., None], colours, 1.0)


@pytest.fixture(scope="module")
def oracle():
    picture = render(orbit_cameras(0, 0, 1.5, width=SIZE))[0, 0]
    return AnalyticDiffusion(render, SIZE, reference=Reference(picture, (picture < 0.99).any(-1, keepdim=True).float()))


CAMERAS = orbit_cameras(10.0, [0.0, 90.0, 180.0, 270.0], 1.5, width=SIZE)


def gradient(oracle, **settings):
    """d loss / d renders, and what it is made of: latents, noisy latents, noise."""
    rgb = torch.rand(4, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rng = torch.Generator().manual_seed(5)
    loss = _distillation_loss(rgb, oracle, CAMERAS, T, SDSSettings(**settings), rng, Clock())
    (found,) = torch.autograd.grad(loss, rgb)
    latents = oracle.encode(rgb.detach())
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(5))
    return found, rgb.detach(), latents, add_noise(latents, T, noise, oracle.process), noise


def through_the_encoder(latents):
    """[V,3,H,W] gradients at the latents -> at the renders, per view; this encoder doubles."""
    return 2 * latents.permute(0, 2, 3, 1) / 4


def test_the_noise_form_is_equation_5(oracle):
    found, _, _, noisy, noise = gradient(oracle, guidance_scale=2.0, weight=0.7)
    x0 = oracle.denoised(noisy, T, oracle.condition(CAMERAS), 2.0)
    residual = predict_noise(noisy, x0, T, oracle.process) - noise
    weight = 0.7 * float(1 - oracle.process.alphas_cumprod[T])
    assert torch.allclose(found, through_the_encoder(weight * residual), atol=1e-5)


def test_the_data_form_is_equation_6_and_equals_equation_5(oracle):
    """x - x̂0 = (σ/α) (ε_φ - ε), so that the two forms differ by the weight alone."""
    found, _, latents, noisy, noise = gradient(oracle, form="data", guidance_scale=2.0)
    predicted = oracle.denoised(noisy, T, oracle.condition(CAMERAS), 2.0)
    eps = predict_noise(noisy, predicted, T, oracle.process)
    assert torch.allclose(found, through_the_encoder(latents - predicted), atol=1e-5)
    a = float(oracle.process.alphas_cumprod[T])
    assert torch.allclose(found, through_the_encoder(((1 - a) / a) ** 0.5 * (eps - noise)), atol=1e-4)


def test_the_pixel_form_is_equation_6_in_pixels(oracle):
    found, rgb, _, noisy, _ = gradient(oracle, form="pixels", guidance_scale=2.0, weight=0.5)
    decoded = oracle.decode(oracle.denoised(noisy, T, oracle.condition(CAMERAS), 2.0))
    a = float(oracle.process.alphas_cumprod[T])
    assert torch.allclose(found, 0.5 * (a * (1 - a)) ** 0.5 * (rgb - decoded) / 4, atol=1e-6)


def test_rescaling_brings_the_contrast_back(oracle):
    def predicted(rescale, guidance_scale=20.0):
        found, _, latents, noisy, _ = gradient(oracle, form="data", guidance_scale=guidance_scale, rescale=rescale)
        return latents - (found * 4 / 2).permute(0, 3, 1, 2), noisy

    before = oracle.evaluations
    full, noisy = predicted(1.0)
    assert oracle.evaluations - before == 2 * 4
    conditional = oracle.denoised(noisy, T, oracle.condition(CAMERAS), 1.0)
    assert float(full.std()) == pytest.approx(float(conditional.std()), rel=1e-3)
    guided, half = predicted(0.0)[0], predicted(0.5)[0]
    assert float(guided.std()) > 1.02 * float(conditional.std())
    assert torch.allclose(half, (guided + full) / 2, atol=1e-4) and float((guided * full).sum()) > 0
    assert torch.allclose(predicted(1.0, 1.0)[0], conditional, atol=1e-4), "nothing to bring back without guidance"


def test_random_times_fill_their_range():
    settings = SDSSettings(t_range=(0.2, 0.6))
    times = [settings.time(0, 1000, torch.Generator().manual_seed(i)) for i in range(500)]
    assert 200 <= min(times) < 210 and 590 < max(times) <= 600


def test_random_times_include_both_ends_of_their_range():
    settings = SDSSettings(t_range=(0.2, 0.202))
    assert {settings.time(0, 1000, torch.Generator().manual_seed(i)) for i in range(50)} == {200, 201, 202}


def test_falling_times_go_from_the_highest_to_the_lowest():
    settings = get_sds("dreamgaussian")
    times = [settings.time(step, 1000, None) for step in range(settings.steps)]
    assert times == sorted(times, reverse=True) and (times[0], times[249], times[-1]) == (980, 500, 20)


def test_a_range_moves_while_it_anneals():
    settings = get_sds("mvdream", steps=100)
    assert settings.range_at(0) == (0.98, 0.98)
    assert settings.range_at(40) == pytest.approx((0.5, 0.74))
    assert settings.range_at(80) == settings.range_at(99) == pytest.approx((0.02, 0.5))
    zero = get_sds("zero123")
    assert (zero.steps, zero.guidance_scale, zero.range_at(0), zero.range_at(200)) == (600, 3.0, (0.4, 0.85), (0.2, 0.5))
    late = get_sds("stable-zero123")
    assert late.range_at(50) == (0.7, 0.98) and late.range_at(125) == pytest.approx((0.5, 0.89))
    assert late.range_at(200) == pytest.approx((0.3, 0.8))


def test_presets_carry_their_names_and_take_changes():
    assert all(settings.name == name for name, settings in SDS_PRESETS.items())
    assert get_sds("zero123", steps=7).steps == 7
    with pytest.raises(InputError, match="Unknown SDS preset 'nonsense'; choose one of sds, "):
        get_sds("nonsense")
    with pytest.raises(
        InputError, match=r"^The SDS preset has no 'speed', 'size'; its fields are name, steps, form, .*report_every\.$"
    ):
        get_sds("sds", speed=1, size=2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"form": "bogus"}, "The SDS form must be one of 'noise', 'data', 'pixels', got 'bogus'"),
        ({"times": "rising"}, "The SDS times must be one of 'random', 'falling', got 'rising'"),
        ({"steps": 0}, "SDS needs at least 1 step and 1 between reports, got 0 and 50"),
        ({"report_every": 0}, "SDS needs at least 1 step and 1 between reports, got 500 and 0"),
        ({"t_range": (0.5, 0.2)}, r"t_range must satisfy 0 < low <= high < 1, got \(0\.5, 0\.2\)"),
        ({"t_range": (0.5, 1.0)}, "t_range must satisfy"),
        ({"t_range_end": (0.0, 0.2)}, r"t_range_end must satisfy 0 < low <= high < 1, got \(0\.0, 0\.2\)"),
        ({"anneal": (0.5, 0.5)}, r"anneal must satisfy 0 <= begin < end <= 1, got \(0\.5, 0\.5\)"),
        ({"anneal": (-0.1, 0.5)}, "anneal must satisfy"),
        ({"anneal": (0.5, 1.1)}, "anneal must satisfy"),
        ({"rescale": -0.1, "form": "data"}, "rescale must lie in 0..1"),
        ({"rescale": 0.5}, "rescale must lie in 0..1 and is for form 'data' alone, got 0.5 for 'noise'"),
        ({"rescale": 2.0, "form": "data"}, "rescale must lie in 0..1"),
    ],
)
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(InputError, match=f"^{message}"):
        SDSSettings(**wrong)


def test_the_ends_of_the_ranges_are_allowed():
    settings = SDSSettings(steps=1, report_every=1, t_range=(0.5, 0.5), anneal=(0.0, 1.0), form="data", rescale=1.0)
    assert (settings.steps, settings.rescale) == (1, 1.0)


class Grey:
    """A field and its working copy: one grey to learn."""

    device = torch.device("cpu")

    def __init__(self, value=0.5):
        self.value, self.seen, self.shown, self.gradients = torch.tensor(value, requires_grad=True), [], [], []

    def optimizer(self):
        return self

    def render(self, cameras, background=None, **_):
        self.seen.append((cameras, background))
        rgb = self.value.expand(len(cameras), cameras.height, cameras.width, 3)
        self.shown.append(Render(rgb, rgb[..., :1], rgb[..., :1]))
        return self.shown[-1]

    def step(self, loss, render):
        assert any(render is one for one in self.shown), "density control reads the gradients of what was rendered"
        (found,) = torch.autograd.grad(loss, self.value)
        self.gradients.append(float(found))

    def finish(self):
        return self


def view_from(elevation):
    """A white reference view without an object."""
    cameras = orbit_cameras(elevation, 90.0, 1.5, width=SIZE)
    return ReferenceView(cameras, torch.ones(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE, 1), 1.0, 1.0)


@pytest.mark.parametrize(("first", "elevation"), [(0, None), (0, 20.0), (7, 20.0)])
def test_every_update_is_equation_5_at_what_its_generator_samples(oracle, monkeypatch, first, elevation):
    """Cameras, time and noise of update i come, in this order, from the generator of (seed, first + i, "sds")."""
    monkeypatch.setattr(sds, "reference_view_loss", lambda _view, optimizer, *_: optimizer.value * 0)
    plan = SIRPlan("p", views=4, elevation_range=(-10, 10))
    settings = SDSSettings(steps=3, guidance_scale=2.0, t_range=(0.6, 0.9), t_range_end=(0.1, 0.3))
    field, view = Grey(), None if elevation is None else view_from(elevation)
    latents, estimate = [], oracle.denoised
    monkeypatch.setattr(oracle, "denoised", lambda noisy, *rest: latents.append(noisy) or estimate(noisy, *rest))
    list(sds_steps(field, oracle, plan, settings, 3, reference=view, **({"first": first} if first else {})))
    for step, (seen, _) in enumerate(field.seen):
        rng = generator(3, first + step, "sds")
        cameras = sample_orbit(4, plan.elevations(elevation or 0.0), plan.radius, rng, plan.fov_y, SIZE)
        assert torch.equal(seen.c2w[:4], cameras.c2w)
        t = settings.time(step, 1000, rng)
        noise = torch.randn(4, *oracle.latent_shape, generator=rng)
        noisy = add_noise(oracle.encode(torch.full((4, SIZE, SIZE, 3), 0.5)), t, noise, oracle.process)
        assert torch.allclose(latents[step], noisy, atol=1e-5)
        x0 = estimate(noisy, t, oracle.condition(cameras), 2.0)
        residual = predict_noise(noisy, x0, t, oracle.process) - noise
        expected = through_the_encoder(float(1 - oracle.process.alphas_cumprod[t]) * residual).sum()
        assert field.gradients[step] == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
    assert len(field.gradients) == len(field.seen) == 3


@pytest.mark.parametrize(("ramp", "shares"), [(False, [1, 1, 1, 1]), (True, [0.25, 0.5, 0.75, 1])])
def test_the_references_weight_ramps_to_one(oracle, monkeypatch, ramp, shares):
    monkeypatch.setattr(sds, "reference_view_loss", lambda _view, optimizer, *_: 100 * optimizer.value)
    field, settings = Grey(), SDSSettings(steps=4, weight=0.0, reference_ramp=ramp)
    list(sds_steps(field, oracle, SIRPlan("p", views=4), settings, 0, reference=view_from(0.0)))
    assert field.gradients == pytest.approx([100 * share for share in shares])


def test_updates_are_counted_before_they_are_done(oracle):
    counts = []
    hooks = Hooks(progress=lambda *done: counts.append(done))
    list(sds_steps(Grey(), oracle, SIRPlan("p", views=4), SDSSettings(steps=3, report_every=2), 0, hooks=hooks))
    assert counts == [("sds", 0, 3), ("sds", 1, 3), ("sds", 2, 3)]


def test_a_state_has_the_field_and_all_evaluations_so_far(oracle):
    before, field = oracle.evaluations, Grey()
    first, last = sds_steps(field, oracle, SIRPlan("p", views=4), SDSSettings(steps=3, report_every=2, guidance_scale=1.0), 0)
    assert first.field is last.field is field
    assert (first.evaluations - before, last.evaluations - before) == (8, 12)


@pytest.mark.parametrize("form", ["noise", "data", "pixels"])
def test_seconds_are_those_of_the_components(oracle, form):
    (state,) = sds_steps(Grey(), oracle, SIRPlan("p", views=4), SDSSettings(steps=1, form=form), 0)
    assert list(state.seconds) == [name for name in COMPONENTS if form == "pixels" or name != "decode"]


def test_a_loss_that_is_not_finite_names_its_step(oracle):
    settings = SDSSettings(steps=3, times="falling", t_range=(0.5, 0.5))
    with pytest.raises(NumericalError, match=r"^The SDS loss is not finite at step 0, t = 500\.$"):
        list(sds_steps(Grey(float("nan")), oracle, SIRPlan("p", views=4), settings, 0))


@pytest.mark.parametrize("background", ["white", "learned"])
def test_the_reference_takes_part_as_the_plan_says(oracle, monkeypatch, background):
    compared = []

    def compare(view, optimizer, render, cameras, behind):
        assert render is optimizer.shown[-1]
        compared.append((view, cameras, behind))
        return optimizer.value * 0

    monkeypatch.setattr(sds, "reference_view_loss", compare)
    plan = SIRPlan("p", views=4, background=background, resolutions=(8, SIZE))
    field = Grey()
    states = list(sds_steps(field, oracle, plan, SDSSettings(steps=4, report_every=3), 0, reference=view_from(10.0)))
    assert [state.step for state in states] == [3, 4]
    assert [(len(cameras), cameras.width) for cameras, _ in field.seen] == [(5, 8), (5, 8), (5, SIZE), (5, SIZE)]
    for (view, cameras, behind), (seen, rendered_on) in zip(compared, field.seen, strict=True):
        assert cameras is seen and behind is rendered_on and (behind is None) == (background == "learned")
        assert view.image.shape[1:3] == view.alpha.shape[1:3] == (seen.width, seen.width) == (view.cameras.width,) * 2
        assert view.inside == (background == "learned")
    alone = Grey()
    list(sds_steps(alone, oracle, plan, SDSSettings(steps=1), 0))
    assert len(alone.seen[0][0]) == 4 and len(compared) == 4


def test_a_model_that_looks_at_renders_is_shown_the_object_of_each_update(oracle):
    shown = []

    class Looking(AnalyticDiffusion):
        def condition_on(self, cameras, render):
            shown.append((cameras, render(cameras).rgb))
            return self.condition(cameras)

    looking = Looking(render, SIZE, reference=oracle.reference)
    field = Grey()
    list(sds_steps(field, looking, SIRPlan("p", views=4), SDSSettings(steps=2), 0))
    assert [len(cameras) for cameras, _ in shown] == [4, 4]
    # every update renders its own views, and these once more to show them
    assert [seen.c2w.tolist() for seen, _ in field.seen] == [cameras.c2w.tolist() for cameras, _ in shown for _ in range(2)]
    assert all(behind is not None for _, behind in field.seen)
