"""Connected components of images and grids."""

from __future__ import annotations

from typing import cast

import numpy as np


def label_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the connected components of a mask; neighbours share a face, not only an edge or a corner.

    >>> label_components(np.array([True, True, False, True]))
    (array([1, 1, 0, 2], dtype=int32), 2)

    Args:
        mask: bool, of any shape.

    Returns:
        int32 labels of the mask's shape, 0 where it is False, and the number of components.
    """
    from scipy import ndimage

    return cast(tuple[np.ndarray, int], ndimage.label(mask))  # its type also covers the form that fills a given array
