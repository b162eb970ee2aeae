"""The whole job on this machine: image -> GLB, video and contact sheet with the shipped checkpoint; seconds by stage, memory.

    python benchmarks/job.py --json FILE

Imports are timed separately, and the kernels are compiled (or read from their cache) by a short run first.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path, default=ROOT / "samples" / "bird.png")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
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
