"""SIR under control: procedural objects of known truth, an exact (or the shipped) diffusion model, K, forward process, SDS.

    python benchmarks/sir.py --json FILE [--seed N] [--model analytic|embedded]

The analytic model knows 12 objects exactly, but errs on purpose in where each camera stands (8 degrees) and in tint (0.15),
as a learned model does; the reference picture tells it which object is meant. Quality is measured on views that no run saw.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microdreamer_core import metrics
from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, Imperfection, toy_renderer
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.diffusion.embedded.raycast import on_white, render_toys
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import Gaussians
from microdreamer_core.fields.start import gaussian_settings
from microdreamer_core.reference import Reference
from microdreamer_core.report import machine, versions, write_json
from microdreamer_core.schedule import SIRPlan, get_plan
from microdreamer_core.sds import SDSSettings, sds_steps
from microdreamer_core.sir import reference_view, sir_iterations

SIZE = 64
MIXTURE = 12
ITERATIONS = (0, 5, 10, 20, 30)
FORWARDS = ("hybrid", "noise", "invert")
SDS_MARKS = (25, 50, 100, 200, 300)


@dataclass(frozen=True)
class Subject:
    """A toy with its truth: reference picture, held-out pictures [8,S,S,3], silhouettes [8,S,S,1], surface points [M,3]."""

    name: str
    toy: np.ndarray
    reference: Reference
    cameras: Cameras
    pictures: Tensor
    silhouettes: Tensor
    surface: Tensor


@dataclass(frozen=True)
class Score:
    """Held-out PSNR in dB, silhouette IoU, mesh F-score at 0.03, and what it cost; seconds are those of all processors."""

    psnr: float
    iou: float
    f_score: float
    evaluations: int
    seconds: float


def subject(index: int, radius: float, fov_y: float) -> Subject:
    """The index-th held-out toy, seen from the front for reference and from eight other directions for evaluation."""
    names = list(toys.CATEGORIES)
    name = names[index % len(names)]
    toy = toys.make_toy(toys.HELD_OUT + index, name)
    front = orbit_cameras(5.0, 0.0, radius, fov_y, SIZE)
    around = orbit_cameras(10.0, torch.arange(8) * 45.0 + 22.5, radius, fov_y, SIZE)
    rows, counts = toys.stack_toys([toy])
    seen = torch.from_numpy(
        render_toys(rows, counts, np.zeros(9, int), torch.cat([front.c2w, around.c2w]).numpy(), SIZE, fov_y)
    )
    pictures = torch.from_numpy(on_white(seen.numpy()))
    reference = Reference(pictures[0], seen[0, ..., 3:], elevation=5.0)
    return Subject(name, toy, reference, around, pictures[1:], seen[1:, ..., 3:], surface_points(toy))


def surface_points(toy: np.ndarray, resolution: int = 96, count: int = 10_000) -> Tensor:
    """Points on the true surface, by marching cubes on the exact inside test."""
    from scipy.ndimage import gaussian_filter
    from skimage.measure import marching_cubes

    axis = np.linspace(-0.7, 0.7, resolution)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    inside = toys.occupancy(toy, points).reshape((resolution,) * 3).astype(np.float32)
    vertices, faces, _, _ = marching_cubes(gaussian_filter(inside, 0.7), 0.5)
    vertices = torch.from_numpy(np.ascontiguousarray(vertices * (axis[1] - axis[0]) + axis[0], dtype=np.float32))
    return metrics.sample_points(vertices, torch.from_numpy(faces.astype(np.int64)), count, torch.Generator().manual_seed(0))


@torch.no_grad()
def score(field, subject: Subject, evaluations: int, seconds: float) -> Score:
    """Compare with the truth; a field that has no surface scores an F of 0."""
    from microdreamer_core.mesh.clean import keep_largest_components
    from microdreamer_core.mesh.extract import extract_mesh

    render = field.render(subject.cameras)
    try:
        mesh = keep_largest_components(extract_mesh(field.splats(), resolution=96).mesh)
        points = metrics.sample_points(mesh.vertices, mesh.faces, len(subject.surface), torch.Generator().manual_seed(1))
        f_score = metrics.f_score(points, subject.surface, 0.03)
    except InputError:
        f_score = 0.0
    psnr = statistics.mean(metrics.psnr(a, b) for a, b in zip(render.rgb.clamp(0, 1), subject.pictures, strict=True))
    return Score(psnr, metrics.silhouette_iou(render.alpha, subject.silhouettes), f_score, evaluations, seconds)


def start(seed: int) -> Gaussians:
    return Gaussians.ball(gaussian_settings(SIZE), seed)


def timed(steps: Iterator) -> Iterator[tuple]:
    """Each item with the processor seconds that all items so far took; what the caller does between them does not count."""
    total, begin = 0.0, time.process_time()
    for item in steps:
        total += time.process_time() - begin
        yield item, total
        begin = time.process_time()


class Bench:
    """Runs SIR and SDS on subjects and seeds, with one kind of diffusion model."""

    def __init__(self, model: str, subjects: int, seeds: int, seed: int):
        self.model_name = model
        # the exact conditional distribution needs no guidance; a learned one does
        self._guidance = {"guidance": 1.0} if model == "analytic" else {}
        self.sds_settings = SDSSettings(steps=SDS_MARKS[-1], report_every=SDS_MARKS[0], **self._guidance)
        self.plan = self.plan_of()
        self.subjects = [subject(i, self.plan.radius, self.plan.fov_y) for i in range(subjects)]
        self.seeds = [seed + i for i in range(seeds)]
        others = [toys.make_toy(toys.HELD_OUT + 1000 + i, list(toys.CATEGORIES)[i % 9]) for i in range(MIXTURE - subjects)]
        self._objects = toy_renderer([s.toy for s in self.subjects] + others)
        self._embedded = None

    def plan_of(self, **changes) -> SIRPlan:
        """The shipped model's plan with these changes."""
        return get_plan("embedded", **self._guidance, **changes)

    def diffusion(self, subject: Subject, seed: int):
        if self.model_name == "analytic":
            error = Imperfection(camera_degrees=8.0, tint=0.15, seed=seed)
            return AnalyticDiffusion(
                self._objects,
                SIZE,
                reference=subject.reference,
                radius=self.plan.radius,
                fov_y=self.plan.fov_y,
                imperfection=error,
            )
        if self._embedded is None:
            from microdreamer_core.diffusion.embedded.model import EmbeddedModel

            self._embedded = EmbeddedModel.load()
        return self._embedded.on(subject.reference)

    def sir(self, plan: SIRPlan, marks: tuple[int, ...]) -> dict[int, list[Score]]:
        """Scores after the iterations in ``marks`` (0 is the initialisation) of one plan, over all subjects and seeds."""
        scores: dict[int, list[Score]] = {mark: [] for mark in marks}
        for subject, seed in self.runs():
            diffusion = self.diffusion(subject, seed)
            iterations = sir_iterations(start(seed), diffusion, plan, seed, reference=subject.reference)
            for iteration, seconds in timed(iterations):
                if iteration.k + 1 in marks:
                    scores[iteration.k + 1].append(score(iteration.field, subject, iteration.evaluations, seconds))
        return scores

    def sds(self, settings: SDSSettings, marks: tuple[int, ...]) -> dict[int, list[Score]]:
        scores: dict[int, list[Score]] = {mark: [] for mark in marks}
        for subject, seed in self.runs():
            diffusion = self.diffusion(subject, seed)
            view = reference_view(subject.reference, self.plan, SIZE)
            states = sds_steps(start(seed), diffusion, self.plan, settings, seed, reference=view)
            for state, seconds in timed(states):
                if state.step in marks:
                    scores[state.step].append(score(state.field, subject, state.evaluations, seconds))
        return scores

    def runs(self):
        return [(subject, seed) for subject in self.subjects for seed in self.seeds]


def summary(scores: list[Score]) -> dict[str, float]:
    """Means, and the standard deviation of the PSNR."""
    columns = {name: [getattr(s, name) for s in scores] for name in Score.__dataclass_fields__}
    means = {name: statistics.mean(values) for name, values in columns.items()}
    return {**means, "psnr_sd": statistics.pstdev(columns["psnr"]), "runs": len(scores)}


def equal_quality(sir: dict, sds_rows: dict) -> dict:
    """What SDS needs to reach the PSNR of SIR's best row: the first row that does, and the ratios; None when none does."""
    best = max((row for name, row in sir.items()), key=lambda row: row["psnr"])
    reached = [row for row in sds_rows.values() if row["psnr"] >= best["psnr"]]
    if not reached:
        return {"sir": best, "sds": None}
    first = min(reached, key=lambda row: row["evaluations"])
    ratios = {key: first[key] / best[key] for key in ("evaluations", "seconds")}
    return {"sir": best, "sds": first, "sds_over_sir": ratios}


def row_text(name: str, row: dict) -> str:
    numbers = f"{row['psnr']:6.2f} ± {row['psnr_sd']:4.2f}  {row['iou']:.3f}  {row['f_score']:.3f}"
    return f"{name:26s} {numbers}  {row['evaluations']:8.0f}  {row['seconds']:7.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--model", choices=("analytic", "embedded"), default="analytic")
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, nargs="+", default=list(ITERATIONS), help="values of K")
    parser.add_argument("--skip-sds", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    bench = Bench(args.model, args.objects, args.seeds, args.seed)
    out = sys.stdout
    out.write(f"{args.model}: {args.objects} objects x {args.seeds} seeds; PSNR dB, IoU, F@0.03, evaluations, CPU s\n")
    rows: dict[str, dict] = {}

    def report(name: str, scores: list[Score]) -> None:
        rows[name] = summary(scores)
        out.write(row_text(name, rows[name]) + "\n")
        out.flush()

    wanted = sorted(set(args.iterations) | {0})
    for k in wanted[1:]:
        marks = (0, k) if k == wanted[1] else (k,)
        for mark, scores in bench.sir(bench.plan_of(iterations=k), marks).items():
            report(f"SIR K={mark} hybrid", scores)
    middle = 20 if 20 in wanted else wanted[-1]
    for forward in FORWARDS[1:]:
        scores = bench.sir(bench.plan_of(iterations=middle, forward=forward), (middle,))
        report(f"SIR K={middle} {forward}", scores[middle])
    comparison = None
    if not args.skip_sds:
        for step, scores in bench.sds(bench.sds_settings, SDS_MARKS).items():
            report(f"SDS {step} updates", scores)
        sir_rows = {name: row for name, row in rows.items() if name.startswith("SIR") and "hybrid" in name}
        comparison = equal_quality(sir_rows, {name: row for name, row in rows.items() if name.startswith("SDS")})
        if comparison["sds"] is None:
            out.write("SDS never reaches the best SIR row's PSNR within its updates\n")
        else:
            ratios = comparison["sds_over_sir"]
            out.write(f"SDS at equal PSNR: {ratios['evaluations']:.2f}x evaluations, {ratios['seconds']:.2f}x seconds of SIR\n")
    content = {"model": args.model, "objects": args.objects, "seeds": bench.seeds, "rows": rows, "equal_quality": comparison}
    write_json(args.json, {**content, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
