"""Connected components of images and grids."""

from __future__ import annotations

from typing import cast

import numpy as np


def label_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the pieces of a mask that hang together along its axes, so that they can be weighed or dropped.

    Args:
        mask: bool, of any shape.

    Returns:
        int32 labels of the mask's shape, 0 where it is False, and how many pieces there are.
    """
    from scipy import ndimage

    return cast(tuple[np.ndarray, int], ndimage.label(mask))  # typed for its other form, too, which fills a given array
