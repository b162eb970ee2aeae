"""sRGB, in which pictures and splats keep their colours, and linear light, in which glTF keeps those of vertices."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_srgb(srgb: Tensor) -> Tensor:
    """sRGB in [0,1] to linear light (IEC 61966-2-1)."""
    srgb = srgb.detach().float().clamp(0, 1)
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def encode_srgb(linear: Tensor) -> Tensor:
    """The inverse of ``decode_srgb``."""
    linear = linear.detach().float().clamp(0, 1)
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
