"""A benchmark in independent sections: failures are reported, and the other sections still run."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Row = dict
"""One line: "stage", and of the rest what is known: "seconds", "of_limit" (share of the physical limit), "limit" (which),
"memory_mb", "note"."""


def run_sections(sections: dict[str, Callable[[], Iterator[Row]]], chosen: list[str] | None = None) -> tuple[dict, list[str]]:
    """Run sections one after the other, writing every row as it comes.

    Returns:
        The rows by section (an "error" row ends a section that failed), and the names of the sections that failed.
    """
    rows, failed = {}, []
    for name, section in sections.items():
        if chosen and name not in chosen:
            continue
        rows[name] = []
        gc.collect()  # what the section before held must not count as this one's memory
        torch.cuda.empty_cache()
        sys.stdout.write(f"\n{name}\n")
        try:
            for row in section():
                rows[name].append(row)
                sys.stdout.write(row_text(row) + "\n")
                sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, the other sections can still run
            failed.append(name)
            rows[name].append({"stage": "failed", "error": f"{type(error).__name__}: {error}"})
            sys.stdout.write(f"  failed: {type(error).__name__}: {error}\n")
            traceback.print_exc()
    return rows, failed


def row_text(row: Row) -> str:
    seconds, share, memory = row.get("seconds"), row.get("of_limit"), row.get("memory_mb")
    cells = [
        f"  {row['stage']:44s}",
        f"{1e3 * seconds:10.2f} ms" if seconds is not None else " " * 13,
        f"{100 * share:5.1f} % of {row['limit']:9s}" if share is not None else " " * 20,
        f"{memory:7.0f} MB" if memory is not None else " " * 10,
        row.get("note", ""),
    ]
    return "  ".join(cells).rstrip()
