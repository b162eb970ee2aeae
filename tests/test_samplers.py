"""DDIM, its inversion and the other samplers against distributions whose exact score is known."""

import math
from itertools import islice

import pytest
import torch

from microdreamer_core.diffusion import ddim
from microdreamer_core.diffusion.noise import STABLE_DIFFUSION
from microdreamer_core.diffusion.samplers import get_sampler
from microdreamer_core.diffusion.timesteps import inversion_path, sampling_path, timestep_grid
from microdreamer_core.errors import Cancelled, InputError, NumericalError
from microdreamer_core.sir.forward import forward_process
from microdreamer_core.sir.plan import IterationTimes
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.util.vocabulary import SAMPLERS

MEAN, DEVIATION = 0.4, 0.3
# diffusers takes long to import: those samplers are slow tests
ODE_SAMPLERS = ["ddim", *(pytest.param(name, marks=pytest.mark.slow) for name in ("euler", "dpmpp_2m", "unipc"))]
ALL_SAMPLERS = ["ddim", *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS if name != "ddim")]


def gaussian(x, t):
    """Exact clean estimate for data N(MEAN, DEVIATION²): x_t is N(α MEAN, α² DEVIATION² + σ²)."""
    alpha, sigma = STABLE_DIFFUSION.alpha_sigma(t)
    return MEAN + alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2) * (x - alpha * MEAN)


def constant_noise(x, t):
    """The clean estimate of a noise prediction that does not depend on x, for which DDIM's steps undo each other exactly."""
    eps = torch.full_like(x, 0.3) + 0.0001 * torch.arange(x.numel(), dtype=x.dtype).view(x.shape)
    return ddim.predict_x0(x, eps, t, STABLE_DIFFUSION)


def noise(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noised_data(t2, seed=0, side=32):
    """[4,1,side,side] samples of the marginal at t2."""
    x0 = MEAN + DEVIATION * noise(seed, 4, 1, side, side)
    return ddim.add_noise(x0, t2, noise(seed + 1, *x0.shape), STABLE_DIFFUSION)


def exact_flow(x, t2):
    """Where the probability flow ODE takes x from t2: Gaussians are carried along by their standard scores."""
    alpha, sigma = STABLE_DIFFUSION.alpha_sigma(t2)
    return MEAN + DEVIATION * (x - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2) ** 0.5


def sampled(name, x, t2, steps, eta=0.0, seed=7, estimate=gaussian):
    return get_sampler(name, eta)(estimate, x, sampling_path(t2, steps), STABLE_DIFFUSION, generator(seed))


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t2", [981, 501])
@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_deterministic_samplers_follow_the_exact_flow(name, t2):
    """Near the truth in 50 steps, and nearer by the solver's order in 200: errors in standard deviations of the data."""
    x = noised_data(t2)
    coarse, fine = (float((sampled(name, x, t2, n) - exact_flow(x, t2)).abs().mean()) / DEVIATION for n in (50, 200))
    second_order = name in ("dpmpp_2m", "unipc")
    assert coarse < (0.04 if second_order else 0.08)
    assert fine < coarse / (6 if second_order else 2.5)


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_every_sampler_lands_on_the_data(name):
    got = sampled(name, noised_data(981), 981, 50)
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.02)
    # LCM jumps to the posterior mean at every step, which narrows the distribution unless the model is a consistency model
    low = 0.5 if name == "lcm" else 0.88
    assert low * DEVIATION < float(got.std()) < 1.12 * DEVIATION


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_keeps_the_distribution(eta):
    x = noised_data(801, side=64)
    coarse, fine = (sampled("ddim", x, 801, n, eta) for n in (50, 200))
    assert float(fine.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(fine.std()) == pytest.approx(DEVIATION, rel=0.07)
    assert abs(float(fine.std()) - DEVIATION) < 0.6 * abs(float(coarse.std()) - DEVIATION)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_evaluations_are_the_plans(name, steps):
    """Every sampler evaluates t2 and the grid below it, at most ``steps`` times, also when few steps are left."""
    grid = timestep_grid(20)
    t2, seen = grid[steps - 1], []

    def counted(x, t):
        seen.append(t)
        return gaussian(x, t)

    got = sampled(name, noised_data(t2, side=2).float(), t2, 20, 0.5, estimate=counted)
    assert seen == list(reversed(grid[:steps]))
    assert got.dtype == torch.float32 and bool(torch.isfinite(got).all())


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_all_draws_come_from_the_generator(name):
    x = noised_data(501, side=4).float()
    before = torch.get_rng_state()
    first, again = (sampled(name, x, 501, 20, 0.5) for _ in range(2))
    other = sampled(name, x, 501, 20, 0.5, seed=8)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in ("ddim", "lcm"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_not_a_number_names_the_time(name):
    def broken(x, t):
        return gaussian(x, t) * (float("nan") if t == 301 else 1)

    with pytest.raises(NumericalError, match="t = 301"):
        sampled(name, noised_data(501, side=2), 501, 20, estimate=broken)


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_check_comes_before_every_evaluation(name):
    calls = []

    def check():
        calls.append(len(calls))
        if len(calls) == 3:
            raise Cancelled

    evaluated = []

    def counted(x, t):
        evaluated.append(t)
        return gaussian(x, t)

    with pytest.raises(Cancelled):
        get_sampler(name)(counted, noised_data(501, side=2), sampling_path(501, 20), STABLE_DIFFUSION, generator(), check)
    assert evaluated == [501, 451]


def test_unknown_sampler():
    with pytest.raises(InputError, match="dpmpp_2m"):
        get_sampler("heun")
    with pytest.raises(InputError, match="eta"):
        get_sampler("ddim", 1.5)


def decibels(a, b):
    return -10 * math.log10(float((a - b).square().mean()))


@pytest.mark.parametrize(("t1", "t2"), [(481, 801), (241, 401), (121, 201)])
def test_round_trip_of_the_hybrid_process(t1, t2):
    """Inversion t1 -> t2 by the exact score, then sampling back to t1, at 50 steps."""
    x = noised_data(t1)
    there = list(ddim.inversion_steps(x, inversion_path(t1, t2, 50), gaussian, STABLE_DIFFUSION))
    back = list(islice(ddim.sampling_steps(there[-1], sampling_path(t2, 50), gaussian, STABLE_DIFFUSION), len(there)))[-1]
    assert decibels(back, x) > 45


def test_round_trip_from_clean_data_improves_with_the_steps():
    """Inversion 0 -> t2, then sampling. The first steps after t = 0, where σ grows from 0.04 past the data's deviation, lose
    most: 27 dB at 50 steps whatever t2 is, which is what the hybrid process avoids by noising to t1."""
    x0 = MEAN + DEVIATION * noise(3, 4, 1, 32, 32)
    loss = []
    for steps in (10, 50, 200, 500):
        there = ddim.invert_forward(x0, inversion_path(0, 801, steps), gaussian, STABLE_DIFFUSION)
        loss.append(decibels(ddim.sample(there, sampling_path(801, steps), gaussian, STABLE_DIFFUSION), x0))
    assert loss == sorted(loss)
    assert loss[1] > 26 and loss[2] > 35 and loss[3] > 43


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_round_trip_is_exact_when_the_steps_are_reversible(steps):
    x0 = noise(5, 4, 4, 2, 2)
    t2 = timestep_grid(steps)[-1]
    there = ddim.invert_forward(x0, inversion_path(0, t2, steps), constant_noise, STABLE_DIFFUSION)
    assert float((there - x0).abs().max()) > 0.1
    back = ddim.sample(there, sampling_path(t2, steps), constant_noise, STABLE_DIFFUSION)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-13)


def test_inversion_is_eq_4():
    """x_{t+1} = (α'/α) x + (σ' - (α'/α) σ) ε, written out."""
    x, eps = noise(1, 8), noise(2, 8)
    (a, s), (a2, s2) = (STABLE_DIFFUSION.alpha_sigma(t) for t in (301, 351))
    got = ddim.inversion_step(x, ddim.predict_x0(x, eps, 301, STABLE_DIFFUSION), 301, 351, STABLE_DIFFUSION)
    torch.testing.assert_close(got, a2 / a * x + (s2 - a2 / a * s) * eps)
    x0 = ddim.predict_x0(got, eps, 351, STABLE_DIFFUSION)
    torch.testing.assert_close(ddim.ddim_step(got, x0, 351, 301, STABLE_DIFFUSION), x)


@pytest.mark.parametrize(("forward", "calls"), [("hybrid", 5), ("noise", 0), ("invert", 13)])
def test_forward_process_runs_the_plan(forward, calls):
    plan = get_plan("embedded-high", forward=forward, discretization=20, t2_start=0.62, t2_end=0.62, iterations=1)
    (times,) = plan.times(0)
    x0, seen = MEAN + DEVIATION * noise(1, 4, 4, 2, 2), []

    def counted(x, t):
        seen.append(t)
        return gaussian(x, t)

    noised = forward_process(x0, counted, plan.inversion_path(times), plan, STABLE_DIFFUSION, generator())
    assert len(seen) == times.inversion == calls
    # whichever way was taken, what arrives is a sample of the marginal at t2
    alpha, sigma = STABLE_DIFFUSION.alpha_sigma(times.t2)
    deviation = (alpha**2 * DEVIATION**2 + sigma**2) ** 0.5
    assert float(noised.std()) == pytest.approx(deviation, rel=0.35)
    assert float(noised.mean()) == pytest.approx(alpha * MEAN, abs=0.4)


def test_noise_does_not_depend_on_precision():
    x = torch.zeros(2, 4, 2, 2)
    full = ddim.noise_forward(x, 501, STABLE_DIFFUSION, generator=generator())
    half = ddim.noise_forward(x.half(), 501, STABLE_DIFFUSION, generator=generator())
    torch.testing.assert_close(half.float(), full, rtol=2e-3, atol=1e-3)


def test_no_way_to_go_leaves_the_latent_as_it_is():
    x = noise(1, 2, 4, 2, 2)
    assert ddim.invert_forward(x, inversion_path(0, 0, 20), gaussian, STABLE_DIFFUSION) is x
    noised = ddim.hybrid_forward(x, inversion_path(501, 501, 20), gaussian, STABLE_DIFFUSION, noise=x)
    assert torch.equal(noised, ddim.add_noise(x, 501, x, STABLE_DIFFUSION))


def test_impossible_calls_are_refused():
    x = torch.zeros(2, 4, 2, 2)
    with pytest.raises(InputError, match="t1 <= t2"):
        inversion_path(501, 401, 20)
    with pytest.raises(InputError, match="t2 = 1000"):
        sampling_path(1000, 20)
    with pytest.raises(InputError, match="Generator"):
        ddim.sample(x, (501,), gaussian, STABLE_DIFFUSION, eta=0.5)
    with pytest.raises(InputError, match="1..999"):
        timestep_grid(0)


def test_times_off_the_grid_are_visited_too():
    seen = []

    def counted(x, t):
        seen.append(t)
        return gaussian(x, t)

    ddim.hybrid_forward(torch.zeros(4), inversion_path(120, 333, 10), counted, STABLE_DIFFUSION, noise=torch.zeros(4))
    assert seen == [120, 201, 301]
    assert IterationTimes(0, 333, 120, len(seen), 5).calls == 3 + len(sampling_path(333, 10))
