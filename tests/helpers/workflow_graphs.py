"""The shipped workflows as graphs to change and run."""

from __future__ import annotations

import copy
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
API = sorted((ROOT / "workflows" / "api").glob("*.json"))
UI = sorted((ROOT / "workflows").glob("*.json"))
EARLIER = sorted((ROOT / "tests" / "fixtures" / "earlier_graphs").glob("*.json"))
"""Graphs of API clients as they were before subgraphs: they go on working."""
OPTIONAL = "microdreamer_optional"
PLAN, OPTIONS = "MicroDreamerSIRPlan", "MicroDreamerSIRPlanOptions"
ITERATIONS = 2
SMALL_OPTIONS = {"discretization": 5, "init_steps": 8}
SMALL = {
    PLAN: {"iterations": ITERATIONS, "steps": 4},
    "MicroDreamerExtractMesh": {"resolution": 48, "target_faces": 300},
    "MicroDreamerBakeTexture": {"texture_size": 64, "views": 12, "view_size": 64},
    "MicroDreamerRefineTexture": {"steps": 2, "views": 4},
    "MicroDreamerNewTexture": {"texture_size": 64},
    "MicroDreamerTurntable": {"frames": 2, "size": 32},
    "MicroDreamerImageTo3D": {"quality": "fast"},
    "MicroDreamerSDSSteps": {"steps": 3},
    "MicroDreamerNeRFToGaussians": {"num_points": 200},
}
"""Widgets of a run that takes seconds, by class."""


def runs_here(path: Path) -> bool:
    """By their numbers: from 10 on, workflows need weights that are not shipped, but for these."""
    number = int(path.stem.partition("_")[0])
    return number < 10 or number in (17, 19)


def needs_later_host(path: Path) -> bool:
    """Whether a workflow has nodes that the oldest ComfyUI which is tested lacks."""
    return path.stem[:2] == "20"


def load(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def load_earlier(name: str) -> dict:
    return json.loads((EARLIER[0].parent / f"{name}.json").read_text())


def api_name(path: Path) -> str:
    """The name that API clients know a template by; both begin with the same number."""
    (found,) = [api.stem for api in API if api.stem[:2] == path.stem[:2]]
    return found


def without_optional(path: Path, graph: dict) -> dict:
    """A template's graph in API format without what is shown only where ComfyUI can."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    optional = {str(node["id"]) for node in nodes if node["properties"].get(OPTIONAL)}
    return {node: entry for node, entry in graph.items() if node.partition(":")[0] not in optional}


def is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def of_class(graph: dict, kind: str) -> list[str]:
    return [node for node, entry in graph.items() if entry["class_type"] == kind]


def with_input(graph: dict, kind: str, **inputs) -> dict:
    """A copy with other inputs for all nodes of a class."""
    graph = copy.deepcopy(graph)
    for node in of_class(graph, kind):
        graph[node]["inputs"].update(inputs)
    return graph


def small(graph: dict) -> dict:
    """The same graph with little to do: few and short iterations, coarse meshes."""
    graph = copy.deepcopy(graph)
    for plan in of_class(graph, PLAN):
        relink(graph, plan, 0, [f"small_{plan}", 0])
        graph[f"small_{plan}"] = {"class_type": OPTIONS, "inputs": {"plan": [plan, 0], **SMALL_OPTIONS}}
    for kind, inputs in SMALL.items():
        graph = with_input(graph, kind, **inputs)
    return graph


def relink(graph: dict, node: str, output: int, to: list) -> None:
    """Let all that takes an output take another one."""
    for entry in graph.values():
        entry["inputs"] = {name: to if value == [node, output] else value for name, value in entry["inputs"].items()}


def upstream(graph: dict, *nodes: str) -> dict:
    """The part of a graph that these nodes need, and they."""
    todo, needed = list(nodes), set()
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += [value[0] for value in graph[node]["inputs"].values() if is_link(value)]
    return {node: entry for node, entry in graph.items() if node in needed}
