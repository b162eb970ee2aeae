"""Replacements for downloads in the benchmarks: networks of random weights, and a known object."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from sections import ROOT
from torch import Tensor

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.encoders import ClipVision, Vae
from microdreamer_core.diffusion.latent import Parts
from microdreamer_core.diffusion.unet import UNetConfig, build_unet
from microdreamer_core.diffusion.zero123 import Zero123
from microdreamer_core.fields.gaussians import Gaussians
from microdreamer_core.reference import Reference
from microdreamer_core.util.devices import to_channels_last


def published_shapes(family: str) -> dict[str, list[int]]:
    """Return the shapes of a published checkpoint's tensors by name, in the original layout."""
    listed = ROOT / "tests" / "fixtures" / "keys" / f"{family}_original.json.gz"
    return json.loads(gzip.decompress(listed.read_bytes()))


class WithKnownPictures:
    """A diffusion model that does all of its work, but decodes to renders of a known object from the last cameras."""

    def __init__(self, inner, truth: Gaussians):
        self._inner, self._truth = inner, truth

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def condition(self, cameras: Cameras):
        self._cameras = cameras
        return self._inner.condition(cameras)

    def decode(self, latents: Tensor) -> Tensor:
        self._inner.decode(latents)
        with torch.no_grad():
            return self._truth.render(self._cameras.resize(self._inner.image_size)).rgb.clamp(0, 1)


def known_object(device: torch.device) -> Gaussians:
    """Make a body with a head, coloured by position."""
    draw = torch.Generator().manual_seed(5)
    points = torch.nn.functional.normalize(torch.randn(4000, 3, generator=draw), dim=-1)
    points = torch.cat([points[:2500] * torch.tensor([0.4, 0.25, 0.25]), points[2500:] * 0.2 + torch.tensor([0.3, 0.25, 0.0])])
    body = Gaussians.from_points(points, (0.5 + points).clamp(0.05, 0.8))
    opaque = body.parameters._replace(opacity_logits=torch.full((len(points),), 3.0))
    return replace(body, parameters=opaque).to(device)


def picture_of(truth: Gaussians, size: int) -> Reference:
    with torch.no_grad():
        front = truth.render(orbit_cameras(0.0, 0.0, 2.0, width=size))
    return Reference(front.rgb[0].clamp(0, 1).cpu(), front.alpha[0].cpu())


def random_vae(widths: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Vae:
    """Build Stable Diffusion's autoencoder with levels of these widths."""
    from diffusers import AutoencoderKL

    levels = len(widths)
    with torch.device(device):
        model = AutoencoderKL(
            block_out_channels=widths,
            layers_per_block=2,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
    # not its own to(), which warns of precisions that were chosen here
    return Vae(to_channels_last(torch.nn.Module.to(model.eval().requires_grad_(False), dtype), device))


def random_zero123(
    unet: UNetConfig, vae: tuple[int, ...], vision: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Zero123:
    """Build Stable Zero123 with random weights, as ``checkpoints.load`` would return it.

    Args:
        vae: widths of its levels.
        vision: of CLIP's image tower: width, layers, heads, pixels of the image, pixels of a patch.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    width, layers, heads, pixels, patch = vision
    context = unet.context_dim
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=pixels,
        patch_size=patch,
        projection_dim=context,
    )
    with torch.device(device):
        tower = CLIPVisionModelWithProjection(config).eval().requires_grad_(False).to(dtype)
        camera = torch.nn.Linear(context + 4, context).requires_grad_(False).to(dtype)
    network = to_channels_last(build_unet(unet, device).requires_grad_(False).to(dtype), device)
    network.use_graphs()
    parts = Parts(network, random_vae(vae, device, dtype), None, ClipVision(tower), camera)
    return Zero123(parts, "random", "stable")
