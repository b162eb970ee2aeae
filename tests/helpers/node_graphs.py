"""Graphs of our nodes on the stand-in host: shipped ones made small, a few nodes of the host's, and what is kept of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import host_stand_in as stand_in
from .workflow_graphs import load, load_earlier

ROOT = Path(__file__).resolve().parents[2]
K = 2


@contextlib.contextmanager
def small_host(base: Path):
    """The stand-in host with the pack, a small random checkpoint and a picture, in a folder; gone again afterwards."""
    with stand_in.install(base) as host:
        host.nodes.update(
            LoadImage=_load_image(host),
            PreviewImage=Preview,
            Preview3D=Preview,
            Keep=Keep,
            Broken=Broken,
            Many=Many,
            Advance=Advance,
        )
        _write_checkpoint(host)
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[16:48, 20:40] = (200, 50, 50, 255)
        Image.fromarray(pixels).save(host.base / "input" / "box.png")
        yield host


def _write_checkpoint(host):
    embedded = f"{stand_in.PACK}.microdreamer_core.diffusion.embedded"
    network, checkpoint = (importlib.import_module(f"{embedded}.{name}") for name in ("network", "checkpoint"))
    config = network.EmbeddedConfig(image_size=32, channels=8, widths=(16, 32), head_dim=8, context=16)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        parts = network.PatchCodec(config), network.MultiViewDenoiser(config)
    checkpoint.save_checkpoint(host.base / "models" / "microdreamer" / "small.safetensors", config, *parts, {})


def _load_image(host):
    class LoadImage:
        OUTPUT_NODE = False

        @staticmethod
        def execute(image):
            rgba = torch.from_numpy(np.asarray(Image.open(host.base / "input" / image).convert("RGBA"), np.float32) / 255)
            return stand_in.NodeOutput(rgba[None, ..., :3].clone(), 1 - rgba[None, ..., 3])

    return LoadImage


class Preview:
    OUTPUT_NODE = True

    @staticmethod
    def execute(**inputs):
        return stand_in.NodeOutput(ui={"images": [len(inputs)]})


class Keep:
    """Asks for a value, as any output node of the host does."""

    OUTPUT_NODE = True

    @staticmethod
    def execute(value):
        return stand_in.NodeOutput(value)


class Broken:
    """A body node that returns something else than the field."""

    OUTPUT_NODE = False

    @staticmethod
    def execute(field):
        return stand_in.NodeOutput([field, field])


class Many:
    """A body node whose output is a list of the host's kind."""

    OUTPUT_NODE = False
    OUTPUT_IS_LIST = (True,)

    @staticmethod
    def execute(field, index=0, only=0):
        return stand_in.NodeOutput([field] * (1 if index < only else 3))


class Advance:
    """Counts an iteration as done."""

    OUTPUT_NODE = False

    @staticmethod
    def execute(field, outer):
        return stand_in.NodeOutput(dataclasses.replace(field, k=field.next_k))


def workflow(name: str, last: int) -> dict:
    """The first nodes of a shipped workflow, on the small checkpoint and few, short iterations; of 00_hello as it was, with
    Generate and the nodes of the mesh."""
    graph = load_earlier(name) if name == "00_hello" else load(name)
    graph = {node: entry for node, entry in graph.items() if ":" not in node and int(node) <= last}
    graph["1"]["inputs"]["checkpoint"] = "small.safetensors"
    graph["2"] = {"class_type": "LoadImage", "inputs": {"image": "box.png"}}
    graph["5"]["inputs"].update(iterations=K, steps=4)
    graph["50"] = {
        "class_type": "MicroDreamerSIRPlanOptions",
        "inputs": {"plan": ["5", 0], "discretization": 5, "init_steps": 8},
    }
    for node, entry in graph.items():
        if node not in ("5", "50"):
            entry["inputs"] = {n: ["50", 0] if v == ["5", 0] else v for n, v in entry["inputs"].items()}
    return graph


def keep(graph: dict, node: str, index: int = 0) -> dict:
    return {**graph, "keep": {"class_type": "Keep", "inputs": {"value": [node, index]}}}


def kept(host, graph: dict):
    return stand_in.Executor(host).run(graph)["keep"][0]


def assert_same(a, b):
    tensors, values = a.field.to_state()
    other_tensors, other_values = b.field.to_state()
    assert (a.k, a.seed, values) == (b.k, b.seed, other_values)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name
