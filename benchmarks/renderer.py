"""Forward and backward of the splat renderers, numba against plain torch.

    python benchmarks/renderer.py --json FILE [--gaussians N ...] [--views V] [--size S ...] [--repeats R] [--threads T]

Renderers alternate within every repeat, so that a busy machine slows all of them; the ratio is the median over repeats.
CPU seconds (all threads of the process) are steadier than wall seconds when other programs run; then also use
``--threads 1``, because torch's threads wait by spinning and slow down tenfold when they share cores.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.job.record import machine, peak_memory_mb, versions, write_json
from microdreamer_core.render import SplatRenderer, Splats, get_renderer, set_threads

FAST, YARDSTICK = "numba", "torch"
TARGET = 15.0  # times faster than torch, at 10k Gaussians and 4 views of 256 x 256


def scene(gaussians: int, views: int, size: int) -> tuple[Splats, Cameras]:
    """Make a ball of radius 0.5 filled with small Gaussians, and cameras all around."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(gaussians, 3, generator=generator), dim=-1)
    uniform = torch.rand(gaussians, 8, generator=generator)
    splats = Splats(
        means=0.5 * direction * uniform[:, :1].pow(1 / 3),
        quats=torch.randn(gaussians, 4, generator=generator),
        scales=0.01 + 0.02 * uniform[:, 1:4],
        opacities=0.05 + 0.9 * uniform[:, 4],
        colors=uniform[:, 5:],
    )
    for tensor in vars(splats).values():
        tensor.requires_grad_()
    return splats, orbit_cameras(15.0, torch.arange(views) * 360.0 / views, width=size)


def measure(renderer: SplatRenderer, splats: Splats, cameras: Cameras) -> dict[str, float]:
    """Measure the milliseconds of one forward and one backward pass, in wall time and CPU time."""
    marks = [(time.perf_counter(), time.process_time())]
    render = renderer(splats, cameras, torch.ones(3), track_means2d=True)
    marks.append((time.perf_counter(), time.process_time()))
    loss = (render.rgb - 0.5).abs().sum() + render.alpha.sum()
    marks.append((time.perf_counter(), time.process_time()))
    loss.backward()
    marks.append((time.perf_counter(), time.process_time()))
    forward, backward = ([1e3 * (b - a) for a, b in zip(*marks[i : i + 2], strict=True)] for i in (0, 2))
    return {
        "forward_wall_ms": forward[0],
        "backward_wall_ms": backward[0],
        "wall_ms": forward[0] + backward[0],
        "cpu_ms": forward[1] + backward[1],
    }


def compare(size: tuple[int, int, int], repeats: int) -> dict:
    """Return the medians of each renderer and the ratios torch / numba for (gaussians, views, pixels)."""
    splats, cameras = scene(*size)
    renderers = {name: get_renderer(name) for name in (FAST, YARDSTICK)}
    for renderer in renderers.values():
        measure(renderer, splats, cameras)
    runs = [{name: measure(renderer, splats, cameras) for name, renderer in renderers.items()} for _ in range(repeats)]
    row = {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in renderers}
    for clock in ("wall", "cpu"):
        row[f"{clock}_ratio"] = statistics.median(run[YARDSTICK][f"{clock}_ms"] / run[FAST][f"{clock}_ms"] for run in runs)
    return row


def memory_rise(name: str, size: tuple[int, int, int], threads: int | None) -> float | None:
    """Return the MB by which a forward and backward pass raises the peak of a new process; None if unknown."""
    return in_fresh_process(_rise_here, name, size, threads)


def in_fresh_process(function: Callable, *arguments):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def _rise_here(name: str, size: tuple[int, int, int], threads: int | None) -> float | None:
    use_threads(threads)
    renderer = get_renderer(name)
    measure(renderer, *scene(100, size[1], 32))
    splats, cameras = scene(*size)
    before = peak_memory_mb()
    measure(renderer, splats, cameras)
    return None if before is None else peak_memory_mb() - before


def use_threads(count: int | None) -> None:
    set_threads(count)
    if count is not None:
        torch.set_num_threads(count)


def row_text(size: tuple[int, int, int], row: dict) -> str:
    cells = [f"{size[0]:7d} {size[1]:2d} x {size[2]:3d}^2"]
    for name in (FAST, YARDSTICK):
        memory = row[name]["memory_mb"]
        shown = "-" if memory is None else f"{memory:.0f}"
        cells.append(f"{row[name]['wall_ms']:8.1f} {row[name]['cpu_ms']:8.1f} {shown:>7s}")
    return "  ".join([*cells, f"{row['wall_ratio']:6.1f} {row['cpu_ratio']:6.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--gaussians", type=int, nargs="+", default=[10_000, 5_000])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--size", type=int, nargs="+", default=[256, 128], help="picture sides in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of numba's pool and of torch; default: one per CPU, torch's own choice")
    args = parser.parse_args()
    use_threads(args.threads)

    sizes = [(n, args.views, side) for n, side in itertools.product(args.gaussians, args.size)]
    memory = {size: {name: memory_rise(name, size, args.threads) for name in (FAST, YARDSTICK)} for size in sizes}
    out = sys.stdout
    out.write(f"forward + backward, median of {args.repeats}: wall ms, CPU ms, peak MB; ratio = {YARDSTICK} / {FAST}\n")
    out.write(f"{'Gaussians, views':18s}  {FAST:>25s}  {YARDSTICK:>25s}  {'wall':>6s} {'CPU':>6s}\n")
    rows = []
    for size in sizes:
        row = compare(size, args.repeats)
        for name, rise in memory[size].items():
            row[name]["memory_mb"] = rise
        rows.append({"gaussians": size[0], "views": size[1], "size": size[2], **row})
        out.write(row_text(size, row) + "\n")
        out.flush()
    out.write(f"target at 10000 Gaussians, 4 x 256^2: wall ratio >= {TARGET:.0f}\n")
    content = {"rows": rows, "target_ratio": TARGET, "repeats": args.repeats, "threads": args.threads}
    write_json(args.json, {**content, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
