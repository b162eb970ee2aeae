"""A pack for the real server: nodes in place of the host's loaders, with tiny random models of the class that a file is of.

Their ids are the loaders' after "Tiny".
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
tiny = importlib.import_module("helpers.tiny_native")

KINDS = {"z_image": "zimage", "qwen_image_edit": "qwen", "v1-5": "sd"}


def _loader(widget: str, *returned: str, model: bool = False):
    """A class of node that has the file's name, and whatever else is linked, as inputs."""

    class Loader:
        RETURN_TYPES, FUNCTION, CATEGORY = returned, "load", "tests"

        @classmethod
        def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
            required = {widget: ("STRING", {})}
            return {"required": {**required, "model": ("MODEL",)} if model else required}

    return Loader


class Checkpoint(_loader("ckpt_name", "MODEL", "CLIP", "VAE")):
    def load(self, ckpt_name):
        model, vae, clip = tiny.image_model(_kind(ckpt_name))
        return model, clip, vae


class Unet(_loader("unet_name", "MODEL")):
    def load(self, unet_name):
        return (tiny.image_model(_kind(unet_name))[0],)


class TextEncoder(_loader("clip_name", "CLIP")):
    def load(self, clip_name):
        return (tiny.Clip(64, 32, 24),)


class Autoencoder(_loader("vae_name", "VAE")):
    def load(self, vae_name):
        return (tiny.wan_vae() if "qwen" in vae_name else tiny.vae(16),)


class Control(_loader("control_net_name", "CONTROL_NET")):
    def load(self, control_net_name):
        return (tiny.control_network(),)


class Lora(_loader("lora_name", "MODEL", model=True)):
    def load(self, lora_name, model):
        return (model.clone(),)


class AnyModel(_loader("kind", "MODEL", "CLIP", "VAE")):
    """One of ``tiny_native.KINDS``, or a class of the host's with a stub for its network."""

    def load(self, kind):
        model, vae, clip = tiny.image_model(kind) if kind in tiny.KINDS else tiny.stubbed(kind)
        return model, clip, vae


def _kind(file: str) -> str:
    return next(kind for start, kind in KINDS.items() if file.startswith(start))


LOADERS = {
    "CheckpointLoaderSimple": Checkpoint,
    "UNETLoader": Unet,
    "CLIPLoader": TextEncoder,
    "VAELoader": Autoencoder,
    "ControlNetLoader": Control,
    "LoraLoaderModelOnly": Lora,
}
NODE_CLASS_MAPPINGS = {"TinyModel": AnyModel, **{f"Tiny{name}": loader for name, loader in LOADERS.items()}}
