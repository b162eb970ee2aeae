"""Reconstruction of the field from the denoised images."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.iterations import Iteration
from ..microdreamer_core.sir.stages import fit_views
from ..microdreamer_core.sir.step import Step, reference_elevation
from . import types
from .compat import Latent, ProgressBar, interrupt_check, io, schema
from .preview import show_pass
from .stream import LiveView
from .types import Conditioned, FieldState, core_call, expect, expect_step


class ReconstructSteps(io.ComfyNode):
    """Fit a field to the denoised images for I steps (Eq. 8, 12)."""

    TITLE = "Reconstruct Steps"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerReconstructSteps",
            aliases=("optimize", "fit", "train gaussians"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="Fits the field to the denoised images for I steps (Eq. 8, 12) and counts the iteration as finished.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field before this iteration."),
                types.Rig.Input("cameras", tooltip="Cameras of the images."),
                io.Image.Input("images", tooltip="Target images from these cameras."),
                types.Condition.Input(
                    "condition", tooltip="Provides the reference picture, and the encoder for the latent loss."
                ),
                io.Latent.Input("latent", optional=True, tooltip="Clean latents; needed if the plan's loss is latent."),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="I; 0 takes the plan's, which is larger for the initialisation.",
                ),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The field after this iteration."),
                io.Float.Output(id="loss_out", display_name="loss", tooltip="The last step's loss."),
                io.Image.Output(id="sheet_out", display_name="sheet", tooltip="The field's renders above the targets."),
                io.Boolean.Output(id="finished_out", display_name="finished", tooltip="True after the plan's last iteration."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        field: FieldState,
        cameras: Step | Cameras,
        images: Tensor,
        condition: Conditioned,
        latent: Latent | None = None,
        steps: int = 0,
    ) -> io.NodeOutput:
        state, step = expect(field, FieldState, "field"), expect_step(cameras)
        conditioned, plan = expect(condition, Conditioned, "condition"), step.plan
        steps = steps or step.updates
        diffusion, latents = conditioned.diffusion, None
        if plan.loss_space == "latent":
            if latent is None:
                raise InputError("The plan's loss is latent, got no latent; link the latent output of DDIM Refine.")
            diffusion = conditioned.ready()
            latents = latent["samples"].to(diffusion.device)
        _check_pictures(images, step, diffusion.image_size)
        pictures = images[..., :3].to(diffusion.device)
        elevation = reference_elevation(conditioned.reference)
        bar, view = ProgressBar(steps), LiveView.of_plan(plan, elevation)

        def check() -> None:
            interrupt_check()
            bar.update(1)

        result = fit_views(
            step.with_model(diffusion),
            state.field,
            pictures,
            steps,
            latents=latents,
            reference=conditioned.reference,
            check=check,
            watch=view.hook(),
        )
        done = Iteration(step, result.field, images[..., :3], result.losses, evaluations=0)
        sheet = show_pass(done, bar, steps, elevation)
        after = replace(state, field=result.field, k=step.k)
        return io.NodeOutput(after, result.losses[-1], sheet[None], after.next_k >= plan.iterations)


def _check_pictures(images: Tensor, step: Step, model_size: int) -> None:
    """Refuse images whose size is neither the model's nor the cameras'.

    Raises:
        InputError: they have another size or number.
    """
    allowed = [[len(step.cameras), size, size] for size in (model_size, step.cameras.width)]
    if list(images.shape[:3]) not in allowed:
        raise InputError(
            f"Reconstruction targets must have shape {allowed[0]} to match cameras and model, got {list(images.shape[:3])}; "
            "link DDIM Refine of the same iteration."
        )


NODES = (ReconstructSteps,)
