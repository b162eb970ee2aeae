"""A report's content: claims, tables and plots in sections; as Markdown, and as one self-contained HTML page made from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..util.markdown import convert_to_html, write_figure, write_table
from . import PROTOCOLS
from .statistics import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIMILAR, HALF, WORTH, ENOUGH = 1.0, 2.0, 5.0, 30
"""By what statements are judged: dB of PSNR within which settings are equally good; the speed-up that the paper reports against
DreamGaussian, and at least for the pixel loss; how many times fewer evaluations SIR needs at least; iterations beyond which
the paper sees no significant gain."""

VERDICTS = {"yes": "✓ yes", "no": "✗ no", "undecided": "? undecided"}
_VERDICTS_MEAN = (
    "Each line holds a statement, most of them the paper's, against the numbers below, by the criterion in its second column. "
    "“Undecided” means that the limit lies within the 95 % confidence interval over objects (in Table III's protocol within "
    "the deviation over runs), or that there is one sample alone. Every line is judged by itself: of twenty such verdicts one "
    "may be chance."
)
_SHORT = 24


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its place, the criterion tested here, the verdict, and the numbers behind it."""

    paper: str
    criterion: str
    verdict: Verdict
    found: str


def make_claim(protocol: str, statement: str, verdict: Verdict, found: str, **values: Any) -> Claim:
    """Make a claim of one of a protocol's statements; ``values`` fill its places."""
    values |= {"similar": SIMILAR, "half": HALF, "worth": WORTH, "enough": ENOUGH}
    paper, criterion = (text.format(**values) for text in PROTOCOLS[protocol]["statements"][statement])
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


def count_verdicts(sections: Sequence[Section]) -> str:
    """Count the statements of the paper that these numbers support, as a sentence."""
    verdicts = [claim.verdict for section in sections for claim in section.claims]
    if not verdicts:
        return "No statement of the paper was judged."
    counts = map(verdicts.count, VERDICTS)
    return "Of {} judged statements {} hold here, {} do not, {} are undecided.".format(len(verdicts), *counts)


def list_verdicts(sections: Sequence[Section]) -> list[str]:
    """List the claims as plain text."""
    claims = [claim for section in sections for claim in section.claims]
    return [f"{VERDICTS[c.verdict]}: {c.paper} {c.found[0].upper()}{c.found[1:]}" for c in claims]


def write_markdown(facts: dict, sections: Sequence[Section], impossible: Sequence[str], folder: str) -> str:
    """Write the report as Markdown blocks separated by empty lines.

    Args:
        facts: how the numbers were made, by name. impossible: what could not be done, one sentence each.
        folder: folder of the figures (NAME.png).
    """
    rows = [(c.paper, c.criterion, VERDICTS[c.verdict], c.found) for section in sections for c in section.claims]
    claims = write_table(("Statement", "Here it holds if", "It does", "Because"), rows)
    blocks = [
        "# MicroDreamer: what reproduces",
        count_verdicts(sections),
        f"```sh\n{facts['command']}\n```" if facts["command"] else "",
        "; ".join(f"{name}: {value}" for name, value in facts.items() if name != "command" and value != "") + ".",
        "## What reproduces and what does not",
        f"{_VERDICTS_MEAN}\n\n{claims}" if rows else "None of these protocols judges a statement of the paper.",
        "## What is missing, and why",
        "\n".join(f"- {text}" for text in impossible) or "Nothing is missing.",
    ]
    for section in sections:
        tables = (write_table(table.header, table.rows, table.caption) for table in section.tables)
        figures = (write_figure(plot.caption, f"{folder}/{plot.name}.png") for plot in section.plots)
        blocks += [f"## {section.title}", section.text, *tables, *figures]
    return "\n\n".join(filter(None, blocks)) + "\n"


def write_html(markdown: str, drawn: dict[str, bytes]) -> str:
    """Convert a report's Markdown to an HTML page; ``drawn`` has the figures as SVG by name."""
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return page.replace("<!-- report -->", convert_to_html(markdown, drawn, _classify_cell))


def _classify_cell(cell: str) -> str:
    """Classify a table cell: short ones, numbers above all, do not wrap; verdicts are coloured."""
    verdict = next((name for name, text in VERDICTS.items() if text == cell), "")
    return f"{verdict} short" if len(cell) <= _SHORT else ""
