"""Where a run begins: the start field of each representation, with the settings that suit a model."""

from __future__ import annotations

from typing import get_args

import torch

from ..errors import InputError
from ..schedule import Background, Representation
from .density_control import DensitySettings
from .gaussians import Gaussians, GaussianSettings
from .nerf_settings import NeRFSettings
from .protocol import Field

AUTO = "auto"
NERF_SIZES = (AUTO, "small", "full")
"""Sizes of a NeRF: "auto" is "full" (that of the published runs) on an accelerator and "small" on a CPU."""


def start_field(
    representation: Representation,
    image_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    nerf_size: str = AUTO,
    background: Background = "white",
) -> Field:
    """A fresh field.

    Args:
        image_size: pixels of the model's pictures, to which the number of Gaussians is suited.
        seed: the start derives from it, and all that the field draws while it learns.
        nerf_size: one of ``NERF_SIZES``.
        background: whether a NeRF learns what is behind the object.

    Raises:
        InputError: an unknown representation, size or background.
    """
    if representation == "gaussians":
        return Gaussians.ball(gaussian_settings(image_size), seed, device)
    if representation == "nerf":
        from .nerf import NeRF

        return NeRF.start(nerf_settings(nerf_size, background, device), seed, device)
    raise InputError(f"The representation must be one of {', '.join(get_args(Representation))}, got {representation!r}.")


def gaussian_settings(size: int) -> GaussianSettings:
    """Settings for pictures of ``size`` pixels: the published ones at 256, fewer Gaussians where there are fewer pixels to
    explain (more only fit the noise of the pictures, and take longer)."""
    pixels = size * size
    published = GaussianSettings()
    most = min(published.density.max_points, pixels * 3 // 2)
    return GaussianSettings(num_points=min(published.num_points, pixels * 3 // 4), density=DensitySettings(max_points=most))


def nerf_settings(size: str = AUTO, background: Background = "white", device: torch.device | str = "cpu") -> NeRFSettings:
    """Settings of that size, for that device.

    Raises:
        InputError: an unknown size or background.
    """
    check_nerf_size(size)
    if size == AUTO:
        size = "small" if torch.device(device).type == "cpu" else "full"
    return NeRFSettings.of_size(size, background=background)


def check_nerf_size(size: str) -> None:
    """Refuse an unknown size before any work is done.

    Raises:
        InputError: it is none of ``NERF_SIZES``.
    """
    if size not in NERF_SIZES:
        raise InputError(f"The size of a NeRF must be one of {', '.join(NERF_SIZES)}, got {size!r}; 'small' suits a CPU.")
