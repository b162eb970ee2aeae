"""What SIR asks of a multi-view diffusion model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..cameras import Cameras
from ..errors import InputError
from ..reference import Reference

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


class MultiViewModel(Protocol):
    """A loaded, unconditioned model; :meth:`condition` gives the diffusion model that SIR uses.

    Attributes:
        image_size: pixels of its square pictures.
        takes_prompt: whether ``condition`` takes words.
        negative: the prompt of the unconditional branch when nobody gives another.
        preset, nerf_preset: the plans that suit it for Gaussians and NeRF.
        radius, nerf_radius, fov_y: its cameras in these plans.
        fill: share of the picture that the object takes.
    """

    @property
    def image_size(self) -> int: ...

    @property
    def takes_prompt(self) -> bool: ...

    @property
    def negative(self) -> str: ...

    @property
    def preset(self) -> str: ...

    @property
    def nerf_preset(self) -> str: ...

    @property
    def radius(self) -> float: ...

    @property
    def nerf_radius(self) -> float: ...

    @property
    def fov_y(self) -> float: ...

    @property
    def fill(self) -> float: ...

    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = ...,
    ) -> MultiViewDiffusion:
        """Condition on a reference picture, a prompt or both, whichever the model takes.

        Args:
            negative: what the pictures shall not show; None for ``self.negative``. For models with a prompt.
            view_words: append where the camera stands to the prompt of each view, for models that know no cameras.

        Raises:
            InputError: what the model needs is missing, or it cannot take what is given.
        """
        ...


class Checkpoint(MultiViewModel, Protocol):
    """A model whose weights were read from a file and can be moved."""

    def networks(self) -> nn.ModuleDict:
        """All networks as one module, to be moved between devices."""
        ...


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

    evaluations: int

    @property
    def image_size(self) -> int: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def alphas_cumprod(self) -> Tensor: ...

    @property
    def view_count(self) -> ViewCount: ...

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
