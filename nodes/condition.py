"""Conditioning on a prompt, on a prompt with an image, and on native CONDITIONING."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..microdreamer_core.errors import InputError
from . import types
from .compat import io, schema
from .native_model import TITLE as NATIVE
from .native_model import NativeModel
from .reference import condition_model, condition_output, elevation_input, make_reference, reference_inputs
from .types import Conditioned, LoadedModel, core_call, expect


def _prompt_inputs() -> list:
    return [
        io.String.Input("prompt", default="", multiline=True, tooltip="What to make, in words."),
        io.String.Input(
            "negative",
            default="",
            multiline=True,
            tooltip="What the object must not look like; empty for the list released with MVDream and ImageDream.",
        ),
    ]


def _view_words_input() -> io.Input:
    return io.Boolean.Input(
        "view_words",
        default=True,
        tooltip="Add front, side, back or overhead view to the prompt of each view; not used by models that take cameras.",
    )


class ConditionOnPrompt(io.ComfyNode):
    """Condition a model on a prompt, which is encoded once."""

    TITLE = "Condition on Prompt"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerConditionOnPrompt",
            aliases=("text to 3d", "clip text encode", "prompt"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Conditions the model on a prompt: encodes it once for the whole run.",
            inputs=[
                types.Model.Input("model", tooltip="A model that takes a prompt."),
                *_prompt_inputs(),
                _view_words_input(),
            ],
            outputs=[condition_output()],
        )

    @classmethod
    @core_call
    def execute(cls, model: LoadedModel, prompt: str, negative: str = "", view_words: bool = True) -> io.NodeOutput:
        return io.NodeOutput(condition_model(model, None, prompt, negative=negative, view_words=view_words))


class ConditionOnBoth(io.ComfyNode):
    """Condition a model on an image and a prompt, which are encoded once."""

    TITLE = "Condition on Both"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerConditionOnBoth",
            aliases=("image and text to 3d", "prompt", "encode reference"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Conditions the model on a picture and a prompt. With a model that takes only a prompt, the picture "
            "is used in the reconstruction.",
            inputs=[
                types.Model.Input("model", tooltip="A model that takes a prompt."),
                *reference_inputs(),
                *_prompt_inputs(),
                elevation_input(),
                _view_words_input(),
            ],
            outputs=[condition_output()],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        model: LoadedModel,
        image: Tensor,
        mask: Tensor,
        prompt: str,
        negative: str = "",
        elevation: float = 0.0,
        view_words: bool = True,
    ) -> io.NodeOutput:
        reference = make_reference(image, mask, elevation)
        return io.NodeOutput(condition_model(model, reference, prompt, negative=negative, view_words=view_words))


class ConditionFromComfyUI(io.ComfyNode):
    """Condition a native model on native CONDITIONING, unchanged and the same for every camera."""

    TITLE = "Condition from ComfyUI"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerConditionFromComfyUI",
            aliases=("controlnet", "ip-adapter", "native conditioning", "clip text encode"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Uses CONDITIONING of any native node (text, ControlNet, areas ...), the same for every camera.",
            inputs=[
                types.Model.Input("model", tooltip=f"The output of {NATIVE}."),
                io.Conditioning.Input("positive", tooltip="The conditional branch: what the object should look like."),
                io.Conditioning.Input("negative", tooltip="The unconditional branch; inversion uses only this one."),
                io.Image.Input(
                    "image", optional=True, tooltip="A reference picture from Prepare Reference, for the reconstruction only."
                ),
                io.Mask.Input("mask", optional=True, tooltip="Coverage of its object; white is object."),
                elevation_input(),
            ],
            outputs=[condition_output()],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        model: LoadedModel,
        positive: Any,
        negative: Any,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        elevation: float = 0.0,
    ) -> io.NodeOutput:
        loaded = expect(model, LoadedModel, "model")
        if not isinstance(loaded.model, NativeModel):
            raise InputError(f"Native CONDITIONING needs a native model, got {loaded.name!r}; use {NATIVE}.")
        if (image is None) != (mask is None):
            raise InputError("A reference needs image and mask, got one of them; link both outputs of Prepare Reference.")
        reference = None if image is None or mask is None else make_reference(image, mask, elevation)
        return io.NodeOutput(Conditioned(loaded.model.condition_as(positive, negative), reference, loaded))


class ConditionForEditing(io.ComfyNode):
    """Condition an edit model on the reference and on words for each camera."""

    TITLE = "Condition for Editing"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerConditionForEditing",
            aliases=("qwen image edit", "flux kontext", "multi-angle", "camera angle", "reference latent"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Image to 3D with an edit model (Qwen-Image-Edit, FLUX ...): it gets the reference, and each "
            "camera in the words of camera-angle LoRAs.",
            inputs=[
                types.Model.Input("model", tooltip=f"The output of {NATIVE}, with the LoRA's MODEL and its CLIP."),
                *reference_inputs(),
                io.String.Input("prompt", default="", multiline=True, tooltip="What follows the camera's words; may be empty."),
                io.String.Input("negative", default="", multiline=True, tooltip="Text of the unconditional branch."),
                elevation_input(),
                io.Boolean.Input(
                    "camera_words",
                    default=True,
                    tooltip="Begin each view's text with words for its camera; off without a camera-angle LoRA.",
                ),
            ],
            outputs=[condition_output()],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        model: LoadedModel,
        image: Tensor,
        mask: Tensor,
        prompt: str = "",
        negative: str = "",
        elevation: float = 0.0,
        camera_words: bool = True,
    ) -> io.NodeOutput:
        loaded = expect(model, LoadedModel, "model")
        if not isinstance(loaded.model, NativeModel):
            raise InputError(f"Editing needs a native model, got {loaded.name!r}; use {NATIVE}.")
        reference = make_reference(image, mask, elevation)
        diffusion = loaded.model.condition_as_edit(reference, prompt, negative, angles=camera_words)
        return io.NodeOutput(Conditioned(diffusion, reference, loaded, prompt, negative))


NODES = (ConditionOnPrompt, ConditionOnBoth, ConditionForEditing, ConditionFromComfyUI)
