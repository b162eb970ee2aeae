"""A method's runs over all objects and seeds, and tables of their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..sir.plan import SIRPlan
from ..sir.sds import SDSSettings
from ..util.vocabulary import Representation
from .content import Table
from .runs import FOLDER, Run, plan_sds_run, plan_sir_run
from .sources import Setup, get_base_plan
from .statistics import Estimate, average_objects, estimate_objects

SIMILAR = 1.0
"""dB of PSNR within which two settings count as equally good."""

HALF = 2.0
"""Speed-up that the paper reports against DreamGaussian, and at least for the pixel loss against the latent loss."""

REPRESENTATIONS = {"gaussians": "Gaussians", "nerf": "NeRF"}
SDS_MARKS = (5, 10, 25, 50, 75, 95, 130, 160, 195, 240, 290, 340, 400, 500, 700, 1000, 1500, 2000)
"""Updates after which SDS is scored; none right after density control, which costs some dB for a few updates."""

MEASURES = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "iou": ("silhouette IoU", 3),
    "chamfer": ("Chamfer", 4),
    "f_score": ("F-score at 0.03", 3),
    "evaluations_per_view": ("evaluations per view", 0),
    "seconds": ("seconds", 1),
}
"""The numbers in a row of scores: table heading and digits."""


@dataclass(frozen=True)
class Series:
    """Runs of one method over all objects and seeds, in that order, and their results (None for a failed run)."""

    name: str
    runs: tuple[Run, ...]
    results: tuple[dict | None, ...] = ()

    def attach(self, results: dict[str, dict]) -> Series:
        """Return the series with its runs' results, looked up by key."""
        return replace(self, results=tuple(results.get(run.key) for run in self.runs))

    @property
    def objects(self) -> list[int]:
        return [run.settings["object"] for run in self.runs]

    def final(self, value: str) -> list[float | None]:
        """Return a number from each run's last row."""
        return [None if result is None else result["rows"][-1][value] for result in self.results]

    def estimate(self, value: str) -> Estimate:
        """Estimate a number at the ends of the runs."""
        return estimate_objects(self.final(value), self.objects)

    def minus(self, other: Series, value: str = "psnr") -> Estimate:
        """Estimate the paired difference to another series, which has the same objects and seeds."""
        pairs = zip(self.final(value), other.final(value), strict=True)
        return estimate_objects([None if a is None or b is None else a - b for a, b in pairs], self.objects)

    def average(self, value: str) -> dict[int, float]:
        """Average a number at the ends of the runs by object; objects without a finished run are left out."""
        return average_objects(self.final(value), self.objects)

    def curve(self, cost: str, value: str) -> list[tuple[Estimate, Estimate]]:
        """Estimate (cost, value) at every mark, over the runs."""
        done = [(result["rows"], index) for result, index in zip(self.results, self.objects, strict=True) if result]
        objects = [index for _, index in done]
        marks = range(len(done[0][0])) if done else ()
        at = [[estimate_objects([rows[i][name] for rows, _ in done], objects) for i in marks] for name in (cost, value)]
        return list(zip(*at, strict=True))

    def find_images(self, setup: Setup, key: Callable[[Run], Any]) -> dict[Any, Path]:
        """Find the images saved by the runs, the first for each key."""
        pairs = reversed(list(zip(self.runs, self.results, strict=True)))
        return {key(run): setup.folder / FOLDER / result["picture"] for run, result in pairs if result is not None}


def get_report_plan(setup: Setup, representation: Representation = "gaussians", **changes: Any) -> SIRPlan:
    """Look up the report's plan, with these changes."""
    return get_base_plan(setup.model, representation, **{"iterations": setup.iterations, **changes})


def list_sir(setup: Setup, name: str, representation: Representation = "gaussians", **changes: Any) -> Series:
    """List the runs of SIR on every object with every seed, scored during the run."""
    plan = get_report_plan(setup, representation, **changes)
    marks = {0, plan.iterations, *(round(plan.iterations * share) for share in (0.05, 0.1, 0.25, 0.5, 0.75))}
    return Series(name, tuple(plan_sir_run(setup, index, seed, plan, marks) for index, seed in _list_pairs(setup)))


def list_sds(setup: Setup, name: str, settings: SDSSettings, representation: Representation = "gaussians") -> Series:
    """List the runs of SDS on every object with every seed, scored during the run."""
    plan, settings = get_report_plan(setup, representation), replace(settings, steps=setup.sds_steps)
    if setup.oracle:  # as in its plan: an exact conditional distribution needs no guidance
        settings = replace(settings, guidance_scale=plan.guidance_scale)
    return Series(name, tuple(plan_sds_run(setup, i, seed, plan, settings, SDS_MARKS) for i, seed in _list_pairs(setup)))


def _list_pairs(setup: Setup) -> list[tuple[int, int]]:
    return [(index, seed) for index in range(setup.objects) for seed in setup.seeds]


def make_score_table(series: Sequence[Series], names: Sequence[str] = tuple(MEASURES)) -> Table:
    """Tabulate measures at the ends of each method's runs."""
    rows = [(s.name, *(s.estimate(name).text(MEASURES[name][1]) for name in names)) for s in series]
    return Table("Mean ± standard error over objects.", ("method", *(MEASURES[name][0] for name in names)), tuple(rows))


def make_cost_table(series: Sequence[Series], base: Series | None = None) -> Table:
    """Tabulate quality and cost at the ends of each method's runs, and the paired difference to one of them."""
    table = make_score_table(series, ("psnr", "iou", "evaluations_per_view", "seconds"))
    rows = [(*row, str(sum(map(bool, s.results)))) for row, s in zip(table.rows, series, strict=True)]
    if base is None:
        return replace(table, header=(*table.header, "runs"), rows=tuple(rows))
    rows = [(*row, "" if s is base else s.minus(base).interval()) for row, s in zip(rows, series, strict=True)]
    return replace(table, header=(*table.header, "runs", f"PSNR against {base.name}, dB"), rows=tuple(rows))
