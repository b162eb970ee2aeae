"""One NeRF update (forward, backward, Adam) and the deterministic render, numba encoder against the plain torch hash grid.

    python benchmarks/nerf.py --json FILE [--size 64] [--samples 64] [--fit STEPS] [--repeats R] [--threads T]

The field is a ``small`` NeRF, except for its samples, fitted to a procedural toy. Encoders alternate in every repeat, so that
a busy machine slows both; the ratio is the median over repeats. CPU milliseconds are those of all threads: with ``--threads 1``
they are steadier than wall time when other programs run. Both march rays and evaluate the perceptrons with numba: only the
encoder differs.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from renderer import in_fresh_process, use_threads

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.analytic import toy_renderer
from microdreamer_core.diffusion.embedded.toys import make_held_out_toy
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import SIZES, NeRFSettings
from microdreamer_core.job.record import machine, peak_memory_mb, versions, write_json
from microdreamer_core.render.volume import camera_rays, march
from microdreamer_core.sir.losses import reconstruction_loss
from microdreamer_core.sir.reconstruct import reconstruct

FAST, YARDSTICK = "numba", "torch"
TARGET_MS = 250.0  # wall, on two quiet cores, at 64 x 64 x 4 views and 64 samples
_VIEWS, _DISTANCE = 4, 2.0


def scene(size: int, samples: int, steps: int) -> tuple[NeRF, Cameras, torch.Tensor]:
    """Make a fitted field, cameras around it and its target images."""
    settings = NeRFSettings.of_size("small", samples=samples)
    cameras = orbit_cameras(10.0, torch.arange(_VIEWS) * 360.0 / _VIEWS, _DISTANCE, width=size)
    targets = toy_renderer([make_held_out_toy(1)])(cameras)[0]
    return reconstruct(NeRF.start(settings), cameras, targets, steps).field, cameras, targets


def with_encoder(field: NeRF, name: str) -> NeRF:
    return replace(field, settings=replace(field.settings, encoder=name))


def sample_count(field: NeRF, cameras: Cameras) -> int:
    """Count a view's samples in the ball and in occupied cells."""
    rays = camera_rays(cameras, field.settings.radius)
    return len(march(rays, field.occupied(), field.settings.radius, field.settings.samples).points)


def time_call(function: Callable[[], object]) -> tuple[object, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu)}


def measure(field: NeRF, cameras: Cameras, targets: torch.Tensor) -> dict[str, float]:
    """Measure the milliseconds of the parts of one update and of a deterministic render."""
    optimizer = field.optimizer()
    render, forward = time_call(lambda: optimizer.render(cameras))
    loss = reconstruction_loss(render.rgb, targets)
    _, backward = time_call(lambda: optimizer.step(loss, render))
    _, picture = time_call(lambda: field.render(cameras))
    parts = {"forward": forward, "backward_adam": backward, "picture": picture}
    row = {f"{part}_{clock}": ms for part, clocks in parts.items() for clock, ms in clocks.items()}
    return row | {clock: forward[clock] + backward[clock] for clock in forward}


def compare(field: NeRF, cameras: Cameras, targets: torch.Tensor, repeats: int) -> dict:
    """Return the medians of each encoder, and the ratios torch / numba."""
    fields = {name: with_encoder(field, name) for name in (FAST, YARDSTICK)}
    for one in fields.values():
        measure(one, cameras, targets)
    runs = [{name: measure(one, cameras, targets) for name, one in fields.items()} for _ in range(repeats)]
    row = {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in fields}
    for clock in ("wall", "cpu"):
        row[f"{clock}_ratio"] = statistics.median(run[YARDSTICK][f"{clock}_ms"] / run[FAST][f"{clock}_ms"] for run in runs)
    share = float(field.occupied().float().mean())
    return row | {"samples": sample_count(field, cameras), "occupied_share": share}


def state_mb(size: str) -> float:
    """Return the MB of a NeRF of that size with Adam's moments and its occupancy grid: the size of a saved state or a copy."""
    return (
        sum(tensor.numel() * tensor.element_size() for tensor in NeRF.start(NeRFSettings.of_size(size)).to_state()[0].values())
        / 1e6
    )


def fit_scene(size: int, samples: int, steps: int) -> bytes:
    """Return :func:`scene` as bytes, for :func:`opened` in this process and in others."""
    field, cameras, targets = scene(size, samples, steps)
    content = io.BytesIO()
    torch.save((field.to_state(), cameras.c2w, targets), content)
    return content.getvalue()


def open_scene(content: bytes) -> tuple[NeRF, Cameras, torch.Tensor]:
    state, c2w, targets = torch.load(io.BytesIO(content), weights_only=True)
    cameras = orbit_cameras(0.0, torch.zeros(_VIEWS), _DISTANCE, width=targets.shape[1])
    return NeRF.from_state(*state), replace(cameras, c2w=c2w), targets


def memory_rise(content: bytes, name: str, threads: int | None) -> float | None:
    """Return the MB by which an update and a render raise the peak of a process that did both at 8 x 8 pixels, or None."""
    use_threads(threads)
    field, cameras, targets = open_scene(content)
    field = with_encoder(field, name)
    measure(field, orbit_cameras(10.0, 0.0, _DISTANCE, width=8), torch.ones(1, 8, 8, 3))
    before = peak_memory_mb()
    measure(field, cameras, targets)
    return None if before is None else peak_memory_mb() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64, help="picture side in pixels")
    parser.add_argument("--samples", type=int, default=64, help="bins of a ray")
    parser.add_argument("--fit", type=int, default=100, help="updates before the measurement")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of numba's pool and of torch; default: one per CPU, torch's own choice")
    args = parser.parse_args()
    use_threads(args.threads)

    out = sys.stdout
    content = fit_scene(args.size, args.samples, args.fit)
    memory = {name: in_fresh_process(memory_rise, content, name, args.threads) for name in (FAST, YARDSTICK)}
    row = compare(*open_scene(content), args.repeats)
    states = {size: state_mb(size) for size in SIZES}
    out.write(f"{_VIEWS} x {args.size}^2, {row['samples']} samples, {100 * row['occupied_share']:.0f} % occupied\n")
    out.write(f"{'ms, median':10s} {'forward':>17s} {'backward + Adam':>17s} {'update':>17s} {'picture':>17s}  memory\n")
    for name in (FAST, YARDSTICK):
        row[name]["memory_mb"] = rise = memory[name]
        cells = [f"{row[name][part + 'wall_ms']:8.1f} {row[name][part + 'cpu_ms']:8.1f}" for part in
                 ("forward_", "backward_adam_", "", "picture_")]  # fmt: skip
        out.write(f"{name:10s} {' '.join(cells)}  {'-' if rise is None else f'{rise:.0f} MB'}\n")
    out.write(f"wall and CPU each; {YARDSTICK} / {FAST}: wall {row['wall_ratio']:.1f}, CPU {row['cpu_ratio']:.1f}; ")
    out.write(f"target: an update within {TARGET_MS:.0f} ms wall on two quiet cores\n")
    out.write(f"a state with moments: {', '.join(f'{size} {mb:.1f} MB' for size, mb in states.items())}\n")
    facts = {**row, "target_ms": TARGET_MS, "state_mb": states}
    facts |= {name: getattr(args, name) for name in ("size", "samples", "fit", "repeats")}
    write_json(args.json, {**facts, "threads": args.threads, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
