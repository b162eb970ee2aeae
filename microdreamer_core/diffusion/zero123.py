"""Zero123 (arXiv 2303.11328), Zero123-XL and Stable Zero123: a picture, and views that each stand alone.

A target camera is told relative to the input view, whose azimuth is the family's 0; polar angles are measured from the zenith,
so that a positive difference means a lower camera, the opposite of our elevation.
"""

from __future__ import annotations

import math

import torch
from einops import repeat
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..reference import Reference
from ..util.vocabulary import DEFAULT_FOV_Y
from .latent import FILL, LatentDiffusion, LatentModel, Parts, encode_reference, required
from .protocol import ViewCount


class Zero123(LatentModel):
    """The loaded checkpoint, not yet told what to make; ``on(reference)`` gives the diffusion model that SIR uses.

    Attributes:
        takes_prompt, takes_picture: what ``on`` wants.
        preset, nerf_preset: the plans that suit it for Gaussians and NeRF; radius, fov_y: of its cameras in the released
            code; fill: framing of the reference.
        view_count: any number.
        variant: "plain", "xl" or "stable"; the last understands the fourth camera number differently.
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
        """Condition on a picture, which is encoded here, once for the run.

        Raises:
            InputError: no picture, or a prompt.
        """
        if reference is None or prompt:
            got = "a prompt" if prompt else "none"
            raise InputError(f"Zero123 needs a reference picture and takes no prompt, got {got}; give it a picture.")
        picture = encode_reference(reference, self.parts)
        # the noisy latents are scaled, the reference's is not
        latent = self.parts.vae.encode(picture, scaled=False)
        embed = required(self.parts.vision, "image tower").embed(picture).to(self.parts.unet.device)
        return Zero123Diffusion(self.parts, embed, latent, reference.elevation, self.variant == "stable")


class Zero123Diffusion(LatentDiffusion):
    """``MultiViewDiffusion`` of the Zero123 family on one picture.

    Args:
        embed: [1,768] the picture's CLIP embedding; latent: [1,4,h,w] its unscaled latent.
        elevation: degrees from which the picture was taken, positive above.
        stable: how the last camera number is meant.
    """

    def __init__(self, parts: Parts, embed: Tensor, latent: Tensor, elevation: float, stable: bool):
        super().__init__(parts, Zero123.view_count)
        self._embed, self._elevation, self._stable = embed, elevation, stable
        self._concat = torch.cat([torch.zeros_like(latent), latent])

    @torch.no_grad()
    def condition(self, cameras: Cameras) -> Tensor:
        """[2,V,1,C] the token of picture and camera of every view; zero after the projection in the unconditional branch."""
        self.view_count.check(len(cameras))
        camera = camera_embedding(cameras, self._elevation, stable=self._stable)
        projection = required(self._parts.camera, "camera projection")
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
    """T = [Δpolar in radians, sin Δazimuth, cos Δazimuth, c4] of every target camera.

    Args:
        cameras: V target cameras, looking at the origin.
        reference_elevation, reference_azimuth: the input view's, in degrees, positive above.
        stable: Stable Zero123, whose c4 is the input view's polar angle in radians. Else c4 is the difference of radii
            (trained within 1.5..2.2).
        reference_radius: the input view's distance; None takes every target to stand at that distance, c4 = 0.

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
    """Elevation and azimuth in degrees and radius, each [V] float64 on the CPU: as stated by an orbit, else from the
    positions."""
    if cameras.elevation is not None and cameras.azimuth is not None and cameras.radius is not None:
        return cameras.elevation.cpu().double(), cameras.azimuth.cpu().double(), cameras.radius.cpu().double()
    x, y, z = cameras.c2w[:, :3, 3].cpu().double().unbind(1)
    elevation, azimuth = torch.atan2(y, torch.hypot(x, z)), torch.atan2(x, z)
    return torch.rad2deg(elevation), torch.rad2deg(azimuth), torch.sqrt(x**2 + y**2 + z**2)
