"""3D Gaussians in PLY: the format of 3D Gaussian splatting (Kerbl et al. 2023), and what other programs made of it.

The files hold the raw parameters: logarithms of scales, logits of opacities, quaternions wxyz and the degree-0 spherical
harmonics ``f_dc``, so that reading gives back exactly what was written. Also read are compressed files (``ply_compressed``),
2D Gaussians, which have two scales, and clouds of coloured points, which become a start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..fields.gaussians import Parameters
from ..util.vocabulary import UPS, Up
from .ply_compressed import CHUNK_BOUNDS, PACKED, unpack_chunks
from .splat_values import gaussians_from

_MEANS = ("x", "y", "z")
_LOG_SCALES = ("scale_0", "scale_1", "scale_2")
_QUATS = ("rot_0", "rot_1", "rot_2", "rot_3")
_OPACITY_LOGITS = ("opacity",)
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_GROUPS = (_MEANS, _LOG_SCALES, _QUATS, _OPACITY_LOGITS, _DC)  # as in Parameters
_NORMALS = ("nx", "ny", "nz")  # always zero; viewers expect them between positions and colours
_WRITTEN = (*_MEANS, *_NORMALS, *_DC, *_OPACITY_LOGITS, *_LOG_SCALES, *_QUATS)
_POINT_COLORS = ("red", "green", "blue")
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_BYTE_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
HEADER_LIMIT = 1 << 16
_UP_COMMENT = re.compile(r"comment (?:up|vertical axis:) *([+-]?)([yz])\s*$", re.IGNORECASE)
_FLAT = 0.01  # thickness of a 2D Gaussian, as a share of its smaller axis
_POINT_OPACITY, _POINT_NEIGHBOURS = 0.9, 3


def decode_ply(data: bytes, name: str) -> tuple[Parameters, Up | None]:
    """Read raw parameters, and the up axis if a comment says it, from a binary or ascii PLY with its properties in any order.

    Spherical harmonics above degree 0 and unknown properties are ignored.

    Raises:
        InputError: not a PLY, a PLY without Gaussians or points (a mesh), or a truncated file.
    """
    header = _parse_header(data, name)
    columns = header.names
    if set(PACKED) & columns:
        return _unpack(data, header, name), header.up
    if set(_LOG_SCALES[:2]) <= columns:
        return _raw_parameters(data, header, name), header.up
    if set(_MEANS + _POINT_COLORS) <= columns and not header.faces:
        rows = _read_rows(data, header, "vertex", name)
        return _from_points(rows, header.layout("vertex", name), name), header.up
    missing = next((p for group in _GROUPS for p in group if p not in columns), "")
    raise InputError(f"{name} holds {header.what}, no 3D Gaussians (no {missing}); export it as a 3DGS .ply.")


def holds_gaussians(start: bytes) -> bool:
    """Return whether a PLY with this start holds Gaussians, or points without faces, rather than a mesh."""
    try:
        header = _parse_header(start, "")
    except InputError:
        return False
    return bool(header.names & {*PACKED, *_LOG_SCALES}) or not (header.faces or "vertex_indices" in header.names)


def encode_ply(parameters: Parameters, up: Up) -> bytes:
    """Write raw parameters as a binary 3DGS PLY whose comment says the up axis."""
    count = len(parameters.means)
    columns = {name: np.zeros(count, np.float32) for name in _NORMALS}
    for names, tensor in zip(_GROUPS, parameters, strict=True):
        values = tensor.reshape(count, len(names)).numpy()
        columns |= dict(zip(names, values.T, strict=True))
    rows = np.empty(count, np.dtype([(name, "<f4") for name in _WRITTEN]))
    for name in _WRITTEN:
        rows[name] = columns[name]
    properties = "".join(f"property float {name}\n" for name in _WRITTEN)
    header = f"ply\nformat binary_little_endian 1.0\ncomment up {up}\nelement vertex {count}\n{properties}end_header\n"
    return header.encode() + rows.tobytes()


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]]  # name, numpy type; "list" for lists


@dataclass(frozen=True)
class _Header:
    """Byte order ("=" for ascii), first byte of the elements, the elements in order, and the stated up axis."""

    order: str
    start: int
    elements: list[_Element]
    up: Up | None

    @property
    def names(self) -> set[str]:
        """The properties of the vertices."""
        return {p for element in self.elements if element.name == "vertex" for p, _ in element.properties}

    @property
    def faces(self) -> int:
        return sum(element.count for element in self.elements if element.name == "face")

    @property
    def what(self) -> str:
        if any(element.name == "face" for element in self.elements):
            return "a mesh"
        return "points without colours" if set(_MEANS) <= self.names else "other data"

    def layout(self, element: str, name: str) -> tuple[int, int, int, np.dtype]:
        """Return (rows before the element, bytes before it, its rows, their layout).

        Raises:
            InputError: lists before or in it, or a property that is named twice.
        """
        place = next((i for i, known in enumerate(self.elements) if known.name == element), None)
        if place is None:
            raise InputError(f"{name} has no element {element}; export it again.")
        before, here = self.elements[:place], self.elements[place]
        if any(kind == "list" for known in [*before, here] for _, kind in known.properties):
            raise InputError(f"{name} has lists before its Gaussians, which splat files never have; export it again.")
        names = [p for p, _ in here.properties]
        if len(set(names)) < len(names):
            raise InputError(f"{name} names a property of its vertices twice; export it again.")
        layouts = [np.dtype([(f"{i}", self.order + kind) for i, (_, kind) in enumerate(known.properties)]) for known in before]
        skipped = sum(known.count * layout.itemsize for known, layout in zip(before, layouts, strict=True))
        return (
            sum(known.count for known in before),
            skipped,
            here.count,
            np.dtype([(p, self.order + k) for p, k in here.properties]),
        )


def _parse_header(data: bytes, name: str) -> _Header:
    end = data.find(b"end_header", 0, HEADER_LIMIT)
    if not data.startswith(b"ply") or end < 0:
        raise InputError(f"{name} is not a PLY file; choose a .ply with 3D Gaussians.")
    start = data.find(b"\n", end) + 1 or len(data)
    lines = data[:end].decode("ascii", "replace").splitlines()
    order, elements = _parse_lines(lines, name)
    return _Header(order, start, elements, _read_up_axis(lines))


def _read_up_axis(lines: list[str]) -> Up | None:
    """The up axis in a comment of this program ("up -y") or of another ("Vertical Axis: z")."""
    found = [match for match in map(_UP_COMMENT.match, lines) if match]
    stated = [f"{match[1] or '+'}{match[2].lower()}" for match in found]
    return next((up for up in UPS if up in stated), None)


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


def _read_rows(data: bytes, header: _Header, element: str, name: str) -> dict[str, np.ndarray]:
    """The columns of an element by name."""
    skipped_rows, skipped_bytes, count, dtype = header.layout(element, name)
    names = dtype.names or ()
    if header.order == _BYTE_ORDERS["ascii"]:
        lines = data[header.start :].decode("ascii", "replace").splitlines()[skipped_rows:][:count]
        try:
            values = np.array([line.split() for line in lines], np.float64).reshape(-1, len(names))
        except ValueError as error:
            raise InputError(f"{name} has a line that is not {len(names)} numbers; export it again.") from error
        rows = {column: values[:, i] for i, column in enumerate(names)}
        found = len(values)
    else:
        body = memoryview(data)[header.start + skipped_bytes :]
        found = min(len(body) // dtype.itemsize, count)
        table = np.frombuffer(body, dtype, found) if found else np.empty(0, dtype)
        rows = {column: table[column] for column in names}
    if found < count:
        raise InputError(f"{name} is truncated: it announces {count} Gaussians and holds {found}; copy it again.")
    return rows


def _raw_parameters(data: bytes, header: _Header, name: str) -> Parameters:
    """The columns as they are; 2D Gaussians get a third scale."""
    flat = _LOG_SCALES[2] not in header.names
    missing = [p for group in _GROUPS for p in group if p not in header.names and not (flat and p == _LOG_SCALES[2])]
    if missing:
        raise InputError(f"{name} holds {header.what}, no 3D Gaussians (no {missing[0]}); export it as a 3DGS .ply.")
    rows = _read_rows(data, header, "vertex", name)
    if flat:
        rows[_LOG_SCALES[2]] = np.minimum(rows["scale_0"], rows["scale_1"]) + np.log(_FLAT)
    with np.errstate(over="ignore"):  # doubles beyond float32 become infinite, and are dropped with these
        groups = [np.stack([rows[p].astype(np.float32) for p in names], 1) for names in _GROUPS]
    parameters = Parameters(*map(torch.from_numpy, groups))
    return parameters._replace(opacity_logits=parameters.opacity_logits[:, 0])


def _unpack(data: bytes, header: _Header, name: str) -> Parameters:
    stored = {p for element in header.elements for p, _ in element.properties}
    missing = [p for p in (*PACKED, *CHUNK_BOUNDS) if p not in stored]
    if missing:
        raise InputError(f"{name} holds compressed Gaussians without {missing[0]}; export it again.")
    return unpack_chunks(_read_rows(data, header, "chunk", name), _read_rows(data, header, "vertex", name), name)


def _from_points(rows: dict[str, np.ndarray], layout: tuple[int, int, int, np.dtype], name: str) -> Parameters:
    """Round Gaussians as wide as the distance to their neighbours, as 3D Gaussian splatting starts from points."""
    from scipy.spatial import KDTree

    means, colors = (np.stack([rows[p].astype(np.float64) for p in names], 1) for names in (_MEANS, _POINT_COLORS))
    whole = layout[3]["red"]
    colors = colors / (np.iinfo(whole).max if whole.kind in "iu" else 1.0)
    usable = np.isfinite(np.concatenate([means, colors], 1)).all(1)
    means, colors = means[usable], colors[usable].clip(0, 1)
    if len(means) <= _POINT_NEIGHBOURS:
        raise InputError(f"{name} holds {len(means)} usable points, more than {_POINT_NEIGHBOURS} are needed; export it again.")
    distances = KDTree(means).query(means, k=_POINT_NEIGHBOURS + 1)[0][:, 1:]
    widths = np.sqrt((distances**2).mean(1)).clip(1e-6 * np.ptp(means, axis=0).max() or 1e-6)
    log_scales = np.log(widths)[:, None].repeat(3, 1)
    quats = np.tile([1.0, 0.0, 0.0, 0.0], (len(means), 1))
    return gaussians_from(means, log_scales, quats, np.full(len(means), _POINT_OPACITY), colors)
