"""What the MVDream family (MVDream, ImageDream) wants to know of cameras. This file holds the camera conversion only.

The family's cameras are row-major 4x4 camera-to-world matrices with OpenGL camera axes in a z-up world, translation normalised
to length 1; elevation is positive upwards and the front of the object is seen from azimuth 90.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cameras import Cameras

FRONT_AZIMUTH = 90.0
"""Degrees at which the family sees the object's front; ours is 0."""

_Z_UP_ROWS = [0, 2, 1]


def camera_matrices(cameras: Cameras, extra_view: bool = False) -> Tensor:
    """The camera conditioning of MVDream and ImageDream: our cameras, our front at their front.

    Args:
        cameras: V cameras.
        extra_view: append a row of zeros, the "camera" of ImageDream's fifth view (its pixel variant).

    Returns:
        [V,16] float32, or [V+1,16].
    """
    rows = normalized_translation(to_z_up(_turn_front(cameras.c2w))).flatten(1)
    return torch.cat([rows, rows.new_zeros(1, 16)]) if extra_view else rows


def to_z_up(c2w: Tensor) -> Tensor:
    """[V,4,4] camera-to-world, y up -> z up: world (x, y, z) -> (x, -z, y), the family's ``blender_coord``."""
    z_up = c2w.clone()
    z_up[:, :3] = c2w[:, _Z_UP_ROWS] * c2w.new_tensor([1.0, -1.0, 1.0])[:, None]
    return z_up


def normalized_translation(c2w: Tensor) -> Tensor:
    """[V,4,4] with every camera at distance 1 from the origin: the family encodes no distance (t / (|t| + 1e-8))."""
    out = c2w.clone()
    translation = c2w[:, :3, 3]
    out[:, :3, 3] = translation / (translation.norm(dim=1, keepdim=True) + 1e-8)
    return out


def _turn_front(c2w: Tensor) -> Tensor:
    """Turn the y-up world about y, so that the object's front is seen from ``FRONT_AZIMUTH``."""
    angle = math.radians(FRONT_AZIMUTH)
    turn = torch.eye(4, dtype=torch.float64)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return (turn.to(c2w.device) @ c2w.double()).to(c2w.dtype)
