"""The command line: the whole pipeline without ComfyUI.

Exit codes: 0 done, 2 unusable input (one sentence says why), 130 stopped by Ctrl-C (what was finished is saved), 1 otherwise.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from . import __version__
from .errors import Cancelled, InputError, NumericalError

DONE, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, run the command, turn expected errors into one sentence and an exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return args.run(args)
    except (InputError, NumericalError, OSError) as error:
        if args.debug:
            raise
        _say(f"microdreamer: {_sentence(error)}", sys.stderr)
        return FAILED if isinstance(error, NumericalError) else UNUSABLE
    except (Cancelled, KeyboardInterrupt):
        _say("microdreamer: stopped", sys.stderr)
        return STOPPED


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror or error} at {error.filename}; choose another place or free some room."
    return str(error)


def _say(text: str, stream=None) -> None:
    (stream or sys.stdout).write(text + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="microdreamer", description="Turn a picture into a textured 3D object.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_image_to_3d(commands)
    _add_resume(commands)
    _add_mesh(commands)
    _add_turntable(commands)
    _add_models(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="log more, and show the traceback of an error")
    return parser


def _add_image_to_3d(commands) -> None:
    command = commands.add_parser(
        "image-to-3d", help="make a 3D object from a picture", description="Make a 3D object from a picture."
    )
    command.add_argument(
        "image", type=Path, help="picture of one object: with transparency, with --mask, or on a plain background"
    )
    command.add_argument("--mask", type=Path, help="picture whose bright (or opaque) part is the object")
    command.add_argument(
        "--elevation", type=float, default=0.0, help="degrees from which the picture was taken, positive from above"
    )
    command.add_argument("--preset", help="plan of the optimisation (see `microdreamer models`); the model's own otherwise")
    command.add_argument("--iterations", type=int, metavar="K", help="SIR iterations; more is better and slower")
    command.add_argument("--seed", type=int, default=0, help="another seed gives another result (default 0)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    _add_outputs(command, default="next to the picture")
    command.set_defaults(run=_image_to_3d)


def _add_resume(commands) -> None:
    command = commands.add_parser(
        "resume", help="continue a run that was stopped", description="Continue a run from its state file."
    )
    command.add_argument("state", type=Path, help="the .state.safetensors that a run left")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    _add_outputs(command, default="next to the state")
    command.set_defaults(run=_resume)


def _add_outputs(command, default: str) -> None:
    command.add_argument("-o", "--output", type=Path, help=f"the .glb to write (default {default}); other files go beside it")
    command.add_argument("--keep-splat", action="store_true", help="also write the 3D Gaussians as .ply, for splat viewers")
    command.add_argument(
        "--report", action="store_true", help="also write a .json: stages, seconds, evaluations, memory, versions"
    )
    command.add_argument("--faces", type=int, help="triangles of the mesh")
    command.add_argument("--texture-size", type=int, help="pixels of the square texture")
    command.add_argument("--no-film", action="store_true", help="write no turntable and no contact sheet")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_mesh(commands) -> None:
    command = commands.add_parser(
        "mesh", help="turn a splat into a textured mesh", description="Turn 3D Gaussians (.ply) into a mesh."
    )
    command.add_argument("splat", type=Path, help="3D Gaussians as a .ply")
    command.add_argument(
        "-o", "--output", type=Path, help="the .glb, .obj or .ply to write (default: the splat's name with .glb)"
    )
    command.add_argument("--faces", type=int, help="triangles of the mesh")
    command.add_argument("--texture-size", type=int, help="pixels of the square texture")
    command.set_defaults(run=_mesh)


def _add_turntable(commands) -> None:
    command = commands.add_parser(
        "turntable", help="film a splat or a mesh", description="Film a splat (.ply) or a mesh (.glb)."
    )
    command.add_argument("file", type=Path, help="a .ply with 3D Gaussians, or a .glb")
    command.add_argument("-o", "--output", type=Path, help="the .mp4 or .gif to write (default: the file's name with .mp4)")
    command.add_argument("--size", type=int, default=512, help="pixels (default 512)")
    command.add_argument("--frames", type=int, default=60, help="frames of one turn (default 60)")
    command.add_argument("--elevation", type=float, default=10.0, help="degrees above the horizon (default 10)")
    command.set_defaults(run=_turntable)


def _add_models(commands) -> None:
    command = commands.add_parser(
        "models", help="list models and presets", description="List the models found here and the presets."
    )
    command.set_defaults(run=_models)


def _image_to_3d(args) -> int:
    from .job import job_from_picture

    output = _output_path(args.output or args.image.with_suffix(".glb"), (".glb",))
    job = job_from_picture(
        args.image,
        args.mask,
        elevation=args.elevation,
        preset=args.preset,
        iterations=args.iterations,
        seed=args.seed,
        device=args.device,
    )
    return _run(job, output, args)


def _resume(args) -> int:
    from .job import resume_job

    name = args.state.name.removesuffix(".safetensors").removesuffix(".state") + ".glb"
    return _run(resume_job(args.state, args.device), _output_path(args.output or args.state.with_name(name), (".glb",)), args)


def _run(job, output: Path, args) -> int:
    from .job import make_asset, save_run
    from .job_files import write_asset
    from .mesh.pipeline import MeshSettings
    from .progress import JobProgress

    settings = _given(MeshSettings(), target_faces=args.faces, texture_size=args.texture_size)
    state = output.with_name(output.stem + ".state.safetensors")
    with JobProgress(job, quiet=args.quiet) as progress:

        def finished(iteration) -> None:
            save_run(state, job, iteration)
            progress.iteration(iteration)

        try:
            asset = make_asset(job, settings, hooks=progress.hooks, on_iteration=finished, on_stage=progress.stage)
        except KeyboardInterrupt:
            _say(_how_to_continue(state), sys.stderr)
            raise
    files = write_asset(asset, job, output, splat=args.keep_splat, film=not args.no_film, report=args.report)
    for kind, path in {**files, "state": state}.items():
        _say(f"{kind:14s} {path}")
    return DONE


def _how_to_continue(state: Path) -> str:
    if not state.exists():
        return "microdreamer: stopped before the first iteration was finished"
    return f"microdreamer: the last finished iteration is saved; continue with: microdreamer resume {state}"


def _mesh(args) -> int:
    from .io.mesh_files import SUFFIXES, write_mesh
    from .io.ply import read_splat_ply
    from .mesh.pipeline import MeshSettings, texture_mesh

    output = _output_path(args.output or args.splat.with_suffix(".glb"), SUFFIXES)
    settings = _given(MeshSettings(), target_faces=args.faces, texture_size=args.texture_size)
    if output.resolve() == args.splat.resolve():
        raise InputError(f"The mesh would overwrite the splat {args.splat.name}; give another name with -o.")
    made = texture_mesh(read_splat_ply(args.splat).splats(), settings)
    _say(f"mesh           {write_mesh(output, made.mesh, {'source': args.splat.name})}  ({len(made.mesh.faces)} triangles)")
    return DONE


def _turntable(args) -> int:
    from .io.video import render_frames, write_video
    from .job_files import film_cameras, film_renderer

    output = _output_path(args.output or args.file.with_suffix(".mp4"), (".mp4", ".gif"))
    for name, low, high in (("size", 16, 4096), ("frames", 1, 1000)):
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name} must lie in {low}..{high}, got {getattr(args, name)}.")
    render, extent = film_renderer(args.file)
    frames = render_frames(render, film_cameras(extent, args.frames, args.size, args.elevation))
    _say(f"film           {write_video(output, frames)}")
    return DONE


def _models(args) -> int:
    from .diffusion.embedded.checkpoint import SHIPPED
    from .schedule import PRESETS

    state = f"{SHIPPED.stat().st_size / 1e6:.1f} MB, {SHIPPED}" if SHIPPED.is_file() else "missing: reinstall the package"
    _say("Models")
    _say(f"  embedded                     the shipped 64-pixel image-to-3D model ({state})")
    _say("Presets                        K  views  t2            guidance  evaluations per view")
    for name, plan in PRESETS.items():
        times = f"{plan.t2_start:.1f}T -> {plan.t2_end:.1f}T"
        _say(
            f"  {name:27s} {plan.iterations:3d}  {plan.views:5d}  {times:12s}  {plan.guidance:8.1f}  {plan.evaluations().per_view:5d}"
        )
    return DONE


def _output_path(path: Path, suffixes: tuple[str, ...]) -> Path:
    """Refuse an output that cannot be written before any work is done; its folder is made."""
    if path.suffix.lower() not in suffixes:
        raise InputError(f"The output must end in {' or '.join(suffixes)}, got {path.name}; change its name.")
    if path.is_dir():
        raise InputError(f"The output {path} is a folder; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = path.with_name(f".{path.name}.probe")
    probe.touch()
    probe.unlink()
    return path


def _given(settings, **changes):
    """The settings with those changes that were given; InputError when they are out of range."""
    import dataclasses

    changes = {name: value for name, value in changes.items() if value is not None}
    limits = {"target_faces": (100, 1_000_000), "texture_size": (64, 8192)}
    for name, value in changes.items():
        low, high = limits[name]
        if not low <= value <= high:
            raise InputError(
                f"--{'faces' if name == 'target_faces' else 'texture-size'} must lie in {low}..{high}, got {value}."
            )
    return dataclasses.replace(settings, **changes)


if __name__ == "__main__":
    sys.exit(main())
