"""Tiny random models of the host's own classes, loaded as its loaders do: under inference mode."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
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
    elif kind == "sv3d_p":
        unet = {"in_channels": 8, "adm_in_channels": 1280, "num_classes": "sequential", "use_temporal_attention": True}
        # as the host's detection has it
        unet |= {"use_temporal_resblock": True, "extra_ff_mix_layer": True, "use_spatial_context": True}
        unet |= {"merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1]}
        model = base.SV3D_p(config("SV3D_p", **unet))
    elif kind == "sdxl":
        unet = {"adm_in_channels": 2816, "num_classes": "sequential", "context_dim": 2048, "use_linear_in_transformer": True}
        model = base.SDXL(config("SDXL", **unet), model_type)
    else:
        model = base.BaseModel(config(), model_type)
    randomise(model.diffusion_model)
    return patcher(model), Calls(model)


class Clip:
    """A text encoder with the host's interface: random tokens that depend on the text, longer ones for long texts."""

    def __init__(self, channels=768, pooled=768, length=77):
        self.channels, self.pooled, self.length, self.texts = channels, pooled, length, []

    def tokenize(self, text, images=(), **_):
        self.images = images
        return text

    def encode_from_tokens_scheduled(self, text):
        self.texts.append(text)
        draw = torch.Generator().manual_seed(sum(map(ord, text)))
        length = self.length * (1 + len(text) // 77)
        tokens = torch.randn(1, length, self.channels, generator=draw)
        return [[tokens, {"pooled_output": torch.randn(1, self.pooled, generator=draw)}]]


# --- models of other classes ---------------------------------------------------------------------------------------------

_ROPE = {"theta": 10000, "dtype": torch.float32}
_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 32,
    "context_in_dim": 64,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
    **_ROPE,
}
_SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 1,
    "input_size": None,
    "adm_in_channels": 32,
    "pos_embed_max_size": 64,
    "num_patches": 4096,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "dtype": torch.float32,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 64}},
}
_ZIMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 8,
    "n_kv_heads": 8,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.0,
    "qk_norm": True,
    "cap_feat_dim": 64,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
    "rope_theta": 256.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
    "dtype": torch.float32,
}
_QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "axes_dims_rope": (8, 12, 12),
    "dtype": torch.float32,
}
_TRANSFORMERS = {
    "sd3": ("SD3", "SD3", _SD3),
    "zimage": ("ZImage", "Lumina2", _ZIMAGE),
    "flux": ("Flux", "Flux", _FLUX),
    "qwen": ("QwenImage", "QwenImage", _QWEN),
}
KINDS = ("sd", "sdxl", "v_edm", "lcm", *_TRANSFORMERS)


def image_model(kind):
    """(MODEL, VAE, CLIP) of a tiny random image model of one of ``KINDS``."""
    if kind in _TRANSFORMERS:
        supported, base = (importlib.import_module(f"comfy.{name}") for name in ("supported_models", "model_base"))
        configured, cls, network = _TRANSFORMERS[kind]
        made = getattr(supported, configured)(dict(network))
        made.unet_config = {name: value for name, value in network.items() if name in _accepted(base, cls, network)}
        made.set_inference_dtype(torch.float32, None)
        with torch.inference_mode():
            model = getattr(base, cls)(made)
            randomise(model.diffusion_model, 3)
            if kind == "sd3":  # a buffer that the host leaves to the weights
                model.diffusion_model.pos_embed.normal_(generator=torch.Generator().manual_seed(4))
        return patcher(model), wan_vae() if kind == "qwen" else vae(16), Clip(64, 32, 24)
    types = {"v_edm": "V_PREDICTION_EDM"}
    model, _ = native("sdxl" if kind == "sdxl" else "sd", types.get(kind, "EPS"))
    if kind == "lcm":
        node = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete
        (model,) = node().patch(model, "lcm", False)
    return model, vae(4), Clip(2048, 1280) if kind == "sdxl" else Clip()


def _accepted(base, cls, network):
    """Older hosts do not know all settings of a network, e.g. Flux's ``txt_ids_dims``."""
    known = importlib.import_module("comfy.ldm.flux.model").FluxParams.__dataclass_fields__
    return network if cls != "Flux" else {"image_model", "dtype", *known}


@torch.inference_mode()
def vae(channels):
    """An autoencoder of 8 pixels a latent."""
    sd = importlib.import_module("comfy.sd")
    dd = {"double_z": True, "z_channels": channels, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    dd |= {"num_res_blocks": 1, "ch_mult": [1, 1, 1, 1], "attn_resolutions": [], "dropout": 0.0}
    made = sd.VAE(sd={}, config={"params": {"ddconfig": dd, "embed_dim": channels}}, dtype=torch.float32)
    made.latent_channels = channels
    randomise(made.first_stage_model, 1)
    return made


@torch.inference_mode()
def wan_vae():
    """The autoencoder of videos that Qwen-Image uses, of 8 pixels a latent, read from its weights as the host's loader does."""
    network = importlib.import_module("comfy.ldm.wan.vae").WanVAE
    weights = network(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True])
    made = importlib.import_module("comfy.sd").VAE(sd=weights.state_dict(), dtype=torch.float32)
    randomise(made.first_stage_model, 1)
    return made


# --- any class of the host, without its network ------------------------------------------------------------------------------


class AnySettings(dict):
    """Settings of a network that is not made."""

    def __missing__(self, name):
        return 64


class Stub(torch.nn.Module):
    """In place of a network: depends on picture, time and text, and gives what it is given the shape of."""

    dtype, patch_size = torch.float32, 2

    def __init__(self, channels):
        super().__init__()
        self.channels, self.weight = channels, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, *_, context=None, **__):
        x = x[:, : self.channels]
        text = 0.0 if context is None else context.float().mean()
        return torch.tanh(0.5 * x.flip(1) + 0.001 * t.float().reshape(-1, *[1] * (x.ndim - 1)) + text)


class StubVae:
    """An autoencoder of any format of latents."""

    def __init__(self, latents):
        self.latent_channels, self.latent_dim = latents.latent_channels, latents.latent_dimensions
        self.side = getattr(latents, "spacial_downscale_ratio", 8)

    def spacial_compression_encode(self):
        return self.side

    def encode(self, images):
        means = torch.nn.functional.avg_pool2d(images.mean(-1)[:, None], self.side) * 2 - 1
        latents = means.repeat(1, self.latent_channels, 1, 1)
        return latents.unsqueeze(2) if self.latent_dim == 3 else latents

    def decode(self, latents):
        pixels = latents.mean(1, keepdim=True).sigmoid().movedim(1, -1)
        return pixels.repeat_interleave(self.side, -2).repeat_interleave(self.side, -3).expand(*[-1] * (pixels.ndim - 1), 3)


def stub_model(config):
    """A model of the host's own class for this configuration, with its process and latents, and a stub for its network."""
    settings = AnySettings(config.unet_config, disable_unet_model_creation=True)
    made = config(settings)
    made.unet_config = settings
    made.set_inference_dtype(torch.float32, None)
    model = made.get_model({}, "")
    model.diffusion_model = Stub(model.latent_format.latent_channels)
    return model


@torch.inference_mode()
def stubbed(kind):
    """(MODEL, VAE, CLIP) of one of the host's classes by name, with stubs."""
    model = stub_model(getattr(importlib.import_module("comfy.supported_models"), kind))
    return patcher(model), StubVae(model.latent_format), Clip(64, 64, 20)


# --- what they are used with ---------------------------------------------------------------------------------------------


class Recorder:
    """A CONTROL_NET that notes the hints it is given and changes nothing: the interface of the host's ``ControlBase``."""

    def __new__(cls):
        base = importlib.import_module("comfy.controlnet").ControlBase

        class Recording(base):
            def __init__(self):
                super().__init__()
                self.seen = []

            def get_control(self, x_noisy, *others):
                self.seen.append((len(x_noisy), self.cond_hint_original.movedim(1, -1).clone()))
                if self.previous_controlnet is not None:
                    self.previous_controlnet.get_control(x_noisy, *others)

            def copy(self):
                other = Recording()
                other.seen = self.seen
                self.copy_to(other)
                return other

            def get_models(self):
                return []

        return Recording()


@torch.inference_mode()
def control_network(**changes):
    """A tiny random CONTROL_NET of SD."""
    mm, control = importlib.import_module("comfy.model_management"), importlib.import_module("comfy.controlnet")
    unet = {name: value for name, value in UNET.items() if name not in ("out_channels", "transformer_depth_output")}
    unet |= changes
    operations = importlib.import_module("comfy.ops").manual_cast
    made = importlib.import_module("comfy.cldm.cldm").ControlNet(**unet, hint_channels=3, operations=operations)
    return control.ControlNet(randomise(made, 6), load_device=mm.get_torch_device())


@torch.inference_mode()
def model_patch(kind, fills_in=False):
    """A tiny random MODEL_PATCH for Qwen-Image or Z-Image, None where the host has none; one that fills in has a mask too."""
    operations = importlib.import_module("comfy.ops").manual_cast
    place = {"device": "cpu", "dtype": torch.float32, "operations": operations}
    if kind == "qwen":
        network = importlib.import_module("comfy_extras.nodes_model_patch").QwenImageBlockWiseControlNet
        made = network(num_layers=1, in_dim=64, dim=64, additional_in_dim=4 if fills_in else 0, **place)
    elif importlib.util.find_spec("comfy.ldm.lumina.controlnet") is None:
        return None
    else:
        network = importlib.import_module("comfy.ldm.lumina.controlnet").ZImage_Control
        sizes = {name: _ZIMAGE[name] for name in ("dim", "n_heads", "n_kv_heads", "multiple_of", "ffn_dim_multiplier")}
        made = network(**sizes, additional_in_dim=17 if fills_in else 0, **place)
    return patcher(randomise(made, 7))


def refiner_plan(core, **changes):
    """The smallest plan of a model of words; ``core`` imports modules of the pack."""
    plan = core("microdreamer_core.sir.presets").get_plan("imagedream-gaussians")
    numbers = {"iterations": 1, "steps": 2, "init_steps": 2, "views": 2, "discretization": 3, "image_size": 64}
    return replace(plan, **{**numbers, **changes})


def run_stages(run, field, plan, condition, passes=2):
    """The field after the initialisation and the first iteration, every stage a node."""
    for _ in range(passes):
        cameras = run("SampleCameras", field=field, plan=plan, condition=condition)[0]
        images = run("RenderViews", field=field, cameras=cameras)[0]
        latent = run("HybridForward", condition=condition, cameras=cameras, images=images)[0]
        refined = run("DDIMRefine", condition=condition, cameras=cameras, latent=latent)[0]
        field = run("ReconstructSteps", field=field, cameras=cameras, images=refined, condition=condition)[0]
    return field
