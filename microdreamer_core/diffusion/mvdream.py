"""MVDream (arXiv 2308.16512): text-conditioned, four views denoised together; and the cameras of its family.

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
from .latent import FILL, LatentDiffusion, LatentModel, Parts, require
from .protocol import ViewCount

FRONT_AZIMUTH = 90.0
"""Azimuth in degrees of the object's front in this family; ours is 0."""

VIEWS = 4
"""Views that the family denoises together."""

NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, lowres, low "
    "quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, bad proportions"
)
"""The negative prompt of the released text_mv.yaml and imagedream.yaml: Table I's guidance was tuned with it, and inversion
uses only this branch."""

_Z_UP_ROWS = [0, 2, 1]


class MVDream(LatentModel):
    """A loaded, unconditioned checkpoint; :meth:`condition` returns the diffusion model that SIR uses.

    Attributes:
        takes_prompt, takes_picture: the arguments that ``condition`` accepts.
        preset, nerf_preset: its plans for Gaussians and NeRF; radius, fov_y, fill: framing of its training images.
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
            reference: ignored here; a plan may still add its reference losses.
            negative: the negative prompt in place of ``NEGATIVE``, the unconditional branch.
            view_words: ignored: the model is conditioned on cameras.

        Raises:
            InputError: there is no prompt.
        """
        if prompt is None or not prompt.strip():
            raise InputError("MVDream makes what a prompt says, got none; give it a prompt.")
        return MVDreamDiffusion(self.parts, text_tokens(self.parts, prompt, self.negative if negative is None else negative))


class MVDreamDiffusion(LatentDiffusion):
    """``MultiViewDiffusion`` of MVDream for one prompt.

    Args:
        context: [2,L,C] text tokens, the negative prompt first.
    """

    def __init__(self, parts: Parts, context: Tensor):
        super().__init__(parts, MVDream.view_count)
        self._context = context

    def condition(self, cameras: Cameras) -> Tensor:
        """Return camera matrices [G,4,16] of the groups that are denoised together."""
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
    """Encode the two branches to text tokens [2,L,C], the negative prompt first."""
    return require(parts.text, "text tower")([negative, prompt]).to(parts.unet.device)


def group_by_view(rows: Tensor) -> Tensor:
    """Group views [V,...] as [V/4,4,...]: view i in group i modulo V/4, so that each group is evenly spread.

    >>> group_by_view(torch.arange(8))
    tensor([[0, 2, 4, 6],
            [1, 3, 5, 7]])
    """
    return rearrange(rows, "(v g) ... -> g v ...", v=VIEWS)


def camera_matrices(cameras: Cameras, extra_view: bool = False) -> Tensor:
    """Convert cameras to the conditioning of MVDream and ImageDream, with our front at theirs.

    Args:
        cameras: V cameras.
        extra_view: append a row of zeros, the "camera" of ImageDream's fifth view (pixel variant).

    Returns:
        [V,16] float32, or [V+1,16].
    """
    rows = normalized_translation(to_z_up(_turn_front(cameras.c2w))).flatten(1)
    return torch.cat([rows, rows.new_zeros(1, 16)]) if extra_view else rows


def to_z_up(c2w: Tensor) -> Tensor:
    """Convert camera-to-world [V,4,4] from y up to z up: world (x, y, z) -> (x, -z, y), the family's ``blender_coord``."""
    z_up = c2w.clone()
    z_up[:, :3] = c2w[:, _Z_UP_ROWS] * c2w.new_tensor([1.0, -1.0, 1.0])[:, None]
    return z_up


def normalized_translation(c2w: Tensor) -> Tensor:
    """Move every camera [V,4,4] to distance 1 from the origin: the family encodes no distance (t / (|t| + 1e-8))."""
    out = c2w.clone()
    translation = c2w[:, :3, 3]
    out[:, :3, 3] = translation / (translation.norm(dim=1, keepdim=True) + 1e-8)
    return out


def _turn_front(c2w: Tensor) -> Tensor:
    """Rotate the y-up world about y, so that the object's front is at ``FRONT_AZIMUTH``."""
    angle = math.radians(FRONT_AZIMUTH)
    turn = torch.eye(4, dtype=torch.float64)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return (turn @ c2w.cpu().double()).to(c2w)  # on the CPU: not every device has float64
