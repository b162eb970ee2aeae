"""The report: check everything, do the runs that are not done yet, write page, plots and numbers."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from ..checkpoints.registry import check_model
from ..errors import InputError
from ..job.record import machine, versions, write_json
from ..job.run import list_pictures
from ..sir.start import start_field
from ..util.atomic import prepare_folder, write_bytes
from ..util.devices import choose_device
from ..util.hooks import Hook
from ..util.processes import choose_workers
from ..util.vocabulary import Representation
from . import PROTOCOLS, comparisons, pictures, plots, refinement
from .clip_similarity import choose_clip
from .methods import check_methods, make_method, parse_method
from .pages import Section, write_html, write_markdown
from .refinement import RefineOptions, plan_refinement
from .runs import Run, Store
from .series import Protocol, Series
from .sources import ANALYTIC, Setup, describe_model, get_spec, measure_weights, stamp_model
from .workers import MEMORY_MB, run_all

log = logging.getLogger(__name__)

QUICK = {"objects": 2, "seeds": 1, "iterations": 5, "sds_steps": 60}
"""Sizes of a report that shows whether everything works, not how well."""

USUAL = {"objects": 4, "seeds": 3, "iterations": 20, "sds_steps": 400}
_FIGURES = "figures"
_OF_FILES = {"pictures", "refine"}
"""Protocols on files of the user, not on procedural objects."""
_PLACES = {"pictures": pictures, "refine": refinement}


def load_protocol(name: str) -> Protocol:
    """Look up a protocol: its module defines it under its name in capitals."""
    return getattr(_PLACES.get(name, comparisons), name.upper())


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        page: index.html. summary: summary.md, the same beside its figures. numbers: results.json.
        figures: PNG files. sections: what it says. impossible: what could not be done, a sentence each.
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
    seed: int = 0,
    representations: Sequence[Representation] = ("gaussians",),
    device: str = "auto",
    picture_folder: Path | None = None,
    methods: Sequence[str] = (),
    clip: Path | None = None,
    elevation: float = 0.0,
    refine: RefineOptions | None = None,
    **sizes: int | None,
) -> tuple[Setup, list[str]]:
    """Check everything that a report needs; returns the setup and one sentence for each missing thing.

    Args:
        quick: small sizes unless given. methods: in the form of ``parse_method``. refine: for the protocol ``refine``.
        sizes: objects, seeds (from ``seed`` on), iterations, sds_steps; those of ``USUAL`` if None.

    Raises:
        InputError: an input cannot be used; nothing has been computed yet.
    """
    chosen = {**(QUICK if quick else USUAL), **{name: value for name, value in sizes.items() if value is not None}}
    for name, value in chosen.items():
        if value < 1:
            raise InputError(f"The report's {name} must be at least 1, got {value}.")
    target = choose_device(device)
    for representation in representations:
        start_field(representation, 16, 0, target)
    model = model if model == ANALYTIC else check_model(model)
    seeds = tuple(range(seed, seed + chosen.pop("seeds")))
    places = {"representations": tuple(dict.fromkeys(representations)), "device": device, "elevation": elevation}
    setup = Setup(folder, model, stamp_model(model), **chosen, seeds=seeds, **places)
    shorter = setup.iterations if quick or sizes.get("iterations") else None
    lacking = []
    if refine is not None:
        planned, lacking = plan_refinement(refine, model, elevation, shorter)
        setup = replace(setup, refinement=planned)
    if picture_folder is None:
        if methods or (clip and refine is None):
            raise InputError("Methods and CLIP are for a folder of pictures, got none; add --pictures.")
        clip, why = (None, []) if refine is None else choose_clip(clip)
        return replace(setup, clip=clip), [*lacking, *why]
    pictures = list_pictures(picture_folder)
    columns = tuple(parse_method(text, model, shorter) for text in methods) or (make_method("ours", model, shorter),)
    missing = check_methods(columns, pictures)
    clip, why = choose_clip(clip)
    return replace(setup, pictures=pictures, methods=columns, clip=clip), [*lacking, *missing, *why]


def choose_protocols(names: Sequence[str], setup: Setup) -> tuple[str, ...]:
    """Choose the protocols to run, in report order; all that show something with this setup if none are named.

    Raises:
        InputError: an unknown protocol, or ``pictures`` without images.
    """
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise InputError(f"There is no protocol {unknown[0]!r}; choose from {', '.join(PROTOCOLS)}.")
    if "pictures" in names and not setup.pictures:
        raise InputError("The protocol 'pictures' needs a folder of pictures; add --pictures.")
    if "refine" in names and not setup.refinement:
        raise InputError("The protocol 'refine' needs a folder of meshes or splats; add --mesh.")
    given = setup.pictures or setup.refinement
    if not get_spec(setup.model).takes_picture and ({*names} - _OF_FILES or not given):
        raise InputError(
            f"The model {Path(setup.model).name!r} takes only prompts, which procedural objects lack; only the protocol "
            "'pictures' works with it, with --pictures: a folder of pictures named like prompts, or with .txt files of them; "
            "and 'refine', with --mesh and --prompt."
        )
    idle = explain_idle(setup)
    return tuple(name for name in PROTOCOLS if (name in names if names else name not in idle))


def explain_idle(setup: Setup) -> dict[str, str]:
    """Explain, by protocol, why it shows nothing with this setup; those without their files need no explanation."""
    reasons = {name: "" for name, files in (("pictures", setup.pictures), ("refine", setup.refinement)) if not files}
    if not get_spec(setup.model).takes_picture:
        text = "The model takes only prompts, which procedural objects lack: it is judged by CLIP only."
        return {name: text for name in PROTOCOLS if name not in _OF_FILES} | reasons
    return reasons | {name: words["idle"] for name, words in PROTOCOLS.items() if setup.oracle and "idle" in words}


def make_report(
    setup: Setup,
    names: Sequence[str] = (),
    *,
    missing: Sequence[str] = (),
    command: Sequence[str] = (),
    workers: int = 0,
    quiet: bool = False,
    check: Hook | None = None,
) -> Report:
    """Do the runs that are not done yet and write the report.

    Args:
        missing: what ``make_setup`` found missing. command: arguments to show. workers: processes; 0 chooses automatically.
        check: called often; raises to stop. Calling again resumes.

    Raises:
        InputError: an unknown protocol, no matplotlib, a folder that cannot be written; nothing has been computed yet.
    """
    reasons = dict.fromkeys(text for name, text in explain_idle(setup).items() if text and (not names or name in names))
    names = choose_protocols(names, setup)
    plots.check_matplotlib()
    store = Store(setup.folder)
    prepare_folder(store.folder, "The report")
    complete = partial(_complete, store=store, setup=setup, workers=workers, quiet=quiet, check=check)
    # 1. runs of the protocols, and those that judge their results; a run shared by several is done once
    protocols = {name: load_protocol(name) for name in names}
    series = complete({name: protocol.series(setup) for name, protocol in protocols.items()})
    judged = complete({name: p.judge(setup, series[name], store) for name, p in protocols.items() if p.judge})
    series = {name: found + judged.get(name, []) for name, found in series.items()}
    # 2. sections
    results = [pair for found in series.values() for one in found for pair in zip(one.runs, one.results, strict=True)]
    results = {run.key: (run, result) for run, result in results}
    failed = Counter(f"{run.kind} failed: {store.explain_failure(run)}" for run, result in results.values() if result is None)
    limits = [text for protocol in protocols.values() for text in protocol.limits(setup)]
    impossible = (*reasons, *limits, *missing, *(f"{text} ({n} runs)" for text, n in failed.items()))
    sections = tuple(_show(name, setup, found) for name, found in series.items())
    return _write(setup, list_facts(setup, names, command), sections, impossible, results)


def _complete(
    groups: dict[str, list[Series]], store: Store, setup: Setup, workers: int, quiet: bool, check: Hook | None
) -> dict[str, list[Series]]:
    """Do all runs without a result, each once; returns the series with their results."""
    runs = {run.key: run for found in groups.values() for one in found for run in one.runs}
    left = [run for run in runs.values() if store.load(run) is None]
    # a large checkpoint, perhaps converted to float32, dominates a worker's memory
    models = {setup.model, *(method.model for method in setup.methods if method.meshes is None)}
    count = choose_workers(workers, len(left), setup.device, MEMORY_MB + 2 * max(map(measure_weights, models)))
    log.debug("%d runs, %d of them to be done by %d workers", len(runs), len(left), count)
    run_all(left, store, count, kept=len(runs) - len(left), quiet=quiet, check=check)
    return {name: [one.attach(store) for one in found] for name, found in groups.items()}


def _show(name: str, setup: Setup, series: list[Series]) -> Section:
    protocol, title = load_protocol(name), PROTOCOLS[name]["title"]
    empty = [one.name for one in series if not any(one.results)]
    if empty and not protocol.judge:
        return Section(f"No run of {', '.join(empty)} came to an end.", title=title)
    return replace(protocol.show(setup, series), title=title)


def _write(
    setup: Setup, facts: dict, sections: tuple, impossible: tuple, results: dict[str, tuple[Run, dict | None]]
) -> Report:
    folder = setup.folder / _FIGURES
    folder.mkdir(exist_ok=True)
    encoded = {plot.name: plots.encode_plot(plot) for section in sections for plot in section.plots}
    for name, kinds in encoded.items():
        for kind, content in kinds.items():
            write_bytes(folder / f"{name}.{kind}", content)
    text = write_markdown(facts, sections, impossible, _FIGURES)
    html = write_html(text, {name: kinds["svg"] for name, kinds in encoded.items()})
    summary = write_bytes(setup.folder / "summary.md", text.encode())
    page = write_bytes(setup.folder / "index.html", html.encode())
    found = ({"title": s.title, "claims": [*map(asdict, s.claims)], "tables": [*map(asdict, s.tables)]} for s in sections)
    runs = ({"key": r.key, "kind": r.kind, "settings": r.settings, "result": result} for r, result in results.values())
    content = {"facts": facts, "impossible": impossible, "sections": [*found], "runs": [*runs]}
    numbers = write_json(setup.folder / "results.json", content)
    return Report(page, summary, numbers, tuple(folder / f"{name}.png" for name in encoded), sections, impossible)


def list_facts(setup: Setup, names: Sequence[str], command: Sequence[str]) -> dict:
    """List how the numbers were made."""
    facts = {"command": shlex.join(command), "protocols": ", ".join(names), "seeds": ", ".join(map(str, setup.seeds))}
    if set(names) - _OF_FILES:
        facts |= {
            "model": describe_model(setup.model),
            "objects": f"{setup.objects} procedural toys, none of the shipped network's training",
            "K": setup.iterations,
            "SDS updates": setup.sds_steps,
            "representations": ", ".join(setup.representations),
        }
    if "pictures" in names:
        facts |= {"pictures": ", ".join(path.name for path in setup.pictures)}
        facts |= {f"method {method.name}": method.describe() for method in setup.methods}
    if setup.refinement is not None and "refine" in names:
        facts |= refinement.list_facts(setup.refinement)
    if _OF_FILES & set(names):
        facts |= {"CLIP": "none" if setup.clip is None else setup.clip.resolve().name}
    facts |= {name.replace("_", " "): value for name, value in machine().items() if name != "torch_threads"}
    return {**facts, "versions": ", ".join(f"{name} {version}" for name, version in versions().items())}
