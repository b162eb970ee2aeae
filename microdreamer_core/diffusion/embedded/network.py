"""The shipped checkpoint's architecture: a patch codec and an image-conditioned multi-view denoiser.

The denoiser is a small version of ImageDream's pixel mode (arXiv 2312.02201): the reference joins the noisy views as one more,
clean frame, self-attention runs over all frames of an object together, and each frame's camera matrix is added to the time
embedding. To let it copy, the reference's latent and its mirror image are also concatenated to every frame's channels, as in
Zero123 (arXiv 2303.11328), and blended into the prediction with weights predicted by the UNet: near the front, pixels stay in
place, and the outline of the back is the front's, mirrored. The codec's encoder is linear (patch PCA), so that the latent space
is fixed before training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...cameras import Cameras
from ...errors import InputError
from ...util.settings import check_settings
from .unet import UNet

_FOLD, _MOST_LEVELS = 4, 8
_RANGES = {"image_size": (16, 1024), "patch": (4, 64), "channels": (1, 1024), "head_dim": (1, 1024), "context": (1, 8192),
           "views": (1, 64), "radius": (0.1, 100.0), "fov_y": (1.0, 179.0), "fill": (0.01, 1.0)}  # fmt: skip


@dataclass(frozen=True)
class EmbeddedConfig:
    """Sizes of the shipped model.

    Attributes:
        image_size: pixels; patch: pixels per latent cell side; channels: latent channels.
        widths: UNet channels per level; head_dim: channels per attention head; context: width of the image tokens.
        views: noisy views per joint call (the reference comes on top).
        radius, fov_y: orbit and field of view of the training images.
        fill: typical longest side of the object, as a fraction of the image's side, in the training references.
        copies: whether the network can copy: the reference's latent and its mirror image are concatenated to every frame and
            blended into the prediction, and each frame's camera vector also encodes how near it is to the reference's
            direction and to the opposite one. Versions 1 to 3 had attention only.

    Raises:
        InputError: a value is out of range.
    """

    image_size: int = 64
    patch: int = 8
    channels: int = 32
    widths: tuple[int, ...] = (96, 160)
    head_dim: int = 32
    context: int = 128
    views: int = 4
    radius: float = 1.5
    fov_y: float = 49.1
    fill: float = 0.73
    copies: bool = True

    def __post_init__(self):
        check_settings(self)
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"EmbeddedConfig.{name} must lie in {low}..{high}, got {getattr(self, name)}.")
        if self.patch % _FOLD or self.image_size % self.patch:
            raise InputError(
                f"EmbeddedConfig.patch must be a multiple of {_FOLD} that divides the image_size, got {self.patch} and "
                f"{self.image_size}."
            )
        widths = self.widths
        whole = 1 <= len(widths) <= _MOST_LEVELS and all(type(width) is int and 1 <= width <= 4096 for width in widths)
        if not whole or any(width % 16 or width < self.head_dim for width in widths):
            raise InputError(
                f"EmbeddedConfig.widths must be 1 to {_MOST_LEVELS} multiples of 16 from head_dim to 4096, got {widths!r:.100}."
            )

    def to_dict(self) -> dict:
        """Return all fields, for a checkpoint's header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> EmbeddedConfig:
        """Restore a config from ``to_dict``, also from versions without ``copies``."""
        return cls(**{"copies": False, **values, "widths": tuple(values["widths"])})

    def main_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that determine all sizes, by their names in a checkpoint."""
        size, frames = 3 * self.patch**2, self.channels * (3 if self.copies else 1)
        shapes: dict[str, tuple[int, ...]] = {
            "codec.mean": (size,),
            "codec.basis": (size, self.channels),
            "codec.gain": (self.channels,),
            "denoiser.unet.conv_in.weight": (self.widths[0], frames, 3, 3),
            "denoiser.unet.conv_out.weight": (frames, self.widths[0], 3, 3),
            "denoiser.tokens.4.weight": (self.context, 96, 3, 3),
        }
        return shapes | {
            f"denoiser.unet.down_blocks.{level}.resnets.0.conv2.weight": (width, width, 3, 3)
            for level, width in enumerate(self.widths)
        }


class PatchCodec(nn.Module):
    """Linear patch encoder and a decoder with a learned correction.

    Latent = gain * basis^T (patch - mean): the principal components of toy patches, scaled by sd^-0.5 (half whitened) to unit
    overall variance. Decoding inverts this linearly and adds the correction of a residual network.
    """

    mean: Tensor
    basis: Tensor
    gain: Tensor

    def __init__(self, config: EmbeddedConfig):
        super().__init__()
        size = 3 * config.patch**2
        self.patch = config.patch
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size)[:, : config.channels].clone())
        self.register_buffer("gain", torch.ones(config.channels))
        self.correction = CorrectionNetwork(config.channels, config.patch)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Compute the principal components of images [V,H,W,3] in [0,1]."""
        patches = rearrange(images * 2 - 1, "v (h a) (w b) c -> (v h w) (c a b)", a=self.patch, b=self.patch).double()
        mean = patches.mean(0)
        variances, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        sd = variances.flip(0)[: len(self.gain)].clamp_min(1e-8).sqrt()
        gain = sd.rsqrt()
        self.mean.copy_(mean)
        self.basis.copy_(vectors.flip(1)[:, : len(self.gain)])
        self.gain.copy_(gain / (sd * gain).square().mean().sqrt())

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] to latents [V,C,h,w]; differentiable."""
        patches = rearrange(images * 2 - 1, "v (h a) (w b) c -> v h w (c a b)", a=self.patch, b=self.patch)
        return rearrange(((patches - self.mean) @ self.basis) * self.gain, "v h w c -> v c h w")

    def decode_linear(self, latents: Tensor) -> Tensor:
        """Decode latents [V,C,h,w] to [V,3,H,W] in [-1,1] without the correction, unclamped."""
        patches = (rearrange(latents, "v c h w -> v h w c") / self.gain) @ self.basis.T + self.mean
        return rearrange(patches, "v h w (c a b) -> v c (h a) (w b)", a=self.patch, b=self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [V,C,h,w] to images [V,H,W,3] in [0,1]."""
        images = self.decode_linear(latents)
        images = images + self.correction(latents, images)
        return rearrange(images, "v c h w -> v h w c").add(1).div(2).clamp(0, 1)


class CorrectionNetwork(nn.Module):
    """Residual decoder: adds detail lost by the principal components and removes noise left by the denoiser."""

    def __init__(self, channels: int, patch: int, width: int = 64, fold: int = _FOLD):
        super().__init__()
        self.fold = fold
        self.lift = nn.Sequential(
            nn.Conv2d(channels, width * (patch // fold) ** 2, 3, padding=1), nn.PixelShuffle(patch // fold)
        )
        self.stem = nn.Conv2d(3 * fold * fold + width, width, 3, padding=1)
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(4)])
        self.head = nn.Conv2d(width, 3 * fold * fold, 3, padding=1)
        _zero(self.head)

    def forward(self, latents: Tensor, images: Tensor) -> Tensor:
        """Correct decoded images [N,3,H,W] by their latents [N,C,h,w]; returns what is to be added, [N,3,H,W]."""
        x = torch.cat([F.pixel_unshuffle(images, self.fold), self.lift(latents)], 1)
        return F.pixel_shuffle(self.head(F.silu(self.blocks(self.stem(x)))), self.fold)


class ResidualBlock(nn.Module):
    """Two convolutions with group norm and a skip connection; the identity at initialisation."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        _zero(self.second[-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


def _zero(layer: nn.Module) -> None:
    """Zero a layer, so that a residual branch starts with no effect."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


_NEARNESS = (2.0, 8.0, 32.0, 100.0, -2.0, -8.0, -32.0)
"""κ of the features exp(|κ| (±cos - 1)) of a view's azimuth, peaked at the reference's (+) and at the opposite one (-)."""


class DenoiserParts(Protocol):
    """The parts of a denoiser that have weights, as functions of tensors."""

    @property
    def unet(self) -> Any: ...
    @property
    def tokens(self) -> Any: ...
    @property
    def mirror(self) -> Any: ...


class MultiViewDenoiser(nn.Module):
    """Predicts v of all views of an object jointly, given the reference's latent and every frame's camera."""

    sharpness: Tensor

    def __init__(self, config: EmbeddedConfig):
        super().__init__()
        frames = config.channels * (3 if config.copies else 1)
        pose = 16 + (len(_NEARNESS) if config.copies else 0)
        self.copies = config.copies
        self.register_buffer("sharpness", torch.tensor(_NEARNESS), persistent=False)
        self.unet = UNet(frames, config.widths, config.head_dim, config.context, pose)
        if config.copies:
            self.mirror = nn.Conv2d(config.channels, config.channels, 1, bias=False)
        self.tokens = nn.Sequential(
            nn.Conv2d(config.channels, 96, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(96, 96, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(96, config.context, 3, padding=1),
            nn.AdaptiveAvgPool2d(2),
        )

    def forward(
        self,
        latents: Tensor,
        t: Tensor,
        reference: Tensor,
        cameras: Tensor,
        keep: Tensor,
        *,
        parts: DenoiserParts | None = None,
    ) -> Tensor:
        """Predict v.

        Args:
            latents: [N,V,C,h,w] noisy views.
            t: [N] integer times.
            reference: [N,C,h,w] clean latent of the reference.
            cameras: [N,V+1,16] from ``camera_vectors``, the reference's first.
            keep: [N] 1 to condition on the reference, 0 for the unconditional branch.
            parts: other implementations of the same parts; the network's own when None.

        Returns:
            [N,V,C,h,w].
        """
        parts = parts or self
        n, v = latents.shape[:2]
        mask = keep.to(latents.dtype).view(n, 1, 1, 1)
        tokens = rearrange(parts.tokens(reference * mask) * mask, "n c h w -> n (h w) c")
        reference, mirrored = reference * mask, reference.flip(-1) * mask
        frames = torch.cat([reference[:, None], latents], 1)
        if self.copies:
            stacked = torch.cat([reference, mirrored], 1)
            frames = torch.cat([frames, stacked[:, None].expand(-1, v + 1, -1, -1, -1)], 2)
            way = F.normalize(cameras[..., [3, 11]], dim=-1)
            cosine = (way * way[:, :1]).sum(-1, keepdim=True)
            cameras = torch.cat([cameras, (self.sharpness.abs() * (self.sharpness.sign() * cosine - 1)).exp()], -1)
        frames = frames.flatten(0, 1)
        times = torch.cat([torch.zeros_like(t)[:, None], t[:, None].expand(n, v)], 1).flatten()
        out = parts.unet(frames, times, tokens, cameras.flatten(0, 1), v + 1)
        out = out.unflatten(0, (n, v + 1))[:, 1:]
        if self.copies:
            out, front, back = out.chunk(3, 2)
            out = out + front * reference[:, None] + back * parts.mirror(mirrored)[:, None]
        return out


def allow_copying(
    config: EmbeddedConfig, codec: PatchCodec, denoiser: MultiViewDenoiser
) -> tuple[EmbeddedConfig, MultiViewDenoiser]:
    """Return the same denoiser with the weights of ``copies`` added as zeros, so that its output is unchanged."""
    if config.copies:
        return config, denoiser
    config = replace(config, copies=True)
    wider = MultiViewDenoiser(config)
    state, own = denoiser.state_dict(), wider.state_dict()
    for part in ("conv_in.weight", "conv_out.weight", "conv_out.bias", "class_embedding.linear_1.weight"):
        name = f"unet.{part}"
        weights = torch.zeros_like(own[name])
        weights[tuple(slice(n) for n in state[name].shape)] = state[name]
        state[name] = weights
    unit = torch.eye(config.channels)[:, :, None, None].expand(-1, -1, 2, 2).contiguous()
    images = codec.decode_linear(unit) - codec.decode_linear(torch.zeros_like(unit))
    mirrored, grey = (codec.encode((x / 2 + 0.5).permute(0, 2, 3, 1)) for x in (images.flip(-1), torch.zeros_like(images)))
    state["mirror.weight"] = (mirrored - grey)[:, :, 0, 0].T[:, :, None, None].contiguous()
    wider.load_state_dict(state)
    return config, wider.eval().requires_grad_(False)


def camera_vectors(cameras: Cameras) -> Tensor:
    """Flatten camera-to-world matrices to [V,16], positions scaled to length 1; the reference's azimuth is 0 by convention."""
    matrices = cameras.c2w.clone()
    matrices[:, :3, 3] = F.normalize(matrices[:, :3, 3], dim=-1)
    return matrices.flatten(1)
