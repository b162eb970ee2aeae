"""The complete job, image or prompt -> SIR -> textured mesh, as run by the command line and the benchmark."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.load import ModelOptions
from ..checkpoints.registry import EMBEDDED, ModelSpec, check_model, check_plan, load_model, model_spec
from ..convert.image_to_gaussians import DiscSettings, lay_image_over
from ..diffusion.protocol import Checkpoint, MultiViewDiffusion
from ..errors import InputError
from ..fields.clean import clean
from ..fields.gaussians import Gaussians
from ..fields.nerf_settings import AUTO, check_nerf_size
from ..fields.place import move_gaussians
from ..fields.protocol import Field
from ..fields.texture import TextureField
from ..io.pictures import list_picture_files, read_mask, read_picture
from ..io.state import load_state, save_state
from ..mesh import Mesh, Placement
from ..meshing.pipeline import texture_mesh
from ..meshing.project import project_reference
from ..meshing.refine import TextureRefinement, refine_texture
from ..meshing.retexture import final_projection
from ..meshing.settings import MeshSettings
from ..reference import Reference, check_elevation, matte, prepare_reference
from ..sir.hooks import Hooks
from ..sir.iterations import Iteration, sir_iterations
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.stages import reference_view
from ..sir.start import start_field
from ..sir.step import INITIALISATION
from ..util.clock import Clock
from ..util.devices import choose_device
from ..util.vocabulary import Representation

_NERF_VIEW_SCALE = 4


@dataclass(frozen=True)
class Job:
    """The inputs of a job: reference or prompt, model, plan and seed.

    Attributes:
        reference: the reference image; None for a prompt alone.
        source: name of the image, or the prompt, for the report.
        model: name or path of the diffusion model (see ``checkpoints.registry.load_model``); options: how to load it.
        prompt, negative: what the object should look like and what not, for models conditioned on text; None for ``negative``
            is the model's default.
        start: initial field, None for a new one; first: the first iteration to run.
        nerf_size: size of a new NeRF, one of ``NERF_SIZES``.
        placement: how the given mesh or splat was moved to where the cameras look.
    """

    reference: Reference | None
    plan: SIRPlan
    seed: int = 0
    source: str = ""
    model: str = EMBEDDED
    options: ModelOptions = ModelOptions()  # noqa: RUF009 - immutable
    prompt: str | None = None
    negative: str | None = None
    device: str = "auto"
    start: Field | None = None
    first: int = INITIALISATION
    nerf_size: str = AUTO
    placement: Placement | None = None


@dataclass(frozen=True)
class Record:
    """One line of the report: an iteration's times, last loss, size of the field, and seconds."""

    k: int
    t1: int | None
    t2: int | None
    loss: float
    field: str
    evaluations: int
    seconds: float

    @classmethod
    def of(cls, iteration: Iteration) -> Record:
        times = iteration.times
        return cls(
            iteration.k,
            None if times is None else times.t1,
            None if times is None else times.t2,
            iteration.losses[-1],
            iteration.field.summary(),
            iteration.evaluations,
            round(sum(iteration.seconds.values()), 4),
        )


@dataclass(frozen=True)
class Asset:
    """The result of a job.

    Attributes:
        field: the finished field with the reference overlaid, in the place of a given splat.
        mesh: the textured mesh, extracted without that overlay.
        records: one per iteration; clock: seconds by stage; evaluations: network evaluations, per view and per branch.
    """

    field: Field
    mesh: Mesh
    records: tuple[Record, ...]
    clock: Clock
    evaluations: int


def job_from_image(
    image: Path | Tensor,
    mask: Path | Tensor | None = None,
    *,
    elevation: float = 0.0,
    matting: bool = False,
    prompt: str | None = None,
    **choices: Any,
) -> Job:
    """Plan an image-to-3D job: read and prepare the reference, choose the plan.

    Args:
        image: file, or [H,W,3] or [H,W,4] in [0,1].
        mask: file, or [H,W] coverage in [0,1]; if None, the image's transparency or plain background decides.
        matting: cut the object out with rembg instead of by alpha, mask or plain background.
        prompt: what the image shows, for models also conditioned on text.
        choices: as for ``job_from_prompt``.

    Raises:
        InputError: the image, mask, preset or device cannot be used, or preset, representation, model and prompt do not fit
            together.
    """
    check_elevation(elevation)
    job, framing = plan_job(prompt, **choices)
    if not framing.takes_picture:
        raise InputError(f"The model {job.model!r} takes a prompt and no image, got one; use text-to-3d.")
    pixels = image if isinstance(image, Tensor) else read_picture(image)
    coverage = mask if mask is None or isinstance(mask, Tensor) else read_mask(mask)
    if matting:
        coverage = matte(pixels[..., :3])
    reference = prepare_reference(pixels, coverage, framing.fill, elevation=float(elevation))
    return replace(job, reference=reference, source="an image" if isinstance(image, Tensor) else image.name)


def job_from_prompt(prompt: str, **choices: Any) -> Job:
    """Plan a text-to-3D job.

    Args:
        choices: model, options, negative, representation, preset, seed, device, nerf_size, and any field of the plan.

    Raises:
        InputError: the model needs an image, or preset, model or device cannot be used.
    """
    job, framing = plan_job(prompt, **choices)
    if framing.takes_picture:
        raise InputError(f"The model {job.model!r} needs a reference picture, got a prompt alone; use image-to-3d.")
    if not prompt.strip():
        raise InputError("The prompt is empty; say what to make.")
    return replace(job, source=prompt)


def plan_job(
    prompt: str | None,
    *,
    model: str = EMBEDDED,
    options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
    negative: str | None = None,
    representation: Representation | None = None,
    preset: str | None = None,
    seed: int = 0,
    device: str = "auto",
    nerf_size: str = AUTO,
    **plan_changes: Any,
) -> tuple[Job, ModelSpec]:
    """Plan a job without its image; returns it with the model's specification.

    Raises:
        InputError: a choice cannot be used, or they do not fit together.
    """
    choose_device(device)
    if not isinstance(seed, numbers.Integral):
        raise InputError(f"The seed must be a whole number, got {seed!r}.")
    model, framing = check_model(model), model_spec(model, options)
    _check_words(prompt, negative, framing, model)
    plan = get_plan(preset or framing.suited_to(representation), **plan_changes)
    if representation is not None and representation != plan.representation:
        raise InputError(
            f"The preset {plan.name!r} optimises {plan.representation}, not the chosen representation {representation!r}; "
            f"leave one out, or choose the preset {framing.suited_to(representation)!r}."
        )
    check_nerf_size(nerf_size)
    if nerf_size != AUTO and plan.representation != "nerf":
        raise InputError(f"The size {nerf_size!r} is a NeRF's and the plan {plan.name!r} optimises Gaussians; leave one out.")
    check_plan(plan, framing, model)
    negative = framing.negative if negative is None else negative
    return Job(None, plan, int(seed), "", model, options, prompt, negative, device, nerf_size=nerf_size), framing


def _check_words(prompt: str | None, negative: str | None, framing: ModelSpec, model: str) -> None:
    """Refuse a prompt that is not a string, or that the model does not take."""
    for name, words in (("prompt", prompt), ("negative prompt", negative)):
        if not isinstance(words, str | None):
            raise InputError(f"The {name} must be a text, got {words!r:.100}.")
    if (prompt or negative) and not framing.takes_prompt:
        raise InputError(
            f"The model {model!r} takes no prompt, got {prompt or negative!r}; give an image alone, or choose MVDream or "
            "ImageDream with --model."
        )


def list_pictures(folder: Path) -> tuple[Path, ...]:
    """List the images of a folder, sorted by name; each must show an object.

    Raises:
        InputError: there are none, two with the same stem, or one without a detectable object.
    """
    files = list_picture_files(folder)
    stems = [path.stem for path in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise InputError(f"Meshes are matched by the stems of pictures, and {twice[0]!r} is there twice; rename one.")
    for path in files:
        prepare_reference(read_picture(path), None, 0.8, 64, 0.0)
    return files


def choose_prompt(picture: Path, model: str) -> str | None:
    """Choose an image's prompt: the .txt file beside it, otherwise its stem for a text-only model, otherwise None."""
    spec, text = model_spec(model), picture.with_suffix(".txt")
    if not spec.takes_prompt:
        return None
    if text.is_file():
        return text.read_text(encoding="utf-8-sig").strip()
    return None if spec.takes_picture else picture.stem.replace("_", " ").replace("-", " ")


def run_sir(
    job: Job,
    diffusion: MultiViewDiffusion,
    *,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
) -> tuple[Field, tuple[Record, ...], dict[str, float]]:
    """Run Algorithm 1 for a job; returns (last field, records, seconds by stage).

    ``on_iteration`` receives every finished iteration.
    """
    current = job.start
    if current is None:
        current = start_field(
            job.plan.representation,
            diffusion.image_size,
            job.seed,
            diffusion.device,
            nerf_size=job.nerf_size,
            plan=job.plan,
        )
    records, seconds = [], {"refine": 0.0, "reconstruct": 0.0}
    for iteration in sir_iterations(
        current, diffusion, job.plan, job.seed, reference=job.reference, first=job.first, hooks=hooks
    ):
        current = iteration.field
        records.append(Record.of(iteration))
        for stage, value in iteration.seconds.items():
            seconds[stage] += value
        if on_iteration is not None:
            on_iteration(iteration)
    return current, tuple(records), seconds


def make_asset(
    job: Job,
    mesh_settings: MeshSettings,
    *,
    model: Checkpoint | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_field: Callable[[Field], None] | None = None,
) -> Asset:
    """Run the whole job in memory: load the model, SIR, clean, extract, bake, refine the texture, project the reference.

    Args:
        model: the job's model if it is loaded already.
        on_stage: called with the name of each stage when it begins.
        on_field: called with the finished field before the mesh is made, which may fail.

    Raises:
        InputError: the model does not fit the plan, or the field has no surface.
        NumericalError: a NaN or infinity; the message names iteration and stage.
    """
    clock = Clock()

    def begin(name: str) -> None:
        hooks.before()
        if on_stage is not None:
            on_stage(name)

    begin("load model")
    with clock.stage("load model"):
        model = model or load_model(job.model, choose_device(job.device), job.options)
        diffusion = model.condition(job.reference, job.prompt, negative=job.negative if model.takes_prompt else None)
    begin("sir")
    field, records, seconds = run_sir(job, diffusion, hooks=hooks, on_iteration=on_iteration)
    for stage, value in seconds.items():
        clock.add(stage, value)
    if isinstance(field, Gaussians):
        begin("clean")
        with clock.stage("clean"):
            field = clean_field(field)
    with clock.stage("reference over field"):
        displayed = with_reference(field, job.reference, job.plan)
    if job.placement is not None and isinstance(displayed, Gaussians):
        displayed = move_gaussians(displayed, job.placement.inverse())
    if on_field is not None:
        on_field(displayed)
    if field.kind == "nerf":
        # its renders take seconds each, and sizes far above the training size add no detail
        most = _NERF_VIEW_SCALE * diffusion.image_size
        mesh_settings = replace(mesh_settings, view_size=min(mesh_settings.view_size, most))
    if isinstance(field, TextureField):
        begin("refine texture")
        with clock.stage("refine texture"):
            plan = job.plan
            mesh = final_projection(
                field, diffusion, seed=job.seed, radius=plan.radius, fov_y=plan.fov_y, check=hooks.check
            ).mesh
    else:
        begin("mesh")
        made = texture_mesh(field, mesh_settings, check=hooks.check)
        for stage, value in made.seconds.items():
            clock.add(f"mesh: {stage}", value)
        begin("refine texture")
        with clock.stage("refine texture"):
            settings = TextureRefinement.suited_to(diffusion.image_size, job.plan.radius, job.plan.fov_y)
            view = reference_view(job.reference, job.plan, 2 * diffusion.image_size)
            mesh = refine_texture(made.mesh, diffusion, settings, job.seed, reference=view, check=hooks.check)
    with clock.stage("project reference"):
        mask = field.mask if isinstance(field, TextureField) else None
        mesh = project_reference(mesh, reference_view(job.reference, job.plan), mask=mask)
    if job.placement is not None:
        mesh = job.placement.undo(mesh)
    return Asset(displayed, mesh, records, clock, diffusion.evaluations)


def clean_field(field: Field) -> Field:
    """Clean a finished field for display: remove Gaussians that do not belong to the object.

    A NeRF is returned unchanged, and so are Gaussians whose shape was not to change.
    """
    return clean(field) if isinstance(field, Gaussians) and field.settings.change == "everything" else field


def with_reference(field: Field, reference: Reference | None, plan: SIRPlan) -> Field:
    """Overlay the reference on a finished field for display and saving, if the plan says so.

    Without a reference or a weight for the overlay, and for a NeRF, the field itself is returned.
    """
    view = reference_view(reference, plan)
    if view is None or not plan.ref_paint_weight or not isinstance(field, Gaussians):
        return field
    settings = DiscSettings(size=max(DiscSettings.size, plan.image_size))
    return lay_image_over(field, view.cameras, view.image, view.alpha, settings)


def save_run(path: Path, job: Job, iteration: Iteration) -> Path:
    """Save a finished iteration with everything that ``resume_job`` needs."""
    extra = run_record(
        job.seed,
        iteration.k,
        job.source,
        job.plan,
        job.model,
        job.reference,
        options=job.options,
        prompt=job.prompt,
        negative=job.negative,
        placement=job.placement,
    )
    return save_state(path, iteration.field, extra)


def run_record(
    seed: int,
    k: int | None,
    source: str,
    plan: SIRPlan | None = None,
    model: str | None = None,
    reference: Reference | None = None,
    *,
    options: ModelOptions | None = None,
    prompt: str | None = None,
    negative: str | None = None,
    placement: Placement | None = None,
) -> dict:
    """Return the JSON values that a saved state keeps of its run, all needed by ``resume_job``."""
    record = {"seed": seed, "k": k, "source": source}
    if plan is not None:
        record["plan"] = asdict(plan)
    if model is not None:
        record["model"] = model
    if options is not None:
        record["options"] = asdict(options)
    if reference is not None:
        record["reference"] = reference.to_json()
    if prompt is not None:
        record["prompt"] = prompt
    if negative is not None:
        record["negative"] = negative
    if placement is not None:
        record["placement"] = placement.matrix.tolist()
    return record


def saved_placement(record: dict) -> Placement | None:
    """Return how the given mesh or splat of a saved run was moved, from its ``run_record``; None if nothing was given.

    Raises:
        InputError: the record does not hold a placement.
    """
    moved = record.get("placement")
    try:
        return None if moved is None else Placement(torch.tensor(moved, dtype=torch.float64).reshape(4, 4))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The saved run's placement is no 4x4 matrix ({error}); use another copy.") from error


def check_kind(field: Field, plan: SIRPlan, name: str = "The field") -> None:
    """Refuse a field whose representation is not the plan's; a texture takes the plan of any.

    Args:
        name: names the field in the message.

    Raises:
        InputError: they differ.
    """
    if field.kind not in (plan.representation, TextureField.kind):
        raise InputError(
            f"{name} holds {field.summary()} and the plan {plan.name!r} optimises {plan.representation}; choose a plan for "
            f"{field.kind}, or start a new field."
        )


def resume_job(path: Path, device: str = "auto", model: str | None = None) -> Job:
    """Load the job that continues a saved run.

    Args:
        model: replaces the saved path if the checkpoint has moved.

    Raises:
        InputError: not a saved run, or one that this version cannot continue.
    """
    saved = load_state(path, choose_device(device))
    extra = saved.extra
    try:
        plan = SIRPlan.from_json(extra["plan"])
        options = ModelOptions(**extra.get("options", {}))
        remembered, k, seed, source = extra["model"], extra["k"], extra["seed"], extra["source"]
        prompt, negative = extra.get("prompt"), extra.get("negative", "")
        reference = None if prompt is not None and "reference" not in extra else Reference.from_json(extra["reference"])
        placement = saved_placement(extra)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path.name} holds no run to continue ({error!r}); give the state that a run left.") from error
    texts, whole = all(isinstance(value, str) for value in (remembered, source)), all(type(value) is int for value in (k, seed))
    if not (texts and whole):
        raise InputError(f"{path.name} holds no run to continue: model, source, k or seed are not what a run saves.")
    model = check_model(model or remembered)
    framing = model_spec(model, options)
    _check_words(prompt, negative, framing, model)
    check_plan(plan, framing, model)
    check_kind(saved.field, plan, path.name)
    if not INITIALISATION <= k < plan.iterations:
        raise InputError(f"{path.name} claims iteration {k!r} of {plan.iterations}; use another copy.")
    if framing.takes_picture and reference is None:
        raise InputError(f"{path.name} holds no reference picture, which the model {model!r} needs; use another copy.")
    return Job(
        reference,
        plan,
        seed,
        source,
        model,
        options=options,
        prompt=prompt,
        negative=negative,
        device=device,
        start=saved.field,
        first=k + 1,
        placement=placement,
    )
