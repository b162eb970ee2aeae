"""The content of a report before it is written: claims, tables and plots in sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .statistics import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its place, the criterion tested here, the verdict, and the numbers behind it."""

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
    """A figure: its file name, its caption and the function that draws it."""

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """The results of one protocol, under the protocol's title."""

    text: str
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    title: str = ""
