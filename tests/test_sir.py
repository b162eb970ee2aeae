"""Algorithm 1 and its baselines, on the analytic oracle."""

import dataclasses
import statistics

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, Imperfection, toy_renderer
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.errors import Cancelled, InputError, NumericalError
from microdreamer_core.evaluation import metrics
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.reference import Reference
from microdreamer_core.sir.hooks import Hooks
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.losses import reconstruction_loss
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.reconstruct import reconstruct
from microdreamer_core.sir.sds import COMPONENTS, SDSSettings, sds_steps
from microdreamer_core.sir.stages import fit_views, reference_view, refine_views
from microdreamer_core.sir.step import Step, iteration_cameras

SIZE = 32
# density control acts within the few updates of these runs, so that resuming is tested across it
SETTINGS = GaussianSettings(num_points=400, density=DensitySettings(every=10, until=30, max_points=3000))
PLAN = get_plan("embedded", iterations=3, init_steps=15, steps=8, discretization=5)


@pytest.fixture(scope="module")
def objects():
    return [toys.make_toy(toys.HELD_OUT + i, name) for i, name in enumerate(["mushroom", "car", "bird", "house"])]


@pytest.fixture(scope="module")
def renderer(objects):
    return toy_renderer(objects)


@pytest.fixture
def oracle(renderer):
    return make_oracle(renderer)


def make_oracle(renderer, index=2, **kwargs):
    return AnalyticDiffusion(renderer, SIZE, reference=make_reference(renderer, index), **kwargs)


def make_reference(renderer, index):
    picture = renderer(orbit_cameras(0, 0, 1.5, width=SIZE))[index, 0]
    alpha = (picture.min(-1, keepdim=True).values < 0.99).float()
    return Reference(picture, alpha)


def ball(seed=0):
    return Gaussians.ball(SETTINGS, seed=seed)


def same(a, b):
    tensors = zip(a.to_state()[0].items(), b.to_state()[0].items(), strict=True)
    return len(a) == len(b) and a.step == b.step and all(torch.equal(x, y) for (_, x), (_, y) in tensors)


def run(oracle, plan=PLAN, seed=1, **kwargs):
    return list(sir_iterations(kwargs.pop("field", ball()), oracle, plan, seed, reference=oracle.reference, **kwargs))


def test_iterations_report_what_they_did(oracle):
    iterations = run(oracle)
    assert [i.k for i in iterations] == [-1, 0, 1, 2]
    assert iterations[0].times is None and [i.times for i in iterations[1:]] == list(PLAN.times(1))
    assert [len(i.losses) for i in iterations] == [15, 8, 8, 8]
    assert iterations[-1].evaluations == PLAN.evaluations(1).total == oracle.evaluations
    assert iterations[-1].sheet().shape == (2 * SIZE, 4 * SIZE, 3)
    assert iterations[0].losses[-1] < 0.5 * iterations[0].losses[0]


def test_the_same_seed_gives_the_same_field_and_another_another(renderer):
    first, second, other = (run(make_oracle(renderer), seed=seed)[-1].field for seed in (1, 1, 2))
    assert same(first, second) and not same(first, other)


def test_the_given_field_is_not_changed(oracle):
    field, copy = ball(), ball()
    run(oracle, field=field)
    assert same(field, copy)


def test_a_saved_run_continues_bit_for_bit(renderer, tmp_path):
    whole = run(make_oracle(renderer))
    assert len(whole[1].field) != len(whole[-1].field)  # density control acted between the two
    save_state(tmp_path / "state.safetensors", whole[1].field)
    rest = run(make_oracle(renderer), field=load_state(tmp_path / "state.safetensors").field, first=1)
    assert [i.k for i in rest] == [1, 2]
    assert same(rest[-1].field, whole[-1].field)


def test_stages_called_one_by_one_give_the_generators_field(renderer):
    whole = run(make_oracle(renderer))[-1].field
    oracle, field = make_oracle(renderer), ball()
    for k in range(-1, PLAN.iterations):
        step = Step.of_plan(PLAN, 1, k, SIZE, diffusion=oracle)
        field = fit_views(step, field, refine_views(step, field).images, reference=oracle.reference).field
    assert same(field, whole)


@pytest.mark.parametrize("calls", [3, 20, 40])
def test_stopping_keeps_the_last_finished_iteration(oracle, calls):
    whole = run(oracle)
    left = calls

    def check():
        nonlocal left
        left -= 1
        if left < 0:
            raise Cancelled

    kept = []
    oracle.evaluations = 0
    with pytest.raises(Cancelled):
        for iteration in sir_iterations(ball(), oracle, PLAN, 1, reference=oracle.reference, hooks=Hooks(check=check)):
            kept.append(iteration)
    assert len(kept) < len(whole)
    assert all(same(a.field, b.field) for a, b in zip(kept, whole, strict=False))


def test_progress_counts_every_call_and_step(oracle):
    seen = {"refine": [], "reconstruct": []}
    run(oracle, hooks=Hooks(progress=lambda stage, done, total: seen[stage].append((done, total))))
    times = PLAN.times(1)
    assert len(seen["refine"]) == PLAN.discretization + sum(t.calls for t in times)
    assert len(seen["reconstruct"]) == PLAN.init_steps + PLAN.iterations * PLAN.steps
    assert all(done < total for stage in seen.values() for done, total in stage)


def test_a_nan_names_iteration_and_stage(oracle):
    oracle.denoised = lambda latents, t, conditioning, guidance: torch.full_like(latents, torch.nan)
    with pytest.raises(NumericalError, match=r"[Ii]teration -1.*estimate is not finite"):
        run(oracle)


def test_more_iterations_beat_none_on_an_imperfect_oracle(renderer, objects):
    """Fig. 12a: reconstructing again and again from inconsistent views beats reconstructing once."""
    around = orbit_cameras(10.0, torch.arange(8) * 45.0 + 22.5, 1.5, width=SIZE)
    plan = get_plan("embedded", iterations=12, init_steps=60)
    settings = GaussianSettings(num_points=800, density=DensitySettings(max_points=1500))
    gains = []
    for index, seed in ((0, 0), (2, 1), (3, 2)):
        truth = renderer(around)[index]
        oracle = make_oracle(renderer, index, imperfection=Imperfection(camera_degrees=8.0, tint=0.15, seed=seed))
        iterations = list(
            sir_iterations(Gaussians.ball(settings, seed), oracle, plan, seed, reference=make_reference(renderer, index))
        )
        scores = [metrics.psnr(i.field.render(around).rgb.clamp(0, 1), truth) for i in (iterations[0], iterations[-1])]
        gains.append(scores[1] - scores[0])
    assert statistics.mean(gains) > 1.5, gains


@pytest.mark.parametrize("changes", [{"loss_space": "latent"}, {"loss": "l2"}, {"forward": "noise"}, {"forward": "invert"}])
def test_variants_run_and_learn(oracle, changes):
    plan = dataclasses.replace(PLAN, **changes)
    iterations = run(oracle, plan)
    assert iterations[-1].evaluations == plan.evaluations(1).total
    assert iterations[0].losses[-1] < iterations[0].losses[0]


def test_another_sampler_takes_the_plans_place(oracle):
    def keep(denoise, latents, path, process, generator, check=None):
        return torch.zeros_like(latents)

    for iteration in run(oracle, sampler=keep):
        assert torch.equal(iteration.targets, torch.full_like(iteration.targets, 0.5))


def test_views_that_the_model_does_not_allow_are_refused(oracle):
    from microdreamer_core.diffusion.protocol import ViewCount

    oracle.view_count = ViewCount(group=3)
    with pytest.raises(InputError, match="multiple of 3"):
        run(oracle)


def test_losses_are_sums_over_pixels_and_means_over_views():
    a, b = torch.zeros(3, 4, 5, 3), torch.full((3, 4, 5, 3), 0.5)
    assert float(reconstruction_loss(a, b, "l1")) == pytest.approx(0.5 * 4 * 5 * 3)
    assert float(reconstruction_loss(a, b, "l2")) == pytest.approx(0.25 * 4 * 5 * 3)
    with pytest.raises(InputError, match="l1"):
        reconstruction_loss(a, b, "huber")


def test_reconstruct_refuses_targets_that_do_not_fit(oracle):
    cameras = iteration_cameras(PLAN, 0, 0, SIZE)
    with pytest.raises(InputError, match="shape"):
        reconstruct(ball(), cameras, torch.zeros(4, SIZE, SIZE + 1, 3), 1)


def test_reconstruct_learns_inside_inference_mode(oracle):
    """Hosts run their nodes in inference mode."""
    cameras = iteration_cameras(PLAN, 0, 0, SIZE)
    targets = torch.full((4, SIZE, SIZE, 3), 0.5)
    outside = reconstruct(ball(), cameras, targets, 5)
    with torch.inference_mode():
        inside = reconstruct(ball(), cameras, torch.full((4, SIZE, SIZE, 3), 0.5), 5)
    assert same(inside.field, outside.field)


@pytest.mark.parametrize("form", ["noise", "data", "pixels"])
def test_sds_approaches_the_object(renderer, form):
    around = orbit_cameras(10.0, torch.arange(4) * 90.0, 1.5, width=SIZE)
    truth = renderer(around)[2]
    oracle, start = make_oracle(renderer), ball()
    settings = SDSSettings(steps=60, form=form, guidance_scale=1.0, report_every=30)
    states = list(sds_steps(start, oracle, PLAN, settings, 0, reference=reference_view(oracle.reference, PLAN, SIZE)))
    assert [s.step for s in states] == [30, 60]
    assert states[-1].evaluations == 60 * PLAN.views
    components = set(COMPONENTS) - ({"decode"} if form != "pixels" else set())
    assert set(states[-1].seconds) == components and all(0 < v for v in states[-1].seconds.values())
    assert all(states[0].seconds[name] < states[-1].seconds[name] for name in components)
    before, after = (metrics.psnr(f.render(around).rgb.clamp(0, 1), truth) for f in (start, states[-1].field))
    assert after > before + 3
