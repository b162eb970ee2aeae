"""Tensor names of the released checkpoints, mapped to those of diffusers and transformers.

A map gives for each stored tensor the tensors of our module that it fills and the transforms: it works on names only, so that a
loader can read one tensor at a time. An unused stored tensor maps to (). A tensor without a counterpart in the module keeps a
name that the module does not have, so that the loader reports it.

    stored = component(file_names, "unet")            # name without prefix -> name in the file
    for name, targets in unet_map(stored).items():
        for target in targets:
            module_tensors[target.name] = target.take(read(stored[name]))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from torch import Tensor

Component = Literal["unet", "vae", "text", "vision", "camera"]

PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae_model."),
    "text": ("cond_stage_model.model.", "clip_model.model."),
    "vision": ("cond_stage_model.model.visual.", "clip_model.model.visual.", "visual."),
    "camera": ("cc_projection.",),
}
"""Name prefixes of each component in checkpoint files: MVDream's and Zero123's, ImageDream's, then open_clip's."""

_BARE = {
    "unet": {"input_blocks.0.0.weight", "conv_in.weight"},
    "vae": {"encoder.conv_in.weight"},
    "text": {
        "token_embedding.weight",
        "embeddings.token_embedding.weight",
        "text_model.embeddings.token_embedding.weight",
    },
    "vision": {"embeddings.class_embedding", "vision_model.embeddings.class_embedding"},
    "camera": {"proj.weight", "projection.weight"},
}
"""Any of these names shows that a file has the component without prefix, as in the folders of a diffusers repository."""

_OTHER_TOWER = {
    "text": ("visual.", "vision_model.", "visual_projection."),
    "vision": ("text_model.", "text_projection.", "logit_scale"),
}
"""Prefixes of the other tower in a file with a whole CLIP."""

EMA_PREFIX = "model_ema."

_BLOCK = re.compile(r"(?:resblocks|encoder\.layers)\.(\d+)\.")


@dataclass(frozen=True)
class Target:
    """One tensor of our module: its name and its transform from the stored tensor (None: unchanged)."""

    name: str
    transform: Callable[[Tensor], Tensor] | None = None

    def take(self, stored: Tensor) -> Tensor:
        """Apply the transform; the result is often a view, so copy it before the file is closed."""
        return stored if self.transform is None else self.transform(stored)


Map = dict[str, tuple[Target, ...]]
"""Stored name -> the tensors that it fills; empty for an unused tensor."""


def component(names: Collection[str], which: Component, ema: bool = False) -> dict[str, str]:
    """Select the tensors of one component of a checkpoint file.

    >>> component(["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"], "unet")
    {'out.2.bias': 'model.diffusion_model.out.2.bias'}

    Args:
        names: every tensor name of the file (below ``state_dict`` if there is one).
        which: "unet", "vae", "text", "vision" or "camera" (Zero123's projection of image embedding and camera).
        ema: take the UNet's EMA weights if the file has them.

    Returns:
        Name without prefix -> name in the file; empty if the file lacks the component. A file without prefixes (a folder of a
        diffusers repository, open_clip's CLIP) is itself the component.
    """
    present = set(names)
    prefix = next((p for p in PREFIXES[which] if any(name.startswith(p) for name in present)), None)
    if prefix is None and not present & _BARE[which]:
        return {}
    found = {name.removeprefix(prefix or ""): name for name in names if name.startswith(prefix or "")}
    found = {name: stored for name, stored in found.items() if not name.startswith(_OTHER_TOWER.get(which, ()))}
    if which == "text" and not any(_BLOCK.search(name) for name in found):  # Zero123 keeps the remains of a text tower
        return {}
    if not (ema and which == "unet"):
        return found
    averaged = {name: ema_name(stored) for name, stored in found.items()}
    return {name: averaged[name] if averaged[name] in present else stored for name, stored in found.items()}


def has_ema(names: Iterable[str]) -> bool:
    """Return True if a checkpoint file has EMA weights of its UNet."""
    return any(name.startswith(EMA_PREFIX + "diffusion_model") for name in names)


def ema_name(name: str) -> str:
    """Return the name of a tensor's EMA: without the prefix "model." and without dots (ldm's LitEma).

    >>> ema_name("model.diffusion_model.out.2.bias")
    'model_ema.diffusion_modelout2bias'
    """
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


# --- UNet ------------------------------------------------------------

_UNET_OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

_RESAMPLER = "image_embed."

_RESAMPLER_LAYER = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}


def unet_map(names: Iterable[str]) -> Map:
    """Map a UNet's names, in the original or in diffusers' layout, to those of ``unet.MultiViewUNet``.

    >>> unet_map(["out.2.bias"])
    {'out.2.bias': (Target(name='unet.conv_out.bias', transform=None),)}

    Args:
        names: without prefix.
    """
    names = list(names)
    if "conv_in.weight" in names:
        return {name: (Target(f"unet.{name}"),) for name in names}
    outer = _UNET_OUTER | _unet_blocks(names)
    resampler = resampler_map((name for name in names if name.startswith(_RESAMPLER)), _RESAMPLER)
    return {name: resampler.get(name) or (Target(_unet_name(name, outer)),) for name in names}


def resampler_map(names: Iterable[str], prefix: str = "") -> Map:
    """Map ImageDream's resampler to ``unet.build_resampler``'s names, both with ``prefix``."""
    return {name: _resampler_targets(name, prefix) for name in names}


def _unet_name(name: str, outer: dict[str, str]) -> str:
    head, tail = _split_known(name, outer)
    if ".resnets." in head:
        inner, tail = _split_known(tail, _RESNET)
        return f"unet.{head}.{inner}.{tail}"
    tail = re.sub(r"\.(to_[kv]_ip)\.", r".processor.\1.", tail)
    return f"unet.{head}.{tail}"


def _unet_blocks(names: Collection[str]) -> dict[str, str]:
    """Map the prefix of every numbered block to diffusers' levels, which end at the down- and upsampling blocks."""
    blocks: dict[str, str] = {}
    level, place = 0, 0
    for block, parts in _parts(names, "input_blocks"):
        if block == 0:
            continue
        if "0.op" in parts:
            blocks[f"input_blocks.{block}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, place = level + 1, 0
            continue
        blocks |= {f"input_blocks.{block}.0": f"down_blocks.{level}.resnets.{place}"}
        blocks |= {f"input_blocks.{block}.1": f"down_blocks.{level}.attentions.{place}"}
        place += 1
    level, place = 0, 0
    for block, parts in _parts(names, "output_blocks"):
        blocks[f"output_blocks.{block}.0"] = f"up_blocks.{level}.resnets.{place}"
        blocks[f"output_blocks.{block}.1"] = f"up_blocks.{level}.attentions.{place}"
        place += 1
        for sampler in parts & {"1.conv", "2.conv"}:
            blocks[f"output_blocks.{block}.{sampler}"] = f"up_blocks.{level}.upsamplers.0.conv"
            level, place = level + 1, 0
    return blocks


def _parts(names: Iterable[str], root: str) -> list[tuple[int, set[str]]]:
    """List numbered blocks in order, each with the first two parts of its names ("0.op", "1.norm", ...)."""
    found = [match for match in (re.match(rf"{root}\.(\d+)\.(\d+\.[^.]+)", name) for name in names) if match]
    found.sort(key=lambda match: int(match[1]))
    return [(block, {match[2] for match in group}) for block, group in groupby(found, key=lambda match: int(match[1]))]


def _resampler_targets(name: str, prefix: str) -> tuple[Target, ...]:
    layer = re.match(r"layers\.(\d+)\.(.+)\.(weight|bias)$", name.removeprefix(prefix))
    if layer is None:
        return (Target(name),)
    start = f"{prefix}layers.{layer[1]}."
    if layer[2] == "0.to_kv":
        return (Target(f"{start}attn.to_k.weight", _part(0, 2)), Target(f"{start}attn.to_v.weight", _part(1, 2)))
    return (Target(f"{start}{_RESAMPLER_LAYER.get(layer[2], layer[2])}.{layer[3]}"),)


# --- VAE ------------------------------------------------------------

_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_VAE_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_map(names: Iterable[str]) -> Map:
    """Map Stable Diffusion's autoencoder, in the original or in diffusers' layout (old names too), to AutoencoderKL's names."""
    names = list(names)
    if any(name.startswith("encoder.down_blocks.") for name in names):
        return {name: (_vae_attention_target(name, _VAE_OLD_ATTENTION),) for name in names}
    levels = 1 + max((int(match[1]) for name in names if (match := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    return {name: (_vae_target(name, levels),) for name in names}


def _vae_target(name: str, levels: int) -> Target:
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
    up = re.match(r"decoder\.up\.(\d+)\.(.+)$", name)
    if up is not None:
        rest = up[2].replace("block.", "resnets.", 1).replace("upsample.", "upsamplers.0.", 1)
        name = f"decoder.up_blocks.{levels - 1 - int(up[1])}.{rest}"
    name = re.sub(r"\.mid\.block_([12])\.", lambda match: f".mid_block.resnets.{int(match[1]) - 1}.", name)
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    name = name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
    return _vae_attention_target(name, _VAE_ATTENTION)


def _vae_attention_target(name: str, parts: dict[str, str]) -> Target:
    """Attention's projections are Linear in diffusers, 1x1 convolutions in the original."""
    match = re.match(r"(.+\.mid_block\.attentions\.0\.)(.+)\.(weight|bias)$", name)
    if match is None:
        return Target(name)
    part = parts.get(match[2], match[2])
    flatten = _as_linear if match[3] == "weight" and part.startswith("to_") else None
    return Target(f"{match[1]}{part}.{match[3]}", flatten)


# --- CLIP ------------------------------------------------------------

_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

_CLIP_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}

_CLIP_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}


def clip_text_map(names: Iterable[str], wanted: Collection[str]) -> Map:
    """Map a CLIP text tower, in open_clip's or in transformers' layout, to CLIPTextModel's names.

    Args:
        names: without prefix.
        wanted: names of the module's state dict. Blocks beyond its depth are dropped: the multi-view models use the last but
            one block's output, so the module has one block less. It also decides about the prefix "text_model.", which
            transformers 5 dropped.
    """
    depth = 1 + max((int(i) for name in wanted for i in re.findall(r"encoder\.layers\.(\d+)\.", name)), default=-1)
    unused = {"text_projection", "text_projection.weight", "logit_scale", "attn_mask"}
    return _clip_map(names, wanted, "text_model", _CLIP_TEXT, unused, depth)


def clip_vision_map(names: Iterable[str], wanted: Collection[str]) -> Map:
    """Map a CLIP image tower, in OpenAI's, open_clip's or transformers' layout, to CLIPVisionModel[WithProjection]'s names.

    Args:
        names: without prefix.
        wanted: names of the module's state dict; without a projection in it, the stored one is dropped.
    """
    unused = set() if "visual_projection.weight" in wanted else {"proj", "visual_projection.weight"}
    return _clip_map(names, wanted, "vision_model", _CLIP_VISION, unused, None)


def _clip_map(
    names: Iterable[str], wanted: Collection[str], root: str, outer: dict[str, str], unused: Collection[str], depth: int | None
) -> Map:
    wanted = set(wanted)
    result: Map = {}
    for name in names:
        block = _BLOCK.search(name)
        beyond = depth is not None and block is not None and int(block[1]) >= depth
        skip = beyond or name in unused or name.endswith("position_ids")
        result[name] = () if skip else tuple(_fit_depth(t, root, wanted) for t in _clip_targets(name, root, outer))
    return result


def _clip_targets(name: str, root: str, outer: dict[str, str]) -> tuple[Target, ...]:
    if name == "proj":
        return (Target("visual_projection.weight", _transpose),)
    block = re.match(r"transformer\.resblocks\.(\d+)\.(.+)$", name)
    if block is None:
        return (Target(outer.get(name, name)),)
    start = f"{root}.encoder.layers.{block[1]}."
    packed = re.match(r"attn\.in_proj_(weight|bias)$", block[2])
    if packed is not None:
        return tuple(Target(f"{start}self_attn.{letter}_proj.{packed[1]}", _part(i, 3)) for i, letter in enumerate("qkv"))
    inner, tail = _split_known(block[2], _CLIP_BLOCK)
    return (Target(f"{start}{inner}.{tail}"),)


def _fit_depth(target: Target, root: str, wanted: Collection[str]) -> Target:
    """Return the target with or without the prefix "text_model." or "vision_model.", as in the module."""
    bare = target.name.removeprefix(f"{root}.")
    return next((Target(name, target.transform) for name in (bare, f"{root}.{bare}") if name in wanted), target)


# --- Zero123's projection ------------------------------------------------------------


def camera_map(names: Iterable[str]) -> Map:
    """Map Zero123's Linear from image embedding and camera to one token (prefixed "proj." or "projection." in some layouts)."""
    return {name: (Target(name.removeprefix("proj.").removeprefix("projection.")),) for name in names}


def _split_known(name: str, known: dict[str, str]) -> tuple[str, str]:
    """Split off the longest known prefix: (its new name, the rest); if none is known, the first part unchanged."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        start = ".".join(parts[:end])
        if start in known:
            return known[start], ".".join(parts[end:])
    return parts[0], ".".join(parts[1:])


def _part(index: int, parts: int) -> Callable[[Tensor], Tensor]:
    """Return a transform that selects one of equal parts of the first dimension."""
    return lambda stored: stored.chunk(parts)[index]


def _transpose(stored: Tensor) -> Tensor:
    return stored.T


def _as_linear(stored: Tensor) -> Tensor:
    """Reshape a 1x1 convolution's weight [out,in,1,1] to a Linear's [out,in]; the latter stays unchanged."""
    return stored.flatten(1)
