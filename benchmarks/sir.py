"""Controlled SIR runs: procedural objects of known truth, an exact (or the shipped) diffusion model, K, forward process, SDS.

    python benchmarks/sir.py --json FILE [--seed N] [--model analytic|embedded]

The analytic model has the exact score of 12 objects, with deliberate errors of camera position (8 degrees) and tint (0.15), as
a learned model has; the reference image tells it which object is meant. Quality is measured on held-out views.
`microdreamer report` does more of this kind, keeps finished runs and plots them.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
from pathlib import Path

from microdreamer_core.errors import NumericalError
from microdreamer_core.evaluation.objects import plan_run
from microdreamer_core.evaluation.runs import Run
from microdreamer_core.evaluation.sources import Setup, stamp_model
from microdreamer_core.job.record import machine, versions, write_json
from microdreamer_core.sir.sds import SDSSettings

ITERATIONS = (0, 5, 10, 20, 30)
FORWARDS = ("hybrid", "noise", "invert")
SDS_MARKS = (25, 50, 95, 195, 290, 400)
"""None right after density control, from which Gaussians need some updates to recover."""

_NUMBERS = ("psnr", "iou", "f_score", "evaluations", "seconds")


class Bench:
    """Runs SIR and SDS on all objects and seeds, with one kind of diffusion model."""

    def __init__(self, setup: Setup):
        self.setup = setup

    def sir(self, iterations: int, forward: str) -> list[dict]:
        """Run a plan on all objects and seeds; returns the final scores of every run."""
        plan = self.setup.plan(iterations=iterations, forward=forward)
        rows = self._rows(lambda *run: plan_run(*run, plan, (iterations,)))
        return [found[-1] for found in rows]

    def sds(self) -> dict[int, list[dict]]:
        """Run SDS; returns the scores of every run after each mark, with the surface only after the last."""
        guidance = {"guidance_scale": 1.0} if self.setup.oracle else {}
        plan, settings = self.setup.plan(), SDSSettings(steps=SDS_MARKS[-1], **guidance)
        runs = self._rows(lambda *run: plan_run(*run, plan, SDS_MARKS, settings))
        return {mark: [rows[i] for rows in runs] for i, mark in enumerate(SDS_MARKS)}

    def _rows(self, make) -> list[list[dict]]:
        runs = [make(self.setup, index, seed) for index in range(self.setup.objects) for seed in self.setup.seeds]
        return [self._score(run) for run in runs]

    def _score(self, run: Run) -> list[dict]:
        result = run.execute(folder=self.setup.folder)
        if "failed" in result:
            raise NumericalError(result["failed"])
        return result["rows"]


def summary(rows: list[dict]) -> dict[str, float]:
    """Average the numbers of all rows, and compute the standard deviation of the PSNR."""
    means = {name: statistics.mean(row[name] for row in rows) for name in _NUMBERS if rows[0][name] is not None}
    return {**means, "psnr_sd": statistics.pstdev(row["psnr"] for row in rows), "runs": len(rows)}


def equal_quality(sir: dict, sds_rows: dict) -> dict:
    """Find SDS's cost to reach the PSNR of SIR's best row: the first row that does, and the ratios; None if none does."""
    best = max((row for name, row in sir.items()), key=lambda row: row["psnr"])
    reached = [row for row in sds_rows.values() if row["psnr"] >= best["psnr"]]
    if not reached:
        return {"sir": best, "sds": None}
    first = min(reached, key=lambda row: row["evaluations"])
    ratios = {key: first[key] / best[key] for key in ("evaluations", "seconds")}
    return {"sir": best, "sds": first, "sds_over_sir": ratios}


def row_text(name: str, row: dict) -> str:
    surface = f"{row['f_score']:.3f}" if "f_score" in row else "  -  "
    numbers = f"{row['psnr']:6.2f} ± {row['psnr_sd']:4.2f}  {row['iou']:.3f}  {surface}"
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
    with tempfile.TemporaryDirectory() as folder:
        seeds = tuple(args.seed + i for i in range(args.seeds))
        _measure(args, Bench(Setup(Path(folder), args.model, stamp_model(args.model), args.objects, seeds)))


def _measure(args, bench: Bench) -> None:
    out = sys.stdout
    out.write(f"{args.model}: {args.objects} objects x {args.seeds} seeds; PSNR dB, IoU, F@0.03, evaluations, CPU s\n")
    rows: dict[str, dict] = {}

    def report(name: str, scores: list[dict]) -> None:
        rows[name] = summary(scores)
        out.write(row_text(name, rows[name]) + "\n")
        out.flush()

    wanted = sorted(set(args.iterations) | {0})
    for k in wanted:
        report(f"SIR K={k} hybrid", bench.sir(k, "hybrid"))
    middle = 20 if 20 in wanted else wanted[-1]
    for forward in FORWARDS[1:]:
        report(f"SIR K={middle} {forward}", bench.sir(middle, forward))
    comparison = None
    if not args.skip_sds:
        for step, scores in bench.sds().items():
            report(f"SDS {step} updates", scores)
        sir_rows = {name: row for name, row in rows.items() if name.startswith("SIR") and "hybrid" in name}
        comparison = equal_quality(sir_rows, {name: row for name, row in rows.items() if name.startswith("SDS")})
        if comparison["sds"] is None:
            out.write("SDS never reaches the best SIR row's PSNR within its updates\n")
        else:
            ratios = comparison["sds_over_sir"]
            out.write(f"SDS at equal PSNR: {ratios['evaluations']:.2f}x evaluations, {ratios['seconds']:.2f}x seconds of SIR\n")
    content = {"model": args.model, "objects": args.objects, "seeds": bench.setup.seeds, "rows": rows}
    write_json(args.json, {**content, "equal_quality": comparison, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
