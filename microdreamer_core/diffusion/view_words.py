"""Cameras in words, for models that are conditioned on text alone."""

from __future__ import annotations

import math

import torch

from ..cameras import Cameras, orbit_cameras
from .zero123 import spherical

OVERHEAD, FRONT, BACK, SIDE = "overhead view", "front view", "back view", "side view"
VIEW_WORDS = (FRONT, SIDE, BACK, OVERHEAD)

AZIMUTHS = {
    0: "front view",
    45: "front-right quarter view",
    90: "right side view",
    135: "back-right quarter view",
    180: "back view",
    225: "back-left quarter view",
    270: "left side view",
    315: "front-left quarter view",
}
ELEVATIONS = {-30: "low-angle shot", 0: "eye-level shot", 30: "elevated shot", 60: "high-angle shot"}
DISTANCES = {1.3: "close-up", 3.0: "medium shot", math.inf: "wide shot"}
"""The vocabulary of camera-angle LoRAs for edit models, and of ComfyUI's Camera Angle: words by azimuth and elevation in
degrees, and by the largest height that the image shows, in lengths of the object."""

_OVERHEAD_ELEVATION = 60.0
_QUARTER = 45.0


def view_words(cameras: Cameras) -> tuple[str, ...]:
    """Return one of ``VIEW_WORDS`` for each camera, so that a text model shows all sides of the object, not four fronts.

    >>> from microdreamer_core.cameras import turntable
    >>> view_words(turntable(4))
    ('front view', 'side view', 'back view', 'side view')

    "overhead view" above 60 degrees of elevation, else "front view" within 45 degrees of azimuth 0, "back view" within 45 of
    180, "side view" between (DreamFusion, arXiv 2209.14988, section 3.2, without its blending at the borders).
    """
    elevations, azimuths, _ = spherical(cameras)
    turned = ((azimuths + 180) % 360 - 180).abs()
    return tuple(_word(*angles) for angles in zip(elevations.tolist(), turned.tolist(), strict=True))


def _word(elevation: float, turned: float) -> str:
    if elevation > _OVERHEAD_ELEVATION:
        return OVERHEAD
    if turned < _QUARTER:
        return FRONT
    return BACK if turned > 180 - _QUARTER else SIDE


def camera_words(cameras: Cameras) -> tuple[str, ...]:
    """Describe each camera in the vocabulary of camera-angle LoRAs: the nearest azimuth and elevation, and the distance.

    >>> from microdreamer_core.cameras import turntable
    >>> camera_words(turntable(4))[1]
    'right side view eye-level shot medium shot'
    """
    elevations, azimuths, radii = spherical(cameras)
    shown = 2 * radii * math.tan(math.radians(cameras.fov_y) / 2)
    angles = zip(*(values.tolist() for values in (elevations, azimuths, shown)), strict=True)
    return tuple(
        f"{AZIMUTHS[_nearest_azimuth(azimuth)]} {ELEVATIONS[_nearest_elevation(elevation)]} "
        + next(word for most, word in DISTANCES.items() if height <= most)
        for elevation, azimuth, height in angles
    )


def snap_cameras(cameras: Cameras) -> Cameras:
    """Turn orbit cameras to the nearest azimuth and elevation that ``camera_words`` can say.

    >>> snap_cameras(orbit_cameras([12.0, -40.0], [50.0, 170.0])).azimuth
    tensor([ 45., 180.])
    """
    elevations, azimuths, radii = cameras.orbit()
    elevations = torch.tensor([float(_nearest_elevation(v)) for v in elevations.tolist()])
    azimuths = torch.tensor([float(_nearest_azimuth(v)) for v in azimuths.tolist()])
    return orbit_cameras(elevations, azimuths, radii, cameras.fov_y, cameras.width).resize(cameras.width, cameras.height)


def _nearest_azimuth(azimuth: float) -> int:
    return round(azimuth / 45) * 45 % 360


def _nearest_elevation(elevation: float) -> int:
    return min(ELEVATIONS, key=lambda known: abs(known - elevation))
