"""Splats as plain records: .splat (antimatter15's viewer) and .ksplat without compression (mkkellogg's viewer).

A .splat is 32 bytes a Gaussian, without any header. A .ksplat of level 0 has a header of 4096 bytes, one of 1024 for each
section, and records of 44 bytes, longer with spherical harmonics, which are ignored.
"""

from __future__ import annotations

import struct

import numpy as np

from ..errors import InputError
from ..fields.gaussians import Parameters
from .splat_values import arrays_of, gaussians_from, to_steps

_SPLAT = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
_KSPLAT = [("mean", "<f4", 3), ("scale", "<f4", 3), ("quat", "<f4", 4), ("color", "u1", 4)]
_KSPLAT_HEADER, _SECTION_HEADER = 4096, 1024
_HARMONICS = {0: 0, 1: 9, 2: 24, 3: 45}
_MOST_SECTIONS = 1 << 16


def decode_splat(data: bytes, name: str) -> Parameters:
    """Read a .splat.

    Raises:
        InputError: its length is not that of whole records.
    """
    if not data or len(data) % _SPLAT.itemsize:
        raise InputError(f"{name} has {len(data)} bytes, a .splat has {_SPLAT.itemsize} a Gaussian; copy or export it again.")
    rows = np.frombuffer(data, _SPLAT)
    return _from_rows(rows, (rows["quat"].astype(np.float64) - 128) / 128)


def encode_splat(parameters: Parameters) -> bytes:
    """Write a .splat: float32 positions and scales, 8 bits for everything else."""
    means, log_scales, quats, opacities, colors = arrays_of(parameters)
    rows = np.empty(len(means), _SPLAT)
    rows["mean"], rows["scale"] = means, np.exp(log_scales)
    rows["color"] = to_steps(np.concatenate([colors, opacities[:, None]], 1), 255)
    rows["quat"] = np.rint(quats * 128 + 128).clip(0, 255)
    return rows.tobytes()


def decode_ksplat(data: bytes, name: str) -> Parameters:
    """Read a .ksplat of level 0.

    Raises:
        InputError: a compressed or truncated file.
    """
    sections, level = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<H", data, 20)[0]
    if data[0] != 0 or level != 0:
        what = f"version {data[0]}.{data[1]}" if data[0] else f"compression level {level}"
        raise InputError(f"{name} is a .ksplat of {what}, only level 0 of version 0 is read; export it without compression.")
    if not 0 < sections <= _MOST_SECTIONS:
        raise InputError(f"{name} announces {sections} sections; export it again.")
    place, parts = _KSPLAT_HEADER + sections * _SECTION_HEADER, []
    for section in range(sections):
        head = _KSPLAT_HEADER + section * _SECTION_HEADER
        count, most, _, buckets = struct.unpack_from("<4I", data, head)
        (bucket_bytes,), (partial,), (degree,) = (
            struct.unpack_from(kind, data, head + offset) for kind, offset in (("<H", 20), ("<I", 36), ("<H", 40))
        )
        row = np.dtype([*_KSPLAT, ("harmonics", "<f4", _HARMONICS[degree])])
        place += bucket_bytes * buckets + 4 * partial
        if place + count * row.itemsize > len(data):
            raise InputError(f"{name} is truncated: a section announces {count} Gaussians and holds fewer; copy it again.")
        if count:
            parts.append(np.frombuffer(data, row, count, place)[["mean", "scale", "quat", "color"]])
        place += most * row.itemsize
    if not parts:
        raise InputError(f"{name} holds no Gaussians; export it again.")
    rows = np.concatenate(parts)
    return _from_rows(rows, rows["quat"].astype(np.float64))


def _from_rows(rows: np.ndarray, quats: np.ndarray) -> Parameters:
    with np.errstate(divide="ignore", invalid="ignore"):  # sizes of 0 and below are dropped by the caller
        log_scales = np.log(rows["scale"].astype(np.float64))
    colors = rows["color"] / 255.0
    return gaussians_from(rows["mean"], log_scales, quats, colors[:, 3], colors[:, :3])
