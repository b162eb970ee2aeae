"""The report as Markdown beside its figures, and as one self-contained HTML page made from that Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..util.markdown import convert_to_html, write_figure, write_table
from .content import Section

VERDICTS = {"yes": "✓ yes", "no": "✗ no", "undecided": "? undecided"}

_VERDICTS_MEAN = (
    "Each line holds a statement, most of them the paper's, against the numbers below, by the criterion in its second column. "
    "“Undecided” means that the limit lies within the 95 % confidence interval over objects (in Table III's protocol within "
    "the deviation over runs), or that there is one sample alone. Every line is judged by itself: of twenty such verdicts one "
    "may be chance."
)
_PAGE = Path(__file__).with_name("page.html")
_SHORT = 24


def count_verdicts(sections: Sequence[Section]) -> str:
    """Count the statements of the paper that these numbers support, as a sentence."""
    verdicts = [claim.verdict for section in sections for claim in section.claims]
    if not verdicts:
        return "No statement of the paper was judged."
    counts = [verdicts.count(verdict) for verdict in VERDICTS]
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
    body = convert_to_html(markdown, drawn, _classify_cell)
    return _PAGE.read_text(encoding="utf-8").replace("<!-- report -->", body)


def _classify_cell(cell: str) -> str:
    """Classify a table cell: short ones, numbers above all, do not wrap; verdicts are coloured."""
    verdict = next((name for name, text in VERDICTS.items() if text == cell), "")
    return f"{verdict} short" if len(cell) <= _SHORT else ""
