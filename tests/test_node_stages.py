"""Camera Layout and SDS Steps on the stand-in host."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, replace

import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers import node_graphs
from microdreamer_core.diffusion.graphs import CudaGraphed
from microdreamer_core.sir.sds import SDS_PRESETS, SDSSettings, get_sds


@pytest.fixture(scope="module")
def start(host):
    """What the nodes of a graph have made before the first iteration."""
    graph = node_graphs.keep(node_graphs.workflow("01_image_to_3d_stages", 9), "9")
    results = stand_in.Executor(host).run(graph)
    return {"field": results["6"][0], "plan": results["50"][0], "condition": results["4"][0], "rig": results["8"]}


def run(host, name, **inputs):
    with torch.inference_mode():
        return host.nodes[f"MicroDreamer{name}"].execute(**inputs).args


def test_the_loader_hands_its_options_on_and_leaves_graphs_off(host):
    (loaded,) = run(host, "LoadModel", checkpoint="embedded", low_memory=True)
    assert loaded.options.low_memory and loaded.options.graphs, "what a saved run remembers"
    assert not isinstance(loaded.model.denoise, CudaGraphed), "the host moves the weights as it likes"


def test_the_summary_of_a_plan_says_what_its_times_count(host):
    _, _, said = run(host, "SIRPlan", preset="embedded")
    assert said.endswith("; t2 counts Stable Diffusion's time, noise-to-signal 5.1 to 1.6")
    plan, passes, said = run(host, "SIRPlan", preset="few-step")
    assert passes == 21 and "; 44 network evaluations a view" in said and said.endswith("; t2 counts the model's own time")
    plan, said = run(host, "SIRPlanOptions", plan=plan, clock="paper", poses="words", spacing="leading")
    assert (plan.clock, plan.poses, plan.spacing, plan.discretization) == ("paper", "words", "leading", 4)
    assert said.endswith("noise-to-signal 8.3 to 0.83")


# --- cameras ---------------------------------------------------------------------------------------------------------


def test_sample_cameras_shows_its_rig(start):
    rig, k, t2, picture = start["rig"]
    assert (k, t2, picture.shape) == (-1, 999, (1, 256, 512, 3))
    assert len(rig.cameras) == start["plan"].views


def test_sampled_cameras_follow_the_references_elevation(host, start):
    plan = replace(start["plan"], elevation_limits=(-80.0, 80.0))
    reference = replace(start["condition"].reference, elevation=50.0)
    condition = replace(start["condition"], reference=reference)
    (rig, *_) = run(host, "SampleCameras", field=start["field"], plan=plan, condition=condition)
    usual = start["rig"][0].cameras.elevation
    torch.testing.assert_close(rig.cameras.elevation, -10 + (usual + 10) * 90 / 40)  # -10..30 has become -10..80


def test_a_free_layout_is_for_looking(host, start):
    rig, picture = run(host, "CameraLayout", views=3, elevation=10.0, azimuth=5.0, spread=90.0)
    assert picture.shape == (1, 256, 512, 3)
    assert rig.azimuth.tolist() == [5, 50, 95] and rig.elevation.tolist() == [10] * 3
    assert (rig.fov_y, rig.width, float(rig.radius[0])) == (49.1, 256, 2.0)
    images, mask, *_ = run(host, "RenderViews", field=start["field"], cameras=rig.resize(32))
    assert images.shape == (3, 32, 32, 3) and mask.shape == (3, 32, 32)
    condition, latent = start["condition"], {"samples": torch.zeros(3, 4, 8, 8)}
    with pytest.raises(ValueError, match="Hybrid Forward: These cameras belong to no iteration"):
        run(host, "HybridForward", condition=condition, cameras=rig, images=images)
    with pytest.raises(ValueError, match="DDIM Refine: These cameras belong to no iteration"):
        run(host, "DDIMRefine", condition=condition, cameras=rig, latent=latent)
    with pytest.raises(ValueError, match="Reconstruct Steps: These cameras belong to no iteration"):
        run(host, "ReconstructSteps", field=start["field"], cameras=rig, images=images, condition=condition)


def test_clean_gaussians_lays_the_reference_over(host, start):
    (plain,) = run(host, "CleanGaussians", field=start["field"])
    linked = {"field": start["field"], "condition": start["condition"]}
    (shown,) = run(host, "CleanGaussians", plan=start["plan"], **linked)
    assert len(shown.field) > len(plain.field) and shown.seed == plain.seed
    assert torch.equal(shown.field.parameters.means[: len(plain.field)], plain.field.parameters.means)
    (unpainted,) = run(host, "CleanGaussians", plan=replace(start["plan"], ref_paint_weight=0.0), **linked)
    assert len(unpainted.field) == len(plain.field)
    with pytest.raises(ValueError, match="Clean Gaussians: .*plan"):
        run(host, "CleanGaussians", **linked)


def test_a_layout_of_an_iteration_serves_all_stages(host, start):
    field = replace(start["field"], k=0)
    inputs = {"field": field, "plan": start["plan"], "condition": start["condition"]}
    (sampled, *_), (rig, _) = (
        run(host, "SampleCameras", **inputs),
        run(host, "CameraLayout", poses="0 0\n20 90\n0 180\n-20 270", **inputs),
    )
    assert (rig.k, rig.seed, rig.times, rig.plan) == (sampled.k, sampled.seed, sampled.times, sampled.plan)
    assert rig.cameras.elevation.tolist() == [0, 20, 0, -20] and rig.cameras.azimuth.tolist() == [0, 90, 180, 270]
    assert (rig.cameras.width, rig.cameras.fov_y) == (32, start["plan"].fov_y)
    assert float(rig.cameras.radius[0]) == pytest.approx(start["plan"].radius)
    images, *_ = run(host, "RenderViews", field=field, cameras=rig)
    (latent,) = run(host, "HybridForward", condition=start["condition"], cameras=rig, images=images)
    refined, _ = run(host, "DDIMRefine", condition=start["condition"], cameras=rig, latent=latent)
    after, *_ = run(host, "ReconstructSteps", field=field, cameras=rig, images=refined, condition=start["condition"])
    assert after.k == 1


def test_layouts_that_cannot_be(host, start):
    with pytest.raises(ValueError, match="Camera Layout: Field and plan belong together"):
        run(host, "CameraLayout", field=start["field"])
    with pytest.raises(ValueError, match="Camera Layout: Line 1 of the poses"):
        run(host, "CameraLayout", poses="above")
    with pytest.raises(ValueError, match="Camera Layout: Orbit elevations"):
        run(host, "CameraLayout", poses="90, 0")
    with pytest.raises(ValueError, match="Camera Layout: The plan has 2 iterations and all are done"):
        run(host, "CameraLayout", field=replace(start["field"], k=1), plan=start["plan"])


# --- SDS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["noise", "data", "pixels"])
def test_sds_steps_learn_and_leave_their_input_alone(host, start, form):
    field = start["field"]
    before = {name: tensor.clone() for name, tensor in field.field.to_state()[0].items()}
    host.progress.clear()
    host.previews.clear()
    after, sheet, report = run(
        host, "SDSSteps", field=field, condition=start["condition"], plan=start["plan"], steps=6, form=form, guidance=2.0
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in field.field.to_state()[0].items())
    assert (after.seed, after.k, after.field.step) == (field.seed, -1, field.field.step + 6)
    assert not torch.equal(after.field.parameters.dc, field.field.parameters.dc)
    assert sheet.shape == (1, 32, 32 * start["plan"].views, 3)
    evaluations = int(re.search(r"(\d+) evaluations", report)[1])
    assert evaluations == 6 * 2 * start["plan"].views and report.startswith(f"SDS, form {form}: 6 steps")
    assert len(host.previews) == 6 and host.progress[-1] == (6, 6)


def test_two_sds_nodes_equal_one_long_one(host, start):
    def steps(field, count):
        return run(host, "SDSSteps", field=field, condition=start["condition"], plan=start["plan"], steps=count)[0]

    long, short = steps(start["field"], 6), steps(start["field"], 3)
    assert not torch.equal(long.field.parameters.means, short.field.parameters.means)
    node_graphs.assert_same(steps(short, 3), long)


def test_a_field_with_iterations_keeps_its_count(host, start):
    inputs = {"condition": start["condition"], "plan": start["plan"], "steps": 1}
    assert run(host, "SDSSteps", field=replace(start["field"], k=1), **inputs)[0].k == 1


def test_sds_can_be_interrupted_and_refuses_nonsense(host, start):
    inputs = {name: start[name] for name in ("field", "condition", "plan")}
    host.progress.clear()
    host.interrupt_at = 3
    with pytest.raises(stand_in.Interrupted):
        run(host, "SDSSteps", **inputs, steps=50)
    assert len(host.progress) < 6
    with pytest.raises(ValueError, match="SDS Steps: t_min must not exceed t_max, got 0.9 and 0.1"):
        run(host, "SDSSteps", **inputs, t_min=0.9, t_max=0.1)
    with pytest.raises(ValueError, match="SDS Steps: SDS needs at least 1 step"):
        run(host, "SDSSteps", **inputs, steps=0)
    with pytest.raises(ValueError, match="SDS Steps: The SDS form must be one of"):
        run(host, "SDSSteps", **inputs, form="bogus")


def test_an_sds_preset_fills_what_is_not_given(host, start):
    inputs = {name: start[name] for name in ("field", "condition", "plan")}
    report = run(host, "SDSSteps", **inputs, steps=2, preset="dreamgaussian", guidance=7.0)[2]
    assert "form noise: 2 steps" in report and "t falling within 0.02 to 0.98, guidance 7;" in report
    assert all(f"{name} " in report for name in ("render", "encode", "diffusion", "update"))
    with pytest.raises(ValueError, match="SDS Steps: Unknown SDS preset 'bogus'"):
        run(host, "SDSSteps", **inputs, steps=1, preset="bogus")


@pytest.mark.parametrize("preset", SDS_PRESETS)
def test_absent_old_and_filled_in_sds_widgets_are_all_the_presets(host, preset):
    module = sys.modules[host.nodes["MicroDreamerSDSSteps"].__module__]
    expected = asdict(get_sds(preset, steps=60, report_every=6))
    old = {"form": "pixels", "guidance": 9.0, "t_min": 0.3, "t_max": 0.4, "weight": 2.0, "times": None}
    left_open = {"form": "preset", "guidance": -1, "t_min": -1, "t_max": -1, "weight": -1, "times": "preset"}
    for widgets in ({}, old, left_open, module.preset_widgets()[preset]):
        assert asdict(module.choose_settings(preset, 60, **widgets)) == expected


def test_sds_widgets_that_are_changed_count(host):
    module = sys.modules[host.nodes["MicroDreamerSDSSteps"].__module__]
    changed = {"form": "pixels", "guidance": 9.0, "t_min": 0.3, "t_max": 0.4, "weight": 2.0, "times": "falling"}
    expected = {"form": "pixels", "guidance_scale": 9.0, "t_range": (0.3, 0.4), "weight": 2.0, "times": "falling"}
    own = module.choose_settings("custom", 500, **changed)
    assert asdict(own) == asdict(SDSSettings("custom", 500, **expected))
    late = module.choose_settings("mvdream", 500, **changed)
    usual = get_sds("mvdream", steps=500, report_every=50, rescale=0.0, **expected)
    assert asdict(late) == asdict(usual), "rescale is for the data form"
