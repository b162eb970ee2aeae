"""The losses of reconstruction. All are sums over pixels and channels, divided by the views: the published learning rates and
density thresholds assume that scale."""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError
from ..reference import ReferenceView
from ..util.vocabulary import Norm


def reconstruction_loss(predicted: Tensor, target: Tensor, norm: Norm = "l1") -> Tensor:
    """Distance between renders and their targets, Eq. 8: in pixels it is Eq. 12, between latents Eq. 11.

    Args:
        predicted, target: [V,...] of one shape.
        norm: ``"l1"`` (the paper's) or ``"l2"`` (squared).

    Returns:
        Scalar: sum over everything but the views, mean over the views.
    """
    if norm not in ("l1", "l2"):
        raise InputError(f"The loss norm must be 'l1' or 'l2', got {norm!r}.")
    difference = predicted - target
    return (difference.abs() if norm == "l1" else difference.square()).sum() / len(predicted)


def reference_loss(view: ReferenceView, rgb: Tensor, alpha: Tensor) -> Tensor:
    """Sum the weighted colour and opacity terms of the reference view (Table I's last two rows).

    Args:
        rgb, alpha: [1,H,W,3] and [1,H,W,1] renders of ``view.cameras``.
    """
    opacity = (alpha - view.alpha).square().sum()
    return view.color_weight * _color_loss(view, rgb) + view.opacity_weight * opacity


def paint_loss(view: ReferenceView, rgb: Tensor) -> Tensor:
    """Weight the colour term of a render [1,H,W,3] in which colours alone are differentiable."""
    return view.paint_weight * _color_loss(view, rgb)


def _color_loss(view: ReferenceView, rgb: Tensor) -> Tensor:
    return reconstruction_loss(rgb * view.alpha if view.inside else rgb, view.image, view.norm)
