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
from ..util.readable import quote_error
from .torch_files import TorchFile

SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth", ".sft")

_MAPPED_AT_ONCE = 128 << 20
"""Bytes read before a file is mapped again: until then, the pages touched count as this process's memory."""

_AGAIN = "download or copy it again"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8",
}  # fmt: skip
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
"""Types of weights that are read; float8 with its scales."""
_WRAPPERS = ("module.", "_orig_mod.", "state_dict.", "model_state_dict.")
"""Prefixes of all names that wrappers of a model leave (data parallel training, compilation, a flattened checkpoint)."""
_SCALES = (".scale_weight", ".weight_scale")  # of float8 weights: the weight is what is stored times its scale
_DROPPED = (".scale_input", ".input_scale")  # of activations, for kernels that compute in float8
_MARK = "scaled_fp8"


class WeightFile:
    """One weight file.

    Attributes:
        path: its path.
        shapes: tensor name -> shape (inside ``state_dict`` if there is one), without the prefixes of wrappers.
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
        self._pickled = None if _is_safetensors(path) else TorchFile(path)
        shapes, dtypes = self._list_tensors()
        self._prefix = _common_wrapper(shapes)
        names = {name.removeprefix(self._prefix): name for name in shapes}
        self._scales = {
            f"{name.removesuffix(ending)}.weight": stored
            for name, stored in names.items()
            for ending in _SCALES
            if name.endswith(ending)
        }
        kept = [n for n in names if not n.endswith((*_SCALES, *_DROPPED)) and n.rpartition(".")[2] != _MARK]
        self.shapes, self.dtypes = {n: shapes[names[n]] for n in kept}, {n: dtypes[names[n]] for n in kept}

    def read(self, name: str) -> Tensor:
        """Return a tensor, a view of the file: copy what you keep, and drop the view before the next read.

        Weights with a scale (float8) are returned in float32, multiplied by it.
        """
        tensor = self._read_stored(self._prefix + name)
        if name not in self._scales:
            return tensor
        tensor, scale = tensor.float(), self._read_stored(self._scales[name]).float()
        if scale.numel() != 1 and scale.numel() != tensor.shape[0]:
            raise InputError(f"{self.path.name} holds {name!r:.100} with a scale of another shape; get it in float16.")
        return tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1))

    def _read_stored(self, name: str) -> Tensor:
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
        """Collect the tensors of files; of two with one name the last file's is taken."""
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
        """Look up a tensor's dtype as its file names it."""
        file, stored = self.found[name]
        return file.dtypes[stored]

    def read(self, name: str) -> Tensor:
        """Read a tensor, as ``WeightFile.read`` does."""
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


def _is_safetensors(path: Path) -> bool:
    """Whether the content is safetensors: a length, then JSON. What is neither this nor of torch goes by its name."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith((b"PK", b"\x80")) and start[8:] != b"{":
        return False
    return start[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _common_wrapper(names: Iterable[str]) -> str:
    """The prefix of wrappers that all names have, "" for none."""
    prefix, names = "", list(names)
    while names and (found := next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")):
        prefix += found
    return prefix


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
        raise InputError(f"{path.name} is not a whole safetensors file ({quote_error(error)}); {_AGAIN}.") from error
