"""A griffe extension of the site: docstrings as its Markdown understands them.

Examples become code blocks (``>>>`` would be a quotation in a quotation), and references such as ``:func:`~.ddim.ddim_step```
the name that they end with.
"""

from __future__ import annotations

import re

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n|$).*)*", re.MULTILINE)
_REFERENCE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?[\w.]*?(\w+)`")


class MarkdownDocstrings(griffe.Extension):
    """Rewrite each docstring before mkdocstrings reads it."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is not None:
            text = _REFERENCE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
