"""Meshes and splats of other systems, scored before and after SIR: meshes get a new texture, splats are refined.

Scores need no truth: likeness to the picture from the front, agreement of neighbouring views through the surface, sharpness.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
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
from .pages import Claim, Plot, Protocol, Section, Table, judge_statement
from .pictures import plan_clip
from .runs import Run, Series, to_json
from .sources import ANALYTIC, Setup, stamp_model
from .statistics import Estimate, average

MEASURES = {
    "clip": ("CLIP similarity", ".4f"),
    "psnr": ("front PSNR, dB", ".2f"),
    "iou": ("front IoU", ".3f"),
    "consistency": ("neighbouring views, dB", ".2f"),
    "sharpness": ("sharpness, %", ".2f"),
    "first_views": ("model's views at first, dB", ".2f"),
    "last_views": ("and at last, dB", ".2f"),
    "evaluations": ("evaluations", ".0f"),
    "seconds": ("seconds", ".1f"),
}
"""Columns of the tables: heading and format."""

_RING, _RING_SIZE, _RING_ELEVATION = 12, 256, 10.0
_FRONT_SIZE, _STRIP_SIZE = 128, 160
_RIM = 2
"""Pixels along a silhouette that are compared with none: their colours hold background."""
_SOLID, _NEAR, _FEWEST = 0.98, 0.01, 16
"""Coverage of a pixel with a surface; depths of one surface, as a share of the cameras' distance; pixels that make a number."""
_WORDS = PROTOCOLS["refine"]

# --- what is refined --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A file of another system, and what it should look like; without a plan it is only scored."""

    path: Path
    picture: Path | None
    prompt: str | None
    plan: SIRPlan | None


@dataclass(frozen=True)
class Refinement:
    """What a report refines: the files that can be read, and the model that does it."""

    shapes: tuple[Shape, ...]
    model: str


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
    refinement, before, after = _refinement_of(setup), [], []
    model = {"model": Path(refinement.model).name, "stamp": stamp_model(refinement.model), "device": setup.device}
    for shape in refinement.shapes:
        settings: dict[str, Any] = {"object": shape.path.name, "file": stamp_files(shape.path), "elevation": setup.elevation}
        settings["picture"] = shape.picture and stamp_files(shape.picture)
        place = {"file": str(shape.path), "picture": shape.picture and str(shape.picture), "model": refinement.model}
        before.append(Run("scores", execute_scores, settings, place))
        if (plan := shape.plan) is not None:
            settings, work = {**settings, **model, "prompt": shape.prompt, "plan": to_json(plan)}, plan.evaluations().per_view
            seeded = ({**settings, "seed": seed} for seed in setup.seeds)
            after += [Run("refinement", execute_refinement, one, place, work * plan.views + 500.0) for one in seeded]
    return [Series("before", tuple(before)), *([Series("after SIR", tuple(after))] if after else [])]


def _refinement_of(setup: Setup) -> Refinement:
    assert setup.refinement is not None, "checked by choose_protocols"
    return setup.refinement


def list_judgements(setup: Setup, series: list[Series], folder: Path) -> list[Series]:
    """List the runs that measure CLIP similarity before and after, by the picture or else the prompt."""
    prompts = {shape.path.name: shape.prompt for shape in _refinement_of(setup).shapes}

    def judge(one: Series) -> Iterator[Run]:
        for run, result in one.finished:
            words = {} if run.place["picture"] else {"prompt": prompts[run.sample[0]]}
            if words.get("prompt", "the picture"):
                file = folder / result["file"] if "file" in result else run.place["file"]
                yield plan_clip(setup, run, file, {"object": run.sample[0], **words})

    return [Series(one.name, tuple(judge(one))) for one in series if setup.clip is not None]


def execute_scores(run: Run, folder: Path, hooks: Hooks) -> dict:
    """Score a file as it is."""
    hooks.before()
    before, placement = _read_shape(Path(run.place["file"]))
    return _score(before, before, run, folder)


def execute_refinement(run: Run, folder: Path, hooks: Hooks) -> dict:
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
        seconds, file = clock.total, write_glb(folder / f"{run.key}.glb", asset.mesh)
    else:
        job = job_to_refine(path, image, **choices)
        assert job.placement is not None, "as job_to_refine says"
        refined = refine_field(job, hooks=hooks, on_iteration=kept.append, on_stage=begin)
        assert isinstance(refined, Gaussians), "as job_to_refine says"
        seconds = clock.total
        file = write_gaussians(folder / f"{run.key}.ply", move_gaussians(refined, job.placement.inverse()))
    result = _score(before, _move(read_result(file), placement), run, folder)
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


def _score(before: Gaussians | Mesh, result: Gaussians | Mesh, run: Run, folder: Path) -> dict:
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
    return {"rows": [row], "picture": write_picture(folder / f"{run.key}.png", join_views(views)).name}


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
    points = cameras.unproject(depth)
    pairs = [(a, b) for a, b in zip(order, order[1:] + order[:1], strict=True) if a != b]
    errors = [
        _errors_through_surface(images, depth, points, solid, cameras, source, target, near)
        for a, b in pairs
        for source, target in ((a, b), (b, a))
    ]
    found = torch.cat(errors) if errors else torch.zeros(0)
    if len(found) < _FEWEST:
        return None
    return min(100.0, -10 * math.log10(max(float(found.mean()), 1e-10)))


def _errors_through_surface(
    images: Tensor, depth: Tensor, points: Tensor, solid: Tensor, cameras: Cameras, source: int, target: int, near: float
) -> Tensor:
    """[P] mean squared errors of the pixels of one view that another sees too."""
    row, column = solid[source].nonzero().unbind(1)
    size = torch.tensor([cameras.width, cameras.height])
    (pixels,), (distance,) = cameras[target : target + 1].project(points[source, row, column])
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

Scores = dict[str, dict[str, float]]
"""By measure, its mean over the seeds by file."""


def show_refinements(setup: Setup, series: list[Series]) -> Section:
    """Tabulate scores before and after, and judge likeness and the agreement of the model's views."""
    shapes = _refinement_of(setup).shapes
    made = [one for one in series if one.runs and one.runs[0].kind != "clip"]
    before, after = (_average(series, name) for name in ("before", "after SIR"))
    scored = [run.sample[0] for run, _ in made[0].finished]
    refined = [file for file in scored if any(file == run.sample[0] for one in made[1:] for run, _ in one.finished)]
    ring = {"ring": _RING, "size": _RING_SIZE, "elevation": f"{_RING_ELEVATION:g}", "seeds": len(setup.seeds)}
    text = _WORDS["text"].format(files=len(shapes), apart=360 // _RING, **ring)
    headings = [heading for heading, _ in MEASURES.values()]
    rows = tuple((file, *_list_cells(before, after, file)) for file in scored)
    tables = [Table(_WORDS["each"], ("file", *headings), rows)]
    if refined:
        tables.insert(
            0, Table(_WORDS["means"].format(files=len(refined)), ("", *headings), _list_means(before, after, refined))
        )
    drawn = [_plan_sheet(setup, made, shapes[i : i + plots.SHOWN_OBJECTS]) for i in range(0, len(shapes), plots.SHOWN_OBJECTS)]
    return Section(text, _judge(before, after), tables, drawn)


def _average(series: list[Series], method: str) -> Scores:
    """All scores of a method, those of CLIP too."""

    def read(result: dict, name: str) -> float | None:
        return result.get("mean") if name == "clip" else result.get("rows", [{}])[0].get(name)

    samples = {name: [one.measure(partial(read, name=name)) for one in series if one.name == method] for name in MEASURES}
    return {name: average({key: value for one in found for key, value in one.items()}) for name, found in samples.items()}


def _subtract(ours: dict[str, float], theirs: dict[str, float]) -> Estimate:
    """Paired differences by file."""
    return Estimate.of([value - theirs[file] for file, value in ours.items() if file in theirs])


def _list_means(before: Scores, after: Scores, files: list[str]) -> tuple[tuple[str, ...], ...]:
    """Means over the files that were refined, and differences."""
    rows = []
    for label, scores in (("before", before), ("after SIR", after)):
        found = {name: [values[file] for file in files if file in values] for name, values in scores.items()}
        cells = (format(statistics.mean(found[name]), digits) if found[name] else "–" for name, (_, digits) in MEASURES.items())
        rows.append((label, *cells))
    changes = (_subtract(after[name], before[name]) for name in MEASURES)
    return (*rows, ("difference", *(f"{change:interval}" if change.count else "" for change in changes)))


def _list_cells(before: Scores, after: Scores, file: str) -> Iterator[str]:
    for name, (_, digits) in MEASURES.items():
        yield " → ".join(format(one[name][file], digits) for one in (before, after) if file in one[name]) or "–"


def _judge(before: Scores, after: Scores) -> list[Claim]:
    claims, statements = [], _WORDS["statements"]
    for measure, (name, unit) in {"clip": ("The CLIP similarity", ""), "psnr": ("The PSNR of the front view", " dB")}.items():
        if not claims and (change := _subtract(after[measure], before[measure])).count:
            claims.append(judge_statement(statements["alike"], change, measure=name, found=format(change, f"interval{unit}")))
    agreed = _subtract(after["last_views"], after["first_views"])
    return [*claims, judge_statement(statements["agree"], agreed)] if agreed.count else claims


def _plan_sheet(setup: Setup, made: list[Series], shapes: tuple[Shape, ...]) -> Plot:
    subjects = {}
    for shape in shapes:
        subjects[shape.path.name] = torch.ones(_STRIP_SIZE, _STRIP_SIZE, 3)
        if shape.picture is not None:
            reference = prepare_reference(read_picture(shape.picture), None, 0.8, _STRIP_SIZE, setup.elevation)
            subjects[shape.path.name] = reference.image
    caption = _WORDS["caption"].format(names=", ".join(subjects))
    return plots.plan_sheet(setup, made, f"refine_{shapes[0].path.stem}", caption, "picture", subjects)


REFINE = Protocol(list_refinements, show_refinements, judge=list_judgements)
