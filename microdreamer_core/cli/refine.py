"""`microdreamer refine`: SIR on something that exists."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..util.vocabulary import CHANGE_HELP, SPLAT_FORMATS, Change
from . import interrupts
from .claim import check_suffix, claim, with_suffix
from .models import READABLE_SPLATS, add_reference_options, add_run_options, add_up, reference_choices, run_choices
from .streams import say

if TYPE_CHECKING:
    from ..sir.iterations import Iteration


def add_refine(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`microdreamer refine`."""
    command = commands.add_parser(
        "refine",
        help="refine a splat with a picture or a prompt",
        description="Refine 3D Gaussians of any program by SIR at low noise, so that they look like the picture (or the "
        "prompt) from all sides. The front should face the viewer (+z). The run is "
        "saved after every iteration.",
    )
    command.add_argument("splat", type=Path, metavar="SPLAT", help=READABLE_SPLATS)
    command.add_argument("--image", type=Path, metavar="PICTURE", help="picture of the object, as for image-to-3d")
    add_reference_options(command)
    command.add_argument("--change", choices=get_args(Change), default="everything", help=f"{CHANGE_HELP} (default everything)")
    add_up(command)
    add_run_options(command)
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the splat to write, as {', '.join(SPLAT_FORMATS)} (default: the splat's name with _refined.ply); a picture of "
        "before and after goes beside it",
    )
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_refine)


def _refine(args: argparse.Namespace) -> int:
    from ..fields.gaussians import Gaussians
    from ..fields.place import move_gaussians
    from ..io.splats import write_gaussians
    from ..job.refine import job_to_refine, refine_field, write_before_and_after
    from ..job.run import save_run
    from .progress import JobProgress

    output = check_suffix(args.output or with_suffix(args.splat, "_refined.ply"), tuple(f".{kind}" for kind in SPLAT_FORMATS))
    state, sheet = (output.with_name(output.stem + ending) for ending in (".state.safetensors", "_sheet.png"))
    choices = {"change": args.change, "up": args.up, **reference_choices(args), **run_choices(args)}
    job = job_to_refine(args.splat, args.image, **choices)
    assert job.start is not None, "the splat"
    with claim((output, state, sheet), (args.splat, args.image, args.mask)):
        saved: list[Path] = []
        with interrupts.cancellable(lambda: _hint(saved)), JobProgress(job, quiet=args.quiet, goal="the files") as progress:

            def finished(iteration: Iteration) -> None:
                saved[:] = [save_run(state, job, iteration)]
                progress.iteration(iteration)

            refined = refine_field(job, hooks=progress.hooks, on_iteration=finished, on_stage=progress.stage)
            assert isinstance(refined, Gaussians) and job.placement is not None, "as planned by job_to_refine"
            progress.stage("files")
            write_gaussians(output, move_gaussians(refined, job.placement.inverse()), args.up or "-y")
            write_before_and_after(sheet, job.start, refined)
    for kind, path in {"splat": output, "state": state, "contact sheet": sheet}.items():
        say(path, kind)
    return 0


def _hint(saved: list[Path]) -> str:
    if not saved:
        return "no iteration was finished, so nothing is saved; start again."
    command = shlex.join(["microdreamer", "resume", str(saved[0]), "--keep-splat"])
    return f"the last finished iteration is saved; continue with: {command}"
