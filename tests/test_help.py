"""The help pages: pictures, equations, knobs; read as the frontends read them, without a host."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "web" / "docs"
SCHEMAS = json.loads((ROOT / "tests" / "fixtures" / "node_schemas.json").read_text(encoding="utf-8"))
PUBLIC = sorted(name for name, schema in SCHEMAS.items() if not schema["category"].endswith("internal"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
LARGEST, LARGEST_SUM = 40_000, 960_000
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]*)\)")
NO_PAPER = {
    *("ExamplePicture", "FieldFromSplat", "FieldFromNativeSplat", "FieldToSplat"),
    *("LoadState", "TakeIteration", "SaveMesh", "SaveSplat", "SaveState"),
}
"""Nodes that only read and write: there is no equation to show."""


def text(node: str) -> str:
    return (PAGES / f"{node}.md").read_text(encoding="utf-8")


def by_hand(node: str) -> str:
    """The page without the lists that repeat the schema."""
    before, _, rest = text(node).partition("## Inputs\n")
    _, _, after = rest.partition("## Outputs\n")
    return before + re.sub(r"\A(?:\n|- .*\n)*", "", after)


@pytest.mark.parametrize("node", PUBLIC)
def test_a_page_has_one_small_picture_with_a_caption(node):
    (found,) = _PICTURE.finditer(text(node))
    words, file = found.groups()
    assert words and "/" not in file, "frontends put the folder of the pages before a picture's name"
    path = PAGES / file
    assert path.stat().st_size <= LARGEST
    with Image.open(path) as picture:
        assert picture.format in ("JPEG", "PNG") and picture.width == 640
        assert picture.format == "JPEG" or picture.mode == "P"
    caption = text(node)[found.end() :].lstrip().split("\n\n")[0]
    assert re.fullmatch(r"\*[^*]+\*", caption, re.DOTALL), "a line in italics below the picture says what it shows"


@pytest.mark.parametrize("node", PUBLIC)
def test_a_page_says_what_its_node_computes(node):
    assert ("```" in text(node)) == (node.removeprefix("MicroDreamer") not in NO_PAPER)
    assert text(node).count("```") % 2 == 0


@pytest.mark.parametrize("node", PUBLIC)
def test_every_knob_is_explained_by_hand_too(node):
    knobs = [name for name, kind, _, options in SCHEMAS[node]["inputs"] if kind in WIDGETS and not options.get("force_input")]
    assert [name for name in knobs if f"`{name}`" not in by_hand(node)] == []


@pytest.mark.parametrize("node", PUBLIC)
def test_a_page_is_as_long_as_a_page(node):
    assert 20 <= len(text(node).splitlines()) <= 90
    assert max(map(len, text(node).splitlines())) < 400


@pytest.mark.parametrize("node", sorted(SCHEMAS))
def test_no_link_leads_away_from_the_editor(node):
    """Older frontends open a page's links in place of the editor, and resolve relative ones against the server's root."""
    assert re.findall(r"(?<!!)\[[^\]]*\]\([^)]*\)|https?://", text(node)) == []


def test_every_file_is_used_and_all_are_small():
    pictures = {name for node in SCHEMAS for _, name in _PICTURE.findall(text(node))}
    files = {path.name for path in PAGES.iterdir()}
    assert files == pictures | {f"{node}.md" for node in SCHEMAS}
    assert sum((PAGES / name).stat().st_size for name in pictures) <= LARGEST_SUM
