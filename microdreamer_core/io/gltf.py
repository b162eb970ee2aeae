"""Reading of glTF 2.0: the triangles of a scene with their materials, in world space.

Own code, because the look of a file is decided by parts that trimesh leaves out: component types and linearity of vertex
colours, samplers, texture transforms, alpha masks, skins.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..mesh import SurfaceMaps
from ..render.projection import rotation_matrices
from ..util.image_files import eight_bit, open_image
from ..util.images import from_uint8
from .appearance import Material, Part
from .mesh_companions import Companions, glb_chunks, read_uri

logger = logging.getLogger(__name__)

_GLB_MAGIC = b"glTF"
_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_MOST_NUMBERS = 1 << 28  # of an accessor without data, whose count alone decides its memory
_WRAPS = {10497: "repeat", 33648: "mirror", 33071: "clamp"}
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_HALF = 0.5
_PACKED = ("KHR_draco_mesh_compression", "EXT_meshopt_compression")
SPLATS = "KHR_gaussian_splatting"
"""The extension of glTF whose points are splats."""


def read_gltf(content: bytes, companions: Companions, name: str) -> list[Part]:
    """Read all triangles of the default scene of a .glb or .gltf.

    Node transforms and skins (in the pose of the nodes) are applied; points, lines and cameras are ignored, animations
    with a warning.

    Raises:
        InputError: a compressed file, a missing buffer, or a base colour that is not an image of a supported format.
        KeyError, IndexError, TypeError, ValueError, struct.error, RecursionError: not a valid glTF.
    """
    return list(_Document(content, companions, name).parts())


def read_points(
    content: bytes, companions: Companions, name: str, extension: str
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Read the primitives of the default scene that carry an extension: ([4,4] transform to world space, attributes [N,W] as
    float32 by name, those that are stored).

    Raises: as ``read_gltf``.
    """
    return _Document(content, companions, name).points(extension)


class _Document:
    """A parsed glTF with its buffers; images are decoded when a material asks for them."""

    def __init__(self, content: bytes, companions: Companions, name: str):
        text, binary = glb_chunks(content) if content.startswith(_GLB_MAGIC) else (content, None)
        self._tree: dict[str, Any] = json.loads(text)
        packed = set(_PACKED) & set(self._tree.get("extensionsRequired", []))
        if packed:
            raise InputError(f"{name} is compressed ({', '.join(sorted(packed))}); export it without compression.")
        self._name, self._companions = name, companions
        self._images: dict[int, np.ndarray | None] = {}
        self._materials: dict[int | None, tuple[Material, dict]] = {}
        self._buffers = [self._buffer(buffer, binary) for buffer in self._tree.get("buffers", [])]

    def parts(self) -> Iterator[Part]:
        """Yield the primitives that consist of triangles."""
        nodes = self._tree.get("nodes", [])
        if "animations" in self._tree:
            logger.warning("%s is animated; it is read in the pose that its nodes have, without the animation", self._name)
        for index, to_world in self._world.items():
            if "mesh" not in nodes[index]:
                continue
            for primitive in self._tree["meshes"][nodes[index]["mesh"]]["primitives"]:
                part = self._part(primitive, to_world, nodes[index].get("skin"))
                if part is not None:
                    yield part

    def points(self, extension: str) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield the primitives that carry the extension, see ``read_points``."""
        nodes = self._tree.get("nodes", [])
        for index, to_world in self._world.items():
            for primitive in self._tree["meshes"][nodes[index]["mesh"]]["primitives"] if "mesh" in nodes[index] else ():
                if extension in primitive.get("extensions", {}):
                    stored = [entry for entry in primitive["attributes"].items() if self._is_stored(entry[1])]
                    yield to_world, {attribute: self._floats(accessor) for attribute, accessor in stored}

    def _is_stored(self, accessor: int) -> bool:
        """Whether an accessor has data; those of compressed primitives have none."""
        return bool({"bufferView", "sparse"} & set(self._tree["accessors"][accessor]))

    @cached_property
    def _world(self) -> dict[int, np.ndarray]:
        """The nodes of the default scene, with their transforms to world space [4,4]."""
        nodes, scenes = self._tree.get("nodes", []), self._tree.get("scenes", [])
        below = {child for node in nodes for child in node.get("children", [])}
        if scenes:
            roots = scenes[self._tree.get("scene", 0)].get("nodes", [])
        else:
            roots = [i for i in range(len(nodes)) if i not in below]
        found: dict[int, np.ndarray] = {}
        waiting = [(root, np.eye(4)) for root in reversed(roots)]
        while waiting:
            index, above = waiting.pop()
            if index in found or index < 0:  # each node has one parent; a damaged file may have circles
                continue
            found[index] = above @ _local_matrix(nodes[index])
            waiting += [(child, found[index]) for child in reversed(nodes[index].get("children", []))]
        return found

    def _part(self, primitive: dict[str, Any], to_world: np.ndarray, skin: int | None) -> Part | None:
        attributes, mode = primitive.get("attributes", {}), primitive.get("mode", _TRIANGLES)
        if "POSITION" not in attributes or mode not in (_TRIANGLES, _STRIP, _FAN) or SPLATS in primitive.get("extensions", {}):
            return None
        positions = self._floats(attributes["POSITION"])[:, :3]
        count = len(positions)
        order = self._accessor(primitive["indices"]).ravel() if "indices" in primitive else np.arange(count)
        faces = _triangles(order.astype(np.int64), mode)
        if not len(faces):
            return None
        if int(faces.min()) < 0 or int(faces.max()) >= count:
            raise InputError(f"{self._name} has vertices that are not there; export it again.")
        matrices = to_world[None] if skin is None else self._pose(skin, attributes)
        if np.linalg.det(matrices[0, :3, :3]) < 0:  # mirrored
            faces = faces[:, ::-1]
        material, look = self._material(primitive.get("material"))
        normals = self._optional(attributes.get("NORMAL"), count)
        colors = self._optional(attributes.get("COLOR_0"), count, normalized=True)
        matrix, number = _texture_transform(look)
        uvs = self._optional(attributes.get(f"TEXCOORD_{number}"), count)
        if colors is not None and colors.shape[1] == 3:
            colors = np.concatenate([colors, np.ones_like(colors[:, :1])], 1)
        turned = None if normals is None else _transform(normals[:, :3], _normal_matrices(matrices))
        return Part(
            torch.from_numpy(_transform(positions, matrices[:, :3, :3]) + np.float32(matrices[:, :3, 3])),
            torch.from_numpy(np.ascontiguousarray(faces)),
            material,
            uvs=None if uvs is None else torch.from_numpy(uvs[:, :2]) @ matrix[:, :2].T + matrix[:, 2],
            normals=None if turned is None else torch.nn.functional.normalize(torch.from_numpy(turned), dim=1),
            colors=None if colors is None else torch.from_numpy(colors[:, :4].clip(0, 1)),
        )

    def _pose(self, skin: int, attributes: dict[str, int]) -> np.ndarray:
        """[N,4,4] transforms of skinned vertices: the weighted mean of their joints'."""
        entry = self._tree["skins"][skin]
        joints = np.stack([self._world.get(joint, np.eye(4)) for joint in entry["joints"]])
        if "inverseBindMatrices" in entry:
            joints = joints @ self._floats(entry["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        groups = [group for group in range(2) if f"JOINTS_{group}" in attributes]
        if not groups:
            return np.eye(4)[None]
        weights, chosen = (
            np.concatenate([read(attributes[f"{name}_{group}"]) for group in groups], 1)
            for name, read in (("WEIGHTS", self._floats), ("JOINTS", self._accessor))
        )
        total = np.zeros((len(weights), 4, 4))
        for weight, joint in zip(weights.T, chosen.T, strict=True):
            total += weight[:, None, None] * joints[joint]
        return total

    # --- numbers

    def _buffer(self, buffer: dict[str, Any], binary: bytes | None) -> bytes:
        if "uri" not in buffer:
            return b"" if binary is None else binary
        try:
            return read_uri(buffer["uri"], self._companions)
        except FileNotFoundError as error:
            raise InputError(f"{self._name} needs {buffer['uri']!r:.100}, which is not in its folder; put it there.") from error

    def _view(self, index: int) -> tuple[memoryview, int | None]:
        view = self._tree["bufferViews"][index]
        start, length = view.get("byteOffset", 0), view["byteLength"]
        data = self._buffers[view["buffer"]]
        if start < 0 or length < 0 or start + length > len(data):
            raise ValueError("a part of the file lies outside its buffer")
        return memoryview(data)[start : start + length], view.get("byteStride")

    def _accessor(self, index: int) -> np.ndarray:
        """[count,width] numbers as they are stored."""
        entry = self._tree["accessors"][index]
        width, dtype, count = _WIDTHS[entry["type"]], np.dtype(_DTYPES[entry["componentType"]]), entry["count"]
        if "bufferView" in entry:
            values = self._stored(entry["bufferView"], entry.get("byteOffset", 0), dtype, count, width)
        elif 0 <= count * width <= _MOST_NUMBERS:
            values = np.zeros((count, width), dtype)
        else:
            raise ValueError(f"{count} numbers without data")
        sparse = entry.get("sparse")
        if sparse is None:
            return values
        values, where, what = values.copy(), sparse["indices"], sparse["values"]
        places = self._stored(
            where["bufferView"], where.get("byteOffset", 0), np.dtype(_DTYPES[where["componentType"]]), sparse["count"], 1
        )
        values[places[:, 0]] = self._stored(what["bufferView"], what.get("byteOffset", 0), dtype, sparse["count"], width)
        return values

    def _stored(self, view: int, offset: int, dtype: np.dtype, count: int, width: int) -> np.ndarray:
        data, stride = self._view(view)
        size = dtype.itemsize * width
        stride = stride or size
        if count < 0 or offset < 0 or stride < size:
            raise ValueError("an accessor has a negative size")
        if count == 0:
            return np.zeros((0, width), dtype)
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))  # raises if the data is too short

    def _floats(self, index: int, *, normalized: bool = False) -> np.ndarray:
        """[count,width] float32; integers are fractions of their largest where ``normalized`` or the accessor says so."""
        values = self._accessor(index)
        if values.dtype.kind == "f" or not (normalized or self._tree["accessors"][index].get("normalized")):
            return values.astype(np.float32)
        return np.maximum(values / np.float32(np.iinfo(values.dtype).max), -1).astype(np.float32)

    def _optional(self, index: int | None, count: int, *, normalized: bool = False) -> np.ndarray | None:
        """An attribute of the vertices; None if it is missing or does not fit them."""
        if index is None:
            return None
        values = self._floats(index, normalized=normalized)
        return values if len(values) == count and bool(np.isfinite(values).all()) else None

    # --- materials

    def _material(self, index: int | None) -> tuple[Material, dict]:
        """The material of that index, the same object every time, and its base colour's texture info."""
        if index not in self._materials:
            entry = {} if index is None else self._tree["materials"][index]
            self._materials[index] = self._read_material(entry)
        return self._materials[index]

    def _read_material(self, entry: dict[str, Any]) -> tuple[Material, dict]:
        rough = entry.get("pbrMetallicRoughness", {})
        glossy = entry.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
        look = rough.get("baseColorTexture") or glossy.get("diffuseTexture") or {}
        factor = torch.tensor(rough.get("baseColorFactor") or glossy.get("diffuseFactor") or [1.0] * 4, dtype=torch.float32)
        image = self._image(look["index"], required=True) if look else None
        cutoff = {"MASK": float(entry.get("alphaCutoff", _HALF)), "BLEND": _HALF}.get(entry.get("alphaMode", "OPAQUE"))
        if entry.get("alphaMode") == "BLEND" and (image is None or not (image[..., 3] >= 128).any()):
            logger.warning("%s has a transparent material, which is shown opaque", self._name)
            cutoff = None
        material = Material(
            factor.clamp(0, 1).reshape(4),
            None if image is None else from_uint8(image),
            self._wrap(look),
            cutoff,
            self._maps(entry, look),
        )
        return material, look

    def _maps(self, entry: dict[str, Any], look: dict[str, Any]) -> SurfaceMaps | None:
        """What the material holds beside its colour, as far as it lies on the base colour's uvs."""
        rough, dropped = entry.get("pbrMetallicRoughness", {}), []

        def read(info: dict[str, Any] | None, name: str) -> Tensor | None:
            if not info:
                return None
            image = self._image(info["index"], required=False)
            (matrix, number), (own, own_number) = _texture_transform(info), _texture_transform(look)
            if image is None or number != own_number or not torch.equal(matrix, own):
                dropped.append(name)
                return None
            return from_uint8(image[..., :3])

        normal, occlusion = entry.get("normalTexture", {}), entry.get("occlusionTexture", {})
        if not ({"pbrMetallicRoughness", "emissiveFactor"} & set(entry) or normal or occlusion):
            return None
        maps = SurfaceMaps(
            metallic=float(rough.get("metallicFactor", 1.0)),
            roughness=float(rough.get("roughnessFactor", 1.0)),
            metallic_roughness=read(rough.get("metallicRoughnessTexture"), "metallic-roughness"),
            normal=read(normal, "normal map"),
            normal_scale=float(normal.get("scale", 1.0)),
            occlusion=read(occlusion, "occlusion"),
            occlusion_strength=float(occlusion.get("strength", 1.0)),
            emissive=read(entry.get("emissiveTexture"), "emission"),
            emission=_emission(entry),
        )
        if dropped:
            logger.warning("%s: %s of a material cannot be kept", self._name, ", ".join(dropped))
        return maps

    def _wrap(self, look: dict[str, Any]) -> tuple[str, str]:
        texture = self._tree["textures"][look["index"]] if look else {}
        sampler = self._tree["samplers"][texture["sampler"]] if "sampler" in texture else {}
        return _WRAPS[sampler.get("wrapS", 10497)], _WRAPS[sampler.get("wrapT", 10497)]

    def _image(self, texture: int, *, required: bool) -> np.ndarray | None:
        """[H,W,4] pixels of a texture; None if the file is missing or, unless required, in another format.

        Raises:
            InputError: it is required and of an unsupported format.
        """
        entry = self._tree["textures"][texture]
        source = entry.get("extensions", {}).get("EXT_texture_webp", {}).get("source", entry.get("source"))
        if source is None:
            logger.warning("%s has a texture in a format that is not read; continuing without it", self._name)
            return None
        if source not in self._images:
            try:
                self._images[source] = self._decode(self._tree["images"][source])
            except InputError as error:
                if required:
                    raise
                logger.warning("%s; continuing without it", error)
                self._images[source] = None
        return self._images[source]

    def _decode(self, image: dict[str, Any]) -> np.ndarray | None:
        if "bufferView" in image:
            content = bytes(self._view(image["bufferView"])[0])
        else:
            try:
                content = read_uri(image["uri"], self._companions)
            except FileNotFoundError:
                return None
        return np.array(eight_bit(open_image(content, f"A texture of {self._name}")).convert("RGBA"))


def _local_matrix(node: dict[str, Any]) -> np.ndarray:
    """[4,4] transform of a node to its parent."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        x, y, z, w = node["rotation"]
        matrix[:3, :3] = rotation_matrices(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    matrix[:3, :3] *= np.array(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _transform(vectors: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """[N,3] vectors by one [1,3,3] matrix or by one each."""
    return np.einsum("nij,nj->ni", np.broadcast_to(matrices, (len(vectors), 3, 3)), vectors).astype(np.float32)


def _normal_matrices(matrices: np.ndarray) -> np.ndarray:
    """The cofactor matrices, which turn normals as the transforms turn surfaces, singular ones included."""
    a, b, c = matrices[:, :3, 0], matrices[:, :3, 1], matrices[:, :3, 2]
    cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -1)
    return cofactors * np.sign(np.linalg.det(matrices[:, :3, :3]))[:, None, None]


def _triangles(order: np.ndarray, mode: int) -> np.ndarray:
    """[M,3] faces of a list, strip or fan."""
    if mode == _TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if mode == _FAN:
        return np.stack([np.repeat(order[:1], max(0, len(order) - 2)), order[1:-1], order[2:]], 1)
    faces = np.stack([order[:-2], order[1:-1], order[2:]], 1)
    faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]


def _texture_transform(info: dict[str, Any]) -> tuple[Tensor, int]:
    """([2,3] matrix of the uvs, set of uvs) of a texture info (KHR_texture_transform)."""
    extension = info.get("extensions", {}).get("KHR_texture_transform", {})
    angle, (across, down) = float(extension.get("rotation", 0.0)), extension.get("scale", (1.0, 1.0))
    cos, sin, offset = math.cos(angle), math.sin(angle), extension.get("offset", (0.0, 0.0))
    matrix = [[cos * across, sin * down, offset[0]], [-sin * across, cos * down, offset[1]]]
    return torch.tensor(matrix, dtype=torch.float32), extension.get("texCoord", info.get("texCoord", 0))


def _emission(entry: dict[str, Any]) -> tuple[float, float, float]:
    bright = entry.get("extensions", {}).get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1.0)
    red, green, blue = (float(value) * float(bright) for value in entry.get("emissiveFactor", (0.0, 0.0, 0.0)))
    return red, green, blue
