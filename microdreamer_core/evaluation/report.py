"""The report: check everything, do the runs that are not done yet, write page, plots, sheets and numbers."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..io.pictures import write_picture
from ..job.record import machine, versions, write_json
from ..sir.start import start_field
from ..util.atomic import replacing
from ..util.hooks import Hook
from . import pictures, plots
from .clip_cache import chosen_clip
from .content import Section, Series, Setup
from .markdown import markdown_summary
from .page import page
from .protocols import PROTOCOLS, idle, limits
from .runs import Run, Store
from .sheets import sheet_picture
from .sources import ANALYTIC, check_source, describe_model, stamp, takes_picture, weights_mb
from .workers import MEMORY_MB, Progress, choose_workers, run_all

log = logging.getLogger(__name__)

PICTURES = "pictures"
"""The protocol on a folder of pictures; all others have procedural objects."""

NAMES = (*PROTOCOLS, PICTURES)
QUICK = {"objects": 2, "seeds": 1, "iterations": 5, "sds_steps": 60}
"""Sizes of a report that shows whether everything works, not how well."""

USUAL = {"objects": 4, "seeds": 3, "iterations": 20, "sds_steps": 400}
_FIGURES = "figures"


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        page: index.html. summary: summary.md, the same beside its figures. numbers: results.json.
        figures: PNG files of plots and sheets.
        sections: what it says. impossible: what could not be done, a sentence each.
    """

    page: Path
    summary: Path
    numbers: Path
    figures: tuple[Path, ...]
    sections: tuple[Section, ...]
    impossible: tuple[str, ...]


def make_setup(
    folder: Path,
    *,
    model: str = ANALYTIC,
    quick: bool = False,
    objects: int | None = None,
    seeds: int | None = None,
    seed: int = 0,
    iterations: int | None = None,
    sds_steps: int | None = None,
    representations: Sequence[str] = ("gaussians",),
    device: str = "auto",
    picture_folder: Path | None = None,
    methods: Sequence[str] = (),
    clip: Path | None = None,
    elevation: float = 0.0,
) -> tuple[Setup, list[str]]:
    """Everything that a report needs, checked, and what is missing for it, a sentence each.

    Args:
        seeds: how many, from ``seed`` on. methods: as ``pictures.parse_method`` reads them.
        quick: small sizes where none are given.

    Raises:
        InputError: something cannot be used; nothing was computed yet.
    """
    from ..job.run import choose_device

    sizes = {"objects": objects, "seeds": seeds, "iterations": iterations, "sds_steps": sds_steps}
    sizes = {name: (QUICK if quick else USUAL)[name] if value is None else value for name, value in sizes.items()}
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"The report's {name} must be at least 1, got {value}.")
    target = choose_device(device)
    for representation in representations:
        start_field(representation, 16, 0, target)
    model = check_source(model)
    setup = Setup(
        folder,
        model,
        stamp(model),
        sizes["objects"],
        tuple(range(seed, seed + sizes["seeds"])),
        sizes["iterations"],
        sizes["sds_steps"],
        tuple(dict.fromkeys(representations)),
        device,
        guidance_scale=1.0 if model == ANALYTIC else None,
        elevation=elevation,
    )
    if picture_folder is None:
        if methods or clip:
            raise InputError("Methods and CLIP are for a folder of pictures, got none; add --pictures.")
        return setup, []
    found = pictures.picture_files(picture_folder)
    shorter = sizes["iterations"] if quick or iterations is not None else None
    chosen = tuple(pictures.parse_method(text, model, shorter) for text in methods)
    chosen = chosen or (pictures.our_method("ours", model, shorter),)
    names = [method.name for method in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"Methods need names of their own, got {', '.join(names)}.")
    missing = pictures.check_inputs(found, chosen)
    clip, why = chosen_clip(clip)
    return replace(setup, pictures=found, methods=chosen, clip=clip), [*missing, *filter(None, [why])]


def check_protocols(names: Sequence[str], setup: Setup) -> tuple[str, ...]:
    """The protocols to do, in a report's order; all that show something when none are named.

    Raises:
        InputError: an unknown one, or the one on pictures without any.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise InputError(f"There is no protocol {unknown[0]!r}; choose from {', '.join(NAMES)}.")
    if PICTURES in names and not setup.pictures:
        raise InputError(f"The protocol {PICTURES!r} needs a folder of pictures; add --pictures.")
    if not takes_picture(setup.model) and ({*names} - {PICTURES} or not setup.pictures):
        raise InputError(
            f"The model {Path(setup.model).name!r} takes words alone and is told no procedural object; of the protocols only "
            f"{PICTURES!r} is for it, with --pictures: a folder of pictures named like prompts, or beside .txt files with them."
        )
    without = {*idle(setup), *(() if setup.pictures else (PICTURES,))}
    wanted = names or [name for name in NAMES if name not in without]
    return tuple(name for name in NAMES if name in wanted)


def make_report(
    setup: Setup,
    names: Sequence[str] = (),
    *,
    missing: Sequence[str] = (),
    command: Sequence[str] = (),
    workers: int = 0,
    quiet: bool = False,
    check: Hook | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> Report:
    """Do what is not done yet and write the report.

    Args:
        missing: what ``make_setup`` found missing. command: arguments to be shown. workers: processes, 0 chooses.
        check: called often; raises to stop, after which the same call goes on.
        on_run: called with (done, total) runs of the first wave before it begins and after each of its runs.

    Raises:
        InputError: an unknown protocol, no matplotlib, a folder that cannot be written; nothing was computed yet.
    """
    everything_possible = not names
    names = check_protocols(names, setup)
    plots.check_matplotlib()
    store = Store(setup.folder)
    store.prepare()
    series = {name: PROTOCOLS[name].series(setup) for name in names if name in PROTOCOLS}
    made = pictures.generations(setup) if PICTURES in names else {}
    runs = [run for group in series.values() for one in group for run in one.runs]
    runs += [run for items in made.values() for run, _, _ in items]
    options = {"workers": workers, "quiet": quiet, "check": check}
    _complete(runs, store, setup, on_run=on_run, **options)
    judged = pictures.similarities(setup, made, store) if made and setup.clip else {}
    _complete(judged.values(), store, setup, **options)
    everything = {run.key: run for run in (*runs, *judged.values())}
    results = {key: result for key, run in everything.items() if (result := store.load(run)) is not None}
    failed = Counter(f"{run.kind} failed: {store.failure(run)}" for key, run in everything.items() if key not in results)
    reasons = dict.fromkeys(text for name, text in idle(setup).items() if everything_possible or name in names)
    impossible = (*reasons, *limits(setup, names), *missing, *(f"{text} ({n} runs)" for text, n in failed.items()))
    sections = [_section(name, setup, series[name], results) for name in series]
    if made:
        sections.append(pictures.show(setup, made, judged, store))
    return _write(setup, names, sections, impossible, everything, results, command)


def _worker_mb(setup: Setup) -> int:
    """Memory of a worker: a large checkpoint, which may be converted to float32, outweighs all else."""
    models = {setup.model, *(method.model for method in setup.methods if method.meshes is None)}
    return MEMORY_MB + 2 * max(map(weights_mb, models))


def _complete(runs, store: Store, setup: Setup, *, workers, quiet, check, on_run=None) -> None:
    """Do those runs, each once, that have no result yet."""
    runs = {run.key: run for run in runs}
    left = [run for run in runs.values() if store.load(run) is None]
    count = choose_workers(workers, len(left), setup.device, _worker_mb(setup))
    log.debug("%d runs, %d of them to be done by %d workers", len(runs), len(left), count)
    done = len(runs) - len(left)
    progress = Progress(left, count, kept=done, quiet=quiet)

    def finished(run: Run, seconds: float) -> None:
        nonlocal done
        done += 1
        progress.done(run, seconds)
        if on_run is not None:
            on_run(done, len(runs))

    if on_run is not None:
        on_run(done, len(runs))
    try:
        run_all(left, store, count, check=check, on_done=finished)
    finally:
        progress.close()


def _section(name: str, setup: Setup, series: list[Series], results: dict[str, dict]) -> Section:
    complete = [one.with_results(results) for one in series]
    empty = [one.name for one in complete if not any(one.results)]
    if empty:
        return Section(PROTOCOLS[name].title, f"No run of {', '.join(empty)} came to an end.")
    return PROTOCOLS[name].section(setup, complete)


def _write(setup, names, sections, impossible, runs, results, command) -> Report:
    folder = setup.folder / _FIGURES
    folder.mkdir(exist_ok=True)
    drawn, figures = {}, []
    for section in sections:
        for plot in section.plots:
            figure = plot.draw()
            for kind in ("svg", "png"):
                drawn[f"{plot.name}.{kind}"] = plots.render_figure(figure, kind)
                _write_bytes(folder / f"{plot.name}.{kind}", drawn[f"{plot.name}.{kind}"])
            figures.append(folder / f"{plot.name}.png")
        for sheet in section.sheets:
            figures.append(write_picture(folder / f"{sheet.name}.png", sheet_picture(sheet)))
            drawn[figures[-1].name] = figures[-1].read_bytes()
    facts = _facts(setup, names, command)
    text = page(facts, sections, impossible, drawn)
    index, words = setup.folder / "index.html", setup.folder / "summary.md"
    _write_bytes(index, text.encode())
    _write_bytes(words, markdown_summary(facts, sections, impossible, _FIGURES).encode())
    content = {
        "facts": facts,
        "impossible": list(impossible),
        "sections": [_plain(section) for section in sections],
        "runs": [
            {"key": key, "kind": run.kind, "settings": run.settings, "result": results.get(key)} for key, run in runs.items()
        ],
    }
    numbers = write_json(setup.folder / "results.json", content)
    return Report(index, words, numbers, tuple(figures), tuple(sections), tuple(impossible))


def _facts(setup: Setup, names: Sequence[str], command: Sequence[str]) -> dict:
    """What the numbers were made with."""
    facts = {
        "command": shlex.join(command),
        "protocols": ", ".join(names),
        "seeds": ", ".join(map(str, setup.seeds)),
    }
    if set(names) - {PICTURES}:
        sizes = {
            "model": describe_model(setup.model),
            "objects": f"{setup.objects} procedural toys, none of the shipped network's training",
            "K": setup.iterations,
            "SDS updates": setup.sds_steps,
        }
        facts |= {**sizes, "representations": ", ".join(setup.representations)}
    if PICTURES in names:
        facts |= {"pictures": ", ".join(path.name for path in setup.pictures)}
        facts |= {f"method {method.name}": _describe_method(method) for method in setup.methods}
        facts |= {"CLIP": "none" if setup.clip is None else setup.clip.resolve().name}
    facts |= {name.replace("_", " "): value for name, value in machine().items() if name != "torch_threads"}
    return {**facts, "versions": ", ".join(f"{name} {version}" for name, version in versions().items())}


def _describe_method(method: pictures.Method) -> str:
    if method.meshes is not None:
        return f"meshes of another system in {method.meshes.name}"
    start = f"{Path(method.model).name}, plan {method.plan.name}"
    return (
        f"{start}, SDS {method.sds.name}, {method.sds.steps} updates"
        if method.sds
        else f"{start}, K = {method.plan.iterations}"
    )


def _plain(section: Section) -> dict:
    """A section without its pictures."""
    return {
        "title": section.title,
        "claims": [asdict(claim) for claim in section.claims],
        "tables": [asdict(table) for table in section.tables],
    }


def _write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
