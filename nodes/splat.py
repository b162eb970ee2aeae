"""The host's native splats; these nodes exist only where the host has the type.

A native SPLAT lies as 3D Gaussian splatting stores its scenes: y down, z away from the viewer. That is half a turn about the x
axis from our world (y up, the front towards +z), and from the host's own meshes and cameras.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.gaussians import Gaussians, GaussianSettings, Parameters
from ..microdreamer_core.io.ply import from_splat_axes, to_splat_axes
from . import types
from .compat import compute_device, io, schema, splat_class
from .field import refined_inputs, settings_for
from .types import FieldState, LoadedModel, core_call, expect_gaussians

log = logging.getLogger(__name__)

_SURE = 1e-6  # opacities of 0 and 1 have no logit


class FieldToSplat(io.ComfyNode):
    """Gaussians for the host's own splat nodes."""

    TITLE = "Field to SPLAT"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldToSplat",
            aliases=("gaussian splatting", "3dgs", "native splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Output",
            description="Hands the Gaussians to the host's own splat nodes (Render Splat, Preview Splat, Create 3D File ...), "
            "upright in their world.",
            inputs=[types.FieldSocket.Input("field", tooltip="The Gaussians to hand over.")],
            outputs=[io.Splat.Output(id="splat_out", display_name="splat", tooltip="The same Gaussians as a native SPLAT.")],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState) -> io.NodeOutput:
        _, gaussians = expect_gaussians(field, "field")
        return io.NodeOutput(to_native_splat(gaussians))


class FieldFromNativeSplat(io.ComfyNode):
    """Gaussians of the host's own splat nodes."""

    TITLE = "Field from SPLAT"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerFieldFromNativeSplat",
            aliases=("gaussian splatting", "3dgs", "native splat", "refine splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="Takes Gaussians from the host's own splat nodes, to refine or to mesh them. Colours that change with "
            "the view are reduced to their mean.",
            inputs=[
                io.Splat.Input("splat", tooltip="A native SPLAT; of a batch, the first."),
                *refined_inputs(),
            ],
            outputs=[types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The Gaussians.")],
        )

    @classmethod
    @core_call
    def execute(cls, splat: Any, seed: int = 0, initialised: bool = True, model: LoadedModel | None = None) -> io.NodeOutput:
        gaussians = from_native_splat(splat, settings_for(model), seed).to(compute_device())
        return io.NodeOutput(FieldState(gaussians, seed, -1 if initialised else None))


def to_native_splat(field: Gaussians) -> Any:
    """A native SPLAT of one item: activated values, colour as degree 0 of the spherical harmonics.

    Raises:
        InputError: the host has no such type.
    """
    native = splat_class()
    if native is None:
        raise InputError("This ComfyUI has no SPLAT; update it, or save the splat as a file.")
    parameters = to_splat_axes(field.parameters.map(lambda tensor: tensor.detach().cpu()))
    quats = torch.nn.functional.normalize(parameters.quats, dim=1)
    return native(
        positions=parameters.means[None],
        scales=parameters.log_scales.exp()[None],
        rotations=quats[None],
        opacities=parameters.opacity_logits.sigmoid()[None, :, None],
        sh=parameters.dc[None, :, None],
    )


def from_native_splat(splat: Any, settings: GaussianSettings, seed: int) -> Gaussians:
    """The first item of a native SPLAT as a new field, which starts with step 0.

    Gaussians with numbers that are not finite, without size or without rotation are dropped with a warning.

    Raises:
        InputError: not a SPLAT, an empty one, or nothing usable in it.
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
    parameters = from_splat_axes(Parameters(means, scales.log(), quats, logits, sh[:, 0].clone()))
    usable = torch.cat([value.reshape(count, -1) for value in parameters], 1).isfinite().all(1) & (quats != 0).any(1)
    if not bool(usable.any()):
        raise InputError(f"The splat holds {count} Gaussians, none of them with finite numbers and a size; make it again.")
    if not bool(usable.all()):
        log.warning("Field from SPLAT dropped %d of %d Gaussians, not finite or without size.", int((~usable).sum()), count)
    return Gaussians(parameters.map(lambda tensor: tensor[usable]), settings, seed)


NODES = () if splat_class() is None else (FieldToSplat, FieldFromNativeSplat)
