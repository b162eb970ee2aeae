"""Splats in glTF 2.0 with KHR_gaussian_splatting: points with rotations, scales, opacities and spherical harmonics.

Written as the ratified extension says: scales are linear; early drafts had their logarithms, which are recognised by negative
values. glTF is y up with the front towards +z, as this core.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..fields.gaussians import SH_C0, Parameters
from ..render.projection import rotation_matrices
from ..util.colors import decode_srgb
from .glb import GENERATOR
from .gltf import SPLATS, read_points
from .mesh_companions import Companions, glb_chunks
from .splat_values import arrays_of, gaussians_from, to_steps

_PREFIX = f"{SPLATS}:"
_ATTRIBUTES = {"ROTATION": 4, "SCALE": 3, "OPACITY": 1, "SH_DEGREE_0_COEF_0": 3}  # with their widths
_KERNEL = {
    "kernel": "ellipse", "colorSpace": "srgb_rec709_display", "projection": "perspective", "sortingMethod": "cameraDistance",
}  # fmt: skip
_FLOAT, _UNSIGNED_BYTE, _ARRAY_BUFFER, _POINTS = 5126, 5121, 34962, 0
_FINEST = 2e-7  # step of an opacity in float32
_KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def holds_gltf_splats(path: Path) -> bool:
    """Return whether a .glb or .gltf says that it uses the extension."""
    try:
        content = path.read_bytes()
        text = glb_chunks(content)[0] if content.startswith(b"glTF") else content
        return SPLATS in json.loads(text).get("extensionsUsed", ())
    except Exception:  # whatever is wrong with it, the reader of meshes says so
        return False


def decode_gltf(data: bytes, name: str, path: Path) -> Parameters:
    """Read all splats of the default scene, with their nodes' transforms; spherical harmonics above degree 0 are ignored.

    Raises:
        InputError: no splats, compressed ones, or attributes of different lengths.
    """
    parts = []
    for to_world, attributes in read_points(data, Companions(path), name, SPLATS):
        missing = [attribute for attribute in ("POSITION", *map(_PREFIX.__add__, _ATTRIBUTES)) if attribute not in attributes]
        if missing:
            raise InputError(f"{name} has splats without {missing[0]}, as compressed ones; export it without compression.")
        widths = {"POSITION": 3, **{_PREFIX + key: width for key, width in _ATTRIBUTES.items()}}
        shapes = {key: attributes[key].shape for key in widths}
        if any(shapes[key][0] != shapes["POSITION"][0] or shapes[key][1] < width for key, width in widths.items()):
            raise InputError(f"{name} has splats whose attributes have too few numbers; export it again.")
        parts.append(_place(to_world, attributes))
    if not parts:
        raise InputError(f"{name} holds no splats ({SPLATS}); choose another file.")
    return gaussians_from(*(np.concatenate(columns) for columns in zip(*parts, strict=True)), step=_FINEST)


def encode_gltf(parameters: Parameters) -> bytes:
    """Write a .glb; viewers that do not know the extension show coloured points."""
    means, log_scales, quats, opacities, colors = arrays_of(parameters)
    linear = decode_srgb(parameters.dc * SH_C0 + 0.5).numpy()
    columns = {
        "POSITION": means,
        f"{_PREFIX}ROTATION": quats[:, [1, 2, 3, 0]],
        f"{_PREFIX}SCALE": np.exp(log_scales),
        f"{_PREFIX}OPACITY": opacities[:, None],
        f"{_PREFIX}SH_DEGREE_0_COEF_0": parameters.dc.numpy(),
        "COLOR_0": to_steps(np.concatenate([linear, opacities[:, None]], 1), 255),
    }
    arrays = {key: values.astype(np.uint8 if key == "COLOR_0" else "<f4") for key, values in columns.items()}
    accessors, views, start = [], [], 0
    for key, array in arrays.items():
        kind = _UNSIGNED_BYTE if key == "COLOR_0" else _FLOAT
        accessor = {"bufferView": len(views), "componentType": kind, "count": len(array), "type": _KINDS[array.shape[1]]}
        if key == "COLOR_0":
            accessor["normalized"] = True
        elif key == "POSITION":
            accessor |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        accessors.append(accessor)
        views.append({"buffer": 0, "byteOffset": start, "byteLength": array.nbytes, "target": _ARRAY_BUFFER})
        start += array.nbytes
    points = {
        "attributes": dict(zip(arrays, range(len(arrays)), strict=True)),
        "mode": _POINTS,
        "extensions": {SPLATS: _KERNEL},
    }
    document = {
        "asset": {"version": "2.0", "generator": GENERATOR},
        "extensionsUsed": [SPLATS],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "splats"}],
        "meshes": [{"primitives": [points]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(array.tobytes() for array in arrays.values())
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _place(to_world: np.ndarray, attributes: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Means, log-scales, quaternions, opacities and colours in world space."""
    rotations, scales, opacities, harmonics = (
        attributes[_PREFIX + key][:, :width].astype(np.float64) for key, width in _ATTRIBUTES.items()
    )
    means, quats = attributes["POSITION"][:, :3].astype(np.float64), rotations[:, [3, 0, 1, 2]]
    if not bool((scales < 0).any()):
        with np.errstate(divide="ignore"):  # sizes of 0 are dropped by the caller
            scales = np.log(scales)
    if not np.array_equal(to_world, np.eye(4)):
        means = means @ to_world[:3, :3].T + to_world[:3, 3]
        scales, quats = _transform_shapes(to_world[:3, :3], scales, quats)
    return means, scales, quats, opacities[:, 0], harmonics * SH_C0 + 0.5


def _transform_shapes(matrix: np.ndarray, log_scales: np.ndarray, quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The log-scales and quaternions of covariances M C Cᵀ Mᵀ, whose eigenvectors are the new axes."""
    from scipy.spatial.transform import Rotation

    axes = matrix @ rotation_matrices(torch.from_numpy(quats)).numpy() * np.exp(log_scales)[:, None]
    usable = np.isfinite(axes).all((1, 2))
    axes[~usable] = np.nan
    found, turned = np.full_like(log_scales, np.nan), np.full_like(quats, np.nan)
    frames, lengths, _ = np.linalg.svd(axes[usable])
    frames[..., 2] *= np.sign(np.linalg.det(frames))[:, None]
    with np.errstate(divide="ignore"):
        found[usable] = np.log(lengths)
    turned[usable] = Rotation.from_matrix(frames).as_quat()[:, [3, 0, 1, 2]]
    return found, turned
