"""Textures: new ones, views projected onto them, refinement."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.convert.mesh_to_gaussians import Fit, fit_placement
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.fields.texture import TEXTURE_SIZES, TextureField, TextureStart, texture_field
from ..microdreamer_core.io.mesh_files import READABLE
from ..microdreamer_core.job.refine import SAME_OUTLINE, start_texture
from ..microdreamer_core.meshing.align import face_outwards
from ..microdreamer_core.meshing.atlas import lay_out_texture
from ..microdreamer_core.meshing.masks import mask_from_view
from ..microdreamer_core.meshing.project import project_images, project_reference
from ..microdreamer_core.meshing.refine import TextureRefinement, refine_texture
from ..microdreamer_core.meshing.retexture import final_projection
from ..microdreamer_core.render.mesh import render_mesh
from ..microdreamer_core.render.texels import check_images
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.stages import reference_view
from ..microdreamer_core.sir.step import INITIALISATION, Step
from ..microdreamer_core.util.images import resize
from . import types
from .compat import ADVANCED, ProgressBar, interrupt_check, io, mesh_input, model_info_input, notify, schema
from .field import LINKED_MESH, chosen_mesh
from .files import list_files, modification_time, validate_file
from .native import choose_sampler, sampler_inputs
from .native_mesh import placement_of
from .types import (
    Conditioned,
    FieldState,
    check_views,
    core_call,
    expect,
    from_native_mesh,
    rig_of,
    texture_image,
    to_native_mesh,
)
from .widgets import seed_input, setting_input

_LEAST_SIDE = 1024
"""Texels a side, at least, of a texture that is laid out again."""


class NewTexture(io.ComfyNode):
    """Start a run from the texture of a mesh whose geometry stays."""

    TITLE = "New Texture"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerNewTexture",
            aliases=("retexture", "texture mesh", "paint mesh", "restyle", "load glb", "upload"),
            display_name=cls.TITLE,
            category="MicroDreamer/Field",
            description="The texture of any mesh as a field: SIR changes its texels, triangles and texture coordinates stay. "
            "Extract Mesh gives the textured mesh, and Undo Fit brings it back into its own place and size.",
            inputs=[
                mesh_input("mesh", optional=True, tooltip="Any mesh or 3D file, its front towards +z."),
                io.Combo.Input(
                    "file",
                    options=[LINKED_MESH, *list_files(*READABLE)],
                    default=LINKED_MESH,
                    tooltip="A mesh in the input or output folder, in place of a linked one; drop files on the node to upload "
                    "them.",
                ),
                io.Combo.Input(
                    "start",
                    options=list(get_args(TextureStart)),
                    default="mesh",
                    tooltip="mesh: its own colours, which a run changes from iteration 0 on. grey, noise: without them; a run "
                    "then initialises from pure noise.",
                ),
                io.Int.Input(
                    "texture_size",
                    default=1024,
                    min=TEXTURE_SIZES[0],
                    max=TEXTURE_SIZES[1],
                    step=16,
                    tooltip="Texels a side of the square texture.",
                ),
                seed_input(),
                io.Combo.Input(
                    "normalise",
                    options=list(get_args(Fit)),
                    default="auto",
                    tooltip="Centre the mesh and scale its longest side to 1, where the cameras look; 'auto': only if it is "
                    "far from that.",
                    **ADVANCED,
                ),
                types.Condition.Input(
                    "condition",
                    optional=True,
                    tooltip="With the plan: its reference, a picture of the mesh from the front, decides place and size, so "
                    "that the outlines meet. Its model decides the size of the steps.",
                ),
                types.Plan.Input("plan", optional=True, tooltip="Gives the reference's camera; needed only with a condition."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the texture may change, white, in the mesh's texture coordinates; outside, texels stay bit "
                    "for bit.",
                ),
                types.Rig.Input(
                    "cameras",
                    optional=True,
                    tooltip="If the mask was painted on renders of the mesh: the cameras of these renders.",
                ),
                *model_info_input(),
            ],
            outputs=[
                types.FieldSocket.Output(id="field_out", display_name="field", tooltip="The start of a run."),
                types.Transform.Output(id="transform_out", display_name="transform", tooltip="How it was moved, for Undo Fit."),
                io.Mesh.Output(
                    id="mesh_out",
                    display_name="mesh",
                    tooltip="The mesh where the cameras look, e.g. for Control from Renders.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str = LINKED_MESH) -> bool | str:
        """Accept files that are newer than the list shown, too."""
        return validate_file(file, *READABLE, linked=LINKED_MESH)

    @classmethod
    def fingerprint_inputs(cls, file: str = LINKED_MESH, **_: Any) -> float:
        """Make ComfyUI read the file again if it has changed."""
        return modification_time(file, LINKED_MESH)

    @classmethod
    @core_call
    def execute(
        cls,
        mesh: Any = None,
        file: str = LINKED_MESH,
        start: TextureStart = "mesh",
        texture_size: int = 1024,
        seed: int = 0,
        normalise: Fit = "auto",
        condition: Conditioned | None = None,
        plan: SIRPlan | None = None,
        mask: Tensor | None = None,
        cameras: Step | Cameras | None = None,
        model_3d_info: Any = None,
    ) -> io.NodeOutput:
        shape, placement = chosen_mesh(mesh, file), placement_of(model_3d_info)
        placement = placement.then(fit_placement(placement.apply(shape), normalise))
        size, view = _MODEL_SIZE, None
        if condition is not None:
            conditioned = expect(condition, Conditioned, "condition")
            size = conditioned.diffusion.image_size
            view = reference_view(conditioned.reference, expect(plan, SIRPlan, "plan"))
        mask_of = None if mask is None else partial(_texture_mask, mask, cameras)
        given = start_texture(shape, placement, view, texture_size, start, seed, size, mask_of)
        if given.overlap < SAME_OUTLINE:
            notify(f"{cls.TITLE}: the reference's outline is not the mesh's (IoU {given.overlap:.2f}).", "warn")
        state = FieldState(given.field, seed, INITIALISATION if start == "mesh" else None)
        return io.NodeOutput(state, given.placement, to_native_mesh(given.field.mesh))


_MODEL_SIZE = 256
"""Image size in pixels of an unknown model."""


def _texture_mask(mask: Tensor, cameras: Step | Cameras | None, field: TextureField) -> Tensor:
    """[T,T,1] of a MASK in texture coordinates, or on views.

    Raises:
        InputError: a mask in texture coordinates is a batch, or the number of masks is not that of the cameras.
    """
    if cameras is not None:
        return mask_from_view(field.surface, field.texels, rig_of(cameras), mask)
    if len(mask) != 1:
        raise InputError(f"A mask in texture coordinates is one picture, got {len(mask)}; link the cameras of painted views.")
    return resize(mask[..., None].float(), field.size)[0]


class ProjectViews(io.ComfyNode):
    """Project pictures from known cameras onto the texture of a mesh."""

    TITLE = "Project Views"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerProjectViews",
            aliases=("project texture", "bake pictures", "texture projection", "camera projection"),
            display_name=cls.TITLE,
            category="MicroDreamer/Mesh",
            description="Lays pictures of any origin onto a mesh where their cameras see it, blended by viewing angle; unseen "
            "texels near them take the colours of their neighbours on the surface, all others keep theirs.",
            inputs=[
                mesh_input("mesh", tooltip="The mesh or 3D file; one without a texture gets one."),
                io.Image.Input("images", tooltip="One picture for each camera, of any size."),
                types.Rig.Input("cameras", tooltip="From where the pictures are, e.g. of Camera Layout."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the pictures count, white; one for each, or one for all. Without it, wherever they show "
                    "the mesh.",
                ),
                io.Int.Input(
                    "texture_size",
                    default=1024,
                    min=TEXTURE_SIZES[0],
                    max=TEXTURE_SIZES[1],
                    step=16,
                    optional=True,
                    tooltip="Texels a side if the mesh has no texture, or a smaller one.",
                ),
            ],
            outputs=[
                io.Mesh.Output(id="mesh_out", display_name="mesh", tooltip="The mesh with its new texture."),
                io.Image.Output(id="texture_out", display_name="texture", tooltip="The texture."),
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        mesh: Any,
        images: Tensor,
        cameras: Step | Cameras,
        mask: Tensor | None = None,
        texture_size: int = 1024,
    ) -> io.NodeOutput:
        if isinstance(cameras, Step):
            check_views(images, cameras, "images")
        shape = from_native_mesh(mesh)
        placement = fit_placement(shape)
        size = texture_size if shape.texture is None else max(texture_size, *shape.texture.shape[:2])
        laid = texture_field(lay_out_texture(face_outwards(placement.apply(shape)), size), size).mesh
        pictures = images[..., :3].detach().cpu().float()
        rig = rig_of(cameras).to("cpu").resize(pictures.shape[2], pictures.shape[1])
        check_images(rig, pictures)
        if mask is None:
            alpha = render_mesh(laid, rig, supersample=2).alpha
        else:
            alpha = resize(mask.detach().cpu().float()[..., None], *pictures.shape[1:3])
            alpha = alpha.expand(len(pictures), -1, -1, -1) if len(alpha) == 1 else alpha
        if len(alpha) != len(pictures):
            raise InputError(f"There must be one mask, or one for each of {len(pictures)} pictures, got {len(alpha)}.")
        textured = placement.undo(project_images(laid, rig, pictures, alpha))
        return io.NodeOutput(to_native_mesh(textured), texture_image(textured))


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
                seed_input("Seed of the noise."),
                setting_input(TextureRefinement, "strength", step=0.001),
                setting_input(TextureRefinement, "steps"),
                setting_input(TextureRefinement, "views"),
                *sampler_inputs(),
                setting_input(TextureRefinement, "guidance", "guidance_scale", step=0.1, optional=True),
                setting_input(TextureRefinement, "reference_weight", step=0.1, optional=True),
                io.Combo.Input(
                    "method",
                    options=["fit", "project"],
                    default="fit",
                    optional=True,
                    tooltip="fit: gradient steps on the texture. project: the denoised views are laid on, blended by viewing "
                    "angle; sharper, for a texture whose views agree, at a strength of about 0.3.",
                ),
                io.Int.Input(
                    "tiles",
                    default=1,
                    min=1,
                    max=8,
                    optional=True,
                    tooltip="With method project: views are also cut into tiles, 2, then 4 up to this many along a side, each "
                    "denoised at the model's size: detail for textures of 2048 and 4096. For models that know no cameras.",
                    **ADVANCED,
                ),
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
        method: str = "fit",
        tiles: int = 1,
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
        mesh = placement.apply(mesh)
        if mesh.texture is not None:  # of another program, whose parts may share texels
            mesh = lay_out_texture(mesh, max(_LEAST_SIDE, *mesh.texture.shape[:2]))
        bars = {"refine": ProgressBar(1), "texture": ProgressBar(1)}
        hooks = {
            "sampler": choose_sampler(sampler, sigmas),
            "progress": lambda stage, done, total: bars[stage].update_absolute(done, total),
            "check": interrupt_check,
        }
        if method == "project":
            numbers = {"strength": strength, "views": views, "guidance_scale": guidance, "seed": seed}
            zooms = (*(2**i for i in range((tiles - 1).bit_length())), tiles)
            views_of = {"radius": plan.radius, "fov_y": plan.fov_y, "zooms": zooms}
            textured = final_projection(mesh, diffusion, **numbers, **views_of, **hooks)
        else:
            seen = reference_view(conditioned.reference, plan, 2 * diffusion.image_size)
            textured = refine_texture(mesh, diffusion, settings, seed, reference=seen, **hooks)
        textured = placement.undo(project_reference(textured, reference_view(conditioned.reference, plan)))
        return io.NodeOutput(to_native_mesh(textured), texture_image(textured))


NODES = (NewTexture, ProjectViews, RefineTexture)
