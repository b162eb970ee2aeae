"""What a report consists of, before it is written: claims, tables and plots, by sections; and the protocols that give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .statistics import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .runs import Store
    from .series import Series
    from .sources import Setup


@dataclass(frozen=True)
class Claim:
    """A statement of the paper (and where it stands), what must hold here, whether it does, and by which numbers."""

    paper: str
    criterion: str
    verdict: Verdict
    found: str


@dataclass(frozen=True)
class Table:
    """Cells as they are printed, under a header."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A figure by the name of its file, and what draws it."""

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """What one protocol found; the title is the protocol's."""

    text: str
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    title: str = ""


@dataclass(frozen=True)
class Protocol:
    """A part of the paper's evaluation.

    Attributes:
        title: its section's.
        series: lists the runs, by method. show: makes a section of what came of them.
        limits: what of it a setup does not allow, and why.
        idle: why it shows nothing of an oracle, with which it is done only where it is asked for.
        judge: lists the runs that judge what the first ones made, which are done by then.
    """

    title: str
    series: Callable[[Setup], list[Series]]
    show: Callable[[Setup, list[Series]], Section]
    limits: Callable[[Setup], list[str]] = lambda setup: []
    idle: str = ""
    judge: Callable[[Setup, list[Series], Store], list[Series]] | None = None
