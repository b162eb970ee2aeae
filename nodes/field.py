"""Where a run starts, and cleaning where it ends."""

from __future__ import annotations

from dataclasses import replace

from ..microdreamer_core.fields.density_control import final_prune, remove_white
from ..microdreamer_core.fields.gaussians import Gaussians
from ..microdreamer_core.job import gaussian_settings
from . import types
from .compat import compute_device, io, schema
from .types import FieldState, LoadedModel, core_call, expect

RENDERERS = ("auto", "numba", "torch")
SEED_MAX = 0xFFFFFFFFFFFFFFFF


class NewGaussians(io.ComfyNode):
    """A ball of faint grey Gaussians."""

    TITLE = "New Gaussians"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerNewGaussians",
            aliases=("3dgs", "gaussian splatting", "splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="A fresh ball of 3D Gaussians, and the seed from which all draws of the run derive.",
            inputs=[
                types.Model.Input("model", tooltip="Its picture size decides how many Gaussians are worth having."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=True,
                    tooltip="Another seed gives another result; it travels with the field through the whole run.",
                ),
                io.Int.Input(
                    "num_points", default=0, min=0, max=1_000_000, tooltip="Gaussians to start with; 0 suits them to the model."
                ),
                io.Combo.Input(
                    "renderer",
                    options=list(RENDERERS),
                    default="auto",
                    tooltip="What draws the Gaussians; 'auto' takes the fastest that works here.",
                ),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The start of a run.")],
        )

    @classmethod
    @core_call
    def execute(cls, model, seed=0, num_points=0, renderer="auto"):
        return io.NodeOutput(new_gaussians(expect(model, LoadedModel, "model").model.image_size, seed, num_points, renderer))


def new_gaussians(image_size: int, seed: int, num_points: int = 0, renderer: str = "auto") -> FieldState:
    """A fresh run for a model of that picture size; 0 points leaves the number to the core."""
    settings = replace(gaussian_settings(image_size), renderer=renderer)
    if num_points:
        settings = replace(settings, num_points=num_points)
    return FieldState(Gaussians.ball(settings, seed, compute_device()), seed)


class CleanGaussians(io.ComfyNode):
    """The last prune."""

    TITLE = "Clean Gaussians"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerCleanGaussians",
            aliases=("prune", "floaters"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Removes faint and oversized Gaussians, and white ones that float around the object (section V).",
            inputs=[types.FieldSocket.Input("field", tooltip="Finished Gaussians.")],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="Without what does not belong to it.")
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field):
        state = expect(field, FieldState, "field")
        return io.NodeOutput(replace(state, field=remove_white(final_prune(state.field))))


NODES = (NewGaussians, CleanGaussians)
