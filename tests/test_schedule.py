"""Plans: Table I, time schedules, evaluation counts and their errors."""

import dataclasses
import math

import pytest
import torch

from microdreamer_core.errors import InputError
from microdreamer_core.reference import Reference
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.presets import PRESETS, get_plan
from microdreamer_core.sir.step import iteration_cameras, reference_elevation

TABLE_I = {
    # guidance, t2 from, to, t1 rule, eta, N, background, views, init steps, K, colour, opacity, resolutions
    "mvdream-nerf": (7.5, 0.8, 0.5, "square", 0.0, 50, "learned", 4, 50, 50, 0, 0, (64, 128)),
    "stable-zero123-nerf": (3.0, 0.8, 0.2, "ratio", 0.5, 20, "white", 4, 15, 30, 0.1, 0.001, (64, 128, 196)),
    "stable-zero123-gaussians": (3.0, 0.9, 0.2, "ratio", 0.5, 20, "white", 6, 15, 20, 0.3, 0.01, ()),
    "stable-zero123-gaussians-30": (3.0, 0.9, 0.2, "ratio", 0.5, 20, "white", 6, 15, 30, 0.3, 0.01, ()),
    "imagedream-nerf": (3.0, 0.8, 0.6, "square", 1.0, 10, "white", 4, 50, 30, 0, 0, (64, 128)),
    "imagedream-gaussians": (2.0, 0.8, 0.4, "ratio", 1.0, 10, "white", 4, 50, 30, 0, 0, ()),
}


@pytest.mark.parametrize("name", TABLE_I)
def test_table_i(name):
    p = PRESETS[name]
    assert (
        p.guidance_scale, p.t2_start, p.t2_end, p.t1_rule, p.eta, p.discretization, p.background, p.views, p.init_steps,
        p.iterations,
        p.ref_color_weight, p.ref_opacity_weight, p.resolutions,
    ) == TABLE_I[name]  # fmt: skip
    assert (p.steps, p.loss, p.loss_space, p.forward, p.sampler, p.t1_ratio) == (15, "l1", "pixel", "hybrid", "ddim", 0.6)
    assert p.name == name and p.representation == ("nerf" if "nerf" in name else "gaussians")


@pytest.mark.parametrize(
    ("name", "iterations", "inversion", "sampling", "branches"),
    [
        ("stable-zero123-gaussians", 20, 95, 257, 609),
        ("stable-zero123-gaussians", 30, 140, 372, 884),
        ("imagedream-gaussians", 30, 77, 208, 493),
        ("imagedream-gaussians", 20, 52, 143, 338),
    ],
)
def test_published_evaluation_counts(name, iterations, inversion, sampling, branches):
    plan = get_plan(name, iterations=iterations)
    count = plan.evaluations()
    assert (count.inversion, count.sampling, count.per_view) == (inversion, sampling, branches)
    assert count.per_view_paper == inversion + sampling
    assert count.total == branches * plan.views
    without = plan.evaluations(initialise=False)
    assert without.inversion == inversion and without.sampling == sampling - plan.discretization


@pytest.mark.parametrize(("name", "total"), [("embedded", 288), ("embedded-high", 828)])
def test_evaluations_of_the_shipped_models_plans(name, total):
    plan = get_plan(name)
    assert plan.evaluations().total == total
    changes = {field for field in vars(plan) if getattr(plan, field) != getattr(PRESETS["embedded-high"], field)}
    assert changes == ({"name", "discretization", "spacing", "color_fix"} if name == "embedded" else set())


@pytest.mark.parametrize("steps", range(1, 8))
def test_hybrid_on_few_trailing_steps_is_never_pure_inversion(steps):
    plan = SIRPlan("x", discretization=steps, spacing="trailing", t2_start=0.9, t2_end=0.2)
    for times in plan.times(0):
        assert 0 < times.t1 <= times.t2 and times.inversion < times.sampling


@pytest.mark.parametrize(("guidance", "branches"), [(0, 1), (1.0, 1), (0.5, 2), (3.0, 2)])
def test_guidance_decides_the_branches(guidance, branches):
    count = get_plan("embedded", guidance_scale=guidance).evaluations()
    assert count.per_view == count.inversion + branches * count.sampling


def test_no_iterations_is_the_initialisation_alone():
    plan = get_plan("embedded", iterations=0)
    assert plan.times(0) == ()
    assert plan.evaluations().per_view_paper == plan.discretization


@pytest.mark.parametrize("curve", ["linear", "square", "cosine"])
def test_curves_fall_from_start_towards_end(curve):
    plan = get_plan("stable-zero123-gaussians", t2_curve=curve, discretization=100, iterations=200)
    t2 = [times.t2 for times in plan.times(0)]
    assert t2 == sorted(t2, reverse=True)
    assert t2[0] == pytest.approx(900, abs=11) and t2[-1] == pytest.approx(200, abs=11)


def test_curve_shapes():
    """At half time: linear is half way, square three quarters down, cosine half way; cosine starts slowest, square fastest."""
    t2 = {
        curve: [
            t.t2 for t in SIRPlan("c", iterations=100, discretization=500, t2_curve=curve, t2_start=0.9, t2_end=0.1).times(0)
        ]
        for curve in ("linear", "square", "cosine")
    }
    assert t2["linear"][50] == pytest.approx(500, abs=3)
    assert t2["square"][50] == pytest.approx(300, abs=3)
    assert t2["cosine"][50] == pytest.approx(500, abs=3)
    assert t2["cosine"][10] > t2["linear"][10] > t2["square"][10]


def test_random_curve_depends_on_seed_and_iteration_alone():
    plan = get_plan("stable-zero123-gaussians", t2_curve="random", iterations=40)
    first, again, other = (tuple(t.t2 for t in plan.times(seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert 201 <= min(first) < max(first) <= 901
    longer = dataclasses.replace(plan, iterations=60).times(3)
    assert tuple(t.t2 for t in longer[:40]) == first


def test_square_rule_for_t1():
    plan = get_plan("mvdream-nerf")
    for times in plan.times(0):
        assert times.t1 in plan.grid() and times.t2 in plan.grid()
        assert 0 <= times.t2**2 / 1000 - times.t1 + 1 <= 1000 / plan.discretization + 1e-9


def test_forward_processes_cost_what_they_run():
    hybrid, noise, invert = (get_plan("embedded", forward=f).times(0) for f in ("hybrid", "noise", "invert"))
    for h, n, i in zip(hybrid, noise, invert, strict=True):
        assert h.t2 == n.t2 == i.t2
        assert (n.t1, n.inversion) == (n.t2, 0)
        assert (i.t1, i.inversion) == (0, i.sampling)
        assert 0 < h.t1 < h.t2 and h.calls == h.inversion + h.sampling


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": -1},
        {"iterations": 2.5},
        {"iterations": True},
        {"steps": 0},
        {"init_steps": 0},
        {"views": 0},
        {"views": "4"},
        {"elevation_range": (10, -10)},
        {"elevation_range": (-90, 0)},
        {"elevation_range": 5},
        {"elevation_limits": (30, -30)},
        {"lr_networks": -1},
        {"radius": 0},
        {"fov_y": 180},
        {"fov_y": 0},
        {"image_size": 0},
        {"t2_start": 0.3, "t2_end": 0.5},
        {"t2_start": 1.1},
        {"t2_end": 0.0},
        {"t2_end": float("nan")},
        {"t2_curve": "steep"},
        {"t1_rule": "cube"},
        {"t1_ratio": 1.2},
        {"discretization": 0},
        {"discretization": 1000},
        {"eta": 1.5},
        {"guidance_scale": -1},
        {"forward": "backward"},
        {"sampler": "magic"},
        {"loss": "l3"},
        {"loss_space": "time"},
        {"ref_color_weight": -0.1},
        {"background": "black"},
        {"resolutions": (128, 64)},
        {"resolutions": (0, 64)},
        {"resolutions": (True, 64)},
        {"resolutions": (1.5, 64)},
        {"resolutions": 64},
        {"elevation_range": (0, 90)},
        {"elevation_range": (False, 10)},
        {"elevation_range": (0, 10, 20)},
        {"elevation_range": (0, "10")},
        {"representation": "voxels"},
    ],
    ids=str,
)
def test_impossible_plans_are_refused(change):
    with pytest.raises(InputError) as caught:
        get_plan("embedded", **change)
    assert any(key.split("_")[0] in str(caught.value) for key in change) and " of the plan must be " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reference", "expected"),
    [
        ("stable-zero123-gaussians", 0, (-30, 30)),
        ("stable-zero123-gaussians", 15, (-30, 45)),
        ("stable-zero123-gaussians", 30, (-30, 60)),
        ("stable-zero123-gaussians", 45, (-30, 75)),
        ("stable-zero123-gaussians", 60, (-30, 80)),
        ("stable-zero123-gaussians", -20, (-50, 30)),
        ("imagedream-gaussians", 30, (0, 35)),
        ("stable-zero123-nerf", 5, (-10, 80)),
        ("embedded", 25, (-10, 30)),
    ],
)
def test_elevations_follow_the_references_as_released(name, reference, expected):
    """main.py of the released code, min_ver and max_ver, with the signs turned: positive above here."""
    plan = PRESETS[name]
    assert plan.elevations(reference) == expected
    reference_picture = Reference(torch.ones(8, 8, 3), torch.ones(8, 8, 1), reference)
    seen = [iteration_cameras(plan, 0, k, 8, reference_elevation(reference_picture)).elevation for k in range(60)]
    low, high = float(torch.cat(seen).min()), float(torch.cat(seen).max())
    assert expected[0] <= low < expected[0] + 3 and expected[1] - 3 < high <= expected[1]


def test_a_plans_own_range_is_never_cut():
    assert get_plan("embedded", elevation_range=(-40, 60)).elevations(10) == (-40, 60)


def test_cameras_of_nerfs_are_those_published_for_threestudio():
    """configs/stable-zero123.yaml; imagedream-sd21-shading.yaml; mvdream-sd21.yaml (ranges relative to 1 / tan(fov / 2))."""
    zero123, imagedream, mvdream = (PRESETS[f"{name}-nerf"] for name in ("stable-zero123", "imagedream", "mvdream"))
    assert (zero123.radius, zero123.fov_y, zero123.elevation_range) == (3.8, 20.0, (-10.0, 80.0))
    for plan, low, high, elevations in ((imagedream, 0.6, 0.75, (0, 5)), (mvdream, 0.8, 1.0, (0, 30))):
        assert low < plan.radius * math.tan(math.radians(plan.fov_y / 2)) < high and plan.elevation_range == elevations


def test_unknown_names_and_fields_are_listed():
    with pytest.raises(InputError, match="imagedream-gaussians"):
        get_plan("imagedreams")
    with pytest.raises(InputError, match="'cfg'.*guidance"):
        get_plan("embedded", cfg=3.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"radius": 0.0}, "radius of the plan must be positive, got 0.0"),
        ({"fov_y": 180.0}, "fov_y of the plan must be between 0 and 180 degrees, got 180.0"),
        ({"t2_start": 0.3, "t2_end": 0.5}, "t2_end of the plan must be positive and at most t2_start = 0.3, got 0.5"),
        ({"elevation_range": 5}, "elevation_range of the plan must be (lowest, highest) within -90..90, got 5"),
        ({"elevation_limits": (3, 2)}, "elevation_limits of the plan must be (lowest, highest) within -90..90, got (3, 2)"),
        ({"resolutions": (9, 8)}, "resolutions of the plan must be a growing list of sizes in pixels, got (9, 8)"),
        (
            {"representation": "nerf", "ref_paint_weight": 1.0},
            "ref_paint_weight of the plan must be 0 for a NeRF, whose colours and shape are one, got 1.0",
        ),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(change, expected):
    with pytest.raises(InputError) as caught:
        SIRPlan("x", **change)
    assert str(caught.value) == f"The setting {expected}."
    with pytest.raises(InputError, match=r"^The setting views of the plan must be .*got 0"):
        SIRPlan("x", views=0)


def test_plans_of_earlier_versions_are_read():
    plan = get_plan("imagedream-gaussians", guidance_scale=2.5, elevation_limits=(-50.0, 50.0))
    values = dataclasses.asdict(plan)
    assert SIRPlan.from_json(values) == plan
    old = {name: value for name, value in values.items() if name not in ("guidance_scale", "elevation_limits")} | {
        "guidance": 4.0
    }
    read = SIRPlan.from_json(old)
    assert read == dataclasses.replace(plan, guidance_scale=4.0, elevation_limits=plan.elevation_range)
    assert old["guidance"] == 4.0, "what was given stays as it was"
    with pytest.raises(TypeError):
        SIRPlan.from_json(values | {"speed": 1})
    with pytest.raises(KeyError):
        SIRPlan.from_json({"name": "x"})


def test_the_smallest_sizes_and_the_widest_ranges_are_possible():
    plan = get_plan(
        "embedded", resolutions=[1, 1, 2], elevation_range=(-89.9, 89.9), t2_start=1.0, t2_end=1.0, views=1, fov_y=0.5
    )
    assert plan.resolutions == (1, 1, 2) and plan.elevation_range == (-89.9, 89.9)
    assert get_plan("embedded", elevation_range=[5, 5]).elevation_range == (5, 5)


def test_plans_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["embedded"].views = 8
    assert get_plan("embedded", elevation_range=[0, 20]).elevation_range == (0, 20)


def test_t1_of_trailing_times_is_the_share_of_t2_on_the_grid():
    plan = SIRPlan("x", discretization=10, spacing="trailing", t2_start=0.999, t2_end=0.5, iterations=3)
    assert [(times.t2, times.t1) for times in plan.times(0)] == [(899, 499), (799, 399), (599, 299)]
