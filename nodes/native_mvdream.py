"""MVDream as a MODEL of ComfyUI, so that its samplers, LoRA loaders and memory management apply to it.

MVDream is Stable Diffusion 2.1 with two additions, both of which ComfyUI's own UNet can do: an MLP of each view's camera, which
it calls a label embedding, and self-attention across the views, which is a patch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.diffusion.mvdream import VIEWS, camera_matrices
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.step import Step
from . import types
from .compat import checkpoint_paths, embedding_folders, io, schema
from .native_condition import Native
from .native_views import share_attention
from .types import core_call, rig_of

CAMERA = "microdreamer_cameras"
"""Name of the cameras in CONDITIONING: [V,16], as ``camera_matrices`` gives them."""
_CAMERA_NUMBERS = 16
_NAMES = {"camera_embed.": "label_emb.0."}
"""The original's name of its camera MLP, and ComfyUI's."""


class LoadMVDream(io.ComfyNode):
    """Load MVDream as ComfyUI's own MODEL."""

    TITLE = "Load MVDream (native)"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerLoadMVDreamNative",
            aliases=("mvdream", "multi-view", "ksampler", "lora", "4view"),
            display_name=cls.TITLE,
            category="MicroDreamer/Model",
            description="Loads MVDream as MODEL, CLIP and VAE of ComfyUI: KSampler makes four views of an object from words; "
            "LoRA loaders and samplers apply.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(checkpoint_paths()),
                    tooltip="sd-v2.1-base-4view.pt, or another MVDream file in the original layout.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    id="model_out",
                    display_name="model",
                    tooltip="Needs MVDream Cameras before a sampler, and a batch of four latents of 256 x 256 pixels.",
                ),
                io.Clip.Output(id="clip_out", display_name="clip", tooltip="The text encoder in the file."),
                io.Vae.Output(id="vae_out", display_name="vae", tooltip="The autoencoder in the file."),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        paths = checkpoint_paths()
        if checkpoint not in paths:
            raise InputError(f"There is no checkpoint {checkpoint!r} in models/microdreamer; choose one of the list.")
        return io.NodeOutput(*load_mvdream(str(paths[checkpoint])))


class MVDreamCameras(io.ComfyNode):
    """Tell a native MVDream the camera of each view of the batch."""

    TITLE = "MVDream Cameras"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerMVDreamCameras",
            aliases=("camera", "conditioning", "multi-view"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Adds cameras to the CONDITIONING of Load MVDream (native), for KSampler.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="Text of what to make."),
                io.Conditioning.Input("negative", tooltip="Text of what it must not look like."),
                types.Rig.Input("cameras", tooltip="Four cameras, or a multiple, from Camera Layout: one for each latent."),
            ],
            outputs=[
                io.Conditioning.Output(id="positive_out", display_name="positive", tooltip="For KSampler."),
                io.Conditioning.Output(id="negative_out", display_name="negative", tooltip="For KSampler."),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, positive: Any, negative: Any, cameras: Step | Cameras) -> io.NodeOutput:
        rig = rig_of(cameras)
        if len(rig) % VIEWS:
            raise InputError(f"MVDream denoises a multiple of {VIEWS} views, got {len(rig)} cameras; change the layout.")
        return io.NodeOutput(*(with_cameras(text, rig) for text in (positive, negative)))


def with_cameras(text: Native, cameras: Cameras) -> Native:
    """Add cameras to CONDITIONING."""
    return [[tokens, {**values, CAMERA: camera_matrices(cameras).cpu()}] for tokens, values in text]


@torch.inference_mode()
def load_mvdream(path: str) -> tuple[Any, Any, Any]:
    """Read MODEL, CLIP and VAE of a checkpoint in the original layout.

    Raises:
        InputError: it is another model's, or incomplete.
    """
    from comfy import model_detection, model_management, model_patcher, sd, utils
    from comfy.model_base import ModelType

    weights = utils.load_torch_file(path, safe_load=True)
    prefix = model_detection.unet_prefix_from_state_dict(weights)
    found = {name: weights.pop(name) for name in list(weights) if name.startswith(tuple(prefix + old for old in _NAMES))}
    config = model_detection.model_config_from_unet(weights, prefix)
    if not found or config is None or any("image_embed." in name for name in weights):
        raise InputError(
            "Expected an MVDream checkpoint in the original layout (sd-v2.1-base-4view.pt), got another model's; use Load "
            "Multi-View Model for other families, and ComfyUI's Load Checkpoint for models of single pictures."
        )
    _, clip, vae, _ = sd.load_state_dict_guess_config(weights, output_model=False, embedding_directory=embedding_folders())
    renamed = {_renamed(name.removeprefix(prefix)): value for name, value in found.items()}
    unet = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)} | renamed
    kinds, device = config.supported_inference_dtypes, model_management.get_torch_device()
    stored = next(iter(unet.values())).dtype
    dtype = model_management.unet_dtype(
        model_params=sum(value.numel() for value in unet.values()), supported_dtypes=kinds, weight_dtype=stored
    )
    config.set_inference_dtype(dtype, model_management.unet_manual_cast(dtype, device, kinds))
    config.unet_config |= {"num_classes": "sequential", "adm_in_channels": _CAMERA_NUMBERS}
    offload = model_management.unet_offload_device()
    model = _model_class()(config, ModelType.EPS, device=offload)
    absent = sorted(model.diffusion_model.state_dict().keys() - unet.keys())
    if absent:
        raise InputError(
            f"The MVDream checkpoint lacks {len(absent)} tensors of its UNet, the first {absent[0]}; get it again."
        )
    model.load_model_weights(unet, "")
    return share_attention(model_patcher.ModelPatcher(model, load_device=device, offload_device=offload), VIEWS), clip, vae


def is_mvdream(model: Any) -> bool:
    """Whether a model of ComfyUI was made by ``load_mvdream``."""
    return isinstance(model, _model_class())


def _renamed(name: str) -> str:
    for old, new in _NAMES.items():
        name = name.replace(old, new)
    return name


@cache
def _model_class() -> type:
    from comfy.model_base import BaseModel

    class MVDream(BaseModel):
        """ComfyUI's model with the cameras of its CONDITIONING as the UNet's label."""

        def encode_adm(self, **values: Any) -> torch.Tensor:
            if CAMERA not in values:
                raise InputError(
                    f"MVDream needs a camera for each view, got none; put {MVDreamCameras.TITLE} between text and sampler."
                )
            return values[CAMERA].to(values["noise"].device)

    return MVDream


NODES = (LoadMVDream, MVDreamCameras)
