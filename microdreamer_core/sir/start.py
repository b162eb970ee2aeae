"""Where a run begins: the start field of each representation, with the settings that suit a model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import torch

from ..errors import InputError
from ..fields.density_control import DensitySettings
from ..fields.gaussians import Gaussians, GaussianSettings
from ..fields.nerf_settings import AUTO, NeRFSettings, nerf_settings
from ..fields.protocol import Field
from ..util.vocabulary import Representation
from .plan import SIRPlan

FILL = 0.8
"""Share of a picture's side that the object takes, in all models here."""


def start_field(
    representation: Representation,
    image_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    nerf_size: str = AUTO,
    plan: SIRPlan | None = None,
) -> Field:
    """A fresh field.

    Args:
        image_size: pixels of the model's pictures, to which the number of Gaussians is suited.
        seed: the start derives from it, and all that the field draws while it learns.
        nerf_size: one of ``NERF_SIZES``.
        plan: of the run; a NeRF has its background, a ball for its cameras and its learning rate.

    Raises:
        InputError: an unknown representation or size.
    """
    if representation == "gaussians":
        return Gaussians.ball(gaussian_settings(image_size), seed, device)
    if representation == "nerf":
        from ..fields.nerf import NeRF

        settings = nerf_settings(nerf_size, "white" if plan is None else plan.background, device)
        return NeRF.start(settings if plan is None else settings_of_plan(settings, plan), seed, device)
    raise InputError(f"The representation must be one of {', '.join(get_args(Representation))}, got {representation!r}.")


def gaussian_settings(size: int) -> GaussianSettings:
    """Settings for pictures of ``size`` pixels: the published ones at 256, fewer Gaussians where there are fewer pixels to
    explain (more only fit the noise of the pictures, and take longer)."""
    pixels = size * size
    published = GaussianSettings()
    most = min(published.density.max_points, pixels * 3 // 2)
    return GaussianSettings(num_points=min(published.num_points, pixels * 3 // 4), density=DensitySettings(max_points=most))


def settings_of_plan(settings: NeRFSettings, plan: SIRPlan) -> NeRFSettings:
    """A NeRF's settings for the cameras and the learning rate of a plan.

    The ball holds all that a reference may show: a flat square that fills 0.8 of the picture, turned to the camera, reaches
    sqrt(2) 0.8 r tan(fov / 2) from the origin. It never gets smaller than the usual 1.
    """
    half = plan.radius * math.tan(math.radians(plan.fov_y / 2))
    settings = replace(settings, radius=max(settings.radius, math.sqrt(2) * FILL * half))
    if plan.lr_networks is None or settings.size != "full":  # the small size has rates of its own
        return settings
    return replace(settings, lr_networks=plan.lr_networks, lr_background=plan.lr_networks)
