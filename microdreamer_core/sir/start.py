"""The start field of a run, with settings that suit the model."""

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
from ..fields.texture import TextureSettings
from ..util.vocabulary import Representation
from .plan import SIRPlan

_FULL_STEPS = 128
"""Image size in pixels from which textures take full steps."""
FILL = 0.8
"""Longest side of the object as a fraction of the image's side, the same for all supported models."""


def start_field(
    representation: Representation,
    image_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    nerf_size: str = AUTO,
    plan: SIRPlan | None = None,
) -> Field:
    """Create the start field θ of a run.

    >>> start_field("gaussians", image_size=64, seed=0)
    Gaussians(3072 on cpu after 0 updates)

    Args:
        image_size: pixels of the model's images, which determine the number of Gaussians.
        seed: of the start and of all later random numbers of the field.
        nerf_size: one of ``NERF_SIZES``.
        plan: of the run; determines a NeRF's background, bounding ball and learning rate.

    Raises:
        InputError: the representation or the size is unknown.
    """
    if representation == "gaussians":
        return Gaussians.ball(gaussian_settings(image_size), seed, device)
    if representation == "nerf":
        from ..fields.nerf import NeRF

        settings = nerf_settings(nerf_size, "white" if plan is None else plan.background, device)
        return NeRF.start(settings if plan is None else settings_of_plan(settings, plan), seed, device)
    raise InputError(f"The representation must be one of {', '.join(get_args(Representation))}, got {representation!r}.")


def gaussian_settings(size: int) -> GaussianSettings:
    """Return settings for images of ``size`` pixels: the published ones at 256, fewer Gaussians for fewer pixels.

    More Gaussians only fit the noise of small images, and are slower.
    """
    pixels = size * size
    published = GaussianSettings()
    most = min(published.density.max_points, pixels * 3 // 2)
    return GaussianSettings(num_points=min(published.num_points, pixels * 3 // 4), density=DensitySettings(max_points=most))


def texture_settings(size: int) -> TextureSettings:
    """Return settings of a texture for images of ``size`` pixels.

    Larger steps would fit the noise of a 64-pixel model, which shows as ripples between its pixels.
    """
    usual = TextureSettings()
    return usual if size >= _FULL_STEPS else replace(usual, step_size=usual.step_size / 4)


def settings_of_plan(settings: NeRFSettings, plan: SIRPlan) -> NeRFSettings:
    """Adapt a NeRF's settings to the cameras and the learning rate of a plan.

    The ball contains any object that a reference can show: a flat square that faces the camera and fills 0.8 of the image
    reaches sqrt(2) 0.8 r tan(fov / 2) from the origin. Its radius is at least the default 1.
    """
    half = plan.radius * math.tan(math.radians(plan.fov_y / 2))
    settings = replace(settings, radius=max(settings.radius, math.sqrt(2) * FILL * half))
    if plan.lr_networks is None or settings.size != "full":  # the small size has its own rates
        return settings
    return replace(settings, lr_networks=plan.lr_networks, lr_background=plan.lr_networks)
