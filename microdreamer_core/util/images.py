"""Image tensors: 8-bit conversion and resizing in one place."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_uint8(values: Tensor | np.ndarray) -> np.ndarray:
    """Convert floats in [0,1] to 8 bits, rounded; values outside are clamped."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return (array.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def from_uint8(pixels: np.ndarray) -> Tensor:
    """Convert 8-bit pixels, an array or a Pillow image, to float32 in [0,1]."""
    return torch.from_numpy(np.asarray(pixels, np.float32) / 255)


def resize(images: Tensor, height: int, width: int | None = None) -> Tensor:
    """Resize [V,H,W,C] to [V,height,width,C], square when ``width`` is None; bilinear, antialiased where it shrinks."""
    width = height if width is None else width
    if images.shape[1:3] == (height, width):
        return images
    channels_first = images.permute(0, 3, 1, 2)
    sized = F.interpolate(channels_first, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return sized.permute(0, 2, 3, 1)
