"""Model loader."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from ..microdreamer_core.checkpoints.load import Dtype, ModelOptions, Variant
from ..microdreamer_core.checkpoints.registry import EMBEDDED, load_model, model_dtype
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.util.devices import to_channels_last
from . import types
from .compat import ADVANCED, checkpoint_paths, compute_device, io, manage, offload_device, schema
from .types import LoadedModel, core_call


class LoadModel(io.ComfyNode):
    """Load a multi-view diffusion checkpoint."""

    TITLE = "Load Multi-View Model"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerLoadModel",
            aliases=("MicroDreamer", "multi-view checkpoint", "mvdream", "imagedream", "zero123", "stable zero123"),
            display_name=cls.TITLE,
            category="MicroDreamer/Model",
            description="Loads a multi-view diffusion model: the pack's own, or MVDream, ImageDream, Zero123 or Stable Zero123 "
            "from models/microdreamer or models/checkpoints.",
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[EMBEDDED, *checkpoint_paths()],
                    default=EMBEDDED,
                    tooltip="'embedded' is the checkpoint that comes with the pack; put files and folders of others into "
                    "models/microdreamer.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(get_args(Variant)),
                    default="auto",
                    optional=True,
                    **ADVANCED,
                    tooltip="Which variant the weights are: pixel or local for ImageDream; plain, xl or stable for Zero123. "
                    "'auto' goes by the file name.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(get_args(Dtype)),
                    default="auto",
                    optional=True,
                    **ADVANCED,
                    tooltip="Precision; 'auto' is float16 for Zero123 on a GPU, else float32, as in the released programs.",
                ),
                io.Boolean.Input(
                    "averages",
                    default=True,
                    optional=True,
                    **ADVANCED,
                    tooltip="Use the EMA weights if the file has them, as the original programs do.",
                ),
                io.Boolean.Input(
                    "low_memory",
                    default=False,
                    optional=True,
                    **ADVANCED,
                    tooltip="Use less GPU memory and more time: one branch of guidance and one view at a time, CLIP on the "
                    "CPU.",
                ),
            ],
            outputs=[
                types.Model.Output(id="model_out", display_name="model", tooltip="The multi-view model, not yet conditioned.")
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls, checkpoint: str, variant: Variant = "auto", dtype: Dtype = "auto", averages: bool = True, low_memory: bool = False
    ) -> io.NodeOutput:
        paths = checkpoint_paths()
        if checkpoint != EMBEDDED and checkpoint not in paths:
            raise InputError(f"There is no checkpoint {checkpoint!r} in models/microdreamer; choose one of the list.")
        name = EMBEDDED if checkpoint == EMBEDDED else str(paths[checkpoint].resolve())
        options = ModelOptions(variant, averages, dtype, low_memory)
        # decided here, because the weights are kept on another device than the one that runs them
        known = str(model_dtype(name, options, compute_device())).removeprefix("torch.")
        # no CUDA graphs: ComfyUI may move the weights between any two calls
        used = replace(options, dtype=known, graphs=False)
        model = load_model(name, offload_device(), used)
        networks = to_channels_last(model.networks(), compute_device())
        return io.NodeOutput(LoadedModel(model, manage(networks), name, options))


NODES = (LoadModel,)
