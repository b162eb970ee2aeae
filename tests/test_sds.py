"""SDS: its gradients against Eq. 5 and 6 written out, its times, its presets."""

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion
from microdreamer_core.diffusion.ddim import add_noise, predict_noise
from microdreamer_core.errors import InputError
from microdreamer_core.reference import Reference, ReferenceView
from microdreamer_core.render.protocol import Render
from microdreamer_core.sir import sds
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.sds import SDS_PRESETS, SDSSettings, _distillation_loss, get_sds, sds_steps
from microdreamer_core.util.clock import Clock

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
    draw = torch.Generator().manual_seed(5)
    loss = _distillation_loss(rgb, oracle, CAMERAS, T, SDSSettings(**settings), draw, Clock())
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
    draws = [settings.time(0, 1000, torch.Generator().manual_seed(i)) for i in range(500)]
    assert 200 <= min(draws) < 210 and 590 < max(draws) <= 600


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
        ({"times": "rising"}, "The SDS times must be"),
        ({"steps": 0}, "at least 1 step"),
        ({"t_range": (0.5, 0.2)}, "t_range must satisfy"),
        ({"t_range_end": (0.0, 0.2)}, "t_range_end must satisfy"),
        ({"anneal": (0.5, 0.5)}, "anneal must satisfy"),
        ({"rescale": 0.5}, "for form 'data' alone"),
        ({"rescale": 2.0, "form": "data"}, "rescale must lie in 0..1"),
    ],
)
def test_nonsense_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        SDSSettings(**wrong)


class Grey:
    """A field and its working copy: one grey to learn."""

    device = torch.device("cpu")

    def __init__(self):
        self.value, self.sizes = torch.tensor(0.5, requires_grad=True), []

    def optimizer(self):
        return self

    def render(self, cameras, background=None, **_):
        self.sizes.append((len(cameras), cameras.width, background))
        rgb = self.value.expand(len(cameras), cameras.height, cameras.width, 3)
        return Render(rgb, rgb[..., :1], rgb[..., :1])

    def step(self, loss, render):
        loss.backward()

    def finish(self):
        return self


@pytest.mark.parametrize("background", ["white", "learned"])
def test_the_reference_takes_part_as_the_plan_and_its_ramp_say(oracle, monkeypatch, background):
    seen = []
    monkeypatch.setattr(sds, "reference_view_loss", lambda view, *_: seen.append(view) or view.image.sum() * 0)
    plan = SIRPlan("p", views=4, background=background, resolutions=(8, SIZE))
    view = ReferenceView(CAMERAS[:1], torch.ones(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE, 1), 1.0, 1.0)
    field = Grey()
    states = list(sds_steps(field, oracle, plan, SDSSettings(steps=4, report_every=3), 0, reference=view))
    assert [state.step for state in states] == [3, 4]
    assert [(count, width) for count, width, _ in field.sizes] == [(5, 8), (5, 8), (5, SIZE), (5, SIZE)]
    assert all((behind is None) == (background == "learned") for *_, behind in field.sizes)
    assert [v.cameras.width for v in seen] == [8, 8, SIZE, SIZE] and all(v.image.shape[1] == v.cameras.width for v in seen)
    assert all(v.inside == (background == "learned") for v in seen)
    alone = Grey()
    list(sds_steps(alone, oracle, plan, SDSSettings(steps=1), 0))
    assert alone.sizes[0][0] == 4 and len(seen) == 4
