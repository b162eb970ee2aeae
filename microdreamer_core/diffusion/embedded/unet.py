"""The shipped model's UNet: Stable Diffusion's layers (arXiv 2112.10752) with joint attention over the frames of an object.

The tensors are named as in diffusers' ``UNet2DConditionModel``, which computes the same (a test holds both together); this
module spares its users the two to six seconds that importing diffusers takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

GROUPS, TOKEN_EPS, BLOCK_EPS = 16, 1e-6, 1e-5
_LONGEST_PERIOD = 10_000


class UNet(nn.Module):
    """A UNet with one residual block and one transformer per level on the way down, two on the way up.

    Args:
        channels: of input and output.
        widths: channels per level, multiples of 16.
        head_dim: channels per attention head.
        context: width of the tokens of cross-attention.
        pose: numbers of a frame's camera vector.
    """

    down_blocks: Any  # lists of Level, whose items torch declares as any module
    mid_block: Any
    up_blocks: Any

    def __init__(self, channels: int, widths: Sequence[int], head_dim: int, context: int, pose: int):
        super().__init__()
        first, last, embedding = widths[0], widths[-1], 4 * widths[0]
        kind: dict[str, Any] = {"embedding": embedding, "head_dim": head_dim, "context": context}
        self.conv_in = nn.Conv2d(channels, first, 3, padding=1)
        self.time_embedding = Embedding(first, embedding)
        self.class_embedding = Embedding(pose, embedding)
        before = [first, *widths[:-1]]
        self.down_blocks = nn.ModuleList(
            Level([inner], outer, down=i + 1 < len(widths), **kind)
            for i, (inner, outer) in enumerate(zip(before, widths, strict=True))
        )
        self.mid_block = Level([last, last], last, transformers=1, **kind)
        up, skips = [*widths[::-1]], [*before[::-1]]
        self.up_blocks = nn.ModuleList(
            Level([up[max(i - 1, 0)] + width, width + skips[i]], width, up=i + 1 < len(up), **kind)
            for i, width in enumerate(up)
        )
        self.conv_norm_out = nn.GroupNorm(GROUPS, first, BLOCK_EPS)
        self.conv_out = nn.Conv2d(first, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, poses: Tensor, frames: int) -> Tensor:
        """Predict v.

        Args:
            x: [N·F,C,h,w], the F frames of an object next to each other.
            t: [N·F] times.
            tokens: [N,L,context] of the objects.
            poses: [N·F,pose].
            frames: F, which attend to each other.
        """
        tokens = tokens.repeat_interleave(frames, 0)
        times = embed_times(t, self.time_embedding.linear_1.in_features).to(x.dtype)
        embedding = F.silu(self.time_embedding(times) + self.class_embedding(poses))
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            x = level.attentions[0](level.resnets[0](x, embedding), tokens, frames)
            skips.append(x)
            if level.downsamplers is not None:
                x = level.downsamplers[0].conv(x)
                skips.append(x)
        middle = self.mid_block
        x = middle.attentions[0](middle.resnets[0](x, embedding), tokens, frames)
        x = middle.resnets[1](x, embedding)
        for level in self.up_blocks:
            for resnet, transformer in zip(level.resnets, level.attentions, strict=True):
                x = transformer(resnet(torch.cat([x, skips.pop()], 1), embedding), tokens, frames)
            if level.upsamplers is not None:
                x = level.upsamplers[0].conv(F.interpolate(x, skips[-1].shape[-2:]))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Level(nn.Module):
    """The blocks of one level: residual blocks of given input widths, a transformer behind each of the first ones, and the
    convolution that changes the resolution."""

    attentions: Any
    resnets: Any
    downsamplers: Any
    upsamplers: Any

    def __init__(
        self,
        inner: Sequence[int],
        width: int,
        *,
        embedding: int,
        head_dim: int,
        context: int,
        transformers: int | None = None,
        down: bool = False,
        up: bool = False,
    ):
        super().__init__()
        count = len(inner) if transformers is None else transformers
        self.attentions = nn.ModuleList(Transformer(width, head_dim, context) for _ in range(count))
        self.resnets = nn.ModuleList(ResidualBlock(channels, width, embedding) for channels in inner)
        self.downsamplers = nn.ModuleList([Resampling(width, stride=2)]) if down else None
        self.upsamplers = nn.ModuleList([Resampling(width, stride=1)]) if up else None


class Resampling(nn.Module):
    """The convolution before a coarser or after a finer level."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, padding=1)


class Embedding(nn.Module):
    """A perceptron of one hidden layer."""

    def __init__(self, inner: int, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(inner, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """Two convolutions with group norm, the embedding added between them, and a skip connection."""

    def __init__(self, inner: int, width: int, embedding: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inner, BLOCK_EPS)
        self.conv1 = nn.Conv2d(inner, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding, width)
        self.norm2 = nn.GroupNorm(GROUPS, width, BLOCK_EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inner, width, 1) if inner != width else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Transform features [N,inner,h,w] under an embedding [N,embedding] of the time; returns [N,width,h,w]."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Transformer(nn.Module):
    """Self-attention over all frames, cross-attention to the tokens and a gated perceptron, around pixels as tokens."""

    transformer_blocks: Any

    def __init__(self, width: int, head_dim: int, context: int):
        super().__init__()
        heads = width // head_dim
        inner = heads * (width // heads)
        self.norm = nn.GroupNorm(GROUPS, width, TOKEN_EPS)
        self.proj_in = nn.Conv2d(width, inner, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner, heads, context)])
        self.proj_out = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor, tokens: Tensor, frames: int) -> Tensor:
        """Transform features [N F,C,h,w] of N groups of F frames, looking at tokens [N F,M,context]; returns their shape."""
        h = rearrange(self.proj_in(self.norm(x)), "n c h w -> n (h w) c")
        h = self.transformer_blocks[0](h, tokens, frames)
        return x + self.proj_out(rearrange(h, "n (h w) c -> n c h w", h=x.shape[-2]))


class TransformerBlock(nn.Module):
    """The block of a transformer, with a layer norm before each part."""

    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = Attention(width, width, heads)
        self.attn2 = Attention(width, context, heads)
        self.ff = GatedPerceptron(width)

    def forward(self, x: Tensor, tokens: Tensor, frames: int) -> Tensor:
        """Transform tokens [N F,L,width] of N groups of F frames, which see each other within a group; returns their shape."""
        own = rearrange(self.norm1(x), "(n f) l c -> n (f l) c", f=frames)
        x = x + rearrange(self.attn1(own, own), "n (f l) c -> (n f) l c", f=frames)
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head attention from tokens [N,L,width] to tokens [N,M,context]."""

    to_out: Any

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (rearrange(part, "n l (h d) -> n h l d", h=self.heads)
                   for part in (self.to_q(x), self.to_k(tokens), self.to_v(tokens)))  # fmt: skip
        return self.to_out[0](rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)"))


class GatedPerceptron(nn.Module):
    """GEGLU (arXiv 2002.05202): one half of the hidden channels times the GELU of the other."""

    net: Any

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.ModuleList([_Projection(width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.net[0].proj(x).chunk(2, -1)
        return self.net[2](hidden * F.gelu(gate))


class _Projection(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)


def embed_times(t: Tensor, width: int) -> Tensor:
    """Embed times [N] as cosines and sines of ``width`` / 2 frequencies each (arXiv 2006.11239); returns [N,width]."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(_LONGEST_PERIOD) / half))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], -1)
