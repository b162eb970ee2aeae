"""Hints for control networks that are renders of the field itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.mesh import Mesh
from ..microdreamer_core.render.hints import HINTS
from ..microdreamer_core.render.mesh import render_mesh
from ..microdreamer_core.render.protocol import Render
from . import types
from .compat import io, schema
from .native_condition import Branches
from .native_model import NativeDiffusion
from .native_views import Coupling
from .reference import condition_output
from .types import Conditioned, core_call, expect, from_native_mesh


@dataclass(frozen=True)
class Control:
    """A control network, what it is shown, and how much it counts.

    Attributes:
        network: ComfyUI's CONTROL_NET.
        hint: one of ``HINTS``.
        strength: factor of its influence; start, end: shares of sampling between which it works.
        vae: for networks that take latents.
        coupling: of the model's views.
        mesh: rendered in place of the current field.
    """

    network: Any
    hint: str
    strength: float
    start: float
    end: float
    vae: Any
    coupling: Coupling
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
        hints = HINTS[self.hint](render(cameras), cameras).cpu()
        return tuple(self._apply(branches, hints) for branches in conditioning)

    def _apply(self, branches: Branches, hints: Tensor) -> Branches:
        own = self.coupling.join_images(hints if branches.rows is None else hints[list(branches.rows)])
        node = importlib.import_module("nodes").ControlNetApplyAdvanced()
        numbers = self.strength, self.start, self.end
        positive, negative = node.apply_controlnet(
            branches.positive, branches.negative, self.network, own, *numbers, vae=self.vae
        )
        return replace(branches, positive=positive, negative=negative)


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
                io.ControlNet.Input("control_net", tooltip="A control network of the same model, from Load ControlNet Model."),
                io.Combo.Input(
                    "hint",
                    options=list(HINTS),
                    default="depth",
                    tooltip="What the network is shown: inverse depth, normals in the camera's frame, edges, or the render.",
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
        numbers = strength, start_percent, end_percent
        control = Control(control_net, hint, *numbers, inner.model.vae, inner.model.coupling, shown)
        return io.NodeOutput(replace(conditioned, diffusion=ControlledDiffusion(inner, control)))


NODES = (ControlFromRenders,)
