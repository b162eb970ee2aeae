"""Gathers the pages of the site, which mkdocs.yml describes, in outputs/pages: `make docs` runs this and then builds the site.

    python scripts/site_pages.py

They are those of docs/, the nodes' help pages, some files from elsewhere, and a page of the API reference for each package of
the core, which mkdocstrings fills from the docstrings. Links between them follow.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "microdreamer_core"
PAGES = ROOT / "outputs" / "pages"
FOLDERS = {"docs": "", "web/docs": "nodes"}
FILES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "microdreamer_core/diffusion/embedded/README.md": "model_card.md",
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def addresses() -> dict[str, str]:
    """File of the repository -> its place among the pages."""
    found = dict(FILES)
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file():
                found[path.relative_to(ROOT).as_posix()] = posixpath.join(place, path.relative_to(ROOT / folder).as_posix())
    return found


def move_links(text: str, source: str, places: dict[str, str]) -> str:
    """The links of a page from where its file is to where its page is; those to files that are no pages stay."""

    def moved(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if target not in places:
            return link[1]
        return posixpath.relpath(places[target], posixpath.dirname(places[source]) or ".")

    return _LINK.sub(moved, text)


def reference_pages() -> dict[str, str]:
    """Place -> text: a page for each package of the core, and one for the single modules at its top."""
    modules: dict[str, list[str]] = {}
    for path in sorted(CORE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name != "__init__.py" and not any(part.startswith("_") for part in parts):
            modules.setdefault(parts[1] if len(parts) > 2 else "top", []).append(".".join(parts))
    titles = {package: f"microdreamer_core{'' if package == 'top' else '.' + package}" for package in modules}
    return {
        f"reference/{package}.md": "\n".join([f"# {titles[package]}\n", *(f"::: {module}\n" for module in names)])
        for package, names in modules.items()
    }


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    places = addresses()
    for source, place in places.items():
        page = PAGES / place
        page.parent.mkdir(parents=True, exist_ok=True)
        if page.suffix == ".md":
            text = (ROOT / source).read_text(encoding="utf-8")
            page.write_text(move_links(text, source, places), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / source, page)
    for place, text in reference_pages().items():
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / place).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
