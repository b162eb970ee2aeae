"""The losses of reconstruction. All are sums over pixels and channels, divided by the views: the published learning rates and
density thresholds assume that scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError

Norm = Literal["l1", "l2"]


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


@dataclass(frozen=True)
class ReferenceView:
    """The reference picture as one more target, the front view of image-to-3D (section V).

    Attributes:
        cameras: the one camera that the picture was seen from, at its size.
        image: [1,H,W,3] on the background of the renders.
        alpha: [1,H,W,1] coverage.
        color_weight, opacity_weight: Table I's weights of the two terms; 0 leaves one out.
        norm: of the colour term; the opacity term is a squared error, as in the published code.
        inside: colours are compared only where the object is; ``image`` then holds colours times coverage.
        paint_weight: weight of the colour term in a render whose geometry is held: the reference paints the object without
            bending it. (With colours free to move Gaussians, those at any depth along its rays come to paint the photo, and
            the front crumples.)
    """

    cameras: Cameras
    image: Tensor
    alpha: Tensor
    color_weight: float
    opacity_weight: float
    norm: Norm = "l1"
    inside: bool = False
    paint_weight: float = 0.0

    def on_any_background(self) -> ReferenceView:
        """The same view for renders whose background is not the picture's white.

        A field that learns its background must not be told by the reference that it is white: that would turn the background
        white in front only, against the other views' targets. Colours count where the object is, the opacity term outside.
        """
        return replace(self, image=(self.image - (1 - self.alpha)).clamp_min(0), inside=True)

    def to(self, device) -> ReferenceView:
        """The same view with its pictures on ``device``."""
        return replace(self, image=self.image.to(device), alpha=self.alpha.to(device))

    def loss(self, rgb: Tensor, alpha: Tensor) -> Tensor:
        """Weighted sum of both terms for renders [1,H,W,3] and [1,H,W,1]."""
        opacity = (alpha - self.alpha).square().sum()
        return self.color_weight * self._color(rgb) + self.opacity_weight * opacity

    def paint_loss(self, rgb: Tensor) -> Tensor:
        """Weighted colour term of a render [1,H,W,3] in which colours alone are differentiable."""
        return self.paint_weight * self._color(rgb)

    def _color(self, rgb: Tensor) -> Tensor:
        return reconstruction_loss(rgb * self.alpha if self.inside else rgb, self.image, self.norm)
