"""What MVDream, ImageDream and Zero123 share behind the protocol: Stable Diffusion's latents, guidance in one batch, counts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..reference import Reference
from .ddim import guided_noise, scaled_linear_alphas_cumprod
from .encoders import ClipText, ClipVision, Vae
from .protocol import MultiViewDiffusion, ViewCount
from .unet import MultiViewUNet

log = logging.getLogger(__name__)

LATENT_SIDE = 32
"""Latents of a side in training: pictures of 256 pixels with the released autoencoder."""

FILL = 0.8
"""Share of the picture that the object takes in the released code's preparation (a border of 20 %)."""


@dataclass(frozen=True)
class Parts:
    """The networks of a checkpoint; which of them there are depends on the family.

    Attributes:
        camera: Zero123's Linear from picture embedding and camera to one token.
        low_memory: call the network for one branch at a time; CLIP's towers stay on the CPU.
    """

    unet: MultiViewUNet
    vae: Vae
    text: ClipText | None = None
    vision: ClipVision | None = None
    camera: nn.Linear | None = None
    low_memory: bool = False

    def networks(self) -> nn.ModuleDict:
        """All of them that are moved between devices, as one module."""
        found: dict[str, nn.Module | None] = {"unet": self.unet, "camera": self.camera, "vae": self.vae.model}
        if not self.low_memory:
            found |= {"text": self.text and self.text.model, "vision": self.vision and self.vision.model}
        return nn.ModuleDict({name: module for name, module in found.items() if module is not None})

    @property
    def image_size(self) -> int:
        """Pixels of the model's square pictures."""
        return LATENT_SIDE * self.vae.factor


PartT = TypeVar("PartT")


def required(part: PartT | None, name: str) -> PartT:
    """A part that the family cannot do without.

    Raises:
        InputError: the checkpoint came without it.
    """
    if part is None:
        raise InputError(f"This model needs a {name}, got none; load it from a whole checkpoint.")
    return part


class LatentModel:
    """A loaded checkpoint, not yet told what to make; a family adds ``on`` and what it knows of its training.

    Attributes:
        negative: the prompt of the unconditional branch when nobody gives another.
        parts: its networks; name: where it was loaded from; variant: which of the family's it is.
        image_size: pixels of its square pictures.
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
        """All networks as one module, to be moved between devices."""
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
    """``MultiViewDiffusion`` but for the conditioning: a family adds ``condition`` and ``_predict``.

    Where float16 does not hold the UNet's numbers, it goes over to a wider precision for good, and the call is made again. For
    that, every call in float16 is waited for, which delays what follows by the start of one step's few small kernels.

    Args:
        parts: the networks; they may be moved between calls.
        views: how many views are denoised together.
    """

    def __init__(self, parts: Parts, views: ViewCount):
        self._parts = parts
        self.view_count = views
        self.image_size = parts.image_size
        self.latent_shape = (4, LATENT_SIDE, LATENT_SIDE)
        self.alphas_cumprod = scaled_linear_alphas_cumprod()
        self.evaluations = 0

    @property
    def device(self) -> torch.device:
        return self._parts.unet.device

    def encode(self, images: Tensor) -> Tensor:
        """[V,H,W,3] in [0,1] -> [V,4,h,w] scaled latents (the posterior's mean); differentiable."""
        return self._parts.vae.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """[V,4,h,w] scaled latents -> [V,H,W,3] in [0,1]."""
        return self._parts.vae.decode(latents)

    @torch.no_grad()
    def eps(self, latents: Tensor, t: int, conditioning: Any, guidance_scale: float) -> Tensor:
        """Predicted noise; guidance as in ``MultiViewDiffusion``. Row 0 of all conditioning is the unconditional branch."""
        # slices, because indices would be copied to the device, and waited for, at every call
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
        return eps[0] if len(eps) == 1 else guided_noise(eps[0], eps[1], guidance_scale)

    def _predict(self, latents: Tensor, t: int, conditioning: Any, branches: slice) -> Tensor:
        """[B,V,4,h,w] noise of the branches asked for (unconditional, conditional), from one call of the network."""
        raise NotImplementedError


def encode_reference(reference: Reference, parts: Parts) -> Tensor:
    """[1,S,S,3] the reference at the model's size, on the CPU: not every device can resize it as CLIP wants it."""
    return reference.at_size(parts.image_size).image[None].cpu()
