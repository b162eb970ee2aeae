"""The shipped checkpoint as a ``MultiViewDiffusion``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ...cameras import Cameras, orbit_cameras
from ...reference import Reference
from ...util import devices
from ..ddim import guide
from ..graphs import CudaGraphed, Recorder
from ..noise import STABLE_DIFFUSION
from ..protocol import ViewCount, picture_alone
from .checkpoint import SHIPPED, load_checkpoint
from .network import EmbeddedConfig, MultiViewDenoiser, PatchCodec, camera_vectors
from .packed import PackedDenoiser


class EmbeddedModel:
    """The loaded, unconditioned checkpoint; :meth:`condition` returns the diffusion model that SIR uses.

    Attributes:
        takes_prompt, takes_picture: the arguments that ``condition`` accepts.
        preset, nerf_preset: its plans for Gaussians and NeRF; radius, fov_y, fill: framing of its training images.
    """

    name = "embedded"
    preset, nerf_preset = "embedded", "embedded-nerf"
    takes_prompt, takes_picture = False, True
    negative = ""

    def __init__(self, config: EmbeddedConfig, codec: PatchCodec, denoiser: MultiViewDenoiser):
        self.config, self.codec, self.denoiser = config, codec, denoiser
        self.denoise: Callable[..., Tensor] = PackedDenoiser(denoiser)
        self.image_size, self.radius, self.fov_y, self.fill = (
            config.image_size,
            config.radius,
            config.fov_y,
            config.fill,
        )
        self.nerf_radius = self.radius

    @classmethod
    def load(cls, path: Path = SHIPPED, device: torch.device | str = "cpu") -> EmbeddedModel:
        """Read the checkpoint (the shipped one by default).

        Raises:
            InputError: the file is missing, truncated or of another kind.
        """
        config, codec, denoiser = load_checkpoint(path)
        return cls(config, codec.to(device), denoiser.to(device))

    def use_graphs(self, recorder: Recorder | None = None) -> None:
        """Replay the denoiser's repeated calls as CUDA graphs from now on; no effect on other devices.

        Args:
            recorder: in place of CUDA's.
        """
        self.denoise = CudaGraphed(PackedDenoiser(self.denoiser), self.denoiser.parameters, recorder)

    def networks(self) -> nn.ModuleDict:
        """Return both networks as one module, to move them between devices."""
        return nn.ModuleDict({"codec": self.codec, "denoiser": self.denoiser})

    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = False,
    ) -> EmbeddedDiffusion:
        """Condition on a reference; ``negative`` and ``view_words`` are ignored.

        Raises:
            InputError: there is no reference, or a prompt is given.
        """
        return EmbeddedDiffusion(self, picture_alone(reference, prompt, "The embedded checkpoint"))


@dataclass(frozen=True)
class _Views:
    """Camera vectors [G,V+1,16] of G groups; view i of the caller belongs to group i % G."""

    cameras: Tensor


class EmbeddedDiffusion:
    """``MultiViewDiffusion`` of the shipped checkpoint for one reference."""

    def __init__(self, model: EmbeddedModel, reference: Reference):
        self._model = model
        config = model.config
        self.device = model.codec.mean.device
        self.image_size = config.image_size
        cells = config.image_size // config.patch
        self.latent_shape = (config.channels, cells, cells)
        self.view_count = ViewCount(group=config.views)
        self.process = STABLE_DIFFUSION
        self.evaluations = 0
        image = reference.at_size(config.image_size).image.to(self.device)
        self._reference = self.encode(image[None])
        self._reference_camera = camera_vectors(orbit_cameras(reference.elevation, 0.0, config.radius, config.fov_y)).to(
            self.device
        )

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] to latents [V,C,h,w]; differentiable."""
        return self._model.codec.encode(images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [V,C,h,w] to images [V,H,W,3] in [0,1]."""
        return self._model.codec.decode(latents)

    def condition(self, cameras: Cameras) -> _Views:
        """Compute camera vectors of the groups that are denoised together; each group is evenly spread."""
        self.view_count.check(len(cameras))
        views = rearrange(camera_vectors(cameras.to(self.device)), "(v g) c -> g v c", v=self.view_count.group)
        return _Views(torch.cat([self._reference_camera.expand(len(views), 1, 16), views], 1))

    @torch.no_grad()
    def denoised(self, latents: Tensor, t: int, conditioning: _Views, guidance_scale: float) -> Tensor:
        """Estimate x0 = α x - σ v (exact for v-prediction); guidance as in ``MultiViewDiffusion``."""
        branches = {0.0: (0.0,), 1.0: (1.0,)}.get(float(guidance_scale), (0.0, 1.0))
        groups = len(conditioning.cameras)
        x = rearrange(latents, "(v g) c h w -> g v c h w", g=groups)
        batch = len(branches) * groups
        keep = devices.to_device_async(torch.tensor(branches).repeat_interleave(groups), self.device)
        v = self._model.denoise(
            latents=x.repeat(len(branches), 1, 1, 1, 1),
            t=torch.full((batch,), t, device=self.device),
            reference=self._reference.expand(batch, -1, -1, -1),
            cameras=conditioning.cameras.repeat(len(branches), 1, 1),
            keep=keep,
        )
        self.evaluations += len(branches) * len(latents)
        if len(branches) == 2:
            unconditional, conditional = v.chunk(2)
            v = guide(unconditional, conditional, guidance_scale)
        alpha, sigma = self.process.alpha_sigma(t)
        return alpha * latents - sigma * rearrange(v, "g v c h w -> (v g) c h w")
