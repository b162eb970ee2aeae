"""The command line: the whole pipeline without ComfyUI.

Exit codes: 0 done, 2 unusable input (one sentence says why), 130 stopped by Ctrl-C (what was finished is saved), 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import Cancelled, InputError, NumericalError, out_of_memory
from ..util.atomic import replace_file
from ..util.readable import shorten_name
from ..util.threads import limit_spinning
from ..util.vocabulary import SPLAT_FORMATS, UPS
from . import interrupts
from .batch import add_batch
from .claim import check_suffix, claim, with_suffix
from .doctor import add_doctor
from .evaluate import add_report
from .interrupts import STOPPED
from .models import (
    READABLE_SPLATS,
    add_clip_similarity,
    add_fetch,
    add_models,
    add_reference_options,
    add_run_options,
    add_up,
    reference_choices,
    run_choices,
)
from .options import add_mesh_options, mesh_settings
from .refine import add_refine
from .streams import say

if TYPE_CHECKING:
    from ..fields.protocol import Field
    from ..job.run import Job
    from ..meshing.settings import MeshSettings
    from ..sir.iterations import Iteration

DONE, FAILED, UNUSABLE = 0, 1, 2
EXPECTED = (InputError, NumericalError, OSError, Cancelled, KeyboardInterrupt)
"""Errors that users may meet: reported in one sentence instead of a traceback."""

_LONGEST_WORDS = 60
"""Bytes of a name made of a prompt's words."""
_MOST_FILM_PIXELS = 150_000_000
_EXAMPLES = """examples:
  microdreamer image-to-3d bird.png                     bird.glb beside the picture, with a film of it
  microdreamer image-to-3d bird.png -o out/bird.glb --keep-splat --report
  microdreamer image-to-3d bird.png --model models/stable_zero123.ckpt
  microdreamer text-to-3d "a blue bird, 3d asset" --model models/sd-v2.1-base-4view.pt
  microdreamer resume out/bird.state.safetensors        continue after Ctrl-C
  microdreamer turntable out/bird.glb                   film it again, larger with --size

`microdreamer COMMAND --help` explains each command."""


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, run the command, and turn expected errors into one sentence and an exit code."""
    limit_spinning(os.environ)
    if argv is not None and any("\0" in word for word in argv):
        return _report_error(InputError("The arguments contain a NUL character, which no file name can; remove it."), False)
    args = _parser().parse_args(_join_up(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of stdout is gone, as with `| head`; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (*EXPECTED, MemoryError, RuntimeError) as error:
        return _report_error(_understood(error), args.debug)


def _join_up(argv: list[str]) -> list[str]:
    """Write "--up -y" as "--up=-y": argparse would take -y for an option."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--up" and word in UPS:
            joined[-1] = f"--up={word}"
        else:
            joined.append(word)
    return joined


def _understood(error: BaseException) -> BaseException:
    """Return an error that can be reported in one sentence (out of memory is reworded); raise any other, which is a bug."""
    if isinstance(error, EXPECTED):
        return error
    if not out_of_memory(error):
        raise error
    advice = "use smaller textures, fewer faces, a new run with --nerf-size small for a NeRF, or another --device"
    return MemoryError(f"The memory is full ({str(error) or type(error).__name__}); {advice}.")


def _report_error(error: BaseException, debug: bool, hint: str | None = None) -> int:
    """Report an error and an optional hint on stderr; returns the exit code."""
    interrupts.report(_sentence(error), hint)
    if isinstance(error, (Cancelled, KeyboardInterrupt)):
        return STOPPED
    if debug:
        raise error
    return UNUSABLE if isinstance(error, (InputError, OSError)) else FAILED


def _sentence(error: BaseException) -> str:
    if isinstance(error, (Cancelled, KeyboardInterrupt)):
        return "stopped"
    if not isinstance(error, OSError):
        return str(error)
    place = error.filename or "A file"
    return f"{place} cannot be read or written ({error.strerror or error}); check the path, permissions and free disk space."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="microdreamer",
        description="Turn a picture or a prompt into a textured 3D object.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_image_to_3d(commands)
    _add_text_to_3d(commands)
    _add_resume(commands)
    add_refine(commands)
    _add_retexture(commands)
    add_batch(commands)
    _add_mesh(commands)
    _add_turntable(commands)
    add_clip_similarity(commands)
    add_models(commands)
    add_fetch(commands)
    add_report(commands)
    add_doctor(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="log more, and show the traceback of an error")
    return parser


def _add_image_to_3d(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "image-to-3d",
        help="make a 3D object from a picture",
        description="Make a textured 3D object (.glb) from a picture of it. The run is saved after every iteration: after "
        "Ctrl-C, `microdreamer resume` continues from there.",
    )
    command.add_argument(
        "image",
        type=Path,
        metavar="PICTURE",
        help="picture of one object: a PNG with transparency, or on a plain background, or with --mask",
    )
    add_reference_options(command)
    add_run_options(command)
    _add_outputs(command, default="the picture's name with .glb")
    command.set_defaults(run=_image_to_3d)


def _add_text_to_3d(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "text-to-3d",
        help="make a 3D object from a prompt",
        description="Make a textured 3D object (.glb) from words alone, with a model that takes them (MVDream). The run is "
        "saved after every iteration, as with image-to-3d.",
    )
    command.add_argument("prompt", metavar="PROMPT", help="what to make; MVDream works best with ', 3d asset' at the end")
    add_run_options(command)
    _add_outputs(command, default="the prompt's words with .glb, in this folder")
    command.set_defaults(run=_text_to_3d)


def _add_retexture(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "retexture",
        help="give a mesh a new texture",
        description="Texture a mesh (.glb, .gltf, .obj, .ply, .stl) by SIR, so that it looks like the picture, or the prompt, "
        "from all sides; its triangles, texture coordinates and other maps stay. The picture should show the mesh from its "
        "front (+z): render it, and paint over the render. The run is saved after every iteration, as with image-to-3d.",
    )
    command.add_argument("shape", type=Path, metavar="MESH", help="the mesh; its front faces +z")
    command.add_argument("--image", type=Path, metavar="PICTURE", help="the mesh as it should look from the front")
    add_reference_options(command)
    command.add_argument(
        "--start",
        choices=("mesh", "grey", "noise"),
        default="mesh",
        help="what it starts from: the mesh's own colours, grey, or noise, which forget them (default mesh)",
    )
    add_run_options(command)
    _add_outputs(command, default="the mesh's name with _retextured.glb")
    command.set_defaults(run=_retexture)


def _add_resume(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "resume",
        help="continue a run that was stopped",
        description="Continue a stopped run; the result is the same as if it had not been stopped.",
    )
    command.add_argument("state", type=Path, metavar="STATE", help="the .state.safetensors that a run left beside its output")
    command.add_argument("--model", metavar="MODEL", help="where the checkpoint lies now, if it has moved")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    _add_outputs(command, default="the state's name with .glb")
    command.set_defaults(run=_resume)


def _add_outputs(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"the .glb to write (default: {default}); other files go beside it"
    )
    command.add_argument(
        "--keep-splat",
        action="store_true",
        help="also write the 3D Gaussians as .ply, for splat viewers; those of a NeRF are sampled from its surface",
    )
    command.add_argument(
        "--splat-format",
        choices=SPLAT_FORMATS,
        help="also write the 3D Gaussians, in this format; glb is glTF with KHR_gaussian_splatting (default ply)",
    )
    command.add_argument(
        "--report", action="store_true", help="also write a .json: stages, seconds, evaluations, memory, versions"
    )
    add_mesh_options(command)
    command.add_argument("--no-film", action="store_true", help="write no turntable (.mp4) and no contact sheet (.png)")
    command.add_argument("--quiet", action="store_true", help="no progress")


def _add_mesh(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "mesh",
        help="turn a splat or a saved run into a textured mesh",
        description="Turn 3D Gaussians (of --keep-splat or of any 3D Gaussian splatting program), or what a saved run made, "
        "Gaussians or a NeRF, into a textured mesh in the place and size of the splat. Refining the texture takes the model: "
        "`microdreamer resume` does it.",
    )
    command.add_argument(
        "field", type=Path, metavar="FIELD", help=f"{READABLE_SPLATS}, or the .state.safetensors that a run left"
    )
    add_up(command)
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the .glb, .obj or .ply to write (default: the field's name with .glb); only .glb and .obj keep the texture",
    )
    add_mesh_options(command)
    command.set_defaults(run=_mesh)


def _add_turntable(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "turntable",
        help="film a splat, a saved run or a mesh",
        description="Film one turn around a splat, the Gaussians or the NeRF of a saved run, or a mesh (.glb, .obj, .ply, "
        ".stl). A NeRF takes about a second a frame on a CPU.",
    )
    command.add_argument(
        "file", type=Path, metavar="FILE", help=f"{READABLE_SPLATS}, a saved run (.state.safetensors) or a mesh"
    )
    add_up(command)
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILM", help="the .mp4 or .gif to write (default: the file's name with .mp4)"
    )
    command.add_argument("--size", type=int, default=512, metavar="PIXELS", help="side of the square film (default 512)")
    command.add_argument("--frames", type=int, default=60, metavar="N", help="frames of the turn, 24 a second (default 60)")
    command.add_argument(
        "--elevation", type=float, default=10.0, metavar="DEGREES", help="the camera's height above the horizon (default 10)"
    )
    command.set_defaults(run=_turntable)


def _image_to_3d(args: argparse.Namespace) -> int:
    from ..job.run import job_from_image

    output = check_suffix(args.output or with_suffix(args.image, ".glb"), (".glb",))
    settings = mesh_settings(args)
    job = job_from_image(args.image, **reference_choices(args), **run_choices(args))
    return _run(job, output, settings, args, sources=(args.image, args.mask))


def _text_to_3d(args: argparse.Namespace) -> int:
    from ..job.run import job_from_prompt

    words = shorten_name("-".join(re.findall(r"\w+", args.prompt.lower())), _LONGEST_WORDS).strip("-") or "object"
    output = check_suffix(args.output or Path(f"{words}.glb"), (".glb",))
    settings = mesh_settings(args)
    return _run(job_from_prompt(args.prompt, **run_choices(args)), output, settings, args)


def _retexture(args: argparse.Namespace) -> int:
    from ..job.refine import job_to_retexture

    output = check_suffix(args.output or with_suffix(args.shape, "_retextured.glb"), (".glb",))
    settings = mesh_settings(args)
    if args.keep_splat:
        raise InputError("--keep-splat keeps Gaussians, and a texture has none; leave it out.")
    job = job_to_retexture(
        args.shape,
        args.image,
        start=args.start,
        texture_size=settings.texture_size,
        **reference_choices(args),
        **run_choices(args),
    )
    return _run(job, output, settings, args, sources=(args.shape, args.image, args.mask))


def _resume(args: argparse.Namespace) -> int:
    from ..job.run import resume_job

    name = args.state.name.removesuffix(".safetensors").removesuffix(".state") + ".glb"
    output = check_suffix(args.output or args.state.parent / name, (".glb",))
    settings = mesh_settings(args)
    return _run(resume_job(args.state, args.device, args.model), output, settings, args, continued=args.state)


@dataclass
class _Kept:
    """The files that a run has written so far."""

    state: Path | None = None
    splat: Path | None = None


def _run(
    job: Job,
    output: Path,
    settings: MeshSettings,
    args: argparse.Namespace,
    *,
    sources: tuple[Path | None, ...] = (),
    continued: Path | None = None,
) -> int:
    """Make the asset and its files. ``continued`` is the saved state that the job resumes."""
    from ..job.outputs import plan_files

    args.keep_splat = args.keep_splat or args.splat_format is not None
    kinds = {"splat": args.keep_splat, "film": not args.no_film, "report": args.report}
    files = plan_files(output, **kinds, splat_format=args.splat_format or "ply")
    with claim(files.values(), sources):
        return _make(job, files, settings, args, continued)


def _make(job: Job, files: dict[str, Path], settings: MeshSettings, args: argparse.Namespace, continued: Path | None) -> int:
    """Make the asset and write ``files``; on failure say what is kept."""
    from ..job.outputs import write_asset, write_splat
    from ..job.run import make_asset, save_run
    from .progress import JobProgress

    kept = _Kept()
    if continued is not None:
        kept.state = _copy_state(continued, files["state"])
    try:
        stopped = Cancelled()
        with interrupts.cancellable(lambda: _hint(stopped, kept, args)), JobProgress(job, quiet=args.quiet) as progress:

            def finished(iteration: Iteration) -> None:
                kept.state = save_run(files["state"], job, iteration)
                progress.iteration(iteration)

            def field_done(field: Field) -> None:
                if args.keep_splat:
                    kept.splat = write_splat(files["splat"], field)

            asset = make_asset(
                job,
                settings,
                hooks=progress.hooks,
                on_iteration=finished,
                on_stage=progress.stage,
                on_field=field_done,
            )
            progress.stage("files")
            written = write_asset(asset, job, files)
    except (*EXPECTED, MemoryError, RuntimeError) as error:
        error = _understood(error)
        return _report_error(error, args.debug, _hint(error, kept, args))
    for kind, path in written.items():
        say(path, kind)
    return DONE


def _hint(error: BaseException, kept: _Kept, args: argparse.Namespace) -> str | None:
    """How to continue: a run that failed numerically would fail again, any other can be resumed."""
    if kept.state is None:
        return "no iteration was finished, so nothing is saved; start again."
    if isinstance(error, (InputError, NumericalError)):
        return f"what was computed is kept in {' and '.join(str(path) for path in (kept.state, kept.splat) if path)}."
    flags = ("device", "keep_splat", "splat_format", "report", "no_film", "quiet")
    flags += ("faces", "texture_size", "extractor", "nerf_steps", "nerf_pixels")
    command = ["microdreamer", "resume", str(kept.state)]
    for flag in flags:
        value = getattr(args, flag)
        if value is None or value is False or value == "auto":
            continue
        command += ["--" + flag.replace("_", "-")] + ([] if value is True else [str(value)])
    return f"the last finished iteration is saved; continue with: {shlex.join(command)}"


def _mesh(args: argparse.Namespace) -> int:
    from ..io.mesh_files import SUFFIXES, write_mesh
    from ..job.outputs import read_field
    from ..meshing.pipeline import texture_mesh

    output = check_suffix(args.output or with_suffix(args.field, ".glb"), SUFFIXES)
    settings = mesh_settings(args)
    field = read_field(args.field, args.up)
    outputs = [output]
    if output.suffix.lower() == ".obj":
        outputs += _check_companions(output)
    with claim(outputs, (args.field,)):
        made = texture_mesh(field, settings)
        say(write_mesh(output, made.mesh, {"source": args.field.name}), "mesh")
    say(len(made.mesh.faces), "triangles")
    return DONE


def _check_companions(output: Path) -> tuple[Path, Path]:
    """Return the material and texture written with an .obj; refuse to overwrite an unrelated image of that name."""
    from ..io.mesh_files import name_companions

    material, texture = name_companions(output)
    if texture.exists() and not material.exists():
        raise InputError(f"The texture of {output.name} would overwrite {texture}; give the .obj another name with -o.")
    return material, texture


def _turntable(args: argparse.Namespace) -> int:
    from ..io.video import render_frames, write_video
    from ..job.outputs import film_cameras, film_renderer

    output = check_suffix(args.output or with_suffix(args.file, ".mp4"), (".mp4", ".gif"))
    _within("--size", args.size, 16, 4096)
    _within("--frames", args.frames, 1, 1000)
    if args.frames * args.size**2 > _MOST_FILM_PIXELS:
        most = _MOST_FILM_PIXELS // args.size**2
        raise InputError(
            f"{args.frames} frames of {args.size} pixels do not fit into memory, at most {most} of that size do; reduce one."
        )
    render, extent = film_renderer(args.file, args.up)
    cameras = film_cameras(extent, args.frames, args.size, args.elevation)
    with claim([output], (args.file,)):
        say(write_video(output, render_frames(render, cameras)), "film")
    return DONE


def _copy_state(state: Path, path: Path) -> Path:
    """Copy the state to where the resumed run saves it."""
    if state.resolve() != path.resolve():
        with replace_file(path) as temporary:
            shutil.copyfile(state, temporary)
    return path


def _within(option: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise InputError(f"{option} must lie in {low}..{high}, got {value}; choose a number in between.")
