"""The graph around a loop: which nodes a pass consists of, what its result depends on, and whether it is wired right."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from ..microdreamer_core.errors import InputError
from .compat import host_nodes, is_link, notify

START_ID, END_ID = "MicroDreamerLoopStart", "MicroDreamerLoopEnd"


def dependencies(prompt: Any, end: str) -> str | None:
    """Return all that the field of a loop's end depends on, as text; None if "stop" depends on more."""
    inputs = prompt.get_node(end)["inputs"]
    above = _ancestors(prompt, inputs["field"][0])
    if is_link(stop := inputs.get("stop")) and stop[0] not in above:
        return None
    nodes = {node: prompt.get_node(node) for node in (*above, end)}
    return json.dumps({node: [entry["class_type"], entry["inputs"]] for node, entry in nodes.items()}, sort_keys=True)


def _ancestors(prompt: Any, node: str) -> set[str]:
    """A node and all that it depends on."""
    found, todo = {node}, [node]
    while todo:
        new = {source for source, _ in _links(prompt, todo.pop())} - found
        found |= new
        todo += new
    return found


_OF_THE_PASS = {
    "MicroDreamerSampleCameras": ("field",),
    "MicroDreamerCameraLayout": ("field",),
    "MicroDreamerRenderViews": ("field",),
    "MicroDreamerHybridForward": ("cameras",),
    "MicroDreamerDDIMRefine": ("cameras",),
    "MicroDreamerReconstructSteps": ("field", "cameras"),
}
"""Inputs of the stages that change with every pass."""


def check_body(prompt: Any, start: str, end: str) -> None:
    """Refuse a loop whose passes cannot build on each other as it is wired.

    Raises:
        InputError: the message names the wrong link's nodes.
    """
    field = prompt.get_node(end)["inputs"].get("field")
    if not is_link(field):
        return  # what it is will be said when the pass has ended
    inside, source = _between(prompt, start, end), field[0]
    if source == start:
        raise InputError(
            "The field comes straight from SIR Loop Start, so that a pass learns nothing; link the field of Reconstruct Steps, "
            "and check that it is not bypassed."
        )
    if source not in inside:
        starts = {n for n in _ancestors(prompt, source) if prompt.get_node(n)["class_type"] == START_ID} - {start}
        found = f"depends on {_label(prompt, min(starts))}" if starts else f"comes from {_label(prompt, source)}"
        raise InputError(
            f"The flow comes from {_label(prompt, start)}, but the field does not depend on it ({found}); link flow and field "
            "so that both come from the same SIR Loop Start."
        )
    for node in sorted(inside):
        entry = prompt.get_node(node)
        if entry["class_type"] == START_ID and not _ends(prompt, node, inside):
            raise InputError(
                f"{_label(prompt, node)} lies between start and end of this loop, but its own SIR Loop End does not; link its "
                "flow to a SIR Loop End before this one, or take it out."
            )
        for name in _OF_THE_PASS.get(entry["class_type"], ()):
            link = entry["inputs"].get(name)
            if is_link(link) and link[0] != start and link[0] not in inside:
                mend = "link it" if name == "field" else "link the field of that node"
                raise InputError(
                    f"The input {name!r} of {_label(prompt, node)} comes from {_label(prompt, link[0])}, which lies outside of "
                    f"the loop and is the same in every pass; {mend} to {_label(prompt, start)}, or to a node after that."
                )


def _ends(prompt: Any, start: str, nodes: Collection[str]) -> list[str]:
    """The ends of the loop of a start among some nodes."""
    ends = (node for node in nodes if prompt.get_node(node)["class_type"] == END_ID)
    return [node for node in ends if prompt.get_node(node)["inputs"]["flow"][0] == start]


def _label(prompt: Any, node: str) -> str:
    """A node as users find it: title and number."""
    kind = prompt.get_node(node)["class_type"]
    return f"{getattr(host_nodes()[kind], 'TITLE', kind)} (node {node})"


def warn_of_no_end(prompt: Any, start: str) -> None:
    """Warn of a loop of the user that will run one pass only, because no output needs its end."""
    if is_copy(start):
        return
    users = _users(prompt, "")
    ends = _ends(prompt, start, users.get(start, ()))
    outputs = _reach(users, ends, ())
    if not ends:
        notify(
            f"The flow of {_label(prompt, start)} is linked to no SIR Loop End, so that there is one pass only; link it.",
            "warn",
        )
    elif not any(_is_output(prompt, node) for node in outputs):
        notify(
            f"The field of {_label(prompt, ends[0])} leads to no node that shows or saves something, so that there is one pass "
            "only; link it to one, e.g. Turntable with Preview Image.",
            "warn",
        )


def body_nodes(prompt: Any, start: str, end: str) -> list[str]:
    """Return the ids of one pass: all nodes between Start and End, and branches that end in previews, with their inputs."""
    above, below = _between(prompt, start, end), _users(prompt, _level(end))
    after = _reach(below, [end], ()) | {end}
    side = _reach(below, [start, *above], after) - above - after
    kept = set()
    todo = deque(node for node in side if _is_output(prompt, node))
    while todo:
        node = todo.popleft()
        if node in kept or node not in side:
            continue
        kept.add(node)
        todo.extend(source for source, _ in _links(prompt, node))
    return sorted(above | kept)


def _is_output(prompt: Any, node: str) -> bool:
    return bool(getattr(host_nodes()[prompt.get_node(node)["class_type"]], "OUTPUT_NODE", False))


def _between(prompt: Any, start: str, end: str) -> set[str]:
    """Nodes that End needs and that need Start."""
    users, seen, todo = {}, {end}, deque([end])
    while todo:
        node = todo.popleft()
        for source, _ in _links(prompt, node):
            users.setdefault(source, set()).add(node)
            if source not in seen and source != start:
                seen.add(source)
                todo.append(source)
    return _reach(users, [start], {end})


def _reach(users: dict[str, set[str]], starts: Iterable[str], stop: Collection[str]) -> set[str]:
    found, todo = set(), deque(starts)
    while todo:
        for node in users.get(todo.popleft(), ()):
            if node not in found and node not in stop:
                found.add(node)
                todo.append(node)
    return found


def is_copy(node: str) -> bool:
    """Whether a node was made by a loop."""
    return bool(_level(node))


def _level(node: str) -> str:
    """The common prefix of the ids in one graph expansion; empty for the user's nodes."""
    return node.rpartition(".")[0]


def _users(prompt: Any, level: str) -> dict[str, set[str]]:
    """The nodes linked to each node's outputs, without the expansions of inner loops."""
    users: dict[str, set[str]] = {}
    for node in prompt.all_node_ids():
        if _level(node) != level:
            continue
        for source, _ in _links(prompt, node):
            users.setdefault(source, set()).add(node)
    return users


def _links(prompt: Any, node: str) -> list[list]:
    return [value for value in prompt.get_node(node).get("inputs", {}).values() if is_link(value)]
