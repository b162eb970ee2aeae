"""Weight files: names, shapes and single tensors of .safetensors, .pt, .ckpt and .bin, without executing pickles.

A tensor takes memory only while it is referenced: safetensors are memory-mapped, other files are read one tensor at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from .torch_files import TorchFile

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")

_MAPPED_AT_ONCE = 128 << 20
"""Bytes read before a file is mapped again: until then, the pages touched count as this process's memory."""

_AGAIN = "download or copy it again"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WeightFile:
    """One weight file.

    Attributes:
        path: its path.
        shapes: tensor name -> shape (inside ``state_dict`` if there is one).
        dtypes: tensor name -> dtype name, such as "float32".
        metadata: string metadata of a safetensors file, otherwise empty.

    Raises:
        InputError: the file is missing, cut off, of another kind, or holds more than weights.
    """

    def __init__(self, path: Path):
        self.path = path
        _check_file(path)
        self._mapped: Any = None
        self._touched = 0
        self.metadata: dict[str, str] = {}
        self._pickled = None if path.suffix.lower() == ".safetensors" else TorchFile(path)
        self.shapes, self.dtypes = self._list_tensors()

    def read(self, name: str) -> Tensor:
        """Return a tensor as stored, a view of the file: copy what you keep, and drop the view before the next read."""
        if self._pickled is not None:
            return self._pickled.read(name)
        if self._touched > _MAPPED_AT_ONCE:
            self.close()
        try:
            tensor = self._map().get_tensor(name)
        except Exception as error:  # a dtype that this torch version lacks
            raise InputError(f"{self.path.name} holds {name!r:.100}, which cannot be read ({error}); {_AGAIN}.") from error
        self._touched += tensor.numel() * tensor.element_size()
        return tensor

    def close(self) -> None:
        """Close the file; it is reopened when needed."""
        self._mapped, self._touched = None, 0

    def _map(self) -> Any:
        if self._mapped is None:
            self._mapped = _open_safetensors(self.path)
        return self._mapped

    def _list_tensors(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        if self._pickled is not None:
            tensors = self._pickled.tensors
            dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
            return {name: tensor.shape for name, tensor in tensors.items()}, dtypes
        mapped = self._map()
        self.metadata = dict(mapped.metadata() or {})
        slices: dict[str, Any] = {name: mapped.get_slice(name) for name in mapped.keys()}  # noqa: SIM118 - not a dict
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        stored = {name: str(part.get_dtype()) for name, part in slices.items()}
        return shapes, {name: _DTYPES.get(kind, kind.lower()) for name, kind in stored.items()}


@dataclass(frozen=True)
class Weights:
    """Tensors that may be spread over several files (shards).

    Attributes:
        found: name -> (file, name in the file).
    """

    found: Mapping[str, tuple[WeightFile, str]]

    @classmethod
    def of(cls, files: Iterable[WeightFile]) -> Weights:
        return cls({name: (file, name) for file in files for name in file.shapes})

    def rename(self, names: Mapping[str, str]) -> Weights:
        """Return a subset of the tensors under new names; ``names`` maps new -> old."""
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
    """List the weight files of one component: ``place`` plus a weight suffix, otherwise those in the folder ``place``.

    If a folder holds several sets (full or half precision, safetensors or not), the safetensors with the shortest name are
    taken, with all their shards.
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
    from safetensors import safe_open

    try:
        return safe_open(str(path), framework="pt")
    except Exception as error:  # SafetensorError, or another error for a malformed header
        raise InputError(f"{path.name} is not a whole safetensors file ({error}); {_AGAIN}.") from error
