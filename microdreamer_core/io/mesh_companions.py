"""The files that a mesh file refers to (materials, buffers, images), read and checked here so that trimesh opens none itself.

What trimesh would open depends on its version: absolute paths, paths outside the folder, and images in any format that Pillow
decodes.
"""

from __future__ import annotations

import base64
import json
import logging
import struct
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from ..errors import InputError
from ..util.image_files import check_encoded

logger = logging.getLogger(__name__)

_GLB_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = b"glTF", b"JSON", b"BIN\0"
_MOST_BYTES = 1 << 31
_MATERIAL_SUFFIX = ".mtl"


class Companions:
    """Reads files that a mesh refers to, only from the mesh's folder and below; a trimesh resolver for OBJ and PLY.

    Absolute names, and names that lead outside the folder by ``..`` or a link, are replaced by their last part, as for files
    that were moved together with the mesh.

    Attributes:
        refused: why an image was refused; trimesh itself would continue silently.
    """

    def __init__(self, mesh: Path):
        self._mesh = mesh
        self._folder = mesh.parent.resolve()
        self.refused: InputError | None = None

    def find(self, name: str) -> Path | None:
        """Return the file of that name, None if the folder has none."""
        # Windows paths know both slashes, drives and servers: no name may reach these, on any system
        named = PureWindowsPath(name.strip())
        inside = not (named.drive or named.root or ".." in named.parts)
        for parts in (named.parts if inside else (), named.parts[-1:]):
            path = self._folder.joinpath(*parts).resolve()
            if path.is_relative_to(self._folder) and path.is_file() and path.stat().st_size <= _MOST_BYTES:
                return path
        return None

    def read(self, name: str) -> bytes:
        """Read the file of that name, plain or percent-encoded.

        Raises:
            FileNotFoundError: the folder has none.
        """
        path = None
        if isinstance(name, str) and "\0" not in unquote(name):
            path = self.find(name) or self.find(unquote(name))
        if path is None:
            logger.warning("%s names %.100r, which is not in its folder; continuing without it", self._mesh.name, name)
            raise FileNotFoundError(name)
        return path.read_bytes()

    def get(self, name: str) -> bytes:
        """Return a file for trimesh: a material's text, or an image of a supported format."""
        content = self.read(name)
        if name.strip().lower().endswith(_MATERIAL_SUFFIX):
            return b"# material\n" + content  # so that Pillow does not decode it if it is also named as an image
        try:
            return check_encoded(content, f"{Path(name).name}, a texture of {self._mesh.name},")
        except InputError as error:
            self.refused = error
            raise

    __getitem__ = get


def standalone_gltf(content: bytes, companions: Companions, name: str) -> tuple[bytes, dict[str, bytes]]:
    """Split a .glb or .gltf into its JSON and the files it refers to, all read and checked here.

    Images other than base colours are dropped, because they are not used.

    Returns:
        (JSON whose buffers and images have plain keys as uris, contents by key).

    Raises:
        InputError: a base colour is not an image of a supported format, or a buffer is missing.
        KeyError, IndexError, TypeError, ValueError, struct.error, RecursionError: not a valid glTF.
    """
    text, binary = _glb_chunks(content) if content.startswith(_GLB_MAGIC) else (content, None)
    tree = json.loads(text)
    files = {}
    for i, buffer in enumerate(tree.get("buffers", [])):
        try:
            files[f"buffer-{i}"] = (
                binary if binary is not None and "uri" not in buffer else _read_uri(buffer["uri"], companions)
            )
        except FileNotFoundError as error:
            raise InputError(f"{name} needs {buffer['uri']!r:.100}, which is not in its folder; put it there.") from error
        buffer["uri"] = f"buffer-{i}"
    images, shown = tree.get("images", []), _base_colors(tree)
    for i, image in enumerate(images):
        images[i] = {}
        encoded = _read_image(image, tree, files, companions) if i in shown else None
        if encoded is not None:
            files[f"image-{i}"] = check_encoded(encoded, f"A texture of {name}")
            images[i] = {"uri": f"image-{i}"}
    return json.dumps(tree).encode(), files


def _glb_chunks(content: bytes) -> tuple[bytes, bytes | None]:
    """JSON and binary part of a GLB."""
    _, version, _ = struct.unpack_from("<4sII", content)
    if version != 2:
        raise ValueError(f"version {version} of glTF, expected 2")
    found, start = {}, 12
    while start + 8 <= len(content):
        length, kind = struct.unpack_from("<I4s", content, start)
        if start + 8 + length > len(content):
            raise ValueError(f"cut off: {length} bytes are announced, {len(content) - start - 8} are there")
        found.setdefault(kind, content[start + 8 : start + 8 + length])
        start += 8 + length
    return found[_JSON_CHUNK], found.get(_BINARY_CHUNK)


def _base_colors(tree: dict[str, Any]) -> set[int]:
    """Indices of the images used as a material's base colour."""
    shown = set()
    for material in tree.get("materials", []):
        glossy = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
        for look in (material.get("pbrMetallicRoughness", {}).get("baseColorTexture"), glossy.get("diffuseTexture")):
            if look is not None:
                texture = tree["textures"][look["index"]]
                webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
                shown |= {texture.get("source"), webp.get("source")}
    return shown - {None}


def _read_image(image: dict, tree: dict, files: dict[str, bytes], companions: Companions) -> bytes | None:
    """An image's encoded bytes; None if its file is missing."""
    if "bufferView" not in image:
        try:
            return _read_uri(image["uri"], companions)
        except FileNotFoundError:
            return None
    view = tree["bufferViews"][image["bufferView"]]
    start, data = view.get("byteOffset", 0), files[f"buffer-{view['buffer']}"]
    if start < 0 or view["byteLength"] < 0:
        raise ValueError("an image begins before its buffer")
    return data[start : start + view["byteLength"]]


def _read_uri(uri: str, companions: Companions) -> bytes:
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition("base64,")[2])
    return companions.read(uri)
