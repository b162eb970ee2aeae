"""The report as Markdown beside its figures, and as one self-contained HTML page made from that Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from .content import Section, Table

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
    claims = Table("", ("Statement", "Here it holds if", "It does", "Because"), tuple(rows))
    blocks = [
        "# MicroDreamer: what reproduces",
        count_verdicts(sections),
        f"```sh\n{facts['command']}\n```" if facts["command"] else "",
        "; ".join(f"{name}: {value}" for name, value in facts.items() if name != "command" and value != "") + ".",
        "## What reproduces and what does not",
        f"{_VERDICTS_MEAN}\n\n{_write_table(claims)}" if rows else "None of these protocols judges a statement of the paper.",
        "## What is missing, and why",
        "\n".join(f"- {text}" for text in impossible) or "Nothing is missing.",
    ]
    for section in sections:
        figures = (f"![{plot.caption}]({folder}/{plot.name}.png)\n\n*{plot.caption}*" for plot in section.plots)
        blocks += [f"## {section.title}", section.text, *map(_write_table, section.tables), *figures]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _write_table(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"{text}\n\n*{table.caption}*" if table.caption else text


def write_html(markdown: str, drawn: dict[str, bytes]) -> str:
    """Convert a report's Markdown to an HTML page; ``drawn`` has the figures as SVG by name."""
    body = "\n".join(_write_block(block, drawn) for block in markdown.strip().split("\n\n"))
    return _PAGE.read_text(encoding="utf-8").replace("<!-- report -->", body)


def _write_block(block: str, drawn: dict[str, bytes]) -> str:
    text = escape(block)
    lines = text.split("\n")
    if heading := re.fullmatch("(#+) (.*)", text):
        level = len(heading[1])
        return f"<h{level}>{heading[2]}</h{level}>"
    if text.startswith("```"):
        return f"<pre>{lines[1]}</pre>"
    if text.startswith("| "):
        rows = [line[2:-2].split(" | ") for line in lines]
        cells = ["".join(f"<th>{cell}</th>" for cell in rows[0]), *("".join(map(_write_cell, row)) for row in rows[2:])]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
    if text.startswith("- "):
        return f"<ul>{''.join(f'<li>{line[2:]}</li>' for line in lines)}</ul>"
    if figure := re.fullmatch(r"!\[(.*)\]\(.*/(\w+)\.png\)", text):
        data = base64.b64encode(drawn[figure[2]]).decode()
        return f'<img src="data:image/svg+xml;base64,{data}" alt="{figure[1]}">'
    caption = re.fullmatch(r"\*(.*)\*", text)
    return f"<p><em>{caption[1]}</em></p>" if caption else f"<p>{text}</p>"


def _write_cell(cell: str) -> str:
    """Write a table cell: numbers do not wrap, words may; verdicts are coloured."""
    verdict = next((name for name, text in VERDICTS.items() if text == cell), "")
    kind = f' class="{verdict} short"' if len(cell) <= _SHORT else ""
    return f"<td{kind}>{cell.replace(chr(92) + '|', '|')}</td>"
