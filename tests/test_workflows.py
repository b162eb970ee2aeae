"""The shipped workflows as files: the graph for the editor, its twin for the API, its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import workflows as builder
from microdreamer_core.sir.presets import get_plan, plan_changes

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
SCHEMAS = json.loads((ROOT / "tests" / "fixtures" / "node_schemas.json").read_text())
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
TITLE = 30


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def ui(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def api(name):
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_workflow_has_both_formats_and_a_picture():
    assert len(NAMES) >= 10
    for folder, ending in ((FOLDER / "api", ".json"), (FOLDER, ".jpg")):
        assert sorted(path.stem for path in folder.glob(f"*{ending}")) == NAMES


def test_pictures_are_small_jpegs(name):
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (640, 360)
    assert path.stat().st_size < 60_000


def test_both_formats_hold_the_same_graph(ui, api):
    nodes = {str(node["id"]): node for node in ui["nodes"] if node["type"] != "MarkdownNote"}
    assert {number: node["type"] for number, node in nodes.items()} == {n: entry["class_type"] for n, entry in api.items()}
    assert len({node["id"] for node in ui["nodes"]}) == len(ui["nodes"])
    drawn = {
        (str(target), nodes[str(target)]["inputs"][slot]["name"]): [str(source), index]
        for _, source, index, target, slot, _ in ui["links"]
    }
    posted = {
        (number, key): value
        for number, entry in api.items()
        for key, value in entry["inputs"].items()
        if isinstance(value, list)
    }
    assert drawn == posted


def test_links_are_told_alike_by_the_list_and_by_both_nodes(ui):
    nodes = {node["id"]: node for node in ui["nodes"]}
    for number, source, index, target, slot, kind in ui["links"]:
        output, entrance = nodes[source]["outputs"][index], nodes[target]["inputs"][slot]
        assert number in output["links"] and entrance["link"] == number and output["type"] == kind
    assert sum(len(o["links"] or ()) for node in ui["nodes"] for o in node["outputs"]) == len(ui["links"])


def test_widgets_stand_in_the_order_of_the_schemas(ui, api):
    """After a change of a schema: python scripts/workflows.py, then export workflows/api."""
    for node in ui["nodes"]:
        if node["type"] not in SCHEMAS:
            continue
        values = iter(node["widgets_values"])
        given = api[str(node["id"])]["inputs"]
        for key, kind, _, options in SCHEMAS[node["type"]]["inputs"]:
            if kind not in WIDGETS or options.get("force_input"):
                continue
            value = next(values)
            assert isinstance(given[key], list) or given[key] == value, (node["type"], key)
            assert key != "seed" or next(values) == "fixed", "what is shipped gives the same result again"
        assert list(values) == [], node["type"]


def test_every_stage_is_named_and_explained(ui):
    notes = [node for node in ui["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == len(ui["groups"]) and all(len(note["widgets_values"][0]) > 30 for note in notes)
    for note in notes:
        x, y = note["pos"]
        (group,) = [g for g in ui["groups"] if _inside(x, y, *g["bounding"])]
        assert group["title"]


@pytest.mark.parametrize("name", ["10_stable_zero123", "11_imagedream", "12_mvdream_text"])
def test_notes_tell_which_file_to_get_and_what_a_run_costs(ui, api):
    text = " ".join(node["widgets_values"][0] for node in ui["nodes"] if node["type"] == "MarkdownNote")
    assert f"`{_values(api, 'LoadModel')['checkpoint']}` (" in text
    assert "models/microdreamer" in text and "microdreamer fetch" in text and "licence" in text
    assert "Not yet" not in text and "later version" not in text, "the loader reads these files"
    counted = _plan(_values(api, "SIRPlan"), _values(api, "SIRPlanOptions")).evaluations()
    assert f"{counted.per_view} network evaluations for each of the {counted.total // counted.per_view} views" in text


CHANGED = {
    "02_swap_the_sampler": [{"iterations": 8}],
    "04_refine_existing_splat": [{"iterations": 8, "t2_start": 0.7, "t2_end": 0.4}],
    "07_sir_against_sds": [{"iterations": 10}],
    "12_mvdream_text": [{"iterations": 30, "discretization": 20}],
    "13_native_model": [{}, {"iterations": 10, "t2_start": 0.5, "t2_end": 0.3, "guidance_scale": 7.5}],
}


def test_the_plans_show_numbers_and_all_but_these_are_their_presets(name, api):
    """After a change of a preset: python scripts/workflows.py, then export workflows/api."""
    plans = [entry["inputs"] for entry in api.values() if entry["class_type"] == "MicroDreamerSIRPlan"]
    options = _values(api, "SIRPlanOptions")
    assert not {-1, "preset"} & {value for inputs in (*plans, options) for value in inputs.values()}
    changes = [plan_changes(_plan(inputs, options)) for inputs in plans]
    assert [{key: used for key, (_, used) in found.items()} for found in changes] == CHANGED.get(name, [{}])


def _plan(inputs, options):
    """The plan that the widgets of SIR Plan and SIR Plan Options tell."""
    numbers = dict(inputs, **options)
    return get_plan(numbers.pop("preset"), guidance_scale=numbers.pop("guidance"), **numbers)


def _values(api, kind):
    """Widgets of the only node of a kind, or none."""
    found = [entry["inputs"] for entry in api.values() if entry["class_type"] == f"MicroDreamer{kind}"]
    return {key: value for inputs in found for key, value in inputs.items() if not isinstance(value, list)}


def test_nothing_overlaps_and_no_link_runs_backwards(ui):
    nodes = {node["id"]: node for node in ui["nodes"]}
    boxes = [(*node["pos"], *node["size"]) for node in ui["nodes"]]
    for i, (x, y, width, height) in enumerate(boxes):
        for a, b, w, h in boxes[:i]:
            assert x + width <= a or a + w <= x or y + height <= b - TITLE or b + h <= y - TITLE
    for _, source, _, target, _, _ in ui["links"]:
        assert nodes[source]["pos"][0] + nodes[source]["size"][0] <= nodes[target]["pos"][0]


def _inside(x, y, left, top, width, height):
    return left <= x < left + width and top <= y < top + height


# --- the builder -----------------------------------------------------------------------------------------------------

MAKE = {"input": {}, "input_order": {}, "output": ["IMAGE"], "output_name": ["image"]}
TAKE = {
    "input": {"required": {"seed": ["INT", {"default": 3}], "image": ["IMAGE"], "mode": [["a", "b"], {}]}},
    "input_order": {"required": ["seed", "image", "mode"]},
    "output": ["MASK"],
    "output_name": ["mask"],
}


@pytest.fixture
def graph(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "NOTES", tmp_path)
    (tmp_path / "common.md").write_text("# One\n\nA text\nof two lines.\n\n- a point\n  goes on\n- another\n")
    (tmp_path / "test.md").write_text("# Read me\n\n## Title\n\nWords.\n")
    return builder.Graph("test", {"Make": MAKE, "Take": TAKE})


def test_the_builder_puts_widgets_and_links_where_the_frontend_wants_them(graph):
    graph.intro()
    stage = graph.stage("One", "#123456")
    made = stage.node("Make")
    taken = stage.column().node("Take", id=7, image=made["image"], mode="b")
    saved = graph.finished()
    (node,) = [node for node in saved["nodes"] if node["id"] == taken.id == 7]
    assert node["widgets_values"] == [3, "fixed", "b"]
    assert [(slot["name"], slot["link"]) for slot in node["inputs"]] == [("image", 1)]
    assert saved["links"] == [[1, made.id, 0, 7, 0, "IMAGE"]]
    texts = [node["widgets_values"][0] for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    assert texts == ["# Title\n\nWords.", "A text of two lines.\n\n- a point goes on\n- another"]


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"picture": 1}, "no input 'picture'"),
        ({"mode": "c"}, "no choice 'c'"),
        ({"mode": "a"}, "needs image"),
    ],
)
def test_the_builder_refuses_what_the_node_does_not_have(graph, inputs, words):
    with pytest.raises(ValueError, match=words):
        graph.stage("One", "#123456").node("Take", **inputs)


def test_the_builder_refuses_wrong_types_and_links_that_run_backwards(graph):
    stage = graph.stage("One", "#123456")
    made = stage.node("Make")
    taken = stage.node("Take", image=made["image"])
    with pytest.raises(ValueError, match="takes IMAGE, not MASK"):
        stage.node("Take", image=taken["mask"])
    with pytest.raises(ValueError, match="runs backwards"):
        graph.finished()
