"""A method's runs over all objects and seeds, and tables of their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..sir.plan import SIRPlan
from ..sir.sds import SDSSettings
from ..util.vocabulary import Representation
from .pages import Section, Table
from .runs import FOLDER, Run, Store, plan_sds_run, plan_sir_run
from .sources import Setup, get_base_plan, get_baseline
from .statistics import Estimate, Verdict, average_objects, estimate_objects

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

    def attach(self, store: Store) -> Series:
        """Return the series with its runs' results."""
        return replace(self, results=tuple(map(store.load, self.runs)))

    @property
    def objects(self) -> list[int]:
        return [run.settings["object"] for run in self.runs]

    def compare(self, other: Series, measure: Callable[[dict, dict], float | None]) -> list[float | None]:
        """Measure each pair of results with a series that has the same objects and seeds; None where a run failed."""
        pairs = zip(self.results, other.results, strict=True)
        return [measure(ours, theirs) if ours and theirs else None for ours, theirs in pairs]

    def pick(self, value: str, row: int = -1) -> list[float | None]:
        """Return a number from a row, the last one, of each run's scores."""
        return [result["rows"][row][value] if result else None for result in self.results]

    def estimate(self, value: str, row: int = -1) -> Estimate:
        """Estimate a number at the ends of the runs, or at another mark."""
        return estimate_objects(self.pick(value, row), self.objects)

    def minus(self, other: Series, value: str = "psnr") -> Estimate:
        """Estimate the paired difference to another series."""
        found = self.compare(other, lambda ours, theirs: ours["rows"][-1][value] - theirs["rows"][-1][value])
        return estimate_objects(found, self.objects)

    def judge(self, other: Series, limit: float = 0.0, subject: str = "It differs", note: str = "") -> tuple[Verdict, str]:
        """Judge whether this is better than another series by more than ``limit`` dB; returns the verdict and why."""
        difference = self.minus(other)
        return difference.above(limit), f"{subject} by {difference.interval('dB')}{note}."

    def average(self, value: str) -> dict[int, float]:
        """Average a number at the ends of the runs by object; objects without a finished run are left out."""
        return average_objects(self.pick(value), self.objects)

    def curve(self, cost: str, value: str) -> list[tuple[Estimate, Estimate]]:
        """Estimate (cost, value) at every mark, over the runs."""
        marks = range(len(next((result["rows"] for result in self.results if result), ())))
        return [(self.estimate(cost, mark), self.estimate(value, mark)) for mark in marks]

    def find_images(self, setup: Setup) -> dict[Any, Path]:
        """Find the images saved by the runs, the first of each subject."""
        pairs = [*zip(self.runs, self.results, strict=True)]
        return {run.subject: setup.folder / FOLDER / result["picture"] for run, result in reversed(pairs) if result}


@dataclass(frozen=True)
class Protocol:
    """A part of the paper's evaluation.

    Attributes:
        series: lists the runs, by method. show: makes a section of their results.
        limits: lists what a setup does not allow, and why.
        judge: lists the runs that judge the results of the first ones, after these are done.
    """

    series: Callable[[Setup], list[Series]]
    show: Callable[[Setup, list[Series]], Section]
    limits: Callable[[Setup], list[str]] = lambda setup: []
    judge: Callable[[Setup, list[Series], Store], list[Series]] | None = None


def get_report_plan(setup: Setup, representation: Representation = "gaussians", **changes: Any) -> SIRPlan:
    """Look up the report's plan, with these changes."""
    return get_base_plan(setup.model, representation, **{"iterations": setup.iterations, **changes})


def list_sir(setup: Setup, name: str, representation: Representation | None = None, **changes: Any) -> Series:
    """List the runs of SIR on every object with every seed, scored during the run.

    Args:
        name: of the method; the representation is appended if given, and Gaussians otherwise. changes: to the report's plan.
    """
    plan = get_report_plan(setup, representation or "gaussians", **changes)
    marks = {0, plan.iterations, *(round(plan.iterations * share) for share in (0.05, 0.1, 0.25, 0.5, 0.75))}
    return _list_runs(setup, name, representation, lambda index, seed: plan_sir_run(setup, index, seed, plan, marks))


def list_sds(
    setup: Setup, name: str, representation: Representation | None = None, settings: SDSSettings | None = None
) -> Series:
    """List the runs of SDS on every object with every seed, scored during the run; arguments as for ``list_sir``."""
    plan = get_report_plan(setup, representation or "gaussians")
    sds = replace(settings or get_baseline(setup.model), steps=setup.sds_steps)
    if setup.oracle:  # as in its plan: an exact conditional distribution needs no guidance
        sds = replace(sds, guidance_scale=plan.guidance_scale)
    return _list_runs(setup, name, representation, lambda index, seed: plan_sds_run(setup, index, seed, plan, sds, SDS_MARKS))


def _list_runs(setup: Setup, name: str, representation: Representation | None, plan_run: Callable[[int, int], Run]) -> Series:
    name = f"{name}, {REPRESENTATIONS[representation]}" if representation else name
    return Series(name, tuple(plan_run(index, seed) for index in range(setup.objects) for seed in setup.seeds))


def make_score_table(series: Sequence[Series], names: Sequence[str] = tuple(MEASURES)) -> Table:
    """Tabulate measures at the ends of each method's runs."""
    rows = [(s.name, *(s.estimate(name).text(MEASURES[name][1]) for name in names)) for s in series]
    return Table("Mean ± standard error over objects.", ("method", *(MEASURES[name][0] for name in names)), tuple(rows))


def make_cost_table(series: Sequence[Series], base: Series | None = None) -> Table:
    """Tabulate quality and cost at the ends of each method's runs, and the paired difference to one of them."""
    table = make_score_table(series, ("psnr", "iou", "evaluations_per_view", "seconds"))
    header, rows = (
        (*table.header, "runs"),
        [(*r, str(sum(map(bool, s.results)))) for r, s in zip(table.rows, series, strict=True)],
    )
    if base is not None:
        header = (*header, f"PSNR against {base.name}, dB")
        differences = ("" if one is base else one.minus(base).interval() for one in series)
        rows = [(*row, text) for row, text in zip(rows, differences, strict=True)]
    return replace(table, header=header, rows=tuple(rows))
