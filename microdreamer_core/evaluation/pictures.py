"""Table III's protocol: a folder of pictures, methods as columns, CLIP similarity over 8 views at elevation 0, time.

A method is one of ours, or a folder of meshes that another system made of the same pictures, matched by the files' stems.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from ..cameras import orbit_cameras
from ..checkpoints.registry import EMBEDDED, check_model, check_plan, model_spec
from ..errors import InputError
from ..io.glb import write_glb
from ..io.mesh_files import SUFFIXES, read_mesh
from ..io.pictures import on_white, read_picture, write_picture
from ..job.outputs import film_cameras
from ..job.run import Job, make_asset
from ..mesh import Mesh
from ..meshing.settings import MeshSettings
from ..reference import Reference, prepare_reference
from ..render.mesh import render_mesh
from ..sir.hooks import Hooks
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.sds import SDS_PRESETS, SDSSettings, get_sds, sds_steps
from ..sir.stages import reference_view
from ..sir.start import start_field
from ..util.devices import choose_device
from . import metrics, plots
from .clip_cache import clip_stamp, load_any_clip
from .clip_similarity import PAPERS_CLIP, SIZE, VIEWS, similarity, views_of
from .content import Claim, Plot, Section, Setup, Sheet, Table
from .runs import Run, Store, sds_settings, views_strip
from .sheets import MOST_OBJECTS, two_views
from .sources import ANALYTIC, file_stamp, load_source, stamp
from .statistics import Estimate, Verdict

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_SHEET_SIZE, _FRONT_SIZE = 96, 128
_KEYS = ("preset", "iterations", "representation", "model", "sds", "steps")


@dataclass(frozen=True)
class Method:
    """A column of the table.

    Attributes:
        name: what to call it.
        meshes: folder of another system's meshes; None for ours.
        model, plan: ours. sds: baseline that takes the place of SIR's iterations.
    """

    name: str
    meshes: Path | None = None
    model: str = EMBEDDED
    plan: SIRPlan | None = None
    sds: SDSSettings | None = None


def picture_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, by name.

    Raises:
        InputError: there are none, or two of one stem.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder of pictures at {folder}; check the path.")
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES))
    if not files:
        raise InputError(f"{folder} holds no pictures ({', '.join(PICTURES)}); choose another folder.")
    stems = [path.stem for path in files]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise InputError(f"Meshes are matched by the stems of pictures, and {twice[0]!r} is there twice; rename one.")
    return files


def parse_method(text: str, model: str, iterations: int | None = None) -> Method:
    """A method of the command line: NAME=FOLDER, or NAME=KEY=VALUE,... with the keys preset, iterations, representation, model,
    sds and steps.

    Args:
        model, iterations: where the text names none.

    Raises:
        InputError: no such form, folder, key or value.
    """
    name, separator, rest = text.partition("=")
    if not (name and separator and rest):
        raise InputError(f"A method is NAME=FOLDER or NAME=KEY=VALUE,..., got {text!r}.")
    if "=" not in rest or Path(rest).is_dir():
        if not Path(rest).is_dir():
            raise InputError(
                f"The method {name!r} names the folder {rest}, which does not exist; its keys are {', '.join(_KEYS)}."
            )
        return Method(name, Path(rest))
    values = {}
    for item in rest.split(","):
        key, separator, value = item.partition("=")
        if key not in _KEYS or not value:
            raise InputError(f"The method {name!r} has {item!r}; write KEY=VALUE with one of {', '.join(_KEYS)}.")
        values[key] = value
    return our_method(name, values.pop("model", model), iterations, **values)


def our_method(name: str, model: str, usual: int | None = None, **values: str) -> Method:
    """One of ours.

    Args:
        usual: iterations where the values name none; None for the preset's.

    Raises:
        InputError: the plan does not suit the model, or a value cannot be used.
    """
    model = check_model(EMBEDDED if model == ANALYTIC else model)
    framing = model_spec(model)
    changes = {"iterations": _whole(name, values["iterations"])} if "iterations" in values else {}
    if not changes and usual is not None:
        changes["iterations"] = usual
    plan = get_plan(values.get("preset") or framing.suited_to(values.get("representation")), **changes)
    if values.get("representation", plan.representation) != plan.representation:
        raise InputError(f"The method {name!r} asks for {values['representation']}, and its preset for {plan.representation}.")
    check_plan(plan, framing, model)
    steps = {"steps": _whole(name, values["steps"])} if "steps" in values else {}
    if steps and "sds" not in values:
        raise InputError(f"The method {name!r} has steps without sds; choose one of {', '.join(SDS_PRESETS)}.")
    sds = get_sds(values["sds"], **steps) if "sds" in values else None
    return Method(name, None, model, plan, sds)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"The method {name!r} needs a whole number, got {text!r}.")
    return int(text)


def check_inputs(pictures: Sequence[Path], methods: Sequence[Method]) -> list[str]:
    """Read all pictures and meshes before the work begins.

    Returns:
        What is missing, a sentence each.

    Raises:
        InputError: a picture has no object to be found, a mesh does not load, or a folder has no mesh of any picture.
    """
    for path in pictures:
        _reference(path, 0.8, 64, 0.0)
    missing = []
    for method in methods:
        if method.meshes is None:
            continue
        found = {path.stem: mesh_of(method, path) for path in pictures}
        for mesh in filter(None, found.values()):
            read_mesh(mesh)
        lacking = [stem for stem, mesh in found.items() if mesh is None]
        if len(lacking) == len(found):
            raise InputError(
                f"{method.meshes} holds no mesh ({', '.join(SUFFIXES)}) named like a picture, say {lacking[0]}.glb."
            )
        if lacking:
            missing.append(f"{method.name} has no mesh of {', '.join(lacking)}; its numbers are of the others.")
    return missing


def mesh_of(method: Method, picture: Path) -> Path | None:
    """The file of another system's mesh of a picture."""
    return next((p for s in SUFFIXES if (p := method.meshes / f"{picture.stem}{s}").is_file()), None)


# --- runs -------------------------------------------------------------------------------------------------------------


def generations(setup: Setup) -> dict[str, list[tuple[Run, Path, int]]]:
    """By method: runs that make or look at a mesh, their pictures and seeds."""
    return {method.name: list(_of_method(setup, method)) for method in setup.methods}


def _of_method(setup: Setup, method: Method):
    for picture in setup.pictures:
        if method.meshes is not None:
            mesh = mesh_of(method, picture)
            if mesh is not None:
                settings = {"mesh": file_stamp(mesh), "picture": file_stamp(picture), "elevation": setup.elevation}
                yield Run("mesh", settings, {"mesh": str(mesh), "picture": str(picture)}), picture, 0
            continue
        for seed in setup.seeds:
            settings = {
                "picture": file_stamp(picture),
                "prompt": prompt_of(picture, method.model),
                "model": Path(method.model).name,
                "stamp": stamp(method.model),
                "plan": _json(asdict(method.plan)),
                "sds": None if method.sds is None else _json(asdict(method.sds)),
                "seed": seed,
                "elevation": setup.elevation,
                "device": setup.device,
            }
            work = method.plan.evaluations().per_view * method.plan.views + 2000.0
            yield Run("generation", settings, {"picture": str(picture), "model": method.model}, work), picture, seed


def prompt_of(picture: Path, model: str) -> str | None:
    """The prompt of a picture: the text of the .txt file beside it; without one, the picture's stem for a model of words
    alone, and none for others."""
    framing, text = model_spec(model), picture.with_suffix(".txt")
    if not framing.takes_prompt:
        return None
    if text.is_file():
        return text.read_text(encoding="utf-8").strip()
    return None if framing.takes_picture else picture.stem.replace("_", " ").replace("-", " ")


def _json(values: dict) -> dict:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def generation_run(run: Run, store: Store, hooks: Hooks) -> dict:
    """Picture to textured mesh; seconds are those of the optimisation and of all that follows it, without loading."""
    settings, picture = run.settings, Path(run.place["picture"])
    plan, model = SIRPlan.from_json(settings["plan"]), run.place["model"]
    framing = model_spec(model)
    reference = None
    if framing.takes_picture:
        reference = _reference(picture, framing.fill, None, settings["elevation"])
    known = {"prompt": settings["prompt"], "device": settings["device"]}
    job = Job(reference, plan, settings["seed"], picture.name, model, **known)
    optimised = 0.0
    if settings["sds"] is not None:
        job, optimised = _after_sds(job, settings["sds"], hooks)
    asset = make_asset(job, MeshSettings(), hooks=hooks)
    spent = asset.clock.seconds
    optimised += spent.get("refine", 0.0) + spent.get("reconstruct", 0.0)
    rest = sum(value for name, value in spent.items() if name not in ("load model", "refine", "reconstruct"))
    mesh = write_glb(store.folder / f"{run.key}.glb", asset.mesh)
    shown = _look_at_run(run, store, mesh, picture if framing.takes_picture else None)
    return {**shown, "seconds": {"optimise": optimised, "mesh": rest}}


def _after_sds(job: Job, values: dict, hooks: Hooks) -> tuple[Job, float]:
    """The job that makes a mesh of what SDS made, and the seconds that SDS took: by the clock, as all of a generation."""
    diffusion = load_source(job.model, job.device).condition(job.reference, job.prompt)
    shown = (job.plan.representation, diffusion.image_size, job.seed, diffusion.device)
    field = start_field(*shown, plan=job.plan)
    view = reference_view(job.reference, job.plan, diffusion.image_size)
    *_, state = sds_steps(field, diffusion, job.plan, sds_settings(values), job.seed, reference=view, hooks=hooks)
    return replace(job, plan=replace(job.plan, iterations=0), start=state.field, first=0), sum(state.seconds.values())


def mesh_run(run: Run, store: Store, hooks: Hooks) -> dict:
    """What another system's mesh looks like."""
    hooks.before()
    return _look_at_run(run, store, Path(run.place["mesh"]), Path(run.place["picture"]))


def _look_at_run(run: Run, store: Store, path: Path, picture: Path | None) -> dict:
    """What a mesh looks like, and its front against the picture that it was made of, if it was."""
    mesh = read_mesh(path)
    strip = views_strip(views_of(path, _SHEET_SIZE)[::2])
    name = write_picture(store.folder / f"{run.key}.png", strip).name
    shown = {"mesh": path.name, "faces": len(mesh.faces), "picture": name}
    if picture is None:
        return shown
    psnr, iou = front_view(mesh, picture, run.settings["elevation"])
    return {**shown, "psnr": psnr, "iou": iou}


def front_view(mesh: Mesh, picture: Path, elevation: float) -> tuple[float, float]:
    """(PSNR in dB, silhouette IoU) of a mesh's front view and its picture, each cut to its object: systems differ in scale."""
    wanted = _reference(picture, 0.8, _FRONT_SIZE, elevation)
    extent = float(mesh.vertices.norm(dim=1).max())
    far = float(film_cameras(extent, 1, _FRONT_SIZE, elevation).radius[0])
    render = render_mesh(mesh, orbit_cameras(elevation, 0.0, far, width=2 * _FRONT_SIZE), supersample=2)
    seen = prepare_reference(render.rgb[0].clamp(0, 1), render.alpha[0, ..., 0], 0.8, _FRONT_SIZE)
    return metrics.psnr(seen.image, wanted.image), metrics.silhouette_iou(seen.alpha, wanted.alpha)


@lru_cache(maxsize=4)
def _reference(path: Path, fill: float, size: int | None, elevation: float) -> Reference:
    return prepare_reference(read_picture(path), None, fill, size, elevation)


def similarities(setup: Setup, made: dict[str, list[tuple[Run, Path, int]]], store: Store) -> dict[str, Run]:
    """Runs that judge the meshes with CLIP, by the keys of the runs that made them."""
    found = {}
    known = clip_stamp(setup.clip)
    for run, picture, _ in (item for items in made.values() for item in items):
        result = store.load(run)
        if result is None:
            continue
        mesh = run.place.get("mesh") or str(store.folder / result["mesh"])
        settings = {"of": run.key, "picture": file_stamp(picture), "clip": known, "size": SIZE, "views": VIEWS}
        settings["framing"] = "released"
        if "psnr" not in result:  # made of words alone
            settings["prompt"] = run.settings["prompt"]
        place = {"mesh": mesh, "picture": str(picture), "clip": str(setup.clip), "device": setup.device}
        found[run.key] = Run("clip", settings, place)
    return found


def clip_run(run: Run, store: Store, hooks: Hooks) -> dict:
    """Cosines of a mesh's views with its picture, or with the prompt where it was made of words alone."""
    hooks.before()
    clip = _clip(run.place["clip"], run.place["device"])
    views = views_of(Path(run.place["mesh"]), run.settings["size"], run.settings["views"])
    if "prompt" in run.settings:
        wanted = clip.embed_texts([run.settings["prompt"]])
    else:
        wanted = clip.embed_images(on_white(read_picture(Path(run.place["picture"])))[None])
    values = similarity(clip.embed_images(views), wanted).cpu()
    return {"mean": float(values.mean()), "views": values.tolist()}


@lru_cache(maxsize=1)
def _clip(folder: str, device: str):
    return load_any_clip(Path(folder), choose_device(device))


# --- what they show ---------------------------------------------------------------------------------------------------


def show(setup: Setup, made: dict[str, list[tuple[Run, Path, int]]], judged: dict[str, Run], store: Store) -> Section:
    """The table, its bars, the pictures."""
    rows, cosines = [], {}
    for name, items in made.items():
        results = [(store.load(run), seed) for run, _, seed in items]
        found = [(store.load(judged[run.key]), picture, seed) for run, picture, seed in items if run.key in judged]
        cosines[name] = {(picture, seed): result["mean"] for result, picture, seed in found if result is not None}
        rows.append((name, *_row(results, _score(cosines[name]))))
    header = ("method", "CLIP similarity", "generation time, s", "front view PSNR, dB", "front view IoU", "faces", "meshes")
    caption = "Mean over the pictures ± standard deviation over the seeds; time of optimisation + of the mesh."
    known = {name: values for name, values in cosines.items() if values}
    points = partial(plots.ranges, list(known), [_score(values) for values in known.values()], "CLIP similarity")
    drawn = (Plot("clip_similarity", "CLIP similarity, ± standard deviation over seeds.", points),) if known else ()
    text = f"{len(setup.pictures)} pictures, {len(setup.seeds)} seeds; {VIEWS} views at elevation 0 of every mesh. {_MESHES}"
    text += f" CLIP sees {SIZE} pixels, framed as in the released code: the mesh's box scaled to ±0.9, from distance 3."
    if setup.clip is not None:
        worded = [method.name for method in setup.methods if method.plan and not model_spec(method.model).takes_picture]
        if worded:
            text += f" {', '.join(worded)} made from words: compared with those, a measure that says nothing against pictures."
        text += f" The CLIP is {setup.clip.resolve().name}; the paper's is {PAPERS_CLIP}, and no two CLIPs' numbers compare."
    table = Table(caption, header, tuple(rows))
    return Section(TITLE, text, tuple(_claims(_of_one_measure(setup, known))), (table,), drawn, (_sheet(setup, made, store),))


def _of_one_measure(setup: Setup, known: dict) -> dict:
    """The methods that are compared with what the first one is: pictures or words."""
    worded = {method.name: method.plan and not model_spec(method.model).takes_picture for method in setup.methods}
    first = next(iter(known), None)
    return {name: values for name, values in known.items() if bool(worded[name]) == bool(worded[first])}


def _score(values: dict[tuple[Path, int], float], only: set[Path] | None = None) -> Estimate:
    """The mean over the pictures, or over those of ``only``, as one sample a seed."""
    kept = [(value, seed) for (picture, seed), value in values.items() if only is None or picture in only]
    return _over_seeds(kept, lambda value: value)


TITLE = "Meshes from pictures"
_MESHES = (
    "Times are by the clock. Meshes are looked at as glTF has them, y up and the front towards +z: where all front views of a "
    "system are unlike their pictures, its meshes stand otherwise."
)


def _over_seeds(results, value) -> Estimate:
    """A number's mean over the pictures, as one sample a seed."""
    by_seed: dict[int, list[float]] = {}
    for result, seed in results:
        if result is not None:
            by_seed.setdefault(seed, []).append(value(result))
    return Estimate.of([statistics.mean(values) for values in by_seed.values()])


def _row(results, score: Estimate) -> tuple[str, ...]:
    timed_ones = [(result, seed) for result, seed in results if result is not None and "seconds" in result]
    stages = [_over_seeds(timed_ones, lambda result, stage=stage: result["seconds"][stage]) for stage in ("optimise", "mesh")]
    seconds = " + ".join(f"{stage.mean:.1f}" for stage in stages) if timed_ones else "not measured"
    columns = [
        _deviation(_over_seeds([(r, s) for r, s in results if r and name in r], lambda r, n=name: r[n]), digits)
        for name, digits in (("psnr", 2), ("iou", 3), ("faces", 0))
    ]
    return (
        _deviation(score, 4) if score.count else "not measured",
        seconds,
        *columns,
        str(sum(r is not None for r, _ in results)),
    )


def _deviation(estimate: Estimate, digits: int) -> str:
    if not estimate.count:
        return "none"
    return f"{estimate.mean:.{digits}f}" + (f" ± {estimate.deviation:.{digits}f}" if estimate.count > 1 else "")


def _claims(scores: dict[str, dict[tuple[Path, int], float]]) -> list[Claim]:
    """The first method against each other on the pictures of both, judged by the deviation over seeds as in the paper."""
    (first, ours), *others = scores.items() if scores else (("", {}),)
    claims = []
    for name, theirs in others:
        shared = {picture for picture, _ in ours} & {picture for picture, _ in theirs}
        a, b = _score(ours, shared), _score(theirs, shared)
        claims.append(
            Claim(
                f"{first} is better than {name}, judged by the deviation over runs, as in Table III.",
                "The CLIP similarity is higher by more than both deviations together, on the pictures that both have.",
                _beyond(a, b),
                f"{_deviation(a, 4)} against {_deviation(b, 4)} on {len(shared)} pictures.",
            )
        )
    return claims


def _beyond(ours: Estimate, theirs: Estimate) -> Verdict:
    if max(ours.count, theirs.count) < 2 or not min(ours.count, theirs.count):
        return "undecided"
    difference, spread = ours.mean - theirs.mean, ours.deviation + theirs.deviation
    return "yes" if difference > spread else "no" if difference < -spread else "undecided"


def _sheet(setup: Setup, made: dict[str, list[tuple[Run, Path, int]]], store: Store) -> Sheet:
    shown = setup.pictures[:MOST_OBJECTS]
    rows = [("picture", tuple(_in_two(_reference(path, 0.8, _SHEET_SIZE, 0.0).image) for path in shown))]
    for name, items in made.items():
        found = {path: run for run, path, _ in reversed(items)}
        rows.append((name, tuple(_two_views(store, found.get(path)) for path in shown)))
    return Sheet("meshes", f"Front and back of the meshes, first seed, at most {MOST_OBJECTS} pictures.", tuple(rows))


def _two_views(store: Store, run: Run | None) -> Tensor:
    result = None if run is None else store.load(run)
    if result is None:
        return torch.ones(_SHEET_SIZE, 2 * _SHEET_SIZE, 3)
    return two_views(read_picture(store.folder / result["picture"])[..., :3])


def _in_two(picture: Tensor) -> Tensor:
    """A picture, and as much white beside it."""
    return torch.cat([picture, torch.ones_like(picture)], 1)
