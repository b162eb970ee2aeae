"""How cost grows: seconds and memory against the sizes of a job, each point in a process of its own.

    python benchmarks/scaling.py --json FILE [--plot FILE.png] [--only gaussians size] [--small]

The slope of a sweep is that of its last points on log-log axes: 1 is linear. CPU seconds are fitted, because other programs
change them less. ``--small`` leaves out the largest point of each sweep.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

MOST_SLOPE = 1.1
_FITTED = 3
_UPDATES = 3
_ENOUGH = 2.0  # CPU seconds; a point is the fastest of as many calls as these allow, at least two: the first finds no memory


def _fit(gaussians: int = 5000, size: int = 128, views: int = 4, updates: int = _UPDATES) -> Callable[[], object]:
    """Reconstruction: updates of a field of Gaussians that cover the images alike, whatever their number."""
    from microdreamer_core.cameras import orbit_cameras
    from microdreamer_core.fields.density_control import DensitySettings
    from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
    from microdreamer_core.sir.reconstruct import reconstruct

    field = Gaussians.ball(GaussianSettings(num_points=gaussians, density=DensitySettings(until=0)), seed=0)
    cameras = orbit_cameras(10.0, [360.0 * i / views for i in range(views)], width=size, height=size)
    targets = torch.rand(views, size, size, 3, generator=torch.Generator().manual_seed(0))
    return lambda: reconstruct(field, cameras, targets, updates)


def _picture(gaussians: int) -> Callable[[], object]:
    """One picture of 512² without gradients."""
    from microdreamer_core.cameras import orbit_cameras
    from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings

    field, camera = Gaussians.ball(GaussianSettings(num_points=gaussians), seed=0), orbit_cameras(10.0, 0.0, width=512)
    return lambda: field.render(camera)


def _iterations(count: int) -> Callable[[], object]:
    """Algorithm 1 with the shipped checkpoint, without the initialisation's cost.

    Its three rounds of density control multiply the Gaussians. Runs of fewer than 16 iterations have fewer rounds, so that
    only longer ones are comparable.
    """
    from microdreamer_core.checkpoints.registry import load_model
    from microdreamer_core.fields.gaussians import Gaussians
    from microdreamer_core.reference import Reference
    from microdreamer_core.sir.iterations import sir_iterations
    from microdreamer_core.sir.presets import get_plan

    reference = Reference(torch.full((64, 64, 3), 0.5), torch.ones(64, 64, 1))
    diffusion = load_model("embedded", "cpu").condition(reference)
    plan = dataclasses.replace(get_plan("embedded"), iterations=count)
    return lambda: list(sir_iterations(Gaussians.ball(seed=0), diffusion, plan, 0, reference=reference, first=0))


def _sphere(faces: int):
    import trimesh

    from microdreamer_core.mesh import Mesh

    rings = max(4, round(math.sqrt(faces / 4)))
    ball = trimesh.creation.uv_sphere(radius=0.5, count=[rings, 2 * rings])
    return Mesh(torch.from_numpy(ball.vertices.copy()).float(), torch.from_numpy(ball.faces.copy()).long())


def _unwrap(faces: int) -> Callable[[], object]:
    from microdreamer_core.meshing.unwrap import unwrap

    mesh = _sphere(faces)
    return lambda: unwrap(mesh, 1024)


def _bake(size: int) -> Callable[[], object]:
    from microdreamer_core.cameras import orbit_cameras
    from microdreamer_core.meshing.unwrap import unwrap
    from microdreamer_core.render.texels import bake

    mesh, cameras = unwrap(_sphere(5000), size), orbit_cameras(0.0, [0.0, 90.0, 180.0, 270.0], 2.0, width=256, height=256)
    images = torch.rand(4, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    return lambda: bake(mesh, cameras, images, texture_size=size)


SWEEPS: dict[str, tuple[Callable[[int], Callable[[], object]], tuple[int, ...], int]] = {
    "gaussians": (lambda n: _fit(gaussians=n), (1000, 5000, 20_000, 100_000, 500_000), 1),
    "size": (lambda n: _fit(size=n), (64, 128, 256, 512, 1024), 2),
    "picture": (_picture, (1000, 5000, 20_000, 100_000, 500_000), 1),
    "large": (lambda n: _fit(gaussians=500_000, size=n, updates=1), (64, 128, 256, 512), 2),
    "views": (lambda n: _fit(views=n), (4, 8, 16, 32, 64, 128), 1),
    "updates": (lambda n: _fit(updates=n), (3, 6, 12, 24, 48), 1),
    "iterations": (_iterations, (4, 8, 16, 32, 64), 1),
    "faces": (_unwrap, (2000, 8000, 30_000, 120_000), 1),
    "texture": (_bake, (256, 512, 1024, 2048, 4096), 2),
}
"""Name -> (what is measured at a size, the sizes, the power of the size that is linear: pixels grow with its square)."""


def measure(sweep: str, value: int) -> dict:
    """Measure one point in this process: seconds, CPU seconds (children included) and peak memory in MB."""
    smallest = SWEEPS[sweep][1][0]
    SWEEPS[sweep][0](smallest)()  # compiles kernels
    call = SWEEPS[sweep][0](value)
    taken: list[tuple[float, float]] = []
    while len(taken) < 2 or sum(cpu for cpu, _ in taken) + taken[-1][0] < _ENOUGH:
        before, begin = _cpu(), time.perf_counter()
        call()
        taken.append((_cpu() - before, time.perf_counter() - begin))
    cpu, seconds = min(taken)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"value": value, "seconds": seconds, "cpu": cpu, "peak_mb": peak}


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def slope(points: list[dict], key: str, power: int) -> float:
    """Return the least-squares slope of the last points on log-log axes, per power of the size that is linear."""
    last = points[-_FITTED:]
    x = [power * math.log(point["value"]) for point in last]
    y = [math.log(max(point[key], 1e-6)) for point in last]
    centre, middle = sum(x) / len(x), sum(y) / len(y)
    return sum((a - centre) * (b - middle) for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def plot(sweeps: dict[str, dict], path: Path) -> None:
    """Draw CPU seconds and memory of every sweep on log-log axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(sweeps), 5.6), layout="constrained")
    axes = figure.subplots(2, len(sweeps), squeeze=False)
    for column, (name, sweep) in zip(axes.T, sweeps.items(), strict=True):
        for axis, key, label in zip(column, ("cpu", "peak_mb"), ("CPU seconds", "peak memory, MB"), strict=True):
            axis.loglog([p["value"] for p in sweep["points"]], [p[key] for p in sweep["points"]], "o-")
            axis.set(xlabel=name, ylabel=label, title=f"slope {sweep['slope']:.2f}" if key == "cpu" else None)
            axis.grid(True, which="both", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=[*SWEEPS])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--point", nargs=2, metavar=("SWEEP", "VALUE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        sys.stdout.write(json.dumps(measure(args.point[0], int(args.point[1]))) + "\n")
        return 0
    if args.json is None:
        parser.error("--json is required")
    found: dict[str, dict] = {}
    for name in args.only:
        _, values, power = SWEEPS[name]
        points = []
        for value in values[:-1] if args.small else values:
            command = [sys.executable, __file__, "--point", name, str(value)]
            points.append(
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            )
            sys.stdout.write(
                "{:11s} {value:8d} {seconds:9.3f} s {cpu:9.3f} s of CPU {peak_mb:8.0f} MB\n".format(name, **points[-1])
            )
            sys.stdout.flush()
        found[name] = {"points": points, "power": power, "slope": slope(points, "cpu", power)}
        sys.stdout.write(f"{name:11s} slope {found[name]['slope']:.2f} of the linear size, at most {MOST_SLOPE}\n")
        args.json.write_text(json.dumps(found, indent=1))
    if args.plot:
        plot(found, args.plot)
    return int(any(sweep["slope"] > MOST_SLOPE for sweep in found.values()))


if __name__ == "__main__":
    sys.exit(main())
