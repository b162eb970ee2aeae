"""Independent runs: what determines one is hashed into its key, and what came of it is a JSON file of that name."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from dataclasses import field as default
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..diffusion.protocol import MultiViewDiffusion
from ..errors import InputError
from ..fields.gaussians import GaussianSettings
from ..fields.nerf_settings import NeRFSettings, nerf_settings
from ..fields.protocol import WHITE, Field
from ..io.pictures import write_picture
from ..job.record import write_json
from ..job.run import choose_device
from ..sir.hooks import Hooks
from ..sir.iterations import sir_iterations
from ..sir.plan import SIRPlan
from ..sir.reconstruct import reconstruct
from ..sir.sds import SDSSettings, sds_steps
from ..sir.stages import plan_background, reference_view
from ..sir.start import gaussian_settings, settings_of_plan, start_field
from ..sir.step import iteration_cameras
from .sources import diffusion_for, picture_size, subject_for
from .subjects import Subject, score

REVISION = 2
"""Counted up when the same settings give other results than before, so that old results are not taken for new ones."""

SHOWN_VIEWS = (0, 2, 4, 6)
"""The held-out views that contact sheets show."""

FOLDER = "runs"


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        kind: name of what executes it.
        settings: JSON values that the result depends on.
        place: JSON values that it does not depend on, as where files lie.
        work: about how long it takes, in any unit; for the time left.
    """

    kind: str
    settings: dict
    place: dict = default(default_factory=dict)
    work: float = 1.0

    @property
    def key(self) -> str:
        """Kind, and a hash of all that determines the result."""
        content = json.dumps([REVISION, __version__, self.kind, self.settings], sort_keys=True)
        return f"{self.kind}-{hashlib.blake2b(content.encode(), digest_size=10).hexdigest()}"

    @property
    def group(self) -> str:
        """What runs of about one pace have in common."""
        return f"{self.kind}/{self.settings.get('plan', {}).get('representation', '')}"


class Store:
    """The results in a report's folder."""

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"The report cannot be written into {self.folder} ({error.strerror}); choose another folder."
            ) from error

    def load(self, run: Run) -> dict | None:
        """A finished run's result; None when there is none, or a broken file, or one that failed."""
        try:
            content = json.loads(self.path(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(content, dict) and content.get("key") == run.key and isinstance(content.get("result"), dict)
        return content["result"] if whole and "failed" not in content["result"] else None

    def failure(self, run: Run) -> str | None:
        """Why a run failed, when it did."""
        try:
            return json.loads(self.path(run).read_text(encoding="utf-8"))["result"].get("failed")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, run: Run, result: dict) -> None:
        """Write a result, atomically."""
        write_json(self.path(run), {"key": run.key, "kind": run.kind, "settings": run.settings, "result": result})

    def path(self, run: Run) -> Path:
        return self.folder / f"{run.key}.json"


def truth_settings(model: str, stamp: str, index: int, seed: int, plan: SIRPlan, device: str) -> dict:
    """What every run on a procedural object depends on."""
    values = {"model": model if stamp == model else Path(model).name, "stamp": stamp, "object": index, "seed": seed}
    settings = {"plan": _plain(asdict(plan)), "field": _plain(asdict(_field_settings(model, plan, device)))}
    return {**values, **settings, "device": device}


def _field_settings(model: str, plan: SIRPlan, device: str) -> GaussianSettings | NeRFSettings:
    """Learning rates, sizes and all else that a start field has: results of other ones are no results of these."""
    if plan.representation == "nerf":
        return settings_of_plan(nerf_settings(background=plan.background, device=choose_device(device)), plan)
    return gaussian_settings(picture_size(model))


def _plain(values: dict) -> dict:
    """As they come back from JSON."""
    return json.loads(json.dumps(values))


def sir_job(model: str, stamp: str, index: int, seed: int, plan: SIRPlan, marks: tuple[int, ...], device: str) -> Run:
    """SIR on a procedural object, scored after the iterations in ``marks`` (0 is the initialisation)."""
    settings = {**truth_settings(model, stamp, index, seed, plan, device), "marks": sorted(set(marks))}
    calls = plan.evaluations(seed).per_view
    work = calls + 0.5 * (plan.init_steps + plan.iterations * plan.steps)
    return Run("sir", settings, {"model": model}, work * _cost(plan))


def sds_job(
    model: str,
    stamp: str,
    index: int,
    seed: int,
    plan: SIRPlan,
    sds: SDSSettings,
    marks: tuple[int, ...],
    device: str,
) -> Run:
    """SDS on a procedural object, scored after the updates in ``marks``; the cameras and the reference are the plan's."""
    marks = tuple(sorted({mark for mark in marks if mark <= sds.steps} | {sds.steps}))
    sds = replace(sds, report_every=math.gcd(*marks))
    # what only SIR looks at must not tell one SDS run from another
    plan = replace(plan, name="sds", iterations=0, forward="hybrid", t2_curve="linear", loss_space="pixel")
    settings = {**truth_settings(model, stamp, index, seed, plan, device), "sds": _plain(asdict(sds)), "marks": list(marks)}
    return Run("sds", settings, {"model": model}, 1.5 * sds.steps * _cost(plan))


def _cost(plan: SIRPlan) -> float:
    return plan.views * (5.0 if plan.representation == "nerf" else 1.0)


def sir_run(run: Run, store: Store, hooks: Hooks) -> dict:
    """Rows of scores at the marks, seconds by stage, and a picture of the last."""
    subject, plan, diffusion, start = _prepare_run(run)
    seed, marks = run.settings["seed"], run.settings["marks"]
    iterations = sir_iterations(start, diffusion, plan, seed, reference=subject.reference, hooks=hooks)
    rows, shares = [], {}
    for iteration, seconds in time_steps(iterations, diffusion.device):
        for stage, value in iteration.seconds.items():
            shares[stage] = shares.get(stage, 0.0) + value
        mark = iteration.k + 1
        if mark in marks:
            rows.append(_row(mark, iteration.field, subject, iteration.evaluations, seconds, mark == marks[-1], plan))
    return {"rows": rows, "shares": shares, "picture": _picture(run, store, iteration.field, subject)}


def sds_run(run: Run, store: Store, hooks: Hooks) -> dict:
    """As ``sir_run``, for SDS."""
    subject, plan, diffusion, start = _prepare_run(run)
    marks, settings = run.settings["marks"], sds_settings(run.settings["sds"])
    view = reference_view(subject.reference, plan, diffusion.image_size)
    states = sds_steps(start, diffusion, plan, settings, run.settings["seed"], reference=view, hooks=hooks)
    rows = []
    for state, seconds in time_steps(states, diffusion.device):
        if state.step in marks:
            last = state.step == marks[-1]
            rows.append(_row(state.step, state.field, subject, state.evaluations, seconds, last, plan))
    return {"rows": rows, "shares": state.seconds, "picture": _picture(run, store, state.field, subject)}


def sds_settings(values: dict) -> SDSSettings:
    """The settings that JSON values were made of; JSON knows no tuples."""
    return SDSSettings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _prepare_run(run: Run):
    """The object, the plan, the model told which object is meant, and the start field."""
    settings, model = run.settings, run.place["model"]
    plan = SIRPlan.from_json(settings["plan"])
    subject = subject_for(settings["object"], plan.radius, plan.fov_y, picture_size(model))
    diffusion = diffusion_for(model, settings["object"], subject, settings["seed"], plan, settings["device"])
    shown = (plan.representation, diffusion.image_size, settings["seed"], diffusion.device)
    start = start_field(*shown, plan=plan)
    _warm_up(start, diffusion, plan)
    return subject, plan, diffusion, start


_WARM: set[tuple] = set()


def _warm_up(start: Field, diffusion: MultiViewDiffusion, plan: SIRPlan) -> None:
    """Once a process: what compiles or allocates itself at the first use must not count as a run's time."""
    kind = (plan.representation, diffusion.image_size, plan.views, str(diffusion.device))
    if kind in _WARM:
        return
    _WARM.add(kind)
    cameras = iteration_cameras(plan, 0, 0, diffusion.image_size)
    shape = (plan.views, cameras.height, cameras.width, 3)
    reconstruct(start, cameras, torch.ones(shape, device=diffusion.device), 2, background=plan_background(plan, start.device))
    latents = torch.randn(plan.views, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        diffusion.eps(latents.to(diffusion.device), 500, diffusion.condition(cameras), plan.guidance_scale)
    diffusion.evaluations = 0


def _row(mark: int, field: Field, subject: Subject, evaluations: int, seconds: float, last: bool, plan: SIRPlan) -> dict:
    scored = asdict(score(field, subject, evaluations, seconds, geometry=last))
    return {"mark": mark, **scored, "evaluations_per_view": evaluations / plan.views}


def time_steps(steps: Iterator, device: torch.device) -> Iterator[tuple]:
    """Each item with the seconds that all items so far took; what the caller does between them does not count.

    Of a processor its own seconds, of all threads, which other programs on the machine do not disturb; of a GPU those of the
    clock.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    total, begin = 0.0, clock()
    for item in steps:
        total += clock() - begin
        yield item, total
        begin = clock()


@torch.no_grad()
def _picture(run: Run, store: Store, field: Field, subject: Subject) -> str:
    """The name of a strip of renders beside the result."""
    strip = views_strip(field.render(subject.cameras[list(SHOWN_VIEWS)], WHITE).rgb)
    return write_picture(store.folder / f"{run.key}.png", strip).name


def views_strip(pictures: Tensor) -> Tensor:
    """[V,H,W,3] -> [H,V W,3] in [0,1]."""
    return torch.cat(list(pictures.detach().cpu().clamp(0, 1)), 1)
