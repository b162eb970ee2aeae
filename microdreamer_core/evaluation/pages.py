"""A report's content: claims, tables and plots in sections; as Markdown, and as one self-contained HTML page made from that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..util.markdown import convert_to_html, write_figure, write_table
from . import WORDS
from .runs import Series
from .sources import Setup
from .statistics import Estimate, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS: dict[str, str] = WORDS["verdicts"]
_SHORT = 24


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with its place, the criterion tested here, the verdict, and the numbers behind it."""

    paper: str
    criterion: str
    verdict: Verdict
    found: str


def judge_statement(words: dict, estimate: Estimate, verdict: Verdict | None = None, **values: Any) -> Claim:
    """Judge a statement of ``PROTOCOLS`` by an estimate, unless the verdict was found otherwise.

    Args:
        values: for the places in the statement's sentences, beside ``estimate`` and ``limit``.
    """
    relation, limit = words["holds"]
    sentences = (words[part].format(estimate=estimate, limit=abs(limit), **values) for part in ("paper", "criterion", "found"))
    paper, criterion, found = sentences
    return Claim(paper, criterion, verdict or estimate.judge(relation, limit), found)


@dataclass(frozen=True)
class Table:
    """Cells as they are printed, under a header."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """A figure: its file name, its caption and the function that draws into it."""

    name: str
    caption: str
    draw: Callable[[Figure], None]


@dataclass(frozen=True)
class Section:
    """The results of one protocol, under the protocol's title."""

    text: str
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    title: str = ""


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
    judge: Callable[[Setup, list[Series], Path], list[Series]] | None = None


def list_verdicts(sections: Sequence[Section]) -> Iterator[str]:
    """List the claims as plain text."""
    for claim in (claim for section in sections for claim in section.claims):
        yield f"{VERDICTS[claim.verdict]}: {claim.paper} {claim.found[0].upper()}{claim.found[1:]}"


def count_verdicts(sections: Sequence[Section]) -> str:
    """Count the statements of the paper that these numbers support, as a sentence."""
    verdicts = [claim.verdict for section in sections for claim in section.claims]
    if not verdicts:
        return "No statement of the paper was judged."
    counts = map(verdicts.count, VERDICTS)
    return "Of {} judged statements {} hold here, {} do not, {} are undecided.".format(len(verdicts), *counts)


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
        f"{WORDS['verdicts_mean']}\n\n{claims}" if rows else "None of these protocols judges a statement of the paper.",
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
