"""All CPU benchmarks in one command: python benchmarks/cpu.py [--json FILE] [--sections NAME ...]

Sections: "import", "job" (picture to GLB with the shipped checkpoint, by stage), "renderer" (numba and torch). The
measurements of ``benchmarks/job.py`` and ``benchmarks/renderer.py`` in one table. ``--tiny`` runs toy sizes, as a smoke test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
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
    parser.add_argument("--sections", nargs="+", choices=("import", "job", "renderer"), help="only these (default: all)")
    args = parser.parse_args()
    sizes = [(200, 2, 32)] if args.tiny else [(10_000, 4, 256), (5_000, 4, 256), (10_000, 4, 128)]
    repeats = 1 if args.tiny else 5
    # the job comes before the renderers, whose plain one would lift the peak of memory
    sections = {
        "import": lambda: imports(min(repeats, 3)),
        "job": lambda: job(args.picture, 1 if args.tiny else None),
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
