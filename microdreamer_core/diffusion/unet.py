"""The noise-predicting networks of the released multi-view models, built from diffusers' UNet.

MVDream (arXiv 2308.16512), ImageDream (arXiv 2312.02201), Zero123 (arXiv 2303.11328), Zero123-XL and Stable Zero123 are Stable
Diffusion's UNet with small changes. MVDream adds an MLP of each view's camera matrix to the time embedding and lets every
self-attention run over all views of an object together. ImageDream adds a second cross-attention to tokens of the reference.
Zero123 takes the reference's latent as four more input channels and denoises each view independently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from .graphs import CudaGraphed, Recorder
from .keys import unet_map

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

SD2_CONTEXT = 1024
"""Width of Stable Diffusion 2's text tokens; its heads have 64 channels, Stable Diffusion 1 has 8 heads at every level."""


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of the perceiver that resamples an image's CLIP tokens (ImageDream's ``image_embed``).

    Attributes:
        embed_dim: width of the CLIP tokens; width: inner width; output_dim: width of the output tokens.
        tokens: number of output tokens; depth: layers; heads, head_channels: of each attention.
        ff_mult: width of the feed-forward layers, as a multiple of the inner width.
    """

    embed_dim: int = 1280
    width: int = 1024
    output_dim: int = 1024
    tokens: int = 16
    depth: int = 4
    heads: int = 12
    head_channels: int = 64
    ff_mult: int = 4


@dataclass(frozen=True)
class UNetConfig:
    """Sizes and features of a released UNet; the defaults are MVDream's on Stable Diffusion 2.1.

    Attributes:
        in_channels: 4, or 8 for Zero123 (noisy latent and reference latent).
        out_channels: of the predicted noise.
        model_channels, channel_mult: channels of the first level and the multiple of them at each level.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        attention: for each level, whether its blocks have transformers; the middle block always does.
        num_heads: attention heads at every level, or None for heads of ``head_channels``.
        head_channels: channels per head if num_heads is None.
        context_dim: width of the text (or image) tokens.
        linear_projection: projections around the transformers are Linear, not 1x1 convolutions.
        camera_dim: numbers per camera matrix, None for a UNet without cameras, whose views are independent.
        resampler: of the reference's tokens (ImageDream), or None.
        ip_weight: factor of the attention to those tokens.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    num_heads: int | None = None
    head_channels: int = 64
    context_dim: int = 1024
    linear_projection: bool = True
    camera_dim: int | None = 16
    resampler: ResamplerConfig | None = None
    ip_weight: float = 1.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of every level."""
        if self.num_heads is not None:
            return (self.num_heads,) * len(self.channel_mult)
        uneven = [width for width in self.widths if width % self.head_channels]
        if uneven:
            raise InputError(
                f"A UNet with heads of {self.head_channels} channels needs levels of a multiple of that, got {self.widths}; "
                "give num_heads or head_channels."
            )
        return tuple(width // self.head_channels for width in self.widths)

    @classmethod
    def from_shapes(
        cls,
        shapes: Mapping[str, Sequence[int]],
        *,
        num_heads: int | None = None,
        head_channels: int | None = None,
        ip_weight: float = 1.0,
    ) -> UNetConfig:
        """Derive the sizes from the shapes of a state dict.

        Args:
            shapes: name -> shape of the UNet's tensors, in the original or in diffusers' layout, without the checkpoint's
                prefix (``keys.component``).
            num_heads, head_channels: attention heads, which shapes do not determine. Without either: heads of 64 channels if
                the context is 1024 wide (Stable Diffusion 2.1), else 8 heads (Stable Diffusion 1).
            ip_weight: ImageDream's weight of the image tokens, which shapes do not determine.

        Raises:
            InputError: the shapes are not those of such a UNet.
        """
        named = {target.name.removeprefix("unet."): tuple(shapes[old]) for old, ts in unet_map(shapes).items() for target in ts}
        try:
            return cls(**_sizes(named), **_heads(named, num_heads, head_channels), ip_weight=ip_weight)
        except KeyError as missing:
            raise InputError(
                f"Expected a Stable Diffusion UNet's weights, found no {missing}; the file is another model's or incomplete."
            ) from None


class MultiViewUNet(nn.Module):
    """diffusers' UNet2DConditionModel with cameras, joint views and image tokens, as configured.

    Attributes:
        config: UNetConfig.
        unet: diffusers' network; its weights are named as in diffusers, ImageDream's ``to_k_ip`` and ``to_v_ip`` in the
            attention processors.
        image_embed: the resampler of image tokens, or None.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        self.config = config
        levels = config.attention
        sizes: dict[str, Any] = {
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "block_out_channels": config.widths,
            "layers_per_block": config.num_res_blocks,
            "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in levels],
            "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(levels)],
            "cross_attention_dim": config.context_dim,
            "attention_head_dim": config.heads,  # diffusers' name for the number of heads
            "use_linear_projection": config.linear_projection,
        }
        self.unet = UNet2DConditionModel(**sizes)
        self.image_embed = None if config.resampler is None else build_resampler(config.resampler)
        self._predict: Callable[..., Tensor] = self._predict_eagerly
        if config.camera_dim is None:
            return
        embedding = CameraEmbedding(config.camera_dim, 4 * config.model_channels)
        self.unet.class_embedding = embedding  # pyright: ignore[reportAttributeAccessIssue] - diffusers names its own only
        attend_across_views(self.unet, lambda attention: _cross_attention(attention, config))

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(
        self,
        x: Tensor,
        t: Tensor | int,
        context: Tensor,
        *,
        camera: Tensor | None = None,
        num_frames: int = 1,
        image_tokens: Tensor | None = None,
        concat: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise of every view, in the network's precision; the result has x's dtype.

        Args:
            x: [B·F,4,h,w] noisy latents, the F views of an object next to each other.
            t: time in 0..999, one for all or [B·F].
            context: [B·F,L,context_dim] text tokens (Zero123: one token of image and camera).
            camera: [B·F,camera_dim], None to skip the camera MLP (not the same as zeros).
            num_frames: F, views that attend to each other; a UNet without cameras ignores it.
            image_tokens: [B·F,tokens,context_dim] from ``tokens``, ImageDream's.
            concat: [B·F,4,h,w] or [1,4,h,w], channels to append to x: Zero123's reference latent.

        Returns:
            [B·F,out_channels,h,w].

        Raises:
            InputError: the number of rows is not a multiple of num_frames, or image tokens are missing or not accepted.
        """
        self._check(x, num_frames, image_tokens)
        kind = {"device": x.device, "dtype": self.dtype}
        sample = x.to(**kind)
        if concat is not None:
            sample = torch.cat([sample, concat.to(**kind).expand(len(x), -1, -1, -1)], 1)
        # fill a tensor on the device: copying a number there would synchronise
        t = t.to(x.device) if isinstance(t, Tensor) else torch.full((), t, device=x.device)
        views = {}
        if self.config.camera_dim is not None:
            views["camera"] = (x.new_empty(len(x), 0) if camera is None else camera).to(**kind)
            views["num_frames"] = num_frames
            views["image_tokens"] = None if image_tokens is None else image_tokens.to(**kind)
        return self._predict(sample=sample, t=t, context=context.to(**kind), **views).to(x.dtype)

    def leave_half(self) -> None:
        """Switch from float16 to a precision with float32's range: bfloat16 on GPUs with native support, else float32."""
        on_cuda = self.device.type == "cuda"
        self.to(torch.bfloat16 if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32)

    def use_graphs(self, recorder: Recorder | None = None) -> None:
        """Replay repeated calls as CUDA graphs from now on; no effect on other devices.

        Args:
            recorder: in place of CUDA's.
        """
        self._predict = CudaGraphed(self._predict_eagerly, self.unet.parameters, recorder)

    def _predict_eagerly(self, sample: Tensor, t: Tensor, context: Tensor, **views: Any) -> Tensor:
        """Call diffusers' network on tensors that are already on its device."""
        known = {}
        if "camera" in views:
            known["class_labels"] = views.pop("camera")
            known["cross_attention_kwargs"] = views
        return self.unet(sample, t, encoder_hidden_states=context, return_dict=False, **known)[0]

    def tokens(self, hidden: Tensor) -> Tensor:
        """Resample an image's CLIP tokens; they do not depend on t, so compute them once per image.

        Args:
            hidden: [B,L,1280] from ``encoders.ClipVision.hidden``; zeros for the unconditional branch.

        Returns:
            [B,16,context_dim] in the network's precision.
        """
        if self.image_embed is None:
            raise InputError("This UNet takes no picture tokens (its checkpoint has no image_embed); use an ImageDream one.")
        return self.image_embed(hidden.to(device=self.device, dtype=self.dtype))

    def _check(self, x: Tensor, num_frames: int, image_tokens: Tensor | None) -> None:
        if num_frames < 1 or len(x) % num_frames:
            raise InputError(f"Expected a multiple of {num_frames} views, got {len(x)} rows of latents.")
        if (image_tokens is None) != (self.image_embed is None):
            verb = "needs" if image_tokens is None else "takes no"
            raise InputError(f"This UNet {verb} picture tokens; see MultiViewUNet.tokens.")


def build_unet(config: UNetConfig, device: torch.device | str = "meta") -> MultiViewUNet:
    """Build the network with uninitialised weights; "meta" allocates no memory (``load_state_dict(..., assign=True)``)."""
    with torch.device(device):
        return MultiViewUNet(config).eval()


def build_resampler(config: ResamplerConfig) -> nn.Module:
    """Build ImageDream's resampler, the same as IP-Adapter Plus's (arXiv 2308.06721): diffusers' module with other names."""
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    return IPAdapterPlusImageProjection(
        embed_dims=config.embed_dim,
        output_dims=config.output_dim,
        hidden_dims=config.width,
        depth=config.depth,
        dim_head=config.head_channels,
        heads=config.heads,
        num_queries=config.tokens,
        ffn_ratio=config.ff_mult,
    )


def predict_with_picture(
    unet: MultiViewUNet,
    x: Tensor,
    t: Tensor | int,
    context: Tensor,
    *,
    camera: Tensor,
    picture: Tensor,
    image_tokens: Tensor,
    num_views: int = 4,
) -> Tensor:
    """Predict noise in ImageDream's pixel mode (arXiv 2312.02201, section 4): the clean reference is one more view.

    Args:
        unet: an ImageDream UNet of the pixel variant.
        x: [B·V,4,h,w] noisy latents of the V views of each object.
        t: time, one for all or one per row of the conditioning.
        context, camera, image_tokens: [B·(V+1),...] as for ``MultiViewUNet.forward``; the last row of each object is the
            reference's, whose camera is all zeros (``mvdream.camera_matrices(..., extra_view=True)``).
        picture: [B,4,h,w] or [1,4,h,w] scaled latent of the reference; zeros for the unconditional branch.
        num_views: V.

    Returns:
        [B·V,4,h,w] predicted noise; the prediction for the reference is dropped.
    """
    views = rearrange(x, "(b v) c h w -> b v c h w", v=num_views)
    last = picture.to(x)[:, None].expand(len(views), -1, -1, -1, -1)
    frames = torch.cat([views, last], 1).flatten(0, 1)
    eps = unet(frames, t, context, camera=camera, num_frames=num_views + 1, image_tokens=image_tokens)
    return rearrange(eps, "(b f) c h w -> b f c h w", f=num_views + 1)[:, :-1].flatten(0, 1)


class CameraEmbedding(nn.Module):
    """The camera MLP added to the time embedding, with the names of diffusers' projection embedding.

    A camera of width 0 adds nothing, as in the original, which skips the MLP without a camera; diffusers would fail.
    """

    def __init__(self, camera_dim: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(camera_dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, camera: Tensor) -> Tensor:
        """Embed cameras [N,camera_dim] or [N,0] to [N,width]."""
        if camera.shape[1] == 0:
            return camera.new_zeros(len(camera), self.linear_2.out_features)
        return self.linear_2(F.silu(self.linear_1(camera)))


def attend_across_views(unet: nn.Module, cross: Callable[[Attention], Any]) -> None:
    """Make self-attention of a UNet2DConditionModel run over all views of an object, with ``cross`` for cross-attention.

    Calls then need ``cross_attention_kwargs={"num_frames": views}``.
    """
    from diffusers.models.attention_processor import Attention

    processors: dict[str, Callable[[Attention], Any]] = {"attn1": lambda _: JointViewAttention(), "attn2": cross}
    for name, module in unet.named_modules():
        make = processors.get(name.rpartition(".")[2])
        if make is not None and isinstance(module, Attention):
            module.set_processor(make(module))


class JointViewAttention:
    """Self-attention over the tokens of all views of an object together (MVDream section 3.1)."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, *_: Any, num_frames: int = 1, image_tokens: Tensor | None = None, **__: Any
    ) -> Tensor:
        x = rearrange(hidden_states, "(b f) l c -> b (f l) c", f=num_frames)
        return rearrange(attn.to_out[0](_attend(attn, x, attn.to_k(x), attn.to_v(x))), "b (f l) c -> (b f) l c", f=num_frames)


class TextAttention:
    """Cross-attention to the text, each view independently."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *_: Any,
        num_frames: int = 1,
        image_tokens: Tensor | None = None,
        **__: Any,
    ) -> Tensor:
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        return attn.to_out[0](_attend(attn, hidden_states, key, value))


class TextAndPictureAttention(nn.Module):
    """Cross-attention to the text plus ``ip_weight`` times that to the image tokens, each with its own softmax."""

    def __init__(self, context_dim: int, width: int, ip_weight: float):
        super().__init__()
        self.ip_weight = ip_weight
        self.to_k_ip = nn.Linear(context_dim, width, bias=False)
        self.to_v_ip = nn.Linear(context_dim, width, bias=False)

    def __call__(  # not forward: diffusers reads this signature to know which arguments to pass
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *_: Any,
        num_frames: int = 1,
        image_tokens: Tensor,
        **__: Any,
    ) -> Tensor:
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        text = _attend(attn, hidden_states, key, value)
        picture = _attend(attn, hidden_states, self.to_k_ip(image_tokens), self.to_v_ip(image_tokens))
        return attn.to_out[0](text + self.ip_weight * picture)


def _cross_attention(attn: Attention, config: UNetConfig) -> TextAttention | TextAndPictureAttention:
    if config.resampler is None:
        return TextAttention()
    return TextAndPictureAttention(config.context_dim, attn.to_q.out_features, config.ip_weight)


def _attend(attn: Any, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from tokens [N,L,C] to keys and values [N,M,inner]; returns [N,L,inner] with concatenated heads."""
    q, k, v = (rearrange(part, "n l (h d) -> n h l d", h=attn.heads) for part in (attn.to_q(x), key, value))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)")


def _sizes(named: Mapping[str, tuple[int, ...]]) -> dict:
    """Return the fields of UNetConfig that shapes determine, from diffusers' names."""
    levels = _count(named, "down_blocks.{}.resnets.0.conv1.weight")
    first = named["conv_in.weight"]
    middle = "mid_block.attentions.0."
    camera = named.get("class_embedding.linear_1.weight")
    return {
        "in_channels": first[1],
        "out_channels": named["conv_out.weight"][0],
        "model_channels": first[0],
        "channel_mult": tuple(named[f"down_blocks.{i}.resnets.0.conv1.weight"][0] // first[0] for i in range(levels)),
        "num_res_blocks": _count(named, "down_blocks.0.resnets.{}.conv1.weight"),
        "attention": tuple(f"down_blocks.{i}.attentions.0.proj_in.weight" in named for i in range(levels)),
        "context_dim": named[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1],
        "linear_projection": len(named[f"{middle}proj_in.weight"]) == 2,
        "camera_dim": None if camera is None else camera[1],
        "resampler": _resampler_sizes(named),
    }


def _resampler_sizes(named: Mapping[str, tuple[int, ...]]) -> ResamplerConfig | None:
    if "image_embed.latents" not in named:
        return None
    _, tokens, width = named["image_embed.latents"]
    return ResamplerConfig(
        embed_dim=named["image_embed.proj_in.weight"][1],
        width=width,
        output_dim=named["image_embed.proj_out.weight"][0],
        tokens=tokens,
        depth=_count(named, "image_embed.layers.{}.attn.to_q.weight"),
        heads=named["image_embed.layers.0.attn.to_q.weight"][0] // ResamplerConfig.head_channels,
        ff_mult=named["image_embed.layers.0.ff.1.net.0.proj.weight"][0] // width,
    )


def _heads(named: Mapping[str, tuple[int, ...]], num_heads: int | None, head_channels: int | None) -> dict:
    if num_heads is not None:
        return {"num_heads": num_heads}
    if head_channels is not None:
        return {"head_channels": head_channels}
    wide = named["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1] == SD2_CONTEXT
    return {} if wide else {"num_heads": 8}


def _count(named: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    count = 0
    while pattern.format(count) in named:
        count += 1
    return count
