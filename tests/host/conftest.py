"""Tests on a real ComfyUI: ``make test-host`` runs them in the host's python with ``COMFYUI_PATH`` set; else they skip."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUTS = ROOT / "outputs" / "host"
NUMBERS = pytest.StashKey[list[str]]()
PACK = "microdreamer_pack_in_host"


def pytest_collection_modifyitems(items):
    if os.environ.get("COMFYUI_PATH"):
        return
    skip = pytest.mark.skip(reason="needs a real ComfyUI: run 'make test-host' (or set COMFYUI_PATH and use its python)")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter, config):
    if config.stash.get(NUMBERS, None):
        terminalreporter.section("numbers")
        for line in config.stash[NUMBERS]:
            terminalreporter.write_line(line)


@pytest.fixture
def report(request):
    """Call it with a line for the end of the test run: what was measured."""
    return request.config.stash.setdefault(NUMBERS, []).append


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The running server; the log of the last session stays in outputs/host."""
    from helpers.comfy_server import Server

    with Server(Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("server")) as server:
        yield server
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    shutil.copy(server.log_path, OUTPUTS)


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    """The host's ``comfy`` package in this process, on the CPU; files go to a folder of their own, not into the host's tree."""
    base = tmp_path_factory.mktemp("in_process")
    # 'python -m pytest' puts the repository first, whose 'nodes' would hide the host's
    sys.path[:] = [os.environ["COMFYUI_PATH"], *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    argv, sys.argv = sys.argv, ["x", "--cpu", "--base-directory", str(base)]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = argv
    for name in ("comfy.model_management", "comfy.samplers", "comfy.sample", "comfy.utils", "nodes"):
        importlib.import_module(name)
    return sys.modules["comfy"]


@pytest.fixture(scope="session")
def pack(comfy):
    """Our pack in this process, imported as the host imports it; ``pack.node_classes`` are its nodes by id."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extension = asyncio.run(module.comfy_entrypoint())
    module.node_classes = {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}
    return module


@pytest.fixture(scope="module")
def core(pack):
    """Modules of the pack by their path below its root."""
    return lambda path: importlib.import_module(f"{pack.__name__}.{path}")


@pytest.fixture(scope="module")
def run(pack):
    """Runs a node as the host does, under inference mode."""

    def execute(node, **inputs):
        import torch

        with torch.inference_mode():
            return pack.node_classes[f"MicroDreamer{node}"].execute(**inputs)

    return execute
