"""The forward process."""

from __future__ import annotations

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.stages import forward_views
from ..microdreamer_core.sir.step import Step
from . import types
from .compat import interrupt_check, io, schema
from .types import Conditioned, core_call, expect, expect_step


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
            "initialisation it gives pure noise.",
            inputs=[
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Rig.Input("cameras", tooltip="Cameras of the images, with t1 and t2."),
                io.Image.Input("images", tooltip="The field's renders, or any other images from the same cameras."),
            ],
            outputs=[io.Latent.Output(id="latent_out", display_name="latent", tooltip="Noised latents at t2, one per view.")],
        )

    @classmethod
    @core_call
    def execute(cls, condition: Conditioned, cameras: Step | Cameras, images: Tensor) -> io.NodeOutput:
        diffusion = expect(condition, Conditioned, "condition").ready()
        step = expect_step(cameras).with_model(diffusion)
        allowed = [[len(step.cameras), size, size] for size in (diffusion.image_size, step.cameras.width)]
        if list(images.shape[:3]) not in allowed:
            raise InputError(
                f"The pictures must have shape {allowed[0]} to match cameras and model, got {list(images.shape[:3])}; "
                "link Render Views or scale them."
            )
        latents = forward_views(step, images[..., :3], check=interrupt_check)
        return io.NodeOutput({"samples": latents.cpu()})


NODES = (HybridForward,)
