"""Base classes of MVDream, ImageDream and Zero123: Stable Diffusion's latents, batched guidance, evaluation counts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..reference import Reference
from .ddim import guide, predict_x0
from .encoders import ClipText, ClipVision, Vae
from .noise import PAPER_SIDE, STABLE_DIFFUSION
from .protocol import MultiViewDiffusion, ViewCount
from .unet import MultiViewUNet

log = logging.getLogger(__name__)

LATENT_SIDE = PAPER_SIDE
"""Latent size in training: images of 256 pixels with the released autoencoder."""

FILL = 0.8
"""Longest side of the object as a fraction of the image's side in the released code (a border of 20 %)."""


@dataclass(frozen=True)
class Parts:
    """The networks of a checkpoint; which of them exist depends on the model family.

    Attributes:
        camera: Zero123's Linear from image embedding and camera to one token.
        low_memory: evaluate one branch at a time; CLIP's towers stay on the CPU.
    """

    unet: MultiViewUNet
    vae: Vae
    text: ClipText | None = None
    vision: ClipVision | None = None
    camera: nn.Linear | None = None
    low_memory: bool = False

    def networks(self) -> nn.ModuleDict:
        """Return all networks that are moved between devices, as one module."""
        found: dict[str, nn.Module | None] = {"unet": self.unet, "camera": self.camera, "vae": self.vae.model}
        if not self.low_memory:
            found |= {"text": self.text and self.text.model, "vision": self.vision and self.vision.model}
        return nn.ModuleDict({name: module for name, module in found.items() if module is not None})

    @property
    def image_size(self) -> int:
        """Side in pixels of the model's square images."""
        return LATENT_SIDE * self.vae.factor


PartT = TypeVar("PartT")


def require(part: PartT | None, name: str) -> PartT:
    """Return a network that the model family needs, or fail with a message for the user.

    Raises:
        InputError: the checkpoint does not have it.
    """
    if part is None:
        raise InputError(f"This model needs a {name}, got none; load it from a whole checkpoint.")
    return part


class LatentModel:
    """A loaded, unconditioned checkpoint; subclasses implement :meth:`condition` and set the properties of their training.

    Attributes:
        negative: the default prompt of the unconditional branch.
        parts: its networks; name: where it was loaded from; variant: which model of the family.
        image_size: side in pixels of its square images.
    """

    takes_prompt: bool
    takes_picture: bool
    view_count: ViewCount
    preset: str
    nerf_preset: str
    radius: float
    nerf_radius: float
    fov_y: float
    fill: float
    negative: str = ""

    def __init__(self, parts: Parts, name: str, variant: str = ""):
        self.parts, self.name, self.variant = parts, name, variant
        self.image_size = parts.image_size

    def networks(self) -> nn.ModuleDict:
        """Return all networks as one module, to move them between devices."""
        return self.parts.networks()

    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = False,
    ) -> MultiViewDiffusion:
        """See :class:`~.protocol.MultiViewModel`."""
        raise NotImplementedError


class LatentDiffusion:
    """``MultiViewDiffusion`` without the conditioning: subclasses implement ``condition`` and ``_predict``.

    If the UNet overflows in float16, it switches to a wider precision permanently and the call is repeated. To check for that,
    every call in float16 synchronises with the device, which costs the launch of a few small kernels.

    Args:
        parts: the networks; they may be moved between calls.
        views: how many views are denoised together.
    """

    def __init__(self, parts: Parts, views: ViewCount):
        self._parts = parts
        self.view_count = views
        self.image_size = parts.image_size
        self.latent_shape = (4, LATENT_SIDE, LATENT_SIDE)
        self.process = STABLE_DIFFUSION
        self.evaluations = 0

    @property
    def device(self) -> torch.device:
        return self._parts.unet.device

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] to scaled latents [V,4,h,w] (the posterior's mode); differentiable."""
        return self._parts.vae.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [V,4,h,w] to images [V,H,W,3] in [0,1]."""
        return self._parts.vae.decode(latents)

    @torch.no_grad()
    def denoised(self, latents: Tensor, t: int, conditioning: Any, guidance_scale: float) -> Tensor:
        """Estimate x0 from the predicted noise (Eq. 2); guidance as in ``MultiViewDiffusion``.

        Row 0 of all conditioning is the unconditional branch.
        """
        # slices, because copying indices to the device would synchronise at every call
        single = {0.0: slice(0, 1), 1.0: slice(1, 2)}
        branches = single.get(float(guidance_scale), slice(0, 2))
        calls = single.values() if branches == slice(0, 2) and self._parts.low_memory else [branches]

        def call() -> Tensor:
            return torch.cat([self._predict(latents, t, conditioning, rows) for rows in calls])

        eps, unet = call(), self._parts.unet
        if unet.dtype == torch.float16 and not bool(eps.isfinite().all()) and bool(latents.isfinite().all()):
            unet.leave_half()
            log.warning("The UNet overflows in float16 at t = %d; from now on it works in %s.", t, str(unet.dtype)[6:])
            eps = call()
        self.evaluations += len(eps) * len(latents)
        guided = eps[0] if len(eps) == 1 else guide(eps[0], eps[1], guidance_scale)
        return predict_x0(latents, guided, t, self.process)

    def _predict(self, latents: Tensor, t: int, conditioning: Any, branches: slice) -> Tensor:
        """Predict the noise [B,V,4,h,w] of the selected branches (unconditional, conditional) in one call of the network."""
        raise NotImplementedError


def encode_reference(reference: Reference, parts: Parts) -> Tensor:
    """Return the reference [1,S,S,3] at the model's size, on the CPU: CLIP's bicubic resize is not available on all devices."""
    return reference.at_size(parts.image_size).image[None].cpu()
