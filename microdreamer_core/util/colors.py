"""Conversion between sRGB, used by images and splats, and linear light, used by glTF's vertex colours."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_srgb(srgb: Tensor) -> Tensor:
    """Convert sRGB in [0,1] to linear light (IEC 61966-2-1).

    >>> decode_srgb(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.2140, 1.0000])
    """
    srgb = srgb.detach().float().clamp(0, 1)
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encode_srgb(linear: Tensor) -> Tensor:
    """Convert linear light in [0,1] to sRGB, the inverse of ``decode_srgb``.

    >>> encode_srgb(torch.tensor([0.0, 0.2140, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    linear = linear.detach().float().clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
