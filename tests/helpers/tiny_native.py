"""Tiny random models of the host's own classes, loaded as its loaders do: under inference mode."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import torch

UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 4,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
    "dtype": torch.float32,
}


def randomise(module, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        width = parameter.shape[-1] if parameter.ndim else 1
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3 / width**0.5)
    return module.eval()


def config(kind="SD15", **unet):
    supported = importlib.import_module("comfy.supported_models")
    made = getattr(supported, kind)({**UNET, **unet})
    made.unet_config = {**UNET, **unet}
    made.set_inference_dtype(torch.float32, None)
    return made


def patcher(model):
    patching, mm = importlib.import_module("comfy.model_patcher"), importlib.import_module("comfy.model_management")
    return patching.ModelPatcher(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


class Calls:
    """What a UNet was called with: shape, time, context and the host's word on which branches it holds."""

    def __init__(self, model):
        self.plain, self.seen = model.diffusion_model.forward, []
        model.diffusion_model.forward = self

    def __call__(self, x, t, context=None, **values):
        branches = values.get("transformer_options", {}).get("cond_or_uncond")
        self.seen.append(SimpleNamespace(x=x, t=t.tolist(), context=context, y=values.get("y"), branches=branches))
        return self.plain(x, t, context=context, **values)


@torch.inference_mode()
def native(kind="sd", model_type="EPS"):
    """(MODEL, its calls) of a tiny random network."""
    base = importlib.import_module("comfy.model_base")
    model_type = base.ModelType[model_type]
    if kind == "zero123":
        weights = {"cc_projection_weight": torch.zeros(768, 772), "cc_projection_bias": torch.zeros(768)}
        model = base.Stable_Zero123(config("Stable_Zero123", in_channels=8), **weights)
        randomise(model.cc_projection, 5)
    elif kind == "sdxl":
        unet = {"adm_in_channels": 2816, "num_classes": "sequential", "context_dim": 2048, "use_linear_in_transformer": True}
        model = base.SDXL(config("SDXL", **unet), model_type)
    else:
        model = base.BaseModel(config(), model_type)
    randomise(model.diffusion_model)
    return patcher(model), Calls(model)


class Clip:
    """A text encoder with the host's interface: random tokens that depend on the text, longer ones for long texts."""

    def __init__(self, channels=768, pooled=768):
        self.channels, self.pooled, self.texts = channels, pooled, []

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        self.texts.append(text)
        draw = torch.Generator().manual_seed(sum(map(ord, text)))
        length = 77 * (1 + len(text) // 77)
        tokens = torch.randn(1, length, self.channels, generator=draw)
        return [[tokens, {"pooled_output": torch.randn(1, self.pooled, generator=draw)}]]
