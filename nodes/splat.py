"""ComfyUI's native splats; these nodes exist only in versions with the SPLAT type.

A native SPLAT has the axes of 3D Gaussian splatting scenes: y down, z away from the viewer. That is a rotation by 180 degrees
about x from this pack's world (y up, the front towards +z), and from ComfyUI's own meshes and cameras.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.gaussians import Gaussians, GaussianSettings, Parameters
from ..microdreamer_core.io.splat_axes import from_file_axes, to_file_axes
from ..microdreamer_core.util.vocabulary import Change
from . import types
from .compat import compute_device, io, schema, splat_class
from .field import change_input, refined_inputs, settings_for
from .types import FieldState, LoadedModel, core_call, expect_gaussians

log = logging.getLogger(__name__)

_SURE = 1e-6  # opacities of 0 and 1 have no logit


class FieldToSplat(io.ComfyNode):
    """Convert a field of Gaussians to a native SPLAT."""

    TITLE = "Field to SPLAT"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldToSplat",
            aliases=("gaussian splatting", "3dgs", "native splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Converts Gaussians for ComfyUI's own splat nodes (Render Splat, Preview Splat, Create 3D File ...), "
            "upright in their world.",
            inputs=[types.FieldSocket.Input("field", tooltip="The Gaussians to convert.")],
            outputs=[io.Splat.Output(id="splat_out", display_name="splat", tooltip="The same Gaussians as a native SPLAT.")],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState) -> io.NodeOutput:
        _, gaussians = expect_gaussians(field, "field")
        return io.NodeOutput(to_native_splat(gaussians))


class FieldFromNativeSplat(io.ComfyNode):
    """Convert a native SPLAT to a field of Gaussians."""

    TITLE = "Field from SPLAT"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldFromNativeSplat",
            aliases=("gaussian splatting", "3dgs", "native splat", "refine splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Converts Gaussians of ComfyUI's own splat nodes, to refine or to mesh them. View-dependent colours "
            "are reduced to their mean.",
            inputs=[
                io.Splat.Input("splat", tooltip="A native SPLAT; of a batch, the first."),
                *refined_inputs(),
                change_input(),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The Gaussians.")],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        splat: Any,
        seed: int = 0,
        initialised: bool = True,
        model: LoadedModel | None = None,
        change: Change = "everything",
    ) -> io.NodeOutput:
        gaussians = from_native_splat(splat, settings_for(model), seed).limit_to(change).to(compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


def to_native_splat(field: Gaussians) -> Any:
    """Convert Gaussians to a native SPLAT of one item: activated values, colour as degree 0 of the spherical harmonics.

    Raises:
        InputError: this ComfyUI has no SPLAT type.
    """
    native = splat_class()
    if native is None:
        raise InputError("This ComfyUI has no SPLAT; update it, or save the splat as a file.")
    parameters = to_file_axes(field.parameters.map(lambda tensor: tensor.detach().cpu()), "-y")
    quats = torch.nn.functional.normalize(parameters.quats, dim=1)
    return native(
        positions=parameters.means[None],
        scales=parameters.log_scales.exp()[None],
        rotations=quats[None],
        opacities=parameters.opacity_logits.sigmoid()[None, :, None],
        sh=parameters.dc[None, :, None],
    )


def from_native_splat(splat: Any, settings: GaussianSettings, seed: int) -> Gaussians:
    """Convert the first item of a native SPLAT to a new field at step 0.

    Gaussians that are not finite, without size or without rotation are dropped with a warning.

    Raises:
        InputError: not a SPLAT, an empty one, or no usable Gaussian in it.
    """
    names = ("positions", "scales", "rotations", "opacities", "sh")
    values = [value for name in names if isinstance(value := getattr(splat, name, None), Tensor)]
    if len(values) < len(names):
        raise InputError(f"A SPLAT has {', '.join(names)}, got {type(splat).__name__}; link a node that makes a splat.")
    counts = getattr(splat, "counts", None)
    count = 0 if not len(values[0]) else values[0].shape[1] if counts is None else int(counts[0])
    if not count:
        raise InputError("The splat is empty: it holds no Gaussians; check the node that made it.")
    means, scales, quats, opacities, sh = (value[0, :count].detach().cpu().float().clone() for value in values)
    if sh.shape[1] > 1:
        log.info("Field from SPLAT keeps degree 0 of %d spherical harmonics: colours do not change with the view.", sh.shape[1])
    logits = opacities.reshape(count).clamp(_SURE, 1 - _SURE).logit()
    parameters = from_file_axes(Parameters(means, scales.log(), quats, logits, sh[:, 0].clone()), "-y")
    usable = torch.cat([value.reshape(count, -1) for value in parameters], 1).isfinite().all(1) & (quats != 0).any(1)
    if not bool(usable.any()):
        raise InputError(f"The splat holds {count} Gaussians, none of them with finite numbers and a size; make it again.")
    if not bool(usable.all()):
        log.warning("Field from SPLAT dropped %d of %d Gaussians, not finite or without size.", int((~usable).sum()), count)
    return Gaussians(parameters.map(lambda tensor: tensor[usable]), settings, seed)


NODES = () if splat_class() is None else (FieldToSplat, FieldFromNativeSplat)
