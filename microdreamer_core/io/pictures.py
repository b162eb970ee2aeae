"""Reading and writing of image files as float RGB(A) in [0,1]."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError
from ..util.atomic import replace_file
from ..util.image_files import eight_bit, open_image
from ..util.images import from_uint8, to_uint8

if TYPE_CHECKING:
    import PIL.Image

logger = logging.getLogger(__name__)

SMALLEST = 16
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".hif", ".bmp", ".tif", ".tiff")
"""Endings of what counts as a picture in a folder; not .gif, as films end so too."""
_PREVIEW_SIDE = 2048


def read_picture(path: str | Path) -> Tensor:
    """Read an image file.

    Palette, grey, 16-bit and CMYK files are converted, colours to sRGB if the file has another profile, the EXIF orientation is
    applied, very large images are reduced to 2048 pixels.

    Returns:
        [H,W,3] float32 in [0,1], or [H,W,4] if the file has transparency.

    Raises:
        InputError: the file is missing, empty, not an image of a supported format, smaller than 16 pixels or larger than 16384.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no picture at {path}; check the path.")
    image = open_image(path, path.name, upright=True)
    if min(image.size) < SMALLEST:
        raise InputError(f"{path.name} has {image.width}x{image.height} pixels, at least {SMALLEST} a side are needed.")
    try:
        image = eight_bit(_to_srgb(image))
    except Exception as error:  # Pillow cannot convert some modes to RGB
        raise InputError(f"{path.name} has colours that cannot be converted ({error}); save it as an RGB PNG.") from error
    if max(image.size) > _PREVIEW_SIDE:
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.LANCZOS)
    return from_uint8(image)


def list_picture_files(folder: Path) -> tuple[Path, ...]:
    """List the image files of a folder, sorted by name.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder of pictures at {folder}; check the path.")
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES))
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); choose another folder.")
    return files


def read_mask(path: str | Path) -> Tensor:
    """Read a mask file as [H,W] float32 in [0,1]: its alpha channel if any pixel is transparent, otherwise its brightness."""
    picture = read_picture(path)
    transparent = picture.shape[2] == 4 and bool((picture[..., 3] < 0.99).any())
    return picture[..., 3] if transparent else picture[..., :3].mean(-1)


def on_white(picture: Tensor) -> Tensor:
    """Composite an image on white, [H,W,3] or [H,W,4] -> [H,W,3].

    >>> import torch
    >>> on_white(torch.zeros(1, 1, 4)).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    if picture.shape[2] == 3:
        return picture
    return picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:]


def write_picture(path: str | Path, image: Tensor) -> Path:
    """Write [H,W,3] or [H,W,4] in [0,1] as PNG, atomically."""
    from PIL import Image

    path = Path(path)
    with replace_file(path) as temporary:
        Image.fromarray(to_uint8(image)).save(temporary, format="PNG")
    return path


def _to_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert colours to sRGB by the file's ICC profile; a profile that cannot be used is ignored, as in browsers."""
    from PIL import ImageCms

    content = image.info.get("icc_profile")
    if not content or image.mode.startswith(("I", "F")):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        plain = image if image.mode in ("L", "CMYK") else image.convert("L" if image.mode == "LA" else "RGB")
        converted = ImageCms.profileToProfile(plain, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception as error:  # damaged, or of other colours than the image's; Pillow raises many types
        logger.warning("a colour profile is ignored (%s)", error)
        return image
    assert converted is not None, "only a conversion in place returns None"
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
