"""docs/fidelity.md names files, functions and tests that exist, and a test for every claim."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
HEADER = ["Claim", "Code", "Verdict", "Difference, and why", "Test"]
VERDICTS = ("same", "as released", "nearly", "different", "ours")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


TABLES = [cells(line) for line in PAGE.splitlines() if line.startswith("|") and not line.startswith("|-")]
ROWS = [row for row in TABLES if row != HEADER]


@lru_cache
def names_of(path: Path) -> set[str]:
    """Functions, classes and assigned names at the top of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_page_has_its_tables():
    assert len(ROWS) > 40 and TABLES.count(HEADER) == PAGE.count("\n## ") == 6


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_is_whole_and_names_what_exists(row):
    claim, code, verdict, difference, tests = row
    assert claim and verdict.startswith(VERDICTS)
    assert difference or verdict.startswith("same"), "what differs is said"
    assert ticked(code) and ticked(tests), "a place and a test for each claim"
    for place in ticked(code):
        path, _, name = place.partition(":")
        file = ROOT / "microdreamer_core" / path
        assert file.is_file() and (not name or name in names_of(file)), place
    for test in ticked(tests):
        path, _, name = test.partition("::")
        assert name.startswith("test_") and name in names_of(ROOT / "tests" / path), test
