"""The content of a report before it is written: claims, tables and plots in sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import PROTOCOLS
from .statistics import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SIMILAR = 1.0
"""dB of PSNR within which two settings count as equally good."""

HALF = 2.0
"""Speed-up that the paper reports against DreamGaussian, and at least for the pixel loss against the latent loss."""

WORTH = 5.0
"""Times fewer evaluations: the least that the paper reports for SIR against SDS."""

ENOUGH = 30
"""Iterations beyond which the paper sees no significant gain."""

LIMITS = {"similar": SIMILAR, "half": HALF, "worth": WORTH, "enough": ENOUGH}
"""By what statements are judged, as their texts name it."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its place, the criterion tested here, the verdict, and the numbers behind it."""

    paper: str
    criterion: str
    verdict: Verdict
    found: str


def make_claim(protocol: str, statement: str, verdict: Verdict, found: str, **values: Any) -> Claim:
    """Make a claim of one of a protocol's statements; ``values`` fill its places."""
    paper, criterion = (text.format(**LIMITS, **values) for text in PROTOCOLS[protocol]["statements"][statement])
    return Claim(paper, criterion, verdict, found)


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
