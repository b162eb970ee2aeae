"""The files that a mesh names beside itself, and its images, read for trimesh so that trimesh opens none itself.

What trimesh reads by its own rules depends on its version: absolute paths, paths out of the folder, and images by whichever
decoder their content chooses.
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
    """Reads what a mesh names, from the mesh's own folder and below; a trimesh resolver for OBJ and PLY.

    Absolute names and names that lead out of the folder, by ``..`` or by a link, are looked for by their last part, as a file
    that was moved together with its mesh.

    Attributes:
        refused: why a named image was not let through; trimesh itself would go on without a word.
    """

    def __init__(self, mesh: Path):
        self._mesh = mesh
        self._folder = mesh.parent.resolve()
        self.refused: InputError | None = None

    def find(self, name: str) -> Path | None:
        """The file of that name, None when there is none in the folder."""
        # Windows' rules know both kinds of slashes, drives and servers: no name may reach one, on whichever system
        named = PureWindowsPath(name.strip())
        inside = not (named.drive or named.root or ".." in named.parts)
        for parts in (named.parts if inside else (), named.parts[-1:]):
            path = self._folder.joinpath(*parts).resolve()
            if path.is_relative_to(self._folder) and path.is_file() and path.stat().st_size <= _MOST_BYTES:
                return path
        return None

    def read(self, name: str) -> bytes:
        """The content of the file of that name, as it is or percent-encoded.

        Raises:
            FileNotFoundError: the folder has none.
        """
        path = None
        if isinstance(name, str) and "\0" not in unquote(name):
            path = self.find(name) or self.find(unquote(name))
        if path is None:
            logger.warning("%s names %.100r, which is not in its folder; going on without it", self._mesh.name, name)
            raise FileNotFoundError(name)
        return path.read_bytes()

    def get(self, name: str) -> bytes:
        """For trimesh: a material's text, or an image that any decoder of Pillow's may see."""
        content = self.read(name)
        if name.strip().lower().endswith(_MATERIAL_SUFFIX):
            return b"# material\n" + content  # so that it is a text for Pillow too, should it be named as an image
        try:
            return check_encoded(content, f"{Path(name).name}, a texture of {self._mesh.name},")
        except InputError as error:
            self.refused = error
            raise

    __getitem__ = get


def standalone_gltf(content: bytes, companions: Companions, name: str) -> tuple[bytes, dict[str, bytes]]:
    """Take a .glb or .gltf apart into its JSON and the files that it names, all of them read and checked here.

    Images other than base colours are left out: nobody here looks at them.

    Returns:
        JSON in which buffers and images have plain keys as uris; what lies under each key.

    Raises:
        InputError: a base colour is no image of a usual format, or a buffer is missing.
        KeyError, IndexError, TypeError, ValueError, struct.error, RecursionError: it is no glTF.
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
    """Indices of the images that some material shows as its colour."""
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
    """An image's encoded bytes; None when its file is not there."""
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
