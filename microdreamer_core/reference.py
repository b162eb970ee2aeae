"""The reference image of image-to-3D: cut out, centred, square, on white."""

from __future__ import annotations

import base64
import io
import numbers
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras
from .errors import InputError
from .util.components import label_components
from .util.image_files import open_image
from .util.images import from_uint8, resize, resize_by_height, to_uint8
from .util.optional import import_optional
from .util.vocabulary import Norm

if TYPE_CHECKING:
    from PIL.Image import Image

SOLID_ALPHA = 0.5
OWN_SIZES = 256, 1024
"""Smallest and largest side in pixels of a reference that keeps the resolution of the user's image."""
_PLAIN_TOLERANCE = 0.12
_EVEN_TOLERANCE, _EVEN_SHARE = 0.03, 0.9  # a border of one colour needs no gradient
_GRADIENT_ROUNDS = 3
_OUTLINE, _OUTLINE_SHARE = 0.005, 0.05
"""Strokes thinner than twice this share of the image's side are outlines; an object has at least that share of other pixels."""
_ISLAND = 0.001
"""Islands of a mask below this share of the largest do not count for framing."""


@dataclass(frozen=True)
class Reference:
    """A prepared reference.

    Attributes:
        image: [S,S,3] in [0,1], the object on white.
        alpha: [S,S,1] coverage of the object.
        elevation: of the camera that took it, in degrees, positive above.
    """

    image: Tensor
    alpha: Tensor
    elevation: float = 0.0

    def to_json(self) -> dict:
        """Return the image as a base64 PNG and the elevation, for saved states."""
        return {"png": self._png, "elevation": self.elevation}

    @cached_property  # every iteration saves it
    def _png(self) -> str:
        png = io.BytesIO()
        _to_pillow(torch.cat([self.image, self.alpha], -1)).save(png, format="PNG")
        return base64.b64encode(png.getvalue()).decode()

    @classmethod
    def from_json(cls, values: dict) -> Reference:
        """Restore a reference from ``to_json``; exact for prepared references, which have 8 bits.

        Raises:
            InputError: the values are not a saved reference.
        """
        try:
            png, elevation = base64.b64decode(values["png"], validate=True), values["elevation"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The saved reference picture cannot be read ({error!r}); start again from the picture."
            ) from error
        check_elevation(elevation)
        pixels = open_image(png, "The saved reference picture")
        if pixels.mode != "RGBA" or pixels.width != pixels.height:
            found = f"{pixels.width}x{pixels.height} pixels of mode {pixels.mode}"
            raise InputError(f"The saved reference picture must be square and RGBA, got {found}; start again from the picture.")
        rgba = from_uint8(pixels)
        return cls(rgba[..., :3].clone(), rgba[..., 3:].clone(), float(elevation))

    def at_size(self, size: int) -> Reference:
        """Resize to ``size`` pixels a side, antialiased."""
        if self.image.shape[0] == size:
            return self
        return replace(self, image=_resize(self.image, size, size), alpha=_resize(self.alpha, size, size))


@dataclass(frozen=True)
class ReferenceView:
    """The reference as one more target: the front view of image-to-3D (section V).

    Attributes:
        cameras: the one camera of the reference, at its image size.
        image: [1,H,W,3] on the background of the renders.
        alpha: [1,H,W,1] coverage.
        color_weight, opacity_weight: weights of the two terms (Table I); 0 drops a term.
        norm: of the colour term; the opacity term is a squared error, as in the published code.
        inside: compare colours inside the object only; ``image`` then holds colours times coverage.
        paint_weight: weight of the colour term of a second render with detached geometry, which fits colours without moving
            Gaussians. (If colours may move them, Gaussians at any depth along a ray fit the photo and the front crumples.)
    """

    cameras: Cameras
    image: Tensor
    alpha: Tensor
    color_weight: float
    opacity_weight: float
    norm: Norm = "l1"
    inside: bool = False
    paint_weight: float = 0.0

    def on_any_background(self) -> ReferenceView:
        """Return the same view for renders whose background is learned, not white.

        Colours are compared inside the object only; outside it the opacity term acts. Otherwise the reference would turn the
        learned background white in front, against the targets of the other views.
        """
        return replace(self, image=(self.image - (1 - self.alpha)).clamp_min(0), inside=True)

    def of_width(self, width: int) -> ReferenceView:
        """Return the same view of another width in pixels: its sides are cut off or continued, nothing is stretched."""
        height = self.cameras.height
        image, alpha = (resize_by_height(part, height, width) for part in (self.image, self.alpha))
        return replace(self, cameras=self.cameras.resize(width, height), image=image, alpha=alpha)

    def to(self, device: torch.device | str) -> ReferenceView:
        """Move the images to ``device``."""
        return replace(self, image=self.image.to(device), alpha=self.alpha.to(device))


def prepare_reference(
    image: Tensor, mask: Tensor | None = None, fill: float = 0.8, size: int | None = None, elevation: float = 0.0
) -> Reference:
    """Cut out and centre the object, framed like the training images of the diffusion models.

    Models get a small copy; texturing uses the full resolution that is kept here.

    >>> red, mask = torch.tensor([1.0, 0.0, 0.0]).expand(64, 64, 3), torch.zeros(64, 64)
    >>> mask[10:50, 20:40] = 1
    >>> prepare_reference(red, mask, size=128).alpha.sum(0).max()  # the object's 40 rows fill 0.8 of 128 pixels
    tensor(102.)

    Args:
        image: [H,W,3] or [H,W,4] in [0,1]; the fourth channel is the mask unless one is given.
        mask: [H,W] or [H,W,1] coverage in [0,1]; without mask and alpha, a plain background is detected and removed.
        fill: longest side of the object as a fraction of the image's side.
        size: side of the square result in pixels; None keeps the resolution of the input, within ``OWN_SIZES``.
        elevation: of the camera that took the image, in degrees, positive above.

    Raises:
        InputError: sizes disagree, or the mask is empty or covers everything.
    """
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise InputError(
            f"A reference picture has shape [H,W,3] or [H,W,4], got {list(image.shape)}; convert it to RGB or RGBA."
        )
    if not 0 < fill <= 1:
        raise InputError(f"fill is a share of the picture's side in (0,1], got {fill}; 0.8 is usual.")
    if mask is None:
        mask = (
            image[..., 3]
            if image.shape[2] == 4 and bool((image[..., 3] < 0.99).any())
            else cut_out_plain_background(image[..., :3])
        )
    mask = mask.reshape(mask.shape[0], mask.shape[1]).float()
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"The mask must be as large as the picture {list(image.shape[:2])}, got {list(mask.shape)}; resize one of them."
        )
    top, bottom, left, right = _bounds(mask)
    rgb, alpha = image[top:bottom, left:right, :3].float(), mask[top:bottom, left:right, None]
    height, width = alpha.shape[:2]
    if size is None:
        size = min(max(round(max(height, width) / fill), OWN_SIZES[0]), OWN_SIZES[1])
    scale = fill * size / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    premultiplied, alpha = _resize(rgb * alpha, height, width), _resize(alpha, height, width).clamp(0, 1)
    y, x = (size - height) // 2, (size - width) // 2
    pad = (0, 0, x, size - width - x, y, size - height - y)
    premultiplied, alpha = F.pad(premultiplied, pad), F.pad(alpha, pad)
    # eight bits, as in a saved state, so that a resumed run has exactly the same reference
    image, alpha = ((x.clamp(0, 1) * 255).round() / 255 for x in (premultiplied + 1 - alpha, alpha))
    return Reference(image, alpha, elevation)


def check_elevation(elevation: float) -> None:
    """Check that an elevation is a number strictly between -90 and 90 degrees.

    Raises:
        InputError: it is not.
    """
    if not isinstance(elevation, numbers.Real) or isinstance(elevation, bool) or not -90 < elevation < 90:
        raise InputError(
            f"The elevation must lie between -90 and 90 degrees, got {elevation!r}; 0 is a picture taken at eye level."
        )


def cut_out_plain_background(rgb: Tensor, tolerance: float = _PLAIN_TOLERANCE) -> Tensor:
    """Mask the object on a plain background: all that is not connected to the border by the border's colour, which may change
    smoothly across the image (a vignette, the light of a window).

    >>> image = torch.ones(8, 8, 3)
    >>> image[2:6, 2:6] = 0.2
    >>> cut_out_plain_background(image).sum()
    tensor(16.)

    Args:
        rgb: [H,W,3] in [0,1].
        tolerance: largest difference of a channel that counts as the background's colour.

    Returns:
        [H,W] mask, 1 on the object.

    Raises:
        InputError: the border is not of one colour, or the object hardly differs from it.
    """
    background = _fit_background(rgb, tolerance)
    near = ((rgb - background).abs().amax(-1) <= tolerance).numpy()
    border = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]])
    if border.mean() < 0.75:
        raise InputError(
            "The picture has no alpha channel and its background is not of one colour; give a picture with transparency, "
            "a mask, or have it cut out by rembg (--matting)."
        )
    labels, _ = label_components(near)
    edge = set(labels[0]) | set(labels[-1]) | set(labels[:, 0]) | set(labels[:, -1])
    outside = near & np.isin(labels, list(edge - {0}))
    _check_solid(~outside)
    return 1.0 - torch.from_numpy(outside).float()


def _fit_background(rgb: Tensor, tolerance: float) -> Tensor:
    """The background's colour: [3], the border's median, or [H,W,3] where the border is uneven, a quadratic fitted to it."""
    height, width, _ = rgb.shape
    border = torch.cat([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    median = border.median(0).values
    if float(((border - median).abs().amax(-1) <= _EVEN_TOLERANCE).float().mean()) >= _EVEN_SHARE:
        return median
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)
    at_border = torch.cat([basis[0], basis[-1], basis[:, 0], basis[:, -1]])
    fit, inside = torch.zeros(basis.shape[-1], 3), (border - median).abs().amax(-1) <= tolerance
    for _ in range(_GRADIENT_ROUNDS):  # without what the object covers
        if int(inside.sum()) < 2 * len(fit):
            return median
        fit = torch.linalg.lstsq(at_border[inside].double(), border[inside].double(), driver="gelsd").solution.float()
        inside = (border - at_border @ fit).abs().amax(-1) <= tolerance / 2
    return basis @ fit


def _check_solid(mask: np.ndarray) -> None:
    """Refuse a mask of outlines only, as a white object on white leaves them; an empty mask is refused later."""
    from scipy import ndimage

    reach = max(1, round(_OUTLINE * max(mask.shape)))
    core = ndimage.binary_erosion(mask, iterations=reach, border_value=1)
    if mask.any() and max(mask.shape) >= 1 / _OUTLINE and core.sum() < _OUTLINE_SHARE * mask.sum():
        raise InputError(
            "The object hardly differs from the background, only outlines of it do; give a picture with transparency, a mask, "
            "or have it cut out by rembg (--matting)."
        )


def matte(rgb: Tensor) -> Tensor:
    """Estimate the coverage [H,W] of the main object of an image [H,W,3] on any background.

    Uses rembg, which downloads its network at first use.

    Raises:
        InputError: rembg is not installed.
    """
    coverage = import_optional("rembg", "Matting needs", "'rembg[cpu]'").remove(_to_pillow(rgb), only_mask=True)
    return from_uint8(coverage.convert("L"))


def _to_pillow(image: Tensor) -> Image:
    from PIL.Image import fromarray

    return fromarray(to_uint8(image))


def _bounds(mask: Tensor) -> tuple[int, int, int, int]:
    """Return the bounding box (top, bottom, left, right), half open, of pixels that are more than half covered, without stray
    islands."""
    solid = mask > SOLID_ALPHA
    if not bool(solid.any()):
        raise InputError(
            "The mask shows no object: it is empty, fully transparent, or the object has the colour of its background; give a "
            "picture in which the object is opaque, or a mask."
        )
    if bool(solid.all()):
        raise InputError("The mask covers the whole picture; give a picture with a transparent or plain background, or a mask.")
    labels, count = label_components(solid.numpy())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    solid = torch.from_numpy((sizes >= _ISLAND * sizes.max())[labels]) & solid
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    return resize(image[None], height, width)[0]
