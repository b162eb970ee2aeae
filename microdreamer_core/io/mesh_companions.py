"""The files that a mesh file refers to (materials, buffers, images), read and checked here so that trimesh opens none itself.

What trimesh would open depends on its version: absolute paths, paths outside the folder, and images in any format that Pillow
decodes.
"""

from __future__ import annotations

import base64
import codecs
import logging
import struct
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from ..errors import InputError
from ..util.image_files import check_encoded

logger = logging.getLogger(__name__)

_JSON_CHUNK, _BINARY_CHUNK = b"JSON", b"BIN\0"
_MOST_BYTES = 1 << 31
_MATERIAL_SUFFIX = ".mtl"
UTF8_MARK = codecs.BOM_UTF8
"""What editors of Windows write before the first word of a text."""


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
            logger.warning("%s names %.100r, which is not in its folder", self._mesh.name, name)
            raise FileNotFoundError(name)
        return path.read_bytes()

    def get(self, name: str) -> bytes:
        """Return a file for trimesh: a material's text, or an image of a supported format."""
        content = self.read(name)
        if name.strip().lower().endswith(_MATERIAL_SUFFIX):
            # the comment comes first, so that Pillow does not decode it if it is also named as an image
            return b"# material\n" + content.removeprefix(UTF8_MARK)
        try:
            return check_encoded(content, f"{Path(name).name}, a texture of {self._mesh.name},")
        except InputError as error:
            self.refused = error
            raise

    __getitem__ = get


def glb_chunks(content: bytes) -> tuple[bytes, bytes | None]:
    """Split a GLB into its JSON and its binary part, if it has one.

    Raises:
        KeyError, ValueError, struct.error: not a whole GLB.
    """
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


def read_uri(uri: str, companions: Companions) -> bytes:
    """Return the content of a data uri, or of a file in the mesh's folder.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    if uri.startswith("data:"):
        return base64.b64decode(uri.partition("base64,")[2])
    return companions.read(uri)
