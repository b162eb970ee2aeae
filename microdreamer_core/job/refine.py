"""Jobs that begin with something that exists: Gaussians to refine at low noise, a mesh to texture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras
from ..checkpoints.registry import EMBEDDED, load_model, model_spec
from ..convert.mesh_to_gaussians import fit_placement
from ..errors import InputError
from ..fields.gaussians import Gaussians
from ..fields.place import fit_splats, move_gaussians
from ..fields.protocol import Field
from ..fields.texture import TextureField, TextureStart, texture_field
from ..io.mesh_files import read_mesh
from ..io.splats import read_splat
from ..io.video import write_contact_sheet
from ..mesh import Mesh, Placement
from ..meshing.align import align_to_reference, face_outwards
from ..meshing.atlas import lay_out_texture
from ..reference import ReferenceView
from ..sir.hooks import Hooks
from ..sir.iterations import Iteration
from ..sir.stages import reference_view
from ..sir.start import gaussian_settings, texture_settings
from ..sir.step import INITIALISATION
from ..util.devices import choose_device
from ..util.seeds import generator
from ..util.vocabulary import Change, Up
from .outputs import extent_of, film_cameras, renderer_of
from .run import Job, clean_field, job_from_image, job_from_prompt, run_sir

log = logging.getLogger(__name__)

LOW_NOISE: dict[str, Any] = {"iterations": 8, "t2_start": 0.5, "t2_end": 0.2}
"""The plan of a refinement where nothing else is asked for: enough noise for details, too little for another object."""
RETEXTURE: dict[str, Any] = {"init_steps": 15, "t2_start": 0.8, "t2_end": 0.3, "loss": "l2"}
"""The plan of a new texture where nothing else is asked for: the first views are new, the last ones agree. With the squared
loss the steps on texels, which solve a least-squares problem, leave no ripples."""
SAME_OUTLINE = 0.8
"""IoU of a mesh's outline with the reference's from which the reference's colours are taken as the mesh's."""
_SHEET_VIEWS, _SHEET_SIZE = 4, 256


def choose_refinement(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of a job that refines a splat: without a preset, those of ``LOW_NOISE`` where none are given."""
    usual = LOW_NOISE
    if choices.get("model", EMBEDDED) == EMBEDDED and choices.get("representation") is None:
        usual = {**LOW_NOISE, "preset": "embedded-high"}  # four noise levels are too few for so narrow a range
    return _fill_in(choices, usual)


def choose_retexture(choices: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of a job that retextures a mesh: without a preset, those of ``RETEXTURE`` where none are given."""
    return _fill_in(choices, RETEXTURE)


def _fill_in(choices: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    if choices.get("preset") is not None:
        return choices
    return {**choices, **{name: value for name, value in usual.items() if choices.get(name) is None}}


def job_to_refine(
    splat: Path,
    image: Path | Tensor | None = None,
    mask: Path | Tensor | None = None,
    *,
    change: Change = "everything",
    up: Up | None = None,
    prompt: str | None = None,
    elevation: float = 0.0,
    matting: bool = False,
    **choices: Any,
) -> Job:
    """Plan the refinement of a splat whose front is towards +z.

    It is moved to the origin and scaled to 1 if it is far from that.

    Args:
        splat: 3D Gaussians in any format that ``read_splat`` reads, of any place and size.
        image: of the object, and what else ``job_from_image`` takes; None for a model that takes a prompt alone.
        change: what may change of the Gaussians.
        up: up axis of the file.
        choices: as for ``job_from_prompt``; without a preset, the plan is the model's with ``LOW_NOISE``.

    Raises:
        InputError: the file holds no Gaussians, the plan is for a NeRF, there is neither image nor prompt, or as for
            ``job_from_image``.
    """
    job = _job_about(image, mask, prompt, elevation, matting, choose_refinement(choices))
    if job.plan.representation != Gaussians.kind:
        raise InputError(f"A splat is refined as Gaussians, got a plan for {job.plan.representation}; choose another preset.")
    settings = gaussian_settings(model_spec(job.model, job.options).size)
    given = read_splat(splat, settings, job.seed, up).limit_to(change)
    placement = fit_splats(given.splats())
    start = move_gaussians(given, placement).to(choose_device(job.device))
    return replace(job, start=start, first=0, placement=placement)


def job_to_retexture(
    mesh: Path,
    image: Path | Tensor | None = None,
    mask: Path | Tensor | None = None,
    *,
    start: TextureStart = "mesh",
    texture_size: int = 1024,
    prompt: str | None = None,
    elevation: float = 0.0,
    matting: bool = False,
    **choices: Any,
) -> Job:
    """Plan a new texture for a mesh, whose front faces +z; ``make_asset`` runs it and keeps geometry and uvs.

    The mesh is moved to where the cameras look, and with an image, to where its outline is the image's.

    Args:
        mesh: a file of triangles.
        image: of the mesh as it should look, and what else ``job_from_image`` takes; None for a model that takes a prompt
            alone. If its outline is not the mesh's, it conditions the model but is not painted on.
        start: what the texture starts from; grey and noise begin with an initialisation from pure noise.
        choices: as for ``job_from_prompt``; without a preset, the plan is the model's with ``RETEXTURE``.

    Raises:
        InputError: the file holds no mesh that can be textured, there is neither image nor prompt, or as for
            ``job_from_image``.
    """
    shape = read_mesh(mesh)
    job = _job_about(image, mask, prompt, elevation, matting, choose_retexture(choices))
    view = reference_view(job.reference, job.plan)
    size = model_spec(job.model, job.options).size
    given = start_texture(shape, fit_placement(shape), view, texture_size, start, job.seed, size)
    plan = job.plan
    if given.overlap < SAME_OUTLINE:
        log.warning("The picture's outline is not the mesh's (IoU %.2f): it guides, but is not painted on.", given.overlap)
        plan = replace(plan, ref_color_weight=0.0, ref_opacity_weight=0.0, ref_paint_weight=0.0)
    first = 0 if start == "mesh" else INITIALISATION
    return replace(job, plan=plan, start=given.field, first=first, placement=given.placement)


@dataclass(frozen=True)
class TextureOfMesh:
    """The texture of a given mesh as the start of a run.

    Attributes:
        field: on the mesh where the cameras look.
        placement: how the mesh came there.
        overlap: IoU of its outline with the reference's; 1 without a reference.
    """

    field: TextureField
    placement: Placement
    overlap: float


def start_texture(
    mesh: Mesh,
    placement: Placement,
    view: ReferenceView | None,
    size: int,
    start: TextureStart,
    seed: int,
    image_size: int,
    mask_of: Callable[[TextureField], Tensor] | None = None,
) -> TextureOfMesh:
    """Make the texture of any mesh a field, with the mesh where the cameras look and its outline where the reference's is.

    Args:
        placement: of the mesh to where the cameras look, before it is aligned with the reference.
        size: T, texels a side.
        seed: of the start "noise".
        image_size: pixels of the model's images, which decide the steps.
        mask_of: returns the [T,T,1] mask of what may change.

    Raises:
        InputError: the mesh has no faces with an area, or size or start are not possible.
    """
    overlap = 1.0
    if view is not None:
        aligned, overlap = align_to_reference(placement.apply(mesh), view)
        placement = placement.then(aligned)
    laid = lay_out_texture(face_outwards(placement.apply(mesh)), size)
    field = texture_field(laid, size, start, generator(seed, INITIALISATION, "texture"), settings=texture_settings(image_size))
    if mask_of is not None:
        rng = generator(seed, INITIALISATION, "texture")
        field = texture_field(laid, size, start, rng, mask_of(field), field.settings)
    return TextureOfMesh(field, placement, overlap)


def _job_about(
    image: Path | Tensor | None,
    mask: Path | Tensor | None,
    prompt: str | None,
    elevation: float,
    matting: bool,
    choices: dict[str, Any],
) -> Job:
    if image is not None:
        return job_from_image(image, mask, elevation=elevation, matting=matting, prompt=prompt, **choices)
    if prompt is None:
        raise InputError("There must be a picture or a prompt of what it should look like, got none; give one.")
    return job_from_prompt(prompt, **choices)


def refine_field(
    job: Job,
    *,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Field:
    """Run SIR from the job's start field, and clean the result unless its shape was not to change.

    Args:
        on_iteration, on_stage: as for ``make_asset``.

    Raises:
        InputError: the model does not fit the plan.
        NumericalError: a NaN or infinity; the message names iteration and stage.
    """

    def begin(name: str) -> None:
        hooks.before()
        if on_stage is not None:
            on_stage(name)

    begin("load model")
    model = load_model(job.model, choose_device(job.device), job.options)
    diffusion = model.condition(job.reference, job.prompt, negative=job.negative if model.takes_prompt else None)
    begin("sir")
    field, _, _ = run_sir(job, diffusion, hooks=hooks, on_iteration=on_iteration)
    begin("clean")
    return clean_field(field)


def write_before_and_after(path: Path, before: Field | Mesh, after: Field | Mesh, size: int = _SHEET_SIZE) -> Path:
    """Write a picture of two results, four views each, the first above the second; ``size`` in pixels of one view."""
    cameras = film_cameras(max(extent_of(before), extent_of(after)), _SHEET_VIEWS, size, 10.0)
    views = torch.cat([_views(result, cameras) for result in (before, after)])
    captions = [f"{name}, {round(i * 360 / _SHEET_VIEWS)} degrees" for name in ("before", "after") for i in range(_SHEET_VIEWS)]
    return write_contact_sheet(path, views, columns=_SHEET_VIEWS, captions=captions)


@torch.no_grad()
def _views(result: Field | Mesh, cameras: Cameras) -> Tensor:
    device = "cpu" if isinstance(result, Mesh) else result.device
    return renderer_of(result)(cameras.to(device)).cpu()
