"""The encoders of the released models: Stable Diffusion's autoencoder, CLIP's text tower and CLIP's image tower.

Each class wraps a module of diffusers or transformers; the build functions create these modules from the shapes of their
weights, uninitialised, to be filled by means of ``keys``.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from .keys import vae_map

log = logging.getLogger(__name__)

SCALE = 0.18215
"""Factor from the autoencoder's latents to Stable Diffusion's."""

TEXT_TOKENS = 77
PAD_TOKEN = 0
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_VIEWS_AT_ONCE = 8
_VIT_H_TEXT_BLOCKS = 24
_CLIP_BLOCKS = r"(?:resblocks|encoder\.layers)\.(\d+)\."
_CLIP_MLP = ("resblocks.0.mlp.c_fc.weight", "encoder.layers.0.mlp.fc1.weight")

Shapes = Mapping[str, Sequence[int]]


class Vae:
    """Stable Diffusion's autoencoder (kl-f8): images to latents an eighth of their size and back.

    If half precision overflows, the model switches to float32 permanently.

    Args:
        model: diffusers' AutoencoderKL; computes in the model's precision and returns float32.
        low_memory: process one view at a time (as always when decoding on the CPU): a view needs more memory here than in the
            UNet.
    """

    def __init__(self, model: nn.Module, low_memory: bool = False):
        self.model: Any = model  # diffusers declares less than its models have
        self.low_memory = low_memory

    @property
    def factor(self) -> int:
        """Pixels per latent cell side: 8."""
        return 2 ** (len(self.model.config.block_out_channels) - 1)

    def encode(self, images: Tensor, scaled: bool = True) -> Tensor:
        """Encode images to latents: the mode of the posterior, no sampling; differentiable.

        Args:
            images: [V,H,W,3] in [0,1], H and W multiples of 8.
            scaled: multiply by 0.18215, as for the UNets' noisy latents; not for Zero123's reference latent.

        Returns:
            [V,4,H/8,W/8] float32.

        Raises:
            InputError: a side is not a multiple of 8.
        """
        if images.shape[1] % self.factor or images.shape[2] % self.factor:
            raise InputError(
                f"The autoencoder needs sides of a multiple of {self.factor}, got {tuple(images.shape)}; resize the picture."
            )
        pixels = rearrange(images, "v h w c -> v c h w") * 2 - 1
        mean = self._by_views(lambda x: self.model.encode(x).latent_dist.mode(), pixels, 1 if self.low_memory else len(pixels))
        return mean * SCALE if scaled else mean

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [V,4,h,w] to images [V,8h,8w,3], float32 in [0,1]."""
        at_once = 1 if self.low_memory or self.model.device.type == "cpu" else _VIEWS_AT_ONCE
        pixels = self._by_views(lambda x: self.model.decode(x).sample, latents / SCALE, at_once)
        return rearrange(pixels, "v c h w -> v h w c").add(1).div(2).clamp(0, 1)

    def _by_views(self, function: Callable[[Tensor], Tensor], x: Tensor, at_once: int) -> Tensor:
        """Apply a function of the model to ``at_once`` views at a time; repeat it in float32 if half precision overflows.

        With gradients nothing is read back from the device, so there is no check.
        """

        def run() -> Tensor:
            return torch.cat([function(part).float() for part in _like(x, self.model).split(at_once)])

        result = run()
        if self.model.dtype == torch.float32 or result.requires_grad or bool(result.isfinite().all()):
            return result
        if not bool(x.isfinite().all()):
            return result
        log.warning("The autoencoder overflows in %s; from now on it works in float32.", self.model.dtype)
        self.model.float()
        return run()


class ClipText:
    """The text tower of MVDream and ImageDream: open_clip's ViT-H-14, output of the last but one block after the final norm.

    Args:
        model: transformers' CLIPTextModel, built without the last block (``build_clip_text``).
        tokenizer: from ``tokenizer.load_tokenizer``.
    """

    def __init__(self, model: nn.Module, tokenizer: Any):
        self.model: Any = model  # as for Vae
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode B texts to tokens [B,77,C] float32."""
        return self.encode(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids [B,77]: start, words, end, then 0; longer texts are truncated with a warning."""
        rows = [self.tokenizer(text).input_ids for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > TEXT_TOKENS:
                log.warning("The prompt is longer than %d tokens; its end is ignored: %.60s…", TEXT_TOKENS - 2, text)
                row[TEXT_TOKENS - 1 :] = row[-1:]
        return torch.tensor([row + [PAD_TOKEN] * (TEXT_TOKENS - len(row)) for row in rows])

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """Encode token ids [B,77] to [B,77,C] float32. Padding is attended to, as in training."""
        return self.model(input_ids=ids.to(self.model.device)).last_hidden_state.float()


class ClipVision:
    """CLIP's image tower: all tokens of the last but one block for ImageDream, the projected embedding for Zero123.

    Args:
        model: transformers' CLIPVisionModel or CLIPVisionModelWithProjection.
    """

    def __init__(self, model: nn.Module):
        self.model: Any = model  # as for Vae

    @property
    def image_size(self) -> int:
        """Side in pixels of the tower's square input."""
        return self.model.config.image_size

    def hidden(self, images: Tensor) -> Tensor:
        """Encode images [V,H,H,3] in [0,1] to tokens [V,L,C] float32, before the last block and without the final norm."""
        return self.hidden_of(clip_pixels(images, self.image_size))

    def embed(self, images: Tensor) -> Tensor:
        """Encode images [V,H,H,3] in [0,1] to embeddings [V,D] float32, projected but not normalised.

        Raises:
            InputError: the tower has no projection.
        """
        return self.embed_pixels(clip_pixels(images, self.image_size))

    @torch.no_grad()
    def hidden_of(self, pixels: Tensor) -> Tensor:
        """Like ``hidden``, for normalised pixels [V,3,224,224]."""
        return self.model(pixel_values=_like(pixels, self.model), output_hidden_states=True).hidden_states[-2].float()

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Like ``embed``, for normalised pixels [V,3,224,224]."""
        if not hasattr(self.model, "visual_projection"):
            raise InputError(
                "This CLIP image tower has no projection (visual_projection); use the one of Zero123's checkpoint."
            )
        return self.model(pixel_values=_like(pixels, self.model)).image_embeds.float()


def clip_pixels(images: Tensor, size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> Tensor:
    """Preprocess images as CLIP does (Radford et al. 2021): resize, centre crop, normalise.

    The shorter side becomes ``size`` (bicubic, antialiased); mean and standard deviation are those of the training images.

    >>> import torch
    >>> clip_pixels(torch.rand(2, 256, 320, 3)).shape
    torch.Size([2, 3, 224, 224])

    Args:
        images: [V,H,W,3] in [0,1]; further channels are dropped.
        size: pixels of the tower's input.

    Returns:
        [V,3,size,size] float32.
    """
    pixels = rearrange(images[..., :3], "v h w c -> v c h w").float()
    height, width = pixels.shape[2:]
    if (height, width) != (size, size):
        # truncated to whole pixels, the shorter side exact, as the original's resize does
        short = min(height, width)
        shape = (size if height == short else int(size * height / short), size if width == short else int(size * width / short))
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((n - size) // 2 for n in shape)
        pixels = pixels[:, :, top : top + size, left : left + size]
    shift, scale = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - shift) / scale


def build_vae(shapes: Shapes, device: torch.device | str = "meta") -> nn.Module:
    """Build diffusers' AutoencoderKL for weights of these shapes.

    Args:
        shapes: name -> shape, in the original or in diffusers' layout, without the checkpoint's prefix.
        device: "meta" allocates no memory; fill it with ``load_state_dict(..., assign=True)``.

    Raises:
        InputError: the shapes are not those of Stable Diffusion's autoencoder.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    named = {target.name: tuple(shapes[old]) for old, targets in vae_map(shapes).items() for target in targets}
    levels = _count(named, r"encoder\.down_blocks\.(\d+)\.")
    sizes: dict[str, Any] = {
        "in_channels": _shape(named, "encoder.conv_in.weight")[1],
        "out_channels": _shape(named, "decoder.conv_out.weight")[0],
        "block_out_channels": [_shape(named, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)],
        "layers_per_block": _count(named, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": _shape(named, "post_quant_conv.weight")[1],
    }
    with torch.device(device):
        return AutoencoderKL(**sizes, scaling_factor=SCALE).eval()


def build_clip_text(shapes: Shapes, *, heads: int | None = None, device: torch.device | str = "meta") -> nn.Module:
    """Build transformers' CLIPTextModel for an open_clip text tower without its last block, which the released models skip.

    A folder in transformers' layout usually comes without that block already; it is dropped only from a full ViT-H-14 (24
    blocks).

    Args:
        shapes: name -> shape, in open_clip's or in transformers' layout, without the checkpoint's prefix.
        heads: attention heads, which shapes do not determine; None for heads of 64 channels.
        device: as for ``build_vae``.

    Raises:
        InputError: the shapes are not those of a CLIP text tower.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    words, width = _shape(shapes, "token_embedding.weight")
    blocks = _count(shapes, _CLIP_BLOCKS)
    stored_whole = blocks == _VIT_H_TEXT_BLOCKS or any("resblocks." in name for name in shapes)
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=_shape(shapes, *_CLIP_MLP)[0],
        num_hidden_layers=blocks - 1 if stored_whole else blocks,
        num_attention_heads=heads or max(width // 64, 1),
        max_position_embeddings=_shape(shapes, "positional_embedding", "position_embedding.weight")[0],
        hidden_act="gelu",
    )
    return _clip(CLIPTextModel, config, device)


def build_clip_vision(
    shapes: Shapes,
    *,
    activation: Literal["gelu", "quick_gelu"],
    heads: int | None = None,
    device: torch.device | str = "meta",
) -> nn.Module:
    """Build transformers' CLIPVisionModelWithProjection for a CLIP image tower, CLIPVisionModel if it has no projection.

    Args:
        shapes: name -> shape, in OpenAI's, open_clip's or transformers' layout, without the checkpoint's prefix.
        activation: "quick_gelu" for OpenAI's towers (Zero123's ViT-L/14), "gelu" for open_clip's (ImageDream's ViT-H/14).
        heads: attention heads, which shapes do not determine; None for 16 (ViT-L and larger), of 64 channels in smaller towers.
        device: as for ``build_vae``.

    Raises:
        InputError: the shapes are not those of a CLIP image tower.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    width, channels, patch, _ = _shape(shapes, "conv1.weight", "patch_embedding.weight")
    tokens = _shape(shapes, "positional_embedding", "position_embedding.weight")[0]
    projection = shapes["proj"][1] if "proj" in shapes else shapes.get("visual_projection.weight", (0,))[0]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(shapes, *_CLIP_MLP)[0],
        projection_dim=projection or width,
        num_hidden_layers=_count(shapes, _CLIP_BLOCKS),
        num_attention_heads=heads or min(max(width // 64, 1), 16),
        num_channels=channels,
        image_size=math.isqrt(tokens - 1) * patch,
        patch_size=patch,
        hidden_act=activation,
    )
    return _clip(CLIPVisionModelWithProjection if projection else CLIPVisionModel, config, device)


def _clip(model_class: type, config: Any, device: torch.device | str) -> nn.Module:
    with torch.device(device):
        model = model_class(config).eval()
    for module in model.modules():
        ids = module._buffers.get("position_ids")
        if ids is not None:  # not in checkpoints, so it would stay empty on "meta"
            module.register_buffer("position_ids", torch.arange(ids.shape[-1], device="cpu")[None], persistent=False)
    return model


def _like(tensor: Tensor, model: Any) -> Tensor:
    return tensor.to(device=model.device, dtype=model.dtype)


def _shape(shapes: Shapes, *endings: str) -> Sequence[int]:
    """Return the shape of the first tensor whose name has one of these endings."""
    found = next((shape for name, shape in shapes.items() if name.endswith(endings)), None)
    if found is None:
        raise InputError(
            f"Expected weights with a tensor named {' or '.join(endings)}, found none; the file is another model's."
        )
    return found


def _count(names: Iterable[str], pattern: str) -> int:
    """Count the values 0, 1, ... of the pattern's group."""
    return 1 + max((int(match[1]) for name in names if (match := re.search(pattern, name))), default=-1)
