"""`microdreamer batch`: a folder or a table of pictures to assets and a page of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..util.readable import escape_controls
from . import interrupts
from .claim import claim
from .models import add_run_options, run_choices
from .options import add_mesh_options, mesh_settings

if TYPE_CHECKING:
    from ..batch.items import Item
    from ..batch.share import Worker
    from ..batch.tasks import Task

_DESCRIPTION = """Make every picture of a folder, or every row of a table, into a textured 3D object, and write a page of them.
A picture that cannot be used is listed and the others are made. After Ctrl-C, or with more pictures, the same command
continues: what is finished and unchanged is kept. Exit code 1 if something failed."""
_MEMORY_MB = 1500
"""Memory of a worker with a small model."""
_LONGEST_LIST = 20


def add_batch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `microdreamer batch`."""
    command = commands.add_parser("batch", help="make 3D objects from many pictures", description=_DESCRIPTION)
    command.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder of pictures, a .txt beside one is its prompt; or a .csv with a first line of columns, picture or prompt "
        "and any of mask, name, elevation, seed, model, preset and the fields of the plan; its paths start from its folder",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where page and assets go")
    command.add_argument("--elevation", type=float, default=0.0, metavar="DEGREES", help="of the pictures (default 0)")
    command.add_argument("--matting", action="store_true", help="cut the objects out of any background with rembg")
    add_run_options(command)
    command.add_argument("--keep-splat", action="store_true", help="also write the 3D Gaussians as .ply")
    add_mesh_options(command)
    command.add_argument("--no-film", action="store_true", help="write no turntables (.mp4) and no contact sheets (.png)")
    command.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (default 0: as cores and memory allow; one a GPU)"
    )
    command.add_argument("--threads", type=int, metavar="N", help="of a worker on a CPU (default: cores / workers; with Ray 1)")
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="use a Ray cluster in place of processes: its address, or auto for the one that runs here (pip install ray)",
    )
    command.add_argument(
        "--comfy",
        action="append",
        default=[],
        metavar="URL",
        help="use a ComfyUI server, say http://127.0.0.1:8188; may be repeated; needs --workflow",
    )
    command.add_argument(
        "--workflow",
        type=Path,
        metavar="FILE",
        help="the graph that the servers run, exported for the API: its Load Image node gets the picture, inputs named like "
        "columns of the table get their values",
    )
    command.add_argument("--quiet", action="store_true", help="no progress")
    command.set_defaults(run=_batch)


def _batch(args: argparse.Namespace) -> int:
    from ..batch.items import read_items
    from ..batch.run import run_batch

    if bool(args.comfy) != (args.workflow is not None):
        raise InputError("--comfy and --workflow belong together, got one of them; give both.")
    if args.comfy and args.ray:
        raise InputError("--comfy and --ray exclude each other, got both; leave one out.")
    items = read_items(args.source, free=bool(args.comfy))
    prepare = _prepare_servers if args.comfy else _prepare_workers
    plan, start = prepare(args, items)
    sources = (args.source, *(path for item in items for path in (item.picture, item.mask)))
    with (
        claim([args.output / "index.html", args.output / "results.json"], sources),
        interrupts.cancellable(lambda: "what is finished is kept; the same command continues."),
        redirect_stdout(sys.stderr),  # Ray prints there which nodes died
    ):
        batch = run_batch(args.output, items, plan, start, quiet=args.quiet, check=interrupts.check)
    lines = [f"{batch.made} made, {batch.kept} kept from before, {len(batch.failures)} failed"]
    lines += [f"failed     {name}: {why}" for name, why in list(batch.failures.items())[:_LONGEST_LIST]]
    lines += [f"page       {batch.page}", f"numbers    {batch.numbers}"]
    sys.stdout.write("\n".join(map(escape_controls, lines)) + "\n")
    return 1 if batch.failures else 0


Plan = tuple["Callable[[Item], Task]", "Callable[[int], Sequence[Worker]]"]


def _prepare_workers(args: argparse.Namespace, items: Sequence[Item]) -> Plan:
    """Check what all items share, and return how they are planned and what makes them."""
    from ..batch.tasks import Recipe, plan_task
    from ..job.run import plan_job
    from ..reference import check_elevation

    choices = run_choices(args)
    plan_job(None, **choices)
    check_elevation(args.elevation)
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads must be at least 1, got {args.threads}; leave it out to share the cores out.")
    choices |= {"elevation": args.elevation, "matting": args.matting}
    count, environments = (1, [{}]) if args.ray else _share_machine(args, len(items))
    threads = args.threads or (1 if args.ray else max(1, (os.cpu_count() or 1) // count))
    recipe = Recipe(choices, mesh_settings(args), args.keep_splat, not args.no_film, threads)

    def start(tasks: int) -> Sequence[Worker]:
        if args.ray:
            from ..batch.cluster import start_workers

            return start_workers(args.ray, tasks, threads, args.device)
        from ..batch.make import make_item
        from ..util.processes import WorkerProcess

        return [WorkerProcess(make_item, environments[i % len(environments)]) for i in range(min(count, tasks))]

    return lambda item: plan_task(item, args.output, recipe), start


def _share_machine(args: argparse.Namespace, items: int) -> tuple[int, list[dict[str, str]]]:
    """Choose the number of processes and the environments that give each its GPU in turn."""
    from ..util.devices import choose_device
    from ..util.processes import choose_workers

    if choose_device(args.device).type != "cuda":
        return choose_workers(args.workers, items, args.device, _MEMORY_MB), [{}]
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [{"CUDA_VISIBLE_DEVICES": name} for name in visible.split(",")]
    return choose_workers(args.workers or len(gpus), items, args.device, _MEMORY_MB), gpus


def _prepare_servers(args: argparse.Namespace, items: Sequence[Item]) -> Plan:
    from ..batch.comfy import check_workflow, plan_request, read_workflow, start_workers

    workflow = read_workflow(args.workflow)
    check_workflow(workflow, items)
    return lambda item: plan_request(item, args.output, workflow), lambda tasks: start_workers(args.comfy[:tasks])
