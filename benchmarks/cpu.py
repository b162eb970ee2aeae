"""All CPU benchmarks in one command: python benchmarks/cpu.py [--json FILE] [--sections NAME ...]

Sections: "import", "job" (picture to GLB with the shipped checkpoint, by stage), "network" (arithmetic of the shipped network
against a plain matrix product's), "renderer" (numba and torch). The measurements of ``benchmarks/job.py`` and
``benchmarks/renderer.py`` in one table. ``--tiny`` runs toy sizes, as a smoke test.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sections import ROOT, Row, run_sections


def imports(repeats: int) -> Iterator[Row]:
    from job import IMPORTS, import_seconds

    seconds = {name: import_seconds(code, repeats) for name, code in IMPORTS.items()}
    for name, value in seconds.items():
        yield {"stage": name, "seconds": value}
    yield {"stage": "beyond torch", "seconds": seconds["microdreamer_core"] - seconds["torch"]}


def job(picture: Path, iterations: int | None) -> Iterator[Row]:
    from job import measure

    content = measure(picture, 0, iterations)
    for stage, seconds in content["seconds"].items():
        yield {"stage": stage, "seconds": seconds}
    field, faces, used = content["field"]["summary"], content["mesh"]["faces"], content["evaluations"]["used"]
    note = f"{field}, {faces} faces, {used} evaluations"
    whole = {"stage": "whole job", "seconds": content["seconds_total"], "memory_mb": content["peak_memory_mb"], "note": note}
    yield {**whole, "evaluations": content["evaluations"]["used"]}


def network(side: int, repeats: int) -> Iterator[Row]:
    """Rates of one call for 4 views, and of a product of two ``side`` x ``side`` matrices, with one thread and with all."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from microdreamer_core.cameras import orbit_cameras
    from microdreamer_core.checkpoints.registry import load_model
    from microdreamer_core.reference import Reference
    from microdreamer_core.util.threads import count_cpus, torch_threads

    model = load_model("embedded", "cpu")
    diffusion = model.condition(Reference(torch.full((64, 64, 3), 0.5), torch.ones(64, 64, 1)))
    latents = torch.randn(4, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = diffusion.condition(orbit_cameras(0.0, [0.0, 90.0, 180.0, 270.0], width=64))
    matrix = torch.rand(side, side, generator=torch.Generator().manual_seed(0))

    def call() -> object:
        return diffusion.denoised(latents, 500, conditioning, 1.0)

    packed = model.denoise
    model.denoise = model.denoiser  # what oneDNN computes with packed weights is not counted
    with FlopCounterMode(display=False) as counter:
        call()
    model.denoise = packed
    for threads in sorted({1, count_cpus()}):
        with torch_threads(threads):
            fastest = _median(lambda: matrix @ matrix, repeats)
            seconds = _median(call, 20 * repeats)
        product, rate = 2e-9 * side**3 / fastest, 1e-9 * counter.get_total_flops() / seconds
        yield {"stage": f"matrix product, {threads} threads", "seconds": fastest, "note": f"{product:.0f} GFLOP/s"}
        note = f"{rate:.0f} GFLOP/s, {100 * rate / product:.0f} % of the product's"
        yield {"stage": f"network, {threads} threads", "seconds": seconds, "note": note, "share": rate / product}


def _median(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def renderer(sizes: list[tuple[int, int, int]], repeats: int, threads: int | None) -> Iterator[Row]:
    from renderer import FAST, YARDSTICK, compare, memory_rise, use_threads

    use_threads(threads)
    for size in sizes:
        row = compare(size, repeats)
        for name in (FAST, YARDSTICK):
            numbers = row[name]
            note = f"{numbers['cpu_ms']:.1f} ms of CPU"
            if name == FAST:
                note += f", {row['wall_ratio']:.1f} times as fast as {YARDSTICK}"
            stage = f"{name}, {size[0]} Gaussians, {size[1]} x {size[2]}^2"
            memory = memory_rise(name, size, threads)
            yield {"stage": stage, "seconds": numbers["wall_ms"] / 1e3, "memory_mb": memory, "note": note, **numbers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--picture", type=Path, default=ROOT / "samples" / "bird.png")
    parser.add_argument("--threads", type=int, help="of the renderers' section; default: one per CPU")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument(
        "--sections", nargs="+", choices=("import", "job", "network", "renderer"), help="only these (default: all)"
    )
    args = parser.parse_args()
    sizes = [(200, 2, 32)] if args.tiny else [(10_000, 4, 256), (5_000, 4, 256), (10_000, 4, 128)]
    repeats = 1 if args.tiny else 5
    # the job comes before the renderers, whose plain one would lift the peak of memory
    sections = {
        "import": lambda: imports(min(repeats, 3)),
        "job": lambda: job(args.picture, 1 if args.tiny else None),
        "network": lambda: network(64 if args.tiny else 1024, repeats),
        "renderer": lambda: renderer(sizes, repeats, args.threads),
    }
    rows, failed = run_sections(sections, args.sections)
    if args.json:
        from microdreamer_core.job.record import machine, versions, write_json

        head = {"tiny": args.tiny, "failed": failed}
        write_json(args.json, {**head, "sections": rows, "machine": machine(), "versions": versions()})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
