"""Hints for control networks that are renders of the field itself."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.mesh import Mesh
from ..microdreamer_core.render.hints import HINTS
from ..microdreamer_core.render.mesh import render_mesh
from ..microdreamer_core.render.protocol import Render
from . import types
from .compat import io, schema
from .native_condition import Branches, Patch
from .native_model import NativeDiffusion, NativeModel
from .reference import condition_output
from .types import Conditioned, core_call, expect, from_native_mesh

_MISFIT = re.compile("shape|size|channels|dimension|'NoneType'|must specify y")
"""What torch and ComfyUI say of tensors that do not fit, or are missing."""


@dataclass(frozen=True)
class Control:
    """A control network, what it is shown, and how much it counts.

    Attributes:
        network: ComfyUI's CONTROL_NET, or MODEL_PATCH of a control network that works inside the model.
        hint: one of ``HINTS``.
        strength: factor of its influence; start, end: shares of sampling between which it works.
        model: the native model; its VAE is for networks that take latents.
        mesh: rendered in place of the current field.
    """

    network: Any
    hint: str
    strength: float
    start: float
    end: float
    model: NativeModel
    mesh: Mesh | None = None

    def apply(
        self, conditioning: tuple[Branches, ...], cameras: Cameras, render: Callable[[Cameras], Render] | None
    ) -> tuple[Branches, ...]:
        """Add the hints of these cameras to both branches of every group, one hint for each view.

        Raises:
            InputError: there is neither a mesh nor a current field.
        """
        if self.mesh is not None:
            render = partial(render_mesh, self.mesh)
        if render is None:
            raise InputError(
                f"{ControlFromRenders.TITLE} renders the current field, got none; link the condition to Sample Cameras as "
                "well, or link a mesh."
            )
        hints, coupling = HINTS[self.hint](render(cameras), cameras).cpu(), self.model.coupling
        if is_patch(self.network):  # such a network takes one picture at a time
            alone = (branches.split(len(cameras), coupling.side) for branches in conditioning)
            conditioning = tuple(branches for group in alone for branches in group)
        add = self._patch if is_patch(self.network) else self._apply
        return tuple(
            add(branches, coupling.join_images(hints if branches.rows is None else hints[list(branches.rows)]))
            for branches in conditioning
        )

    def _apply(self, branches: Branches, hints: Tensor) -> Branches:
        node, masks = importlib.import_module("nodes").ControlNetApplyAdvanced(), {}
        if self.hint == "inpaint" and getattr(self.network, "concat_mask", False):
            masks = {"extra_concat": [1 - _hidden(hints)[:, None]]}
            hints = hints.clamp_min(0)
        texts, numbers = (branches.positive, branches.negative), (self.strength, self.start, self.end)
        positive, negative = node.apply_controlnet(*texts, self.network, hints, *numbers, vae=self.model.vae, **masks)
        return replace(branches, positive=positive, negative=negative)

    def _patch(self, branches: Branches, hint: Tensor) -> Branches:
        node = importlib.import_module("comfy_extras.nodes_model_patch").QwenImageDiffsynthControlnet()
        given: dict[str, Any] = {"image": hint.clamp_min(0)}
        if self.hint == "inpaint":
            known = given.pop("image")
            # Z-Image's union network takes the picture to fill in beside the hint
            beside = type(self.network.model).__name__ == "ZImage_Control"
            given = {"mask": _hidden(hint), **({"image": None, "inpaint_image": known} if beside else {"image": known})}
        with torch.inference_mode():
            patched = node.diffsynth_controlnet(
                self.model.patcher, self.network, self.model.vae, strength=self.strength, **given
            )[0]
        sampling = self.model.patcher.get_model_object("model_sampling")
        highest, lowest = (float(sampling.percent_to_sigma(share)) for share in (self.start, self.end))
        before, after = (_patches_of(model) for model in (self.model.patcher, patched))
        added = (
            Patch(kind, patch, lowest, highest)
            for kind, patches in after.items()
            for patch in patches[len(before.get(kind, ())) :]
        )
        return replace(branches, patches=(*branches.patches, *added))


def _patches_of(patcher: Any) -> dict[str, list]:
    return patcher.model_options["transformer_options"].get("patches", {})


def is_patch(network: Any) -> bool:
    """Whether a control network is a MODEL_PATCH, not a CONTROL_NET."""
    return not hasattr(network, "set_cond_hint")


def _hidden(hints: Tensor) -> Tensor:
    """The mask [V,H,W] of what an inpainting hint leaves out."""
    return (hints[..., 0] < 0).float()


class ControlledDiffusion(NativeDiffusion):
    """A native diffusion model that is also shown renders of the object itself (``HintedDiffusion``)."""

    def __init__(self, inner: NativeDiffusion, control: Control):
        super().__init__(inner.model, inner.views)
        self._inner, self._control = inner, control

    def condition(self, cameras: Cameras) -> tuple[Branches, ...]:
        """Condition on renders of the control's mesh.

        Raises:
            InputError: it has none.
        """
        return self.condition_on(cameras, None)

    def denoised(self, latents: Tensor, t: int, conditioning: tuple[Branches, ...], guidance_scale: float) -> Tensor:
        """Estimate x0 as ``NativeDiffusion`` does.

        Raises:
            InputError: the control network is another model family's.
        """
        try:
            return super().denoised(latents, t, conditioning, guidance_scale)
        except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError) or not _MISFIT.search(str(error)):
                raise
            raise InputError(
                f"The control network is another family's than the model, got {self.model.kind} ({error!s:.90}); load one that "
                "was trained for this model."
            ) from error

    def condition_on(self, cameras: Cameras, render: Callable[[Cameras], Render] | None) -> tuple[Branches, ...]:
        """Condition on renders of the current object, at the model's size."""
        inner = self._inner
        below = inner.condition_on(cameras, render) if isinstance(inner, ControlledDiffusion) else inner.condition(cameras)
        return self._control.apply(below, cameras.resize(self.image_size), render)


class ControlFromRenders(io.ComfyNode):
    """Show a control network renders of the field that is being optimised, one hint for each view."""

    TITLE = "Control from Renders"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerControlFromRenders",
            aliases=("controlnet", "depth", "normal", "canny", "tile", "hint"),
            display_name=cls.TITLE,
            category="MicroDreamer/Condition",
            description="Adds a CONTROL_NET to a condition of a native model. Its hints are renders of the current field, or "
            "of a mesh, from the cameras of every iteration.",
            inputs=[
                types.Condition.Input("condition", tooltip="A condition of Model from ComfyUI, also with other controls."),
                io.MultiType.Input(
                    "control_net",
                    types=[io.ControlNet, io.Custom("MODEL_PATCH")],
                    tooltip="A control network of the same model, from Load ControlNet Model, or from Load Model Patch for "
                    "Qwen-Image (DiffSynth) and Z-Image (Fun union).",
                ),
                io.Combo.Input(
                    "hint",
                    options=list(HINTS),
                    default="depth",
                    tooltip="What the network is shown: inverse depth, normals in the camera's frame, edges, the render, or "
                    "all but the object, which it has to fill in.",
                ),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01, tooltip="Factor of its influence."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="Share of sampling at which it begins."
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Share of sampling at which it ends."
                ),
                io.Mesh.Input(
                    "mesh", optional=True, tooltip="Rendered in place of the current field, as it is, in every iteration."
                ),
            ],
            outputs=[condition_output()],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        condition: Conditioned,
        control_net: Any,
        hint: str = "depth",
        strength: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mesh: Any = None,
    ) -> io.NodeOutput:
        conditioned = expect(condition, Conditioned, "condition")
        inner = conditioned.diffusion
        if not isinstance(inner, NativeDiffusion):
            raise InputError(f"A CONTROL_NET needs a condition of Model from ComfyUI, got one of {conditioned.source.name!r}.")
        if hint not in HINTS:
            raise InputError(f"hint must be one of {', '.join(HINTS)}, got {hint!r}.")
        if not start_percent <= end_percent:
            raise InputError(f"The control must begin before it ends, got {start_percent} to {end_percent}.")
        shown = None if mesh is None else from_native_mesh(mesh)
        control = Control(control_net, hint, strength, start_percent, end_percent, inner.model, shown)
        return io.NodeOutput(replace(conditioned, diffusion=ControlledDiffusion(inner, control)))


NODES = (ControlFromRenders,)
