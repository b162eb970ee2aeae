"""Meshes and splats of other systems, scored before and after SIR: meshes get a new texture, splats are refined.

Scores need no truth: likeness to the picture from the front, agreement of neighbouring views through the surface, sharpness.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..checkpoints.registry import EMBEDDED, check_model, model_spec
from ..convert.mesh_to_gaussians import fit_placement
from ..errors import InputError
from ..fields.gaussians import Gaussians
from ..fields.place import fit_splats, move_gaussians
from ..io.glb import write_glb
from ..io.mesh_files import READABLE as MESHES
from ..io.pictures import list_picture_files, read_picture, write_picture
from ..io.splats import READABLE as SPLATS
from ..io.splats import write_gaussians
from ..job.outputs import extent_of, film_cameras, read_result, render_result
from ..job.refine import choose_refinement, choose_retexture, job_to_refine, job_to_retexture, refine_field
from ..job.run import choose_prompt, make_asset, plan_job
from ..mesh import Mesh, Placement
from ..meshing.settings import MeshSettings
from ..reference import prepare_reference
from ..render.protocol import Render
from ..sir.hooks import Hooks
from ..sir.iterations import Iteration
from ..sir.plan import SIRPlan
from ..sir.presets import plan_changes
from ..util.clock import Clock
from ..util.files import stamp_files
from ..util.images import erode, join_views, resize
from . import PROTOCOLS, metrics, plots
from .clip_similarity import SIZE, VIEWS
from .pages import Claim, Plot, Section, Table, make_claim
from .runs import Run, Store, to_json
from .series import Protocol, Series
from .sources import ANALYTIC, Refinement, Setup, Shape, stamp_model
from .statistics import Estimate, estimate_objects

MEASURES = {
    "clip": ("CLIP similarity", 4),
    "psnr": ("front PSNR, dB", 2),
    "iou": ("front IoU", 3),
    "consistency": ("neighbouring views, dB", 2),
    "sharpness": ("sharpness, %", 2),
    "first_views": ("model's views at first, dB", 2),
    "last_views": ("and at last, dB", 2),
    "evaluations": ("evaluations", 0),
    "seconds": ("seconds", 1),
}
"""Columns of the tables: heading and digits."""
_OF_BOTH = tuple(MEASURES)[:5]

_RING, _RING_SIZE, _RING_ELEVATION = 12, 256, 10.0
_FRONT_SIZE, _STRIP_SIZE = 128, 160
_RIM = 2
"""Pixels along a silhouette that are compared with none: their colours hold background."""
_SOLID, _NEAR, _FEWEST = 0.98, 0.01, 16
"""Coverage of a pixel with a surface; depths of one surface, as a share of the cameras' distance; pixels that make a number."""
_WORDS = PROTOCOLS["refine"]

# --- what is refined --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RefineOptions:
    """What is to be refined, as given.

    Attributes:
        folder: with meshes and splats, which y up face +z as a front.
        image: picture of all, or a folder of pictures named like them; None for a prompt alone.
        choices: preset and fields of the plan, for all.
        score_only: leave SIR out.
    """

    folder: Path
    image: Path | None = None
    prompt: str | None = None
    choices: dict[str, Any] | None = None
    score_only: bool = False


def plan_refinement(
    options: RefineOptions, model: str, elevation: float = 0.0, iterations: int | None = None
) -> tuple[Refinement, list[str]]:
    """Read every file once and plan what is done to it; returns a sentence for each that is left out, wholly or from SIR.

    Args:
        elevation: of the pictures. iterations: in place of the plan's; None for these.

    Raises:
        InputError: no file can be read, or model, plan, picture and prompt do not fit together.
    """
    model = check_model(EMBEDDED if model == ANALYTIC else model)
    spec, missing, shapes = model_spec(model), [], []
    if not options.score_only and options.image is None and spec.takes_picture:
        raise InputError(
            "SIR needs a picture of what is refined, got none; add --image, or --score-only to score what is there."
        )
    common = {"model": model, "iterations": iterations, **(options.choices or {})}
    common = {name: value for name, value in common.items() if value is not None}
    for path in _list_shapes(options.folder):
        try:
            splat = isinstance(read_result(path), Gaussians)
        except InputError as error:
            missing.append(f"{path.name} was left out: {str(error).removeprefix(path.name).strip()}")
            continue
        picture, prompt = _find_picture(path, options.image), options.prompt
        if picture is None and options.image is not None:
            missing.append(f"{path.name} has no picture named like it in {options.image}: its likeness was not measured.")
        if picture is not None:
            prepare_reference(read_picture(picture), None, spec.fill, 64, elevation)
        plan = None
        if not options.score_only and (picture or not spec.takes_picture):
            prompt = prompt or choose_prompt(path, model)
            plan = plan_job(prompt, **(choose_refinement if splat else choose_retexture)(common))[0].plan
        shapes.append(Shape(path, picture, prompt, plan))
    if not shapes:
        raise InputError(f"{options.folder} holds no mesh or splat that can be read: {' '.join(missing)}")
    return Refinement(tuple(shapes), model), missing


def list_facts(refinement: Refinement) -> dict[str, str]:
    """List what was refined by what, for the page."""
    plans = {shape.plan.name: shape.plan for shape in refinement.shapes if shape.plan is not None}
    facts = {"files": ", ".join(shape.path.name for shape in refinement.shapes)}
    if not plans:
        return facts
    settings = (
        f"{name}, K = {plan.iterations}, t2 {plan.t2_start:g} to {plan.t2_end:g}, {plan.views} views"
        for name, plan in plans.items()
    )
    return {**facts, "model": Path(refinement.model).name, "plans": "; ".join(settings)}


def _list_shapes(folder: Path) -> list[Path]:
    kinds = tuple(dict.fromkeys((*MESHES, *SPLATS)))
    if not folder.is_dir():
        raise InputError(f"There is no folder of meshes or splats at {folder}; check the path.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in kinds)
    if not found:
        raise InputError(f"{folder} holds no meshes or splats ({', '.join(kinds)}); choose another folder.")
    return found


def _find_picture(shape: Path, image: Path | None) -> Path | None:
    if image is None or not image.is_dir():
        return image
    stem = shape.stem.removesuffix(".compressed")
    return next((path for path in list_picture_files(image) if path.stem == stem), None)


# --- runs -------------------------------------------------------------------------------------------------------------


def list_refinements(setup: Setup) -> list[Series]:
    """List the runs that score each file as it is, and those that refine and score it."""
    refinement = _refinement_of(setup)
    before, after = [], []
    for shape in refinement.shapes:
        before.append(_plan_run("scores", setup, shape))
        if shape.plan is not None:
            after += [_plan_run("refinement", setup, shape, seed) for seed in setup.seeds]
    return [Series("before", tuple(before)), *([Series("after SIR", tuple(after))] if after else [])]


def _refinement_of(setup: Setup) -> Refinement:
    assert setup.refinement is not None, "checked by choose_protocols"
    return setup.refinement


def _plan_run(kind: str, setup: Setup, shape: Shape, seed: int | None = None) -> Run:
    settings: dict[str, Any] = {"object": shape.path.name, "file": stamp_files(shape.path), "elevation": setup.elevation}
    place: dict[str, Any] = {"file": str(shape.path), "picture": shape.picture and str(shape.picture)}
    settings["picture"] = shape.picture and stamp_files(shape.picture)
    if seed is None:
        return Run(kind, settings, place)
    plan, model = shape.plan, _refinement_of(setup).model
    assert plan is not None, "only what has a plan is refined"
    settings |= {"seed": seed, "prompt": shape.prompt, "model": Path(model).name, "stamp": stamp_model(model)}
    settings |= {"plan": to_json(plan), "device": setup.device}
    return Run(kind, settings, {**place, "model": model}, plan.evaluations().per_view * plan.views + 500.0)


def list_judgements(setup: Setup, series: list[Series], store: Store) -> list[Series]:
    """List the runs that measure CLIP similarity before and after."""
    if setup.clip is None:
        return []
    known = {"clip": f"{setup.clip.resolve().name}/{stamp_files(setup.clip)}", "size": SIZE, "views": VIEWS}
    prompts = {shape.path.name: shape.prompt for shape in _refinement_of(setup).shapes}
    found = []
    for one in series:
        runs = []
        for run, result in zip(one.runs, one.results, strict=True):
            words = {} if run.place["picture"] else {"prompt": prompts[run.subject]}
            if result is None or (words and not words["prompt"]):
                continue
            mesh = str(store.folder / result["file"]) if "file" in result else run.place["file"]
            place = {**run.place, "mesh": mesh, "clip": str(setup.clip), "device": setup.device}
            runs.append(Run("clip", {"of": run.key, "object": run.subject, **known, **words}, place))
        found.append(Series(one.name, tuple(runs)))
    return found


def execute_scores(run: Run, store: Store, hooks: Hooks) -> dict:
    """Score a file as it is."""
    hooks.before()
    before, placement = _read_shape(Path(run.place["file"]))
    return _score(before, before, run, store)


def execute_refinement(run: Run, store: Store, hooks: Hooks) -> dict:
    """Refine a file and score the result where the file was; seconds are those of all but loading the model."""
    settings, path, kept = run.settings, Path(run.place["file"]), []
    plan = SIRPlan.from_json(settings["plan"])
    choices = {"preset": plan.name, **{name: used for name, (_, used) in plan_changes(plan).items()}}
    choices |= {"model": run.place["model"], "seed": settings["seed"], "device": settings["device"]}
    choices |= {"prompt": settings["prompt"], "elevation": settings["elevation"]}
    picture = run.place["picture"] if model_spec(run.place["model"]).takes_picture else None
    clock = Clock()

    def begin(stage: str) -> None:
        nonlocal clock
        clock = Clock() if stage == "sir" else clock

    before, placement = _read_shape(path)
    image = picture and Path(picture)
    if isinstance(before, Mesh):
        asset = make_asset(
            job_to_retexture(path, image, **choices), MeshSettings(), hooks=hooks, on_iteration=kept.append, on_stage=begin
        )
        seconds, file = clock.total, write_glb(store.folder / f"{run.key}.glb", asset.mesh)
    else:
        job = job_to_refine(path, image, **choices)
        assert job.placement is not None, "as job_to_refine says"
        refined = refine_field(job, hooks=hooks, on_iteration=kept.append, on_stage=begin)
        assert isinstance(refined, Gaussians), "as job_to_refine says"
        seconds = clock.total
        file = write_gaussians(store.folder / f"{run.key}.ply", move_gaussians(refined, job.placement.inverse()))
    result = _score(before, _move(read_result(file), placement), run, store)
    result["rows"][0] |= {
        "first_views": agreement_of_views(kept[0]),
        "last_views": agreement_of_views(kept[-1]),
        "evaluations": kept[-1].evaluations,
        "seconds": seconds,
    }
    return {**result, "file": file.name}


def _read_shape(path: Path) -> tuple[Gaussians | Mesh, Placement]:
    """A file where the cameras look, and how it came there."""
    result = read_result(path)
    assert isinstance(result, Gaussians | Mesh), "files of other systems hold nothing else"
    placement = fit_placement(result) if isinstance(result, Mesh) else fit_splats(result.splats())
    return _move(result, placement), placement


def _move(result: Any, placement: Placement) -> Any:
    return placement.apply(result) if isinstance(result, Mesh) else move_gaussians(result, placement)


def _score(before: Gaussians | Mesh, result: Gaussians | Mesh, run: Run, store: Store) -> dict:
    """All scores of a result, by cameras that depend on what was there before."""
    ring = film_cameras(extent_of(before), _RING, _RING_SIZE, _RING_ELEVATION)
    with torch.no_grad():
        render = render_result(result, ring)
        views = render_result(result, ring.resize(_STRIP_SIZE)[:: _RING // 4]).rgb.clamp(0, 1)
    row: dict[str, Any] = dict.fromkeys(MEASURES)
    row |= {"consistency": psnr_of_neighbours(render, render.rgb, ring), "sharpness": sharpness(render)}
    if run.place["picture"]:
        elevation = run.settings["elevation"]
        wanted = prepare_reference(read_picture(Path(run.place["picture"])), None, 0.8, _FRONT_SIZE, elevation)
        row["psnr"], row["iou"] = metrics.compare_front(result, wanted, elevation)
    return {"rows": [row], "picture": write_picture(store.folder / f"{run.key}.png", join_views(views)).name}


# --- scores -----------------------------------------------------------------------------------------------------------


def agreement_of_views(iteration: Iteration) -> float | None:
    """Compute the PSNR of neighbouring views of a model, through the surface of the field that was fitted to them."""
    height, width = iteration.targets.shape[1:3]
    fine = max(1, _RING_SIZE // height)  # a surface of few pixels is too steep to be compared
    cameras = iteration.step.cameras.to("cpu").resize(fine * width, fine * height)
    with torch.no_grad():
        render = render_result(iteration.field, cameras.to(iteration.field.device))
    surface = replace(render, rgb=render.rgb.cpu(), alpha=render.alpha.cpu(), depth=render.depth.cpu())
    return psnr_of_neighbours(surface, iteration.targets.cpu(), cameras)


def psnr_of_neighbours(surface: Render, images: Tensor, cameras: Cameras) -> float | None:
    """Compute the PSNR in dB of images with their neighbours on an orbit, through a surface.

    Every pixel is lifted to the surface by its depth and looked up in the neighbour, both ways; pixels count that the
    neighbour sees too, two of the images' pixels off silhouettes and jumps of depth. Errors of all pairs are averaged before
    the logarithm.

    Args:
        surface: renders of it with these cameras, for coverage and depth.
        images: [V,H,W,3] in [0,1], what is compared; enlarged if they are smaller than the renders.

    Returns:
        At most 100; None for one view, or if fewer than 16 pixels are seen twice.
    """
    order = cameras.orbit()[1].argsort().tolist()
    depth, near = surface.depth[..., 0] / surface.alpha[..., 0].clamp_min(1e-6), _NEAR * float(cameras.orbit()[2].mean())
    right = F.pad(depth.diff(n=2, dim=2).abs(), (1, 1))
    down = F.pad(depth.diff(n=2, dim=1).abs(), (0, 0, 1, 1))
    height, width = depth.shape[1:]
    rim, images = _RIM * max(1, height // images.shape[1]), resize(images, height, width)
    solid = (surface.alpha[..., 0] > _SOLID) & (torch.maximum(down, right) < near)
    solid = erode(solid[..., None].float(), rim)[..., 0] > 0.5
    pairs = [(a, b) for a, b in zip(order, order[1:] + order[:1], strict=True) if a != b]
    errors = [
        _errors_through_surface(images, depth, solid, cameras, source, target, near)
        for a, b in pairs
        for source, target in ((a, b), (b, a))
    ]
    found = torch.cat(errors) if errors else torch.zeros(0)
    if len(found) < _FEWEST:
        return None
    return min(100.0, -10 * math.log10(max(float(found.mean()), 1e-10)))


def _errors_through_surface(
    images: Tensor, depth: Tensor, solid: Tensor, cameras: Cameras, source: int, target: int, near: float
) -> Tensor:
    """[P] mean squared errors of the pixels of one view that another sees too."""
    row, column = solid[source].nonzero().unbind(1)
    z, size = depth[source, row, column], torch.tensor([cameras.width, cameras.height])
    plane = (torch.stack([column, row], 1) + 0.5 - size / 2) / cameras.focal
    c2w = cameras.c2w[source]
    points = torch.stack([plane[:, 0] * z, -plane[:, 1] * z, -z], 1) @ c2w[:3, :3].T + c2w[:3, 3]
    (pixels,), (distance,) = cameras[target : target + 1].project(points)
    inside = ((pixels >= 0) & (pixels < size)).all(1) & (distance > 0)
    there = torch.where(inside[:, None], pixels, 0.0).long()
    seen = inside & solid[target][there[:, 1], there[:, 0]]
    seen &= (depth[target][there[:, 1], there[:, 0]] - distance).abs() < near
    grid = (pixels[seen] / size * 2 - 1)[None, None]
    looked_up = F.grid_sample(images[target].movedim(-1, 0)[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T
    return (looked_up - images[source, row[seen], column[seen]]).square().mean(1)


def sharpness(render: Render) -> float:
    """Compute the mean length of the brightness gradient inside the silhouettes, in percent of white per pixel."""
    grey = render.rgb.clamp(0, 1).mean(-1)
    inside = erode((render.alpha > _SOLID).float(), _RIM)[..., 0] > 0.5
    right, down = F.pad(grey.diff(dim=2), (0, 1)), F.pad(grey.diff(dim=1), (0, 0, 0, 1))
    lengths = (down.square() + right.square()).sqrt()[inside]
    return 100 * float(lengths.mean()) if len(lengths) else 0.0


# --- results ----------------------------------------------------------------------------------------------------------


def show_refinements(setup: Setup, series: list[Series]) -> Section:
    """Tabulate scores before and after, and judge likeness and the agreement of the model's views."""
    shapes = _refinement_of(setup).shapes
    made = [one for one in series if one.runs and one.runs[0].kind != "clip"]
    rows = {one.name: _list_rows(one, series) for one in made}
    ring = {"ring": _RING, "size": _RING_SIZE, "elevation": f"{_RING_ELEVATION:g}", "seeds": len(setup.seeds)}
    text = _WORDS["text"].format(files=len(shapes), apart=360 // _RING, **ring)
    before, after = rows["before"], rows.get("after SIR", {})
    tables = [_tabulate_each(before, after)]
    if after:
        tables.insert(0, _tabulate_means(before, after))
    drawn = [_plan_sheet(setup, made, shapes[i : i + plots.SHOWN_OBJECTS]) for i in range(0, len(shapes), plots.SHOWN_OBJECTS)]
    return Section(text, _judge(before, after) if after else (), tables, drawn)


Rows = dict[str, list[dict]]
"""Scores by file, one row per seed."""


def _list_rows(made: Series, series: list[Series]) -> Rows:
    """The scores of a series' runs, with those of CLIP."""
    cosines = {}
    for one in series:
        for run, result in zip(one.runs, one.results, strict=True):
            if run.kind == "clip" and result is not None:
                cosines[run.settings["of"]] = result["mean"]
    found: Rows = {}
    for run, result in zip(made.runs, made.results, strict=True):
        if result is not None:
            found.setdefault(run.subject, []).append({**result["rows"][0], "clip": cosines.get(run.key)})
    return found


def _mean(rows: list[dict], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.mean(values) if values else None


def _estimate(values: Sequence[float | None]) -> Estimate:
    return estimate_objects(values, range(len(values)))


def _differences(ours: Rows, theirs: Rows, name: str, other: str = "") -> Estimate:
    """Paired differences by file; ``other`` names another column of the second rows."""
    pairs = [(_mean(rows, name), _mean(theirs[key], other or name)) for key, rows in ours.items() if key in theirs]
    return _estimate([None if a is None or b is None else a - b for a, b in pairs])


def _tabulate_means(before: Rows, after: Rows) -> Table:
    """Means over the files that were refined."""
    kept = {name: before[name] for name in after if name in before}
    rows = []
    for label, found in (("before", kept), ("after SIR", after)):
        estimates = {name: _estimate([_mean(rows, name) for rows in found.values()]) for name in MEASURES}
        rows.append((label, *(_write(e.mean if e.count else None, MEASURES[name][1]) for name, e in estimates.items())))
    changes = (_differences(after, before, name) for name in _OF_BOTH)
    empty = ("",) * (len(MEASURES) - len(_OF_BOTH))
    rows.append(("difference", *(change.interval() if change.count else "" for change in changes), *empty))
    return Table(_WORDS["means"].format(files=len(kept)), ("", *(heading for heading, _ in MEASURES.values())), tuple(rows))


def _tabulate_each(before: Rows, after: Rows) -> Table:
    rows = []
    for file, found in before.items():
        refined = after.get(file, [])
        cells = []
        for name, (_, digits) in MEASURES.items():
            values = [_mean(found, name), *([_mean(refined, name)] if refined else [])]
            cells.append(" → ".join(_write(value, digits) for value in values if value is not None) or "–")
        rows.append((file, *cells))
    return Table(_WORDS["each"], ("file", *(heading for heading, _ in MEASURES.values())), tuple(rows))


def _write(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _judge(before: Rows, after: Rows) -> list[Claim]:
    claims, names = [], {"clip": "The CLIP similarity", "psnr": "The PSNR of the front view"}
    measured = next((name for name in names if _differences(after, before, name).count), None)
    if measured:
        change, unit = _differences(after, before, measured), "dB" if measured == "psnr" else ""
        found = f"It differs by {change.interval(unit)} over {change.count} files."
        claims.append(make_claim("refine", "alike", change.above(0.0), found, measure=names[measured]))
    agreed = _differences(after, after, "last_views", "first_views")
    if agreed.count:
        found = f"They differ by {agreed.interval('dB')} over {agreed.count} files."
        claims.append(make_claim("refine", "agree", agreed.above(0.0), found))
    return claims


def _plan_sheet(setup: Setup, made: list[Series], shapes: tuple[Shape, ...]) -> Plot:
    subjects = {}
    for shape in shapes:
        side = torch.ones(_STRIP_SIZE, _STRIP_SIZE, 3)
        if shape.picture is not None:
            side = prepare_reference(read_picture(shape.picture), None, 0.8, _STRIP_SIZE, setup.elevation).image
        subjects[shape.path.name] = torch.cat([side, torch.ones_like(side)], 1)
    caption = _WORDS["caption"].format(names=", ".join(subjects))
    return plots.plan_sheet(setup, made, f"refine_{shapes[0].path.stem}", caption, "picture", subjects)


REFINE = Protocol(list_refinements, show_refinements, judge=list_judgements)
