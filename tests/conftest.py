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
    path = Path(__file__).with_name("reference_splats.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
