"""What the loop pair and the stages refuse, and how an interrupted loop is kept and continued, on the stand-in host."""

from __future__ import annotations

import asyncio
import gc
import importlib
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers.node_graphs import K, assert_same, keep, kept, workflow
from microdreamer_core.io.state import load_state

KEPT = "output/microdreamer/interrupted.state.safetensors"


def stages() -> dict:
    """The stages loop: 6 field, 7 start, 8 cameras, 9 render, 10 forward, 11 refine, 12 reconstruct, 14 end."""
    graph = keep(workflow("01_image_to_3d_stages", 14), "14")
    del graph["13"]
    return graph


def run(host, name, **inputs):
    with torch.inference_mode():
        return host.nodes[f"MicroDreamer{name}"].execute(**inputs).args


@pytest.fixture(scope="module")
def whole(host):
    return kept(host, stages())


@pytest.fixture(scope="module")
def first(host):
    """The outputs of the nodes of the first pass, by node."""
    return stand_in.Executor(host).run({**keep(stages(), "12"), "14": {"class_type": "Keep", "inputs": {"value": 0}}})


# --- wires -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node, name, link, message",
    [
        (
            "12",
            "field",
            ["6", 0],
            "'field' of Reconstruct Steps .node 12. comes from New Gaussians .node 6., which lies outside",
        ),
        (
            "8",
            "field",
            ["6", 0],
            "'cameras' of Hybrid Forward .node 10. comes from SIR Sample Cameras .node 8.*the field of that node",
        ),
        (
            "9",
            "field",
            ["6", 0],
            "'field' of SIR Render Views .node 9. comes from New Gaussians .node 6.*link it to SIR Loop Start",
        ),
        (
            "14",
            "field",
            ["6", 0],
            "The flow comes from SIR Loop Start .node 7., but the field does not depend on it .comes from",
        ),
        ("14", "field", ["7", 1], "The field comes straight from SIR Loop Start"),
        ("14", "flow", ["other", 0], "flow comes from SIR Loop Start .node other., but .* .depends on SIR Loop Start .node 7."),
        ("12", "field", ["other", 1], "'field' of Reconstruct Steps .node 12. comes from SIR Loop Start .node other."),
    ],
)
def test_wires_that_cannot_be_right_are_named(host, node, name, link, message):
    graph = stages()
    graph["other"] = {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["6", 0], "count": 2}}
    graph[node]["inputs"][name] = link
    executor = stand_in.Executor(host)
    with pytest.raises(ValueError, match=f"SIR Loop End .node 14.: .*{message}"):
        executor.run(graph)
    assert "12" not in executor.ran


def test_a_start_inside_needs_its_own_end_inside(host):
    graph = stages()
    graph["inner"] = {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["7", 1], "count": 2}}
    graph["12"]["inputs"]["field"] = ["inner", 1]
    with pytest.raises(ValueError, match=r"SIR Loop Start \(node inner\) lies between start and end .* its own SIR Loop End"):
        kept(host, graph)


def test_a_pass_that_learns_nothing_is_refused(host):
    graph = stages()
    graph["same"] = {"class_type": "Many", "inputs": {"field": ["7", 1], "index": 0, "only": 1}}
    graph["14"]["inputs"] = {"flow": ["7", 0], "field": ["same", 0]}
    with pytest.raises(ValueError, match="SIR Loop End: Pass 0 of the loop gave back the field that it got"):
        kept(host, graph)
    graph["14"]["inputs"]["stop"] = True
    assert kept(host, graph).k is None, "a pass that stops the loop may"


@pytest.mark.parametrize(
    "wired, message",
    [
        ({"flow": ["7", 0]}, r"SIR Loop End \(node 14\) leads to no node that shows or saves"),
        (None, r"SIR Loop Start \(node 7\) is linked to no SIR Loop End"),
    ],
)
def test_a_loop_that_ends_nowhere_is_warned_of(host, wired, message):
    graph = keep(stages(), "12")
    if wired is None:
        del graph["14"]
    host.notices.clear()
    assert kept(host, graph).k == -1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(*host.notices)
    host.notices.clear()
    kept(host, stages())
    assert host.notices == []


def test_single_stages_refuse_what_belongs_to_another_iteration(host, first):
    field, cameras, images, latent, refined = first["7"][1], first["8"][0], first["9"][0], first["10"][0], first["11"][0]
    after = first["12"][0]
    later = run(host, "SampleCameras", field=after, plan=cameras.plan, condition=cameras.condition)[0]
    with pytest.raises(ValueError, match=r"Reconstruct Steps \(iteration 0\): The field \(seed 0, before the initialisation\)"):
        run(host, "ReconstructSteps", field=field, cameras=later, images=refined)
    with pytest.raises(ValueError, match=r"Reconstruct Steps \(iteration -1\): The field \(seed 5, before"):
        run(host, "ReconstructSteps", field=replace(field, seed=5), cameras=cameras, images=refined)
    for name, inputs in (
        ("HybridForward", {"images": images}),
        ("DDIMRefine", {"latent": latent}),
        ("ReconstructSteps", {"field": after, "images": refined}),
    ):
        with pytest.raises(ValueError, match=r"\(iteration 0\): The \w+ were made with other cameras"):
            run(host, name, cameras=later, **inputs)
    strange = run(host, "RenderViews", field=field, cameras=later)[0]
    with pytest.raises(ValueError, match=r"The images show another field \(seed 0, before the initialisation\)"):
        run(host, "HybridForward", cameras=later, images=strange)
    assert run(host, "HybridForward", cameras=later, images=strange * 1)[0], "images of other nodes are the user's own affair"
    # one iteration may fit twice, and look at what it has made
    twice = run(host, "ReconstructSteps", field=after, cameras=cameras, images=refined, steps=1)[0]
    assert twice.k == after.k and run(
        host, "HybridForward", cameras=cameras, images=run(host, "RenderViews", field=twice, cameras=cameras)[0]
    )


def test_a_layout_is_blamed_for_its_own_number_of_cameras(host, first):
    condition = first["4"][0]
    joint = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.diffusion.protocol").ViewCount(4)
    diffusion = SimpleNamespace(view_count=joint, image_size=32, latent_shape=(1, 2, 2), device="cpu")
    inputs = {"field": first["7"][1], "plan": first["8"][0].plan, "condition": replace(condition, diffusion=diffusion)}
    with pytest.raises(ValueError, match="Camera Layout: .* a multiple of 4 views, got 6; change 'views' or 'poses' here"):
        run(host, "CameraLayout", views=6, **inputs)
    layout = run(host, "CameraLayout", views=6, **{**inputs, "condition": None})[0]
    with pytest.raises(ValueError, match="a multiple of 4 views, got 6; use as many cameras as the plan has views, 4"):
        run(host, "DDIMRefine", cameras=layout, latent={"samples": torch.zeros(6, 1, 2, 2)}, condition=inputs["condition"])
    assert len(run(host, "CameraLayout", views=8, **inputs)[0].cameras) == 8


def test_a_further_loop_restarts_the_count(host, whole):
    node = type("Bound", (host.nodes["MicroDreamerLoopStart"],), {"hidden": None})
    flow, again, _ = node.execute(field=whole, count=0, restart=True).args
    assert (again.k, again.field, again.seed, flow.initial.k) == (-1, whole.field, whole.seed, -1)
    assert node.execute(field=whole, count=0).args[1].k == K - 1
    new = replace(whole, k=None)
    assert node.execute(field=new, count=0, restart=True).args[1].k is None, "a new field gets its initialisation"


# --- links and sizes -------------------------------------------------------------------------------------------------


def test_the_condition_travels_in_the_cameras(host, whole):
    graph = stages()
    for node in ("10", "11", "12"):
        assert "condition" not in graph[node]["inputs"]
        graph[node]["inputs"]["condition"] = graph["8"]["inputs"]["condition"]  # as in graphs of earlier versions
    assert_same(kept(host, graph), whole)


def test_a_linked_condition_takes_the_place_of_the_cameras_one(host, first):
    cameras, latent = first["8"][0], first["10"][0]
    other = replace(cameras.condition, diffusion=SimpleNamespace(latent_shape=(9, 9, 9), device="cpu"))
    assert run(host, "DDIMRefine", cameras=cameras, latent=latent)
    with pytest.raises(ValueError, match=r"must have shape \[4, 9, 9, 9\]"):
        run(host, "DDIMRefine", cameras=cameras, latent=latent, condition=other)
    with pytest.raises(ValueError, match="There is no conditioned model; link 'condition' here"):
        run(host, "DDIMRefine", cameras=replace(cameras, condition=None), latent=latent)


def test_larger_targets_are_fitted_at_their_size_and_later_renders_are_as_large(host, first):
    field, cameras, refined = first["7"][1], first["8"][0], first["11"][0]
    larger = refined.repeat_interleave(2, 1).repeat_interleave(2, 2)
    after, _, sheet, _ = run(host, "ReconstructSteps", field=field, cameras=cameras, images=larger)
    assert (cameras.cameras.width, sheet.shape) == (32, (1, 128, 4 * 64, 3))
    usual, *_ = run(host, "ReconstructSteps", field=field, cameras=cameras, images=refined)
    assert float(after.field.pixel) == pytest.approx(float(usual.field.pixel) / 2), "what the low-pass filter is measured in"
    for name in ("SampleCameras", "CameraLayout"):
        inputs = {"plan": cameras.plan, "condition": cameras.condition}
        sizes = [run(host, name, field=state, **inputs)[0].cameras.width for state in (usual, after)]
        assert sizes == [32, 64], name
    later = run(host, "SampleCameras", field=after, **inputs)[0]
    images = run(host, "RenderViews", field=after, cameras=later)[0]
    latent = run(host, "HybridForward", cameras=later, images=images)[0]
    again = run(host, "DDIMRefine", cameras=later, latent=latent)[0]
    assert (images.shape[1], again.shape[1]) == (64, 32)
    assert run(host, "ReconstructSteps", field=after, cameras=later, images=again)[2].shape[1] == 128


def test_targets_may_have_any_shape_and_alpha_but_must_be_one_a_camera(host, first):
    field, cameras, refined = first["7"][1], first["8"][0], first["11"][0]
    wide = torch.nn.functional.pad(refined, (0, 0, 8, 8), value=1.0)
    after, _, sheet, _ = run(host, "ReconstructSteps", field=field, cameras=cameras, images=wide)
    assert sheet.shape == (1, 64, 4 * 48, 3) and after.k == -1
    clear = torch.cat([torch.zeros_like(refined), torch.zeros_like(refined[..., :1])], -1)
    sheet = run(host, "ReconstructSteps", field=field, cameras=cameras, images=clear)[2]
    assert bool((sheet[0, 32:] == 1).all()), "fully transparent targets are white"
    with pytest.raises(ValueError, match=r"must have shape \[4, height, width\], one for each camera, got \[3, 32, 32\]"):
        run(host, "ReconstructSteps", field=field, cameras=cameras, images=refined[:3])
    latent = replace(cameras, plan=replace(cameras.plan, loss_space="latent"))
    with pytest.raises(ValueError, match=r"loss is latent, so images of another size .* \(48x32, not 32x32\)"):
        run(host, "ReconstructSteps", field=field, cameras=latent, images=wide, latent=first["10"][0])


def test_a_batch_of_pictures_is_a_list_of_references(host, first):
    model, image = first["1"][0], first["2"][0]
    batch = torch.cat([image, image.transpose(1, 2)])
    mask = torch.cat([first["2"][1], first["2"][1].transpose(1, 2)])
    images, masks = run(host, "PrepareReference", model=model, image=batch, mask=mask)
    assert len(images) == len(masks) == 2 and torch.equal(images[0], first["3"][0]) and not torch.equal(images[0], images[1])
    with pytest.raises(ValueError, match="There are 2 pictures and 3 masks"):
        run(host, "PrepareReference", model=model, image=batch, mask=torch.cat([mask, mask[:1]]))
    with pytest.raises(ValueError, match="Condition on Image: One reference .* got a batch of 2 and 2; use Prepare Reference"):
        run(host, "ConditionOnImage", model=model, image=torch.cat(images), mask=torch.cat(masks))


def test_sigmas_of_a_plan_follow_the_models_noise_levels(host, first):
    condition, plan = first["4"][0], first["8"][0].plan
    levels = condition.diffusion.process.levels
    (sigmas,) = run(host, "PlanSigmas", plan=plan, condition=condition, scheduler="simple")
    assert len(sigmas) == plan.discretization + 1 and float(sigmas[-1]) == 0
    torch.testing.assert_close(sigmas[0], levels[-1].float())
    (below,) = run(host, "PlanSigmas", plan=plan, condition=condition, scheduler="simple", steps=10, t2=450)
    torch.testing.assert_close(below[0], levels[450].float())
    assert bool((below.diff() < 0).all()) and len(below) < 11
    with pytest.raises(ValueError, match="Sigmas of Plan: There is no scheduler 'none'; choose one of simple"):
        run(host, "PlanSigmas", plan=plan, condition=condition, scheduler="none")


# --- interrupts ------------------------------------------------------------------------------------------------------


def interrupted(host, executor, graph, updates: int) -> None:
    """Run a graph and interrupt it after so many progress updates: 5 network calls and 8 or 4 steps a pass."""
    host.progress.clear()
    host.notices.clear()
    host.interrupt_at = updates
    with pytest.raises(stand_in.Interrupted):
        executor.run(graph)


def passes(executor) -> list[str]:
    return [node for node in executor.ran if node.rpartition(".")[2] == "12"]


def test_an_interrupted_loop_is_kept_and_goes_on(host, whole):
    executor, graph = stand_in.Executor(host), stages()
    interrupted(host, executor, graph, 13 + 9 + 3)  # in pass 2
    assert passes(executor) == ["12", "14.1.12"]
    assert "kept in interrupted.state.safetensors, for Load State" in host.notices[-1]
    saved = load_state(host.base / KEPT, "cpu")
    assert saved.extra["k"] == 0 and {"plan", "model", "reference"} <= set(saved.extra), "what 'microdreamer resume' needs"
    executor.ran.clear()
    host.notices.clear()
    assert_same(executor.run(graph)["keep"][0], whole)
    assert passes(executor) == ["14.2.12"] and host.notices == ["The loop goes on after pass 1 of the interrupted run."]
    graph["15"] = {"class_type": "MicroDreamerLoadState", "inputs": {"file": KEPT}}
    graph["7"] = {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["15", 0], "count": 5}}
    assert_same(kept(host, graph), whole)


def test_an_interrupted_loop_is_not_taken_for_another(host, whole):
    executor, graph = stand_in.Executor(host), stages()
    interrupted(host, executor, graph, 13 + 9 + 3)
    again = stand_in.Executor(host)  # the same graph, but nothing is in the cache: a file may have changed
    assert_same(again.run(graph)["keep"][0], whole)
    assert len(passes(again)) == K + 1
    executor = stand_in.Executor(host)
    interrupted(host, executor, graph, 13 + 9 + 3)
    graph["5"]["inputs"]["t2_end"] = 0.1  # and here all is in the cache, as if another node passed the first result on
    executor.ran.clear()
    executor.run(graph)
    assert passes(executor) == ["14.1.12", "14.2.12"]


def test_a_stop_from_elsewhere_is_never_trusted(host):
    graph = stages()
    graph["other"] = {"class_type": "Stop", "inputs": {}}
    host.nodes["Stop"] = type("Stop", (), {"OUTPUT_NODE": False, "execute": lambda: stand_in.NodeOutput(False)})
    graph["14"]["inputs"]["stop"] = ["other", 0]
    graph["7"]["inputs"]["count"] = K + 1
    executor = stand_in.Executor(host)
    interrupted(host, executor, graph, 13 + 9 + 3)
    executor.ran.clear()
    executor.run(graph)
    assert passes(executor) == ["14.1.12", "14.2.12"]


def test_what_is_kept_for_a_loop_is_let_go_when_another_has_run(host):
    loops = importlib.import_module(f"{stand_in.PACK}.nodes.interrupted")._loops
    executor, graph = stand_in.Executor(host), stages()
    interrupted(host, executor, graph, 13 + 9 + 3)
    (left,) = loops.left.values()
    field = weakref.ref(left.box.value.field)
    del left, executor
    kept(host, stages())
    gc.collect()
    assert field() is None and loops.left == loops.running == {} and loops.latest is None


def test_the_end_of_a_prompt_is_noticed_where_there_is_one(host):
    compat, ended = importlib.import_module(f"{stand_in.PACK}.nodes.compat"), []
    compat.at_prompt_end(lambda: ended.append("without an event loop"))

    async def prompt(fails):
        compat.at_prompt_end(lambda: ended.append(fails))
        assert fails not in ended
        if fails:
            raise stand_in.Interrupted

    asyncio.run(prompt(False))
    with pytest.raises(stand_in.Interrupted):
        asyncio.run(prompt(True))
    assert ended == [False, True]
