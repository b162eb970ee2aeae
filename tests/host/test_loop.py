"""The stages loop on a real server: wires that cannot be right, images of any size, fewer links, interrupt and resume."""

from __future__ import annotations

import copy

import pytest

from helpers import workflow_graphs as graphs

START, END, CAMERAS = "MicroDreamerLoopStart", "MicroDreamerLoopEnd", "MicroDreamerSampleCameras"
RENDER, FORWARD, REFINE = "MicroDreamerRenderViews", "MicroDreamerHybridForward", "MicroDreamerDDIMRefine"
FIT, FIELD = "MicroDreamerReconstructSteps", "MicroDreamerNewGaussians"
KEPT = "microdreamer/interrupted.state.safetensors"


def entry(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def stages(seed: int) -> tuple[dict, dict[str, str]]:
    """The shipped loop alone, small, with a splat of its result; and its nodes' ids by class."""
    graph = graphs.with_input(graphs.small(graphs.load("01_image_to_3d_stages")), FIELD, seed=seed)
    (end,) = graphs.of_class(graph, END)
    graph = graphs.upstream(graph, end)
    graph["save"] = entry("MicroDreamerSaveSplat", field=[end, 0], filename_prefix="stages")
    return graph, {e["class_type"]: node for node, e in graph.items()}


def splat(server, graph: dict, on_event=lambda event: None) -> tuple[bytes, list[str]]:
    """The saved splat, and the nodes that ran."""
    run = server.run(graph, on_event)
    assert run.status == "success", run.error
    (file,) = run.files
    return server.view(file), run.ran


# --- wires -----------------------------------------------------------------------------------------------------------

WRONG = {
    "reconstruct an outer field": (FIT, "field", FIELD, 0, "'field' of Reconstruct Steps .* from New Gaussians .* outside"),
    "cameras of an outer field": (CAMERAS, "field", FIELD, 0, "'cameras' of .* from SIR Sample Cameras .* outside"),
    "renders of an outer field": (RENDER, "field", FIELD, 0, "'field' of SIR Render Views .* from New Gaussians .* outside"),
    "an end from outside": (END, "field", FIELD, 0, "the field does not depend on it .comes from New Gaussians"),
    "nothing in between": (END, "field", START, 1, "straight from SIR Loop Start"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_wire_is_refused_before_anything_is_learned(server, case):
    kind, name, source, output, message = WRONG[case]
    graph, ids = stages(400)
    graph[ids[kind]]["inputs"][name] = [ids[source], output]
    run = server.run(graph)
    assert run.status == "error" and FIT not in (graph[node]["class_type"] for node in run.ran if node in graph)
    with pytest.raises(AssertionError, match=f"SIR Loop End .node {ids[END]}.: .*{message}"):
        raise AssertionError(run.error)


def test_the_flow_of_another_start_is_refused(server):
    graph, ids = stages(401)
    graph["other"] = entry(START, field=[ids[FIELD], 0], count=2)
    graph[ids[END]]["inputs"]["flow"] = ["other", 0]
    run = server.run(graph)
    assert run.status == "error" and f"depends on SIR Loop Start (node {ids[START]})" in run.error


def test_cameras_of_another_pass_are_refused_in_a_single_stage(server):
    graph, ids = stages(402)
    graph["other"] = copy.deepcopy(graph[ids[CAMERAS]])
    graph["other"]["inputs"]["field"] = [ids[FIELD], 0]
    graph[ids[FORWARD]]["inputs"]["cameras"] = ["other", 0]
    run = server.run(graph)
    assert run.status == "error" and "'cameras' of Hybrid Forward" in run.error and "(node other)" in run.error


def test_a_loop_that_ends_nowhere_is_warned_of(server):
    graph, ids = stages(403)
    graph["save"]["inputs"]["field"] = [ids[FIT], 0]
    assert server.run(graph).status == "success"
    assert f"SIR Loop End (node {ids[END]}) leads to no node that shows or saves something" in server.log()


def test_a_second_loop_counts_from_0_when_asked_to(server):
    graph, ids = stages(404)
    renamed = {ids[kind]: f"second_{ids[kind]}" for kind in (START, CAMERAS, RENDER, FORWARD, REFINE, FIT, END)}
    for node, new in renamed.items():
        graph[new] = copy.deepcopy(graph[node])
        links = graph[new]["inputs"]
        links.update({n: [renamed[v[0]], v[1]] for n, v in links.items() if graphs.is_link(v) and v[0] in renamed})
    start, fit = (graph[f"second_{ids[kind]}"]["inputs"] for kind in (START, FIT))
    start["field"], graph["save"]["inputs"]["field"] = [ids[END], 0], [f"second_{ids[END]}", 0]
    refused = server.run(graph)
    assert refused.status == "error" and "set 'restart' of its SIR Loop Start" in refused.error
    start["restart"] = True
    assert splat(server, graph)[1].count(f"second_{ids[FIT]}") == graphs.ITERATIONS
    assert fit["field"] == [f"second_{ids[START]}", 1]


# --- links and sizes -------------------------------------------------------------------------------------------------


def test_stages_need_no_link_to_the_condition(server):
    graph, ids = stages(410)
    expected, _ = splat(server, graph)
    for kind in (FORWARD, REFINE, FIT):
        graph[ids[kind]]["inputs"]["condition"] = graph[ids[CAMERAS]]["inputs"]["condition"]  # as earlier graphs have it
    assert splat(server, graph)[0] == expected
    for kind in (FORWARD, REFINE, FIT):
        del graph[ids[kind]]["inputs"]["condition"]
    del graph[ids[CAMERAS]]["inputs"]["condition"]
    assert server.run(graph).status == "rejected", "the one link that is needed"


@pytest.mark.parametrize(
    "before, size",
    [(FIT, (128, 128)), (FORWARD, (256, 256)), (FIT, (96, 64)), (FORWARD, (48, 80))],
    ids=["larger targets", "larger renders", "wide targets", "tall renders"],
)
def test_pictures_between_the_stages_may_have_any_size(server, before, size):
    graph, ids = stages(411)
    usual, _ = splat(server, graph)
    width, height = size
    scale = entry("ImageScale", upscale_method="lanczos", width=width, height=height, crop="disabled")
    scale["inputs"]["image"] = graph[ids[before]]["inputs"]["images"]
    graph |= {"scale": scale}
    graph[ids[before]]["inputs"]["images"] = ["scale", 0]
    changed, ran = splat(server, graph)
    assert ran.count(ids[FIT]) == graphs.ITERATIONS + 1 and changed != usual


def test_the_hosts_schedulers_work_on_our_models(server):
    graph, ids = stages(413)
    usual, _ = splat(server, graph)
    cameras = graph[ids[CAMERAS]]["inputs"]
    graph["sigmas"] = entry("MicroDreamerPlanSigmas", scheduler="beta", steps=6)
    graph["sigmas"]["inputs"] |= {name: cameras[name] for name in ("plan", "condition")}
    graph["sampler"] = entry("KSamplerSelect", sampler_name="dpmpp_2m")
    graph[ids[REFINE]]["inputs"] |= {"sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    other, ran = splat(server, graph)
    assert other != usual and ran.count("sigmas") == 1
    graph["sigmas"]["inputs"]["t2"] = [ids[CAMERAS], 2]
    assert splat(server, graph)[0] == other, "DDIM Refine cuts at t2 by itself"


def test_a_batch_of_pictures_is_one_object_each(server):
    graph = graphs.with_input(graphs.small(graphs.load_earlier("00_hello")), "MicroDreamerGenerate", seed=412)
    (generate,) = graphs.of_class(graph, "MicroDreamerGenerate")
    (prepare,) = graphs.of_class(graph, "MicroDreamerPrepareReference")
    graph = graphs.upstream(graph, generate)
    first, mask = (graph[prepare]["inputs"][name] for name in ("image", "mask"))
    graph["batch"] = entry("ImageBatch", image1=first, image2=["other", 0])
    graph["other"] = entry("ImageInvert", image=first)
    graph[prepare]["inputs"] |= {"image": ["batch", 0], "mask": mask}
    graph["save"] = entry("MicroDreamerSaveSplat", field=[generate, 0], filename_prefix="batch")
    run = server.run(graph)
    assert run.status == "success", run.error
    one, two = run.files
    assert server.view(one) != server.view(two)


# --- interrupts ------------------------------------------------------------------------------------------------------


def interrupted(server, graph: dict, node: str, at: int) -> None:
    """Run a graph and interrupt it when a node begins for the ``at``-th time."""
    begun = []

    def watch(event):
        if event.kind == "executing" and event.data.get("display_node") == node:
            begun.append(node)
            if len(begun) == at:
                server.interrupt()

    assert server.run(graph, watch).status == "interrupted"


def test_an_interrupted_loop_goes_on_to_the_same_end(server, report):
    graph, ids = stages(420)
    graph = graphs.with_input(graph, "MicroDreamerSIRPlan", iterations=5, steps=60)
    whole, ran = splat(server, graph)
    assert ran.count(ids[FIT]) == 6
    graph = graphs.with_input(graph, FIELD, seed=421)
    interrupted(server, graph, ids[FIT], 4)
    assert (server.base / "output" / KEPT).is_file()
    assert f"output/{KEPT}" in str(server.json("/object_info/MicroDreamerLoadState"))
    assert "Its last finished pass is kept in interrupted.state.safetensors" in server.log()
    interrupted(server, graph, ids[FIT], 2)  # and again: it begins pass 3, then 4
    resumed, ran = splat(server, graph)
    assert ran.count(ids[FIT]) == 2, ran
    report(f"a loop of 6 passes, interrupted in passes 3 and 4: {ran.count(ids[FIT])} passes in the third run")
    # the file goes on to the same end, too
    graph["load"] = entry("MicroDreamerLoadState", file=f"output/{KEPT}")
    graph[ids[START]]["inputs"]["field"] = ["load", 0]
    from_file, ran = splat(server, graph)
    assert from_file == resumed and ran.count(ids[FIT]) == 2
    # and so does a run that nothing has interrupted: by another seed, and back, past the cache
    graph[ids[START]]["inputs"]["field"] = [ids[FIELD], 0]
    again, _ = splat(server, graphs.with_input(graph, FIELD, seed=420))
    assert again == whole
    uninterrupted, ran = splat(server, graph)
    assert uninterrupted == resumed and ran.count(ids[FIT]) >= 5


@pytest.mark.parametrize(
    "kind, inputs",
    [(FIELD, {"seed": 431}), ("MicroDreamerSIRPlan", {"t2_end": 0.1}), (FIT, {"steps": 3}), (START, {"count": 5})],
)
def test_a_changed_loop_starts_again(server, kind, inputs):
    graph, ids = stages(430)
    interrupted(server, graph, ids[FIT], 3)
    fresh, ran = splat(server, graphs.with_input(graph, kind, **inputs))
    assert ran.count(ids[FIT]) >= graphs.ITERATIONS
    server.post("/free", {"unload_models": False, "free_memory": True})
    assert splat(server, graphs.with_input(graph, kind, **inputs))[0] == fresh
