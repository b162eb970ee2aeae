"""Conditioning of native models by view: ComfyUI's CONDITIONING for both branches of the guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.diffusion.view_words import camera_words, view_words
from ..microdreamer_core.diffusion.zero123 import camera_embedding, spherical

Native = list[list[Any]]
"""ComfyUI's CONDITIONING: entries [tokens [B,L,C], further values by name]; B is 1 or the number of views."""
Encode = Callable[[str], Native]


@dataclass(frozen=True)
class Patch:
    """A patch of a MODEL.

    Attributes:
        kind: ComfyUI's name of the place.
        function: what is called there.
        lowest, highest: noise levels between which it is.
    """

    kind: str
    function: Any
    lowest: float
    highest: float


@dataclass(frozen=True)
class Branches:
    """The conditional and the unconditional branch of views that are denoised in one call.

    Attributes:
        rows: of the views among all, in the order in which the network gets them; None for all of them.
        patches: of the MODEL, for these views.
    """

    positive: Native
    negative: Native
    rows: tuple[int, ...] | None = None
    patches: tuple[Patch, ...] = ()

    def map(self, change: Callable[[Native], Native]) -> Branches:
        """Change the CONDITIONING of both branches."""
        return replace(self, positive=change(self.positive), negative=change(self.negative))

    def patch(self, patcher: Any, level: float) -> Any:
        """Return the MODEL with the patches of this noise level.

        Older ComfyUIs copy the patches of a MODEL that they clone, with their weights, so it is cloned once and before.
        """
        fitting = [patch for patch in self.patches if patch.lowest <= level <= patch.highest]
        if not fitting:
            return patcher
        changed = patcher.clone()
        for patch in fitting:
            changed.set_model_patch(patch.function, patch.kind)
        return changed

    def split(self, views: int, side: int) -> tuple[Branches, ...]:
        """Return the branches of each picture of the network by itself; ``views`` are those of all branches together.

        Args:
            side: views beside each other in a picture.
        """
        rows = tuple(range(views)) if self.rows is None else self.rows

        def of_picture(i: int) -> Branches:
            text = self.map(partial(_row, i))
            return replace(text, rows=rows[i * side**2 : (i + 1) * side**2])

        return tuple(of_picture(i) for i in range(len(rows) // side**2))


@dataclass(frozen=True)
class FixedViews:
    """The same conditioning for all cameras."""

    branches: Branches

    def __call__(self, cameras: Cameras) -> tuple[Branches, ...]:
        return (self.branches,)


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

    def __call__(self, cameras: Cameras) -> tuple[Branches, ...]:
        views = camera_embedding(cameras, self.elevation, stable=self.stable).to(self.embeds.device)
        tokens = torch.cat([self.embeds[:, None].expand(len(views), -1, -1), views], -1)
        nothing = torch.zeros_like(self.embeds[:, None]), {"concat_latent_image": torch.zeros_like(self.latent)}
        return (Branches([[tokens, {"concat_latent_image": self.latent}]], [list(nothing)]),)


@dataclass(frozen=True)
class OrbitViews:
    """Conditioning of SV3D_p: the CLIP embedding and the latent of the reference, and every frame's elevation and azimuth in
    degrees, as ComfyUI's SV3D_Conditioning gives them. The unconditional branch has zeros in place of the reference.

    Its angles are ours: a camera lies at (cos e cos a, cos e sin a, sin e) with z up and the reference at a = 0
    (Stability-AI/generative-models, scripts/demo/sv3d_helpers.py, plot_3D), so that it moves to the right as a grows; in the
    official videos, whose a ascends (scripts/sampling/simple_video_sample.py), the object's right side comes into view.

    Attributes:
        embeds: [1,C]; latent: [1,4,h,w], unscaled.
    """

    embeds: Tensor
    latent: Tensor

    def __call__(self, cameras: Cameras) -> tuple[Branches, ...]:
        elevations, azimuths, _ = spherical(cameras)
        angles = {"elevation": elevations.tolist(), "azimuth": (azimuths % 360).tolist()}
        tokens = self.embeds[:, None]
        shown, hidden = ({"concat_latent_image": latent, **angles} for latent in (self.latent, torch.zeros_like(self.latent)))
        return (Branches([[tokens, shown]], [[torch.zeros_like(tokens), hidden]]),)


def orbit_order(cameras: Cameras) -> list[int]:
    """Return the indices of cameras by azimuth, the reference's own last: the frames of SV3D turn once around the object."""
    _, azimuths, _ = spherical(cameras)
    return ((azimuths - 1e-3) % 360).argsort(stable=True).tolist()


@dataclass(frozen=True)
class PromptViews:
    """Conditioning on a prompt with view words for each camera.

    Attributes:
        prompts: the encoded prompt by view words; by "" without any.
        together: all views share one call.
    """

    prompts: dict[str, Native]
    negative: Native
    together: bool = False

    @classmethod
    def encode(cls, encode: Encode, prompt: str, negative: str, words: tuple[str, ...], together: bool = False) -> PromptViews:
        """Encode the prompt once with each of the words, or unchanged if there are none."""
        texts = {word: f"{prompt}, {word}" for word in words} or {"": prompt}
        return cls({word: encode(text) for word, text in texts.items()}, encode(negative), together)

    def __call__(self, cameras: Cameras) -> tuple[Branches, ...]:
        """Group the views by the shape of their texts."""
        if "" in self.prompts:
            return (Branches(self.prompts[""], self.negative),)
        return _group([self.prompts[word] for word in view_words(cameras)], self.negative, self.together)


@dataclass(frozen=True)
class TextViews:
    """Conditioning on texts that depend on the cameras in more ways than can be encoded beforehand.

    Attributes:
        encode: encodes a text, with the reference for models that see it there.
        describe: cameras -> the text of each picture that the network makes.
        together: all views share one call.
        encoded: the texts so far: one is encoded when a camera first needs it.
    """

    encode: Encode
    describe: Callable[[Cameras], Sequence[str]]
    negative: Native
    together: bool = False
    encoded: dict[str, Native] = field(default_factory=dict)

    def __call__(self, cameras: Cameras) -> tuple[Branches, ...]:
        texts = self.describe(cameras)
        for text in texts:
            if text not in self.encoded:
                self.encoded[text] = self.encode(text)
        return _group([self.encoded[text] for text in texts], self.negative, self.together)


TRIGGER = "<sks>"
"""The word with which the texts of camera-angle LoRAs begin."""


def angle_texts(prompt: str, cameras: Cameras) -> list[str]:
    """Return a text for each camera in the words of camera-angle LoRAs, which ``prompt`` follows; it may be empty."""
    ending = f", {prompt}" if prompt else ""
    return [f"{TRIGGER} {words}{ending}" for words in camera_words(cameras)]


def grid_texts(prompt: str, side: int, words: Callable[[Cameras], Sequence[str]], cameras: Cameras) -> list[str]:
    """Return a text for each picture of side x side views, with the words of its cameras row by row."""
    said, views = words(cameras), side**2
    start = f"{prompt}, " if prompt else ""
    return [
        f"{start}{side} x {side} grid of views of the same object: {', '.join(said[i : i + views])}"
        for i in range(0, len(said), views)
    ]


def text_encoder(clip: Any) -> Encode:
    """Return a function that encodes a text with ComfyUI's CLIP."""

    @torch.inference_mode()
    def encode(text: str) -> Native:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    return encode


def _row(i: int, text: Native) -> Native:
    """One row of batched CONDITIONING; what all rows share stays."""

    def one(value: Any) -> Any:
        return value[i : i + 1] if isinstance(value, Tensor) and len(value) > 1 else value

    return [[one(tokens), {name: one(value) for name, value in values.items()}] for tokens, values in text]


def _group(texts: list[Native], negative: Native, together: bool) -> tuple[Branches, ...]:
    """Batch the views whose texts have the same shapes; they are denoised in one call.

    A shorter text is not repeated to the length of another: attention over text and image together, as in diffusion
    transformers, would weigh it twice. Views that are denoised ``together`` belong to UNets, where a repeated text is the same.
    """
    if together:
        return (Branches(_batch(_same_length(texts)), negative),)
    rows: dict[tuple, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(_shapes(text), []).append(row)
    return tuple(Branches(_batch([texts[i] for i in group]), negative, tuple(group)) for group in rows.values())


def _same_length(texts: list[Native]) -> list[Native]:
    """Repeat the tokens of each text to the length of their least common multiple."""
    length = math.lcm(*(tokens.shape[1] for text in texts for tokens, _ in text))
    return [[[tokens.repeat(1, length // tokens.shape[1], 1), values] for tokens, values in text] for text in texts]


def _shapes(text: Native) -> tuple:
    """What has to agree for texts to share a batch: the shapes of all tensors of all entries."""
    return tuple(
        (tokens.shape, *((name, value.shape) for name, value in sorted(values.items()) if isinstance(value, Tensor)))
        for tokens, values in text
    )


@torch.inference_mode()
def _batch(texts: list[Native]) -> Native:
    """Batch the views' CONDITIONING, entry by entry (a scheduled text encoder gives several).

    Tensors (tokens, pooled texts, masks) are batched; everything else is the first's.
    """
    batched = []
    for entries in zip(*texts, strict=True):
        values = dict(entries[0][1])
        shared = {name: torch.cat([other[name] for _, other in entries]) for name, v in values.items() if isinstance(v, Tensor)}
        batched.append([torch.cat([tokens for tokens, _ in entries]), values | shared])
    return batched
