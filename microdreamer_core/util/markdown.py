"""A small subset of Markdown, written and converted to HTML: headings, code, paragraphs, lists, tables, figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from functools import partial
from html import escape


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    r"""Write a table, with its caption in italics below.

    >>> print(write_table(("a", "b"), [("1|2", "3")]))
    | a | b |
    | --- | --- |
    | 1\|2 | 3 |
    """
    lines = [header, ["---"] * len(header), *rows]
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"{text}\n\n*{caption}*" if caption else text


def write_figure(caption: str, path: str) -> str:
    """Write a figure, with its caption in italics below.

    >>> write_figure("A bird.", "figures/bird.png")
    '![A bird.](figures/bird.png)\\n\\n*A bird.*'
    """
    return f"![{caption}]({path})\n\n*{caption}*"


def convert_to_html(markdown: str, figures: dict[str, bytes], classify: Callable[[str], str]) -> str:
    """Convert blocks separated by empty lines to HTML elements, one a line.

    >>> convert_to_html("# A bird\\n\\n*Small.*", {}, str)
    '<h1>A bird</h1>\\n<p><em>Small.</em></p>'

    Args:
        figures: by the stem of their files, as SVG; they are embedded. classify: gives the class of a table's cell, or "".
    """
    return "\n".join(_convert_block(block, figures, classify) for block in markdown.strip().split("\n\n"))


def _convert_block(block: str, figures: dict[str, bytes], classify: Callable[[str], str]) -> str:
    text = escape(block)
    lines = text.split("\n")
    if heading := re.fullmatch("(#+) (.*)", text):
        level = len(heading[1])
        return f"<h{level}>{heading[2]}</h{level}>"
    if text.startswith("```"):
        return f"<pre>{lines[1]}</pre>"
    if text.startswith("| "):
        rows, write = [line[2:-2].split(" | ") for line in lines], partial(_convert_cell, classify=classify)
        cells = ["".join(f"<th>{cell}</th>" for cell in rows[0]), *("".join(map(write, row)) for row in rows[2:])]
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
    if text.startswith("- "):
        return f"<ul>{''.join(f'<li>{line[2:]}</li>' for line in lines)}</ul>"
    if figure := re.fullmatch(r"!\[(.*)\]\(.*/(\w+)\.png\)", text):
        data = base64.b64encode(figures[figure[2]]).decode()
        return f'<img src="data:image/svg+xml;base64,{data}" alt="{figure[1]}">'
    caption = re.fullmatch(r"\*(.*)\*", text)
    return f"<p><em>{caption[1]}</em></p>" if caption else f"<p>{text}</p>"


def _convert_cell(cell: str, classify: Callable[[str], str]) -> str:
    kind = classify(cell)
    opening = f'<td class="{kind}">' if kind else "<td>"
    return f"{opening}{cell.replace(chr(92) + '|', '|')}</td>"
