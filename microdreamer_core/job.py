"""The main job: picture -> SIR -> textured mesh -> files; what the command line runs and the benchmark measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from .diffusion.protocol import MultiViewDiffusion, ViewCount
from .errors import InputError
from .fields.density_control import DensitySettings, final_prune, remove_white
from .fields.gaussians import Gaussians, GaussianSettings
from .io.pictures import read_mask, read_picture
from .io.state import SavedState, load_state, save_state
from .mesh.pipeline import MeshSettings, texture_mesh
from .mesh.refine import TextureRefinement, refine_texture
from .mesh.types import Mesh
from .reference import Reference, matte, prepare_reference
from .report import Clock
from .schedule import PRESETS, SIRPlan, get_plan
from .sir import INITIALISATION, Hooks, Iteration, reference_view, sir_iterations

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Job:
    """What to make: a reference picture, a model, a plan and a seed.

    Attributes:
        source: name of the picture, for the report.
        model: name of the diffusion model (see ``load_model``).
        start: field to begin with, None for a fresh ball of Gaussians; first: the iteration to begin with.
    """

    reference: Reference
    plan: SIRPlan
    seed: int = 0
    source: str = ""
    model: str = "embedded"
    device: str = "auto"
    start: Gaussians | None = None
    first: int = INITIALISATION


@dataclass(frozen=True)
class Record:
    """One line of the report: an iteration's times, last loss, number of Gaussians and seconds."""

    k: int
    t1: int | None
    t2: int | None
    loss: float
    gaussians: int
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
            len(iteration.field.splats()),
            iteration.evaluations,
            round(sum(iteration.seconds.values()), 4),
        )


@dataclass(frozen=True)
class Asset:
    """What a job makes.

    Attributes:
        field: the finished Gaussians; mesh: the textured mesh.
        records: one per iteration; clock: seconds by stage; evaluations: network evaluations, per view and per branch.
    """

    field: Gaussians
    mesh: Mesh
    records: tuple[Record, ...]
    clock: Clock
    evaluations: int


def job_from_picture(
    picture: Path,
    mask: Path | None = None,
    *,
    elevation: float = 0.0,
    preset: str | None = None,
    iterations: int | None = None,
    seed: int = 0,
    device: str = "auto",
    model: str = "embedded",
    matting: bool = False,
) -> Job:
    """Read and prepare a picture, choose the plan.

    Args:
        matting: cut the object out with rembg instead of by alpha, mask or plain background.

    Raises:
        InputError: the picture, the mask, the preset or the device cannot be used, or preset and model do not fit.
    """
    choose_device(device)
    if not -90 < elevation < 90:
        raise InputError(
            f"The elevation must lie between -90 and 90 degrees, got {elevation}; 0 is a picture taken at eye level."
        )
    framing = model_framing(model)
    overrides = {} if iterations is None else {"iterations": iterations}
    plan = get_plan(preset or framing.preset, **overrides)
    check_plan(plan, model)
    image = read_picture(picture)
    coverage = matte(image[..., :3]) if matting else None if mask is None else read_mask(mask)
    reference = prepare_reference(image, coverage, framing.fill, 2 * framing.size, elevation)
    return Job(reference, plan, seed, picture.name, model, device)


@dataclass(frozen=True)
class Framing:
    """How a model wants its pictures: size, share that the object fills, views at once, and the plan that suits it."""

    size: int
    fill: float
    view_count: ViewCount
    preset: str


def model_framing(model: str) -> Framing:
    """Framing of a model by name, without loading it."""
    _known_model(model)
    from .diffusion.embedded.network import EmbeddedConfig

    config = EmbeddedConfig()
    return Framing(config.image_size, config.fill, ViewCount(config.views), "embedded")


def fits(plan: SIRPlan, framing: Framing) -> bool:
    """Whether this version can run the plan with a model of that framing."""
    group = framing.view_count.group or 1
    return plan.representation == "gaussians" and plan.views % group == 0


def check_plan(plan: SIRPlan, model: str) -> None:
    """Refuse a plan that cannot run before any work is done.

    Raises:
        InputError: the plan is for a NeRF, or its views are not what the model denoises at once.
    """
    framing = model_framing(model)
    if fits(plan, framing):
        return
    others = ", ".join(name for name, preset in PRESETS.items() if fits(preset, framing))
    if plan.representation != "gaussians":
        raise InputError(f"The preset {plan.name!r} optimises a NeRF and this version optimises Gaussians; choose {others}.")
    raise InputError(
        f"The preset {plan.name!r} has {plan.views} views and the model {model!r} needs a multiple of "
        f"{framing.view_count.group}; choose {others}."
    )


def load_model(model: str, device: torch.device):
    """A diffusion model by name; ``on(reference)`` makes it ready for SIR.

    Raises:
        InputError: no such model.
    """
    _known_model(model)
    from .diffusion.embedded.model import EmbeddedModel

    return EmbeddedModel.load(device=device)


def _known_model(model: str) -> None:
    if model != "embedded":
        raise InputError(f"Unknown model {model!r}; this version has one, 'embedded'.")


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
) -> tuple[Gaussians, tuple[Record, ...], dict[str, float]]:
    """Algorithm 1 for a job: (last field, records, seconds by stage). ``on_iteration`` sees every finished iteration."""
    current = job.start
    if current is None:
        current = Gaussians.ball(gaussian_settings(diffusion.image_size), job.seed, diffusion.device)
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
    on_gaussians: Callable[[Gaussians], None] | None = None,
) -> Asset:
    """The whole pipeline without files: load the model, SIR, clean, extract, bake, refine the texture.

    Args:
        on_stage: called with the name of each stage when it begins.
        on_gaussians: called with the finished Gaussians before the mesh is made, which may fail.

    Raises:
        InputError: the model does not fit the plan, or the Gaussians hold no surface.
        NumericalError: a NaN or infinity; the message names iteration and stage.
    """
    clock = Clock()

    def begin(name: str) -> None:
        hooks.before()
        if on_stage is not None:
            on_stage(name)

    begin("load model")
    with clock.stage("load model"):
        diffusion = load_model(job.model, choose_device(job.device)).on(job.reference)
    begin("sir")
    gaussians, records, seconds = run_sir(job, diffusion, hooks=hooks, on_iteration=on_iteration)
    for stage, value in seconds.items():
        clock.add(stage, value)
    begin("clean")
    with clock.stage("clean"):
        gaussians = remove_white(final_prune(gaussians))
    if on_gaussians is not None:
        on_gaussians(gaussians)
    begin("mesh")
    made = texture_mesh(gaussians.splats(), mesh_settings, check=hooks.check)
    for stage, value in made.seconds.items():
        clock.add(f"mesh: {stage}", value)
    begin("refine texture")
    with clock.stage("refine texture"):
        settings = TextureRefinement(radius=job.plan.radius, fov_y=job.plan.fov_y, guidance=job.plan.guidance)
        view = reference_view(job.reference, job.plan, 2 * diffusion.image_size)
        mesh = refine_texture(made.mesh, diffusion, settings, job.seed, reference=view, check=hooks.check)
    return Asset(gaussians, mesh, records, clock, diffusion.evaluations)


def gaussian_settings(size: int) -> GaussianSettings:
    """Settings for pictures of ``size`` pixels: the published ones at 256, fewer Gaussians where there are fewer pixels to
    explain (more only fit the noise of the pictures, and take longer)."""
    pixels = size * size
    published = GaussianSettings()
    most = min(published.density.max_points, pixels * 3 // 2)
    return GaussianSettings(num_points=min(published.num_points, pixels * 3 // 4), density=DensitySettings(max_points=most))


def save_run(path: Path, job: Job, iteration: Iteration) -> Path:
    """Save a finished iteration with all that ``resume_job`` needs."""
    extra = run_record(job.seed, iteration.k, job.source, job.plan, job.model, job.reference)
    return save_state(path, iteration.field, extra)


def run_record(
    seed: int,
    k: int | None,
    source: str,
    plan: SIRPlan | None = None,
    model: str | None = None,
    reference: Reference | None = None,
) -> dict:
    """What a saved state remembers of its run, as JSON values; all of it is needed to go on with ``resume_job``."""
    record = {"seed": seed, "k": k, "source": source}
    if plan is not None:
        record["plan"] = asdict(plan)
    if model is not None:
        record["model"] = model
    if reference is not None:
        record["reference"] = reference.to_json()
    return record


def resume_job(path: Path, device: str = "auto") -> Job:
    """The job that continues a saved run.

    Raises:
        InputError: not a saved run, or one that this version cannot continue.
    """
    target = choose_device(device)
    try:
        saved: SavedState = load_state(path, target)
        extra = saved.extra
        plan = SIRPlan(**extra["plan"])
        check_plan(plan, extra["model"])
        k = extra["k"]
        if not isinstance(k, int) or not INITIALISATION <= k < plan.iterations:
            raise InputError(f"{path.name} claims iteration {k!r} of {plan.iterations}; use another copy.")
        reference = Reference.from_json(extra["reference"])
        rest = {"seed": int(extra["seed"]), "source": extra["source"], "model": extra["model"]}
        return Job(reference, plan, **rest, device=device, start=saved.field, first=k + 1)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path.name} holds no run to continue ({error!r}); give the state that a run left.") from error
