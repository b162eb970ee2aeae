"""Sampling back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.stages import denoise_views
from ..microdreamer_core.sir.step import Step
from . import types
from .compat import Latent, ProgressBar, interrupt_check, io, schema
from .native import choose_sampler, sampler_inputs
from .types import Conditioned, core_call, expect, expect_step


class DDIMRefine(io.ComfyNode):
    """Denoise latents from t2 to clean images by DDIM or a ComfyUI sampler (Eq. 10)."""

    TITLE = "DDIM Refine"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerDDIMRefine",
            aliases=("denoise", "sample", "ksampler"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="Denoises latents from t2 to clean images (Eq. 10), with DDIM or any ComfyUI SAMPLER.",
            inputs=[
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Rig.Input("cameras", tooltip="Cameras of the latents, with t2."),
                io.Latent.Input("latent", tooltip="Noised latents at t2: the output of Hybrid Forward."),
                *sampler_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    id="images_out", display_name="images", tooltip="The denoised images: targets of the reconstruction."
                ),
                io.Latent.Output(id="latent_out", display_name="latent", tooltip="Their clean latents."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        condition: Conditioned,
        cameras: Step | Cameras,
        latent: Latent,
        sampler: Any = None,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        diffusion = expect(condition, Conditioned, "condition").ready()
        step = expect_step(cameras).with_model(diffusion)
        latents = latent["samples"]
        expected = [len(step.cameras), *diffusion.latent_shape]
        if list(latents.shape) != expected:
            raise InputError(
                f"The latents must have shape {expected} to match cameras and model, got {list(latents.shape)}; "
                "link Hybrid Forward of the same model."
            )
        bar = ProgressBar(step.plan.discretization if step.times is None else step.times.sampling)

        def check() -> None:
            interrupt_check()
            bar.update(1)

        clean, images = denoise_views(step, latents.to(diffusion.device), sampler=choose_sampler(sampler, sigmas), check=check)
        return io.NodeOutput(images.cpu(), {"samples": clean.cpu()})


NODES = (DDIMRefine,)
