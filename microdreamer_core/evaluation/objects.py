"""Procedural objects of known truth, and runs of SIR and SDS on them that are scored on the way."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..diffusion.analytic import AnalyticDiffusion, Imperfection, toy_renderer
from ..diffusion.embedded import toys
from ..diffusion.protocol import MultiViewDiffusion
from ..errors import InputError
from ..fields.nerf_settings import nerf_settings
from ..fields.protocol import WHITE, Field
from ..io.pictures import write_picture
from ..reference import Reference
from ..sir.hooks import Hooks
from ..sir.iterations import sir_iterations
from ..sir.plan import SIRPlan
from ..sir.sds import SDSSettings, sds_steps
from ..sir.stages import reference_view
from ..sir.start import gaussian_settings, settings_of_plan, start_field
from ..util.clock import time_items
from ..util.devices import choose_device
from ..util.images import join_views, on_white
from . import metrics
from .runs import Run, to_json
from .sources import ANALYTIC, IMPERFECTION, MIXTURE, Setup, get_spec, load_source

NEAR = 0.03
"""Distance threshold of the F-score; the objects are about 1 across."""
SHOWN_VIEWS = (0, 2, 4, 6)
"""The held-out views that contact sheets show."""

_VIEWS, _POINTS, _GRID, _BLOCK = 8, 10_000, 96, 8
_REFERENCE_ELEVATION, _ELEVATION = 5.0, 10.0
_WARM: set[tuple] = set()


@dataclass(frozen=True)
class Subject:
    """A toy's ground truth: reference, held-out images [8,S,S,3], silhouettes [8,S,S,1], surface points [M,3]."""

    reference: Reference
    cameras: Cameras
    images: Tensor
    silhouettes: Tensor
    surface: Tensor


@lru_cache(maxsize=8)
def make_subject(index: int, radius: float, fov_y: float, size: int) -> Subject:
    """Render the index-th held-out toy from the front, as reference, and from eight other directions; takes a second.

    Args:
        radius, fov_y: of all cameras. size: side of the images in pixels.
    """
    from ..diffusion.embedded.raycast import render_toy

    toy = toys.make_held_out_toy(index)
    azimuth = torch.arange(_VIEWS) * (360.0 / _VIEWS) + 180.0 / _VIEWS
    around = orbit_cameras(_ELEVATION, azimuth, radius, fov_y, size)
    front = render_toy(toy, orbit_cameras(_REFERENCE_ELEVATION, 0.0, radius, fov_y, size))[0]
    seen, reference = render_toy(toy, around), Reference(on_white(front), front[..., 3:], elevation=_REFERENCE_ELEVATION)
    surface = toys.true_surface(toy, _GRID)
    points = metrics.sample_points(surface.vertices, surface.faces, _POINTS, torch.Generator().manual_seed(0))
    return Subject(reference, around, on_white(seen), seen[..., 3:], points)


@torch.no_grad()
def score_field(field: Field, subject: Subject, geometry: bool = True) -> dict[str, float | None]:
    """Compare a field with the ground truth on held-out views.

    Args:
        geometry: also compare the surface without small components, which takes longer than the rest.

    Returns:
        psnr (dB, mean over the views), ssim, iou of the silhouettes, f_score of the surface at ``NEAR`` and its chamfer
        distance: both None without ``geometry``, 0 and None if there is no surface.
    """
    from ..meshing.clean import keep_largest_components
    from ..meshing.extract import extract_mesh

    render = field.render(subject.cameras, WHITE)
    rgb, alpha = render.rgb.cpu().clamp(0, 1), render.alpha.cpu()
    scores: dict[str, float | None] = {
        "psnr": statistics.mean(map(metrics.psnr, rgb, subject.images)),
        "ssim": metrics.ssim(rgb, subject.images),
        "iou": metrics.silhouette_iou(alpha, subject.silhouettes),
        "f_score": None,
        "chamfer": None,
    }
    if geometry:
        try:
            mesh = keep_largest_components(extract_mesh(field, resolution=_GRID).mesh)
            points = metrics.sample_points(mesh.vertices, mesh.faces, len(subject.surface), torch.Generator().manual_seed(1))
        except InputError:  # there is no surface
            return {**scores, "f_score": 0.0}
        scores["f_score"] = metrics.f_score(points, subject.surface, NEAR)
        scores["chamfer"] = metrics.chamfer(points, subject.surface)
    return scores


def plan_run(setup: Setup, index: int, seed: int, plan: SIRPlan, marks: Iterable[int], sds: SDSSettings | None = None) -> Run:
    """Plan SIR on a procedural object, or SDS with the cameras and the reference of the plan.

    Args:
        marks: iterations, 0 being the initialisation, or updates of SDS, after which the field is scored, beside the last.
    """
    last, baseline = plan.iterations if sds is None else sds.steps, {}
    marks = sorted({mark for mark in marks if mark <= last} | {last})
    work = plan.evaluations(seed).per_view + 0.5 * (plan.init_steps + plan.iterations * plan.steps)
    if sds is not None:
        work, baseline = 1.5 * sds.steps, {"sds": to_json(replace(sds, report_every=math.gcd(*marks)))}
        # settings that only SIR uses must not distinguish SDS runs
        plan = replace(plan, name="sds", iterations=0, forward="hybrid", t2_curve="linear", loss_space="pixel")
    field = gaussian_settings(setup.spec.size)
    if plan.representation == "nerf":
        work *= 5
        field = settings_of_plan(nerf_settings(background=plan.background, device=choose_device(setup.device)), plan)
    model = setup.model if setup.stamp == setup.model else Path(setup.model).name
    settings = {"model": model, "stamp": setup.stamp, "object": index, "seed": seed, "device": setup.device, **baseline}
    settings |= {"plan": to_json(plan), "field": to_json(field), "marks": marks}
    return Run("sds" if baseline else "sir", execute_on_object, settings, {"model": setup.model}, work * plan.views)


def execute_on_object(run: Run, folder: Path, hooks: Hooks) -> dict:
    """Run SIR or SDS; returns rows of scores at the marks, seconds by stage or component, and an image of the last field."""
    settings, model = run.settings, run.place["model"]
    plan, seed, marks = SIRPlan.from_json(settings["plan"]), settings["seed"], settings["marks"]
    subject = make_subject(settings["object"], plan.radius, plan.fov_y, get_spec(model).size)
    diffusion = condition_model(model, settings["object"], subject, seed, plan, settings["device"])
    start = start_field(plan.representation, diffusion.image_size, seed, diffusion.device, plan=plan)
    sds = SDSSettings.from_json(settings["sds"]) if run.kind == "sds" else None
    _warm_up(start, diffusion, plan, sds)
    steps: Iterator[Any]
    if sds is not None:
        view = reference_view(subject.reference, plan, diffusion.image_size)
        steps = sds_steps(start, diffusion, plan, sds, seed, reference=view, hooks=hooks)
    else:
        steps = sir_iterations(start, diffusion, plan, seed, reference=subject.reference, hooks=hooks)
    rows, shares, field = [], Counter(), start
    for step, seconds in time_items(steps, wall=diffusion.device.type != "cpu"):
        mark, field = (step.step if sds else step.k + 1), step.field
        if sds:  # SDS's seconds are cumulative, SIR's are those of one iteration
            shares.clear()
        shares.update(step.seconds)
        if mark in marks:
            spent = {"evaluations": step.evaluations, "evaluations_per_view": step.evaluations / plan.views, "seconds": seconds}
            rows.append({"mark": mark, **score_field(field, subject, geometry=mark == marks[-1]), **spent})
    with torch.no_grad():
        strip = join_views(field.render(subject.cameras[list(SHOWN_VIEWS)], WHITE).rgb)
    return {"rows": rows, "shares": dict(shares), "picture": write_picture(folder / f"{run.key}.png", strip).name}


def condition_model(model: str, index: int, subject: Subject, seed: int, plan: SIRPlan, device: str) -> MultiViewDiffusion:
    """Condition a model on the index-th object; ``seed`` is that of the oracle's errors."""
    if model != ANALYTIC:
        return load_source(model, device).condition(subject.reference)
    first = index // _BLOCK * _BLOCK  # the oracle has the eight subjects of this one's block, and four other toys
    others = [toys.make_toy(toys.HELD_OUT + 1000 + i, list(toys.CATEGORIES)[i]) for i in range(MIXTURE - _BLOCK)]
    objects = toy_renderer([toys.make_held_out_toy(first + i) for i in range(_BLOCK)] + others)
    known = {"reference": subject.reference, "radius": plan.radius, "fov_y": plan.fov_y}
    return AnalyticDiffusion(objects, subject.images.shape[1], **known, imperfection=Imperfection(**IMPERFECTION, seed=seed))


def _warm_up(start: Field, diffusion: MultiViewDiffusion, plan: SIRPlan, sds: SDSSettings | None) -> None:
    """Warm up once per process, so that compilation, imports and first allocations do not count as a run's time."""
    kind = (plan.representation, diffusion.image_size, plan.views, str(diffusion.device), sds is None)
    if kind not in _WARM:
        _WARM.add(kind)
        if sds is None:
            next(sir_iterations(start, diffusion, replace(plan, iterations=1, init_steps=2, discretization=1), 0))
        else:
            next(sds_steps(start, diffusion, plan, replace(sds, steps=1), 0))
        diffusion.evaluations = 0
