"""Files of ``torch.save``, read without ``torch.load``: first the table of tensors, then one tensor's bytes at a time.

A pickle is a program. Its opcodes are checked before any is executed, it may use only a short list of names, all replaced by
inert stand-ins, and it builds only descriptions of tensors: nothing of torch, numpy or a training program is called, nothing
is allocated that the file does not hold, and inspecting a file reads only its table.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

_AGAIN = "download or copy it again"
_MOST_PICKLE = 64 << 20
"""Most bytes of a table; that of an 8 GB checkpoint has about one million."""
_OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled magic number of torch.save before it wrote zip archives."""
_OLD_PICKLES = 5  # magic number, version of the protocol, system, content, storage keys
_LOCAL_HEADER, _LOCAL_SIZE = b"PK\3\4", 30
_REFUSED_OPCODES = {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID"}
"""Opcodes that torch.save never writes: buffers of a claimed size, numbered names, and older call opcodes."""
_WRITING_OPCODES, _READING_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_DEEPENING_OPCODES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "FROZENSET"}
_DEEPEST, _MOST_DIMENSIONS = 100, 64
_STATES = ("state_dict", "model_state_dict", "model", "module", "ema_model", "params")
_MOST_NESTED = 4
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "Untyped": torch.uint8,
}  # fmt: skip


class StoredTensor(NamedTuple):
    """A tensor as described by its file; not to be trusted before ``TorchFile`` has checked it."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: Any


class TorchFile:
    """The named tensors of one file.

    Attributes:
        tensors: name -> description, inside ``state_dict`` if there is one.

    Raises:
        InputError: the file is truncated, of another kind, or holds more than tensors and containers.
    """

    def __init__(self, path: Path):
        self._path = path
        self._starts: dict[str, tuple[int, int]] = {}  # storage key -> first byte, bytes
        try:
            self.tensors = _named_tensors(self._read_content(), path.name)
            for name, tensor in self.tensors.items():
                _check_shape(name, tensor)
        except InputError:
            raise
        except _ForeignName as error:
            raise InputError(
                f"{path.name} asks to run foreign code ({error}) while it is read, which is refused; get the weights as "
                ".safetensors, or from a source that you trust."
            ) from error
        except Exception as error:  # a damaged table can raise anything that pickle, zipfile and the stand-ins raise
            reason = " ".join(f"{error}".split())[:200] or type(error).__name__
            raise InputError(f"{path.name} is not a whole torch checkpoint ({reason}); {_AGAIN}.") from error

    def read(self, name: str) -> Tensor:
        """Read one tensor into new memory.

        Raises:
            InputError: the file holds fewer bytes than its table says.
        """
        tensor = self.tensors[name]
        size, count = tensor.dtype.itemsize, math.prod(tensor.shape)
        span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)) if count else 0
        if not count:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        start, stored = self._starts.get(tensor.storage.key, (0, 0))
        if count > span or (tensor.offset + span) * size > stored:
            raise InputError(f"{self._path.name} holds less of {name!r} than it says; {_AGAIN}.")
        with self._path.open("rb") as file:
            file.seek(start + tensor.offset * size)
            data = bytearray(span * size)
            if file.readinto(data) < len(data):
                raise InputError(f"{self._path.name} is cut off within {name!r}; {_AGAIN}.")
        return torch.frombuffer(data, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride)

    def _read_content(self) -> Any:
        if zipfile.is_zipfile(self._path):
            return self._read_archive()
        with self._path.open("rb") as file:
            head = file.read(_MOST_PICKLE)
        if head.startswith(b"PK"):
            raise InputError(f"{self._path.name} is cut off (its table of contents at the end is missing); {_AGAIN}.")
        if not head.startswith(_OLD_START):
            raise InputError(f"{self._path.name} is not a torch checkpoint; {_AGAIN}.")
        return self._read_old(head)

    def _read_archive(self) -> Any:
        with zipfile.ZipFile(self._path) as archive, self._path.open("rb") as file:
            members = {member.filename: member for member in archive.infolist()}
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members.values()):
                raise InputError(f"{self._path.name} is compressed, which no checkpoint is; get it from another source.")
            table = next((name for name in members if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"), None)
            if table is None:
                raise InputError(f"{self._path.name} is a zip archive without a torch checkpoint; unpack it first.")
            folder = table.removesuffix("data.pkl")

            def content(name: str) -> bytes:
                start, size = _locate_member(file, members[name])
                file.seek(start)
                return file.read(size)

            if f"{folder}byteorder" in members and content(f"{folder}byteorder").decode() != sys.byteorder:
                raise InputError(f"{self._path.name} has another byte order than this machine; get it as .safetensors.")
            if members[table].file_size > _MOST_PICKLE:
                raise InputError(f"{self._path.name} has a table of {members[table].file_size} bytes; it is no checkpoint.")
            places = {name: _locate_member(file, m) for name, m in members.items() if name.startswith(f"{folder}data/")}
            self._starts = {name.removeprefix(f"{folder}data/"): place for name, place in places.items()}
            return _load_pickle(io.BytesIO(content(table)))[0]

    def _read_old(self, head: bytes) -> Any:
        """Read the pre-zip format: pickles in sequence, then the storages in order of their keys, each after its length."""
        stream = io.BytesIO(head)
        pickles = [_load_pickle(stream) for _ in range(_OLD_PICKLES)]
        system, (found, storages), keys = pickles[2][0], pickles[3], pickles[4][0]
        if system.get("little_endian", True) is not (sys.byteorder == "little"):
            raise InputError(f"{self._path.name} has another byte order than this machine; get it as .safetensors.")
        place, end = stream.tell(), self._path.stat().st_size
        with self._path.open("rb") as file:
            for key in keys:
                file.seek(place)
                size = struct.unpack("<q", file.read(8))[0] * storages[key].dtype.itemsize
                if not 0 <= size <= end - place - 8:
                    raise InputError(f"{self._path.name} is cut off; {_AGAIN}.")
                self._starts[key] = place + 8, size
                place += 8 + size
        return found


def _locate_member(file: IO[bytes], member: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and length of a stored member, which torch aligns by padding its header."""
    file.seek(member.header_offset)
    header = file.read(_LOCAL_SIZE)
    if not header.startswith(_LOCAL_HEADER):
        raise ValueError(f"{member.filename} is not where the table of contents says")
    start = member.header_offset + _LOCAL_SIZE + sum(struct.unpack_from("<HH", header, _LOCAL_SIZE - 4))
    if start + member.file_size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"{member.filename} ends after the file")
    return start, member.file_size


def _named_tensors(content: Any, file: str) -> dict[str, StoredTensor]:
    for _ in range(_MOST_NESTED):
        inner = _state_of(content)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        kind = "tensor" if isinstance(content, StoredTensor) else type(content).__name__
        raise InputError(f"{file} holds a {kind} in place of named weights; it is no checkpoint.")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, StoredTensor)}
    if not tensors and any(isinstance(value, dict) for value in content.values()):
        some = ", ".join(f"{name!r:.40}" for name in list(content)[:4])
        raise InputError(f"{file} holds no weights by name but {some}; save the model's state_dict alone.")
    return tensors


def _state_of(content: Any) -> dict | None:
    """The dict in which a training program put the weights, None if they lie here."""
    if not isinstance(content, dict):
        return None
    here = any(isinstance(value, StoredTensor) for value in content.values())
    return next((content[key] for key in _STATES[: 1 if here else None] if isinstance(content.get(key), dict)), None)


def _check_shape(name: str, tensor: StoredTensor) -> None:
    """Raise ValueError for a malformed description."""
    numbers = (tensor.offset, *tensor.shape, *tensor.stride)
    whole = all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
    described = isinstance(tensor.storage, _Storage) and isinstance(tensor.dtype, torch.dtype)
    if not (whole and described and len(tensor.shape) == len(tensor.stride)):
        raise ValueError(f"{name[:100]!r} is no tensor")


# --- pickles


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str


class _ForeignName(Exception):
    """A pickle names something that no checkpoint needs."""


class _Call:
    """A function that a pickle may call but not modify."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, *_: object):
        raise TypeError("a checkpoint cannot change a function")


class _Inert:
    """Stands for objects that a training program saved beside its tensors; stores nothing and does nothing."""

    def __init__(self, *_: object, **__: object):
        pass

    def _ignore(self, *_: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Named(dict):
    """Stands for an OrderedDict; its attributes (versions of a module's state) are dropped."""

    def __setstate__(self, _: object) -> None:
        pass


_INERT_NAMES = {
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # of pytorch-lightning 1.4
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode",
    "torch.device", "torch.nn.parameter.Parameter", "torch.Tensor", "collections.Counter", "collections.defaultdict",
    "__builtin__.set", "builtins.set", "__builtin__.complex", "builtins.complex",
}  # fmt: skip
_INERT_STARTS = ("numpy.dtypes.", "torch._utils._rebuild_")  # other tensors: sparse, quantised, meta


def _rebuild(storage: _Storage, offset: int, shape: Any, stride: Any, *_: object) -> StoredTensor:
    return StoredTensor(storage, offset, _dimensions(shape), _dimensions(stride), storage.dtype)


def _rebuild_typed(
    storage: _Storage, offset: int, shape: Any, stride: Any, _grad: object, _hooks: object, dtype: torch.dtype, *_: object
) -> StoredTensor:
    return StoredTensor(storage, offset, _dimensions(shape), _dimensions(stride), dtype)


def _dimensions(numbers: Any) -> tuple:
    """Return the tuple itself: a copy would let a small pickle fill the memory with copies."""
    if not isinstance(numbers, tuple) or len(numbers) > _MOST_DIMENSIONS:
        raise ValueError("a tensor has no such shape")
    return numbers


def _rebuild_subclass(function: Callable, _kind: object, arguments: Any, _state: object) -> Any:
    return function(*arguments)


_CALLS = {
    "collections.OrderedDict": lambda: _Named(),  # filled afterwards
    "torch.Size": _dimensions,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
}


class _Unpickler(pickle.Unpickler):
    """Builds descriptions of tensors in dicts and lists.

    Attributes:
        storages: key -> storage named by the pickle.
    """

    def __init__(self, stream: IO[bytes]):
        super().__init__(stream, encoding="utf-8", errors="replace")
        self.storages: dict[str, _Storage] = {}
        self._inert = type("Inert", (_Inert,), {})  # a new class per file: a pickle may set attributes on it

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _CALLS:
            return _Call(_CALLS[full])
        if full in _INERT_NAMES or full.startswith(_INERT_STARTS):
            return self._inert
        kind = name.removesuffix("Storage")
        if module in ("torch", "torch.cuda", "torch.storage") and kind != name and kind in _STORAGES:
            return _STORAGES[kind]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise _ForeignName(full[:100])

    def persistent_load(self, saved: Any) -> _Storage:
        what, dtype, key, *_, view = saved if len(saved) == 6 else (*saved, None)
        if what != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or view is not None:
            raise ValueError("a storage is not described as torch does it")
        self.storages[key] = _Storage(dtype, key)
        return self.storages[key]


def _load_pickle(stream: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """Load the next pickle of a stream and the storages that it names."""
    start = stream.tell()
    _walk_opcodes(stream)
    end = stream.tell()
    stream.seek(start)
    reader = _Unpickler(io.BytesIO(stream.read(end - start)))
    return reader.load(), reader.storages


def _walk_opcodes(stream: io.BytesIO) -> None:
    """Refuse a pickle that torch.save would not write, before any opcode is executed.

    Nesting depth is counted, because hashing a deeply nested tuple overflows the stack and ends the process.

    Raises:
        ValueError, IndexError, _ForeignName: other opcodes, memo indices out of order, too deep nesting, or a truncated pickle.
    """
    stack: list[int | None] = []  # depths; None is a mark
    memory: dict[int, int | None] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in _REFUSED_OPCODES:
            raise _ForeignName(f"the opcode {opcode.name}")
        if opcode.name in _WRITING_OPCODES:
            place = len(memory) if argument is None else argument
            if place > count:
                raise ValueError(f"place {place} of its memory is used at opcode {count}")
            memory[place] = stack[-1]
            continue
        if opcode.name in _READING_OPCODES:
            stack.append(memory[-1 if argument is None else argument])
            continue
        taken = []
        if pickletools.stackslice in opcode.stack_before:
            while (depth := stack.pop()) is not None:
                taken.append(depth)
        taken += [stack.pop() for kind in opcode.stack_before if kind not in (pickletools.markobject, pickletools.stackslice)]
        depth = max(taken, default=0) + (opcode.name in _DEEPENING_OPCODES)
        if depth > _DEEPEST:
            raise ValueError("its objects are nested too deep")
        stack += [None if kind is pickletools.markobject else depth for kind in opcode.stack_after]
