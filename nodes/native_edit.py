"""How edit models are shown the picture that they edit: ComfyUI's CONDITIONING with the reference in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .native_condition import Native


def edit_encoder(kind: str, clip: Any, vae: Any, picture: Tensor) -> Callable[[str], Native]:
    """Return a function that encodes a text for an edit model together with the picture [1,S,S,3].

    Qwen-Image's text encoder looks at the picture too, through ComfyUI's own node; all others have it as a reference latent.

    Args:
        kind: name of ComfyUI's model class.
    """
    if kind == "QwenImage":
        node, encoder = importlib.import_module("comfy_extras.nodes_qwen").TextEncodeQwenImageEditPlus, _OnePicture(vae)

        @torch.inference_mode()
        def encode(text: str) -> Native:
            made = node.execute(clip, text, vae=encoder, image1=picture)
            return made.args[0]

        return encode
    with torch.inference_mode():
        latent = vae.encode(picture)

    @torch.inference_mode()
    def encode_beside(text: str) -> Native:
        encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return [[tokens, {**values, "reference_latents": [latent]}] for tokens, values in encoded]

    return encode_beside


class _OnePicture:
    """A VAE that is given the same picture with every text, and encodes it once."""

    def __init__(self, vae: Any):
        self._vae = vae
        self._latent: Tensor | None = None

    def encode(self, pixels: Tensor) -> Tensor:
        latent = self._vae.encode(pixels) if self._latent is None else self._latent
        self._latent = latent
        return latent
