"""Every Gaussian process is variance preserving up to scale and clock: Eq. 1 to 4, 9 and 10 in each process's own coordinates.

The data are N(MEAN, DEVIATION²), whose clean estimate and probability flow are known in any coordinates x = a x0 + b ε.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from microdreamer_core.cameras import turntable
from microdreamer_core.diffusion import ddim
from microdreamer_core.diffusion.analytic import AnalyticDiffusion
from microdreamer_core.diffusion.noise import STABLE_DIFFUSION, NoiseProcess
from microdreamer_core.diffusion.samplers import get_sampler
from microdreamer_core.diffusion.timesteps import inversion_path, sampling_path, timestep_grid
from microdreamer_core.errors import InputError
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.stages import denoise_views, forward_views
from microdreamer_core.sir.step import Step, model_times
from microdreamer_core.util.vocabulary import SAMPLERS

MEAN, DEVIATION, SIZE = 0.3, 0.6, 32
FLOW = NoiseProcess.rectified_flow(3.0)
PROCESSES = {"SD": STABLE_DIFFUSION, "flow": NoiseProcess.rectified_flow(), "flow shift 3": FLOW, "EDM": NoiseProcess.edm()}
# own coordinates: noise-to-signal ratio -> (a, b)
COORDINATES = {
    "EDM": lambda v: (1.0, v),
    "flow": lambda v: (0.0, 1.0) if v == math.inf else (1 / (1 + v), v / (1 + v)),
    "flow of noise scale 8": lambda v: (0.0, 8.0) if v == math.inf else (8 / (8 + v), 8 * v / (8 + v)),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(seed, *shape):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def exact(x, a, b):
    """E[x0 | a x0 + b ε = x]."""
    return MEAN + a * DEVIATION**2 / (a**2 * DEVIATION**2 + b**2) * (x - a * MEAN)


def of_coordinates(process, coordinates):
    """The clean estimate of a model that works in other coordinates, as an adapter gives it."""

    def denoise(x, t):
        a, b = coordinates(process.level(t))
        return exact(x * (a**2 + b**2) ** 0.5, a, b)

    return denoise


# --- the formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [(801, 601), (601, 801), (998, 700)])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_a_step_is_eulers_in_the_models_own_coordinates(coordinates, times):
    """x' = x̂0 + (s' / s)(x - x̂0), s = σ of EDM and the time of flow: of flow that is x + (s' - s) v, v = (x - x̂0) / s."""
    own, (t, other) = COORDINATES[coordinates], times
    (a, b), (a2, b2) = (own(FLOW.level(t)) for t in times)
    x, scale, scale2 = noise(1, 500), (a**2 + b**2) ** 0.5, (a2**2 + b2**2) ** 0.5
    x0 = of_coordinates(FLOW, own)(x, t)
    step = ddim.ddim_step if other < t else ddim.inversion_step
    torch.testing.assert_close(step(x, x0, t, other, FLOW) * scale2, x0 + b2 / b * (x * scale - x0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_papers_eta_in_other_coordinates(coordinates, eta):
    """x' = a' x̂0 + sqrt(b'² - η² β²) ε + η β z with β = b' sqrt(1 - (ν' / ν)²)."""
    own, (t, prev) = COORDINATES[coordinates], (801, 601)
    (a, b), (a2, b2) = (own(FLOW.level(t)) for t in (t, prev))
    x, z, scale2 = noise(1, 500), noise(2, 500), (a2**2 + b2**2) ** 0.5
    x0 = of_coordinates(FLOW, own)(x, t)
    deviation = eta * b2 * (1 - (FLOW.level(prev) / FLOW.level(t)) ** 2) ** 0.5
    eps = (x * (a**2 + b**2) ** 0.5 - a * x0) / b
    expected = a2 * x0 + (b2**2 - deviation**2) ** 0.5 * eps + deviation * z
    torch.testing.assert_close(ddim.ddim_step(x, x0, t, prev, FLOW, eta, z) * scale2, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_sampling_converges_to_the_exact_flow_in_first_order(name):
    process, x = PROCESSES[name], noise(1, 4000)
    first, last = (process.time(level) for level in (3.0, 0.1))
    (a, b), (a2, b2) = (process.alpha_sigma(t) for t in (first, last))
    spread, spread2 = ((p**2 * DEVIATION**2 + q**2) ** 0.5 for p, q in ((a, b), (a2, b2)))
    expected, errors = a2 * MEAN + spread2 / spread * (x - a * MEAN), []
    for count in (10, 40):
        path = [round(first + (last - first) * i / count) for i in range(count + 1)]
        y = x
        for t, prev in pairwise(path):
            y = ddim.ddim_step(y, exact(y, *process.alpha_sigma(t)), t, prev, process)
        errors.append(float((y - expected).abs().mean()))
    assert errors[0] < 0.1 and 3 < errors[0] / errors[1] < 5


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_whole_process_is_the_same_in_other_coordinates(coordinates):
    """Eq. 9 and 10 from pure noise's neighbourhood down to the clean latent."""

    def refined(denoise):
        x = ddim.hybrid_forward(noise(1, 500), inversion_path(400, 900, 20), denoise, FLOW, noise=noise(2, 500))
        return ddim.sample(x, sampling_path(900, 20), denoise, FLOW)

    expected = refined(lambda x, t: exact(x, *FLOW.alpha_sigma(t)))
    torch.testing.assert_close(refined(of_coordinates(FLOW, COORDINATES[coordinates])), expected, rtol=0, atol=1e-11)


# --- the processes -------------------------------------------------------------------------------------------------------


def test_shift_is_a_factor_of_the_noise_level():
    torch.testing.assert_close(FLOW.levels, 3 * PROCESSES["flow"].levels, rtol=1e-9, atol=0)
    assert FLOW.level(999) == math.inf and FLOW.alpha_sigma(999) == (0.0, 1.0)


def test_levels_and_times_undo_each_other():
    for process in PROCESSES.values():
        assert [process.time(process.level(t)) for t in range(0, 999, 37)] == list(range(0, 999, 37))
        assert process.time(1e-9) == 0 and process.alpha_sigma(500)[1] / process.alpha_sigma(500)[0] == pytest.approx(
            process.level(500)
        )


def test_stable_diffusions_clock_is_recognised():
    alphas = STABLE_DIFFUSION.alphas_cumprod.sqrt()
    zero_terminal = NoiseProcess(((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2)
    few_levels = NoiseProcess(STABLE_DIFFUSION.alphas_cumprod[torch.arange(1000) // 20 * 20 + 19])
    found = [process.is_stable_diffusion for process in (*PROCESSES.values(), zero_terminal, few_levels)]
    assert found == [True, False, False, False, True, False]
    assert few_levels.alpha_sigma(-1) == (1.0, 0.0) != zero_terminal.alpha_sigma(-1)


def test_times_are_converted_by_noise_level():
    times = (51, 401, 801, 951)
    assert STABLE_DIFFUSION.convert_times(times, 4.0) == times
    for factor in (1.0, 4.0):
        converted = FLOW.convert_times(times, factor)
        for t, own in zip(times, converted, strict=True):
            assert FLOW.level(own) == pytest.approx(factor * STABLE_DIFFUSION.level(t), rel=0.05)


@pytest.mark.parametrize(
    "name", ["ddim", "lcm", *(pytest.param(n, marks=pytest.mark.slow) for n in SAMPLERS if n not in ("ddim", "lcm"))]
)
@pytest.mark.parametrize("process", ["flow shift 3", "EDM"])
def test_every_sampler_reaches_the_data_from_pure_noise(name, process):
    known, x = PROCESSES[process], noise(1, 4, 1, 32, 32)
    path = (999, *sampling_path(981, 50))
    got = get_sampler(name)(lambda x, t: exact(x, *known.alpha_sigma(t)), x, path, known, rng(3))
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.04)
    assert (0.4 if name == "lcm" else 0.85) * DEVIATION < float(got.std()) < 1.15 * DEVIATION


# --- few steps -----------------------------------------------------------------------------------------------------------


def test_trailing_grids_start_at_pure_noise():
    assert timestep_grid(4, "trailing") == (249, 499, 749, 999) and timestep_grid(2, "trailing") == (499, 999)
    assert timestep_grid(3, "trailing") == (332, 666, 999) and len(set(timestep_grid(999, "trailing"))) == 999
    assert sampling_path(0, 4) == (0,) and timestep_grid(999)[-1] == 999
    for call in (lambda: sampling_path(1000, 4), lambda: inversion_path(0, 1000, 4), lambda: timestep_grid(1000)):
        with pytest.raises(InputError, match=r"999|< 1000"):
            call()


def test_consistency_sampling_noises_every_estimate_anew():
    seen, x = [], noise(1, 3, 4)

    def denoise(x, t):
        seen.append((t, x))
        return torch.full_like(x, float(t))

    got = get_sampler("lcm")(denoise, x, (999, 749, 499), STABLE_DIFFUSION, rng(5))
    draw = rng(5)
    assert [t for t, _ in seen] == [999, 749, 499] and torch.equal(got, torch.full_like(x, 499.0))
    for (before, _), (t, given) in pairwise(seen):
        z = torch.randn(x.shape, generator=draw).double()
        torch.testing.assert_close(given, ddim.add_noise(torch.full_like(x, float(before)), t, z, STABLE_DIFFUSION))


def test_a_perfect_consistency_model_gives_the_data():
    """Its estimate is a draw from the data given x: here the end of the exact flow."""

    def flow_end(x, t):
        alpha, sigma = STABLE_DIFFUSION.alpha_sigma(t)
        return MEAN + DEVIATION * (x - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2) ** 0.5

    got = get_sampler("lcm")(flow_end, noise(1, 20000), timestep_grid(4, "trailing")[::-1], STABLE_DIFFUSION, rng(2))
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.02) and float(got.std()) == pytest.approx(DEVIATION, rel=0.03)


@pytest.mark.parametrize("steps, evaluations", [(4, 44), (2, 22)])
@pytest.mark.parametrize("preset", ["few-step", "lcm"])
def test_evaluations_of_few_step_plans(preset, steps, evaluations):
    plan = get_plan(preset, discretization=steps)
    assert plan.evaluations().per_view == plan.evaluations().per_view_paper == evaluations
    assert {times.inversion for times in plan.times(0)} == {0} and all(times.t2 < 999 for times in plan.times(0))
    # the released spacing evaluates t = 1 as well, which removes next to nothing
    leading = get_plan(preset, discretization=steps, spacing="leading")
    assert leading.evaluations().per_view == {4: 64, 2: 36}[steps]


# --- SIR -----------------------------------------------------------------------------------------------------------------


def objects(cameras):
    """[2,V,S,S,3] in [0,1]: two objects that change with the view."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, cameras.width)] * 2, indexing="ij")
    turn = torch.deg2rad(cameras.azimuth)[:, None, None]
    waves = torch.stack([torch.sin(frequency * (x * turn.cos() + y) + turn) for frequency in (3.0, 7.0)])
    return 0.5 + 0.4 * waves[..., None] * torch.tensor([1.0, -0.5, 0.3])


@dataclass
class OtherCoordinates(AnalyticDiffusion):
    """The oracle as a network of another process computes it: in its own scale, which the adapter changes."""

    coordinates: str = "flow"

    def denoised(self, latents, t, conditioning, guidance_scale):
        assert guidance_scale in (0.0, 1.0)
        self.evaluations += len(latents)
        a, b = COORDINATES[self.coordinates](self.process.level(t))
        prior = self._log_prior if guidance_scale else None
        return self.posterior_mean(latents * (a**2 + b**2) ** 0.5, a, b, conditioning, prior)


def refined(diffusion, **changes):
    """(images of one iteration at t2, of the initialisation)"""
    plan = get_plan("embedded", iterations=1, image_size=SIZE, radius=1.5, **changes)
    start = torch.rand(4, SIZE, SIZE, 3, generator=rng(9))
    found = []
    for k in (0, -1):
        step = Step.of_plan(plan, 3, k, SIZE, diffusion=diffusion)
        found.append(denoise_views(step, forward_views(step, start))[1])
    return found


@pytest.mark.parametrize(
    ("process", "coordinates"),
    [("flow shift 3", "flow"), ("flow shift 3", "flow of noise scale 8"), ("EDM", "EDM"), ("EDM", "flow")],
)
def test_sir_gives_the_same_pictures_at_equal_noise_levels(process, coordinates):
    known, plain = PROCESSES[process], AnalyticDiffusion(objects, SIZE, process=PROCESSES[process])
    other = OtherCoordinates(objects, SIZE, process=known, coordinates=coordinates)
    for got, expected in zip(refined(other), refined(plain), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert other.evaluations == plain.evaluations


def test_the_papers_clock_keeps_the_noise_levels_of_the_plan():
    """At these latents (side 32) another process refines as Stable Diffusion's does; by its own clock it forgets more."""
    usual = AnalyticDiffusion(objects, SIZE, spread=0.5)
    flow = AnalyticDiffusion(objects, SIZE, spread=0.5, process=NoiseProcess.rectified_flow(12.0))
    changes = {"eta": 0.0, "t2_start": 0.5, "t2_end": 0.4}
    expected = refined(usual, **changes)[0]
    same, own = (float((refined(flow, clock=clock, **changes)[0] - expected).abs().mean()) for clock in ("paper", "model"))
    assert same < 0.01 and own > 5 * same


def test_larger_latents_and_the_factor_raise_the_level():
    plan, large = SIRPlan("mine"), AnalyticDiffusion(objects, 4 * SIZE, process=FLOW)
    for factor in (1.0, 0.5):
        (t,) = model_times(SIRPlan("mine", clock_factor=factor), [501], large)
        assert FLOW.level(t) == pytest.approx(4 * factor * STABLE_DIFFUSION.level(501), rel=0.02)
    assert model_times(SIRPlan("mine", clock="model"), [501], large) == (501,)
    assert model_times(plan, [501], AnalyticDiffusion(objects, 4 * SIZE)) == (501,)


def test_pure_noise_enters_at_the_last_time():
    cameras = turntable(4, size=SIZE)
    for plan, process, first in (
        (SIRPlan("mine"), STABLE_DIFFUSION, 951),
        (SIRPlan("mine"), FLOW, 999),
        (get_plan("few-step"), STABLE_DIFFUSION, 999),
    ):
        step = Step(cameras, plan, 0, -1, diffusion=AnalyticDiffusion(objects, SIZE, process=process))
        assert step.sampling_path[0] == first and len(step.sampling_path) == plan.discretization == step.calls


def test_the_branch_of_inversion_is_the_plans():
    asked, cameras = [], turntable(4, size=SIZE)
    diffusion = AnalyticDiffusion(objects, SIZE)
    whole = diffusion.denoised
    diffusion.denoised = lambda x, t, conditioning, scale: asked.append(scale) or whole(x, t, conditioning, scale)
    for branch in ("unconditional", "conditional"):
        plan = get_plan("embedded", inversion_branch=branch)
        forward_views(Step(cameras, plan, 0, 0, plan.iteration_times(0, 0), diffusion), torch.rand(4, SIZE, SIZE, 3))
    half = len(asked) // 2
    assert half and asked == [0.0] * half + [1.0] * half
