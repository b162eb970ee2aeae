"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from .content import Claim, Section, Table

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 64rem; margin: 0 auto;
padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.3rem; margin: 2.4rem 0 .4rem; border-top: 1px solid #ddd;
padding-top: 1.2rem; } p { max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .9rem; margin: .8rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #666; padding-bottom: .3rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
th { border-bottom: 1px solid #888; } td.number { white-space: nowrap; }
.scroll { overflow-x: auto; } figure { margin: 1rem 0; } figcaption { color: #666; font-size: .9rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots figure { flex: 1 1 26rem; margin: 0; max-width: 40rem; }
img { max-width: 100%; height: auto; } .sheet img { image-rendering: pixelated; }
.verdict { font-weight: 600; white-space: nowrap; } .yes { color: #00694e; } .no { color: #a63c00; } .undecided { color: #555; }
"""
_HEAD = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>MicroDreamer report</title>'
_LONGEST_NUMBER = 24
VERDICTS = {"yes": "✓ yes", "no": "✗ no", "undecided": "? undecided"}
VERDICTS_MEAN = (
    "Each line holds a statement, most of them the paper's, against the numbers below, by the criterion in its second column. "
    "“Undecided” means that the limit lies within the 95 % confidence interval over objects (in Table III's protocol within "
    "the deviation over runs), or that there is one sample alone. Every line is judged by itself: of twenty such verdicts one "
    "may be chance."
)
NO_VERDICTS = "None of these protocols judges a statement of the paper."
MISSING = "What is missing, and why"
CLAIM_HEADER = ("Statement", "Here it holds if", "It does", "Because")


def page(facts: dict, sections: Sequence[Section], impossible: Sequence[str], drawn: dict[str, bytes]) -> str:
    """The page.

    Args:
        facts: what the numbers were made with, by name. impossible: what could not be done.
        drawn: contents of the sections' plots (NAME.svg) and sheets (NAME.png).
    """
    claims = [claim for section in sections for claim in section.claims]
    body = [
        "<h1>MicroDreamer: what reproduces</h1>",
        f"<p>{escape(summary(sections))}</p>",
        _facts(facts),
        "<h2>What reproduces and what does not</h2>",
        f"<p>{VERDICTS_MEAN if claims else NO_VERDICTS}</p>",
        _claims(claims) if claims else "",
        f"<h2>{MISSING}</h2>",
        "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in impossible) + "</ul>"
        if impossible
        else "<p>Nothing is missing.</p>",
        *(_section(section, drawn) for section in sections),
    ]
    head = f"{_HEAD}<style>{_STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def summary(sections: Sequence[Section]) -> str:
    """How many statements of the paper these numbers bear out."""
    verdicts = [claim.verdict for section in sections for claim in section.claims]
    if not verdicts:
        return "No statement of the paper was judged."
    counts = [verdicts.count(verdict) for verdict in ("yes", "no", "undecided")]
    return "Of {} judged statements {} hold here, {} do not, {} are undecided.".format(len(verdicts), *counts)


def claim_lines(sections: Sequence[Section]) -> list[str]:
    """The claims as plain text."""
    return [
        f"{VERDICTS[claim.verdict]}: {claim.paper} {claim.found[0].upper()}{claim.found[1:]}"
        for section in sections
        for claim in section.claims
    ]


def _facts(facts: dict) -> str:
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items() if value != "")
    return f"<dl>{''.join(rows)}</dl>"


def _claims(claims: Sequence[Claim]) -> str:
    rows = [
        f"<tr><td>{escape(claim.paper)}</td><td>{escape(claim.criterion)}</td>"
        f'<td class="verdict {claim.verdict}">{VERDICTS[claim.verdict]}</td><td>{escape(claim.found)}</td></tr>'
        for claim in claims
    ]
    header = f"<tr>{''.join(f'<th>{name}</th>' for name in CLAIM_HEADER)}</tr>"
    return f'<div class="scroll"><table>{header}{"".join(rows)}</table></div>'


def _section(section: Section, drawn: dict[str, bytes]) -> str:
    plots = "".join(_figure(drawn[f"{plot.name}.svg"], "svg+xml", plot.caption) for plot in section.plots)
    sheets = "".join(_figure(drawn[f"{sheet.name}.png"], "png", sheet.caption, "sheet") for sheet in section.sheets)
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
    parts += [_table(table) for table in section.tables]
    parts += [f'<div class="plots">{plots}</div>' if plots else "", sheets]
    return "<section>" + "\n".join(parts) + "</section>"


def _table(table: Table) -> str:
    header = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td{_kind(i, cell)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="scroll"><table><caption>{escape(table.caption)}</caption><tr>{header}</tr>{rows}</table></div>'


def _kind(column: int, cell: str) -> str:
    """Numbers stay on one line, words may be wrapped."""
    return " class=number" if column and len(cell) <= _LONGEST_NUMBER else ""


def _figure(content: bytes, kind: str, caption: str, name: str = "plot") -> str:
    data = base64.b64encode(content).decode()
    words = escape(caption, quote=True)
    picture = f'<img src="data:image/{kind};base64,{data}" alt="{words}">'
    return f'<figure class="{name}">{picture}<figcaption>{words}</figcaption></figure>'
