"""Reconstruction of the field from the denoised images."""

from __future__ import annotations

import weakref
from dataclasses import replace

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.sir.iterations import Iteration
from ..microdreamer_core.sir.stages import fit_views
from ..microdreamer_core.sir.step import Step, reference_elevation
from ..microdreamer_core.util.images import on_white
from . import types
from .compat import Latent, ProgressBar, interrupt_check, io, schema
from .preview import show_pass
from .stream import LiveView
from .types import (
    Conditioned,
    FieldState,
    LastFit,
    check_count,
    check_views,
    condition_input,
    core_call,
    expect,
    expect_condition,
    expect_step,
)


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
            description="Fits the field to the denoised images for I steps (Eq. 8, 12) and counts the iteration as finished. "
            "Images that were enlarged on the way are fitted at their own size.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field before this iteration."),
                types.Rig.Input("cameras", tooltip="Cameras of the images."),
                io.Image.Input(
                    "images",
                    tooltip="Target images from these cameras. Of the model's size, they are fitted at the cameras'; of any "
                    "other, at their own: their height spans the field of view, and wider ones show more at the sides. Alpha "
                    "is laid over white.",
                ),
                condition_input("Provides the reference picture, and the encoder for the latent loss."),
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
        condition: Conditioned | None = None,
        latent: Latent | None = None,
        steps: int = 0,
    ) -> io.NodeOutput:
        state, step = expect(field, FieldState, "field"), expect_step(cameras)
        conditioned, plan = expect_condition(condition, step), step.plan
        steps = steps or step.updates
        diffusion, latents = conditioned.diffusion, None
        _check_field(state, step)
        check_count(images, step, "link DDIM Refine of the same iteration")
        check_views(images, step, "images")
        step = _at_size_of(images, step, diffusion.image_size)
        if plan.loss_space == "latent":
            if latent is None:
                raise InputError("The plan's loss is latent, got no latent; link the latent output of DDIM Refine.")
            check_views(latent["samples"], step, "latents")
            diffusion = conditioned.ready()
            latents = latent["samples"].to(diffusion.device)
        pictures = on_white(images).to(diffusion.device)
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
        done = Iteration(step, result.field, pictures.cpu(), result.losses, evaluations=0)
        sheet = show_pass(done, bar, steps, elevation)
        size = step.cameras.height if step.cameras.height > diffusion.image_size else 0
        after = FieldState(result.field, state.seed, step.k, LastFit(plan, weakref.ref(conditioned), size))
        return io.NodeOutput(after, result.losses[-1], sheet[None], after.next_k >= plan.iterations)


def _check_field(state: FieldState, step: Step) -> None:
    """Refuse a field that does not stand where the cameras' iteration begins.

    Raises:
        InputError: its seed or its number of finished iterations is another one.
    """
    if not state.belongs_to(step):
        raise InputError(
            f"The field ({state.describe()}) is not the one that these cameras were made for (seed {step.seed}, iteration "
            f"{step.k}); link the same field to Sample Cameras and here, in a loop that of SIR Loop Start."
        )


def _at_size_of(images: Tensor, step: Step, model_size: int) -> Step:
    """Return the step with cameras of the images' size, unless that is the model's.

    Raises:
        InputError: the loss is latent, so that the images do not count.
    """
    height, width = images.shape[1:3]
    if (height, width) in ((model_size, model_size), (step.cameras.height, step.cameras.width)):
        return step
    if step.plan.loss_space == "latent":
        raise InputError(
            f"The plan's loss is latent, so images of another size than the model's ({width}x{height}, not {model_size}x"
            f"{model_size}) would have no effect; choose the loss space 'pixel' in SIR Plan Options, or do not resize them."
        )
    return replace(step, cameras=step.cameras.resize(width, height))


NODES = (ReconstructSteps,)
