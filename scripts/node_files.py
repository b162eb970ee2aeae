"""Brings the files that repeat what the nodes' schemas say up to date: English texts, help pages, table, schema snapshot,
and the presets' numbers for the frontend.

    python scripts/node_files.py

Run it after every change of a schema and look at the difference: ids, order and types are what saved graphs rely on. What a
help page says between its description and its list of inputs is written by hand and left alone.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCALE = Path("locales/en/nodeDefs.json")
SNAPSHOT = Path("tests/fixtures/node_schemas.json")
PAGES = Path("web/docs")
OVERVIEW = Path("docs/comfyui.md")
NUMBERS = Path("web/presets.js")
_FILES = ("file", "checkpoint", "picture")  # combos whose options are what lies on the disk
_LISTS = re.compile(r"^## Inputs\n.*?(?=\n(?!- |## Outputs|\n)[^\n])|^## Inputs\n.*", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(r"(?<=<!-- nodes -->\n).*?(?=<!-- /nodes -->)", re.DOTALL)


def files(nodes: dict) -> dict[Path, str]:
    """What each file should hold, by its path below the repository; ``nodes`` are those of the stand-in ComfyUI, by id."""
    schemas = {name: node.define_schema() for name, node in nodes.items()}
    pages = {PAGES / f"{name}.md": schema for name, schema in schemas.items()}
    return {
        LOCALE: _json({name: texts(schema) for name, schema in schemas.items()}),
        SNAPSHOT: _json({name: interface(schema) for name, schema in schemas.items()}),
        OVERVIEW: _TABLE.sub(lambda _: table(schemas), _read(OVERVIEW)),
        NUMBERS: _presets(nodes["MicroDreamerSIRPlan"], nodes["MicroDreamerSDSSteps"]),
        **{path: page(schema, _read(path)) for path, schema in pages.items()},
    }


def texts(schema) -> dict:
    """A node's English texts, as ComfyUI's locales want them."""

    def of(socket):
        return {"name": socket.options.get("display_name", socket.id), "tooltip": socket.options["tooltip"]}

    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {socket.id: of(socket) for socket in schema.inputs},
        "outputs": {str(i): of(socket) for i, socket in enumerate(schema.outputs)},
    }


def interface(schema) -> dict:
    """What saved graphs rely on: ids, order, types and bounds."""

    def row(socket):
        options = {k: v for k, v in socket.options.items() if k in ("default", "min", "max", "lazy", "force_input")}
        if socket.kind == "COMBO" and socket.id not in _FILES:
            options["options"] = socket.options["options"]
        return [socket.id, socket.kind, "optional" if socket.optional else "required", options]

    return {
        "display_name": schema.display_name,
        "category": schema.category,
        "output_node": schema.is_output_node,
        "inputs": [row(socket) for socket in schema.inputs],
        "outputs": [[socket.options["display_name"], socket.kind] for socket in schema.outputs],
    }


def page(schema, current: str) -> str:
    """A help page with the schema's title, description and lists, and the text that ``current`` has between and after them."""
    body = current.split("\n\n", 2)[2] if current.count("\n\n") >= 2 else "## Inputs\n"
    lists = _lists(schema)
    body = _LISTS.sub(lambda _: lists, body, count=1) if _LISTS.search(body) else f"{body.rstrip()}\n\n{lists}"
    return f"# {schema.display_name}\n\n{schema.description}\n\n{body}"


def table(schemas: dict) -> str:
    """The overview's table: every node that users see, by category, with the first sentence of its description."""
    rows = ["| Stage | Node | What it does |", "|---|---|---|"]
    for name, schema in sorted(schemas.items(), key=lambda item: (item[1].category, item[1].display_name)):
        stage = schema.category.partition("/")[2]
        if not stage.endswith("internal"):
            first = re.split(r"(?<=[.:;])(?<!Eq.) ", schema.description, maxsplit=1)[0].rstrip(".:;")
            rows.append(f"| {stage or 'All in one'} | [{schema.display_name}](../{PAGES.as_posix()}/{name}.md) | {first} |")
    return "\n".join([*rows, ""])


def _presets(plan_node, sds_node) -> str:
    """A module of JavaScript: frontends import it without asking a server."""
    plans, baselines = (_json(sys.modules[node.__module__].preset_widgets()) for node in (plan_node, sds_node))
    return f"// Written by scripts/node_files.py.\nexport const SDS = {baselines}export default {plans}"


def _lists(schema) -> str:
    def line(socket):
        optional = " (optional)" if getattr(socket, "optional", False) else ""
        return f"- `{socket.options.get('display_name', socket.id)}`{optional}: {socket.options['tooltip']}\n"

    inputs, outputs = ("".join(map(line, sockets)) for sockets in (schema.inputs, schema.outputs))
    return f"## Inputs\n\n{inputs or 'None.' + chr(10)}\n## Outputs\n\n{outputs or 'None.' + chr(10)}"


def _read(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else ""


def _json(value) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _stand_in():
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers import host_stand_in

    return host_stand_in


def main() -> None:
    stand_in = _stand_in()
    with tempfile.TemporaryDirectory() as folder:
        host = stand_in.Host(Path(folder))
        sys.modules.update(host.modules())
        stand_in.load_pack(host)
        wanted = files(dict(host.nodes))
    for path in (ROOT / PAGES).glob("*.md"):
        if path.relative_to(ROOT) not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if _read(path) != text:
            sys.stdout.write(f"{path}\n")
            (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
