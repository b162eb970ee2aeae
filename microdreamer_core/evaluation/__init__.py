"""The paper's evaluation: protocols of cached runs, their analysis, and a report page (``report.make_report``)."""

import json
from pathlib import Path
from typing import Any

PROTOCOLS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("protocols.json").read_text(encoding="utf-8"))
"""The protocols in report order, with their titles, texts, methods, tables and plots, and the statements of the paper that they
judge, each with its criterion: Fig. 7 (``sds``, ``truth``), 4, 10, 11 and 12a to 12d, and Table III (``pictures``)."""
WORDS: dict[str, Any] = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
"""Sentences of the page, and the headings and formats of measures."""
