"""Model loader."""

from __future__ import annotations

from torch import nn

from ..microdreamer_core.errors import InputError
from . import types
from .compat import checkpoint_files, checkpoint_path, io, managed, schema
from .types import LoadedModel, core_call

EMBEDDED = "embedded"


class LoadModel(io.ComfyNode):
    """Reads a multi-view checkpoint."""

    TITLE = "Load Multi-View Model"

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MicroDreamerLoadModel",
            aliases=("MicroDreamer", "multi-view checkpoint", "mvdream", "zero123"),
            display_name=cls.TITLE,
            category="MicroDreamer/Model",
            description="Loads a multi-view diffusion model: the pack's own, or a file from models/microdreamer.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[EMBEDDED, *checkpoint_files()],
                    default=EMBEDDED,
                    tooltip="'embedded' is the checkpoint that comes with the pack; others lie in models/microdreamer.",
                )
            ],
            outputs=[
                types.Model.Output(id="model_out", display_name="model", tooltip="The multi-view model, not yet conditioned.")
            ],
        )

    @classmethod
    @core_call
    def execute(cls, checkpoint):
        from ..microdreamer_core.diffusion.embedded.checkpoint import SHIPPED
        from ..microdreamer_core.diffusion.embedded.model import EmbeddedModel

        if checkpoint != EMBEDDED and checkpoint not in checkpoint_files():
            raise InputError(f"There is no checkpoint {checkpoint!r} in models/microdreamer; choose one of the list.")
        model = EmbeddedModel.load(SHIPPED if checkpoint == EMBEDDED else checkpoint_path(checkpoint))
        parts = nn.ModuleDict({"codec": model.codec, "denoiser": model.denoiser})
        return io.NodeOutput(LoadedModel(model, managed(parts), checkpoint))


NODES = (LoadModel,)
