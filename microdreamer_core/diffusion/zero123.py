"""Zero123 (arXiv 2303.11328), Zero123-XL and Stable Zero123: image-conditioned, each view independent.

A target camera is given relative to the input view, whose azimuth is the family's 0; polar angles are measured from the zenith,
so that a positive difference means a lower camera, the opposite of our elevation.
"""

from __future__ import annotations

import math

import torch
from einops import repeat
from torch import Tensor

from ..cameras import Cameras
from ..reference import Reference
from ..util.vocabulary import DEFAULT_FOV_Y
from .latent import FILL, LatentDiffusion, LatentModel, Parts, encode_reference, require
from .protocol import ViewCount, picture_alone


class Zero123(LatentModel):
    """A loaded, unconditioned checkpoint; :meth:`condition` returns the diffusion model that SIR uses.

    Attributes:
        takes_prompt, takes_picture: the arguments that ``condition`` accepts.
        preset, nerf_preset: its plans for Gaussians and NeRF; radius, fov_y: of its cameras in the released code; fill: framing
            of the reference.
        view_count: any number.
        variant: "plain", "xl" or "stable"; the last has another meaning of the fourth camera number.
    """

    takes_prompt, takes_picture = False, True
    view_count = ViewCount()
    preset, radius, fov_y, fill = "stable-zero123-gaussians", 2.0, DEFAULT_FOV_Y, FILL
    nerf_preset, nerf_radius = "stable-zero123-nerf", 3.8

    @torch.no_grad()
    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = False,
    ) -> Zero123Diffusion:
        """Condition on a reference, which is encoded once for the run.

        Raises:
            InputError: there is no reference, or a prompt is given.
        """
        reference = picture_alone(reference, prompt, "Zero123")
        image = encode_reference(reference, self.parts)
        # the noisy latents are scaled, the reference's is not
        latent = self.parts.vae.encode(image, scaled=False)
        embed = require(self.parts.vision, "image tower").embed(image).to(self.parts.unet.device)
        return Zero123Diffusion(self.parts, embed, latent, reference.elevation, self.variant == "stable")


class Zero123Diffusion(LatentDiffusion):
    """``MultiViewDiffusion`` of the Zero123 family for one reference.

    Args:
        embed: [1,768] the reference's CLIP embedding; latent: [1,4,h,w] its unscaled latent.
        elevation: of the reference's camera in degrees, positive above.
        stable: the fourth camera number is Stable Zero123's, see :func:`camera_embedding`.
    """

    def __init__(self, parts: Parts, embed: Tensor, latent: Tensor, elevation: float, stable: bool):
        super().__init__(parts, Zero123.view_count)
        self._embed, self._elevation, self._stable = embed, elevation, stable
        self._concat = torch.cat([torch.zeros_like(latent), latent])

    @torch.no_grad()
    def condition(self, cameras: Cameras) -> Tensor:
        """Return the token of reference and camera of every view, [2,V,1,C]; all zero in the unconditional branch."""
        self.view_count.check(len(cameras))
        camera = camera_embedding(cameras, self._elevation, stable=self._stable)
        projection = require(self._parts.camera, "camera projection")
        known = torch.cat([self._embed.expand(len(camera), 1, -1).to(projection.weight), camera.to(projection.weight)], -1)
        token = projection(known)
        return torch.stack([torch.zeros_like(token), token])

    def _predict(self, latents: Tensor, t: int, conditioning: Tensor, branches: slice) -> Tensor:
        views, count = len(latents), len(conditioning[branches])
        eps = self._parts.unet(
            repeat(latents, "v c h w -> (b v) c h w", b=count),
            t,
            conditioning[branches].flatten(0, 1),
            concat=self._concat[branches].repeat_interleave(views, 0),
        )
        return eps.unflatten(0, (count, views))


def camera_embedding(
    cameras: Cameras,
    reference_elevation: float = 0.0,
    reference_azimuth: float = 0.0,
    *,
    stable: bool,
    reference_radius: float | None = None,
) -> Tensor:
    """Compute Zero123's camera conditioning T = [Δpolar in radians, sin Δazimuth, cos Δazimuth, c4].

    >>> from microdreamer_core.cameras import orbit_cameras
    >>> camera_embedding(orbit_cameras([0.0, 0.0], [0.0, 90.0]), stable=False).round(decimals=4).squeeze(1)
    tensor([[0., 0., 1., 0.],
            [0., 1., 0., 0.]])

    Args:
        cameras: V target cameras, looking at the origin.
        reference_elevation, reference_azimuth: the input view's, in degrees, positive above.
        stable: Stable Zero123, whose c4 is the input view's polar angle in radians. Else c4 is the difference of radii
            (trained within 1.5..2.2).
        reference_radius: the input view's distance; None if all targets have the same distance, c4 = 0.

    Returns:
        [V,1,4] float32, on the CPU.
    """
    elevation, azimuth, radius = spherical(cameras)
    polar = torch.deg2rad(reference_elevation - elevation)
    turn = torch.deg2rad(azimuth - reference_azimuth)
    if stable:
        last = torch.full_like(polar, math.radians(90 - reference_elevation))
    elif reference_radius is None:
        last = torch.zeros_like(polar)
    else:
        last = radius - reference_radius
    return torch.stack([polar, turn.sin(), turn.cos(), last], -1)[:, None].float()


def spherical(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Return elevation and azimuth in degrees and radius, each [V] float64 on the CPU, from the orbit or from positions."""
    if cameras.elevation is not None and cameras.azimuth is not None and cameras.radius is not None:
        return cameras.elevation.cpu().double(), cameras.azimuth.cpu().double(), cameras.radius.cpu().double()
    x, y, z = cameras.c2w[:, :3, 3].cpu().double().unbind(1)
    elevation, azimuth = torch.atan2(y, torch.hypot(x, z)), torch.atan2(x, z)
    return torch.rad2deg(elevation), torch.rad2deg(azimuth), torch.sqrt(x**2 + y**2 + z**2)
