"""ImageDream (arXiv 2312.02201): MVDream conditioned on an image of the front.

Both published variants have weights of the same names and shapes. "local" uses the image's tokens only; "pixel" also adds the
clean image to the noisy views as a fifth one, whose camera is all zeros and whose predicted noise is unused.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..reference import Reference
from ..util.vocabulary import DEFAULT_FOV_Y
from .latent import FILL, LatentDiffusion, LatentModel, Parts, encode_reference, require
from .mvdream import NEGATIVE, VIEWS, camera_matrices, group_by_view, text_tokens
from .protocol import ViewCount
from .unet import predict_with_picture


class ImageDream(LatentModel):
    """A loaded, unconditioned checkpoint; :meth:`condition` returns the diffusion model that SIR uses.

    Attributes:
        takes_prompt, takes_picture: the arguments that ``condition`` accepts; the prompt may be empty.
        preset, nerf_preset: its plans for Gaussians and NeRF; radius, fov_y: of its cameras in the released code; fill: framing
            of the reference.
        view_count: how many views it denoises together, not counting the image of the pixel variant.
        variant: "pixel" or "local".
    """

    takes_prompt, takes_picture = True, True
    negative = NEGATIVE
    view_count = ViewCount(VIEWS)
    preset, radius, fov_y, fill = "imagedream-gaussians", 2.5, DEFAULT_FOV_Y, FILL
    nerf_preset, nerf_radius = "imagedream-nerf", 1.478

    @torch.no_grad()
    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = False,
    ) -> ImageDreamDiffusion:
        """Condition on a reference and, optionally, on a prompt; the reference is encoded once for the run.

        The unconditional branch has the resampler's tokens of all-zero features (not zero tokens) and, for the fifth view, an
        all-zero latent.

        Args:
            negative: the negative prompt in place of ``NEGATIVE``, text of the unconditional branch.
            view_words: ignored: the model is conditioned on cameras.

        Raises:
            InputError: there is no reference.
        """
        if reference is None:
            raise InputError("ImageDream needs a reference picture, got none; give it a picture, with or without a prompt.")
        image = encode_reference(reference, self.parts)
        hidden = require(self.parts.vision, "image tower").hidden(image).to(self.parts.unet.device)
        tokens = self.parts.unet.tokens(torch.cat([torch.zeros_like(hidden), hidden]))
        latent = self.parts.vae.encode(image) if self.variant == "pixel" else None
        context = text_tokens(self.parts, prompt or "", self.negative if negative is None else negative)
        return ImageDreamDiffusion(self.parts, context, tokens, latent)


class ImageDreamDiffusion(LatentDiffusion):
    """``MultiViewDiffusion`` of ImageDream for one reference and prompt.

    The pixel variant's fifth view is not counted as an evaluation, as in the paper's numbers: it costs time, but its output is
    unused.

    Args:
        context: [2,L,C] text tokens, the unconditional branch first.
        tokens: [2,16,C] image tokens, likewise.
        picture: [1,4,h,w] scaled latent of the reference for the pixel variant, None for the local one.
    """

    def __init__(self, parts: Parts, context: Tensor, tokens: Tensor, picture: Tensor | None):
        super().__init__(parts, ImageDream.view_count)
        self._context, self._tokens = context, tokens
        self._pictures = None if picture is None else torch.cat([torch.zeros_like(picture), picture])

    def condition(self, cameras: Cameras) -> Tensor:
        """Return camera matrices [G,4,16] of the groups that are denoised together; [G,5,16] for the pixel variant."""
        self.view_count.check(len(cameras))
        rows = group_by_view(camera_matrices(cameras)).to(self.device)
        return rows if self._pictures is None else torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)

    def _predict(self, latents: Tensor, t: int, conditioning: Tensor, branches: slice) -> Tensor:
        groups, frames = conditioning.shape[:2]
        count = len(self._context[branches])
        x = repeat(latents, "(v g) c h w -> (b g v) c h w", b=count, g=groups)
        context, tokens = (
            repeat(rows[branches], "b l c -> (b n) l c", n=groups * frames) for rows in (self._context, self._tokens)
        )
        known = {"camera": repeat(conditioning, "g f c -> (b g f) c", b=count), "image_tokens": tokens}
        if self._pictures is None:
            eps = self._parts.unet(x, t, context, num_frames=frames, **known)
        else:
            picture = repeat(self._pictures[branches], "b c h w -> (b g) c h w", g=groups)
            eps = predict_with_picture(self._parts.unet, x, t, context, picture=picture, num_views=VIEWS, **known)
        return rearrange(eps, "(b g v) c h w -> b (v g) c h w", g=groups, v=VIEWS)
