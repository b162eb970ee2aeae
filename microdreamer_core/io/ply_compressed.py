"""Compressed splat PLYs of SuperSplat and the PlayCanvas engine.

Gaussians lie in chunks of 256. A chunk stores the bounds of its positions, logarithms of scales and colours as float32; each
Gaussian has four 32-bit words: position and scale within the bounds as 11, 10 and 11 bits, the three smaller components of the
quaternion wxyz as 10 bits each after the index of the largest, and colour and opacity as 8 bits each.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from ..errors import InputError
from ..fields.gaussians import Parameters
from ..util.vocabulary import Up
from .splat_values import arrays_of, gaussians_from, to_steps
from .spz import restore_largest, split_largest

PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_GROUPS = (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
_BOUNDS = tuple(f"{end}_{axis}" for group in _GROUPS for end, axis in product(("min", "max"), group))
CHUNK_BOUNDS = _BOUNDS[:12]
"""Bounds that every file has; older ones have none of colours, which then lie in 0 to 1."""
_CHUNK = 256
_BITS = ((21, 11), (11, 10), (0, 11))  # shift and width of three values in a word
_ROTATION_RANGE = math.sqrt(0.5)  # of the smaller components
_MORTON_BITS = 10


def unpack_chunks(chunks: dict[str, np.ndarray], rows: dict[str, np.ndarray], name: str) -> Parameters:
    """Make raw parameters of the columns of the elements "chunk" and "vertex".

    Raises:
        InputError: there are fewer chunks than the Gaussians need.
    """
    words = {column: rows[column].astype(np.uint32) for column in PACKED}
    count, present = len(words["packed_position"]), len(chunks["min_x"])
    if present * _CHUNK < count:
        raise InputError(f"{name} has {present} chunks for {count} Gaussians, {_CHUNK} fit into one; export it again.")
    chunk = np.arange(count) // _CHUNK

    def within(share: np.ndarray, group: tuple[str, ...]) -> np.ndarray:
        low, high = (np.stack([chunks[f"{end}_{axis}"][chunk] for axis in group], 1).astype(float) for end in ("min", "max"))
        return low + share * (high - low)

    octets = np.stack([words["packed_color"] >> shift & 0xFF for shift in (24, 16, 8, 0)], 1) / 255.0
    others = np.stack([words["packed_rotation"] >> shift & 0x3FF for shift in (20, 10, 0)], 1) / 0x3FF
    return gaussians_from(
        within(_fractions(words["packed_position"]), _GROUPS[0]),
        within(_fractions(words["packed_scale"]), _GROUPS[1]),
        restore_largest((others * 2 - 1) * _ROTATION_RANGE, words["packed_rotation"] >> 30),
        octets[:, 3],
        within(octets[:, :3], _GROUPS[2]) if "min_r" in chunks else octets[:, :3],
    )


def encode_compressed_ply(parameters: Parameters, up: Up) -> bytes:
    """Write a compressed PLY: 17 bytes a Gaussian, in the order of a Morton curve, so that chunks are compact."""
    means, log_scales, quats, opacities, colors = arrays_of(parameters)
    order = _morton_order(means)
    values = means[order], log_scales[order], colors[order]
    bounds, shares = zip(*map(_normalise, values), strict=True)
    others, largest = split_largest(quats[order])
    fields = to_steps(others / _ROTATION_RANGE / 2 + 0.5, 0x3FF)
    octets = to_steps(np.concatenate([shares[2], opacities[order, None]], 1), 255)
    words = (
        _pack(shares[0]),
        largest << 30 | fields[:, 0] << 20 | fields[:, 1] << 10 | fields[:, 2],
        _pack(shares[1]),
        octets[:, 0] << 24 | octets[:, 1] << 16 | octets[:, 2] << 8 | octets[:, 3],
    )
    chunks = np.concatenate(bounds, 1).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"comment up {up}", f"element chunk {len(chunks)}"]
    header += [f"property float {bound}" for bound in _BOUNDS]
    header += [f"element vertex {len(order)}", *(f"property uint {word}" for word in PACKED), "end_header\n"]
    return "\n".join(header).encode() + chunks.tobytes() + np.stack(words, 1).astype("<u4").tobytes()


def _normalise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([C,6] lowest and highest of each chunk as float32, [N,3] places between them)."""
    starts = np.arange(0, len(values), _CHUNK)
    low, high = (reduce.reduceat(values, starts).astype(np.float32).astype(float) for reduce in (np.minimum, np.maximum))
    chunk = np.arange(len(values)) // _CHUNK
    span = high - low
    return np.concatenate([low, high], 1), (values - low[chunk]) / np.where(span > 0, span, 1)[chunk]


def _fractions(words: np.ndarray) -> np.ndarray:
    """[N] words -> [N,3] in [0,1]."""
    return np.stack([(words >> shift & (1 << width) - 1) / ((1 << width) - 1) for shift, width in _BITS], 1)


def _pack(shares: np.ndarray) -> np.ndarray:
    x, y, z = (to_steps(shares[:, i], (1 << width) - 1) << shift for i, (shift, width) in enumerate(_BITS))
    return x | y | z


def _morton_order(means: np.ndarray) -> np.ndarray:
    """Indices along the curve that interleaves the bits of the coordinates (Morton 1966)."""
    span = np.ptp(means, axis=0)
    cells = to_steps((means - means.min(0)) / np.where(span > 0, span, 1), (1 << _MORTON_BITS) - 1).astype(np.uint64)
    code = np.zeros(len(means), np.uint64)
    for bit, axis in product(range(_MORTON_BITS), range(3)):
        code |= (cells[:, axis] >> np.uint64(bit) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return np.argsort(code, kind="stable")
