"""Commands and options for models: choosing, listing, inspecting, downloading, scoring results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Cancelled, InputError
from ..sir.plan import SIRPlan
from ..util.readable import readable_size
from ..util.settings import parse_assignments, settings_of
from ..util.vocabulary import UPS
from . import interrupts
from .options import collect_options
from .streams import say

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from ..checkpoints.download import PublishedFile
    from ..checkpoints.load import CheckpointInfo
    from ..checkpoints.registry import ModelSpec
    from ..sir.plan import SIRPlan

_COLUMN = 10
_SMALLEST_VIEW, _LARGEST_VIEW = 16, 2048
_VARIANT = "what the weights don't tell: pixel or local for ImageDream; plain, xl or stable for Zero123 (default: by the name)"


READABLE_SPLATS = "3D Gaussians (.ply, .spz, .splat, .ksplat, .glb)"


def add_up(command: argparse.ArgumentParser) -> None:
    """Add the up axis of a file that is read; read as ``args.up``."""
    command.add_argument(
        "--up",
        choices=UPS,
        help="up axis of the file (default: what the file says, otherwise -y for splats and +y for meshes)",
    )


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add the options of a run: model, how to load it, plan, seed and device; read by ``run_choices``."""
    command.add_argument(
        "--model",
        default="embedded",
        metavar="MODEL",
        help="checkpoint file or folder of MVDream, ImageDream or Zero123, or its name in the models folder "
        "(`microdreamer models` lists them; default: the shipped one)",
    )
    command.add_argument(
        "--negative",
        metavar="WORDS",
        help="what the object must not look like (default: the list released with MVDream and ImageDream; '' for none)",
    )
    command.add_argument("--variant", default="auto", metavar="NAME", help=_VARIANT)
    command.add_argument("--no-ema", action="store_true", help="use the last weights instead of their running averages (EMA)")
    command.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="float32, float16 or bfloat16 (default: float16 for Zero123 on a GPU, else float32, as the released programs)",
    )
    command.add_argument(
        "--representation",
        metavar="NAME",
        help="what is optimised: gaussians (the default) or nerf, which takes longer; it chooses the model's preset for it",
    )
    command.add_argument(
        "--nerf-size",
        default="auto",
        metavar="SIZE",
        help="of a NeRF: small, or full as in the published runs (default: full on a GPU, else small)",
    )
    command.add_argument(
        "--preset", metavar="NAME", help="plan of the optimisation; `microdreamer models` lists them (default: the model's own)"
    )
    command.add_argument(
        "--iterations", type=int, metavar="K", help=f"{settings_of(SIRPlan)['iterations'].help} (default: the preset's)"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="NAME=VALUE",
        help="change any field of the plan, say t2_start=0.9 or elevation_range=-10,30; may be given several times",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another result (default 0)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    command.add_argument(
        "--low-memory",
        action="store_true",
        help="take less GPU memory and more time: one branch of guidance, one view, CLIP on the CPU (published models)",
    )
    command.add_argument("--no-graphs", action="store_true", help="do not replay the network's calls as CUDA graphs")


def add_reference_options(command: argparse.ArgumentParser) -> None:
    """Add the options of a picture of the object; read by ``reference_choices``."""
    command.add_argument(
        "--mask",
        type=Path,
        metavar="PICTURE",
        help="black and white (or transparent) picture of the same size; white is object",
    )
    command.add_argument(
        "--matting",
        action="store_true",
        help="cut the object out of any background with rembg (pip install 'rembg[cpu]'; downloads its network at first use)",
    )
    command.add_argument(
        "--elevation",
        type=float,
        default=0.0,
        metavar="DEGREES",
        help="from how high the picture was taken: 0 at eye level, 30 from above, negative from below (default 0)",
    )
    command.add_argument("--prompt", metavar="WORDS", help="what the picture shows, for models that also take words")


def reference_choices(args: argparse.Namespace) -> dict:
    """Return the values of ``add_reference_options`` as keywords for ``job_from_image``.

    Raises:
        InputError: mask and matting are given both.
    """
    if args.matting and args.mask:
        raise InputError("--mask and --matting exclude each other, got both; leave one out.")
    return {name: getattr(args, name) for name in ("mask", "matting", "elevation", "prompt")}


def run_choices(args: argparse.Namespace) -> dict:
    """Return the values of ``add_run_options`` as keywords for ``job_from_image`` and ``job_from_prompt``."""
    from ..checkpoints.load import ModelOptions

    names = ("model", "negative", "representation", "preset", "seed", "device", "nerf_size")
    options = ModelOptions(args.variant, not args.no_ema, args.dtype, args.low_memory, not args.no_graphs)
    changes, flags = parse_assignments(SIRPlan, args.assignments), collect_options(SIRPlan, args)
    if twice := [name for name in changes if name in flags]:
        raise InputError(f"{twice[0]} is given twice, by --set and by an option of its own; leave one out.")
    return {name: getattr(args, name) for name in names} | {"options": options} | changes | flags


def add_models(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `microdreamer models` and `microdreamer inspect`."""
    command = commands.add_parser(
        "models",
        help="list models and presets",
        description="List the models found here, and the presets with their numbers and whether they run with the shipped "
        "model. Checkpoints are searched for in the folder $MICRODREAMER_MODELS, or else in ./models.",
    )
    command.set_defaults(run=_models)
    command = commands.add_parser(
        "inspect",
        help="say what a checkpoint is",
        description="Say what a checkpoint is and what it lacks, without loading it.",
    )
    command.add_argument("checkpoint", metavar="FILE", help="checkpoint file or folder, or its name in the models folder")
    command.add_argument("--variant", default="auto", metavar="NAME", help=_VARIANT)
    command.set_defaults(run=_inspect)


def add_fetch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`microdreamer fetch`."""
    command = commands.add_parser(
        "fetch",
        help="download a published checkpoint",
        description="Download a published checkpoint into the models folder, after showing its size and licence and asking. A "
        "download that broke resumes where it stopped. Without a name: list what there is. For files behind a licence, set "
        "$HF_TOKEN to an access token of your Hugging Face account; it is sent to no other server.",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="which one; leave it out to see the list")
    command.add_argument("--yes", action="store_true", help="download without asking: you accept the licence")
    command.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="where to put it (default: the folder $MICRODREAMER_MODELS, or else ./models)",
    )
    command.add_argument("--url", metavar="ADDRESS", help="another address of the same file, say of a mirror")
    command.set_defaults(run=_fetch)


def add_clip_similarity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`microdreamer clip-similarity`."""
    command = commands.add_parser(
        "clip-similarity",
        help="score results as the paper does",
        description="Compute the CLIP similarity of a result and its picture or prompt: the mean cosine over 8 views at eye "
        "level, the paper's measure, framed as in the released code: its box's longest side scaled to 1.8, seen from distance "
        "3 with a field of view of 49 degrees. Scores of different CLIP models cannot be compared.",
    )
    command.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULT",
        help="a mesh (.glb, .obj, .ply) or 3D Gaussians (.ply); several: a table",
    )
    reference = command.add_mutually_exclusive_group(required=True)
    reference.add_argument(
        "--image",
        type=Path,
        metavar="PICTURE",
        help="what it should look like; transparency becomes white, CLIP sees the middle square",
    )
    reference.add_argument("--prompt", metavar="WORDS", help="what it should show")
    command.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="CLIP model in Hugging Face's layout (default: the one in the folder clip of the models folder; the paper has "
        "ViT-bigG-14)",
    )
    command.add_argument(
        "--size", type=int, default=512, metavar="PIXELS", help="side of the views (default 512, the released code's)"
    )
    command.add_argument("--device", default="auto", help="where CLIP runs: auto, cpu, cuda or mps (default auto)")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the scores there")
    command.set_defaults(run=_clip_similarity)


def _models(_: argparse.Namespace) -> int:
    from ..checkpoints.load import models_folder
    from ..checkpoints.registry import EMBEDDED, model_spec
    from ..diffusion.embedded.checkpoint import SHIPPED
    from ..sir.presets import PRESETS

    framing = model_spec(EMBEDDED)
    state = f"{readable_size(SHIPPED.stat().st_size)}, {SHIPPED}" if SHIPPED.is_file() else "missing: reinstall the package"
    say("Models")
    say(f"  embedded   the shipped {framing.size}-pixel image-to-3D model, {framing.view_count.group} views at once ({state})")
    for line in _find_models(models_folder()):
        say(f"  {line}")
    say("Presets                          K  views  t2            guidance  evaluations per view  runs with embedded")
    for name, plan in PRESETS.items():
        times = f"{plan.t2_start:.1f}T -> {plan.t2_end:.1f}T"
        say(
            f"  {name:29s} {plan.iterations:3d}  {plan.views:5d}  {times:12s}  {plan.guidance_scale:8.1f}  "
            f"{plan.evaluations().per_view:20d}  {_runs(plan, framing)}"
        )
    return 0


def _runs(plan: SIRPlan, framing: ModelSpec) -> str:
    from ..checkpoints.registry import fits

    if plan.name in framing.presets.values():
        return "yes, the default" + (" for a NeRF" if plan.representation == "nerf" else "")
    if fits(plan, framing):
        return "yes"
    return "no: views" if plan.views % (framing.view_count.group or 1) else "no: camera distance"


def _find_models(folder: Path) -> list[str]:
    """One line for each checkpoint in the models folder, or the reason why it cannot be used."""
    from ..checkpoints.load import FOLDER_VARIABLE, find, inspect

    paths = find(folder)
    if not paths:
        return [f"no checkpoints in {folder.resolve()} (${FOLDER_VARIABLE} names another folder)"]
    lines = []
    for path in paths:
        try:
            info = inspect(path)
        except InputError as error:
            lines.append(f"{path.name}   not usable: {error}")
            continue
        lacks = f", lacks {len(info.missing)} parts (see `microdreamer inspect`)" if info.missing else ""
        lines.append(f"{path.name}   {_kind(info)}, {readable_size(info.size)}, {path.resolve()}{lacks}")
    return lines


def _inspect(args: argparse.Namespace) -> int:
    from ..checkpoints.load import MODELS, ModelOptions, inspect, locate_checkpoint

    info = inspect(locate_checkpoint(args.checkpoint), ModelOptions(args.variant))
    rows = {
        "family": _kind(info),
        "layout": info.layout,
        "size": readable_size(info.size),
        "stored in": info.dtype,
        "averages": "yes" if info.ema else "no",
        "inside": ", ".join(info.inside),
        "beside": ", ".join(info.beside) or "nothing used",
        "pictures": f"{info.image_size} pixels",
    }
    if info.family in MODELS:
        kind = MODELS[info.family]
        rows["preset"] = f"{kind.preset}, for a NeRF {kind.nerf_preset}"
    for name, value in rows.items():
        say(f"{name:{_COLUMN}s} {value}")
    for sentence in info.missing or ("nothing",):
        say(f"{'missing':{_COLUMN}s} {sentence}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from ..checkpoints.download import download, published_file

    if args.name is None:
        return _list_published()
    from .progress import DownloadProgress

    file, folder = published_file(args.name), args.to or _models_folder()
    if (folder / file.file).exists():
        say(f"{folder / file.file} is there already; remove it to fetch it again.")
        return 0
    _describe(file, folder, args.url)
    if not args.yes:
        _ask(file.file)
    hint = f"{file.file}.part keeps what came; the same command continues from there."
    try:
        with interrupts.cancellable(lambda: hint):
            path = download(file, folder, DownloadProgress(), args.url)
    except (Cancelled, KeyboardInterrupt):
        sys.stderr.write(f"\nmicrodreamer: {hint}\n")
        raise
    say(f"{'written':{_COLUMN}s} {path.resolve()}")
    return 0


def _list_published() -> int:
    from ..checkpoints.download import PUBLISHED

    say("Published files; `microdreamer fetch NAME` shows where one comes from and asks before it downloads")
    for file in PUBLISHED:
        say(f"  {file.name:16s} {file.what:40s} {file.file:32s} {_size_of(file):14s} {file.licence}")
    say("Licences are from notes of third parties: what counts is the page that `microdreamer fetch NAME` shows.")
    return 0


def _describe(file: PublishedFile, folder: Path, url: str | None) -> None:
    rows = {
        "file": f"{file.file}: {file.what}",
        "size": _size_of(file),
        "licence": f"{file.licence} ({file.page})",
        "from": url or file.url,
        "to": (folder / file.file).resolve(),
    }
    for name, value in rows.items():
        say(f"{name:{_COLUMN}s} {value}")


def _ask(name: str) -> None:
    """Go on after a "y" on the terminal only.

    Raises:
        InputError: there is no terminal.
        Cancelled: another answer.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise InputError(f"There is no terminal to ask on whether to download {name}; add --yes if you accept the licence.")
    sys.stdout.write("Accept the licence and download? [y/N] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        say("Nothing was downloaded.")
        raise Cancelled


def _size_of(file: PublishedFile) -> str:
    return f"{'' if file.exact else 'about '}{readable_size(file.size)}"


def _models_folder() -> Path:
    from ..checkpoints.load import models_folder

    return models_folder()


def _clip_similarity(args: argparse.Namespace) -> int:
    from ..evaluation.clip_similarity import CLIP_FOLDER, default_clip, load_clip, similarity, views_of
    from ..io.pictures import on_white, read_picture
    from ..job.record import write_json
    from ..util.devices import choose_device

    if not _SMALLEST_VIEW <= args.size <= _LARGEST_VIEW:
        raise InputError(f"--size must lie in {_SMALLEST_VIEW}..{_LARGEST_VIEW}, got {args.size}; choose a number in between.")
    if args.prompt is not None and not args.prompt.strip():
        raise InputError("The prompt is empty; say what the results should show.")
    if args.json:
        if args.json.suffix.lower() != ".json":
            raise InputError(f"The file of --json must end in .json, got {args.json.name!r}; change its name.")
        args.json.parent.mkdir(parents=True, exist_ok=True)
    prompt: str = args.prompt or ""
    image: Path | None = args.image
    picture = None if image is None else on_white(read_picture(image))
    device = choose_device(args.device)
    folder = args.clip or default_clip(_models_folder() / CLIP_FOLDER)
    views = [views_of(path, args.size) for path in args.results]
    clip = load_clip(folder, device)
    wanted = clip.embed_texts([prompt]) if picture is None else clip.embed_images(picture[None])
    scores = [similarity(clip.embed_images(seen), wanted).cpu() for seen in views]
    reference = prompt if image is None else image.name
    say(f"CLIP similarity with {reference!r}, by {folder.resolve().name}; views by degrees of azimuth")
    for line in _score_lines(args.results, scores):
        say(line)
    if args.json:
        write_json(args.json, _scores_content(args, folder, scores))
    return 0


def _score_lines(results: list[Path], scores: list[Tensor]) -> list[str]:
    """A table with a line per result: mean and deviation over the views, and each view."""
    width = max(6, *(len(str(path)) for path in results))
    degrees = (f"{round(360 * i / len(scores[0])):6d}" for i in range(len(scores[0])))
    lines = [f"{'result':{width}s}    mean  deviation  {' '.join(degrees)}"]
    for path, values in zip(results, scores, strict=True):
        each = " ".join(f"{value:6.4f}" for value in values.tolist())
        lines.append(f"{str(path):{width}s}  {float(values.mean()):6.4f}  {float(values.std()):9.4f}  {each}")
    return lines


def _scores_content(args: argparse.Namespace, folder: Path, scores: list[Tensor]) -> dict:
    from ..job.record import versions

    return {
        "clip": folder.resolve().name,
        "image": args.image and args.image.name,
        "prompt": args.prompt,
        "elevation": 0,
        "size": args.size,
        "results": [
            {"file": str(path), "mean": float(values.mean()), "deviation": float(values.std()), "views": values.tolist()}
            for path, values in zip(args.results, scores, strict=True)
        ],
        "versions": versions(),
    }


def _kind(info: CheckpointInfo) -> str:
    return f"{info.family}, {info.variant}" if info.variant else info.family
