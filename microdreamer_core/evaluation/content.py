"""What a report consists of, before it is written: claims, tables, plots, contact sheets, by sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..sir.sds import SDSSettings
from .runs import Run
from .sources import ANALYTIC
from .statistics import Estimate, Verdict, by_object, object_means

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Series:
    """Runs of one method over all objects and seeds, in the order of both, and what came of them (None of one that failed)."""

    name: str
    runs: tuple[Run, ...]
    results: tuple[dict | None, ...] = ()

    def with_results(self, results: dict[str, dict]) -> Series:
        return Series(self.name, self.runs, tuple(results.get(run.key) for run in self.runs))

    @property
    def objects(self) -> list[int]:
        return [run.settings["object"] for run in self.runs]

    def final(self, value: str) -> list[float | None]:
        """A number of each run's last row."""
        return [None if result is None else result["rows"][-1][value] for result in self.results]

    def estimate(self, value: str) -> Estimate:
        return by_object(self.final(value), self.objects)

    def minus(self, other: Series, value: str) -> Estimate:
        """The difference to another series, run by run: both have the same objects and seeds."""
        pairs = zip(self.final(value), other.final(value), strict=True)
        return by_object([None if a is None or b is None else a - b for a, b in pairs], self.objects)

    def of_objects(self, value: str) -> dict[int, float]:
        """A number of the last rows by object, the mean over its seeds; objects without a finished run are left out."""
        return object_means(self.final(value), self.objects)

    def curve(self, cost: str, value: str) -> list[tuple[Estimate, Estimate]]:
        """(cost, value) at every mark, over the runs."""
        done = [(result["rows"], index) for result, index in zip(self.results, self.objects, strict=True) if result]
        if not done:
            return []
        objects = [index for _, index in done]
        marks = range(len(done[0][0]))
        at = [[by_object([rows[i][name] for rows, _ in done], objects) for i in marks] for name in (cost, value)]
        return list(zip(*at, strict=True))


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and whether these numbers bear it out.

    Attributes:
        paper: what the paper says, and where. criterion: what must hold here. verdict: whether it does. found: the numbers.
    """

    paper: str
    criterion: str
    verdict: Verdict
    found: str


@dataclass(frozen=True)
class Table:
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A plot of a file name, and what draws it."""

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Sheet:
    """A contact sheet of a file name: rows of (label, pictures beside each other, as [H,W,3] or paths of files)."""

    name: str
    caption: str
    rows: tuple[tuple[str, tuple[Tensor | Path, ...]], ...]


@dataclass(frozen=True)
class Section:
    """What one protocol found."""

    title: str
    text: str
    claims: tuple[Claim, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    sheets: tuple[Sheet, ...] = ()


@dataclass(frozen=True)
class Setup:
    """What a report is made of.

    Attributes:
        model: "analytic", "embedded" or a checkpoint; stamp: of its weights.
        objects: procedural objects; seeds: of every run.
        iterations: K; sds_steps: updates of SDS.
        representations: what is optimised.
        device: torch device.
        guidance_scale: of SDS; None for that of its preset.
        pictures, methods, clip, elevation: of Table III's protocol, see ``pictures``.
        folder: where the report goes.
    """

    folder: Path
    model: str
    stamp: str
    objects: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: int = 20
    sds_steps: int = 400
    representations: tuple[str, ...] = ("gaussians",)
    device: str = "auto"
    guidance_scale: float | None = None
    pictures: tuple[Path, ...] = ()
    methods: tuple = ()
    clip: Path | None = None
    elevation: float = 0.0

    @property
    def oracle(self) -> bool:
        """Whether the model is no network, so that times say nothing and latents are pixels."""
        return self.model == ANALYTIC

    def sds(self, settings: SDSSettings) -> SDSSettings:
        """An SDS preset at this report's length and guidance."""
        guidance_scale = settings.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return replace(settings, steps=self.sds_steps, guidance_scale=guidance_scale)


@dataclass(frozen=True)
class Protocol:
    """A part of the paper's evaluation.

    Attributes:
        name: what the command line calls it. title: a heading; figure: of the paper.
        series: the runs, by method. section: what they show. limits: what of it this setup does not allow, and why.
        idle: why it shows nothing at all with this setup, None when it does; it is then done only where it is asked for.
    """

    name: str
    title: str
    figure: str
    series: Callable[[Setup], list[Series]]
    section: Callable[[Setup, list[Series]], Section]
    limits: Callable[[Setup], Sequence[str]] = default(default=lambda setup: ())
    idle: Callable[[Setup], str | None] = default(default=lambda setup: None)
