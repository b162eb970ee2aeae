"""Reading the parity fixtures and filling our modules from tensors under their original names."""

import gzip
import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

OWN = Path(__file__).resolve().parents[1] / "fixtures"
FIXTURES = Path(os.environ.get("MICRODREAMER_FIXTURES", OWN))


class Fixture:
    """One fixture file: its metadata, and its tensors by group ("sd", "inp", "out"; floats in float32)."""

    def __init__(self, name, folder=FIXTURES):
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def json(self, key):
        return json.loads(self.metadata[key])

    def group(self, name):
        start = f"{name}."
        found = {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}
        return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def cases(name):
    """The case names of a fixture file, for parametrize."""
    with safe_open(FIXTURES / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"])


def full_size(name):
    """A JSON file of ``keys``, by default tensor name -> shape of a full-size checkpoint; ours when the folder has none."""
    folder = next(place / "keys" for place in (FIXTURES, OWN) if (place / "keys").is_dir())
    with gzip.open(folder / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def filled(module, mapping, tensors):
    """The meta module with the tensors that a map takes from the originals; nothing missing, nothing left over."""
    taken = {target.name: target.take(tensors[old]) for old, targets in mapping.items() for target in targets}
    module.load_state_dict(taken, assign=True)
    return module


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def close(got, expected, tolerance):
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
