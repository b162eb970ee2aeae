"""The workflows for published checkpoints, run in the real server on random ones: as small as the loaders take them."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest
import torch

from helpers import tiny_checkpoints as tiny
from helpers import workflow_graphs as graphs
from microdreamer_core.io.splats import read_splat

TESTS = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "10_stable_zero123": ("zero123", "lightning", "stable_zero123"),
    "11_imagedream": ("imagedream", "flat", "sd-v2.1-base-4view-ipmv"),
    "12_mvdream_text": ("mvdream", "flat", "sd-v2.1-base-4view"),
}
"""Family, layout and name of the file that each workflow wants."""
NATIVE, RETEXTURE = "13_native_model", "18_retexture_any_checkpoint"
FULL_SIZE = TESTS / "fixtures" / "keys" / "zero123_original.json.gz"


@pytest.fixture(scope="module")
def models(server):
    """The server's folder of models; what is put there goes again, and out of the server's memory, too."""
    folder = server.base / "models"
    before = {path for path in folder.rglob("*") if path.is_file()}
    for name in ("microdreamer", "checkpoints"):
        (folder / name).mkdir(exist_ok=True)
    yield folder
    for path in {path for path in folder.rglob("*") if path.is_file()} - before:
        path.unlink()
    server.post("/free", {"unload_models": True, "free_memory": True})


def small(name: str) -> dict:
    """The shipped graph with little to do, in its own plan options too."""
    return graphs.with_input(graphs.small(graphs.load(name)), graphs.OPTIONS, **graphs.SMALL_OPTIONS)


def files(server, run) -> set[str]:
    """Endings of the files in the output folder, each of which is there and served."""
    for entry in run.files:
        assert len(server.view(entry)) == server.path(entry).stat().st_size > 0, entry
    return {entry["filename"].rpartition(".")[2] for entry in run.files if entry["type"] == "output"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_files_workflow_runs_on_a_random_one_in_its_place(server, models, name, report):
    family, layout, file = PUBLISHED[name]
    graph = small(name)
    (loader,) = graphs.of_class(graph, "MicroDreamerLoadModel")
    missing = server.run(graph)
    # whether the host looks at a choice before it runs depends on its release
    assert missing.status in ("rejected", "error") and graph[loader]["inputs"]["checkpoint"] in missing.error
    written = tiny.write(models / "microdreamer", family, layout, name=file)
    assert written.name == graph[loader]["inputs"]["checkpoint"]
    run = server.run(graph)
    assert run.status == "success", run.error
    assert files(server, run) == {"glb", "ply", "webp"}
    report(f"{name} made small, on a random checkpoint: {run.seconds:.1f} s")


# --- the host's own loaders ------------------------------------------------------------------------------------------


def native_checkpoint(path: Path, shapes: dict[str, tuple]) -> None:
    """A file of a few MB whatever its shapes: all tensors of a scale are overlapping views of one row of random numbers."""
    rows = {}
    for shape in shapes.values():
        fan = math.prod(shape[1:])
        if fan not in rows:
            rows[fan] = torch.randn(60_000, generator=torch.Generator().manual_seed(len(rows))) * max(fan, 100) ** -0.5
    tensors = {name: rows[math.prod(s[1:])].as_strided(s, tuple(range(1, len(s) + 1))) for name, s in shapes.items()}
    norms = {name for name, shape in shapes.items() if name.endswith("weight") and len(shape) == 1}
    torch.save({"state_dict": {name: 1 + t if name in norms else t for name, t in tensors.items()}}, path)


def shallow_unet(channels: int) -> dict[str, tuple]:
    """Two levels of one block: the host knows a UNet of Stable Diffusion 1 by its width and contexts, not by its depth."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", 320)
        patch.setattr(tiny, "CONTEXT", 768)
        shapes = {**tiny._unet("zero123"), "input_blocks.0.0.weight": (320, channels, 3, 3)}
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def text_tower() -> dict[str, tuple]:
    """CLIP ViT-L-14's, of full size, under the names that Stable Diffusion 1 has."""
    named = {"embeddings.token_embedding.weight": (49408, 768), "embeddings.position_embedding.weight": (77, 768)}
    named |= tiny._norm("final_layer_norm", 768)
    for layer in (f"encoder.layers.{i}" for i in range(12)):
        named |= {k: v for part in "qkv" for k, v in tiny._linear(f"{layer}.self_attn.{part}_proj", 768, 768).items()}
        named |= tiny._linear(f"{layer}.self_attn.out_proj", 768, 768)
        named |= tiny._linear(f"{layer}.mlp.fc1", 768, 3072) | tiny._linear(f"{layer}.mlp.fc2", 3072, 768)
        named |= tiny._norm(f"{layer}.layer_norm1", 768) | tiny._norm(f"{layer}.layer_norm2", 768)
    return {f"cond_stage_model.transformer.text_model.{name}": shape for name, shape in named.items()}


def test_the_hosts_own_loaders_bring_models_that_run(server, models, report):
    """The files are Stable Zero123 and Stable Diffusion 1 to the host's detection; but for the depth of the UNets their tensors
    have the published names and shapes."""
    published = json.loads(gzip.decompress(FULL_SIZE.read_bytes()))
    beside = {name: tuple(s) for name, s in published.items() if name.startswith(("first_stage_model.", "cond_stage", "cc_"))}
    vae = {name: shape for name, shape in beside.items() if name.startswith("first_stage_model.")}
    native_checkpoint(models / "checkpoints" / "stable_zero123.ckpt", shallow_unet(8) | beside)
    native_checkpoint(models / "checkpoints" / "sd15.ckpt", shallow_unet(4) | vae | text_tower())
    (listed, *_) = server.json("/object_info/MicroDreamerLoadModel")["MicroDreamerLoadModel"]["input"]["required"].values()
    assert "checkpoints/stable_zero123.ckpt" in json.dumps(listed) and "sd15" not in json.dumps(listed)
    graph = graphs.with_input(small(NATIVE), "CheckpointLoaderSimple", ckpt_name="sd15.ckpt")
    graph = graphs.with_input(graph, graphs.PLAN, iterations=1)
    graph = graphs.with_input(graph, graphs.OPTIONS, views=2)
    graph = graphs.with_input(graph, "MicroDreamerModelFromComfyUI", image_size=64)
    run = server.run(graph)
    assert run.status == "success", run.error
    log = server.log()
    assert "Stable_Zero123" in log and "SD1ClipModel" in log, "what the host took the files for"
    assert not re.search(r"(missing: \[|missing clip vision|Missing VAE)", log), "all weights are in the files"
    assert files(server, run) == {"ply", "webp"}
    splats = [server.path(entry) for entry in run.files if entry["filename"].endswith(".ply")]
    assert [path.name.partition("_0")[0] for path in sorted(splats)] == ["native_picture", "native_text"]
    assert all(len(read_splat(path).parameters.means) for path in splats), "numbers that are not finite are dropped"
    report(f"{NATIVE} made small, on random checkpoints through the host's loaders: {run.seconds:.1f} s")


def shallow_control() -> dict[str, tuple]:
    """A ControlNet of the shallow UNet, in the layout of the published ones."""
    unet = {name.removeprefix("model.diffusion_model."): shape for name, shape in shallow_unet(4).items()}
    named = {name: shape for name, shape in unet.items() if not name.startswith(("out.", "output_blocks."))}
    widths = [3, 16, 16, 32, 32, 96, 96, 256, 320]
    for i, (inner, outer) in enumerate(zip(widths, widths[1:], strict=False)):
        named |= {f"input_hint_block.{2 * i}.weight": (outer, inner, 3, 3), f"input_hint_block.{2 * i}.bias": (outer,)}
    last = {}  # width of each block
    for name, shape in unet.items():
        if name.startswith("input_blocks.") and name.endswith((".0.op.weight", ".0.out_layers.3.weight", "0.0.weight")):
            last[int(name.split(".")[1])] = shape[0]
    for i, width in last.items():
        named |= {f"zero_convs.{i}.0.weight": (width, width, 1, 1), f"zero_convs.{i}.0.bias": (width,)}
    width = unet["middle_block.0.out_layers.3.weight"][0]
    named |= {"middle_block_out.0.weight": (width, width, 1, 1), "middle_block_out.0.bias": (width,)}
    return {f"control_model.{name}": shape for name, shape in named.items()}


def test_a_mesh_is_retextured_by_the_hosts_checkpoint_and_control_network(server, models, report):
    published = json.loads(gzip.decompress(FULL_SIZE.read_bytes()))
    vae = {name: tuple(shape) for name, shape in published.items() if name.startswith("first_stage_model.")}
    (models / "controlnet").mkdir(exist_ok=True)
    native_checkpoint(models / "checkpoints" / "sd15.ckpt", shallow_unet(4) | vae | text_tower())
    native_checkpoint(models / "controlnet" / "depth.ckpt", shallow_control())
    graph = graphs.with_input(small(RETEXTURE), "CheckpointLoaderSimple", ckpt_name="sd15.ckpt")
    graph = graphs.with_input(graph, "ControlNetLoader", control_net_name="depth.ckpt")
    graph = graphs.with_input(graph, graphs.PLAN, iterations=1)
    graph = graphs.with_input(graph, graphs.OPTIONS, views=2)
    graph = graphs.with_input(graph, "MicroDreamerModelFromComfyUI", image_size=64)
    graph = graphs.with_input(graph, "MicroDreamerRefineTexture", views=2, strength=0.1)
    run = server.run(graph)
    assert run.status == "success", run.error
    assert files(server, run) == {"glb", "webp"}
    report(f"{RETEXTURE} made small, on random checkpoints through the host's loaders: {run.seconds:.1f} s")
