"""Quality of the shipped model in SIR against network evaluations, on held-out toys, classless shapes and meshes.

    python benchmarks/few_steps.py --json FILE --settings high n4 n3 --objects 16 --seeds 2
    python benchmarks/few_steps.py --json FILE --settings "n4 hybrid" embedded --sets toys classless meshes objects \
        --meshes FOLDER --models FOLDER

Every setting changes the preset `embedded-high`. PSNR, SSIM and sharpness (mean brightness gradient, as a share of the truth's)
are those of the Gaussians' renders at 64 pixels from 8 directions that no iteration saw, IoU is that of 4 silhouettes; seconds
are the processor's. Differences are paired with the first setting, object by object, seeds averaged, with the standard error
over objects. Finished runs are kept in FILE, their renders (4 sides, 8 other directions) beside it in a folder of its name: a
stopped measurement continues, and `--objects` of fewer objects writes the table of those.

With N = 2 the settings "n2" stand for the hybrid forward process too: its t1 falls on t2, the grid's only time below T - 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.evaluation import metrics
from microdreamer_core.evaluation.statistics import Estimate, average
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.io.pictures import write_picture
from microdreamer_core.job.record import machine, versions, write_json
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.start import start_field
from microdreamer_core.training.evaluate import Case, around_cameras, held_out_sets, make_case, side_cameras
from microdreamer_core.util.clock import time_items
from microdreamer_core.util.images import join_views
from microdreamer_core.util.markdown import write_table

BASE = "embedded-high"
_TRAILING = {"spacing": "trailing"}
_NOISE = {**_TRAILING, "forward": "noise"}
_TEN = {"iterations": 10, "steps": 30}
SETTINGS: dict[str, dict[str, Any]] = {
    "high": {},
    "high g2": {"guidance_scale": 2.0},
    "n10 noise": {"forward": "noise"},
    "n5 hybrid": {**_TRAILING, "discretization": 5},
    "n5": {**_NOISE, "discretization": 5},
    "n5 lcm": {**_NOISE, "discretization": 5, "sampler": "lcm"},
    "n4 hybrid": {**_TRAILING, "discretization": 4},
    "embedded": {**_TRAILING, "discretization": 4, "color_fix": 0.1},
    "n4 hybrid g1.5": {**_TRAILING, "discretization": 4, "guidance_scale": 1.5},
    "n4 hybrid g2": {**_TRAILING, "discretization": 4, "guidance_scale": 2.0},
    "n4 hybrid lcm": {**_TRAILING, "discretization": 4, "sampler": "lcm"},
    "n4": {**_NOISE, "discretization": 4},
    "n4 eta 0": {**_NOISE, "discretization": 4, "eta": 0.0},
    "n4 lcm": {**_NOISE, "discretization": 4, "sampler": "lcm"},
    "n4 lcm g1.5": {**_NOISE, "discretization": 4, "sampler": "lcm", "guidance_scale": 1.5},
    "n4 lcm low": {**_NOISE, "discretization": 4, "sampler": "lcm", "t2_end": 0.2},
    "n3 hybrid": {**_TRAILING, "discretization": 3},
    "n3": {**_NOISE, "discretization": 3},
    "n3 lcm": {**_NOISE, "discretization": 3, "sampler": "lcm"},
    "n2": {**_NOISE, "discretization": 2},
    "n2 lcm": {**_NOISE, "discretization": 2, "sampler": "lcm"},
    "n5 hybrid K10 I30": {"discretization": 5, **_TEN},
    "n4 hybrid K10 I30": {**_TRAILING, "discretization": 4, **_TEN},
    "n3 hybrid K10 I30": {**_TRAILING, "discretization": 3, **_TEN},
    "n4 lcm K10 I30": {**_NOISE, "discretization": 4, "sampler": "lcm", **_TEN},
    "n2 lcm K10 I30": {**_NOISE, "discretization": 2, "sampler": "lcm", **_TEN},
}
MEASURES = ("psnr", "ssim", "sharpness", "iou", "evaluations", "seconds")


def score_run(model: EmbeddedModel, case: Case, plan: SIRPlan, seed: int) -> tuple[dict[str, float], Tensor]:
    """Run SIR on an object; returns the measures of its last field, and that field's renders [S,12 S,3]."""
    start = start_field("gaussians", model.image_size, seed)
    iterations = sir_iterations(start, model.condition(case.reference), plan, seed, reference=case.reference)
    last, seconds = list(time_items(iterations, wall=False))[-1]
    with torch.no_grad():
        sides, around = (last.field.render(cameras(model.config), WHITE) for cameras in (side_cameras, around_cameras))
    rgb = around.rgb.clamp(0, 1)
    scores = {
        "psnr": statistics.mean(map(metrics.psnr, rgb, case.around)),
        "ssim": metrics.ssim(rgb, case.around),
        "sharpness": _sharpness(rgb) / _sharpness(case.around),
        "iou": metrics.silhouette_iou(sides.alpha, case.silhouettes),
        "evaluations": last.evaluations,
        "seconds": seconds,
    }
    return scores, join_views(torch.cat([sides.rgb.clamp(0, 1), rgb]))


def _sharpness(images: Tensor) -> float:
    """Compute the mean length of the brightness gradient of [V,H,W,3]."""
    grey = images.mean(-1)
    return float((grey.diff(dim=1)[:, :, 1:].square() + grey.diff(dim=2)[:, 1:].square()).sqrt().mean())


def write_results(rows: dict[str, list[dict]]) -> str:
    """Write settings as a Markdown table, with the paired difference in PSNR to the first one."""
    lines, base = [], _average(next(iter(rows.values())))
    for setting, runs in rows.items():
        plan, ours = get_plan(BASE, **SETTINGS[setting]), _average(runs)
        change = format(Estimate.of([ours[name] - base[name] for name in ours]), ".2f") if ours != base else ""
        sampler = plan.sampler if plan.sampler != "ddim" else f"ddim, η {plan.eta:g}"
        choices = (plan.discretization, plan.forward, sampler, plan.guidance_scale, f"{plan.iterations} x {plan.steps}")
        means = {measure: statistics.mean(row[measure] for row in runs) for measure in MEASURES}
        numbers = [f"{means['evaluations']:.0f}", f"{means['psnr']:.2f}", change]
        numbers += [f"{means[measure]:.3f}" for measure in ("iou", "ssim", "sharpness")]
        lines.append((setting, *map(str, choices), *numbers, f"{means['seconds']:.1f}"))
    header = ("setting", "N", "forward", "sampler", "guidance", "K x I", "evaluations", "PSNR dB", "difference")
    return write_table((*header, "IoU", "SSIM", "sharpness", "CPU s"), lines)


def _average(runs: list[dict]) -> dict[int, float]:
    return average({(run["object"], i): run["psnr"] for i, run in enumerate(runs)})


class Results:
    """The rows of finished runs by setting, in a JSON file that every new row rewrites."""

    def __init__(self, path: Path):
        self.path, self.renders = path, path.with_suffix("")
        self.rows: dict[str, list[dict]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}

    def has(self, setting: str, name: str, seed: int) -> bool:
        return any((row["object"], row["seed"]) == (name, seed) for row in self.rows.get(setting, ()))

    def add(self, setting: str, name: str, seed: int, scores: dict[str, float], renders: Tensor) -> None:
        self.rows.setdefault(setting, []).append({"object": name, "seed": seed, **scores})
        self.renders.mkdir(parents=True, exist_ok=True)
        write_picture(self.renders / f"{name} {seed} {setting}.png".replace("/", "_"), renders)
        content = {"base": BASE, "settings": SETTINGS, "rows": self.rows}
        write_json(self.path, {**content, "machine": machine(), "versions": versions()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--sets", nargs="+", choices=("toys", "classless", "meshes", "objects"), default=["toys"])
    parser.add_argument("--meshes", type=Path, metavar="FOLDER", help="of training, for the set meshes: those held out")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="for the set objects: other meshes, y up, front to +z")
    parser.add_argument("--objects", type=int, default=16, help="of each set")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    model, results = EmbeddedModel.load(), Results(args.json)
    sets = held_out_sets(args.objects, args.meshes, objects=args.models)
    if missing := [title for title in args.sets if title not in sets]:
        parser.error(f"the sets {missing} need --meshes and --models")
    objects = [(f"{title} {name}", subject) for title in args.sets for name, subject in sets[title]]
    for case in (make_case(name, subject, model.config) for name, subject in objects):
        for setting, seed in product(args.settings, range(args.seeds)):
            if not results.has(setting, case.name, seed):
                results.add(setting, case.name, seed, *score_run(model, case, get_plan(BASE, **SETTINGS[setting]), seed))
                _write_row(f"{case.name}, {setting}, seed {seed}", results.rows[setting][-1])
    names = {name for name, _ in objects}
    rows = {setting: [row for row in results.rows[setting] if row["object"] in names] for setting in args.settings}
    sys.stdout.write(f"{write_results(rows)}\n")


def _write_row(title: str, row: dict) -> None:
    sys.stdout.write(f"{title:44s}{'  '.join(f'{measure} {row[measure]:.3f}' for measure in MEASURES)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
