"""The shipped workflows as files: the graph for the editor, its twin for the API, its picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import workflows as builder
from helpers.workflow_graphs import API, UI, api_name, load, without_optional
from microdreamer_core.checkpoints.download import PUBLISHED
from microdreamer_core.sir.presets import get_plan, plan_changes
from workflows import ENTRANCE

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
NAMES = [path.stem for path in UI]
SCHEMAS = json.loads((ROOT / "tests" / "fixtures" / "node_schemas.json").read_text())
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
TITLE = 30


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def path(name):
    return FOLDER / f"{name}.json"


@pytest.fixture
def ui(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def api(path):
    return load(api_name(path))


def test_every_workflow_has_both_formats_and_a_picture():
    assert len(NAMES) == len(API) >= 10 and all(api_name(path) for path in UI)
    assert sorted(path.stem for path in FOLDER.glob("*.jpg")) == NAMES


def test_pictures_are_small_jpegs(name):
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (640, 360)
    assert path.stat().st_size < 60_000


def flat(ui):
    """A graph without its subgraphs: nodes by their ids in the API format, and the links that they take by id and input."""
    subgraphs = {subgraph["id"]: subgraph for subgraph in ui.get("definitions", {}).get("subgraphs", ())}
    sources = {link[0]: (str(link[1]), link[2]) for link in ui["links"]}
    nodes, taken, given = {}, {}, {}

    def add(node, number, sources):
        nodes[number] = node
        links = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        taken.update({(number, name): source for name, source in links.items()})

    for node in ui["nodes"]:
        inside = subgraphs.get(node["type"])
        if not inside:
            add(node, str(node["id"]), sources)
            continue
        entries = [sources.get(slot["link"]) for slot in node["inputs"]]
        inner = {
            link["id"]: entries[link["origin_slot"]]
            if link["origin_id"] == ENTRANCE
            else (f"{node['id']}:{link['origin_id']}", link["origin_slot"])
            for link in inside["links"]
        }
        for child in inside["nodes"]:
            add(child, f"{node['id']}:{child['id']}", inner)
        for index, output in enumerate(inside["outputs"]):
            (link,) = output["linkIds"]
            given[str(node["id"]), index] = inner[link]
    return nodes, {key: list(given.get(source, source)) for key, source in taken.items()}


def test_both_formats_hold_the_same_graph(path, ui, api):
    nodes, taken = flat(ui)
    kept = without_optional(path, {number: {"class_type": node["type"]} for number, node in nodes.items()})
    kept = {number: entry for number, entry in kept.items() if entry["class_type"] != "MarkdownNote"}
    assert kept == {number: {"class_type": entry["class_type"]} for number, entry in api.items()}
    assert len({number.rpartition(":")[2] for number in nodes}) == len(nodes), "newer frontends want ids to differ everywhere"
    posted = {
        (number, key): value
        for number, entry in api.items()
        for key, value in entry["inputs"].items()
        if isinstance(value, list)
    }
    assert {key: source for key, source in taken.items() if key[0] in kept} == posted


def test_links_are_told_alike_by_the_list_and_by_both_nodes(ui):
    for subgraph in ui.get("definitions", {}).get("subgraphs", ()):
        inside = {node["id"]: node for node in subgraph["nodes"]}
        for link in subgraph["links"]:
            if link["target_id"] in inside:
                assert inside[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
            if link["origin_id"] == ENTRANCE:
                assert link["id"] in subgraph["inputs"][link["origin_slot"]]["linkIds"]
    nodes = {node["id"]: node for node in ui["nodes"]}
    for number, source, index, target, slot, kind in ui["links"]:
        output, entrance = nodes[source]["outputs"][index], nodes[target]["inputs"][slot]
        assert number in output["links"] and entrance["link"] == number and output["type"] == kind
    assert sum(len(o["links"] or ()) for node in ui["nodes"] for o in node["outputs"]) == len(ui["links"])


def test_widgets_stand_in_the_order_of_the_schemas(ui, api):
    """After a change of a schema: python scripts/workflows.py, then export workflows/api."""
    for number, node in flat(ui)[0].items():
        if node["type"] not in SCHEMAS or number not in api:
            continue
        values = iter(node["widgets_values"])
        given = api[number]["inputs"]
        for key, kind, _, options in SCHEMAS[node["type"]]["inputs"]:
            if kind not in WIDGETS or options.get("force_input"):
                continue
            value = next(values)
            assert isinstance(given[key], list) or given[key] == value, (node["type"], key)
            assert key != "seed" or next(values) == "fixed", "what is shipped gives the same result again"
        assert list(values) == [], node["type"]


def notes(ui):
    return [node["widgets_values"][0] for node in ui["nodes"] if node["type"] == "MarkdownNote"]


def test_one_note_explains_and_every_group_is_named_and_no_larger_than_what_it_holds(ui):
    (note,) = notes(ui)
    assert len(note) > 300 and "`" not in note, "Nodes 2.0 show code in notes as blue on blue"
    assert not re.search(r"\bhosts?\b", note), "users know ComfyUI, not a host"
    for group in ui["groups"]:
        left, top, width, height = group["bounding"]
        held = [node for node in ui["nodes"] if _inside(*node["pos"], *group["bounding"])]
        assert group["title"] and held
        assert left + width - max(node["pos"][0] + node["size"][0] for node in held) <= 40
        assert top + height - max(node["pos"][1] + node["size"][1] for node in held) <= 60


def test_graphs_fit_a_screen(name, ui):
    left, top = (min(node["pos"][axis] for node in ui["nodes"]) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in ui["nodes"]) for axis in (0, 1))
    width, height = right - left, bottom - top + TITLE
    assert width / height <= 2.5 and width <= 2200 and height <= 1550
    if name.startswith("00"):
        assert len(ui["nodes"]) <= 8 and width <= 1600 and height <= 1000


FILES = {"checkpoint", "ckpt_name", "unet_name", "clip_name", "vae_name", "lora_name", "control_net_name"}


def test_files_that_are_not_shipped_are_offered_by_the_dialog_of_missing_models(ui, api):
    wanted = {value for entry in api.values() for key, value in entry["inputs"].items() if key in FILES} - {"embedded"}
    offered = [model for node in flat(ui)[0].values() for model in node["properties"].get("models", ())]
    assert {model["name"] for model in offered} == wanted
    for model in offered:
        assert set(model) == {"name", "url", "directory"} and model["url"].endswith(f"/{model['name']}")
    ours = {file.file: file.url for file in PUBLISHED}
    assert all(model["url"] == ours.get(model["name"], model["url"]) for model in offered)


@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] in ("10", "11", "12")])
def test_notes_tell_which_file_to_get_and_what_a_run_costs(ui, api):
    (text,) = notes(ui)
    assert f"**{_values(api, 'LoadModel')['checkpoint']}** (" in text
    assert "models/microdreamer" in text and "microdreamer fetch" in text and "licence" in text
    assert "Not yet" not in text and "later version" not in text, "the loader reads these files"
    counted = _plan(_values(api, "SIRPlan"), _values(api, "SIRPlanOptions")).evaluations()
    assert f"{counted.per_view} network evaluations for each of the {counted.total // counted.per_view} views" in text


CHANGED = {
    "00": [],
    "20": [{"iterations": 8, "t2_start": 0.5, "t2_end": 0.3}],
    "21": [{"iterations": 8, "t2_start": 0.7, "t2_end": 0.3}],
    "02": [{"iterations": 8}],
    "04": [{"iterations": 8, "t2_start": 0.7, "t2_end": 0.4}],
    "07": [{"iterations": 10}],
    "12": [{"iterations": 30, "discretization": 20}],
    "13": [{}, {"iterations": 10, "t2_start": 0.5, "t2_end": 0.3, "guidance_scale": 7.5}],
    "14": [{"iterations": 8, "t2_start": 0.7, "t2_end": 0.5}],
    "15": [{"iterations": 8, "t2_start": 0.7, "guidance_scale": 7.5}],
    "16": [{"iterations": 8, "poses": "words"}],
    "17": [{"t2_end": 0.3, "loss": "l2"}],
    "18": [{"iterations": 20, "t2_end": 0.3, "guidance_scale": 7.5, "loss": "l2"}],
    "19": [{"iterations": 8, "t2_start": 0.5, "t2_end": 0.2}],
}


def test_the_plans_show_numbers_and_all_but_these_are_their_presets(name, api):
    """After a change of a preset: python scripts/workflows.py, then export workflows/api."""
    plans = [entry["inputs"] for entry in api.values() if entry["class_type"] == "MicroDreamerSIRPlan"]
    options = _values(api, "SIRPlanOptions")
    assert not {-1, "preset"} & {value for inputs in (*plans, options) for value in inputs.values()}
    changes = [plan_changes(_plan(inputs, options)) for inputs in plans]
    assert [{key: used for key, (_, used) in found.items()} for found in changes] == CHANGED.get(name[:2], [{}])


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
        a, b = nodes[source], nodes[target]
        assert a["pos"][0] + a["size"][0] <= b["pos"][0] or a["pos"][1] + a["size"][1] <= b["pos"][1] - TITLE


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
    text = "# Read me\n\n## Title\n\nA text\nof two lines.\n\n- a point\n  goes on\n- another\n"
    (tmp_path / "test.md").write_text(text)
    return builder.Graph("test", {"Make": MAKE, "Take": TAKE})


def test_the_builder_puts_widgets_and_links_where_the_frontend_wants_them(graph):
    graph.intro()
    stage = graph.stage("One", "#123456")
    made = stage.node("Make")
    taken = stage.column().node("Take", id=7, image=made["image"], mode="b")
    saved = graph.finish()
    (node,) = [node for node in saved["nodes"] if node["id"] == taken.id == 7]
    assert node["widgets_values"] == [3, "fixed", "b"]
    assert [(slot["name"], slot["link"]) for slot in node["inputs"]] == [("image", 1)]
    assert saved["links"] == [[1, made.id, 0, 7, 0, "IMAGE"]]
    texts = [node["widgets_values"][0] for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    assert texts == ["# Title\n\nA text of two lines.\n\n- a point goes on\n- another"]


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
    taken_first = stage.column().node("Make")
    with pytest.raises(ValueError, match="takes IMAGE, not MASK"):
        stage.node("Take", image=stage.node("Take", image=taken_first["image"])["mask"])
    beside = graph.stage("Two", "#123456")
    target = beside.node("Take", image=taken_first["image"])
    target.inputs["image"] = beside.column().node("Make")["image"]
    with pytest.raises(ValueError, match="runs backwards"):
        graph.finish()


def test_the_builder_folds_nodes_into_one(graph):
    stage = graph.stage("One", "#123456")
    made = stage.node("Make", id=1)
    inner = graph.subgraph("Inside", {"image": made["image"]})
    taken = inner.stage("", "").node("Take", id=2, image=inner["image"], mode="b")
    folded = inner.fold(stage.column(), 3, {"mask": taken["mask"]})
    saved = graph.finish()
    (definition,) = saved["definitions"]["subgraphs"]
    assert [node["type"] for node in saved["nodes"]] == ["Make", definition["id"]] and folded["mask"].kind == "MASK"
    assert saved["links"] == [[1, 1, 0, 3, 0, "IMAGE"]]
    ends = [
        tuple(link[key] for key in ("origin_id", "origin_slot", "target_id", "target_slot")) for link in definition["links"]
    ]
    assert ends == [(builder.ENTRANCE, 0, 2, 0), (2, 0, builder.EXIT, 0)]
    assert definition["inputs"][0]["linkIds"] == [1] and definition["outputs"][0]["linkIds"] == [2]


def test_blueprints_are_single_subgraphs_with_free_ends():
    for path in (ROOT / "subgraphs").glob("*.json"):
        blueprint = json.loads(path.read_text(encoding="utf-8"))
        (node,), (inside,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
        assert node["type"] == inside["id"] and all(slot["link"] is None for slot in node["inputs"])
        assert all(child["type"] in SCHEMAS for child in inside["nodes"]) and path.stem.startswith("MicroDreamer")
