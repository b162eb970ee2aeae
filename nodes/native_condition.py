"""Conditioning of native models by view: ComfyUI's CONDITIONING for both branches of the guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.diffusion.view_words import view_words
from ..microdreamer_core.diffusion.zero123 import camera_embedding
from ..microdreamer_core.errors import InputError

Native = list[list[Any]]
"""ComfyUI's CONDITIONING: entries [tokens [B,L,C], further values by name]; B is 1 or the number of views."""


@dataclass(frozen=True)
class Branches:
    """The conditional and the unconditional branch."""

    positive: Native
    negative: Native


@dataclass(frozen=True)
class FixedViews:
    """The same conditioning for all cameras."""

    branches: Branches

    def __call__(self, cameras: Cameras) -> Branches:
        return self.branches


@dataclass(frozen=True)
class Zero123Views:
    """Conditioning of the Zero123 family: one token of the reference's CLIP embedding and the camera, and the reference's
    latent concatenated with the noisy one. The unconditional branch has zeros in place of both.

    Attributes:
        embeds: [1,768] CLIP embedding of the reference.
        latent: [1,4,h,w] of the reference, unscaled, as in the family's training.
        elevation: of the reference, degrees, positive above.
        stable: Stable Zero123, whose camera token has the reference's polar angle in place of a distance.
    """

    embeds: Tensor
    latent: Tensor
    elevation: float
    stable: bool

    def __call__(self, cameras: Cameras) -> Branches:
        views = camera_embedding(cameras, self.elevation, stable=self.stable).to(self.embeds.device)
        tokens = torch.cat([self.embeds[:, None].expand(len(views), -1, -1), views], -1)
        nothing = torch.zeros_like(self.embeds[:, None]), {"concat_latent_image": torch.zeros_like(self.latent)}
        return Branches([[tokens, {"concat_latent_image": self.latent}]], [list(nothing)])


@dataclass(frozen=True)
class PromptViews:
    """Conditioning on a prompt with view words for each camera.

    Attributes:
        prompts: the encoded prompt by view words; by "" without any.
    """

    prompts: dict[str, Native]
    negative: Native

    @classmethod
    def encode(cls, clip: Any, prompt: str, negative: str, words: tuple[str, ...]) -> PromptViews:
        """Encode the prompt once with each of the words, or unchanged if there are none."""
        texts = {word: f"{prompt}, {word}" for word in words} or {"": prompt}
        with torch.inference_mode():
            encoded = {word: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for word, text in texts.items()}
            return cls(encoded, clip.encode_from_tokens_scheduled(clip.tokenize(negative)))

    def __call__(self, cameras: Cameras) -> Branches:
        if "" in self.prompts:
            return Branches(self.prompts[""], self.negative)
        return Branches(_per_view([self.prompts[word] for word in view_words(cameras)]), self.negative)


@torch.inference_mode()
def _per_view(encoded: list[Native]) -> Native:
    """Batch the views' CONDITIONING, entry by entry (a scheduled text encoder gives several)."""
    return [
        [_rows([tokens for tokens, _ in entries]), _values([values for _, values in entries])]
        for entries in zip(*encoded, strict=True)
    ]


def _rows(tokens: list[Tensor]) -> Tensor:
    """Batch tokens; a shorter text is repeated, as in ComfyUI, which does not change the result of attention."""
    length = math.lcm(*(row.shape[1] for row in tokens))
    return torch.cat([row.repeat(1, length // row.shape[1], 1) for row in tokens])


def _values(values: list[dict]) -> dict:
    """Batch tensors (pooled texts, masks); everything else is the first's."""
    merged = dict(values[0])
    for name, value in values[0].items():
        if not isinstance(value, Tensor):
            continue
        rows = [view[name] for view in values]
        if any(row.shape != value.shape for row in rows):
            raise InputError(f"The text encoder gives {name!r} of another size for every view; switch view_words off.")
        merged[name] = torch.cat(rows)
    return merged
