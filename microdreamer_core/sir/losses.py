"""The losses of reconstruction.

All are sums over pixels and channels, divided by the number of views: the published learning rates and density thresholds
assume that scale.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError
from ..reference import ReferenceView
from ..util.vocabulary import Norm


def reconstruction_loss(predicted: Tensor, target: Tensor, norm: Norm = "l1") -> Tensor:
    """Compute the loss between renders and targets, Eq. 8: Eq. 12 in pixel space, Eq. 11 in latent space.

    >>> import torch
    >>> reconstruction_loss(torch.zeros(2, 4, 4, 3), torch.full((2, 4, 4, 3), 0.5))  # 48 values of 0.5 per view
    tensor(24.)

    Args:
        predicted, target: [V,...] of one shape.
        norm: ``"l1"`` (the paper's) or ``"l2"`` (squared).

    Returns:
        Scalar: sum over everything but the views, mean over the views.

    Raises:
        InputError: the norm is unknown.
    """
    if norm not in ("l1", "l2"):
        raise InputError(f"The loss norm must be 'l1' or 'l2', got {norm!r}.")
    difference = predicted - target
    return (difference.abs() if norm == "l1" else difference.square()).sum() / len(predicted)


def reference_loss(view: ReferenceView, rgb: Tensor, alpha: Tensor) -> Tensor:
    """Compute the weighted colour and opacity terms of the reference view (Table I's last two rows).

    Args:
        rgb, alpha: [1,H,W,3] and [1,H,W,1] renders of ``view.cameras``.
    """
    opacity = (alpha - view.alpha).square().sum()
    return view.color_weight * _color_loss(view, rgb) + view.opacity_weight * opacity


def paint_loss(view: ReferenceView, rgb: Tensor) -> Tensor:
    """Compute the weighted colour term of a render [1,H,W,3] in which only colours are differentiable."""
    return view.paint_weight * _color_loss(view, rgb)


def _color_loss(view: ReferenceView, rgb: Tensor) -> Tensor:
    return reconstruction_loss(rgb * view.alpha if view.inside else rgb, view.image, view.norm)
