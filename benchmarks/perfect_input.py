"""Quality loss of meshing itself: known objects, exact views of them, Gaussians fitted to these, a textured mesh of these.

    python benchmarks/perfect_input.py --objects 1 8 4 3 --json FILE            # snowman, vase, car, house: 2 minutes each
    python benchmarks/perfect_input.py --objects 3 --checkered                  # the same house where every wall has a pattern
    python benchmarks/perfect_input.py --objects 1 8 4 --extractor lgm

The objects are held-out toys of the shipped checkpoint's training data (``evaluation.objects``), fitted on 33 views of 256
pixels in 500 updates of 5 views. "splat" and "mesh" are mean PSNR in dB on 12 other views. Distances are in thousandths
of the world's unit. "chamfer" compares 10,000 samples of both surfaces, of which "floor" is what two samples of the true
surface are apart; "off" (mean distance of the mesh's surface from the true one) and "missed" (of the true one from the mesh's)
compare with 200,000 samples and have almost no floor.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.diffusion.embedded.raycast import render_toy
from microdreamer_core.diffusion.embedded.toys import make_held_out_toy, true_surface
from microdreamer_core.evaluation import metrics
from microdreamer_core.fields.clean import clean
from microdreamer_core.fields.gaussians import Gaussians
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.job.record import write_json
from microdreamer_core.mesh import Mesh
from microdreamer_core.meshing.pipeline import texture_mesh
from microdreamer_core.meshing.settings import EXTRACTORS, MeshSettings
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.sir.reconstruct import reconstruct
from microdreamer_core.sir.start import gaussian_settings
from microdreamer_core.util.images import on_white

RADIUS, FOV_Y = 1.5, 49.1
BATCH = 5
TRUE_GRID = 192
FEW, MANY = 10_000, 200_000


def fit_cameras(size: int) -> Cameras:
    """Return four rings of eight cameras and one from below."""
    elevation = [e for e in (-35.0, 0.0, 35.0, 70.0) for _ in range(8)]
    azimuth = [45.0 * (i + 0.5 * (ring % 2)) for ring in range(4) for i in range(8)]
    return orbit_cameras([*elevation, -85.0], [*azimuth, 0.0], RADIUS, FOV_Y, size)


def held_out_cameras(size: int) -> Cameras:
    """Return twelve other cameras."""
    elevation = [10.0] * 8 + [-15.0, 45.0, 45.0, 25.0]
    azimuth = [22.5 + 45.0 * i for i in range(8)] + [100.0, 15.0, 200.0, 290.0]
    return orbit_cameras(elevation, azimuth, RADIUS, FOV_Y, size)


def true_views(toy: np.ndarray, cameras: Cameras) -> Tensor:
    """Render [V,S,S,3] exact images on white."""
    return on_white(render_toy(toy, cameras))


def paint_checkers(toy: np.ndarray, seed: int = 0) -> np.ndarray:
    """Add a dark and bright pattern to every part of the object, so that images show where each surface is."""
    rng, toy = np.random.default_rng(seed), toy.copy()
    toy[:, toys.TEXTURE], toy[:, toys.FREQUENCY] = toys.CHECKER, 6.0
    toy[:, toys.COLOR_A], toy[:, toys.COLOR_B] = rng.uniform(0.5, 1, (len(toy), 3)), rng.uniform(0, 0.4, (len(toy), 3))
    return toy


def fit_gaussians(toy: np.ndarray, size: int, steps: int, seed: int = 0) -> Gaussians:
    """Fit Gaussians to exact views, with other views in every update."""
    cameras = fit_cameras(size)
    images, rng = true_views(toy, cameras), torch.Generator().manual_seed(seed)
    field = Gaussians.ball(gaussian_settings(size), seed)
    for _ in range(steps):
        chosen = torch.randperm(len(cameras), generator=rng)[:BATCH]
        field = reconstruct(field, cameras[chosen], images[chosen], 1, background=WHITE).field
    return clean(field)


def scores(toy: np.ndarray, field: Gaussians, mesh: Mesh, size: int) -> dict[str, float]:
    """Compute the PSNR of Gaussians and mesh, their difference, and the distances of the surfaces."""
    cameras = held_out_cameras(size)
    images = true_views(toy, cameras)
    seen = {"splat": field.render(cameras, WHITE).rgb, "mesh": render_mesh(mesh, cameras, supersample=2).rgb}
    psnr = {name: statistics.mean(map(metrics.psnr, rgb.clamp(0, 1), images)) for name, rgb in seen.items()}
    return {**psnr, "gap": psnr["splat"] - psnr["mesh"], **distances(mesh, true_surface(toy, TRUE_GRID))}


def distances(mesh: Mesh, truth: Mesh) -> dict[str, float]:
    """Compute the distances described at the top of this file, in thousandths."""
    few = [_samples(m, FEW, seed) for seed, m in enumerate((mesh, truth, truth))]
    of_mesh, of_truth = _samples(mesh, MANY, 3), _samples(truth, MANY, 4)
    found = {
        "chamfer": metrics.chamfer(few[0], few[1]),
        "floor": metrics.chamfer(few[2], few[1]),
        "off": cKDTree(of_truth.numpy()).query(few[0].numpy())[0].mean(),
        "missed": cKDTree(of_mesh.numpy()).query(few[1].numpy())[0].mean(),
    }
    return {name: 1000 * float(value) for name, value in found.items()}


def _samples(mesh: Mesh, count: int, seed: int) -> Tensor:
    return metrics.sample_points(mesh.vertices, mesh.faces, count, torch.Generator().manual_seed(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8, 4, 3], help="held-out toys")
    parser.add_argument("--checkered", action="store_true", help="paint a pattern on every part")
    parser.add_argument("--extractor", choices=EXTRACTORS, default="density")
    parser.add_argument("--size", type=int, default=256, help="pixels of all views")
    parser.add_argument("--steps", type=int, default=500, help="updates of the Gaussians")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    for index in args.objects:
        name = list(toys.CATEGORIES)[index % len(toys.CATEGORIES)]
        toy = make_held_out_toy(index)
        toy = paint_checkers(toy) if args.checkered else toy
        field = fit_gaussians(toy, args.size, args.steps)
        made = texture_mesh(field, MeshSettings.of_extractor(args.extractor))
        rows[f"{name}{index}"] = row = scores(toy, field, made.mesh, args.size)
        row["seconds"] = sum(made.seconds.values())
        numbers = "  ".join(f"{key} {value:.2f}" for key, value in row.items())
        sys.stdout.write(f"{name:10s}{len(field):6d} Gaussians  {numbers}\n")
        sys.stdout.flush()
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
