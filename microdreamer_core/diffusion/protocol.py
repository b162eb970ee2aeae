"""What SIR asks of a multi-view diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError

Conditioning = Any
"""What ``condition`` returns and ``eps`` takes: opaque to everybody else."""


@dataclass(frozen=True)
class ViewCount:
    """How many views a model denoises together.

    Attributes:
        group: views of one joint call when the model sees the views together (4 for MVDream), None when each view
            stands alone and any number will do.
    """

    group: int | None = None

    def check(self, views: int) -> None:
        """Raise InputError unless ``views`` is one the model allows: a positive multiple of its group."""
        if views < 1 or (self.group is not None and views % self.group):
            allowed = "at least 1" if self.group is None else f"a multiple of {self.group}"
            raise InputError(f"This diffusion model denoises {allowed} views, got {views}; change the plan's views.")


class MultiViewDiffusion(Protocol):
    """An ε-predicting multi-view diffusion model whose reference (picture, prompt or both) is already encoded.

    Attributes:
        image_size: pixels of the square pictures that ``encode`` takes and ``decode`` gives.
        latent_shape: (C, h, w) of one view's latent.
        device: where latents live.
        alphas_cumprod: [T] float64, T = 1000; α_t = sqrt(alphas_cumprod[t]), σ_t = sqrt(1 - alphas_cumprod[t]).
        view_count: how many views it denoises together.
        evaluations: network evaluations so far, counted per view and per branch.
    """

    image_size: int
    latent_shape: tuple[int, int, int]
    device: torch.device
    alphas_cumprod: Tensor
    view_count: ViewCount
    evaluations: int

    def encode(self, images: Tensor) -> Tensor:
        """[V,H,W,3] in [0,1] -> [V,C,h,w] scaled latents."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[V,C,h,w] scaled latents -> [V,H,W,3] in [0,1]."""
        ...

    def condition(self, cameras: Cameras) -> Conditioning:
        """What ``eps`` needs to know of these cameras; computed once per SIR iteration."""
        ...

    def eps(self, latents: Tensor, t: int, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """Predicted noise at integer time ``t``.

        guidance 0 runs the unconditional branch u alone, 1 the conditional branch c alone, anything else both in one
        batch: u + guidance (c - u).
        """
        ...
