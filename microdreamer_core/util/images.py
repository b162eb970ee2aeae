"""Image tensors: 8-bit conversion and resizing in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


def to_uint8(values: Tensor | np.ndarray) -> np.ndarray:
    """Convert floats in [0,1] to uint8, rounded; values outside are clamped.

    >>> to_uint8(torch.tensor([0.0, 0.5, 2.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return (array.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def from_uint8(pixels: np.ndarray | Image.Image) -> Tensor:
    """Convert 8-bit pixels, an array or a Pillow image, to float32 in [0,1].

    >>> from_uint8(np.array([0, 255], np.uint8))
    tensor([0., 1.])
    """
    return torch.from_numpy(np.asarray(pixels, np.float32) / 255)


def resize(images: Tensor, height: int, width: int | None = None) -> Tensor:
    """Resize [V,H,W,C] to [V,height,width,C], square when ``width`` is None; bilinear, antialiased when shrinking.

    >>> resize(torch.rand(2, 64, 64, 3), 32).shape
    torch.Size([2, 32, 32, 3])
    """
    width = height if width is None else width
    if images.shape[1:3] == (height, width):
        return images
    channels_first = images.permute(0, 3, 1, 2)
    sized = F.interpolate(channels_first, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return sized.permute(0, 2, 3, 1)


def resize_by_height(images: Tensor, height: int, width: int) -> Tensor:
    """Resize [V,H,W,C] to [V,height,width,C] without stretching, as a camera of fixed vertical field of view would see them.

    The height is scaled to ``height``; then the sides are cut off, or continued by their outermost pixels, to ``width``.

    >>> resize_by_height(torch.rand(2, 64, 128, 3), 32, 32).shape
    torch.Size([2, 32, 32, 3])
    """
    scaled = resize(images, height, max(1, round(images.shape[2] * height / images.shape[1])))
    missing = width - scaled.shape[2]
    if not missing:
        return scaled
    left = missing // 2
    return F.pad(scaled.permute(0, 3, 1, 2), (left, missing - left, 0, 0), mode="replicate").permute(0, 2, 3, 1)


def on_white(images: Tensor) -> Tensor:
    """Return the colours [V,H,W,3] of images with 1, 3 or 4 channels: grey is repeated, a fourth channel is coverage.

    >>> on_white(torch.tensor([0.5, 0.5, 0.5, 0.0]).reshape(1, 1, 1, 4)).flatten()
    tensor([1., 1., 1.])
    """
    channels = images.shape[-1]
    if channels == 4:
        return images[..., :3] * images[..., 3:] + (1 - images[..., 3:])
    return images.expand(*images.shape[:-1], 3) if channels == 1 else images[..., :3]


def join_views(images: Tensor) -> Tensor:
    """Join views [V,H,W,3] side by side, [H,V W,3] clamped to [0,1], on the CPU."""
    return torch.cat(list(images.detach().cpu().clamp(0, 1)), 1)


def erode(coverage: Tensor, pixels: int = 1) -> Tensor:
    """Take pixels off the silhouettes of [V,H,W,1]: each takes the least coverage within that distance along both axes."""
    return -F.max_pool2d(-coverage.movedim(-1, 1), 2 * pixels + 1, 1, pixels).movedim(1, -1)
