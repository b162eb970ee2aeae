"""MVDream (arXiv 2308.16512): a prompt, and four views denoised together; and the cameras of its family.

The family's cameras are row-major 4x4 camera-to-world matrices with OpenGL camera axes in a z-up world, translation normalised
to length 1; elevation is positive upwards and the front of the object is seen from azimuth 90.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..reference import Reference
from ..util.vocabulary import DEFAULT_FOV_Y
from .latent import FILL, LatentDiffusion, LatentModel, Parts, required
from .protocol import ViewCount

FRONT_AZIMUTH = 90.0
"""Degrees at which the family sees the object's front; ours is 0."""

VIEWS = 4
"""Views that the family denoises together."""

NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, lowres, low "
    "quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, bad proportions"
)
"""The negative prompt of the released text_mv.yaml and imagedream.yaml: Table I's guidance was chosen with it, and inversion
runs on it alone."""

_Z_UP_ROWS = [0, 2, 1]


class MVDream(LatentModel):
    """The loaded checkpoint, not yet told what to make; ``on(None, prompt)`` gives the diffusion model that SIR uses.

    Attributes:
        takes_prompt, takes_picture: what ``on`` wants.
        preset, nerf_preset: the plans that suit it for Gaussians and NeRF; radius, fov_y, fill: framing of its training
            pictures.
        view_count: how many views it denoises together.
    """

    takes_prompt, takes_picture = True, False
    negative = NEGATIVE
    view_count = ViewCount(VIEWS)
    preset, radius, fov_y, fill = "mvdream-gaussians", 2.0, DEFAULT_FOV_Y, FILL
    nerf_preset, nerf_radius = "mvdream-nerf", 2.0

    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = False,
    ) -> MVDreamDiffusion:
        """Condition on a prompt.

        Args:
            reference: not looked at; a plan may still compare reconstructions with it.
            negative: what the pictures shall not show, in place of ``NEGATIVE``; it is the unconditional branch.
            view_words: not needed, the model knows the cameras.

        Raises:
            InputError: there is no prompt.
        """
        if prompt is None or not prompt.strip():
            raise InputError("MVDream makes what a prompt says, got none; give it a prompt.")
        return MVDreamDiffusion(self.parts, text_tokens(self.parts, prompt, self.negative if negative is None else negative))


class MVDreamDiffusion(LatentDiffusion):
    """``MultiViewDiffusion`` of MVDream on one prompt.

    Args:
        context: [2,L,C] text tokens, of the negative prompt first.
    """

    def __init__(self, parts: Parts, context: Tensor):
        super().__init__(parts, MVDream.view_count)
        self._context = context

    def condition(self, cameras: Cameras) -> Tensor:
        """[G,4,16] camera matrices of the groups that are denoised together."""
        self.view_count.check(len(cameras))
        return group_by_view(camera_matrices(cameras)).to(self.device)

    def _predict(self, latents: Tensor, t: int, conditioning: Tensor, branches: slice) -> Tensor:
        groups, views = conditioning.shape[:2]
        context = self._context[branches]
        eps = self._parts.unet(
            repeat(latents, "(v g) c h w -> (b g v) c h w", b=len(context), g=groups),
            t,
            repeat(context, "b l c -> (b n) l c", n=len(latents)),
            camera=repeat(conditioning, "g v c -> (b g v) c", b=len(context)),
            num_frames=views,
        )
        return rearrange(eps, "(b g v) c h w -> b (v g) c h w", g=groups, v=views)


def text_tokens(parts: Parts, prompt: str, negative: str) -> Tensor:
    """[2,L,C] text tokens of the two branches, the negative prompt's first."""
    return required(parts.text, "text tower")([negative, prompt]).to(parts.unet.device)


def group_by_view(rows: Tensor) -> Tensor:
    """[V,...] views -> [V/4,4,...]: view i goes to group i modulo V/4, so that evenly spread cameras make such groups."""
    return rearrange(rows, "(v g) ... -> g v ...", v=VIEWS)


def camera_matrices(cameras: Cameras, extra_view: bool = False) -> Tensor:
    """The camera conditioning of MVDream and ImageDream: our cameras, our front at their front.

    Args:
        cameras: V cameras.
        extra_view: append a row of zeros, the "camera" of ImageDream's fifth view (its pixel variant).

    Returns:
        [V,16] float32, or [V+1,16].
    """
    rows = normalized_translation(to_z_up(_turn_front(cameras.c2w))).flatten(1)
    return torch.cat([rows, rows.new_zeros(1, 16)]) if extra_view else rows


def to_z_up(c2w: Tensor) -> Tensor:
    """[V,4,4] camera-to-world, y up -> z up: world (x, y, z) -> (x, -z, y), the family's ``blender_coord``."""
    z_up = c2w.clone()
    z_up[:, :3] = c2w[:, _Z_UP_ROWS] * c2w.new_tensor([1.0, -1.0, 1.0])[:, None]
    return z_up


def normalized_translation(c2w: Tensor) -> Tensor:
    """[V,4,4] with every camera at distance 1 from the origin: the family encodes no distance (t / (|t| + 1e-8))."""
    out = c2w.clone()
    translation = c2w[:, :3, 3]
    out[:, :3, 3] = translation / (translation.norm(dim=1, keepdim=True) + 1e-8)
    return out


def _turn_front(c2w: Tensor) -> Tensor:
    """Turn the y-up world about y, so that the object's front is seen from ``FRONT_AZIMUTH``."""
    angle = math.radians(FRONT_AZIMUTH)
    turn = torch.eye(4, dtype=torch.float64)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return (turn @ c2w.cpu().double()).to(c2w)  # on the CPU: not every device knows float64
