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
from .types import Conditioned, Views, check_views, condition_input, core_call, expect_condition, expect_step


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
                condition_input("The conditioned model."),
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
        cameras: Step | Cameras,
        latent: Latent,
        condition: Conditioned | None = None,
        sampler: Any = None,
        sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        step, latents = expect_step(cameras), latent["samples"]
        diffusion = expect_condition(condition, step).ready()
        step = step.with_model(diffusion)
        expected = [len(step.cameras), *diffusion.latent_shape]
        if list(latents.shape) != expected:
            raise InputError(
                f"The latents must have shape {expected} to match cameras and model, got {list(latents.shape)}; "
                "link Hybrid Forward of the same model."
            )
        check_views(latents, step, "latents")
        bar = ProgressBar(step.plan.discretization if step.times is None else step.times.sampling)

        def check() -> None:
            interrupt_check()
            bar.update(1)

        clean, images = denoise_views(step, latents.to(diffusion.device), sampler=choose_sampler(sampler, sigmas), check=check)
        made = Views(step.cameras.c2w)
        return io.NodeOutput(made.note_on(images.cpu()), {"samples": made.note_on(clean.cpu())})


NODES = (DDIMRefine,)
