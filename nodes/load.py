"""Fields from files."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ..microdreamer_core.fields.place import fit_splats, move_gaussians
from ..microdreamer_core.io.splats import ONLY_SPLATS, READABLE, read_splat
from ..microdreamer_core.mesh import Fit
from ..microdreamer_core.util.vocabulary import UPS, Change, Up
from . import types
from .compat import compute_device, io, schema
from .field import change_input, refined_inputs, settings_for
from .files import choose_file, file_inputs, modification_time, validate_file
from .states import STATE_SUFFIX, load_field
from .types import FieldState, LoadedModel, core_call


class LoadSplat(io.ComfyNode):
    """Read Gaussians from a splat file as a field."""

    TITLE = "Field from Splat"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldFromSplat",
            aliases=("load splat", "load ply", "3dgs", "spz", "ksplat", "supersplat", "point cloud"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Reads 3D Gaussians from a file in the input or output folder, to refine or to mesh them.",
            inputs=[
                *file_inputs(
                    (".ply", *ONLY_SPLATS),
                    "3D Gaussians as .ply (also SuperSplat's compressed.ply, 2D Gaussians, coloured points), .spz, .splat, "
                    ".ksplat or .glb; those of samples/ come with the pack.",
                ),
                *refined_inputs(),
                io.Combo.Input(
                    "up",
                    options=["auto", *UPS],
                    default="auto",
                    optional=True,
                    tooltip="Up axis of the file: -y in 3D Gaussian splatting scenes, +y in some programs that make objects, "
                    "+z in Blender; 'auto' takes what the file says (glb: +y), otherwise -y.",
                ),
                io.Combo.Input(
                    "normalise",
                    options=list(get_args(Fit)),
                    default="auto",
                    optional=True,
                    tooltip="Centre the Gaussians and scale their longest side to 1, where the cameras look; 'auto': only if "
                    "they are far from that.",
                ),
                change_input(),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The Gaussians.")],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return validate_file(file, *READABLE)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return modification_time(file)

    @classmethod
    @core_call
    def execute(
        cls,
        file: str,
        seed: int = 0,
        initialised: bool = True,
        path: str | None = None,
        model: LoadedModel | None = None,
        up: Up | Literal["auto"] = "auto",
        normalise: Fit = "auto",
        change: Change = "everything",
    ) -> io.NodeOutput:
        chosen, way = choose_file(file, path, *READABLE), None if up == "auto" else up
        gaussians = read_splat(chosen, settings_for(model), seed, way).limit_to(change)
        gaussians = move_gaussians(gaussians, fit_splats(gaussians.splats(), normalise)).to(compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


class LoadState(io.ComfyNode):
    """Read a saved run, to continue it."""

    TITLE = "SIR Load State"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerLoadState",
            aliases=("load state", "resume", "continue run"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Reads a field saved by Save State, an interrupted run or the command line, to continue its run.",
            inputs=[
                *file_inputs((STATE_SUFFIX,), "A saved state in the output or input folder."),
            ],
            outputs=[
                types.FieldSocket.Output(
                    id="field_out", display_name="field", tooltip="The field with its seed and iteration count."
                ),
                io.Int.Output(
                    id="k_out", display_name="k", tooltip="Its last finished iteration; -1 after the initialisation, -2 before."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return validate_file(file, STATE_SUFFIX)

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return modification_time(file)

    @classmethod
    @core_call
    def execute(cls, file: str, path: str | None = None) -> io.NodeOutput:
        state = load_field(choose_file(file, path, STATE_SUFFIX), compute_device())
        return io.NodeOutput(state, state.next_k - 1)


NODES = (LoadSplat, LoadState)
