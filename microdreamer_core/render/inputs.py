"""Input checks shared by all renderers."""

from __future__ import annotations

from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from .protocol import Splats


def check_splats(splats: Splats) -> None:
    """Check the shapes of splats, so that the message names the wrong tensor.

    Raises:
        InputError: a tensor does not have the shape that :class:`Splats` documents.
    """
    n = len(splats)
    expected = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "colors": (n, 3)}
    for name, shape in expected.items():
        got = tuple(getattr(splats, name).shape)
        if got != shape:
            raise InputError(f"Splats need {name} of shape {list(shape)}, got {list(got)}; reshape that tensor.")


def background_per_view(background: Tensor, cameras: Cameras) -> Tensor:
    """Expand one background colour, or one per view, to [V,3].

    Raises:
        InputError: ``background`` is neither [3] nor [V,3].
    """
    views = len(cameras)
    if tuple(background.shape) not in ((3,), (views, 3)):
        raise InputError(f"The background must be [3] or [{views},3], got {list(background.shape)}; give one RGB colour.")
    return background.expand(views, 3)
