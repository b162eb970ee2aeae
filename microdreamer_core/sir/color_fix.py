"""The colour fix of tiled upscalers, for SIR: the model repaints details, and the broad colours stay those of the renders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..render.protocol import Render

_PALEST = 0.95
"""A pixel with all channels above this is white ground."""
_REACH = 3.0
"""Radius of the filter in standard deviations."""


def fix_colors(images: Tensor, render: Render, scale: float) -> Tensor:
    """Replace the low frequencies of refined views by those of the renders that they were made from.

    A model's small bias in colour is fed back in every iteration, so that over twenty of them what no reference shows drifts
    away. So y + φ(x) - φ(y) takes the place of the refined views y, with x the renders and φ a Gaussian low-pass filter: ILVR
    (arXiv 2108.02938, Algorithm 1), once and on images. φ is normalised over the pixels that belong to the object in both,
    because outlines may change, and white ground is no colour.

    Args:
        images: [V,H,W,3] refined, on white.
        render: of the same views and size, on white.
        scale: standard deviation of φ, a share of the height.
    """
    shared = (render.alpha > 0.5) & (images.amin(-1, keepdim=True) < _PALEST)
    weights = shared.to(images)
    return torch.where(shared, images + _low_pass((render.rgb - images) * weights, weights, scale), images).clamp(0, 1)


def _low_pass(weighted: Tensor, weights: Tensor, scale: float) -> Tensor:
    """Filter [V,H,W,C], multiplied by its [V,H,W,1] weights, and normalise by the filtered weights."""
    sigma = scale * weighted.shape[1]
    reach = max(1, round(_REACH * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=weighted.device) / sigma).square())
    values = torch.cat([weighted, weights], -1).permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    values = F.conv2d(values, kernel.view(1, 1, 1, -1), padding=(0, reach))
    values = F.conv2d(values, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    filtered = values.unflatten(0, (len(weighted), -1))[:, :, 0].permute(0, 2, 3, 1)
    return filtered[..., :-1] / filtered[..., -1:].clamp_min(torch.finfo(filtered.dtype).tiny)
