"""Renders of a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.protocol import WHITE, Field
from ..microdreamer_core.job.outputs import centre_result, extent_of, renderer_of
from ..microdreamer_core.mesh import Mesh
from ..microdreamer_core.render.hints import depth_hint, normal_hint
from ..microdreamer_core.render.protocol import Render
from ..microdreamer_core.sir.stages import render_views
from ..microdreamer_core.sir.step import Step
from . import types
from .compat import io, schema
from .types import FieldState, Views, core_call, expect, expect_step, from_native_mesh, rig_of


class RenderViews(io.ComfyNode):
    """Render a field from cameras (Eq. 7)."""

    TITLE = "SIR Render Views"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerRenderViews",
            aliases=("render views", "rasterize", "render splat"),
            display_name=cls.TITLE,
            category="MicroDreamer/Stages",
            description="Renders the field from the cameras (Eq. 7), with coverage, depth and normals.",
            inputs=[
                types.FieldSocket.Input("field", tooltip="The field to render."),
                types.Rig.Input("cameras", tooltip="From where."),
            ],
            outputs=[
                io.Image.Output(
                    id="images_out",
                    display_name="images",
                    tooltip="One image per camera, on the plan's background.",
                ),
                io.Mask.Output(id="mask_out", display_name="mask", tooltip="Coverage."),
                io.Image.Output(
                    id="depth_out", display_name="depth", tooltip="Expected depth, the nearest white, the farthest black."
                ),
                io.Image.Output(
                    id="inverse_depth_out",
                    display_name="inverse depth",
                    tooltip="1 / depth, as depth control networks expect it: the nearest white, the background black.",
                ),
                io.Image.Output(
                    id="normal_out",
                    display_name="normal",
                    tooltip="Normals in the camera's frame, as control networks expect them.",
                ),
            ],
        )

    @classmethod
    @core_call
    def execute(cls, field: FieldState, cameras: Step | Cameras) -> io.NodeOutput:
        state = expect(field, FieldState, "field")
        if isinstance(cameras, Cameras):
            render = state.field.render(cameras, WHITE)
            images = render.rgb.cpu()
        else:
            step = expect_step(cameras)
            render = render_views(step, state.field)
            stranger = "" if state.belongs_to(step) else state.describe()
            images = Views(step.cameras.c2w, stranger).note_on(render.rgb.cpu())
        hints = (hint(render, rig_of(cameras)).cpu() for hint in (depth_hint, normal_hint))
        return io.NodeOutput(images, render.alpha[..., 0].cpu(), depth_picture(render).cpu(), *hints)


def depth_picture(render: Render) -> Tensor:
    """Convert depth to grey [V,H,W,3]: 1 at the nearest covered point of all views, 0 at the farthest and on the background."""
    covered = render.alpha > 0.5
    depth = render.depth / render.alpha.clamp_min(1e-6)
    if not bool(covered.any()):
        return depth.new_zeros(*depth.shape[:3], 3)
    near, far = depth[covered].min(), depth[covered].max()
    grey = ((far - depth) / (far - near).clamp_min(1e-6)).clamp(0, 1) * covered
    return grey.expand(-1, -1, -1, 3)


def viewer(field: FieldState | None, mesh: Any) -> tuple[Callable[[Cameras], Tensor], float]:
    """Return (cameras -> [V,H,W,3], extent) for the linked field or native mesh.

    Raises:
        InputError: both are linked, or none.
    """
    result = require_result(field, mesh)
    return renderer_of(result), extent_of(result)


def require_result(field: FieldState | None, mesh: Any) -> Field | Mesh:
    """Return the linked field or mesh; what lies far from the origin, or is of another size, is moved to where cameras look.

    Raises:
        InputError: both are linked, or none.
    """
    if (field is None) == (mesh is None):
        raise InputError(f"Either a field or a mesh is rendered, got {'none' if field is None else 'both'}; link exactly one.")
    return centre_result(from_native_mesh(mesh) if field is None else expect(field, FieldState, "field").field)


NODES = (RenderViews,)
