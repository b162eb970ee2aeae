"""The shipped model's UNet for CPUs: oneDNN's kernels on weights that are packed once, and fewer, larger operations.

torch's linear layers run on MKL, which uses half of an AMD CPU's vector width, and its convolutions rearrange their weights
in every call. These operations, which torch's own compiler emits, do neither; activations, products and sums are part of the
same pass. Pixels stay rows [pixel, channel] throughout, so that nothing is transposed. Cross-attention to tokens that do not
change over an iteration becomes two small matrices. The result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...util.probe import works
from ...util.seeds import generator
from ...util.threads import ThreadTuner
from .network import MultiViewDenoiser
from .unet import Attention, Embedding, Level, ResidualBlock, Transformer, UNet, embed_times

_TOLERANCE = 1e-4
_NOISE = ("latents", "reference", "cameras")
_ONE_THREAD = 32_768
"""Numbers that torch's elementwise operations leave to one thread (``at::internal::GRAIN_SIZE``)."""
Rows = Callable[..., Tensor]


class PackedUNet:
    """A :class:`UNet` on the CPU, in float32 and without gradients; called as the network itself."""

    def __init__(self, unet: UNet):
        self._unet = unet
        self._norm_out = _norm(unet.conv_norm_out)
        self._conv_in, self._conv_out = _conv(unet.conv_in), _conv(unet.conv_out)
        resnets = [module for module in unet.modules() if isinstance(module, ResidualBlock)]
        transformers = [module for module in unet.modules() if isinstance(module, Transformer)]
        self._embed = _linear(*(torch.cat(part) for part in zip(*(_parts(r.time_emb_proj) for r in resnets), strict=True)))
        ends = torch.tensor([0] + [r.time_emb_proj.out_features for r in resnets]).cumsum(0).tolist()
        spans = [slice(*span) for span in zip(ends[:-1], ends[1:], strict=True)]
        self._resnets = {r: _ResidualBlock(r, span) for r, span in zip(resnets, spans, strict=True)}
        self._transformers = {t: _Transformer(t) for t in transformers}
        self._resampled = {m: _conv(m) for level in (*unet.down_blocks, *unet.up_blocks) for m in _resampling(level)}
        self._times = _embedding(unet.time_embedding)
        self._tokens, self._poses = _Cached(self._fold), _Cached(_embedding(unet.class_embedding))

    def __call__(self, x: Tensor, t: Tensor, tokens: Tensor, poses: Tensor, frames: int) -> Tensor:
        """See :meth:`UNet.forward`."""
        unet, folded = self._unet, self._tokens(tokens)
        times, kind = t.unique(return_inverse=True)
        time = self._times(embed_times(times, unet.time_embedding.linear_1.in_features))
        embedding = self._embed(_silu(time[kind] + self._poses(poses)))[:, :, None, None]

        def attend(h: Tensor, which: Transformer) -> Tensor:
            return self._transformers[which](h, folded[which], frames)

        x = self._conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for level in unet.down_blocks:
            x = attend(self._resnets[level.resnets[0]](x, embedding), level.attentions[0])
            skips.append(x)
            for conv in _resampling(level):
                x = self._resampled[conv](x)
                skips.append(x)
        middle = unet.mid_block
        x = attend(self._resnets[middle.resnets[0]](x, embedding), middle.attentions[0])
        x = self._resnets[middle.resnets[1]](x, embedding)
        for level in unet.up_blocks:
            for resnet, transformer in zip(level.resnets, level.attentions, strict=True):
                x = attend(self._resnets[resnet](torch.cat([x, skips.pop()], 1), embedding), transformer)
            for conv in _resampling(level):
                x = self._resampled[conv](F.interpolate(x, skips[-1].shape[-2:]))
        return self._conv_out(_silu(self._norm_out(x)))

    def _fold(self, tokens: Tensor) -> dict[nn.Module, list[_Folded]]:
        return {module: [transformer.fold(own) for own in tokens] for module, transformer in self._transformers.items()}


@dataclass(frozen=True)
class PackedParts:
    """A denoiser's parts on the CPU (``network.DenoiserParts``)."""

    unet: PackedUNet
    tokens: Rows
    mirror: Rows | None

    @classmethod
    def of(cls, denoiser: MultiViewDenoiser) -> PackedParts:
        """Pack a denoiser's weights."""
        first, second, third = (_conv(layer) for layer in denoiser.tokens if isinstance(layer, nn.Conv2d))
        pool = denoiser.tokens[-1]

        def tokens(reference: Tensor) -> Tensor:
            h = _silu(first(reference.contiguous(memory_format=torch.channels_last)))
            return pool(third(_silu(second(h))))

        return cls(PackedUNet(denoiser.unet), tokens, _conv(denoiser.mirror) if denoiser.copies else None)


class PackedDenoiser:
    """A denoiser whose calls on the CPU run on :class:`PackedParts`; other calls, and all where these fail, run as they are.

    The weights are packed at the first call, and again after they have moved in memory.
    """

    def __init__(self, denoiser: MultiViewDenoiser):
        self._denoiser, self._first = denoiser, next(denoiser.parameters())  # all move together
        self._place, self._tuner = 0, ThreadTuner()
        self._parts: PackedParts | None = None

    def __call__(self, latents: Tensor, **inputs: Tensor) -> Tensor:
        if latents.device.type != "cpu" or latents.dtype != torch.float32 or torch.is_grad_enabled():
            return self._denoiser(latents, **inputs)
        place = self._first.data_ptr()
        if place != self._place:
            self._place, self._parts = place, pack(self._denoiser, {"latents": latents, **inputs})
        if self._parts is None:
            return self._denoiser(latents, **inputs)
        return self._tuner(latents.shape, lambda: self._denoiser(latents, **inputs, parts=self._parts))


def pack(denoiser: MultiViewDenoiser, inputs: dict[str, Tensor]) -> PackedParts | None:
    """Pack a denoiser's weights; None if that does not work here or changes its output for noise of these inputs' shapes.

    Always the same noise: a real unconditional call has a black frame, whose group norms magnify rounding, and a run and the
    one that continues it must come to the same decision.
    """
    packed: list[PackedParts] = []
    rng = generator(0, 0, "probe")

    def noise(value: Tensor) -> Tensor:
        return torch.randn(value.shape, generator=rng)

    def check() -> None:
        with torch.inference_mode(False), torch.no_grad():  # packed weights outlive ComfyUI's inference mode
            packed.append(PackedParts.of(denoiser))
            given = {name: noise(value) if name in _NOISE else value.clone() for name, value in inputs.items()}
            given["keep"] = torch.ones_like(given["keep"])
            expected = denoiser(**given)
            error = float((denoiser(**given, parts=packed[0]) - expected).norm() / expected.norm())
        if not error <= _TOLERANCE:
            raise ArithmeticError(f"its output differs from torch's by {error:.2e}, expected {_TOLERANCE:.0e}")

    return packed[0] if works("The packed network", check) else None


class _ResidualBlock:
    def __init__(self, block: ResidualBlock, span: slice):
        self._norm1, self._norm2, self._span = _norm(block.norm1), _norm(block.norm2), span
        self._first, self._second = _conv(block.conv1), _conv(block.conv2)
        self._shortcut = None if block.conv_shortcut is None else _linear(*_parts(block.conv_shortcut))

    def __call__(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self._first(_silu(self._norm1(x))).add_(embedding[:, self._span])
        skip = x if self._shortcut is None else _image(self._shortcut(_rows(x)), x)
        return self._second(_silu(self._norm2(h)), skip)


@dataclass(frozen=True)
class _Folded:
    """Cross-attention to fixed tokens: logits of heads and tokens from a pixel, and what they add to it; 0 without tokens."""

    logits: Rows
    values: Rows


class _Transformer:
    def __init__(self, transformer: Transformer):
        block = transformer.transformer_blocks[0]
        self._block, self._heads, self._norm = block, block.attn1.heads, _norm(transformer.norm)
        self._norm1, self._norm2, self._norm3 = (_norm(layer) for layer in (block.norm1, block.norm2, block.norm3))
        self._enter, self._leave = _linear(*_parts(transformer.proj_in)), _linear(*_parts(transformer.proj_out))
        own = block.attn1
        self._qkv = _linear(torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight]), None)
        self._merge = _linear(*_parts(own.to_out[0]))
        weight, bias = _parts(block.ff.net[0].proj)
        self._hidden, self._gate = (_linear(*half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))
        self._narrow = _linear(*_parts(block.ff.net[2]))

    def fold(self, tokens: Tensor) -> _Folded:
        """Fold cross-attention to tokens [L,context] into two matrices."""
        cross: Attention = self._block.attn2
        keys, values, queries = (
            part.unflatten(-1, (self._heads, -1)) for part in (cross.to_k(tokens), cross.to_v(tokens), cross.to_q.weight.T)
        )
        scale = keys.shape[-1] ** -0.5
        out = cross.to_out[0].weight.unflatten(-1, (self._heads, -1))
        logits = torch.einsum("lhd,chd->hlc", keys, queries).flatten(0, 1) * scale
        return _Folded(
            _linear(logits, None), _linear(torch.einsum("ohd,lhd->ohl", out, values).flatten(1), cross.to_out[0].bias)
        )

    def __call__(self, x: Tensor, folded: list[_Folded], frames: int) -> Tensor:
        objects = len(x) // frames
        h = self._enter(_rows(self._norm(x)))
        qkv = self._qkv(self._norm1(h)).view(objects, -1, 3, self._heads, h.shape[1] // self._heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        h = self._merge(attended, h)
        h = torch.cat([self._cross(own, part) for own, part in zip(folded, h.chunk(objects), strict=True)])
        normed = self._norm3(h)
        h = self._narrow(self._hidden(normed, self._gate(normed, "gelu"), "mul"), h)
        return _image(self._leave(h, _rows(x)), x)

    def _cross(self, folded: _Folded, h: Tensor) -> Tensor:
        logits = folded.logits(self._norm2(h))
        return folded.values(logits.view(len(h), self._heads, -1).softmax(-1).view(logits.shape), h)


class _Cached:
    """A function of one tensor that remembers its last result."""

    def __init__(self, function: Callable):
        self._function, self._last = function, None

    def __call__(self, x: Tensor):
        if self._last is None or not torch.equal(self._last[0], x):
            self._last = x.clone(), self._function(x)
        return self._last[1]


def _norm(layer: nn.GroupNorm | nn.LayerNorm) -> Rows:
    weight, bias, eps = layer.weight.detach(), layer.bias.detach(), layer.eps
    if isinstance(layer, nn.GroupNorm):
        groups = layer.num_groups
        return lambda x: torch.group_norm(x, groups, weight, bias, eps)
    return lambda x: torch.layer_norm(x, weight.shape, weight, bias, eps)


def _silu(x: Tensor) -> Tensor:
    """SiLU in place, in parts that torch gives to one thread: it rounds differently where it cuts a tensor for several."""
    for part in x.split(max(1, _ONE_THREAD // x[0].numel())):
        F.silu(part, inplace=True)
    return x


def _rows(x: Tensor) -> Tensor:
    """View images [N,C,h,w] in memory order [N,h,w,C] as rows [N h w,C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(rows: Tensor, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    return rows.view(n, height, width, -1).permute(0, 3, 1, 2)


def _resampling(level: Level) -> list[nn.Conv2d]:
    return [module.conv for module in (level.downsamplers or level.upsamplers or ())]


def _parts(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight [out,in] and bias of a linear layer or 1x1 convolution."""
    assert layer.bias is not None
    return layer.weight.detach().flatten(1), layer.bias.detach()


def _embedding(layer: Embedding) -> Rows:
    first, second = _linear(*_parts(layer.linear_1)), _linear(*_parts(layer.linear_2))
    return lambda x: second(_silu(first(x)))


def _linear(weight: Tensor, bias: Tensor | None) -> Rows:
    """A linear layer of rows [M,in]: f(x), f(x, "gelu"), f(x, other) adds, f(x, other, "mul") multiplies."""
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.detach().contiguous())

    def call(x: Tensor, other: Tensor | str = "none", how: str = "add") -> Tensor:
        if isinstance(other, str):
            return ops._linear_pointwise(x, packed, bias, other, [], "none")
        return ops._linear_pointwise.binary(x, other, packed, bias, how)

    return call


def _conv(layer: nn.Conv2d) -> Rows:
    """A convolution of images in memory order [N,h,w,C]: f(x), f(x, other) adds."""
    ops = torch.ops.mkldnn
    where = [*layer.padding], [*layer.stride], [*layer.dilation], layer.groups
    weight, bias = layer.weight.detach().contiguous(), None if layer.bias is None else layer.bias.detach()
    packed = {}

    def call(x: Tensor, other: Tensor | None = None) -> Tensor:
        if x.shape not in packed:  # the best order of the weights depends on the size
            packed[x.shape] = ops._reorder_convolution_weight(weight, *where, list(x.shape))
        if other is None:
            return ops._convolution_pointwise(x, packed[x.shape], bias, *where, "none", [], "")
        return ops._convolution_pointwise.binary(x, other, packed[x.shape], bias, *where, "add", 1.0, None, [], None)

    return call
