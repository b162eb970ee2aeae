"""Table III: a folder of pictures, methods as columns, CLIP similarity over 8 views at elevation 0, time.

A method is one of this program's, or a folder of meshes that another system made from the same images, matched by file stem.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from ..checkpoints.registry import model_spec
from ..io.glb import write_glb
from ..io.mesh_files import read_mesh
from ..io.pictures import on_white, read_picture, write_picture
from ..job.run import Job, choose_prompt, make_asset
from ..meshing.settings import MeshSettings
from ..reference import Reference, prepare_reference
from ..sir.hooks import Hooks
from ..sir.plan import SIRPlan
from ..sir.sds import SDSSettings, sds_steps
from ..sir.stages import reference_view
from ..sir.start import start_field
from ..util.devices import choose_device
from ..util.files import stamp_files
from ..util.images import join_views
from . import PROTOCOLS, metrics, plots
from .clip_similarity import PAPERS_CLIP, SIZE, VIEWS, Clip, load_clip, similarity, views_of
from .methods import Method
from .pages import Claim, Plot, Section, Table, make_claim
from .runs import Run, Store, to_json
from .series import Protocol, Series
from .sources import Setup, load_source, stamp_model
from .statistics import Estimate, average_objects, judge

_SHEET_SIZE, _FRONT_SIZE = 96, 128
_WORDS = PROTOCOLS["pictures"]

# --- runs -------------------------------------------------------------------------------------------------------------


def list_generations(setup: Setup) -> list[Series]:
    """List, by method, the runs that make or measure a mesh of each image."""
    return [Series(method.name, tuple(_list_runs(setup, method))) for method in setup.methods]


def _list_runs(setup: Setup, method: Method) -> Iterator[Run]:
    for picture in setup.pictures:
        settings, place = {"picture": stamp_files(picture), "elevation": setup.elevation}, {"picture": str(picture), "seed": 0}
        if (plan := method.plan) is None:
            if mesh := method.find_mesh(picture):
                yield Run("mesh", {**settings, "mesh": stamp_files(mesh)}, {**place, "mesh": str(mesh)})
            continue
        settings |= {
            "prompt": choose_prompt(picture, method.model),
            "model": Path(method.model).name,
            "stamp": stamp_model(method.model),
            "plan": to_json(plan),
            "sds": method.sds and to_json(method.sds),
            "device": setup.device,
        }
        work = plan.evaluations().per_view * plan.views + 2000.0
        for seed in setup.seeds:
            yield Run("generation", {**settings, "seed": seed}, {**place, "seed": seed, "model": method.model}, work)


def list_judgements(setup: Setup, series: list[Series], store: Store) -> list[Series]:
    """List, by method, the runs that judge the meshes with CLIP."""
    if setup.clip is None:
        return []
    stamp = f"{setup.clip.resolve().name}/{stamp_files(setup.clip)}"
    known = {"clip": stamp, "size": SIZE, "views": VIEWS, "framing": "released"}

    def judge_mesh(run: Run, result: dict) -> Run:
        words = {} if "psnr" in result else {"prompt": run.settings["prompt"]}  # made from a prompt alone
        mesh = run.place.get("mesh") or str(store.folder / result["mesh"])
        place = {**run.place, "mesh": mesh, "clip": str(setup.clip), "device": setup.device}
        return Run("clip", {"of": run.key, "picture": run.settings["picture"], **known, **words}, place)

    pairs = ((one.name, zip(one.runs, one.results, strict=True)) for one in series)
    return [Series(name, tuple(judge_mesh(run, result) for run, result in found if result)) for name, found in pairs]


def execute_generation(run: Run, store: Store, hooks: Hooks) -> dict:
    """Make a textured mesh; seconds are those of the optimisation and everything after it, without loading."""
    settings, picture, model = run.settings, Path(run.place["picture"]), run.place["model"]
    spec, plan, seed = model_spec(model), SIRPlan.from_json(settings["plan"]), settings["seed"]
    reference = _prepare(picture, spec.fill, None, settings["elevation"]) if spec.takes_picture else None
    job = Job(reference, plan, seed, picture.name, model, prompt=settings["prompt"], device=settings["device"])
    optimised = 0.0
    if settings["sds"] is not None:  # SDS's result is meshed like a run of no iterations, and its seconds by the clock count
        diffusion = load_source(model, job.device).condition(reference, job.prompt)
        start = start_field(plan.representation, diffusion.image_size, seed, diffusion.device, plan=plan)
        view, sds = reference_view(reference, plan, diffusion.image_size), SDSSettings.from_json(settings["sds"])
        *_, state = sds_steps(start, diffusion, plan, sds, seed, reference=view, hooks=hooks)
        optimised = sum(state.seconds.values())
        job = replace(job, plan=replace(plan, iterations=0), start=state.field, first=0)
    asset = make_asset(job, MeshSettings(), hooks=hooks)
    spent = {name: seconds for name, seconds in asset.clock.seconds.items() if name != "load model"}
    optimised += spent.pop("refine", 0.0) + spent.pop("reconstruct", 0.0)
    mesh = write_glb(store.folder / f"{run.key}.glb", asset.mesh)
    shown = _look_at_mesh(run, store, mesh, picture if spec.takes_picture else None)
    return {**shown, "seconds": {"optimise": optimised, "mesh": sum(spent.values())}}


def execute_mesh(run: Run, store: Store, hooks: Hooks) -> dict:
    """Measure another system's mesh."""
    hooks.before()
    return _look_at_mesh(run, store, Path(run.place["mesh"]), Path(run.place["picture"]))


def _look_at_mesh(run: Run, store: Store, path: Path, picture: Path | None) -> dict:
    """Render a mesh, and compare its front with the image that it was made from, if any."""
    mesh = read_mesh(path)
    name = write_picture(store.folder / f"{run.key}.png", join_views(views_of(path, _SHEET_SIZE)[::2])).name
    shown = {"mesh": path.name, "faces": len(mesh.faces), "picture": name}
    if picture is None:
        return shown
    elevation = run.settings["elevation"]
    psnr, iou = metrics.compare_front(mesh, _prepare(picture, 0.8, _FRONT_SIZE, elevation), elevation)
    return {**shown, "psnr": psnr, "iou": iou}


@lru_cache(maxsize=4)
def _prepare(path: Path, fill: float, size: int | None, elevation: float) -> Reference:
    return prepare_reference(read_picture(path), None, fill, size, elevation)


def execute_clip(run: Run, store: Store, hooks: Hooks) -> dict:
    """Measure the cosines of a mesh's views with its image, or with the prompt if it was made from a prompt alone."""
    hooks.before()
    clip = _load_clip(run.place["clip"], run.place["device"])
    views = views_of(Path(run.place["mesh"]), run.settings["size"], run.settings["views"])
    if "prompt" in run.settings:
        wanted = clip.embed_texts([run.settings["prompt"]])
    else:
        wanted = clip.embed_images(on_white(read_picture(Path(run.place["picture"])))[None])
    values = similarity(clip.embed_images(views), wanted).cpu()
    return {"mean": float(values.mean()), "views": values.tolist()}


@lru_cache(maxsize=1)
def _load_clip(folder: str, device: str) -> Clip:
    return load_clip(Path(folder), choose_device(device))


# --- results ----------------------------------------------------------------------------------------------------------

Values = dict[tuple[str, int], float]
"""A number by image and seed."""


def show_meshes(setup: Setup, series: list[Series]) -> Section:
    """Tabulate quality and time, and judge the first method against the others by CLIP similarity."""
    made, judged = series[: len(setup.methods)], series[len(setup.methods) :]
    cosines = {one.name: _pick(one, "mean") for one in judged}
    rows = [(one.name, *_list_cells(one, cosines.get(one.name, {}))) for one in made]
    header = ("method", "CLIP similarity", "generation time, s", "front view PSNR, dB", "front view IoU", "faces", "meshes")
    caption = "Mean over the pictures ± standard deviation over the seeds; time of optimisation + of the mesh."
    cosines = {name: values for name, values in cosines.items() if values}
    drawn = [_plan_sheet(setup, made)]
    if cosines:
        draw = partial(plots.draw_ranges, {name: _estimate(v) for name, v in cosines.items()}, "CLIP similarity")
        drawn.insert(0, Plot("clip_similarity", "CLIP similarity, ± standard deviation over seeds.", draw))
    text_only = [method.name for method in setup.methods if method.text_only]
    text = _WORDS["text"].format(pictures=len(setup.pictures), seeds=len(setup.seeds), views=VIEWS, size=SIZE)
    if text_only and setup.clip:
        text += _WORDS["words"].format(names=", ".join(text_only))
    if setup.clip:
        text += _WORDS["clip"].format(name=setup.clip.resolve().name, papers=PAPERS_CLIP)
    # similarities to images and to text are not comparable
    alike = {name: values for name, values in cosines.items() if (name in text_only) == (next(iter(cosines)) in text_only)}
    return Section(text, judge_similarity(alike), (Table(caption, header, tuple(rows)),), drawn)


def _pick(series: Series, name: str, part: str = "") -> Values:
    """A number, or a part of one, of each result that has it."""
    found = {}
    for run, result in zip(series.runs, series.results, strict=True):
        value = (result or {}).get(name)
        value = value.get(part) if part and value else value
        if value is not None:
            found[run.subject, run.place["seed"]] = value
    return found


def _estimate(values: Values, only: set[str] | None = None) -> Estimate:
    """The mean over the images, or those in ``only``, as one sample per seed."""
    kept = {key: value for key, value in values.items() if only is None or key[0] in only}
    return Estimate.of([*average_objects([*kept.values()], [seed for _, seed in kept]).values()])


def _list_cells(series: Series, cosines: Values) -> list[str]:
    stages = [_estimate(_pick(series, "seconds", stage)) for stage in ("optimise", "mesh")]
    return [
        _write_estimate(cosines, 4) if cosines else "not measured",
        " + ".join(f"{stage.mean:.1f}" for stage in stages) if stages[0].count else "not measured",
        *(_write_estimate(_pick(series, name), digits) for name, digits in (("psnr", 2), ("iou", 3), ("faces", 0))),
        str(sum(result is not None for result in series.results)),
    ]


def _write_estimate(values: Values, digits: int, only: set[str] | None = None) -> str:
    estimate = _estimate(values, only)
    if not estimate.count:
        return "none"
    return f"{estimate.mean:.{digits}f}" + (f" ± {estimate.deviation:.{digits}f}" if estimate.count > 1 else "")


def judge_similarity(scores: dict[str, Values]) -> list[Claim]:
    """Judge the first method against each other one on their common images, by the deviation over seeds as in the paper."""
    claims = []
    (first, ours), *others = scores.items() if scores else [("", {})]
    for name, theirs in others:
        shared = {picture for picture, _ in ours} & {picture for picture, _ in theirs}
        a, b = _estimate(ours, shared), _estimate(theirs, shared)
        verdict = judge(a.mean - b.mean, a.deviation + b.deviation if max(a.count, b.count) > 1 else None)
        found = " against ".join(_write_estimate(values, 4, shared) for values in (ours, theirs))
        found = f"{found} on {len(shared)} pictures."
        claims.append(make_claim("pictures", "better", verdict, found, first=first, name=name))
    return claims


def _plan_sheet(setup: Setup, made: list[Series]) -> Plot:
    references = {str(path): _prepare(path, 0.8, _SHEET_SIZE, 0.0).image for path in setup.pictures[: plots.SHOWN_OBJECTS]}
    fronts = {path: torch.cat([image, torch.ones_like(image)], 1) for path, image in references.items()}
    caption = f"Front and back of the meshes, first seed, at most {plots.SHOWN_OBJECTS} pictures."
    return plots.plan_sheet(setup, made, "meshes", caption, "picture", fronts)


PICTURES = Protocol(list_generations, show_meshes, judge=list_judgements)
