"""The workflows for models of today, in the real server on tiny random ones of the same classes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers import workflow_graphs as graphs
from helpers.comfy_server import Server
from helpers.tiny_loaders import LOADERS

PACK = Path(__file__).resolve().parents[1] / "helpers" / "tiny_loaders"
WRITTEN = {
    "14_any_checkpoint_refines_a_splat": {".ply", ".webp"},
    "15_control_from_renders": {".ply", ".webp"},
    "16_camera_words": {".glb", ".ply", ".webp"},
}


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory):
    with Server(Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("tiny"), packs=[PACK]) as server:
        yield server


@pytest.mark.parametrize("name", WRITTEN)
def test_a_workflow_runs_on_tiny_models_of_its_classes(tiny_server, name, report):
    graph = graphs.small(graphs.load(name))
    graph = graphs.with_input(graph, "MicroDreamerModelFromComfyUI", image_size=64)
    graph = graphs.with_input(graph, graphs.PLAN, iterations=1)
    # Qwen's node shows the network the reference at a megapixel, whatever the size of the views
    few = {"discretization": 2, "init_steps": 2, "views": 4 if "coupling" in str(graph) else 2}
    graph = graphs.with_input(graph, graphs.OPTIONS, **few)
    graph = graphs.with_input(graph, "MicroDreamerRefineTexture", steps=1, views=2)
    for entry in graph.values():
        if entry["class_type"] in LOADERS:
            entry["class_type"] = f"Tiny{entry['class_type']}"
    run = tiny_server.run(graph)
    assert run.status == "success", run.error
    assert {tiny_server.path(entry).suffix for entry in run.files if entry["type"] == "output"} == WRITTEN[name]
    report(f"{name} made small, on tiny random models: {run.seconds:.1f} s")
