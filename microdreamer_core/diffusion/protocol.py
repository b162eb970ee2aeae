"""The protocols of multi-view diffusion models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..cameras import Cameras
from ..errors import InputError
from ..reference import Reference
from .noise import NoiseProcess

if TYPE_CHECKING:
    from ..render.protocol import Render

Conditioning = Any
"""The opaque value that ``condition`` returns and ``denoised`` takes."""


@dataclass(frozen=True)
class ViewCount:
    """How many views a model denoises together.

    >>> ViewCount(group=4).check(8)

    Attributes:
        group: views of one joint call, if the views attend to each other (4 for MVDream); None if views are independent, so
            that any number is allowed.
    """

    group: int | None = None

    def check(self, views: int, mend: str = "change the plan's views") -> None:
        """Check that the model allows ``views``: a positive multiple of its group.

        Args:
            mend: what to do about another number, for the message.

        Raises:
            InputError: it does not.
        """
        if views < 1 or (self.group is not None and views % self.group):
            allowed = "at least 1" if self.group is None else f"a multiple of {self.group}"
            raise InputError(f"This diffusion model denoises {allowed} views, got {views}; {mend}.")


class MultiViewModel(Protocol):
    """A loaded, unconditioned model; :meth:`condition` returns the diffusion model that SIR uses.

    Attributes:
        image_size: side in pixels of its square images.
        takes_prompt: whether ``condition`` accepts a prompt.
        negative: the default prompt of the unconditional branch.
        preset, nerf_preset: its plans for Gaussians and NeRF.
        radius, nerf_radius, fov_y: its cameras in these plans.
        fill: longest side of the object as a fraction of the image's side.
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
        """Condition on a reference, a prompt or both, as the model allows.

        Args:
            negative: negative prompt, for models with a prompt; None for ``self.negative``.
            view_words: append the view's direction in words to its prompt, for models without camera conditioning.

        Raises:
            InputError: a required input is missing, or one is given that the model does not accept.
        """
        ...


class Checkpoint(MultiViewModel, Protocol):
    """A model whose weights were read from a file and can be moved."""

    def networks(self) -> nn.ModuleDict:
        """Return all networks as one module, to move them between devices."""
        ...


class MultiViewDiffusion(Protocol):
    """A multi-view diffusion model, already conditioned on an image, a prompt or both.

    Attributes:
        image_size: side in pixels of the square images of ``encode`` and ``decode``.
        latent_shape: (C, h, w) of one view's latent.
        device: of latents.
        process: its noise levels at times 0..T-1; latents are in the variance-preserving scale whatever the network's own.
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
    def process(self) -> NoiseProcess: ...

    @property
    def view_count(self) -> ViewCount: ...

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] to scaled latents [V,C,h,w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [V,C,h,w] to images [V,H,W,3] in [0,1]."""
        ...

    def condition(self, cameras: Cameras) -> Conditioning:
        """Compute the conditioning of ``denoised`` for these cameras, once per SIR iteration."""
        ...

    def denoised(self, latents: Tensor, t: int, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """Estimate the clean latents x0 from noisy ones at integer time ``t``, in the same scale.

        A ``guidance_scale`` of 0 evaluates only the unconditional branch u, 1 only the conditional branch c, any other value
        both in one batch: u + guidance_scale (c - u).
        """
        ...


@runtime_checkable
class HintedDiffusion(Protocol):
    """A ``MultiViewDiffusion`` that is also shown renders of the object itself, say through a control network."""

    def condition_on(self, cameras: Cameras, render: Callable[[Cameras], Render] | None) -> Conditioning:
        """Compute the conditioning for these cameras and the object that ``render`` shows; None if there is none yet."""
        ...


def picture_alone(reference: Reference | None, prompt: str | None, model: str, mend: str = "give it a picture") -> Reference:
    """Return the reference of a model that takes a picture and no words.

    Args:
        model: its name, and mend: what to do, for the message.

    Raises:
        InputError: there is no reference, or a prompt is given.
    """
    if reference is None or prompt:
        got = "a prompt" if prompt else "none"
        raise InputError(f"{model} needs a reference picture and takes no prompt, got {got}; {mend}.")
    return reference


def condition_model(
    model: MultiViewDiffusion, cameras: Cameras, render: Callable[[Cameras], Render] | None = None
) -> Conditioning:
    """Condition a model on cameras, and on renders of the current object if it looks at them."""
    return model.condition_on(cameras, render) if isinstance(model, HintedDiffusion) else model.condition(cameras)
