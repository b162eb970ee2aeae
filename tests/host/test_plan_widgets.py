"""Plans and SDS Steps in the host's own frontend: presets fill widgets, old graphs show numbers and give the same plan."""

from __future__ import annotations

import json

import pytest

from helpers.frontend import ROOT, check_page, missing

OUT = ROOT / "outputs" / "host"
PLAN, OPTIONS = "MicroDreamerSIRPlan", "MicroDreamerSIRPlanOptions"
BASELINES, PRESETS = (
    json.loads(text.partition("=")[2] or text)
    for text in (ROOT / "web" / "presets.js").read_text(encoding="utf-8").partition("\n")[2].split("export default ")
)
OLD_PLAN = ("mvdream-gaussians", 30, -1, -1.0, -1.0, "preset", -1.0, -1.0)
OLD_OPTIONS = (-1, 20, -1, "preset", "preset", "preset", "preset", "preset")
OLD_API = {
    "5": {
        "class_type": PLAN,
        "inputs": dict(
            zip(("preset", "iterations", "steps", "t2_start", "t2_end", "forward", "eta", "guidance"), OLD_PLAN, strict=True)
        ),
    },
    "8": {
        "class_type": OPTIONS,
        "inputs": {
            "plan": ["5", 0],
            **dict(
                zip(
                    ("views", "discretization", "init_steps", "t2_curve", "t1_rule", "sampler", "loss", "loss_space"),
                    OLD_OPTIONS,
                    strict=True,
                )
            ),
        },
    },
    "9": {"class_type": "PreviewAny", "inputs": {"source": ["8", 1]}},
}


def node(id: int, kind: str, inputs: list, outputs: list, values: tuple = ()) -> dict:
    ports = [{"name": name, "type": type, "link": link} for name, type, link in inputs]
    exits = [{"name": name, "type": type, "links": links} for name, type, links in outputs]
    place = {"pos": [450 * (id - 5), 60], "size": [300, 400], "flags": {}, "order": id, "mode": 0, "properties": {}}
    return {"id": id, "type": kind, **place, "inputs": ports, "outputs": exits, "widgets_values": list(values)}


OLD_UI = {
    "last_node_id": 9,
    "last_link_id": 2,
    # options before their plan: when the first is configured, the second is not yet
    "nodes": [
        node(8, OPTIONS, [("plan", "MD_PLAN", 1)], [("plan", "MD_PLAN", []), ("summary", "STRING", [2])], OLD_OPTIONS),
        node(5, PLAN, [], [("plan", "MD_PLAN", [1]), ("passes", "INT", []), ("summary", "STRING", [])], OLD_PLAN),
        node(9, "PreviewAny", [("source", "*", 2)], []),
    ],
    "links": [[1, 5, 0, 8, 0, "MD_PLAN"], [2, 8, 1, 9, 0, "STRING"]],
    "groups": [],
    "config": {},
    "extra": {},
    "version": 0.4,
}


@pytest.fixture(scope="module")
def seen(server):
    if missing():
        pytest.skip(f"missing: {', '.join(missing())}")
    report = check_page(server.url, OUT, "plan_widgets.mjs", OLD_UI)
    assert [error for error in report["errors"] if "microdreamer" in error] == []
    return report["checked"]


def of_preset(preset: str, **changed) -> dict:
    """The widgets of both nodes, by class, for a preset with some numbers changed."""
    values = {"preset": preset, **PRESETS[preset], **changed}
    own = OLD_API["5"]["inputs"]
    others = [name for name in PRESETS[preset] if name not in own]
    return {kind: {name: values[name] for name in names} for kind, names in ((PLAN, own), (OPTIONS, others))}


def test_a_new_plan_shows_the_numbers_of_its_preset(seen):
    assert seen["fresh"] == of_preset("embedded")


def test_a_preset_that_is_chosen_fills_both_nodes(seen):
    assert seen["chosen"] == of_preset("imagedream-gaussians")


def test_a_changed_number_of_the_options_stays_when_the_preset_changes(seen):
    assert seen["edited"] == of_preset("stable-zero123-gaussians", views=8)


def test_a_graph_of_the_api_fills_in_what_it_leaves_out_and_keeps_what_it_says(seen):
    assert seen["api"] == of_preset("stable-zero123-nerf", eta=0.25, iterations=20, views=4)


def test_a_graph_of_an_earlier_version_shows_numbers(seen):
    numbers = of_preset("mvdream-gaussians", iterations=30, discretization=20)
    assert seen["old"] == numbers
    exported = {entry["class_type"]: entry["inputs"] for entry in seen["prompt"].values()}
    assert exported[PLAN] == numbers[PLAN] and exported[OPTIONS] == {"plan": ["5", 0], **numbers[OPTIONS]}
    saved = dict(seen["saved"])
    assert saved[PLAN] == list(numbers[PLAN].values()) and saved[OPTIONS] == list(numbers[OPTIONS].values())


def test_numbers_stay_open_where_the_preset_comes_over_a_link(seen):
    (preset, iterations, *rest), back = seen["unknown"]["linked"], seen["unknown"]["back"]
    assert (preset, iterations, *rest) == ("mvdream-gaussians", 30, -1, -1, -1, "preset", -1, -1)
    assert back == list(of_preset("mvdream-gaussians", iterations=30)[PLAN].values())


def test_queued_from_the_browser_it_gives_the_plan_that_it_gave_and_the_nodes_show_it(seen, server):
    assert seen["end"] == ["execution_success", ""]
    run = server.run(OLD_API)
    assert run.status == "success", run.error
    (expected,) = run.outputs["9"]["text"]
    assert "K 30 rounds of I 15 steps" in expected and "on 20 steps" in expected and "network evaluations" in expected
    assert seen["summaries"][OPTIONS].startswith(expected)
    assert seen["summaries"][PLAN] == run.outputs["5"]["text"][0] != expected


def test_an_absent_input_is_the_presets(server):
    graph = {
        "5": {"class_type": PLAN, "inputs": {"preset": "mvdream-gaussians", "iterations": 30}},
        "8": {"class_type": OPTIONS, "inputs": {"plan": ["5", 0], "discretization": 20}},
        "9": OLD_API["9"],
    }
    short, long = server.run(graph), server.run(OLD_API)
    assert short.status == "success", short.error
    assert short.outputs["9"] == long.outputs["9"]


def of_baseline(preset: str, **changed) -> list:
    values = {"steps": 60, **BASELINES["sds"], "preset": preset, **BASELINES[preset], **changed}
    return [values[name] for name in ("steps", "form", "guidance", "t_min", "t_max", "weight", "preset", "times")]


def test_a_preset_of_sds_fills_its_widgets_which_are_then_the_users(seen):
    fresh, chosen, edited, custom, again = seen["sds"]["built"]
    assert fresh == of_baseline("custom", steps=500) and chosen == of_baseline("dreamgaussian")
    assert edited == of_baseline("dreamgaussian", guidance=9) == custom[:6] + ["dreamgaussian", "falling"]
    assert custom[6] == "custom", "which leaves the widgets as they are"
    assert again == of_baseline("dreamgaussian"), "chosen once more"


def test_sds_graphs_of_an_earlier_version_show_what_they_use(seen):
    """Their preset replaced all widgets but steps; without a preset the widgets counted."""
    opened = seen["sds"]["opened"]
    assert opened["old"] == opened["old_api"] == of_baseline("mvdream")
    custom = {"form": "pixels", "guidance": 7, "t_min": 0.1, "t_max": 0.9, "weight": 2, "times": "random"}
    assert opened["old_custom"] == of_baseline("custom", **custom)
    assert opened["saved"] == opened["api"] == of_baseline("mvdream", guidance=9, times="falling")


def test_a_wrong_number_is_refused_by_the_node(server):
    wrong = {"5": {"class_type": PLAN, "inputs": {"preset": "embedded", "steps": 0}}}
    wrong["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}}
    run = server.run(wrong)
    assert run.status == "error" and "SIR Plan: The setting steps of the plan must be a whole number in" in run.error
