"""The report: check everything, do the runs that are not done yet, write page, plots and numbers."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..checkpoints.registry import EMBEDDED, check_model
from ..errors import InputError
from ..job.record import machine, versions, write_json
from ..job.run import list_pictures
from ..sir.start import start_field
from ..util.atomic import prepare_folder, write_bytes
from ..util.devices import choose_device
from ..util.files import list_files
from ..util.hooks import Hook
from ..util.processes import choose_workers
from ..util.vocabulary import Representation
from . import PROTOCOLS, WORDS, plots, refinement
from .clip_similarity import choose_clip
from .comparisons import make_protocol
from .pages import Protocol, Section, write_html, write_markdown
from .pictures import PICTURES, check_methods, parse_method
from .refinement import RefineOptions, plan_refinement
from .runs import Run, Series, is_done, run_all
from .sources import ANALYTIC, IMPERFECTION, MIXTURE, Setup, stamp_model

SIZES = {"objects": (4, 2), "seeds": (3, 1), "iterations": (20, 5), "sds_steps": (400, 60)}
"""The usual sizes of a report, and those of one that shows whether everything works, not how well."""
MEMORY_MB = 1500
"""Memory of a worker with a small model."""
_OF_FILES = {"pictures": PICTURES, "refine": refinement.REFINE}
"""Protocols on files of the user, not on procedural objects."""


def load_protocol(name: str) -> Protocol:
    """Look up a protocol."""
    return _OF_FILES.get(name) or make_protocol(name)


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        files: by what they are: the page, its Markdown as summary, the numbers.
        sections: what it says. impossible: what could not be done, a sentence each.
    """

    files: dict[str, Path]
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
        sizes: objects, seeds (from ``seed`` on), iterations, sds_steps; those of ``SIZES`` if None.

    Raises:
        InputError: an input cannot be used; nothing has been computed yet.
    """
    chosen = {name: given if (given := sizes.get(name)) is not None else usual[quick] for name, usual in SIZES.items()}
    for name, value in chosen.items():
        if value < 1:
            raise InputError(f"The report's {name} must be at least 1, got {value}.")
    for representation in representations:
        start_field(representation, 16, 0, choose_device(device))
    model = model if model == ANALYTIC else check_model(model)
    objects, count, iterations, sds_steps = chosen.values()
    seeds, kinds = tuple(range(seed, seed + count)), tuple(dict.fromkeys(representations))
    setup = Setup(folder, model, stamp_model(model), objects, seeds, iterations, sds_steps, kinds, device, elevation=elevation)
    shorter, missing = iterations if quick or sizes.get("iterations") else None, []
    if refine is not None:
        planned, missing = plan_refinement(refine, model, elevation, shorter)
        setup = replace(setup, refinement=planned)
    if picture_folder is not None:
        found = list_pictures(picture_folder)
        texts = methods or (f"ours=preset={setup.spec.suited_to()}",)
        columns = tuple(parse_method(text, model, shorter) for text in texts)
        missing += check_methods(columns, found)
        setup = replace(setup, pictures=found, methods=columns)
    elif methods or (clip and refine is None):
        raise InputError("Methods and CLIP are for a folder of pictures, got none; add --pictures.")
    if not (setup.pictures or setup.refinement):
        return setup, missing
    clip, why = choose_clip(clip)
    return replace(setup, clip=clip), [*missing, *why]


def choose_protocols(names: Sequence[str], setup: Setup) -> tuple[tuple[str, ...], list[str]]:
    """Choose the protocols to run, in report order; all that show something with this setup if none are named.

    Returns:
        Them, and why others show nothing; those without their files need no explanation.

    Raises:
        InputError: an unknown protocol, or one without its files, or on objects with a model that takes prompts alone.
    """
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise InputError(f"There is no protocol {unknown[0]!r}; choose from {', '.join(PROTOCOLS)}.")
    lacking = [name for name, files in (("pictures", setup.pictures), ("refine", setup.refinement)) if not files]
    if unfounded := [name for name in names if name in lacking]:
        raise InputError(f"The protocol {unfounded[0]!r} needs {PROTOCOLS[unfounded[0]]['needs']}.")
    idle: dict[str, str] = {name: words["idle"] for name, words in PROTOCOLS.items() if setup.oracle and "idle" in words}
    if not setup.spec.takes_picture:
        idle = {name: WORDS["prompts_only"] for name in PROTOCOLS if name not in _OF_FILES}
        if idle.keys() & {*names} or len(lacking) == len(_OF_FILES):
            raise InputError(WORDS["prompts_alone"].format(model=Path(setup.model).name))
    chosen = tuple(name for name in PROTOCOLS if (name in names if names else name not in (*idle, *lacking)))
    return chosen, list(dict.fromkeys(text for name, text in idle.items() if not names or name in names))


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
    names, reasons = choose_protocols(names, setup)
    plots.check_matplotlib()
    prepare_folder(setup.runs, "The report")
    protocols = {name: load_protocol(name) for name in names}

    def complete(groups: dict[str, list[Series]]) -> dict[str, list[Series]]:
        """Do all runs without a result, each once; returns the series with their results."""
        runs = {run.key: run for found in groups.values() for one in found for run in one.runs}
        left = [run for run in runs.values() if not is_done(run.load(setup.runs))]
        # a large checkpoint, perhaps converted to float32, dominates a worker's memory
        models = {setup.model, *(method.model for method in setup.methods if method.meshes is None)} - {ANALYTIC, EMBEDDED}
        weights = max((sum(file.stat().st_size for file in list_files(Path(model))) for model in models), default=0)
        count = choose_workers(workers, len(left), setup.device, MEMORY_MB + 2 * weights // 1_000_000)
        run_all(left, setup.runs, count, kept=len(runs) - len(left), quiet=quiet, check=check)
        return {name: [one.attach(setup.runs) for one in found] for name, found in groups.items()}

    # 1. runs of the protocols, and those that judge their results; a run shared by several is done once
    series = complete({name: protocol.series(setup) for name, protocol in protocols.items()})
    judged = complete({name: p.judge(setup, series[name], setup.runs) for name, p in protocols.items() if p.judge})
    series = {name: found + judged.get(name, []) for name, found in series.items()}
    results = {run.key: (run, run.load(setup.runs)) for found in series.values() for one in found for run in one.runs}
    # 2. what could not be done
    failed = Counter(f"{run.kind} failed: {found.get('failed')}" for run, found in results.values() if not is_done(found))
    limits = [text for protocol in protocols.values() for text in protocol.limits(setup)]
    impossible = (*reasons, *limits, *missing, *(f"{text} ({n} runs)" for text, n in failed.items()))
    # 3. sections
    sections = []
    for name, found in series.items():
        empty = [one.name for one in found if not one.finished]
        lost = Section(f"No run of {', '.join(empty)} came to an end.")
        section = lost if empty and not protocols[name].judge else protocols[name].show(setup, found)
        sections.append(replace(section, title=PROTOCOLS[name]["title"]))
    files = _write(setup.folder, list_facts(setup, names, command), sections, impossible, [*results.values()])
    return Report(files, tuple(sections), impossible)


def _write(
    folder: Path, facts: dict, sections: list[Section], impossible: tuple[str, ...], results: list[tuple[Run, dict]]
) -> dict[str, Path]:
    drawn = {plot.name: plots.encode_plot(plot) for section in sections for plot in section.plots}
    (folder / "figures").mkdir(exist_ok=True)
    for name, kinds in drawn.items():
        for kind, content in kinds.items():
            write_bytes(folder / "figures" / f"{name}.{kind}", content)
    text = write_markdown(facts, sections, impossible, "figures")
    html = write_html(text, {name: kinds["svg"] for name, kinds in drawn.items()})
    said = [{"title": s.title, "claims": [*map(asdict, s.claims)], "tables": [*map(asdict, s.tables)]} for s in sections]
    runs = [run.record(result if is_done(result) else None) for run, result in results]
    numbers = {"facts": facts, "impossible": impossible, "sections": said, "runs": runs}
    return {
        "page": write_bytes(folder / "index.html", html.encode()),
        "summary": write_bytes(folder / "summary.md", text.encode()),
        "numbers": write_json(folder / "results.json", numbers),
    }


def list_facts(setup: Setup, names: Sequence[str], command: Sequence[str]) -> dict:
    """List how the numbers were made."""
    facts = {"command": shlex.join(command), "protocols": ", ".join(names), "seeds": ", ".join(map(str, setup.seeds))}
    if set(names) - _OF_FILES.keys():
        oracle = WORDS["oracle"].format(model=setup.model, objects=MIXTURE, **IMPERFECTION)
        facts |= {
            "model": oracle if setup.oracle else f"{Path(setup.model).name} ({setup.stamp})",
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
    if _OF_FILES.keys() & set(names):
        facts |= {"CLIP": "none" if setup.clip is None else setup.clip.resolve().name}
    facts |= {name.replace("_", " "): value for name, value in machine().items() if name != "torch_threads"}
    return {**facts, "versions": ", ".join(f"{name} {version}" for name, version in versions().items())}
