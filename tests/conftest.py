"""Fixtures shared by all tests."""

import importlib.util
from pathlib import Path

import pytest
import torch

# small tensors gain nothing from more threads, and on a busy machine waiting for each other costs them dearly
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_splats():
    """The dense float64 splat renderer; loaded by path, because importlib mode keeps tests/ off sys.path."""
    return _load("reference_splats")


def _load(name):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulated_cuda(tmp_path_factory):
    """The CUDA renderer on the CPU: its kernels built as C++, driven by its own launcher."""
    emulation = _load("cuda_emulation")
    if emulation.find_compiler() is None:
        pytest.skip("no C++ compiler (c++, g++, clang++) to build the CUDA kernels with")
    from microdreamer_core.render.splat_cuda import CudaSplatRenderer

    return CudaSplatRenderer(emulation.build(tmp_path_factory.mktemp("cuda")), "cpu")
