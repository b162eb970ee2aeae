"""What the Zero123 family (Zero123, Zero123-XL, Stable Zero123) wants to know of cameras. The camera conversion only.

A target camera is told relative to the input view, whose azimuth is the family's 0; polar angles are measured from the zenith,
so that a positive difference means a lower camera, the opposite of our elevation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..cameras import Cameras


def camera_embedding(
    cameras: Cameras,
    reference_elevation: float = 0.0,
    reference_azimuth: float = 0.0,
    *,
    stable: bool,
    reference_radius: float | None = None,
) -> Tensor:
    """T = [Δpolar in radians, sin Δazimuth, cos Δazimuth, c4] of every target camera.

    Args:
        cameras: V target cameras, looking at the origin.
        reference_elevation, reference_azimuth: the input view's, in degrees, positive above.
        stable: Stable Zero123, whose c4 is the input view's polar angle in radians. Else c4 is the difference of radii
            (trained within 1.5..2.2).
        reference_radius: the input view's distance; None takes every target to stand at that distance, c4 = 0.

    Returns:
        [V,1,4] float32.
    """
    elevation, azimuth, radius = spherical(cameras)
    polar = torch.deg2rad(reference_elevation - elevation)
    turn = torch.deg2rad(azimuth - reference_azimuth)
    if stable:
        last = torch.full_like(polar, math.radians(90 - reference_elevation))
    elif reference_radius is None:
        last = torch.zeros_like(polar)
    else:
        last = radius - reference_radius
    return torch.stack([polar, turn.sin(), turn.cos(), last], -1)[:, None].float()


def spherical(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Elevation and azimuth in degrees and radius, each [V] float64: as stated by an orbit, else from the positions."""
    if cameras.elevation is not None and cameras.azimuth is not None and cameras.radius is not None:
        return cameras.elevation.double(), cameras.azimuth.double(), cameras.radius.double()
    x, y, z = cameras.c2w[:, :3, 3].double().unbind(1)
    elevation, azimuth = torch.atan2(y, torch.hypot(x, z)), torch.atan2(x, z)
    return torch.rad2deg(elevation), torch.rad2deg(azimuth), torch.sqrt(x**2 + y**2 + z**2)
