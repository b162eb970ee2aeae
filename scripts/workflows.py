"""Writes the graphs that ComfyUI opens from the declarations in ``workflow_graphs.py``: templates in workflows/, blueprints in
subgraphs/.

    python scripts/workflows.py http://127.0.0.1:8188        # or a file with that server's /object_info

The server must run this version of the pack: which widgets a node has, and in which order, comes from its schemas, so run this
after every change of a schema. Nodes that only later versions of ComfyUI have are in ``later_nodes.json``, which such a version
writes with ``--record``. The graphs for API clients in workflows/api are then exported by ComfyUI's own frontend, never by this
script.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER, BLUEPRINTS = ROOT / "workflows", ROOT / "subgraphs"
NOTES = Path(__file__).resolve().with_name("workflow_notes")
LATER = Path(__file__).resolve().with_name("later_nodes.json")
"""Interfaces of nodes that only later versions of ComfyUI have; ``--record`` reads them from such a one."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "LOAD_3D"}
FILES = {
    "checkpoint",
    "ckpt_name",
    "file",
    "image",
    "unet_name",
    "clip_name",
    "vae_name",
    "lora_name",
    "control_net_name",
}  # options are what lies on the disk

# The frontends' own measures, the larger of both: a title bar above the node, a row for each socket, a row for each widget.
TITLE, SOCKET, WIDGET, WIDGETS_EDGE, EDGE = 30, 22, 30, 10, 12
FOOTER = 30  # "Enter subgraph", which Nodes 2.0 hang below a node
GAP, COLUMN_GAP, STAGE_GAP, PADDING, HEADING = 24, 36, 30, 14, 54
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}
ENTRANCE, EXIT = -10, -20
"""Ids of what stands for a subgraph's inputs and outputs in its links."""
OPTIONAL = "microdreamer_optional"
"""Property of nodes that web/templates.js leaves out where ComfyUI does not know their type."""
TEMPLATE = "microdreamer_template"
"""Mark of graphs that web/templates.js opens at a zoom at which they can be read."""


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
    properties: dict = field(default_factory=dict)
    inner: Subgraph | None = None
    x: int = 0
    y: int = 0

    def __getitem__(self, output: str) -> Link:
        names = self.schema["output_name"]
        return Link(self, names.index(output), self.schema["output"][names.index(output)])


@dataclass
class Stage:
    """A group of columns; one without a colour is drawn without a frame."""

    graph: Graph
    title: str
    colour: str
    columns: list[list[Node]] = field(default_factory=lambda: [[]])
    tops: list[int] = field(default_factory=lambda: [0])
    lines: list[int] = field(default_factory=lambda: [0])

    def column(self, drop: int = 0) -> Stage:
        """What comes next stands to the right of what is there, by ``drop`` lower than the other columns."""
        self.columns.append([])
        self.tops.append(drop)
        self.lines.append(self.lines[-1])
        return self

    def line(self) -> Stage:
        """What comes next stands below all that is there, at the left again."""
        self.column()
        self.lines[-1] += 1
        return self

    def node(
        self,
        type: str,
        /,
        *,
        id: int = 0,
        width: int = 250,
        height: int = 0,
        title: str = "",
        colour: str = "",
        properties: dict | None = None,
        optional: bool = False,
        **inputs: Any,
    ) -> Node:
        """A node below the last one of this column; without ``id`` it takes the next free one. An ``optional`` one is left out
        where ComfyUI does not know it.

        Raises:
            ValueError: an input that the node does not have, lacks or cannot take.
        """
        schema = self.graph.schemas[type]
        _check(type, schema, inputs)
        least = _least_height(schema)
        colours = {"color": colour, "bgcolor": colour} if colour else {}
        size = width, max(height, least)
        properties = {**(properties or {}), **({OPTIONAL: True} if optional else {})}
        return self.place(Node(id or self.graph.free_id(), type, inputs, *size, schema, title, colours, properties))

    def note(self, title: str, width: int) -> Node:
        """The text of that title."""
        text, schema = self.graph.notes[title], {"input": {}, "input_order": {}, "output": [], "output_name": []}
        size = width, note_height(text, width)
        return self.place(Node(self.graph.free_id(), "MarkdownNote", {"": text}, *size, schema, "Note", NOTE_COLOURS))

    def place(self, node: Node) -> Node:
        """Put a node below the last one of this column."""
        self.columns[-1].append(node)
        self.graph.nodes.append(node)
        return node

    def arrange(self, x: int, y: int) -> tuple[int, int]:
        """Give the nodes their places; the stage's first corner is at (x, y). Returns its right and lower edge."""
        frame = (PADDING, HEADING) if self.colour else (0, TITLE)
        left, top, right, bottom, line = x + frame[0], y + frame[1], x, y, 0
        at = left
        for column, drop, here in zip(self.columns, self.tops, self.lines, strict=True):
            if here != line:
                at, top, line = left, bottom + GAP + TITLE, here
            down, width = top + drop, max((node.width for node in column), default=0)
            for node in column:
                node.x, node.y, node.width = at, down, width
                below = down + node.height + (FOOTER if node.inner else 0)
                bottom, down = max(bottom, below), below + GAP + TITLE
            at += width + COLUMN_GAP
            right = max(right, at - COLUMN_GAP)
        return right + frame[0], bottom + frame[0]


class Graph:
    """A graph under construction: rows of piles of stages, each stage with columns from left to right."""

    def __init__(self, name: str, schemas: dict):
        self.name, self.schemas, self.nodes = name, schemas, []
        self.rows: list[list[list[Stage]]] = [[]]
        self.subgraphs: list[Subgraph] = []
        self.notes = notes(name)

    def intro(self, width: int = 310) -> Stage:
        """The note at the far left: what the graph is for. Returns its stage."""
        stage = self.stage("Read me", "")
        stage.note("Read me", width)
        return stage

    def stage(self, title: str, colour: str, below: bool = False) -> Stage:
        """A named group to the right of what is there, or ``below`` the last one."""
        stage = Stage(self, title, colour)
        if below:
            self.rows[-1][-1].append(stage)
        else:
            self.rows[-1].append([stage])
        return stage

    def next_row(self) -> None:
        """Stages from here on stand below all others."""
        self.rows.append([])

    def subgraph(self, name: str, inputs: dict[str, Link | str]) -> Subgraph:
        """A graph to be folded into a node of this one; ``inputs``: links of this graph by name, or types of free inputs."""
        self.subgraphs.append(Subgraph(self, name, inputs))
        return self.subgraphs[-1]

    def free_id(self) -> int:
        """Above the ids that declarations give, so that adding a note or a preview renames no node."""
        return max([59, *(node.id for node in all_nodes(self))]) + 1

    def finish(self) -> dict:
        """The graph as the frontend saves it.

        Raises:
            ValueError: nodes overlap or a link runs backwards.
        """
        groups = self._arrange()
        _check_layout(self.nodes)
        links = _links(self.nodes)
        inner = [node.inner for node in self.nodes if node.inner]
        return {
            "revision": 0,
            "last_node_id": max(node.id for node in all_nodes(self)),
            "last_link_id": len(links),
            "nodes": [_saved(node, order, links) for order, node in enumerate(_in_order(self.nodes))],
            "links": links,
            "groups": [{"id": number, **group} for number, group in enumerate(groups, 1)],
            **({"definitions": {"subgraphs": [subgraph.define() for subgraph in inner]}} if inner else {}),
            "config": {},
            "extra": {TEMPLATE: True},
            "version": 0.4,
        }

    def _arrange(self) -> list[dict]:
        groups, y = [], 0
        for row in self.rows:
            x, lowest = 0, y
            for pile in row:
                right, down = x, y
                for stage in pile:
                    edge, bottom = stage.arrange(x, down)
                    if stage.colour:
                        box = {"title": stage.title, "bounding": [x, down, edge - x, bottom - down], "color": stage.colour}
                        groups.append({**box, "font_size": 24})
                    right, down = max(right, edge), bottom + STAGE_GAP
                lowest, x = max(lowest, down), right + STAGE_GAP
            y = lowest
        return groups


class Subgraph(Graph):
    """A graph inside a node of the graph ``around`` it."""

    def __init__(self, around: Graph, name: str, inputs: dict[str, Link | str]):
        super().__init__(name, around.schemas)
        self.around, self.inputs = around, inputs
        kinds = [value.kind if isinstance(value, Link) else value for value in inputs.values()]
        self.id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"microdreamer/{around.name}/{name}"))
        self.entrance = Node(ENTRANCE, "", {}, 0, 0, {"output": kinds, "output_name": list(inputs)})
        self.outputs: dict[str, Link] = {}

    def __getitem__(self, name: str) -> Link:
        return self.entrance[name]

    def free_id(self) -> int:
        return self.around.free_id()

    def fold(self, stage: Stage, id: int, outputs: dict[str, Link], optional: bool = False) -> Node:
        """Put the node that holds this graph into a stage of the graph around it."""
        self.outputs = outputs
        kinds = dict(zip(self.inputs, self.entrance.schema["output"], strict=True))
        ends = {"output": [link.kind for link in outputs.values()], "output_name": list(outputs)}
        schema = {**_sockets_only(kinds), **ends}
        linked = {name: value for name, value in self.inputs.items() if isinstance(value, Link)}
        size, properties = (250, _least_height(schema)), {OPTIONAL: True} if optional else {}
        return stage.place(Node(id, self.id, linked, *size, schema, self.name, properties=properties, inner=self))

    def define(self) -> dict:
        """The definition of the graph inside, as the frontend saves it."""
        self._arrange()
        _check_layout(self.nodes)
        goal = Node(EXIT, "", dict(self.outputs), 0, 0, _sockets_only({name: link.kind for name, link in self.outputs.items()}))
        links = _links([*self.nodes, goal])
        left, right = (
            pick(edge) for pick, edge in ((min, [n.x for n in self.nodes]), (max, [n.x + n.width for n in self.nodes]))
        )

        def ports(names: dict, end: int, slot: int) -> list[dict]:
            sockets = self.entrance.schema["output"] if end == 1 else [link.kind for link in self.outputs.values()]
            return [
                {
                    "id": str(uuid.uuid5(uuid.UUID(self.id), f"{end}/{name}")),
                    "name": name,
                    "type": kind,
                    "linkIds": [link[0] for link in links if link[end] == slot and link[end + 1] == index],
                }
                for index, (name, kind) in enumerate(zip(names, sockets, strict=True))
            ]

        return {
            "id": self.id,
            "version": 1,
            "state": {
                "lastGroupId": 0,
                "lastNodeId": max(node.id for node in self.nodes),
                "lastLinkId": len(links),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": ENTRANCE, "bounding": [left - 220, 0, 120, 40 + 20 * len(self.inputs)]},
            "outputNode": {"id": EXIT, "bounding": [right + 100, 0, 120, 40 + 20 * len(self.outputs)]},
            "inputs": ports(self.inputs, 1, ENTRANCE),
            "outputs": ports(self.outputs, 3, EXIT),
            "widgets": [],
            "nodes": [_saved(node, order, links) for order, node in enumerate(_in_order(self.nodes))],
            "groups": [],
            "links": [
                dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
                for link in links
            ],
            "extra": {},
        }


def _sockets_only(kinds: dict[str, str]) -> dict:
    """A schema of inputs none of which is a widget."""
    inputs = {name: [kind, {"forceInput": True}] for name, kind in kinds.items()}
    return {"input": {"optional": inputs}, "input_order": {"optional": list(inputs)}}


def all_nodes(graph: Graph) -> list[Node]:
    """The nodes of a graph and of the graphs inside."""
    return [*graph.nodes, *(node for inner in graph.subgraphs for node in inner.nodes)]


def _links(nodes: list[Node]) -> list[list]:
    links = [
        [value.node.id, value.index, node.id, slot, value.kind]
        for node in nodes
        for slot, (name, _) in enumerate(_sockets(node))
        if isinstance(value := node.inputs.get(name), Link)
    ]
    return [[number, *link] for number, link in enumerate(links, 1)]


def notes(name: str) -> dict[str, str]:
    """Texts by title, each paragraph on one line: the frontend breaks lines where the note ends; none for a graph without."""
    path = NOTES / f"{name}.md"
    if not path.exists():
        return {}
    sections = re.split(r"^# (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    unwrapped = [re.sub(r"(?<=\S)\n(?![\n#]|- |\d+\. ) *", " ", section.strip()) for section in sections[1::2]]
    return {title: body.replace("\n##", "\n#").removeprefix("#") for title, body in zip(sections[::2], unwrapped, strict=True)}


def note_height(text: str, width: int) -> int:
    """Pixels that a Markdown text needs at that width, with some to spare."""
    height = 44.0
    for line in text.splitlines():
        if line.startswith("#"):
            height += 36
        elif line.strip():
            height += 18 * math.ceil(len(line) * 6.2 / (width - 50))
        else:
            height += 8
    return round(height)


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
        elif kind == "COMBO" and name not in FILES and value not in more.get("options", [value]):  # later nodes: unknown
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
            if not isinstance(value, Link) or value.node.id == ENTRANCE:
                continue
            source = value.node
            if source.x + source.width > a.x and source.y + source.height > a.y - TITLE:
                raise ValueError(f"The link from {source.type} to {name} of {a.type} {a.id} runs backwards.")


def _in_order(nodes: list[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (node.x, node.y))


def _saved(node: Node, order: int, links: list) -> dict:
    if node.type == "MarkdownNote":
        values, properties = [node.inputs[""]], {}
    elif node.inner:
        values, properties = [], {"proxyWidgets": []}
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
        "properties": {**properties, **node.properties},
        "widgets_values": values,
        **node.colours,
    }


def schemas_of(source: str) -> dict:
    """/object_info of a server by its address, or of a file."""
    if not source.startswith("http"):
        return json.loads(Path(source).read_text(encoding="utf-8"))
    with urllib.request.urlopen(f"{source.rstrip('/')}/object_info", timeout=60) as answer:
        return json.load(answer)


def interface(entry: dict) -> dict:
    """What a graph needs of a node's entry in /object_info: names, types and defaults, no texts."""
    kept = ("default", "control_after_generate", "widgetType", "forceInput", "image_upload")
    inputs = {
        part: {
            name: [kind if isinstance(kind, str) else "COMBO", {key: more[0][key] for key in kept if more and key in more[0]}]
            for name, (kind, *more) in entry["input"].get(part, {}).items()
        }
        for part in ("required", "optional")
    }
    order = {part: list(sockets) for part, sockets in inputs.items()}
    return {"input": inputs, "input_order": order, "output": entry["output"], "output_name": entry["output_name"]}


def write(path: Path, document: dict) -> None:
    """Write a graph if it has changed."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path.name}\n")


def main() -> None:
    from workflow_graphs import BLUEPRINT_GRAPHS, GRAPHS, TITLES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schemas", help="address of a running host, or a file with its /object_info")
    parser.add_argument("--record", action="store_true", help=f"only write {LATER.name}, from a host that has its nodes")
    arguments = parser.parse_args()
    schemas, later = schemas_of(arguments.schemas), json.loads(LATER.read_text(encoding="utf-8"))
    if arguments.record:
        write(LATER, {name: interface(schemas[name]) for name in later})
        return
    schemas = {**later, **schemas}
    for name, declare in GRAPHS.items():
        graph = Graph(name, schemas)
        declare(graph)
        write(FOLDER / f"{TITLES[name]}.json", graph.finish())
    for name, (declare, description) in BLUEPRINT_GRAPHS.items():
        graph = Graph(name, schemas)
        declare(graph)
        texts = {"BlueprintDescription": description, "BlueprintSearchAliases": ["MicroDreamer", "SIR"]}
        write(BLUEPRINTS / f"{name}.json", {**graph.finish(), "extra": texts})


if __name__ == "__main__":
    main()
