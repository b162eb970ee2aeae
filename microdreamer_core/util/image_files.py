"""The only place where Pillow opens an image, restricted to known formats and sizes.

Pillow chooses a decoder by a file's content, whatever its name: a "PNG" that contains PostScript is run by Ghostscript. So
every external image is opened here, with a fixed list of formats, and its size is checked before its pixels are decoded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "TGA")
"""Pillow's names of the accepted formats, if the installed Pillow has them; TGA is last, as it has no signature."""

LARGEST = 16384
"""Largest side in pixels."""
MOST_PIXELS = 178_000_000
"""Largest number of pixels, about Pillow's own limit, which other code of the same process may have switched off."""

_SIGNATURES = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*"),
}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_LIMITS = f"at most {LARGEST} a side and {MOST_PIXELS // 10**6} million work; reduce it"


def open_image(source: str | Path | bytes, name: str, *, upright: bool = False) -> PillowImage:
    """Decode the first frame of an image, restricted to :data:`FORMATS`, so that no file chooses its own decoder.

    Args:
        source: path of a file, or its content.
        name: what error messages call it.
        upright: apply the EXIF orientation.

    Returns:
        The decoded image, in any of Pillow's modes.

    Raises:
        InputError: the format is another one, the file is damaged, or it exceeds :data:`LARGEST` or :data:`MOST_PIXELS`.
    """
    from PIL import ImageOps

    with _readable(name), _open_header(source, name) as image:
        image.load()
        return ImageOps.exif_transpose(image) if upright else image


def eight_bit(image: PillowImage) -> PillowImage:
    """Convert a decoded image of any mode to RGB or RGBA with 8 bits a channel.

    Pillow alone would clip 16 bits of grey to white.
    """
    import numpy as np
    from PIL import Image

    from .images import to_uint8

    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        values = np.asarray(image, np.float64)
        top = 65535.0 if values.max() > 255 else 255.0 if values.max() > 1 else 1.0
        image = Image.fromarray(to_uint8(values / top))
    transparent = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def check_encoded(content: bytes, name: str) -> bytes:
    """Check an encoded image before another library decodes it with a decoder of its choice.

    Returns:
        The bytes themselves if their signature determines the format, else the image converted to PNG.

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
    """Read and check an image's header; its pixels stay encoded."""
    from PIL import Image

    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    if is_heic(source):
        plugin = import_optional("pillow_heif", f"{name} is a HEIC picture and needs", "pillow-heif, or save it as JPEG")
        plugin.register_heif_opener()
        formats = ["HEIF"]
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {_LIMITS}.") from error
    width, height = image.size
    if max(width, height) > LARGEST or width * height > MOST_PIXELS:
        image.close()
        raise InputError(f"{name} has {width}x{height} pixels, {_LIMITS}.")
    return image


def is_heic(source: str | Path | bytes) -> bool:
    """Whether a file is a HEIC picture, as phones take; AVIF, which Pillow reads, has the same container.

    Either may begin with the brand of the container (mif1), so that all brands count (ISO/IEC 14496-12, ``ftyp``).
    """
    if isinstance(source, bytes):
        start = source[:256]
    else:
        with Path(source).open("rb") as file:
            start = file.read(256)
    if start[4:8] != b"ftyp":
        return False
    end = int.from_bytes(start[:4], "big")
    brands = {start[8:12], *(start[i : i + 4] for i in range(16, min(end, len(start)), 4))}
    return bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn any exception of a decoder into an InputError; decoders raise many types, RuntimeError and struct.error too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about what it can read nevertheless would appear among our sentences
            yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "cannot identify image file" in reason:  # Pillow adds the path, or an address in memory
            reason = "it is none of " + ", ".join(FORMATS)
        raise InputError(f"{name} cannot be read as a picture ({reason}); give a PNG, JPEG or WebP file.") from error
