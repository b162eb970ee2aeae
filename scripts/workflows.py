"""Writes workflows/*.json, the graphs that hosts open as templates, from the declarations in ``workflow_graphs.py``.

    python scripts/workflows.py http://127.0.0.1:8188        # or a file with that server's /object_info

The server must run this version of the pack: which widgets a node has, and in which order, comes from its schemas, so run this
after every change of a schema. The graphs for API clients in workflows/api are then exported by the host's own frontend, never
by this script.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NOTES = Path(__file__).resolve().with_name("workflow_notes")
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
FILES = {"checkpoint", "ckpt_name", "file", "image"}  # combos whose options are what lies on the disk

# The frontend's own measures: a title bar above the node, a row for each socket, a row for each widget.
TITLE, SOCKET, WIDGET, WIDGETS_EDGE, EDGE = 30, 20, 24, 8, 6
GAP, COLUMN_GAP, STAGE_GAP, PADDING, HEADING = 30, 70, 60, 20, 70
NOTE_WIDTH, NOTE_HEIGHT = 560, 88
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}


class Link(NamedTuple):
    """An output of a node, to be given as the value of another node's input."""

    node: Node
    index: int
    kind: str


@dataclass
class Node:
    """A box of the graph. ``inputs`` are links and widget values by name; position is that of its body, without title."""

    id: int
    type: str
    inputs: dict[str, Any]
    width: int
    height: int
    schema: dict
    title: str = ""
    colours: dict = field(default_factory=dict)
    x: int = 0
    y: int = 0

    def __getitem__(self, output: str) -> Link:
        names = self.schema["output_name"]
        return Link(self, names.index(output), self.schema["output"][names.index(output)])


@dataclass
class Stage:
    """A group of columns with a note above."""

    graph: Graph
    title: str
    colour: str
    note: Node | None
    row: int
    columns: list[list[Node]] = field(default_factory=lambda: [[]])
    drops: list[int] = field(default_factory=lambda: [0])

    def column(self, drop: int = 0) -> Stage:
        """What comes next stands to the right of what is there, by ``drop`` lower than the other columns."""
        self.columns.append([])
        self.drops.append(drop)
        return self

    def node(self, type: str, *, id: int = 0, width: int = 270, height: int = 0, title: str = "", colour: str = "", **inputs):
        """A node below the last one of this column; without ``id`` it takes the next free one.

        Raises:
            ValueError: an input that the node does not have, lacks or cannot take.
        """
        schema = self.graph.schemas[type]
        _check(type, schema, inputs)
        least = _least_height(schema)
        colours = {"color": colour, "bgcolor": colour} if colour else {}
        node = Node(id or self.graph.free_id(), type, inputs, width, max(height, least), schema, title, colours)
        self.columns[-1].append(node)
        self.graph.nodes.append(node)
        return node


class Graph:
    """A graph under construction: stages from left to right, each with columns from left to right."""

    def __init__(self, name: str, schemas: dict):
        self.schemas, self.nodes, self.stages, self.row = schemas, [], [], 0
        self._notes = {**notes("common"), **notes(name)}

    def intro(self, width: int = 420) -> None:
        """The note at the far left: what the graph is for."""
        stage = Stage(self, "Read me", "#888", None, self.row)
        stage.columns[-1].append(self._note("Read me", width))
        self.stages.append(stage)

    def stage(self, title: str, colour: str) -> Stage:
        """A named group to the right of what is there, with its explanation."""
        stage = Stage(self, title, colour, self._note(title, 0), self.row)
        self.stages.append(stage)
        return stage

    def next_row(self) -> None:
        """Stages from here on stand below the others, for a second chain of its own."""
        self.row += 1

    def free_id(self) -> int:
        """Above the ids that declarations give, so that adding a note or a preview renames no node."""
        return max([59, *(node.id for node in self.nodes)]) + 1

    def _note(self, title: str, width: int) -> Node:
        schema = {"input": {}, "input_order": {}, "output": [], "output_name": []}
        note = Node(self.free_id(), "MarkdownNote", {"": self._notes[title]}, width, 0, schema, "Note", NOTE_COLOURS)
        self.nodes.append(note)
        return note

    def finished(self) -> dict:
        """The graph as the frontend saves it.

        Raises:
            ValueError: nodes overlap or a link runs backwards.
        """
        groups = self._arrange()
        _check_layout(self.nodes)
        links = [
            [value.node.id, value.index, node.id, slot, value.kind]
            for node in self.nodes
            for slot, (name, _) in enumerate(_sockets(node))
            if isinstance(value := node.inputs.get(name), Link)
        ]
        links = [[number, *link] for number, link in enumerate(links, 1)]
        return {
            "revision": 0,
            "last_node_id": max(node.id for node in self.nodes),
            "last_link_id": len(links),
            "nodes": [_saved(node, order, links) for order, node in enumerate(_in_order(self.nodes))],
            "links": links,
            "groups": [{"id": number, **group} for number, group in enumerate(groups, 1)],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _arrange(self) -> list[dict]:
        groups, y = [], 0
        for number in range(self.row + 1):
            stages = [stage for stage in self.stages if stage.row == number]
            x = 0 if not number else groups[1]["bounding"][0]
            groups += _arranged(stages, x, y)
            y = max(top + height for _, top, _, height in (group["bounding"] for group in groups)) + STAGE_GAP
        return groups


def _arranged(stages: list[Stage], x: int, y: int) -> list[dict]:
    """Give the nodes of stages that stand side by side their places, the first corner at (x, y): their groups."""
    widths = [[max(node.width for node in column) for column in stage.columns] for stage in stages]
    for stage, columns in zip(stages, widths, strict=True):
        for note in [stage.note] if stage.note else stage.columns[0]:
            note.width = note.width or min(NOTE_WIDTH, sum(columns) + COLUMN_GAP * (len(columns) - 1))
            note.height = note_height(note.inputs[""], note.width)
    below_notes = HEADING + max(stage.note.height for stage in stages if stage.note) + GAP + TITLE
    groups, bottom = [], y
    for stage, columns in zip(stages, widths, strict=True):
        left = at = x + PADDING
        if stage.note:
            stage.note.x, stage.note.y = left, y + HEADING
        for column, width, drop in zip(stage.columns, columns, stage.drops, strict=True):
            down = y + drop + (below_notes if stage.note else HEADING)
            for node in column:
                node.x, node.y, node.width = at, down, width
                down += node.height + GAP + TITLE
            bottom = max(bottom, down - GAP - TITLE)
            at += width + COLUMN_GAP
        right = at - COLUMN_GAP + PADDING
        groups.append({"title": stage.title, "bounding": [x, y, right - x, 0], "color": stage.colour, "font_size": 24})
        x = right + STAGE_GAP
    for group in groups:
        group["bounding"][3] = bottom + PADDING - y
    return groups


def notes(name: str) -> dict[str, str]:
    """Texts by the title of their stage, each paragraph on one line: the frontend breaks lines where the note ends."""
    text = (NOTES / f"{name}.md").read_text(encoding="utf-8")
    sections = re.split(r"^# (.+)\n", text, flags=re.MULTILINE)[1:]
    unwrapped = [re.sub(r"(?<=\S)\n(?![\n#]|- |\d+\. ) *", " ", section.strip()) for section in sections[1::2]]
    return {title: body.replace("\n##", "\n#").removeprefix("#") for title, body in zip(sections[::2], unwrapped, strict=True)}


def note_height(text: str, width: int) -> int:
    """Pixels that a Markdown text needs at that width, with some to spare."""
    height = 45.0
    for line in text.splitlines():
        if line.startswith("#"):
            height += 42
        elif line.strip():
            height += 14 * math.ceil(len(line) * 5.4 / (width - 40))
        else:
            height += 9
    return max(round(height), NOTE_HEIGHT)


def _options(schema: dict) -> dict[str, tuple[str, dict]]:
    """Every input by name, in the node's order: its type, and what else is said of it."""
    found = {}
    for part in ("required", "optional"):
        for name in schema.get("input_order", {}).get(part, ()):
            kind, *more = schema["input"][part][name]
            options = dict(more[0]) if more else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            found[name] = (kind, {**options, "part": part})
    return found


def _is_widget(kind: str, options: dict) -> bool:
    return (kind in WIDGETS or options.get("widgetType") in WIDGETS) and not options.get("forceInput")


def _rows(schema: dict) -> tuple[list[str], list[str]]:
    """Names of the sockets and of the widgets that come up by themselves."""
    options = _options(schema)
    widgets = [name for name, row in options.items() if _is_widget(*row)]
    return [name for name in options if name not in widgets], widgets


def _sockets(node: Node) -> list[tuple[str, dict]]:
    """The node's inputs as the frontend saves them: sockets, then the widgets that something is linked to."""
    options = _options(node.schema)
    sockets, widgets = _rows(node.schema)
    linked = [name for name in widgets if isinstance(node.inputs.get(name), Link)]
    saved = [(name, {} if options[name][1]["part"] == "required" else {"shape": 7}) for name in sockets]
    return saved + [(name, {"widget": {"name": name}}) for name in linked]


def _widget_values(node: Node) -> list:
    """What the frontend saves of the widgets, by position; seeds have a second one, which says what happens after a run."""
    values = []
    for name, (kind, options) in _options(node.schema).items():
        if not _is_widget(kind, options):
            continue
        value = node.inputs.get(name)
        values.append(_default(options) if value is None or isinstance(value, Link) else value)
        if options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
    return values


def _default(options: dict):
    return options.get("default", next(iter(options.get("options", ())), ""))


def _least_height(schema: dict) -> int:
    sockets, widgets = _rows(schema)
    options = _options(schema)
    seeds = sum(bool(options[name][1].get("control_after_generate", name in ("seed", "noise_seed"))) for name in widgets)
    count = len(widgets) + seeds
    rows = max(len(sockets), len(schema["output"]), 1)
    return rows * SOCKET + (count * WIDGET + WIDGETS_EDGE if count else 0) + EDGE


def _check(type: str, schema: dict, inputs: dict) -> None:
    options = _options(schema)
    for name, value in inputs.items():
        if name not in options:
            raise ValueError(f"{type} has no input {name!r}, only {', '.join(options)}.")
        kind, more = options[name]
        if isinstance(value, Link):
            if value.kind not in kind.split(",") and "*" not in (kind, value.kind):
                raise ValueError(f"{type}.{name} takes {kind}, not {value.kind}.")
        elif kind == "COMBO" and name not in FILES and value not in more["options"]:
            raise ValueError(f"{type}.{name} has no choice {value!r}.")
    missing = [name for name, row in options.items() if row[1]["part"] == "required" and not _is_widget(*row)]
    missing = [name for name in missing if name not in inputs]
    if missing:
        raise ValueError(f"{type} needs {', '.join(missing)}.")


def _check_layout(nodes: list[Node]) -> None:
    for i, a in enumerate(nodes):
        for b in nodes[:i]:
            apart = a.x + a.width <= b.x or b.x + b.width <= a.x
            if not apart and a.y - TITLE < b.y + b.height and b.y - TITLE < a.y + a.height:
                raise ValueError(f"{a.type} {a.id} and {b.type} {b.id} overlap.")
        for name, value in a.inputs.items():
            if isinstance(value, Link) and value.node.x + value.node.width > a.x:
                raise ValueError(f"The link from {value.node.type} to {name} of {a.type} {a.id} runs backwards.")


def _in_order(nodes: list[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (node.x, node.y))


def _saved(node: Node, order: int, links: list) -> dict:
    if node.type == "MarkdownNote":
        values, properties = [node.inputs[""]], {}
    else:
        values, properties = _widget_values(node), {"Node name for S&R": node.type}
    by_slot = {(link[3], link[4]): link[0] for link in links}
    options = _options(node.schema)
    inputs = [
        {"name": name, **more, "type": options[name][0], "link": by_slot.get((node.id, slot))}
        for slot, (name, more) in enumerate(_sockets(node))
    ]
    outputs = [
        {"name": name, "type": kind, "links": [link[0] for link in links if link[1:3] == [node.id, index]] or None}
        for index, (name, kind) in enumerate(zip(node.schema["output_name"], node.schema["output"], strict=True))
    ]
    return {
        "id": node.id,
        "type": node.type,
        "pos": [node.x, node.y],
        "size": [node.width, node.height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": properties,
        "widgets_values": values,
        **node.colours,
    }


def schemas_of(source: str) -> dict:
    """/object_info of a server by its address, or of a file."""
    if not source.startswith("http"):
        return json.loads(Path(source).read_text(encoding="utf-8"))
    with urllib.request.urlopen(f"{source.rstrip('/')}/object_info", timeout=60) as answer:
        return json.load(answer)


def main() -> None:
    from workflow_graphs import GRAPHS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schemas", help="address of a running host, or a file with its /object_info")
    schemas = schemas_of(parser.parse_args().schemas)
    for name, declare in GRAPHS.items():
        graph = Graph(name, schemas)
        declare(graph)
        path = FOLDER / f"{name}.json"
        text = json.dumps(graph.finished(), indent=1, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
