"""Texture refinement."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..microdreamer_core.convert.mesh_to_gaussians import fit_placement
from ..microdreamer_core.meshing.project import project_reference
from ..microdreamer_core.meshing.refine import TextureRefinement, refine_texture
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.stages import reference_view
from . import types
from .compat import ProgressBar, interrupt_check, io, mesh_input, schema
from .field import SEED_MAX
from .native import choose_sampler, sampler_inputs
from .types import Conditioned, core_call, expect, from_native_mesh, texture_image, to_native_mesh
from .widgets import setting_input


class RefineTexture(io.ComfyNode):
    """Refine a mesh's texture by one SIR iteration, then project the reference onto it."""

    TITLE = "SIR Refine Texture"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerRefineTexture",
            aliases=("refine texture", "texture", "upscale texture"),
            display_name=cls.TITLE,
            category="MicroDreamer/Mesh",
            description="One iteration on the texture with fixed geometry: render, add noise, denoise, fit (section V); then "
            "the reference itself is projected onto the texture at full size.",
            inputs=[
                mesh_input("mesh", tooltip="A textured mesh or 3D file, of any size and place."),
                types.Condition.Input("condition", tooltip="The conditioned model."),
                types.Plan.Input("plan", tooltip="Camera distance, field of view, and whether the reference is used."),
                io.Int.Input("seed", default=0, min=0, max=SEED_MAX, control_after_generate=True, tooltip="Seed of the noise."),
                setting_input(TextureRefinement, "strength", step=0.001),
                setting_input(TextureRefinement, "steps"),
                setting_input(TextureRefinement, "views"),
                *sampler_inputs(),
                setting_input(TextureRefinement, "guidance", "guidance_scale", step=0.1, optional=True),
                setting_input(TextureRefinement, "reference_weight", step=0.1, optional=True),
            ],
            outputs=[
                io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The mesh with its refined texture."),
                io.Image.Output(id="texture_out", display_name="texture", tooltip="The texture."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        mesh: Any,
        condition: Conditioned,
        plan: SIRPlan,
        seed: int = 0,
        strength: float = 0.181,
        steps: int = 30,
        views: int = 8,
        sampler: Any = None,
        sigmas: Tensor | None = None,
        guidance: float = 2.0,
        reference_weight: float = 8.0,
    ) -> io.NodeOutput:
        conditioned, plan = expect(condition, Conditioned, "condition"), expect(plan, SIRPlan, "plan")
        diffusion = conditioned.ready()
        settings = TextureRefinement.suited_to(
            diffusion.image_size,
            plan.radius,
            plan.fov_y,
            views=views,
            strength=strength,
            guidance_scale=guidance,
            reference_weight=reference_weight,
            steps=steps,
        )
        mesh = from_native_mesh(mesh)
        placement = fit_placement(mesh)
        bars = {"refine": ProgressBar(1), "texture": ProgressBar(1)}
        textured = refine_texture(
            placement.apply(mesh),
            diffusion,
            settings,
            seed,
            reference=reference_view(conditioned.reference, plan, 2 * diffusion.image_size),
            sampler=choose_sampler(sampler, sigmas),
            progress=lambda stage, done, total: bars[stage].update_absolute(done, total),
            check=interrupt_check,
        )
        textured = placement.undo(project_reference(textured, reference_view(conditioned.reference, plan)))
        return io.NodeOutput(to_native_mesh(textured), texture_image(textured))


NODES = (RefineTexture,)
