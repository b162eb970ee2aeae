"""The command line's part that has to do with models: choosing one, listing them, looking into a file."""

from __future__ import annotations

import sys
from pathlib import Path

from .errors import InputError

_COLUMN = 10
_VARIANT = "what the weights don't tell: pixel or local for ImageDream; plain, xl or stable for Zero123 (default: by the name)"


def add_run_options(command) -> None:
    """How to run, with which model, and how to load it; read by ``run_choices``."""
    command.add_argument(
        "--model",
        default="embedded",
        metavar="MODEL",
        help="checkpoint file or folder of MVDream, ImageDream or Zero123, or its name in the models folder "
        "(`microdreamer models` lists them; default: the shipped one)",
    )
    command.add_argument("--negative", default="", metavar="WORDS", help="what the pictures shall not show")
    command.add_argument("--variant", default="auto", metavar="NAME", help=_VARIANT)
    command.add_argument("--no-ema", action="store_true", help="use the last weights, not their running averages")
    command.add_argument(
        "--dtype", default="auto", metavar="NAME", help="float32, float16 or bfloat16 (default: float16 on a GPU, else float32)"
    )
    command.add_argument(
        "--preset", metavar="NAME", help="plan of the optimisation; `microdreamer models` lists them (default: the model's own)"
    )
    command.add_argument(
        "--iterations", type=int, metavar="K", help="rounds of optimisation; more is better and slower (default: the preset's)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="another seed gives another result (default 0)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")


def run_choices(args) -> dict:
    """What ``add_run_options`` asked, as ``job`` wants it."""
    from .diffusion.checkpoints import ModelOptions

    chosen = {name: getattr(args, name) for name in ("model", "negative", "preset", "iterations", "seed", "device")}
    return {**chosen, "options": ModelOptions(args.variant, not args.no_ema, args.dtype)}


def add_models(commands) -> None:
    """`microdreamer models` and `microdreamer inspect`."""
    command = commands.add_parser(
        "models",
        help="list models and presets",
        description="List the models found here, and the presets with their numbers and whether they run with the shipped "
        "model. Checkpoints are looked for in the folder $MICRODREAMER_MODELS, or else in ./models.",
    )
    command.set_defaults(run=_models)
    command = commands.add_parser(
        "inspect",
        help="say what a checkpoint is",
        description="Say what a checkpoint is and what it lacks, without loading it.",
    )
    command.add_argument("checkpoint", type=Path, metavar="FILE", help="checkpoint file or folder")
    command.add_argument("--variant", default="auto", metavar="NAME", help=_VARIANT)
    command.set_defaults(run=_inspect)


def _models(_) -> int:
    from .diffusion.checkpoints import models_folder
    from .diffusion.embedded.checkpoint import SHIPPED
    from .models import EMBEDDED, model_framing
    from .schedule import PRESETS

    framing = model_framing(EMBEDDED)
    state = f"{_size(SHIPPED.stat().st_size)}, {SHIPPED}" if SHIPPED.is_file() else "missing: reinstall the package"
    _say("Models")
    _say(f"  embedded   the shipped {framing.size}-pixel image-to-3D model, {framing.view_count.group} views at once ({state})")
    for line in _found(models_folder()):
        _say(f"  {line}")
    _say("Presets                          K  views  t2            guidance  evaluations per view  runs with embedded")
    for name, plan in PRESETS.items():
        times = f"{plan.t2_start:.1f}T -> {plan.t2_end:.1f}T"
        _say(
            f"  {name:29s} {plan.iterations:3d}  {plan.views:5d}  {times:12s}  {plan.guidance:8.1f}  "
            f"{plan.evaluations().per_view:20d}  {_runs(plan, framing)}"
        )
    return 0


def _runs(plan, framing) -> str:
    from .models import fits

    if plan.name == framing.preset:
        return "yes, the default"
    if fits(plan, framing):
        return "yes"
    if plan.representation != "gaussians":
        return "no: NeRF"
    return "no: views" if plan.views % (framing.view_count.group or 1) else "no: camera distance"


def _found(folder: Path) -> list[str]:
    """One line for each checkpoint of the models folder, or on why it is none."""
    from .diffusion.checkpoints import FOLDER_VARIABLE, find, inspect

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
        lines.append(f"{path.name}   {_kind(info)}, {_size(info.size)}, {path.resolve()}{lacks}")
    return lines


def _inspect(args) -> int:
    from .diffusion.checkpoints import MODELS, ModelOptions, inspect

    info = inspect(args.checkpoint, ModelOptions(args.variant))
    rows = {
        "family": _kind(info),
        "layout": info.layout,
        "size": _size(info.size),
        "stored in": info.dtype,
        "averages": "yes" if info.ema else "no",
        "inside": ", ".join(info.inside),
        "beside": ", ".join(info.beside) or "nothing used",
        "pictures": f"{info.image_size} pixels",
    }
    if info.family in MODELS:
        rows["preset"] = MODELS[info.family].preset
    for name, value in rows.items():
        _say(f"{name:{_COLUMN}s} {value}")
    for sentence in info.missing or ("nothing",):
        _say(f"{'missing':{_COLUMN}s} {sentence}")
    return 0


def _kind(info) -> str:
    return f"{info.family}, {info.variant}" if info.variant else info.family


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
