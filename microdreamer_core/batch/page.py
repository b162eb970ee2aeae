"""The page of a batch: its images beside films of the objects, numbers, and links to the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from ..util.readable import readable_time
from .items import Item
from .tasks import FILMS, IMAGES, THUMBNAIL, find_ending

VIEWER = "https://cdn.jsdelivr.net/npm/@google/model-viewer@4.0.0/dist/model-viewer.min.js"
INTEGRITY = "sha384-sr9b4Ux0WhAUGclJ0ym0FSY2zSOMmNSn0bP/SA0e6bNCrpn/5W3QL8mm+LdlQMKw"
"""A viewer of .glb files, and the hash of it; the page loads it when it is asked to, nothing needs it."""

_PAGE = Path(__file__).with_name("page.html")


def write_page(title: str, items: Sequence[Item], results: Mapping[str, dict | None]) -> str:
    """Write the page as HTML.

    Args:
        results: by the items' names: ``files`` by kind and ``numbers`` by name, or ``failed``; None if not done.
    """
    failed = [item for item in items if "failed" in (results[item.name] or {})]
    left = sum(result is None for result in results.values())
    counts = {"made": len(items) - len(failed) - left, "failed": len(failed), "to do": left}
    links = ", ".join(f'<a href="#{quote(item.name)}">{escape(item.name)}</a>' for item in failed)
    parts = {
        "title": escape(title),
        "summary": ", ".join(f"{count} {name}" for name, count in counts.items() if count),
        "failures": f"<p>Failed: {links}</p>" if failed else "",
        "cards": "\n".join(_write_card(item, results[item.name]) for item in items),
        "viewer": VIEWER,
        "integrity": INTEGRITY,
    }
    page = _PAGE.read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page


def _write_card(item: Item, result: dict | None) -> str:
    kind = ' class="failed"' if result and "failed" in result else ""
    words = f"<p>{escape(item.prompt)}</p>" if item.prompt else ""
    return f'<article{kind} id="{escape(item.name)}"><h2>{escape(item.name)}</h2>{words}{_write_body(item, result)}</article>'


def _write_body(item: Item, result: dict | None) -> str:
    if result is None:
        return '<p class="faint">not done yet</p>'
    if "failed" in result:
        return f'<p class="why">{escape(result["failed"])}</p>'
    files = {kind: f"{quote(item.name)}/{quote(name)}" for kind, name in result["files"].items()}
    picture = f'<img src="{quote(item.name)}/{THUMBNAIL}" alt="the picture" loading="lazy">' if item.picture else ""
    numbers = {name: readable_time(value) if name == "seconds" else str(value) for name, value in result["numbers"].items()}
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in numbers.items())
    links = "".join(f'<a href="{path}">{escape(kind)}</a>' for kind, path in files.items())
    return f'<div class="pair">{picture}{_write_stage(item, files)}</div><dl>{shown}</dl><p>{links}</p>'


def _write_stage(item: Item, files: Mapping[str, str]) -> str:
    """The object: its film, or else an image of it; a mesh can be turned by hand in place of it."""
    mesh = next((path for path in files.values() if path.endswith(".glb")), None)
    data = f' data-mesh="{mesh}" data-name="{escape(item.name)}"' if mesh else ""
    film = find_ending(files.values(), FILMS)
    image = find_ending(files.values(), IMAGES)
    shown = ""
    if film:
        shown = f'<video src="{film}" autoplay loop muted playsinline preload="metadata"></video>'
    elif image:
        shown = f'<img src="{image}" alt="the object" loading="lazy">'
    return f'<div class="stage"{data}>{shown}</div>'
