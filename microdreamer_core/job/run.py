"""The main job: picture -> SIR -> textured mesh -> files; what the command line runs and the benchmark measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..checkpoints.load import ModelOptions
from ..checkpoints.registry import EMBEDDED, ModelSpec, check_model, check_plan, load_model, model_spec
from ..diffusion.protocol import MultiViewDiffusion
from ..errors import InputError
from ..fields.clean import clean
from ..fields.nerf_settings import AUTO, check_nerf_size
from ..fields.protocol import Field, Representation
from ..io.pictures import read_mask, read_picture
from ..io.state import load_state, save_state
from ..mesh import Mesh
from ..meshing.pipeline import MeshSettings, texture_mesh
from ..meshing.project import project_reference
from ..meshing.refine import TextureRefinement, refine_texture
from ..reference import Reference, check_elevation, matte, prepare_reference
from ..sir.hooks import Hooks
from ..sir.iterations import INITIALISATION, Iteration, sir_iterations
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.stages import reference_view
from ..sir.start import start_field
from ..util.clock import Clock

_NERF_VIEW_SCALE = 4
DEVICES = ("auto", "cpu", "cuda", "mps")
MOST_ITERATIONS = 10_000
_MOST = {"iterations": MOST_ITERATIONS, "steps": 10_000, "init_steps": 10_000, "views": 256, "image_size": 4096}
"""Far above any use, and far below what a damaged or hostile saved run may ask for."""


@dataclass(frozen=True)
class Job:
    """What to make: a reference picture, a model, a plan and a seed.

    Attributes:
        reference: the picture; None when a prompt alone says what to make.
        source: name of the picture, or the prompt, for the report.
        model: name or path of the diffusion model (see ``models.load_model``); options: how to load it.
        prompt, negative: what the pictures shall show and shall not, for models that take words; None for ``negative`` is the
            model's own.
        start: field to begin with, None for a fresh one; first: the iteration to begin with.
        nerf_size: of a fresh NeRF, one of ``sir.start.NERF_SIZES``.
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


@dataclass(frozen=True)
class Record:
    """One line of the report: an iteration's times, last loss, what the field is made of, and seconds."""

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
    """What a job makes.

    Attributes:
        field: the finished field; mesh: the textured mesh.
        records: one per iteration; clock: seconds by stage; evaluations: network evaluations, per view and per branch.
    """

    field: Field
    mesh: Mesh
    records: tuple[Record, ...]
    clock: Clock
    evaluations: int


def job_from_picture(
    picture: Path,
    mask: Path | None = None,
    *,
    elevation: float = 0.0,
    matting: bool = False,
    prompt: str | None = None,
    **choices,
) -> Job:
    """Read and prepare a picture, choose the plan.

    Args:
        matting: cut the object out with rembg instead of by alpha, mask or plain background.
        prompt: what the picture shows, for models that take words too.
        choices: as for ``job_from_prompt``.

    Raises:
        InputError: the picture, the mask, the preset or the device cannot be used, or preset, representation, model and prompt
            do not fit.
    """
    check_elevation(elevation)
    job, framing = _plan_job(prompt, **choices)
    if not framing.takes_picture:
        raise InputError(f"The model {job.model!r} takes a prompt and no picture, got {picture.name}; use text-to-3d.")
    image = read_picture(picture)
    coverage = matte(image[..., :3]) if matting else None if mask is None else read_mask(mask)
    reference = prepare_reference(image, coverage, framing.fill, elevation=elevation)
    return replace(job, reference=reference, source=picture.name)


def job_from_prompt(prompt: str, **choices) -> Job:
    """Choose the plan for a prompt alone.

    Args:
        choices: model, options, negative, representation, preset, iterations, seed, device, nerf_size.

    Raises:
        InputError: the model needs a picture, or preset, model or device cannot be used.
    """
    job, framing = _plan_job(prompt, **choices)
    if framing.takes_picture:
        raise InputError(f"The model {job.model!r} needs a reference picture, got a prompt alone; use image-to-3d.")
    if not prompt.strip():
        raise InputError("The prompt is empty; say what to make.")
    return replace(job, source=prompt)


def _plan_job(
    prompt: str | None,
    *,
    model: str = EMBEDDED,
    options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
    negative: str | None = None,
    representation: Representation | None = None,
    preset: str | None = None,
    iterations: int | None = None,
    seed: int = 0,
    device: str = "auto",
    nerf_size: str = AUTO,
) -> tuple[Job, ModelSpec]:
    """A job without its picture, and how the model wants that."""
    choose_device(device)
    model, framing = check_model(model), model_spec(model, options)
    _check_words(prompt, negative, framing, model)
    overrides = {} if iterations is None else {"iterations": iterations}
    plan = get_plan(preset or framing.suited_to(representation), **overrides)
    if representation is not None and representation != plan.representation:
        raise InputError(
            f"The preset {plan.name!r} optimises {plan.representation}, the representation {representation!r} was asked for; "
            f"leave one out, or choose the preset {framing.suited_to(representation)!r}."
        )
    check_nerf_size(nerf_size)
    if nerf_size != AUTO and plan.representation != "nerf":
        raise InputError(f"The size {nerf_size!r} is a NeRF's and the plan {plan.name!r} optimises Gaussians; leave one out.")
    _check_plan(plan, framing, model)
    negative = framing.negative if negative is None else negative
    return Job(None, plan, seed, "", model, options, prompt, negative, device, nerf_size=nerf_size), framing


def _check_words(prompt: str | None, negative: str | None, framing: ModelSpec, model: str) -> None:
    """Refuse words that are no text, or that the model does not take."""
    for name, words in (("prompt", prompt), ("negative prompt", negative)):
        if not isinstance(words, str | None):
            raise InputError(f"The {name} must be a text, got {words!r:.100}.")
    if (prompt or negative) and not framing.takes_prompt:
        raise InputError(
            f"The model {model!r} takes no prompt, got {prompt or negative!r}; leave it out, or choose MVDream or ImageDream "
            "with --model."
        )


def _check_plan(plan: SIRPlan, framing: ModelSpec, model: str) -> None:
    """Refuse a plan that the model cannot run, or that would never end or fit into memory."""
    for name, most in _MOST.items():
        if getattr(plan, name) > most:
            raise InputError(f"The plan's {name} must be at most {most}, got {getattr(plan, name)}.")
    check_plan(plan, framing, model)


def choose_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` prefers CUDA, then the CPU.

    Raises:
        InputError: an unknown device, or one that this machine lacks.
    """
    if name not in DEVICES:
        raise InputError(f"Unknown device {name!r}; choose one of {', '.join(DEVICES)}.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("The device 'cuda' was asked for, but torch finds no CUDA GPU here; use --device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("The device 'mps' was asked for, but torch finds no Apple GPU here; use --device cpu.")
    return torch.device(name)


def run_sir(
    job: Job,
    diffusion: MultiViewDiffusion,
    *,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
) -> tuple[Field, tuple[Record, ...], dict[str, float]]:
    """Algorithm 1 for a job: (last field, records, seconds by stage). ``on_iteration`` sees every finished iteration."""
    current = job.start
    if current is None:
        chosen = {"nerf_size": job.nerf_size, "plan": job.plan}
        current = start_field(job.plan.representation, diffusion.image_size, job.seed, diffusion.device, **chosen)
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
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
    on_field: Callable[[Field], None] | None = None,
) -> Asset:
    """The whole pipeline without files: load the model, SIR, clean, extract, bake, refine the texture, project the reference.

    Args:
        on_stage: called with the name of each stage when it begins.
        on_field: called with the finished field before the mesh is made, which may fail.

    Raises:
        InputError: the model does not fit the plan, or the field holds no surface.
        NumericalError: a NaN or infinity; the message names iteration and stage.
    """
    clock = Clock()

    def begin(name: str) -> None:
        hooks.before()
        if on_stage is not None:
            on_stage(name)

    begin("load model")
    with clock.stage("load model"):
        model = load_model(job.model, choose_device(job.device), job.options)
        words = {"negative": job.negative} if model.takes_prompt else {}
        diffusion = model.condition(job.reference, job.prompt, **words)
    begin("sir")
    field, records, seconds = run_sir(job, diffusion, hooks=hooks, on_iteration=on_iteration)
    for stage, value in seconds.items():
        clock.add(stage, value)
    if field.kind == "gaussians":
        begin("clean")
        with clock.stage("clean"):
            field = clean_field(field)
    if on_field is not None:
        on_field(field)
    if field.kind == "nerf":
        # its pictures take seconds each, and far above the size that it learned from there is nothing more in them
        most = _NERF_VIEW_SCALE * diffusion.image_size
        mesh_settings = replace(mesh_settings, view_size=min(mesh_settings.view_size, most))
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
        mesh = project_reference(mesh, reference_view(job.reference, job.plan))
    return Asset(field, mesh, records, clock, diffusion.evaluations)


def clean_field(field: Field) -> Field:
    """A finished field as it is shown: Gaussians without what does not belong to the object, a NeRF as it is."""
    return clean(field) if field.kind == "gaussians" else field


def save_run(path: Path, job: Job, iteration: Iteration) -> Path:
    """Save a finished iteration with all that ``resume_job`` needs."""
    told = {"options": job.options, "prompt": job.prompt, "negative": job.negative}
    extra = run_record(job.seed, iteration.k, job.source, job.plan, job.model, job.reference, **told)
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
) -> dict:
    """What a saved state remembers of its run, as JSON values; all of it is needed to go on with ``resume_job``."""
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
    return record


def check_kind(field: Field, plan: SIRPlan, name: str = "The field") -> None:
    """Refuse a field of one representation for a plan of another.

    Raises:
        InputError: they differ; ``name`` says which field.
    """
    if field.kind != plan.representation:
        raise InputError(
            f"{name} holds {field.summary()} and the plan {plan.name!r} optimises {plan.representation}; choose a plan for "
            f"{field.kind}, or start anew."
        )


def resume_job(path: Path, device: str = "auto", model: str | None = None) -> Job:
    """The job that continues a saved run.

    Args:
        model: in place of the path that the run remembers, when the checkpoint has moved.

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
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path.name} holds no run to continue ({error!r}); give the state that a run left.") from error
    texts, whole = all(isinstance(value, str) for value in (remembered, source)), all(type(value) is int for value in (k, seed))
    if not (texts and whole):
        raise InputError(f"{path.name} holds no run to continue: model, source, k or seed are not what a run saves.")
    model = check_model(model or remembered)
    framing = model_spec(model, options)
    _check_words(prompt, negative, framing, model)
    _check_plan(plan, framing, model)
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
    )
