"""Independent runs: a run's settings are hashed into its key, and its result is a JSON file of that name."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from dataclasses import field as default
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..diffusion.protocol import MultiViewDiffusion
from ..fields.nerf_settings import nerf_settings
from ..fields.protocol import WHITE, Field
from ..io.pictures import write_picture
from ..job.record import write_json
from ..sir.hooks import Hooks
from ..sir.iterations import sir_iterations
from ..sir.plan import SIRPlan
from ..sir.reconstruct import reconstruct
from ..sir.sds import SDSSettings, sds_steps
from ..sir.stages import plan_background, reference_view
from ..sir.start import gaussian_settings, settings_of_plan, start_field
from ..sir.step import iteration_cameras
from ..util.clock import time_items
from ..util.devices import choose_device
from ..util.images import join_views
from .sources import Setup, condition_model, get_spec
from .subjects import make_subject, score_field

REVISION = 2
"""Incremented when the same settings give different results than before, which invalidates old results."""

SHOWN_VIEWS = (0, 2, 4, 6)
"""The held-out views that contact sheets show."""

FOLDER = "runs"


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        kind: selects the function that executes it.
        settings: JSON values that the result depends on.
        place: JSON values that it does not depend on, such as paths.
        work: approximate duration in any unit, for the time left.
    """

    kind: str
    settings: dict
    place: dict = default(default_factory=dict)
    work: float = 1.0

    @property
    def subject(self) -> Any:
        """The object's index, or the path of the image."""
        return self.settings.get("object", self.place.get("picture"))

    @property
    def key(self) -> str:
        """Kind, and a hash of everything that determines the result."""
        content = json.dumps([REVISION, __version__, self.kind, self.settings], sort_keys=True)
        return f"{self.kind}-{hashlib.blake2b(content.encode(), digest_size=10).hexdigest()}"


class Store:
    """The results in a report's folder."""

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER

    def load(self, run: Run) -> dict | None:
        """Read a finished run's result; None if there is none, the file is broken or the run failed."""
        result = self._read(run)
        return result if result and "failed" not in result else None

    def explain_failure(self, run: Run) -> str | None:
        """Read why a run failed; None if it did not."""
        return self._read(run).get("failed")

    def _read(self, run: Run) -> dict:
        try:
            content = json.loads(self.path(run).read_text(encoding="utf-8"))
            return dict(content["result"]) if content["key"] == run.key else {}
        except (OSError, ValueError, TypeError, KeyError):  # a broken file
            return {}

    def save(self, run: Run, result: dict) -> None:
        """Write a result, atomically."""
        write_json(self.path(run), {"key": run.key, "kind": run.kind, "settings": run.settings, "result": result})

    def path(self, run: Run) -> Path:
        """Return the file of a run's result."""
        return self.folder / f"{run.key}.json"


def plan_sir_run(setup: Setup, index: int, seed: int, plan: SIRPlan, marks: Iterable[int]) -> Run:
    """Plan SIR on a procedural object, scored after the iterations in ``marks`` (0 is the initialisation)."""
    settings = {**_list_settings(setup, index, seed, plan), "marks": sorted(set(marks))}
    work = plan.evaluations(seed).per_view + 0.5 * (plan.init_steps + plan.iterations * plan.steps)
    return Run("sir", settings, {"model": setup.model}, work * _weigh(plan))


def plan_sds_run(setup: Setup, index: int, seed: int, plan: SIRPlan, sds: SDSSettings, marks: Iterable[int]) -> Run:
    """Plan SDS on a procedural object, scored after the updates in ``marks``; cameras and reference are the plan's."""
    marks = sorted({mark for mark in marks if mark <= sds.steps} | {sds.steps})
    sds = replace(sds, report_every=math.gcd(*marks))
    # settings that only SIR uses must not distinguish SDS runs
    plan = replace(plan, name="sds", iterations=0, forward="hybrid", t2_curve="linear", loss_space="pixel")
    settings = {**_list_settings(setup, index, seed, plan), "sds": to_json(sds), "marks": marks}
    return Run("sds", settings, {"model": setup.model}, 1.5 * sds.steps * _weigh(plan))


def _list_settings(setup: Setup, index: int, seed: int, plan: SIRPlan) -> dict:
    """Everything a run on a procedural object depends on, with the learning rates and sizes of its start field."""
    model = setup.model if setup.stamp == setup.model else Path(setup.model).name
    field = gaussian_settings(get_spec(setup.model).size)
    if plan.representation == "nerf":
        field = settings_of_plan(nerf_settings(background=plan.background, device=choose_device(setup.device)), plan)
    settings = {"model": model, "stamp": setup.stamp, "object": index, "seed": seed}
    return {**settings, "plan": to_json(plan), "field": to_json(field), "device": setup.device}


def to_json(value: Any) -> dict:
    """Convert a dataclass to the values that reading it back from JSON would give."""
    return json.loads(json.dumps(asdict(value)))


def _weigh(plan: SIRPlan) -> float:
    return plan.views * (5.0 if plan.representation == "nerf" else 1.0)


def execute_on_object(run: Run, store: Store, hooks: Hooks) -> dict:
    """Run SIR or SDS; returns rows of scores at the marks, seconds by stage or component, and an image of the last field."""
    settings, model = run.settings, run.place["model"]
    plan, seed, marks = SIRPlan.from_json(settings["plan"]), settings["seed"], settings["marks"]
    subject = make_subject(settings["object"], plan.radius, plan.fov_y, get_spec(model).size)
    diffusion = condition_model(model, settings["object"], subject, seed, plan, settings["device"])
    start = start_field(plan.representation, diffusion.image_size, seed, diffusion.device, plan=plan)
    _warm_up(start, diffusion, plan)
    steps: Iterator[Any]
    if run.kind == "sds":
        view, sds = reference_view(subject.reference, plan, diffusion.image_size), SDSSettings.from_json(settings["sds"])
        steps = sds_steps(start, diffusion, plan, sds, seed, reference=view, hooks=hooks)
    else:
        steps = sir_iterations(start, diffusion, plan, seed, reference=subject.reference, hooks=hooks)
    rows, shares, field = [], Counter(), start
    for step, seconds in time_items(steps, wall=diffusion.device.type != "cpu"):
        mark, field = (step.step if run.kind == "sds" else step.k + 1), step.field
        if run.kind == "sds":  # SDS's seconds are cumulative, SIR's are those of one iteration
            shares.clear()
        shares.update(step.seconds)
        if mark in marks:
            spent = {"evaluations": step.evaluations, "evaluations_per_view": step.evaluations / plan.views, "seconds": seconds}
            rows.append({"mark": mark, **score_field(field, subject, geometry=mark == marks[-1]), **spent})
    with torch.no_grad():
        strip = join_views(field.render(subject.cameras[list(SHOWN_VIEWS)], WHITE).rgb)
    picture = write_picture(store.folder / f"{run.key}.png", strip).name
    return {"rows": rows, "shares": dict(shares), "picture": picture}


_WARM: set[tuple] = set()


def _warm_up(start: Field, diffusion: MultiViewDiffusion, plan: SIRPlan) -> None:
    """Warm up once per process, so that compilation and first allocations do not count as a run's time."""
    kind = (plan.representation, diffusion.image_size, plan.views, str(diffusion.device))
    if kind in _WARM:
        return
    _WARM.add(kind)
    cameras = iteration_cameras(plan, 0, 0, diffusion.image_size)
    shape = (plan.views, cameras.height, cameras.width, 3)
    reconstruct(start, cameras, torch.ones(shape, device=diffusion.device), 2, background=plan_background(plan, start.device))
    latents = torch.randn(plan.views, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        diffusion.denoised(latents.to(diffusion.device), 500, diffusion.condition(cameras), plan.guidance_scale)
    diffusion.evaluations = 0
