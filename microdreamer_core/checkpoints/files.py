"""Weight files: names, shapes and single tensors of .safetensors, .pt, .ckpt and .bin, without executing what a pickle says.

Files are mapped, not read: a tensor costs memory only while somebody holds it.
"""

from __future__ import annotations

import importlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")

_MAPPED_AT_ONCE = 128 << 20
"""Bytes read before a file is mapped anew: touched pages of a mapping count as this process's memory until then."""

_AGAIN = "download or copy it again"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Inert:
    """Stands for a class that a training program left in its checkpoint; keeps nothing and does nothing."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


class WeightFile:
    """One weight file.

    Attributes:
        path: where it lies.
        shapes: tensor name -> shape (below ``state_dict`` where there is one).
        dtypes: tensor name -> "float32" and the like.
        metadata: texts of a safetensors file, else empty.

    Raises:
        InputError: the file is missing, cut off, of another kind, or holds more than weights.
    """

    def __init__(self, path: Path):
        self.path = path
        _check_file(path)
        self._mapped: Any = None
        self._touched = 0
        self.metadata: dict[str, str] = {}
        self._safetensors = path.suffix.lower() == ".safetensors"
        self.shapes, self.dtypes = self._listed()

    def read(self, name: str) -> Tensor:
        """The tensor as it is stored, a view of the file: copy what shall stay, and let go of it before the next one."""
        if self._touched > _MAPPED_AT_ONCE:
            self.close()
        mapped = self._map()
        tensor = mapped.get_tensor(name) if self._safetensors else mapped[name]
        self._touched += tensor.numel() * tensor.element_size()
        return tensor

    def close(self) -> None:
        """Let go of the file; it is opened again when needed."""
        self._mapped, self._touched = None, 0

    def _map(self) -> Any:
        if self._mapped is None:
            self._mapped = _open_safetensors(self.path) if self._safetensors else _open_pickle(self.path)
        return self._mapped

    def _listed(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        mapped = self._map()
        if not self._safetensors:
            shapes = {name: tuple(tensor.shape) for name, tensor in mapped.items()}
            return shapes, {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in mapped.items()}
        self.metadata = dict(mapped.metadata() or {})
        slices: dict[str, Any] = {name: mapped.get_slice(name) for name in mapped.keys()}  # noqa: SIM118 - not a dict
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        stored = {name: str(part.get_dtype()) for name, part in slices.items()}
        return shapes, {name: _DTYPES.get(kind, kind.lower()) for name, kind in stored.items()}


@dataclass(frozen=True)
class Weights:
    """Tensors that may lie in several files (shards).

    Attributes:
        found: name -> (file, name in the file).
    """

    found: Mapping[str, tuple[WeightFile, str]]

    @classmethod
    def of(cls, files: Iterable[WeightFile]) -> Weights:
        return cls({name: (file, name) for file in files for name in file.shapes})

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """Some of the tensors under new names: new -> old."""
        return Weights({new: self.found[old] for new, old in names.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: file.shapes[stored] for name, (file, stored) in self.found.items()}

    @property
    def files(self) -> list[WeightFile]:
        return list({id(file): file for file, _ in self.found.values()}.values())

    def dtype(self, name: str) -> str:
        file, stored = self.found[name]
        return file.dtypes[stored]

    def read(self, name: str) -> Tensor:
        """As ``WeightFile.read``."""
        file, stored = self.found[name]
        return file.read(stored)


def part_files(place: Path) -> list[Path]:
    """The weight files of one component: ``place`` with a weight file's ending, else those in the folder ``place``.

    Of several sets in a folder (whole, half precision, safetensors or not) the safetensors with the shortest name are taken,
    with all their shards.
    """
    single = [path for path in (place.with_name(place.name + suffix) for suffix in SUFFIXES) if path.is_file()]
    if single:
        return single[:1]
    if not place.is_dir():
        return []
    sets: dict[str, list[Path]] = {}
    for path in sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()):
        sets.setdefault(re.sub(r"-\d{5}-of-\d{5}(?=\.)", "", path.name), []).append(path)
    best = min(sets, key=lambda name: (not name.endswith(".safetensors"), len(name), name), default=None)
    return [] if best is None else sets[best]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"There is no model file {path}; give the path of a checkpoint that exists.")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"A checkpoint ends in {', '.join(SUFFIXES)} or is a folder, got {path.name}.")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise InputError(f"{path.name} is empty; {_AGAIN}.")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path.name} only points to the file (Git LFS); download the file itself.")


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path.name} is not a whole safetensors file ({error}); {_AGAIN}.") from error


def _open_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``, mapped; torch's restricted unpickler builds nothing but tensors and containers.

    Training programs leave a class and numpy numbers beside the weights (Lightning 1.4's ModelCheckpoint): these few names are
    let through, the class as an inert stand-in.
    """
    whole = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        if not whole and file.read(2) == b"PK":
            raise InputError(f"{path.name} is cut off (its table of contents at the end is missing); {_AGAIN}.")
    # before, the restricted unpickler could be tricked (CVE-2025-32434)
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise InputError(f"Reading {path.name} safely needs torch 2.6, got {torch.__version__}; update it or use .safetensors.")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", mmap=whole, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path.name} {_refusal(str(error))}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path.name} is not a whole torch checkpoint ({str(error).splitlines()[0]:.200}); {_AGAIN}."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{path.name} holds a {type(content).__name__} in place of named weights; it is no checkpoint.")
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _refusal(reason: str) -> str:
    """A sentence of torch's long explanation."""
    forbidden = re.search(r"(?:GLOBAL|type) ([\w.]+)", reason)
    if forbidden is None:
        cause = re.search(r"WeightsUnpickler error: (.+)", reason)
        return f"is not a torch checkpoint{f' ({cause[1][:200]})' if cause else ''}; {_AGAIN}."
    return (
        f"asks to run foreign code ({forbidden[1]}) while it is read, which is refused; get the weights as .safetensors, or "
        "from a source that you trust."
    )


def _harmless() -> list:
    """What checkpoints of pytorch-lightning 1.4 hold beside tensors, under the names in the file."""
    import codecs

    import numpy as np

    core = "core" if np.lib.NumpyVersion(np.__version__) < "2.0.0" else "_core"
    multiarray = importlib.import_module(f"numpy.{core}.multiarray")
    numbers = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    return [
        (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        (multiarray.scalar, "numpy._core.multiarray.scalar"),
        (codecs.encode, "_codecs.encode"),
        np.dtype,
        *numbers,
    ]
