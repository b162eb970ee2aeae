"""The forward process."""

from __future__ import annotations

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.sir.stages import forward_views
from ..microdreamer_core.sir.step import Step
from ..microdreamer_core.util.images import on_white
from . import types
from .compat import interrupt_check, io, schema
from .types import (
    Conditioned,
    Views,
    check_count,
    check_views,
    condition_input,
    core_call,
    expect_condition,
    expect_step,
)


class HybridForward(io.ComfyNode):
    """Encode images and diffuse them to t2 (Eq. 9): noise to t1, then DDIM inversion."""

    TITLE = "Hybrid Forward"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerHybridForward",
            aliases=("add noise", "ddim inversion"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="Diffuses images to noise level t2: adds noise to t1, then inverts with DDIM (Eq. 9). In the "
            "initialisation it gives pure noise. Images of any size are resampled to the model's.",
            inputs=[
                condition_input("The conditioned model."),
                types.Rig.Input("cameras", tooltip="Cameras of the images, with t1 and t2."),
                io.Image.Input(
                    "images",
                    tooltip="The field's renders, or any other images from the same cameras. Of any size: their height spans "
                    "the field of view, and what is wider than the model's square is cut off, narrower is continued; alpha is "
                    "laid over white.",
                ),
            ],
            outputs=[io.Latent.Output(id="latent_out", display_name="latent", tooltip="Noised latents at t2, one per view.")],
        )

    @classmethod
    @core_call
    def execute(cls, cameras: Step | Cameras, images: Tensor, condition: Conditioned | None = None) -> io.NodeOutput:
        step = expect_step(cameras)
        check_count(images, step, "link Render Views of these cameras")
        check_views(images, step, "images")
        step = step.with_model(expect_condition(condition, step).ready())
        latents = forward_views(step, on_white(images), check=interrupt_check)
        return io.NodeOutput({"samples": Views(step.cameras.c2w).note_on(latents.cpu())})


NODES = (HybridForward,)
