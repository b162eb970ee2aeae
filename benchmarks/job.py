"""The whole job on this machine: image -> GLB, video and contact sheet with the shipped checkpoint; seconds by stage, memory.

    python benchmarks/job.py --json FILE
    python benchmarks/job.py --json FILE --against main --repeats 5 --cpus 2 --busy 2

Imports are timed separately, and the kernels are compiled (or read from their cache) by a short run first. With --against, the
command line of another git revision and of this tree run in turn, the first pair to warm up, and medians are compared: seconds,
and CPU seconds, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = {"torch": "import torch", "microdreamer_core": "import torch, microdreamer_core, microdreamer_core.sir.iterations"}


def import_seconds(code: str, repeats: int = 3) -> float:
    """Return the best wall time of a new interpreter that runs ``code``."""
    return min(_time(code) for _ in range(repeats))


def _time(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return time.perf_counter() - begin


def measure(picture: Path, seed: int, iterations: int | None = None) -> dict:
    """Run the job twice: briefly to warm up, then in full (or with the given iterations), measured."""
    from microdreamer_core.job.outputs import plan_files, report_content, write_asset
    from microdreamer_core.job.run import job_from_image, make_asset
    from microdreamer_core.meshing.settings import MeshSettings

    with tempfile.TemporaryDirectory() as folder:
        warm = job_from_image(picture, iterations=0, seed=seed)
        make_asset(dataclasses.replace(warm, seed=seed + 1), MeshSettings())
        begin = time.perf_counter()
        job = job_from_image(picture, iterations=iterations, seed=seed)
        asset = make_asset(job, MeshSettings())
        files = write_asset(asset, job, plan_files(Path(folder) / "job.glb", splat=True, film=True, report=False))
        seconds = time.perf_counter() - begin
        return {**report_content(asset, job, files), "seconds_total": round(seconds, 2)}


def compare(picture: Path, revision: str, repeats: int, cpus: int | None, busy: int) -> dict:
    """Run the command line of ``revision`` and of this tree in turn; returns all runs: seconds, CPU seconds, seconds by stage.

    Args:
        cpus: number of CPUs that the runs may use; busy: number of endless loops beside them.
    """
    runs: dict[str, list[dict]] = {"old": [], "new": []}
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--detach", str(old), revision], cwd=ROOT, check=True, capture_output=True)
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for _ in range(repeats + 1):
                for name, tree in (("old", old), ("new", ROOT)):
                    runs[name].append(_run_command(tree, picture, Path(folder) / f"{name}.glb", cpus))
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    return {name: found[1:] for name, found in runs.items()}


def _run_command(tree: Path, picture: Path, output: Path, cpus: int | None) -> dict:
    command = [
        sys.executable,
        "-m",
        "microdreamer_core.cli",
        "image-to-3d",
        str(picture),
        "-o",
        str(output),
        "--report",
        "--quiet",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    few = None if cpus is None else partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:cpus])
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL, preexec_fn=few)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "stages": json.loads(output.with_suffix(".json").read_text())["seconds"]}


def print_comparison(runs: dict[str, list[dict]]) -> None:
    """Print the medians of all runs, by stage."""
    rows = {
        stage: [[run["stages"].get(stage, 0.0) for run in runs[name]] for name in runs] for stage in runs["new"][0]["stages"]
    }
    for title, key in (("CPU of the command", "cpu"), ("whole command", "seconds")):
        rows[title] = [[run[key] for run in runs[name]] for name in runs]
    sys.stdout.write(f"{'seconds, median':22s} {'old':>8s} {'new':>8s} {'times':>8s}\n")
    for title, values in rows.items():
        old, new = (statistics.median(part) for part in values)
        sys.stdout.write(f"{title:22s} {old:8.2f} {new:8.2f} {old / max(new, 1e-3):8.2f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path, default=ROOT / "samples" / "bird.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", metavar="REVISION", help="compare with another git revision")
    parser.add_argument("--repeats", type=int, default=5, help="measured pairs of runs")
    parser.add_argument("--cpus", type=int, help="CPUs that the runs may use")
    parser.add_argument("--busy", type=int, default=0, help="endless loops beside the runs")
    args = parser.parse_args()
    if args.against:
        runs = compare(args.picture.resolve(), args.against, args.repeats, args.cpus, args.busy)
        args.json.write_text(json.dumps(runs, indent=1))
        print_comparison(runs)
        return
    imports = {name: import_seconds(code) for name, code in IMPORTS.items()}
    beyond = imports["microdreamer_core"] - imports["torch"]
    content = measure(args.picture, args.seed)
    from microdreamer_core.job.record import write_json

    write_json(args.json, {**content, "import_seconds": imports, "import_seconds_beyond_torch": beyond})
    write = sys.stdout.write
    write(f"import beyond torch    {beyond:8.2f} s\n")
    for stage, seconds in content["seconds"].items():
        write(f"{stage:22s} {seconds:8.2f} s\n")
    write(f"{'whole job':22s} {content['seconds_total']:8.2f} s\n")
    write(f"evaluations            {content['evaluations']['used']:8d}\n")
    memory = content["peak_memory_mb"]
    write(f"peak memory            {'unknown' if memory is None else f'{memory:8.0f} MB'}\n")


if __name__ == "__main__":
    main()
