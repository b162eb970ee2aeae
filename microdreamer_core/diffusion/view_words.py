"""View directions in words, for text models without camera conditioning."""

from __future__ import annotations

from ..cameras import Cameras
from .zero123 import spherical

OVERHEAD, FRONT, BACK, SIDE = "overhead view", "front view", "back view", "side view"
VIEW_WORDS = (FRONT, SIDE, BACK, OVERHEAD)

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
