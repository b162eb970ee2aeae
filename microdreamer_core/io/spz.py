"""Splats in Niantic's .spz: gzip around one array of bytes an attribute (versions 1 to 3; written is 3).

Layout and numbers: https://github.com/nianticlabs/spz. Positions are fixed-point numbers of 24 bits, logarithms of scales have
steps of 1/16 in -10 to 6, opacities and colours 8 bits, the three smaller components of a quaternion 10 bits each.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib

import numpy as np

from ..errors import InputError
from ..fields.gaussians import SH_C0, Parameters
from .splat_values import arrays_of, gaussians_from, to_steps

logger = logging.getLogger(__name__)

GZIP, MAGIC = b"\x1f\x8b", b"NGSP"
_HEADER = struct.Struct("<4sIIBBBB")
_VERSIONS = (1, 2, 3)
_MOST_POINTS = 50_000_000
_HARMONICS = {0: 0, 1: 9, 2: 24, 3: 45, 4: 72}  # bytes a Gaussian, by degree
_CONTRAST = 0.15  # colours are stored as 0.5 + 0.15 dc
_SCALE_STEP, _SCALE_START = 1 / 16, -10.0
_LARGEST_POSITION, _RESOLUTION = 23, 16  # bits of a position without its sign; of the longest side of the object
_GZIP_WINDOW = 31


def decode_spz(data: bytes, name: str) -> Parameters:
    """Read a .spz; spherical harmonics above degree 0 are ignored.

    Raises:
        InputError: another version, or a truncated or damaged file.
    """
    if data.startswith(MAGIC):
        version = struct.unpack_from("<I", data, 4)[0]
        raise InputError(
            f"{name} is a .spz of version {version}, 1 to 3 are read; export it with an older version, or as .ply."
        )
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    magic, version, count, degree, fraction, _, _ = _HEADER.unpack(unpacker.decompress(data, _HEADER.size))
    if magic != MAGIC:
        raise InputError(f"{name} is a gzip file but no .spz; unpack it first.")
    if version not in _VERSIONS or degree not in _HARMONICS:
        raise InputError(f"{name} is a .spz of version {version} and degree {degree}; 1 to 3 are read, of degree 0 to 4.")
    if not 0 < count <= _MOST_POINTS:
        raise InputError(f"{name} announces {count} Gaussians, 1 to {_MOST_POINTS} are read; export it again.")
    widths = (6 if version == 1 else 9, 1, 3, 3, 4 if version == 3 else 3)
    body = unpacker.decompress(unpacker.unconsumed_tail, count * sum(widths))
    if len(body) < count * sum(widths):
        raise InputError(f"{name} is truncated: it announces {count} Gaussians and holds fewer; copy it again.")
    parts = np.split(np.frombuffer(body, np.uint8), np.cumsum([count * width for width in widths])[:-1])
    positions, opacities, colors, scales, rotations = (part.reshape(count, -1) for part in parts)
    if version == 1:
        means = positions.copy().view("<f2").astype(np.float64)
    else:
        means = _signed24(positions.reshape(count, 3, 3)) / 2.0**fraction
    return gaussians_from(
        means,
        scales * _SCALE_STEP + _SCALE_START,
        _smallest_three(rotations.copy().view("<u4")[:, 0]) if version == 3 else _first_three(rotations),
        opacities[:, 0] / 255.0,
        0.5 + SH_C0 * (colors / 255.0 - 0.5) / _CONTRAST,
    )


def encode_spz(parameters: Parameters) -> bytes:
    """Write a .spz of version 3, of degree 0.

    The resolution of positions follows the object's size, so that small ones keep their shape.
    """
    means, log_scales, quats, opacities, colors = arrays_of(parameters)
    lowest, highest = _SCALE_START, _SCALE_START + 255 * _SCALE_STEP
    beyond = int(((log_scales < lowest) | (log_scales > highest)).any(1).sum())
    if beyond:
        logger.warning(
            "%d Gaussians are smaller or larger than a .spz can say (%.1e to %.0f) and change their size; scale the object, or "
            "write a .ply", beyond, math.exp(lowest), math.exp(highest),
        )  # fmt: skip
    farthest, side = float(abs(means).max()), float(np.ptp(means, axis=0).max())
    fraction = _LARGEST_POSITION - _bits(farthest)
    if side:
        fraction = min(fraction, _RESOLUTION - _bits(side))
    fraction = min(max(fraction, 0), 30)
    limit = 2**_LARGEST_POSITION
    fixed = np.clip(np.rint(means * 2.0**fraction), -limit, limit - 1).astype("<i4")
    arrays = (
        np.ascontiguousarray(fixed).view(np.uint8).reshape(-1, 3, 4)[..., :3],
        to_steps(opacities, 255),
        to_steps(0.5 + _CONTRAST * (colors - 0.5) / SH_C0, 255),
        to_steps((log_scales - _SCALE_START) / (255 * _SCALE_STEP), 255),
    )
    header = _HEADER.pack(MAGIC, 3, len(means), 0, fraction, 0, 0)
    body = b"".join(array.astype(np.uint8).tobytes() for array in arrays) + _pack_smallest_three(quats).tobytes()
    return gzip.compress(header + body, mtime=0)


def _bits(value: float) -> int:
    return math.ceil(math.log2(value)) if value > 0 else 0


def _signed24(octets: np.ndarray) -> np.ndarray:
    """[...,3] bytes, the lowest first -> signed integers."""
    low, middle, high = (octets[..., i].astype(np.int32) for i in range(3))
    return low | middle << 8 | high.astype(np.int8).astype(np.int32) << 16


def _first_three(octets: np.ndarray) -> np.ndarray:
    """[N,3] bytes of x, y, z -> quaternions wxyz; w is positive."""
    xyz = octets / 127.5 - 1
    return np.concatenate([np.sqrt(np.clip(1 - (xyz**2).sum(1, keepdims=True), 0, None)), xyz], 1)


def _smallest_three(packed: np.ndarray) -> np.ndarray:
    """[N] words -> quaternions wxyz; a word has the index of the largest of x, y, z, w, then the others as sign and 9 bits."""
    fields = np.stack([packed >> shift & 0x3FF for shift in (20, 10, 0)], 1).astype(np.int64)
    others = np.where(fields & 0x200, -1, 1) * (fields & 0x1FF) * (math.sqrt(0.5) / 0x1FF)
    return restore_largest(others, packed >> 30)[:, [3, 0, 1, 2]]


def _pack_smallest_three(quats: np.ndarray) -> np.ndarray:
    others, largest = split_largest(quats[:, [1, 2, 3, 0]])
    fields = np.rint(abs(others) * (0x1FF / math.sqrt(0.5))).clip(0, 0x1FF).astype(np.uint32) | (others < 0) * np.uint32(0x200)
    return (largest << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2]).astype("<u4")


def split_largest(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split unit quaternions [N,4] into their three smaller components [N,3], signed so that the largest is positive, and the
    index [N] uint32 of the largest."""
    largest = abs(quats).argmax(1)
    rows = np.arange(len(quats))
    signed = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    kept = np.arange(4)[None] != largest[:, None]
    return signed[kept].reshape(-1, 3), largest.astype(np.uint32)


def restore_largest(others: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Invert ``split_largest``."""
    quats = np.zeros((len(others), 4))
    kept = np.arange(4)[None] != largest[:, None]
    quats[kept] = others.ravel()
    quats[~kept] = np.sqrt(np.clip(1 - (others**2).sum(1), 0, None))
    return quats
