"""The workflows for models of today, in the real server on tiny random ones of the same classes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers import workflow_graphs as graphs
from helpers.comfy_server import Server
from helpers.tiny_loaders import LOADERS
from helpers.tiny_native import KINDS

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


STUBS = {
    "HunyuanDiT": "v, a table of its own",
    "CosmosT2IPredict2": "Cosmos RFlow, latents of videos",
    "HunyuanImage21": "64 channels, 32 pixels a latent",
    "Flux2": "128 channels, 16 pixels a latent",
    "ChromaRadiance": "flow of pixels",
    "HiDreamO1": "flow with a noise scale",
}
"""Classes that no tiny network stands for, by the name of the host's configuration."""


def node(kind, **inputs):
    return {"class_type": f"MicroDreamer{kind}", "inputs": inputs}


def both_ways(kind):
    """Generate and its stages from the same start, each to a GLB."""
    linked = {"model": ["tiny", 0], "clip": ["tiny", 1], "vae": ["tiny", 2]}
    graph = {
        "tiny": {"class_type": "TinyModel", "inputs": {"kind": kind}},
        "model": node("ModelFromComfyUI", **linked, image_size=64, zero123="stable"),
        "condition": node("ConditionOnPrompt", model=["model", 0], prompt="a red box", negative="", view_words=True),
        "preset": node("SIRPlan", preset="few-step", iterations=1, steps=2, forward="hybrid", guidance=2.0),
        "plan": node("SIRPlanOptions", plan=["preset", 0], discretization=2, init_steps=2, views=2),
        "start": node("NewGaussians", model=["model", 0], seed=0, num_points=600, renderer="auto"),
        "fused": node("Generate", condition=["condition", 0], plan=["plan", 0], field=["start", 0], seed=0),
        "loop": node("LoopStart", count=["preset", 1], field=["start", 0]),
        "cameras": node("SampleCameras", field=["loop", 1], plan=["plan", 0], condition=["condition", 0]),
        "images": node("RenderViews", field=["loop", 1], cameras=["cameras", 0]),
        "noisy": node("HybridForward", cameras=["cameras", 0], images=["images", 0]),
        "refined": node("DDIMRefine", cameras=["cameras", 0], latent=["noisy", 0]),
        "fitted": node("ReconstructSteps", field=["loop", 1], cameras=["cameras", 0], images=["refined", 0], steps=0),
        "wired": node("LoopEnd", flow=["loop", 0], field=["fitted", 0], stop=["fitted", 3]),
    }
    for name in ("fused", "wired"):
        coarse = {"resolution": 32, "threshold": 0.0, "target_faces": 200, "smoothing": 1}
        bake = {"texture_size": 64, "views": 12, "view_size": 64}
        graph[f"{name} mesh"] = node("ExtractMesh", field=[name, 0], **coarse)
        graph[f"{name} texture"] = node("BakeTexture", mesh=[f"{name} mesh", 0], field=[name, 0], **bake)
        graph[f"{name} file"] = node("SaveMesh", mesh=[f"{name} texture", 0], filename_prefix=f"{kind}/{name}", format="glb")
    return graph


@pytest.mark.parametrize("kind", [*KINDS, *STUBS])
def test_every_kind_of_model_goes_to_a_glb_by_generate_and_by_its_stages(tiny_server, kind):
    run = tiny_server.run(both_ways(kind))
    if "has no attribute" in run.error and kind in run.error:
        pytest.skip(f"this ComfyUI has no {kind}")
    assert run.status == "success", run.error
    made = {entry["filename"].split("_")[0]: tiny_server.view(entry) for entry in run.files if entry["type"] == "output"}
    assert set(made) == {"fused", "wired"} and all(data[:4] == b"glTF" for data in made.values())
    fused, wired = (data[20 + int.from_bytes(data[12:16], "little") :] for data in made.values())
    assert len(fused) > 1000 and fused == wired
