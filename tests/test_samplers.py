"""DDIM, its inversion and the other samplers against distributions whose exact score is known."""

import math
from itertools import islice

import pytest
import torch

from microdreamer_core.diffusion import ddim
from microdreamer_core.diffusion.samplers import get_sampler
from microdreamer_core.diffusion.timesteps import timestep_grid
from microdreamer_core.errors import Cancelled, InputError, NumericalError
from microdreamer_core.sir.forward import forward_process
from microdreamer_core.sir.plan import IterationTimes
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.util.vocabulary import SAMPLERS

ALPHAS_CUMPROD = ddim.scaled_linear_alphas_cumprod()
MEAN, DEVIATION = 0.4, 0.3
# diffusers takes long to import: those samplers are slow tests
ODE_SAMPLERS = ["ddim", *(pytest.param(name, marks=pytest.mark.slow) for name in ("euler", "dpmpp_2m", "unipc"))]
ALL_SAMPLERS = ["ddim", *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLERS if name != "ddim")]


def gaussian_eps(x, t):
    """Exact noise prediction for data N(MEAN, DEVIATION²): x_t is N(α MEAN, α² DEVIATION² + σ²)."""
    a_bar = float(ALPHAS_CUMPROD[t])
    return (1 - a_bar) ** 0.5 * (x - a_bar**0.5 * MEAN) / (a_bar * DEVIATION**2 + 1 - a_bar)


def constant_eps(x, t):
    """A noise prediction that does not depend on x, for which DDIM's steps undo each other exactly."""
    return torch.full_like(x, 0.3) + 0.0001 * torch.arange(x.numel(), dtype=x.dtype).view(x.shape)


def noise(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noised_data(t2, seed=0, side=32):
    """[4,1,side,side] samples of the marginal at t2."""
    x0 = MEAN + DEVIATION * noise(seed, 4, 1, side, side)
    return ddim.add_noise(x0, t2, noise(seed + 1, *x0.shape), ALPHAS_CUMPROD)


def exact_flow(x, t2):
    """Where the probability flow ODE takes x from t2: Gaussians are carried along by their standard scores."""
    a_bar = float(ALPHAS_CUMPROD[t2])
    return MEAN + DEVIATION * (x - a_bar**0.5 * MEAN) / (a_bar * DEVIATION**2 + 1 - a_bar) ** 0.5


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t2", [981, 501])
@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_deterministic_samplers_follow_the_exact_flow(name, t2):
    """Near the truth in 50 steps, and nearer by the solver's order in 200: errors in standard deviations of the data."""
    x = noised_data(t2)
    coarse, fine = (
        float((get_sampler(name)(gaussian_eps, x, t2, n, ALPHAS_CUMPROD, generator()) - exact_flow(x, t2)).abs().mean())
        / DEVIATION
        for n in (50, 200)
    )
    second_order = name in ("dpmpp_2m", "unipc")
    assert coarse < (0.04 if second_order else 0.08)
    assert fine < coarse / (6 if second_order else 2.5)


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_every_sampler_lands_on_the_data(name):
    got = get_sampler(name)(gaussian_eps, noised_data(981), 981, 50, ALPHAS_CUMPROD, generator())
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.02)
    # LCM jumps to the posterior mean at every step, which narrows the distribution unless the model is a consistency model
    low = 0.5 if name == "lcm" else 0.88
    assert low * DEVIATION < float(got.std()) < 1.12 * DEVIATION


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_keeps_the_distribution(eta):
    x = noised_data(801, side=64)
    coarse, fine = (get_sampler("ddim", eta)(gaussian_eps, x, 801, n, ALPHAS_CUMPROD, generator()) for n in (50, 200))
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
        return gaussian_eps(x, t)

    got = get_sampler(name, 0.5)(counted, noised_data(t2, side=2).float(), t2, 20, ALPHAS_CUMPROD, generator())
    assert seen == list(reversed(grid[:steps]))
    assert got.dtype == torch.float32 and bool(torch.isfinite(got).all())


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_all_draws_come_from_the_generator(name):
    x = noised_data(501, side=4).float()
    before = torch.get_rng_state()
    first, again = (get_sampler(name, 0.5)(gaussian_eps, x, 501, 20, ALPHAS_CUMPROD, generator()) for _ in range(2))
    other = get_sampler(name, 0.5)(gaussian_eps, x, 501, 20, ALPHAS_CUMPROD, generator(8))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name not in ("ddim", "lcm"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ALL_SAMPLERS)
def test_not_a_number_names_the_time(name):
    def broken(x, t):
        return gaussian_eps(x, t) * (float("nan") if t == 301 else 1)

    with pytest.raises(NumericalError, match="t = 301"):
        get_sampler(name)(broken, noised_data(501, side=2), 501, 20, ALPHAS_CUMPROD, generator())


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
        return gaussian_eps(x, t)

    with pytest.raises(Cancelled):
        get_sampler(name)(counted, noised_data(501, side=2), 501, 20, ALPHAS_CUMPROD, generator(), check)
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
    there = list(ddim.inversion_steps(x, t1, t2, gaussian_eps, 50, ALPHAS_CUMPROD))
    back = list(islice(ddim.sampling_steps(there[-1], t2, gaussian_eps, 50, ALPHAS_CUMPROD), len(there)))[-1]
    assert decibels(back, x) > 45


def test_round_trip_from_clean_data_improves_with_the_steps():
    """Inversion 0 -> t2, then sampling. The first steps after t = 0, where σ grows from 0.04 past the data's deviation, lose
    most: 27 dB at 50 steps whatever t2 is, which is what the hybrid process avoids by noising to t1."""
    x0 = MEAN + DEVIATION * noise(3, 4, 1, 32, 32)
    loss = []
    for steps in (10, 50, 200, 500):
        there = ddim.invert_forward(x0, 801, gaussian_eps, steps, ALPHAS_CUMPROD)
        loss.append(decibels(ddim.sample(there, 801, gaussian_eps, steps, ALPHAS_CUMPROD), x0))
    assert loss == sorted(loss)
    assert loss[1] > 26 and loss[2] > 35 and loss[3] > 43


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_round_trip_is_exact_when_the_steps_are_reversible(steps):
    x0 = noise(5, 4, 4, 2, 2)
    t2 = timestep_grid(steps)[-1]
    there = ddim.invert_forward(x0, t2, constant_eps, steps, ALPHAS_CUMPROD)
    assert float((there - x0).abs().max()) > 0.1
    torch.testing.assert_close(ddim.sample(there, t2, constant_eps, steps, ALPHAS_CUMPROD), x0, rtol=0, atol=1e-13)


def test_inversion_is_eq_4():
    """x_{t+1} = (α'/α) x + (σ' - (α'/α) σ) ε, written out."""
    x, eps = noise(1, 8), noise(2, 8)
    (a, s), (a2, s2) = ((float(ALPHAS_CUMPROD[t]) ** 0.5, (1 - float(ALPHAS_CUMPROD[t])) ** 0.5) for t in (301, 351))
    got = ddim.inversion_step(x, eps, 301, 351, ALPHAS_CUMPROD)
    torch.testing.assert_close(got, a2 / a * x + (s2 - a2 / a * s) * eps)
    torch.testing.assert_close(ddim.ddim_step(got, eps, 351, 301, ALPHAS_CUMPROD), x)


@pytest.mark.parametrize(("forward", "calls"), [("hybrid", 5), ("noise", 0), ("invert", 13)])
def test_forward_process_runs_the_plan(forward, calls):
    plan = get_plan("embedded", forward=forward, discretization=20, t2_start=0.62, t2_end=0.62, iterations=1)
    (times,) = plan.times(0)
    x0, seen = MEAN + DEVIATION * noise(1, 4, 4, 2, 2), []

    def counted(x, t):
        seen.append(t)
        return gaussian_eps(x, t)

    noised = forward_process(x0, counted, times, plan, ALPHAS_CUMPROD, generator())
    assert len(seen) == times.inversion == calls
    # whichever way was taken, what arrives is a sample of the marginal at t2
    a_bar = float(ALPHAS_CUMPROD[times.t2])
    deviation = (a_bar * DEVIATION**2 + 1 - a_bar) ** 0.5
    assert float(noised.std()) == pytest.approx(deviation, rel=0.35)
    assert float(noised.mean()) == pytest.approx(a_bar**0.5 * MEAN, abs=0.4)


def test_noise_does_not_depend_on_precision():
    x = torch.zeros(2, 4, 2, 2)
    full = ddim.noise_forward(x, 501, ALPHAS_CUMPROD, generator=generator())
    half = ddim.noise_forward(x.half(), 501, ALPHAS_CUMPROD, generator=generator())
    torch.testing.assert_close(half.float(), full, rtol=2e-3, atol=1e-3)


def test_impossible_calls_are_refused():
    x = torch.zeros(2, 4, 2, 2)
    with pytest.raises(InputError, match="t1 <= t2"):
        ddim.hybrid_forward(x, 501, 401, gaussian_eps, 20, ALPHAS_CUMPROD, generator=generator())
    with pytest.raises(InputError, match="t2 = 1000"):
        ddim.sample(x, 1000, gaussian_eps, 20, ALPHAS_CUMPROD)
    with pytest.raises(InputError, match="Generator"):
        ddim.sample(x, 501, gaussian_eps, 20, ALPHAS_CUMPROD, eta=0.5)
    with pytest.raises(InputError, match="1..999"):
        timestep_grid(0)


def test_times_off_the_grid_are_visited_too():
    seen = []

    def counted(x, t):
        seen.append(t)
        return gaussian_eps(x, t)

    ddim.hybrid_forward(torch.zeros(4), 120, 333, counted, 10, ALPHAS_CUMPROD, noise=torch.zeros(4))
    assert seen == [120, 201, 301]
    assert IterationTimes(0, 333, 120, len(seen), 5).calls == 3 + len(ddim.sampling_path(333, 10))
