"""What happens on the way: loops, interrupts, errors."""

from __future__ import annotations

import copy

import pytest

from helpers import workflow_graphs as graphs

GENERATE, STAGES = "00_hello", "01_image_to_3d_stages"
LOOP = {
    "1": {"class_type": "MicroDreamerLoadModel", "inputs": {"checkpoint": "embedded"}},
    "2": {
        "class_type": "MicroDreamerNewGaussians",
        "inputs": {"model": ["1", 0], "seed": 0, "num_points": 0, "renderer": "auto"},
    },
    "3": {"class_type": "MicroDreamerLoopStart", "inputs": {"field": ["2", 0], "count": 3}},
    "8": {"class_type": "MicroDreamerCleanGaussians", "inputs": {"field": ["3", 1]}},
    "9": {"class_type": "MicroDreamerLoopEnd", "inputs": {"flow": ["3", 0], "field": ["8", 0]}},
    "10": {"class_type": "MicroDreamerSaveSplat", "inputs": {"field": ["9", 0], "filename_prefix": "loop"}},
}
"""A loop with next to nothing to do."""


def loop(count: int, seed: int, **more: dict) -> dict:
    """A fresh copy, told apart from others by its seed, so that nothing comes from the cache."""
    graph = {**copy.deepcopy(LOOP), **copy.deepcopy(more)}
    graph["2"]["inputs"]["seed"] = seed
    graph["3"]["inputs"]["count"] = count
    return graph


def entry(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def fresh_stages(seed: int) -> dict:
    return graphs.with_input(graphs.small(graphs.load(STAGES)), "MicroDreamerNewGaussians", seed=seed)


def only(graph: dict, kind: str) -> str:
    (node,) = graphs.of_class(graph, kind)
    return node


# --- loops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_loop_runs_its_body_as_often_as_asked(server, count):
    run = server.run(loop(count, 100 + count))
    assert run.status == "success", run.error
    assert run.ran.count("8") == count


def test_a_loop_within_a_loop(server):
    inner = {
        "4": entry("MicroDreamerLoopStart", field=["3", 1], count=3),
        "8": entry("MicroDreamerCleanGaussians", field=["4", 1]),
        "5": entry("MicroDreamerLoopEnd", flow=["4", 0], field=["8", 0]),
        "9": entry("MicroDreamerLoopEnd", flow=["3", 0], field=["5", 0]),
    }
    run = server.run(loop(2, 110, **inner))
    assert run.status == "success", run.error
    assert run.ran.count("8") == 2 * 3


def test_stop_ends_a_loop_early(server):
    graph = fresh_stages(120)
    graph[only(graph, "MicroDreamerLoopStart")]["inputs"]["count"] = 50
    run = server.run(graph)
    assert run.status == "success", run.error
    assert run.ran.count(only(graph, "MicroDreamerReconstructSteps")) == graphs.ITERATIONS + 1


def test_a_preview_in_the_body_shows_every_pass(server):
    graph = fresh_stages(121)
    run = server.run(graph)
    body = only(graph, "MicroDreamerReconstructSteps")
    (preview,) = (n for n in graphs.of_class(graph, "PreviewImage") if graph[n]["inputs"]["images"][0] == body)
    shown = [data for data in run.of("executed") if data["display_node"] == preview]
    assert len(shown) == graphs.ITERATIONS + 1


def test_what_a_pass_costs(server, report):
    passes, chain = 30, ["3", "4", "5", "6", "7", "8"]
    body = {
        node: entry("MicroDreamerCleanGaussians", field=[before, 1 if before == "3" else 0])
        for before, node in zip(chain, chain[1:], strict=False)
    }
    body["11"] = entry("MicroDreamerCleanGaussians", field=["8", 0])
    body["9"] = entry("MicroDreamerLoopEnd", flow=["3", 0], field=["11", 0])
    server.run(loop(passes, 130, **body))
    before = server.resident_mib()
    run = server.run(loop(passes, 131, **body))
    assert run.status == "success", run.error
    assert sum(node in {*body, "8"} - {"9"} for node in run.ran) == passes * 6
    growth = (server.resident_mib() - before) / passes
    report(f"a pass of a loop of {passes} with 6 nodes: {run.seconds / passes * 1000:.0f} ms, {growth:.2f} MiB more memory")
    # an order of magnitude of slack: this is not a benchmark, it catches costs that grow with the number of passes
    assert run.seconds / passes < 0.6


# --- interrupts ------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_is_kept_and_goes_on_to_the_same_end(server, report):
    graph = graphs.with_input(graphs.small(graphs.load_earlier(GENERATE)), "MicroDreamerGenerate", seed=200)
    generate = only(graph, "MicroDreamerGenerate")
    graph = graphs.upstream(graph, generate)
    graph["save"] = entry("MicroDreamerSaveSplat", field=[generate, 0], filename_prefix="whole")
    graph = graphs.with_input(graph, "MicroDreamerSIRPlan", steps=40)
    asked = []

    def interrupt_at_the_first_preview(event):
        if event.kind == "preview" and not asked:
            asked.append(event.seconds)
            server.interrupt()

    stopped = server.run(graph, interrupt_at_the_first_preview)
    assert stopped.status == "interrupted" and not stopped.files
    report(f"an interrupt is heard after {stopped.seconds - asked[0]:.2f} s")
    kept = "microdreamer/interrupted.state.safetensors"
    assert (server.base / "output" / kept).is_file()
    whole = server.run(graph)
    graph["load"] = entry("MicroDreamerLoadState", file=f"output/{kept}")
    graph[generate]["inputs"]["field"] = ["load", 0]
    resumed = server.run(graph)
    assert whole.status == resumed.status == "success", whole.error + resumed.error
    (first,), (second,) = whole.files, resumed.files
    assert first != second and server.view(first) == server.view(second)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_wrong_file_is_refused_by_name(server):
    graph = loop(0, 300)
    graph["2"] = entry("MicroDreamerLoadState", file="output/none.state.safetensors")
    run = server.run(graph)
    assert run.status == "rejected" and "none.state.safetensors" in run.error


@pytest.mark.parametrize("index, iteration", [(1, -1), ("the pass", 0)])
def test_a_batch_that_does_not_fit_names_node_and_iteration(server, index, iteration):
    graph = fresh_stages(301)
    views, forward = only(graph, "MicroDreamerRenderViews"), only(graph, "MicroDreamerHybridForward")
    first = [only(graph, "MicroDreamerLoopStart"), 2] if index == "the pass" else index
    graph["batch"] = entry("ImageFromBatch", image=[views, 0], batch_index=first, length=64)
    graph[forward]["inputs"]["images"] = ["batch", 0]
    run = server.run(graph)
    assert run.status == "error"
    assert run.error.startswith(f"Hybrid Forward (iteration {iteration}): The pictures must have shape")


def test_after_an_error_the_server_goes_on(server):
    assert server.run(loop(1, 303)).status == "success"


def test_k_0_is_the_initialisation(server):
    graph = graphs.with_input(fresh_stages(304), "MicroDreamerSIRPlan", iterations=0)
    run = server.run(graph)
    assert run.status == "success", run.error
    assert run.ran.count(only(graph, "MicroDreamerReconstructSteps")) == 1
