"""Image to 3D and Text to 3D on the stand-in host: the same as the graph that they stand for."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers.node_graphs import assert_same

MODEL = {"class_type": "MicroDreamerLoadModel", "inputs": {"checkpoint": "small.safetensors"}}
PICTURE = {"class_type": "LoadImage", "inputs": {"image": "box.png"}}


def entry(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def module(host):
    return importlib.import_module(f"{stand_in.PACK}.nodes.image_to_3d")


@pytest.fixture
def small(module, monkeypatch):
    """Qualities that take seconds."""
    few = module.Quality(0.1, 32, 200, 64)
    monkeypatch.setattr(module, "QUALITIES", {"standard": few, "fast": few})


def run(host, graph, *kept):
    executor = stand_in.Executor(host)
    graph |= {f"keep{i}": entry("Keep", value=link) for i, link in enumerate(kept)}
    results = executor.run(graph)
    return [results[f"keep{i}"][0] for i in range(len(kept))], executor


def wired(seed):
    """The graph that the node stands for, with the numbers of ``small``."""
    told = {"condition": ["4", 0], "plan": ["5", 0]}
    return {
        "1": MODEL,
        "2": PICTURE,
        "3": entry("MicroDreamerPrepareReference", model=["1", 0], image=["2", 0], mask=["2", 1], mask_shows="auto"),
        "4": entry("MicroDreamerConditionOnImage", model=["1", 0], image=["3", 0], mask=["3", 1], elevation=5.0),
        "5": entry("MicroDreamerSIRPlan", preset="embedded", iterations=2),
        "6": entry("MicroDreamerGenerate", seed=seed, **told),
        "20": entry("MicroDreamerCleanGaussians", field=["6", 0]),
        "21": entry("MicroDreamerExtractMesh", field=["20", 0], resolution=32, target_faces=200),
        "22": entry("MicroDreamerBakeTexture", mesh=["21", 0], field=["20", 0], texture_size=64),
        "23": entry("MicroDreamerRefineTexture", mesh=["22", 0], seed=seed, **told),
        "24": entry("MicroDreamerCleanGaussians", field=["6", 0], **told),
    }


@pytest.mark.slow
def test_image_to_3d_is_the_graph_that_it_stands_for_bit_for_bit(host, small):
    one = {"1": MODEL, "2": PICTURE}
    one["3"] = entry("MicroDreamerImageTo3D", image=["2", 0], mask=["2", 1], model=["1", 0], quality="fast", seed=3)
    (mesh, field, sheet, report), executor = run(host, one, ["3", 0], ["3", 1], ["3", 2], ["3", 3])
    (mesh_wired, field_wired, sheet_wired), _ = run(host, wired(3), ["23", 0], ["24", 0], ["6", 1])
    assert_same(field, field_wired)
    assert torch.equal(sheet, sheet_wired)
    for name in ("vertices", "faces", "uvs", "texture"):
        assert torch.equal(getattr(mesh, name), getattr(mesh_wired, name)), name
    assert [line.partition(":")[0].partition(",")[0] for line in report.splitlines()] == ["start", "k 0", "k 1"]
    assert sum(name.endswith("generate") for name in executor.ran) == 1
    assert not any(name.endswith("model") for name in executor.ran), "the linked model is used"


def expanded(module, name, **inputs):
    """The nodes that a node expands into, by name, without running them."""
    node = getattr(module, name)
    hidden = SimpleNamespace(unique_id="9", dynprompt=SimpleNamespace(get_node=lambda _: {"inputs": links(inputs)}))
    bound = type(name, (node,), {"hidden": hidden})
    return {key.rpartition(".")[2]: value for key, value in bound.execute(**inputs).expand.items()}


def links(inputs):
    return {name: [name, 0] if name in ("image", "mask", "model") else value for name, value in inputs.items()}


def loaded(module, takes_prompt=False, preset="embedded"):
    model = SimpleNamespace(takes_prompt=takes_prompt, preset=preset)
    return module.LoadedModel(model, None, "a model")


def test_without_a_model_that_of_the_pack_is_loaded(module):
    nodes = expanded(module, "ImageTo3D", image=torch.zeros(1, 8, 8, 3))
    assert nodes["model"]["inputs"] == {"checkpoint": "embedded"}
    assert nodes["reference"]["inputs"]["model"] == nodes["condition"]["inputs"]["model"]
    assert nodes["condition"]["class_type"] == "MicroDreamerConditionOnImage"
    assert nodes["plan"]["inputs"] == {"preset": "embedded", "iterations": 20}


@pytest.mark.parametrize(
    "quality, rounds, resolution, texture", [("fast", 12, 96, 512), ("standard", 30, 128, 1024), ("high", 45, 192, 2048)]
)
def test_quality_scales_the_rounds_of_the_models_own_preset(module, quality, rounds, resolution, texture):
    model = loaded(module, takes_prompt=True, preset="imagedream-gaussians")
    nodes = expanded(module, "ImageTo3D", image=torch.zeros(1, 8, 8, 3), model=model, quality=quality, prompt="a bird")
    assert nodes["plan"]["inputs"] == {"preset": "imagedream-gaussians", "iterations": rounds}
    assert nodes["condition"]["class_type"] == "MicroDreamerConditionOnBoth" and "model" not in nodes
    assert nodes["mesh"]["inputs"]["resolution"] == resolution and nodes["bake"]["inputs"]["texture_size"] == texture


def test_the_tooltip_says_what_each_quality_costs(module):
    (quality,) = [socket for socket in module.ImageTo3D.define_schema().inputs if socket.id == "quality"]
    assert "fast: 0.4 of the preset's K, mesh grid 96, texture 512" in quality.options["tooltip"]


def test_words_become_an_object(module):
    model = loaded(module, takes_prompt=True, preset="mvdream-gaussians")
    nodes = expanded(module, "TextTo3D", model=model, prompt="a bird", seed=4)
    assert nodes["condition"]["inputs"] == {"model": ["model", 0], "prompt": "a bird", "negative": ""}
    assert nodes["generate"]["inputs"]["seed"] == nodes["refine"]["inputs"]["seed"] == 4
    assert nodes["plan"]["inputs"]["preset"] == "mvdream-gaussians"


@pytest.mark.parametrize(
    "name, inputs, words",
    [
        ("ImageTo3D", {"image": torch.zeros(1, 8, 8, 3), "quality": "best"}, "quality must be one of fast, standard, high"),
        ("TextTo3D", {"model": "words", "prompt": " "}, "The prompt is empty"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(module, name, inputs, words):
    if "model" in inputs:
        inputs = {**inputs, "model": loaded(module, takes_prompt=True)}
    with pytest.raises(Exception, match=words):
        expanded(module, name, **inputs)


def test_the_type_of_an_error_is_read_without_the_packs_path(module):
    """ComfyUI shows the exception's module and name."""
    with pytest.raises(module.InputError) as caught:
        expanded(module, "TextTo3D", model=loaded(module), prompt="")
    assert f"{type(caught.value).__module__}.{type(caught.value).__qualname__}" == "MicroDreamer.InputError"
