"""Scores of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.evaluation.clip_similarity import SIZE, VIEWS, Clip, clip_cameras, clip_kind, load_clip, similarity
from ..microdreamer_core.io.video import render_frames
from ..microdreamer_core.job.outputs import box_of, renderer_of
from . import types
from .compat import ProgressBar, interrupt_check, io, load_to_device, manage, mesh_input, model_folders, schema
from .render import require_result
from .types import FieldState, core_call

LINKED = "linked CLIP_VISION"
"""The choice that uses the model linked to ``clip_vision`` instead of a folder."""


class CLIPSimilarity(io.ComfyNode):
    """Score a field or mesh by its CLIP similarity to the reference image or prompt, the paper's measure."""

    TITLE = "CLIP Similarity"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerCLIPSimilarity",
            aliases=("evaluate", "score", "metric", "clip score"),
            display_name=cls.TITLE,
            category="MicroDreamer/Evaluation",
            description="CLIP similarity of a result and its reference picture or prompt: the mean over 8 views at eye level, "
            "as in the paper (section VI).",
            is_output_node=True,
            inputs=[
                types.FieldSocket.Input("field", optional=True, tooltip="The result; this or a mesh."),
                mesh_input("mesh", optional=True, tooltip="The result, a mesh or 3D file; this or a field."),
                io.Image.Input("image", optional=True, tooltip="The reference on white; of a batch, the mean counts."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip=f"ComfyUI's model, for images only; then choose {LINKED!r} as clip."
                ),
                io.Combo.Input(
                    "clip",
                    options=[LINKED, *_folders()],
                    default=LINKED,
                    tooltip="A folder with config.json and model.safetensors below models/microdreamer, text_encoders or "
                    "clip_vision.",
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, tooltip="What it should show; empty for no prompt score."
                ),
                io.Int.Input("views", default=VIEWS, min=1, max=1000, tooltip="Views of one turn; the paper has 8."),
                io.Float.Input(
                    "elevation",
                    default=0.0,
                    min=-89.0,
                    max=89.0,
                    step=1.0,
                    tooltip="Degrees above eye level; the paper has 0.",
                ),
                io.Int.Input("size", default=SIZE, min=16, max=2048, tooltip="Side of the views in pixels; the paper has 512."),
            ],
            outputs=[
                io.Float.Output(
                    id="image_score_out", display_name="image_score", tooltip="Mean cosine with the picture; nan without one."
                ),
                io.Float.Output(
                    id="prompt_score_out", display_name="prompt_score", tooltip="Mean cosine with the prompt; nan without one."
                ),
                io.Image.Output(id="views_out", display_name="views", tooltip="The renders that were scored."),
                io.String.Output(id="report_out", display_name="report", tooltip="The scores, and those of every view."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        field: FieldState | None = None,
        mesh: Any = None,
        image: Tensor | None = None,
        clip_vision: Any = None,
        clip: str = LINKED,
        prompt: str = "",
        views: int = VIEWS,
        elevation: float = 0.0,
        size: int = SIZE,
    ) -> io.NodeOutput:
        prompt = prompt.strip()
        if image is None and not prompt:
            raise InputError("There is nothing to compare with, neither image nor prompt; link a picture or write a prompt.")
        result = require_result(field, mesh)
        encoder = _encoder(clip, clip_vision, prompt)
        bar = ProgressBar(views)
        cameras = clip_cameras(*box_of(result), views, size, elevation)
        pictures = render_frames(
            renderer_of(result), cameras, lambda done, total: bar.update_absolute(done, total), interrupt_check
        )
        seen = encoder.embed_images(pictures)
        scores = {
            "image": None if image is None else similarity(seen, encoder.embed_images(image[..., :3])),
            "prompt": None if not prompt else similarity(seen, encoder.embed_texts([prompt])),
        }
        report = "\n".join(_line(name, values) for name, values in scores.items() if values is not None)
        means = [math.nan if values is None else float(values.mean()) for values in scores.values()]
        return io.NodeOutput(*means, pictures, report, ui={"text": [report]})


class HostClip:
    """ComfyUI's CLIP_VISION with the interface of ``Clip``."""

    def __init__(self, model: Any):
        self._model = model

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images [V,H,W,3] in [0,1] as [V,D] unit vectors."""
        return F.normalize(self._model.encode_image(images)["image_embeds"].float().cpu(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Refuse: a CLIP_VISION has no text tower."""
        raise InputError("A CLIP_VISION has no text encoder, got a prompt; choose a folder with a whole CLIP as clip.")


def _encoder(name: str, clip_vision: Any, prompt: str) -> Clip | HostClip:
    if (name == LINKED) != (clip_vision is not None):
        fix = "link one, or choose a folder" if name == LINKED else f"choose {LINKED!r}, or unlink it"
        raise InputError(f"The clip is {name!r} and a CLIP_VISION is {'' if clip_vision else 'not '}linked; {fix}.")
    if clip_vision is not None:
        wrapped = HostClip(clip_vision)
        if prompt:
            wrapped.embed_texts([prompt])
        return wrapped
    folders = _folders()
    if name not in folders:
        raise InputError(f"There is no CLIP {name!r} in the model folders; choose one of the list.")
    clip = load_clip(folders[name])
    # wrapped, because ComfyUI sets attributes that transformers' models have as properties
    load_to_device(manage(nn.ModuleDict({"clip": clip.model})))
    return clip


def _folders() -> dict:
    return {name: path for name, path in model_folders("config.json").items() if clip_kind(path)}


def _line(name: str, values: Tensor) -> str:
    each = " ".join(f"{value:.4f}" for value in values.tolist())
    spread = f" ± {float(values.std()):.4f}" if len(values) > 1 else ""
    return f"CLIP similarity with the {name}: {float(values.mean()):.4f}{spread} over {len(values)} views ({each})"


NODES = (CLIPSimilarity,)
