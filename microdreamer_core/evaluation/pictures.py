"""Table III: a folder of pictures, methods as columns, CLIP similarity over 8 views at elevation 0, time.

A method is one of this program's, or a folder of meshes that another system made from the same images, matched by file stem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ..checkpoints.registry import EMBEDDED, model_spec
from ..errors import InputError
from ..io.glb import write_glb
from ..io.mesh_files import SUFFIXES, read_mesh
from ..io.pictures import on_white, read_picture, write_picture
from ..job.run import Job, choose_prompt, make_asset, plan_job
from ..meshing.settings import MeshSettings
from ..reference import Reference, prepare_reference
from ..sir.hooks import Hooks
from ..sir.plan import SIRPlan
from ..sir.sds import SDS_PRESETS, SDSSettings, get_sds, sds_steps
from ..sir.stages import reference_view
from ..sir.start import start_field
from ..util.devices import choose_device
from ..util.files import stamp_files
from ..util.images import join_views
from . import PROTOCOLS, metrics, plots
from .clip_similarity import PAPERS_CLIP, SIZE, VIEWS, load_clip, similarity, views_of
from .pages import Claim, Plot, Protocol, Section, Table, judge_statement
from .runs import Run, Series, to_json
from .sources import ANALYTIC, Setup, load_source, stamp_model
from .statistics import Estimate, Samples, average, judge

_SHEET_SIZE, _FRONT_SIZE = 96, 128
_KEYS = ("preset", "iterations", "representation", "model", "sds", "steps")
_WORDS = PROTOCOLS["pictures"]
_load_clip = lru_cache(maxsize=1)(load_clip)

# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A column of the table.

    Attributes:
        name: heading of the column.
        meshes: folder of another system's meshes, named like the images; None for this program.
        model, plan: of this program; plan is None for another system. sds: baseline that replaces SIR's iterations.
    """

    name: str
    meshes: Path | None = None
    model: str = EMBEDDED
    plan: SIRPlan | None = None
    sds: SDSSettings | None = None

    def find_mesh(self, picture: Path) -> Path | None:
        """Find the file of another system's mesh of a picture."""
        places = (self.meshes / f"{picture.stem}{suffix}" for suffix in SUFFIXES) if self.meshes else ()
        return next((place for place in places if place.is_file()), None)

    def describe(self) -> str:
        """Describe how the meshes are made."""
        if self.plan is None:
            return f"meshes of another system in {self.meshes and self.meshes.name}"
        work = f"SDS {self.sds.name}, {self.sds.steps} updates" if self.sds else f"K = {self.plan.iterations}"
        return f"{Path(self.model).name}, plan {self.plan.name}, {work}"


def parse_method(text: str, model: str, iterations: int | None = None) -> Method:
    """Parse a method: NAME=FOLDER, or NAME=KEY=VALUE,... with the keys preset, iterations, representation, model, sds, steps.

    Args:
        model, iterations: defaults if the text names none; None for the preset's iterations.

    Raises:
        InputError: no such form, folder, key or value, or the plan does not suit the model.
    """
    name, _, rest = text.partition("=")
    if not (name and rest):
        raise InputError(f"A method is NAME=FOLDER or NAME=KEY=VALUE,..., got {text!r}.")
    if Path(rest).is_dir():
        return Method(name, Path(rest))
    if "=" not in rest:
        raise InputError(f"The method {name!r} names the folder {rest}, which does not exist; its keys are {', '.join(_KEYS)}.")
    values: dict[str, Any] = {key: value for key, _, value in (item.partition("=") for item in rest.split(","))}
    for key, value in values.items():
        if key not in _KEYS or not value or not (value.isdecimal() or key not in ("iterations", "steps")):
            keys = f"one of {', '.join(_KEYS)}, iterations and steps being whole numbers"
            raise InputError(f"The method {name!r} has {key}={value!r}; write KEY=VALUE with {keys}.")
    sds, steps = values.pop("sds", None), {"steps": int(values.pop("steps"))} if "steps" in values else {}
    if steps and not sds:
        raise InputError(f"The method {name!r} has steps without sds; choose one of {', '.join(SDS_PRESETS)}.")
    if (wanted := values.pop("iterations", iterations)) is not None:
        values["iterations"] = int(wanted)
    job, _ = plan_job(None, **{"model": EMBEDDED if model == ANALYTIC else model, **values})
    return Method(name, model=job.model, plan=job.plan, sds=get_sds(sds, **steps) if sds else None)


def check_methods(methods: Sequence[Method], pictures: Sequence[Path]) -> list[str]:
    """Read all meshes before the work begins, and return a message for each method that lacks some.

    Raises:
        InputError: names are not unique, a mesh does not load, or a folder has no mesh of any picture.
    """
    names, missing = [method.name for method in methods], []
    if len(set(names)) < len(names):
        raise InputError(f"Methods need different names, got {', '.join(names)}.")
    for method in (method for method in methods if method.meshes):
        found = {path.stem: method.find_mesh(path) for path in pictures}
        lacking = [stem for stem, mesh in found.items() if mesh is None]
        for mesh in filter(None, found.values()):
            read_mesh(mesh)
        if len(lacking) == len(found):
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{method.meshes} holds no mesh ({kinds}) named like a picture, say {lacking[0]}.glb.")
        if lacking:
            missing.append(f"{method.name} has no mesh of {', '.join(lacking)}; its numbers are of the others.")
    return missing


# --- runs -------------------------------------------------------------------------------------------------------------


def list_generations(setup: Setup) -> list[Series]:
    """List, by method, the runs that make or measure a mesh of each image."""
    return [Series(method.name, tuple(_list_runs(setup, method))) for method in setup.methods]


def _list_runs(setup: Setup, method: Method) -> Iterator[Run]:
    for picture in setup.pictures:
        settings, place = {"picture": stamp_files(picture), "elevation": setup.elevation}, {"picture": str(picture)}
        if (plan := method.plan) is None:
            if mesh := method.find_mesh(picture):
                yield Run("mesh", execute_mesh, {**settings, "mesh": stamp_files(mesh)}, {**place, "mesh": str(mesh)})
            continue
        model = {"model": Path(method.model).name, "stamp": stamp_model(method.model), "device": setup.device}
        settings |= {"plan": to_json(plan), "sds": method.sds and to_json(method.sds), **model}
        settings["prompt"] = choose_prompt(picture, method.model)
        work = plan.evaluations().per_view * plan.views + 2000.0
        for seed in setup.seeds:
            seeded = {**settings, "seed": seed}
            yield Run("generation", execute_generation, seeded, {**place, "seed": seed, "model": method.model}, work)


def list_judgements(setup: Setup, series: list[Series], folder: Path) -> list[Series]:
    """List, by method, the runs that judge the meshes with CLIP."""

    def judge_mesh(run: Run, result: dict) -> Run:
        settings = {"picture": run.settings["picture"], "framing": "released"}
        settings |= {} if "psnr" in result else {"prompt": run.settings["prompt"]}  # made from a prompt alone
        return plan_clip(setup, run, run.place.get("mesh") or folder / result["mesh"], settings)

    return [Series(one.name, tuple(judge_mesh(*pair) for pair in one.finished)) for one in series if setup.clip]


def plan_clip(setup: Setup, run: Run, result: Path | str, settings: dict) -> Run:
    """Plan to judge the result file of a run with CLIP, by the run's picture, or by the settings' prompt if there is one."""
    assert setup.clip is not None, "without a CLIP nothing is judged"
    clip = {"clip": f"{setup.clip.resolve().name}/{stamp_files(setup.clip)}", "size": SIZE, "views": VIEWS}
    place = {**run.place, "seed": run.sample[1], "mesh": str(result), "clip": str(setup.clip), "device": setup.device}
    return Run("clip", execute_clip, {"of": run.key, **clip, **settings}, place)


def execute_generation(run: Run, folder: Path, hooks: Hooks) -> dict:
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
    place = {"mesh": str(write_glb(folder / f"{run.key}.glb", asset.mesh)), "picture": spec.takes_picture and str(picture)}
    shown = execute_mesh(replace(run, place=place), folder, hooks)
    return {**shown, "seconds": {"optimise": optimised, "mesh": sum(spent.values())}}


def execute_mesh(run: Run, folder: Path, hooks: Hooks) -> dict:
    """Render a mesh, and compare its front with the image that it was made from, if any."""
    hooks.before()
    path, picture, elevation = Path(run.place["mesh"]), run.place["picture"], run.settings["elevation"]
    mesh, sides = read_mesh(path), join_views(views_of(path, _SHEET_SIZE)[::2])
    shown = {"mesh": path.name, "faces": len(mesh.faces), "picture": write_picture(folder / f"{run.key}.png", sides).name}
    if not picture:
        return shown
    psnr, iou = metrics.compare_front(mesh, _prepare(Path(picture), 0.8, _FRONT_SIZE, elevation), elevation)
    return {**shown, "psnr": psnr, "iou": iou}


@lru_cache(maxsize=4)
def _prepare(path: Path, fill: float, size: int | None, elevation: float) -> Reference:
    return prepare_reference(read_picture(path), None, fill, size, elevation)


def execute_clip(run: Run, folder: Path, hooks: Hooks) -> dict:
    """Measure the cosines of a mesh's views with its image, or with the prompt if it was made from a prompt alone."""
    hooks.before()
    clip = _load_clip(run.place["clip"], choose_device(run.place["device"]))
    views = views_of(Path(run.place["mesh"]), run.settings["size"], run.settings["views"])
    if "prompt" in run.settings:
        wanted = clip.embed_texts([run.settings["prompt"]])
    else:
        wanted = clip.embed_images(on_white(read_picture(Path(run.place["picture"])))[None])
    values = similarity(clip.embed_images(views), wanted).cpu()
    return {"mean": float(values.mean()), "views": values.tolist()}


# --- results ----------------------------------------------------------------------------------------------------------

_COLUMNS = {"front view PSNR, dB": ("psnr", ".2f"), "front view IoU": ("iou", ".3f"), "faces": ("faces", ".0f")}


def show_meshes(setup: Setup, series: list[Series]) -> Section:
    """Tabulate quality and time, and judge the first method against the others by CLIP similarity."""
    made, judged = series[: len(setup.methods)], series[len(setup.methods) :]
    cosines = {one.name: one.measure(lambda result: result["mean"]) for one in judged}
    header = ("method", "CLIP similarity", "generation time, s", *_COLUMNS, "meshes")
    rows = [(one.name, *_list_cells(one, cosines.get(one.name, {}))) for one in made]
    cosines = {name: values for name, values in cosines.items() if values}
    paths = setup.pictures[: plots.SHOWN_OBJECTS]
    fronts = {str(path): _prepare(path, 0.8, _SHEET_SIZE, 0.0).image for path in paths}
    drawn = [plots.plan_sheet(setup, made, "meshes", _WORDS["sheet"].format(most=plots.SHOWN_OBJECTS), "picture", fronts)]
    if cosines:
        draw = partial(plots.draw_ranges, {name: _estimate(v) for name, v in cosines.items()}, "CLIP similarity")
        drawn.insert(0, Plot("clip_similarity", "CLIP similarity, ± standard deviation over seeds.", draw))
    text_only = [m.name for m in setup.methods if m.meshes is None and not model_spec(m.model).takes_picture]
    text = _WORDS["text"].format(pictures=len(setup.pictures), seeds=len(setup.seeds), views=VIEWS, size=SIZE)
    if setup.clip:
        text += _WORDS["words"].format(names=", ".join(text_only)) if text_only else ""
        text += _WORDS["clip"].format(name=setup.clip.resolve().name, papers=PAPERS_CLIP)
    # similarities to images and to text are not comparable
    alike = {name: values for name, values in cosines.items() if (name in text_only) == (next(iter(cosines)) in text_only)}
    return Section(text, judge_similarity(alike), (Table(_WORDS["caption"], header, tuple(rows)),), drawn)


def _list_cells(series: Series, cosines: Samples) -> list[str]:
    numbers = [_estimate(series.measure(lambda r, name=name: r.get(name))) for name, _ in _COLUMNS.values()]
    stages = [_estimate(series.measure(lambda r, name=name: r.get("seconds", {}).get(name))) for name in ("optimise", "mesh")]
    return [
        f"{_estimate(cosines):spread .4f}" if cosines else "not measured",
        " + ".join(f"{stage.mean:.1f}" for stage in stages) if stages[0].count else "not measured",
        *(format(number, f"spread {digits}") for number, (_, digits) in zip(numbers, _COLUMNS.values(), strict=True)),
        str(len(series.finished)),
    ]


def _estimate(values: Samples) -> Estimate:
    """The mean over the images, as one sample per seed."""
    return Estimate.of(average(values, by=1).values())


def judge_similarity(scores: dict[str, Samples]) -> list[Claim]:
    """Judge the first method against each other one on their common images, by the deviation over seeds as in the paper."""
    claims = []
    (first, ours), *others = scores.items() if scores else [("", {})]
    for name, theirs in others:
        shared = {picture for picture, _ in ours} & {picture for picture, _ in theirs}
        pair = [{key: value for key, value in values.items() if key[0] in shared} for values in (ours, theirs)]
        a, b = map(_estimate, pair)
        verdict = judge(a.mean - b.mean, a.deviation + b.deviation if max(a.count, b.count) > 1 else None)
        words = {"first": first, "name": name, "found": f"{a:spread .4f} against {b:spread .4f}", "count": len(shared)}
        claims.append(judge_statement(_WORDS["statements"]["better"], a, verdict, **words))
    return claims


PICTURES = Protocol(list_generations, show_meshes, judge=list_judgements)
