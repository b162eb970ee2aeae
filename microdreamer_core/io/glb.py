"""Textured meshes as binary glTF 2.0, the file that every 3D program, browser and game engine opens.

glTF is right-handed, y up, front towards +z, uv origin at the top left: the conventions of this core, so nothing is converted
but vertex colours, which glTF wants linear.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError
from ..mesh import Mesh, vertex_normals
from ..util.atomic import replacing
from ..util.colors import decode_srgb
from ..util.images import to_uint8

GENERATOR = f"microdreamer-comfyui {__version__}"
_MAGIC, _VERSION, _JSON, _BIN = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
_FLOAT, _UNSIGNED_INT = 5126, 5125
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071
_ROUGHNESS = 1.0


def write_glb(path: str | Path, mesh: Mesh, provenance: dict[str, Any] | None = None) -> Path:
    """Write one mesh with its texture (PNG inside), or its vertex colours, and a rough, non-metallic, two-sided material.

    Args:
        path: the .glb file; replaced only when writing succeeds.
        provenance: how the object was made; goes into ``asset.extras``, must be JSON.

    Raises:
        InputError: the mesh is empty or not finite, the folder is missing, or the provenance is not JSON.
    """
    data = glb_bytes(mesh, provenance)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def glb_bytes(mesh: Mesh, provenance: dict[str, Any] | None = None) -> bytes:
    """What ``write_glb`` writes."""
    check_writable(mesh)
    buffer = _Buffer()
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else _unit(mesh.normals)
    attributes = {
        "POSITION": buffer.accessor(mesh.vertices, "VEC3", bounds=True),
        "NORMAL": buffer.accessor(normals, "VEC3"),
    }
    if mesh.uvs is not None:
        attributes["TEXCOORD_0"] = buffer.accessor(mesh.uvs, "VEC2")
    if mesh.texture is None and mesh.colors is not None:
        attributes["COLOR_0"] = buffer.accessor(decode_srgb(mesh.colors), "VEC3")
    indices = buffer.accessor(mesh.faces.reshape(-1), "SCALAR")
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": _ROUGHNESS}
    material = {"name": "surface", "pbrMetallicRoughness": surface, "doubleSided": True}
    document = {
        "asset": {"version": "2.0", "generator": GENERATOR, "extras": provenance or {}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "object"}],
        "meshes": [{"name": "object", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [material],
    }
    if mesh.texture is not None:
        surface["baseColorTexture"] = {"index": 0}
        document["textures"] = [{"sampler": 0, "source": 0}]
        document["images"] = [
            {"name": "texture", "mimeType": "image/png", "bufferView": buffer.view(texture_png(mesh.texture))}
        ]
        sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
        document["samplers"] = [sampler]
    document |= {"accessors": buffer.accessors, "bufferViews": buffer.views, "buffers": [{"byteLength": len(buffer.data)}]}
    return _container(_json(document), bytes(buffer.data))


class _Buffer:
    """The binary chunk while it grows; every view starts at a multiple of four bytes."""

    def __init__(self):
        self.data = bytearray()
        self.views: list[dict] = []
        self.accessors: list[dict] = []

    def view(self, payload: bytes, target: int | None = None) -> int:
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(payload)})
        if target is not None:
            self.views[-1]["target"] = target
        self.data += payload + b"\0" * (-len(payload) % 4)
        return len(self.views) - 1

    def accessor(self, values: Tensor, kind: str, bounds: bool = False) -> int:
        index = kind == "SCALAR"
        array = np.ascontiguousarray(values.detach().cpu().numpy(), "<u4" if index else "<f4")
        entry = {
            "bufferView": self.view(array.tobytes(), _ELEMENT_ARRAY_BUFFER if index else _ARRAY_BUFFER),
            "componentType": _UNSIGNED_INT if index else _FLOAT,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            entry |= {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        self.accessors.append(entry)
        return len(self.accessors) - 1


def check_writable(mesh: Mesh) -> None:
    """Raise InputError unless the mesh has faces and finite vertices."""
    if len(mesh.faces) == 0:
        raise InputError("A mesh file needs at least one face, got none; extract the mesh at a lower threshold.")
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError("The mesh's vertices hold NaN or infinite numbers; extract it again.")


def texture_png(texture: Tensor) -> bytes:
    """[T,T,3] in [0,1] -> PNG file contents."""
    from PIL import Image

    pixels = to_uint8(texture)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _unit(normals: Tensor) -> Tensor:
    """glTF demands unit length; what has no direction points up."""
    length = normals.norm(dim=1, keepdim=True)
    return torch.where(length > 0, normals / length.clamp_min(1e-20), normals.new_tensor([0.0, 1.0, 0.0]))


def _json(document: dict) -> bytes:
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"The provenance of a GLB must be JSON ({error}); give strings, numbers, lists and dicts.") from error


def _container(document: bytes, binary: bytes) -> bytes:
    """Header, JSON chunk padded with spaces, binary chunk (already a multiple of four)."""
    document += b" " * (-len(document) % 4)
    chunks = struct.pack("<II", len(document), _JSON) + document + struct.pack("<II", len(binary), _BIN) + binary
    return struct.pack("<III", _MAGIC, _VERSION, 12 + len(chunks)) + chunks
