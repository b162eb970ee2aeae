"""The only place that lets Pillow open an image.

Pillow chooses a decoder by a file's content, whatever its name: a "PNG" that holds PostScript is run by Ghostscript. So every
image that comes from outside is opened here, among the formats that users have, and its size is checked before its pixels are
touched.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "TGA")
"""Pillow's names of the formats that are opened, as far as the installed Pillow has them; TGA, which has no signature, last."""

LARGEST = 16384
"""Most pixels a side."""
MOST_PIXELS = 178_000_000
"""In all, about what Pillow itself takes at most: its own limit may be switched off by other code of the same process."""

_SIGNATURES = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*"),
}
_LIMITS = f"at most {LARGEST} a side and {MOST_PIXELS // 10**6} million work; reduce it"


def open_image(source: str | Path | bytes, name: str, *, upright: bool = False) -> PillowImage:
    """Decode an image of one of :data:`FORMATS`, so that no file chooses its own decoder; only its first frame.

    Args:
        source: path of a file, or its content.
        name: what to call it in errors.
        upright: turn it as the camera's orientation tag says.

    Returns:
        The decoded image, in any of Pillow's modes.

    Raises:
        InputError: it is of another kind, damaged, or larger than :data:`LARGEST` a side or :data:`MOST_PIXELS`.
    """
    from PIL import ImageOps

    with _readable(name), _open_header(source, name) as image:
        image.load()
        return ImageOps.exif_transpose(image) if upright else image


def check_encoded(content: bytes, name: str) -> bytes:
    """Make sure of an image's bytes before another library decodes them by its own choice of decoder.

    Returns:
        The bytes themselves where their signature leaves Pillow no choice, else the image as PNG.

    Raises:
        InputError: as :func:`open_image`.
    """
    with _readable(name), _open_header(content, name) as image:
        if content.startswith(_SIGNATURES.get(image.format, ())):
            return content
    png = io.BytesIO()
    with _readable(name):
        open_image(content, name).convert("RGBA").save(png, "PNG", compress_level=1)
    return png.getvalue()


def _open_header(source: str | Path | bytes, name: str) -> PillowImage:
    """The image with its size and mode known and checked, its pixels still encoded."""
    from PIL import Image

    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {_LIMITS}.") from error
    width, height = image.size
    if max(width, height) > LARGEST or width * height > MOST_PIXELS:
        image.close()
        raise InputError(f"{name} has {width}x{height} pixels, {_LIMITS}.")
    return image


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a sentence; all have their own kinds, plain RuntimeError and struct.error too."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "cannot identify image file" in reason:  # Pillow adds the path, or an address in memory
            reason = "it is none of " + ", ".join(FORMATS)
        raise InputError(f"{name} cannot be read as a picture ({reason}); give a PNG, JPEG or WebP file.") from error
