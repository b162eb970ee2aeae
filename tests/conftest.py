"""Fixtures shared by all tests."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("helpers")
from helpers import cuda_emulation, node_graphs  # noqa: E402 - imported with their asserts rewritten

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

# small tensors gain nothing from more threads, and on a busy machine waiting for each other costs them dearly
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The stand-in for ComfyUI with the pack, a small random checkpoint and a picture."""
    with node_graphs.small_host(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory):
    """The CUDA renderer on the CPU: its kernels built as C++, driven by its own launcher."""
    if cuda_emulation.find_compiler() is None:
        pytest.skip("no C++ compiler (c++, g++, clang++) to build the CUDA kernels with")
    from microdreamer_core.render.splat_cuda import CudaSplatRenderer

    return CudaSplatRenderer(cuda_emulation.build(tmp_path_factory.mktemp("cuda")), "cpu")


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark as a run of its file would; its siblings go again, because their names are too plain to stay."""
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    before = {name: sys.modules.pop(name, None) for name in names}
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    yield importlib.import_module
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module
