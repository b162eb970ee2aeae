"""Tiny random checkpoints of every family, written as the published ones are: the same names, the same layouts, small shapes.

The modules that the product builds are turned around: their tensors go under the original names, by inverting the key maps that
the parity tests hold to the originals' own lists.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

from microdreamer_core.diffusion import keys

WIDTH, CONTEXT, CLIP, WORDS = 32, 64, 64, 49408
_PREFIX = {
    "mvdream": {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model.model."},
    "imagedream": {
        "unet": "model.diffusion_model.",
        "vae": "vae_model.",
        "text": "clip_model.model.",
        "vision": "clip_model.model.visual.",
    },
    "zero123": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "vision": "cond_stage_model.model.visual.",
        "camera": "cc_projection.",
    },
}
FAMILIES = tuple(_PREFIX)
_ENDINGS = {"flat": ".pt", "lightning": ".ckpt", "safetensors": ".safetensors", "folder": ""}
_FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "text": "text_encoder",
    "vision": "image_encoder",
    "camera": "clip_camera_projection",
}


def original(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A whole checkpoint's tensors under their original names, float32."""
    draw = torch.Generator().manual_seed(seed)
    parts = _parts(family).items()
    shapes = {_PREFIX[family][part] + name: shape for part, named in parts for name, shape in named.items()}
    return {name: _values(name, shape, draw) for name, shape in shapes.items()}


def write(folder: Path, family: str, layout: str, *, name: str | None = None, seed: int = 0, without: tuple = ()) -> Path:
    """A checkpoint in one of the published layouts: "flat" (.pt), "lightning" (.ckpt with averages), "safetensors", "folder".

    Args:
        without: parts to leave out.
    """
    tensors = original(family, seed)
    left = {key: value for key, value in tensors.items() if _part_of(family, key) not in without}
    path = folder / ((name or family) + _ENDINGS[layout])
    if layout == "folder":
        _write_folder(path, family, left)
        return path
    if layout == "safetensors":
        save_file(left, path)
    elif layout == "flat":
        torch.save({**left, "betas": torch.zeros(1000)}, path)
    else:
        _write_lightning(path, left)
    return path


def _parts(family: str) -> dict[str, dict[str, tuple]]:
    """Original names without prefix -> shapes, by part."""
    parts = {"unet": _unet(family), "vae": _vae()}
    if family != "zero123":
        parts["text"] = _text()
    if family != "mvdream":
        parts["vision"] = _vision()
    if family == "zero123":
        parts["camera"] = {"weight": (CONTEXT, CONTEXT + 4), "bias": (CONTEXT,)}
    return parts


def _unet(family: str) -> dict[str, tuple]:
    """Two levels of one block, transformers in the second."""
    ins, emb = 8 if family == "zero123" else 4, 4 * WIDTH
    w, w2 = WIDTH, 2 * WIDTH
    shapes = {**_linear("time_embed.0", w, emb), **_linear("time_embed.2", emb, emb)}
    if family != "zero123":
        shapes |= {**_linear("camera_embed.0", 16, emb), **_linear("camera_embed.2", emb, emb)}
    linear, picture = family != "zero123", family == "imagedream"
    shapes |= {
        **_conv("input_blocks.0.0", ins, w),
        **_resnet("input_blocks.1.0", w, w, emb),
        **_conv("input_blocks.2.0.op", w, w),
        **_resnet("input_blocks.3.0", w, w2, emb),
        **_transformer("input_blocks.3.1", w2, linear, picture),
        **_resnet("middle_block.0", w2, w2, emb),
        **_transformer("middle_block.1", w2, linear, picture),
        **_resnet("middle_block.2", w2, w2, emb),
        **_resnet("output_blocks.0.0", 2 * w2, w2, emb),
        **_transformer("output_blocks.0.1", w2, linear, picture),
        **_resnet("output_blocks.1.0", w2 + w, w2, emb),
        **_transformer("output_blocks.1.1", w2, linear, picture),
        **_conv("output_blocks.1.2.conv", w2, w2),
        **_resnet("output_blocks.2.0", w2 + w, w, emb),
        **_resnet("output_blocks.3.0", w + w, w, emb),
        **_norm("out.0", w),
        **_conv("out.2", w, 4),
    }
    return shapes | (_resampler() if picture else {})


def _resnet(name: str, ins: int, outs: int, emb: int) -> dict[str, tuple]:
    skip = _conv(f"{name}.skip_connection", ins, outs, 1) if ins != outs else {}
    return {
        **_norm(f"{name}.in_layers.0", ins),
        **_conv(f"{name}.in_layers.2", ins, outs),
        **_linear(f"{name}.emb_layers.1", emb, outs),
        **_norm(f"{name}.out_layers.0", outs),
        **_conv(f"{name}.out_layers.3", outs, outs),
        **skip,
    }


def _transformer(name: str, width: int, linear: bool, picture: bool) -> dict[str, tuple]:
    block = f"{name}.transformer_blocks.0"
    project = _linear if linear else (lambda part, ins, outs: _conv(part, ins, outs, 1))
    shapes = {
        **_norm(f"{name}.norm", width),
        **project(f"{name}.proj_in", width, width),
        **project(f"{name}.proj_out", width, width),
    }
    for attention, context in (("attn1", width), ("attn2", CONTEXT)):
        shapes |= {f"{block}.{attention}.to_q.weight": (width, width), **_linear(f"{block}.{attention}.to_out.0", width, width)}
        shapes |= {f"{block}.{attention}.to_{letter}.weight": (width, context) for letter in "kv"}
    if picture:
        shapes |= {f"{block}.attn2.to_{letter}_ip.weight": (width, CONTEXT) for letter in "kv"}
    shapes |= {**_linear(f"{block}.ff.net.0.proj", width, 8 * width), **_linear(f"{block}.ff.net.2", 4 * width, width)}
    return shapes | {k: v for i in (1, 2, 3) for k, v in _norm(f"{block}.norm{i}", width).items()}


def _resampler() -> dict[str, tuple]:
    start, inner = "image_embed.layers.0.", 64
    return {
        "image_embed.latents": (1, 5, CONTEXT),
        **_linear("image_embed.proj_in", CLIP, CONTEXT),
        **_linear("image_embed.proj_out", CONTEXT, CONTEXT),
        **_norm("image_embed.norm_out", CONTEXT),
        **_norm(f"{start}0.norm1", CONTEXT),
        **_norm(f"{start}0.norm2", CONTEXT),
        f"{start}0.to_q.weight": (inner, CONTEXT),
        f"{start}0.to_kv.weight": (2 * inner, CONTEXT),
        f"{start}0.to_out.weight": (CONTEXT, inner),
        **_norm(f"{start}1.0", CONTEXT),
        f"{start}1.1.weight": (4 * CONTEXT, CONTEXT),
        f"{start}1.3.weight": (CONTEXT, 4 * CONTEXT),
    }


def _vae() -> dict[str, tuple]:
    """Two levels: a latent is two pixels wide."""
    w = 32

    def block(name, ins, outs):
        skip = _conv(f"{name}.nin_shortcut", ins, outs, 1) if ins != outs else {}
        return {
            **_norm(f"{name}.norm1", ins),
            **_conv(f"{name}.conv1", ins, outs),
            **_norm(f"{name}.norm2", outs),
            **_conv(f"{name}.conv2", outs, outs),
            **skip,
        }

    def middle(name):
        attention = {k: v for part in ("q", "k", "v", "proj_out") for k, v in _conv(f"{name}.attn_1.{part}", w, w, 1).items()}
        return {
            **block(f"{name}.block_1", w, w),
            **_norm(f"{name}.attn_1.norm", w),
            **attention,
            **block(f"{name}.block_2", w, w),
        }

    ups = {k: v for level in (0, 1) for i in (0, 1) for k, v in block(f"decoder.up.{level}.block.{i}", w, w).items()}
    return {
        **_conv("encoder.conv_in", 3, w),
        **block("encoder.down.0.block.0", w, w),
        **_conv("encoder.down.0.downsample.conv", w, w),
        **block("encoder.down.1.block.0", w, w),
        **middle("encoder.mid"),
        **_norm("encoder.norm_out", w),
        **_conv("encoder.conv_out", w, 8),
        **_conv("quant_conv", 8, 8, 1),
        **_conv("post_quant_conv", 4, 4, 1),
        **_conv("decoder.conv_in", 4, w),
        **middle("decoder.mid"),
        **ups,
        **_conv("decoder.up.1.upsample.conv", w, w),
        **_norm("decoder.norm_out", w),
        **_conv("decoder.conv_out", w, 3),
    }


def _text() -> dict[str, tuple]:
    return {
        "token_embedding.weight": (WORDS, CONTEXT),
        "positional_embedding": (77, CONTEXT),
        "text_projection": (CONTEXT, CONTEXT),
        "logit_scale": (),
        **_norm("ln_final", CONTEXT),
        **_tower(CONTEXT),
    }


def _vision() -> dict[str, tuple]:
    return {
        "class_embedding": (CLIP,),
        "positional_embedding": (17, CLIP),
        "conv1.weight": (CLIP, 3, 7, 7),
        "proj": (CLIP, CONTEXT),
        **_norm("ln_pre", CLIP),
        **_norm("ln_post", CLIP),
        **_tower(CLIP),
    }


def _tower(width: int, blocks: int = 2) -> dict[str, tuple]:
    shapes = {}
    for start in (f"transformer.resblocks.{i}." for i in range(blocks)):
        shapes |= {
            f"{start}attn.in_proj_weight": (3 * width, width),
            f"{start}attn.in_proj_bias": (3 * width,),
            **_linear(f"{start}attn.out_proj", width, width),
            **_norm(f"{start}ln_1", width),
            **_norm(f"{start}ln_2", width),
            **_linear(f"{start}mlp.c_fc", width, 4 * width),
            **_linear(f"{start}mlp.c_proj", 4 * width, width),
        }
    return shapes


def _linear(name: str, ins: int, outs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outs, ins), f"{name}.bias": (outs,)}


def _conv(name: str, ins: int, outs: int, size: int = 3) -> dict[str, tuple]:
    return {f"{name}.weight": (outs, ins, size, size), f"{name}.bias": (outs,)}


def _norm(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _values(name: str, shape: tuple, draw: torch.Generator) -> torch.Tensor:
    """Values that keep a network's numbers near 1."""
    values = torch.randn(shape, generator=draw)
    if name.endswith("weight") and len(shape) == 1:
        return 1 + 0.1 * values
    fan = values[0].numel() if len(shape) > 1 else 100
    return values * fan**-0.5


def _part_of(family: str, key: str) -> str:
    """The part whose prefix is the longest that fits."""
    fits = {part: prefix for part, prefix in _PREFIX[family].items() if key.startswith(prefix)}
    return max(fits, key=lambda part: len(fits[part]))


def _write_lightning(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As Lightning 1.4 does: a class as a key, numpy numbers, the optimizer's state; averages that differ from the weights."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    names = [".".join(module.__name__.split(".")[:i]) for i in (1, 2, 3)]
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: module if name == module.__name__ else ModuleType(name) for name in names})
    trained = {key: value for key, value in tensors.items() if key.startswith("model.")}
    averaged = {keys.ema_name(key): value * 0.5 for key, value in trained.items()}
    content = {
        "epoch": 1,
        "state_dict": {**tensors, **averaged, "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)},
        "callbacks": {module.ModelCheckpoint: {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    }
    try:
        torch.save(content, path)
    finally:
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.__setitem__(name, old)


def _write_folder(path: Path, family: str, tensors: dict[str, torch.Tensor]) -> None:
    """As ashawkey's repositories: the UNet under its original names (Zero123's under diffusers'), the rest as libraries do."""
    from microdreamer_core.diffusion import encoders

    for part, folder in _FOLDERS.items():
        stored = {k: v for k, v in tensors.items() if _part_of(family, k) == part}
        if not stored:
            continue
        weights = {k.removeprefix(_PREFIX[family][part]): v for k, v in stored.items()}
        shapes = {k: tuple(v.shape) for k, v in weights.items()}
        if part == "unet" and family == "zero123":
            weights = {k.removeprefix("unet."): v for k, v in _map(keys.unet_map(shapes), weights).items()}
        elif part == "vae":
            weights = _map(keys.vae_map(shapes), weights)
        elif part == "text":
            module = encoders.build_clip_text(shapes)
            weights = _map(keys.clip_text_map(shapes, module.state_dict()), weights)
            weights = {"text_model." + k.removeprefix("text_model."): v for k, v in weights.items()}
        elif part == "vision":
            module = encoders.build_clip_vision(shapes, activation="gelu")
            weights = _map(keys.clip_vision_map(shapes, module.state_dict()), weights)
        elif part == "camera":
            weights = {f"proj.{k}": v for k, v in weights.items()}
        (path / folder).mkdir(parents=True)
        name = "diffusion_pytorch_model" if part in ("unet", "vae", "camera") else "model"
        save_file({k: v.contiguous() for k, v in weights.items()}, path / folder / f"{name}.safetensors")


def _map(mapping, weights):
    return {target.name: target.take(weights[old]) for old, targets in mapping.items() for target in targets}
