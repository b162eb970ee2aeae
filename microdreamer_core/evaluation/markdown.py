"""The report as Markdown beside its figures, for a repository that keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .content import Section, Table
from .page import CLAIM_HEADER, MISSING, NO_VERDICTS, VERDICTS, VERDICTS_MEAN, summary


def markdown_summary(facts: dict, sections: Sequence[Section], impossible: Sequence[str], figures: str) -> str:
    """The whole report.

    Args:
        facts, sections, impossible: as for ``page.page``.
        figures: folder of the plots and sheets (NAME.png), as the text is to name it.
    """
    claims = [claim for section in sections for claim in section.claims]
    rows = [(claim.paper, claim.criterion, VERDICTS[claim.verdict], claim.found) for claim in claims]
    parts = [
        "# MicroDreamer: what reproduces",
        summary(sections),
        f"```sh\n{facts['command']}\n```" if facts["command"] else "",
        "; ".join(f"{name}: {value}" for name, value in facts.items() if name != "command" and value != "") + ".",
        "## What reproduces and what does not",
        f"{VERDICTS_MEAN}\n\n{_table(CLAIM_HEADER, rows)}" if rows else NO_VERDICTS,
        f"## {MISSING}",
        "\n".join(f"- {text}" for text in impossible) or "Nothing is missing.",
        *(_section(section, figures) for section in sections),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(section: Section, figures: str) -> str:
    drawn = [f"![{item.caption}]({figures}/{item.name}.png)\n\n*{item.caption}*" for item in (*section.plots, *section.sheets)]
    return "\n\n".join((f"## {section.title}", section.text, *map(_caption_table, section.tables), *drawn))


def _caption_table(table: Table) -> str:
    return f"{_table(table.header, table.rows)}\n\n*{table.caption}*"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
