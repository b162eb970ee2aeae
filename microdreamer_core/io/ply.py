"""3D Gaussians in the PLY format of 3D Gaussian splatting (Kerbl et al. 2023), which splat viewers read and write.

The files hold the raw parameters: logarithms of scales, logits of opacities, quaternions wxyz and the degree-0 spherical
harmonics ``f_dc``, so that reading gives back exactly what was written. Coordinates are taken as they are.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from ..errors import InputError
from ..fields.gaussians import Gaussians, GaussianSettings, Parameters
from ..util.atomic import replace_file

logger = logging.getLogger(__name__)

_MEANS = ("x", "y", "z")
_LOG_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_OPACITY_LOGITS = ("opacity",)
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_GROUPS = (_MEANS, _LOG_SCALES, _QUATS, _OPACITY_LOGITS, _DC)  # as in Parameters
_NORMALS = ("nx", "ny", "nz")  # always zero; viewers expect them between positions and colours
_WRITTEN = (*_MEANS, *_NORMALS, *_DC, *_OPACITY_LOGITS, *_LOG_SCALES, *_QUATS)
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_OPAQUE_LOGIT = 16.0  # replaces an infinite logit: opacity 1 - 1e-7, the largest float32 below 1
_HEADER_LIMIT = 1 << 16
_UP_COMMENT = "comment up"


Up = Literal["-y", "+y"]
"""The up axis of a file: -y in 3D Gaussian splatting scenes, +y in this core and in some programs that make objects."""


def write_splat_ply(path: str | Path, field: Gaussians, up: Up = "-y") -> Path:
    """Write Gaussians as a binary 3DGS PLY, without optimiser state and settings (``io/state.py`` keeps them).

    Raises:
        InputError: the folder does not exist, or the up axis is unknown.
    """
    _check_up(up)
    parameters = field.parameters.map(lambda tensor: tensor.detach().cpu().float())
    if up == "-y":
        parameters = to_splat_axes(parameters)
    columns = {name: np.zeros(len(field), np.float32) for name in _NORMALS}
    for names, tensor in zip(_GROUPS, parameters, strict=True):
        values = tensor.reshape(len(field), len(names)).numpy()
        columns |= dict(zip(names, values.T, strict=True))
    rows = np.empty(len(field), np.dtype([(name, "<f4") for name in _WRITTEN]))
    for name in _WRITTEN:
        rows[name] = columns[name]
    properties = "".join(f"property float {name}\n" for name in _WRITTEN)
    comment = f"{_UP_COMMENT} {up}"
    header = f"ply\nformat binary_little_endian 1.0\n{comment}\nelement vertex {len(rows)}\n{properties}end_header\n"
    with replace_file(path) as temporary:
        temporary.write_bytes(header.encode() + rows.tobytes())
    return Path(path)


def to_splat_axes(parameters: Parameters) -> Parameters:
    """Rotate by 180 degrees about x, from this core's world to that of splat scenes: (x, y, z) -> (x, -y, -z).

    Quaternions are multiplied by (0, 1, 0, 0) from the left.
    """
    w, x, y, z = parameters.quats.unbind(1)
    return parameters._replace(means=_rotate_half_turn(parameters.means), quats=torch.stack([-x, w, -z, y], 1))


def from_splat_axes(parameters: Parameters) -> Parameters:
    """Invert ``to_splat_axes`` exactly."""
    w, x, y, z = parameters.quats.unbind(1)
    return parameters._replace(means=_rotate_half_turn(parameters.means), quats=torch.stack([x, -w, z, -y], 1))


def _rotate_half_turn(means: torch.Tensor) -> torch.Tensor:
    return means * means.new_tensor([1.0, -1.0, -1.0])


def _check_up(up: str) -> None:
    if up not in get_args(Up):
        raise InputError(f"up must be one of {', '.join(get_args(Up))}, got {up!r}.")


def read_splat(path: str | Path, settings: GaussianSettings | None = None, seed: int = 0, up: Up | None = None) -> Gaussians:
    """Read a 3DGS PLY, binary or ascii, with its properties in any order.

    Spherical harmonics above degree 0 and unknown properties are ignored. Gaussians with numbers that are not finite, or with
    a zero quaternion, are dropped with a warning; infinite opacity logits, which some converters write, are taken as opaque
    or empty.

    Args:
        settings, seed: of the new field, which starts at step 0.
        up: up axis of the file; None reads it from the file's comment, or takes -y without one.

    Raises:
        InputError: an unknown up axis, not a PLY, a PLY without Gaussians (a mesh, a compressed splat), a truncated file, or
            no usable Gaussian in it.
    """
    if up is not None:
        _check_up(up)
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    header = _parse_header(data, path.name)
    rows = _read_rows(data, header, path.name)
    groups = [np.stack([rows[name].astype(np.float32) for name in names], 1) for names in _GROUPS]
    _, _, quats, logits, _ = groups
    logits[np.isinf(logits)] = np.copysign(_OPAQUE_LOGIT, logits[np.isinf(logits)])
    usable = np.isfinite(np.concatenate(groups, 1)).all(1) & (quats != 0).any(1)
    if not usable.any():
        raise InputError(f"{path.name} holds {len(usable)} Gaussians, none of them with finite numbers; export it again.")
    if not usable.all():
        logger.warning("%s: dropped %d of %d Gaussians, not finite or not rotated", path.name, (~usable).sum(), len(usable))
    parameters = Parameters(*(torch.from_numpy(group[usable]) for group in groups))
    parameters = parameters._replace(opacity_logits=parameters.opacity_logits[:, 0])
    if (up or header.up) == "-y":
        parameters = from_splat_axes(parameters)
    return Gaussians(parameters, settings or GaussianSettings(), seed)


@dataclass(frozen=True)
class _Header:
    """Where the vertices are: byte order ("=" for ascii), what precedes them, and their layout."""

    order: str
    start: int  # byte of the first element
    skipped_rows: int  # rows of the elements before the vertices
    skipped_bytes: int
    count: int
    dtype: np.dtype
    up: Up


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name, numpy type; "list" for lists


def _parse_header(data: bytes, name: str) -> _Header:
    end = data.find(b"end_header", 0, _HEADER_LIMIT)
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{name} is not a PLY file; choose a .ply with 3D Gaussians.")
    start = data.find(b"\n", end) + 1 or len(data)
    lines = data[:end].decode("ascii", "replace").splitlines()
    order, elements = _parse_lines(lines, name)
    vertex = next((i for i, element in enumerate(elements) if element.name == "vertex"), len(elements))
    names = [p for element in elements[vertex : vertex + 1] for p, _ in element.properties]
    if len(set(names)) < len(names):
        raise InputError(f"{name} names a property of its vertices twice; export it again.")
    missing = [p for group in _GROUPS for p in group if p not in names]
    if missing:
        raise InputError(f"{name} holds {_what_else(elements)}, no 3D Gaussians (no {missing[0]}); export it as a 3DGS .ply.")
    before, here = elements[:vertex], elements[vertex]
    if any(kind == "list" for element in [*before, here] for _, kind in element.properties):
        raise InputError(f"{name} has lists before its Gaussians, which splat files never have; export it again.")
    layouts = [_layout(element, order) for element in [*before, here]]
    skipped = sum(e.count * layout.itemsize for e, layout in zip(before, layouts, strict=False))
    return _Header(order, start, sum(e.count for e in before), skipped, here.count, layouts[-1], _read_up_axis(lines))


def _read_up_axis(lines: list[str]) -> Up:
    """The up axis in this program's comment, otherwise that of 3D Gaussian splatting scenes."""
    stated = [line.removeprefix(_UP_COMMENT).strip() for line in lines if line.startswith(_UP_COMMENT)]
    return next((up for up in get_args(Up) if up in stated), "-y")


def _parse_lines(lines: list[str], name: str) -> tuple[str, list[_Element]]:
    order, elements = None, []
    try:
        for words in filter(None, map(str.split, lines)):
            if words[0] == "format":
                order = _BYTE_ORDERS[words[1]]
            elif words[0] == "element":
                elements.append(_Element(words[1], _count(words[2]), []))
            elif words[0] == "property":
                elements[-1].properties.append((words[-1], "list" if words[1] == "list" else _TYPES[words[1]]))
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{name} has a header that cannot be understood ({error}); export it again.") from error
    if order is None:
        raise InputError(f"{name} does not say whether it is ascii or binary; export it again.")
    return order, elements


def _count(word: str) -> int:
    if int(word) < 0:
        raise ValueError(f"{word} elements")
    return int(word)


def _layout(element: _Element, order: str) -> np.dtype:
    return np.dtype([(name, order + kind) for name, kind in element.properties])


def _what_else(elements: list[_Element]) -> str:
    names = {element.name for element in elements}
    if "chunk" in names:
        return "compressed Gaussians"
    return "a mesh" if "face" in names else "other data"


def _read_rows(data: bytes, header: _Header, name: str) -> dict[str, np.ndarray]:
    """The vertices' columns by name."""
    names = header.dtype.names or ()
    if header.order == _BYTE_ORDERS["ascii"]:
        lines = data[header.start :].decode("ascii", "replace").splitlines()[header.skipped_rows :][: header.count]
        try:
            values = np.array([line.split() for line in lines], np.float64).reshape(-1, len(names))
        except ValueError as error:
            raise InputError(f"{name} has a line that is not {len(names)} numbers; export it again.") from error
        rows = {column: values[:, i] for i, column in enumerate(names)}
        found = len(values)
    else:
        body = memoryview(data)[header.start + header.skipped_bytes :]
        found = min(len(body) // header.dtype.itemsize, header.count)
        table = np.frombuffer(body, header.dtype, found)
        rows = {column: table[column] for column in names}
    if found < header.count:
        raise InputError(f"{name} is truncated: it announces {header.count} Gaussians and holds {found}; copy it again.")
    return rows
