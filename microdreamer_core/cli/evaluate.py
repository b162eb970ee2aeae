"""`microdreamer report`: the paper's evaluation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..evaluation import PROTOCOLS
from ..sir.plan import SIRPlan
from ..util.settings import parse_assignments
from . import interrupts

if TYPE_CHECKING:
    from ..evaluation.refinement import RefineOptions

_DESCRIPTION = """Do the paper's evaluation with a model and write a page of its tables and plots, and of which statements
of the paper these numbers support. Every finished run is kept in the folder: after Ctrl-C the same command resumes, and a
changed one repeats only what changed."""


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`microdreamer report`."""
    command = commands.add_parser("report", help="do the paper's evaluation and write a page of it", description=_DESCRIPTION)
    command.add_argument(
        "protocols",
        nargs="*",
        metavar="PROTOCOL",
        help=f"from {', '.join(PROTOCOLS)}; pictures is Table III and needs --pictures, refine scores files of other "
        "systems and needs --mesh (default: all that show something with the model)",
    )
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where index.html, results.json and the runs go"
    )
    command.add_argument(
        "--model",
        default="analytic",
        metavar="MODEL",
        help="analytic (exact, with deliberate errors; default), embedded (the shipped one), or a checkpoint",
    )
    command.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how well")
    command.add_argument("--objects", type=int, metavar="N", help="procedural objects (default 4, quick 2)")
    command.add_argument("--seeds", type=int, metavar="N", help="seeds of every run (default 3, quick 1)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="the first seed (default 0)")
    command.add_argument("--iterations", type=int, metavar="K", help="SIR's iterations (default 20, quick 5)")
    command.add_argument(
        "--sds-steps", type=int, metavar="N", help="SDS's updates (default 400, as many as K = 20 takes steps; quick 60)"
    )
    command.add_argument(
        "--representation",
        nargs="+",
        default=["gaussians"],
        metavar="NAME",
        help="gaussians, nerf or both, for sds, truth, shares and latent; the ablations are on Gaussians (default gaussians)",
    )
    command.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="pictures of single objects, for the protocol pictures; a .txt file beside one is its prompt for models that take "
        "words (one that takes words alone else gets the picture's name)",
    )
    command.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME=...",
        help="a column: NAME=FOLDER with meshes named like the pictures (y up, front to +z), or NAME=KEY=VALUE,... of ours, "
        "with the keys preset, iterations, representation, model, sds (a baseline) and steps; may be repeated (default: the "
        "model's own plan)",
    )
    command.add_argument(
        "--mesh",
        type=Path,
        metavar="FOLDER",
        help="meshes and splats of any other system, for the protocol refine: scored, refined by SIR, scored again (splats at "
        "low noise; meshes get a new texture); y up, front to +z",
    )
    command.add_argument(
        "--image",
        type=Path,
        metavar="PICTURE",
        help="what they should look like: a picture, or a folder of pictures named like them",
    )
    command.add_argument("--prompt", metavar="WORDS", help="what they show, for models that take words")
    command.add_argument(
        "--preset", metavar="NAME", help="plan of refine (default: the model's own, as of refine and retexture)"
    )
    command.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="NAME=VALUE", help="change any field of refine's plan"
    )
    command.add_argument("--score-only", action="store_true", help="only score what --mesh holds, without SIR")
    command.add_argument("--elevation", type=float, default=0.0, metavar="DEGREES", help="of the pictures (default 0)")
    command.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="CLIP model in Hugging Face's layout, or open_clip's (default: the one in the folder clip of the models folder)",
    )
    command.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (default 0: as cores and memory allow; 1 on a GPU)"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from ..evaluation.pages import count_verdicts, list_verdicts
    from ..evaluation.report import make_report, make_setup

    setup, missing = make_setup(
        args.output,
        model=args.model,
        quick=args.quick,
        objects=args.objects,
        seeds=args.seeds,
        seed=args.seed,
        iterations=args.iterations,
        sds_steps=args.sds_steps,
        representations=args.representation,
        device=args.device,
        picture_folder=args.pictures,
        methods=args.method,
        clip=args.clip,
        elevation=args.elevation,
        refine=_refine_options(args),
    )
    with interrupts.cancellable(lambda: "finished runs are kept; the same command continues."):
        report = make_report(
            setup,
            args.protocols,
            missing=missing,
            command=_command(),
            workers=args.workers,
            quiet=args.quiet,
            check=interrupts.check,
        )
    lines = [*list_verdicts(report.sections), count_verdicts(report.sections), *report.impossible]
    lines += [f"{name:10s} {path}" for name, path in report.files.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _refine_options(args: argparse.Namespace) -> RefineOptions | None:
    """What the protocol refine does, if there is a folder for it."""
    from ..evaluation.refinement import RefineOptions

    if args.mesh is None:
        if args.image or args.prompt or args.preset or args.assignments or args.score_only:
            raise InputError("--image, --prompt, --preset, --set and --score-only belong to --mesh, got none; add --mesh.")
        return None
    choices = {"preset": args.preset, **parse_assignments(SIRPlan, args.assignments)}
    return RefineOptions(args.mesh, args.image, args.prompt, choices, args.score_only)


def _command() -> list[str]:
    """The command as typed."""
    return ["microdreamer", *sys.argv[1:]]
