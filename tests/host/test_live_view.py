"""The viewer in ComfyUI's own frontend: the object while it forms, turned by the mouse, and the slider over the iterations."""

from __future__ import annotations

import base64
import io
import os
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from helpers.comfy_server import PACK
from helpers.frontend import ROOT, check_page, missing
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.io.state import load_state
from microdreamer_core.sir.presets import get_plan

OUT = ROOT / "outputs" / "host"
ELEVATION, K = 5.0, 3
FRONTEND = tuple(map(int, version("comfyui-frontend-package").split(".")[:2])) if "COMFYUI_PATH" in os.environ else ()


def node(name: str, **inputs) -> dict:
    return {"class_type": f"MicroDreamer{name}", "inputs": inputs}


GRAPH = {
    "1": node("LoadModel", checkpoint="embedded", variant="auto", dtype="auto", averages=True),
    "2": node("ExamplePicture", picture="bird"),
    "3": node("PrepareReference", mask_shows="auto", model=["1", 0], image=["2", 0], mask=["2", 1]),
    "4": node("ConditionOnImage", elevation=ELEVATION, model=["1", 0], image=["3", 0], mask=["3", 1]),
    "5": node("SIRPlan", preset="embedded", iterations=K),
    "6": node("Generate", seed=0, condition=["4", 0], plan=["5", 0]),
    "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 1]}},
}


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def seen(server, request):
    if missing():
        pytest.skip(f"missing: {', '.join(missing())}")
    if request.param and FRONTEND < (1, 40):
        pytest.skip("the first Nodes 2.0 show no widget that is added when a run begins; they show the sheet")
    graph = {**GRAPH, "6": node("Generate", **{**GRAPH["6"]["inputs"], "seed": int(request.param)})}
    report = check_page(server.url, OUT, "live_view.mjs", {"graph": graph, "node": "6", "vue": request.param})
    assert [error for error in report["errors"] if f"/extensions/{PACK}" in error] == []
    checked = report["checked"]
    checked["runs"] = server.base / "temp" / "microdreamer" / "runs"
    for name, address in checked["shots"].items():
        picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
        checked["shots"][name] = np.asarray(picture, np.float32) / 255
    return checked


def rendered(seen, file: str, height: int, width: int) -> np.ndarray:
    """Our renderer's picture of a kept state, in the viewer's size and from its start camera."""
    run = max(seen["runs"].iterdir(), key=os.path.getmtime)
    field, plan = load_state(run / file).field.absorb_low_pass(), get_plan("embedded")
    side = min(height, width)
    camera = orbit_cameras(ELEVATION, 0.0, plan.radius, plan.fov_y, side)
    return field.render(camera, WHITE).rgb[0].clamp(0, 1).numpy()


def middle(picture: np.ndarray) -> np.ndarray:
    """The square that the start camera shows."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[top : top + side, left : left + side]


@pytest.mark.parametrize(("shot", "k"), [("front", K - 1), ("start", -1)])
def test_the_viewer_shows_what_our_renderer_shows(seen, shot, k):
    picture = seen["shots"][shot]
    expected = rendered(seen, f"{k + 1:04d}.state.safetensors", *picture.shape[:2])
    assert np.abs(expected - 1).mean() > 0.02, "there is an object"
    difference = np.abs(middle(picture) - expected)
    assert difference.mean() < 0.006 and np.abs(expected - 1).mean() > 10 * difference.mean()


def test_it_turns_and_zooms_with_the_mouse_and_the_graph_stays(seen):
    front, turned, near, reset = (seen["shots"][name] for name in ("front", "turned", "near", "reset"))
    assert np.abs(turned - front).mean() > 0.01
    assert (near < 0.98).any(2).mean() > 1.2 * (turned < 0.98).any(2).mean()
    assert np.array_equal(reset, front)
    assert not seen["moved"]


def test_it_forms_on_the_way_and_messages_are_small(seen):
    events = seen["events"]
    assert {event["node"] for event in events} == {"6"}
    assert sum(event["splat"] for event in events) > K + 1, "also between iterations"
    assert max(event["bytes"] for event in events) < 1_000_000
    seconds = [event["at"] / 1000 for event in events]
    assert all(later >= sooner for sooner, later in pairwise(seconds)) and len(events) <= 2 * (seconds[-1] - seconds[0]) + 8


def test_the_slider_goes_back_and_take_adds_the_node(seen):
    assert seen["end"] == ["execution_success", ""]
    assert seen["label"] == "start"
    assert seen["taken"] == {"k": -1, "from": "MicroDreamerGenerate", "seed": seen["seed"], "control": "fixed"}
    hidden, width = seen["sheet"]
    assert not hidden and width >= 512


def test_every_type_has_a_colour_whatever_the_palette(seen):
    for colors in seen["colors"]:
        assert len({wire for wire, _, _ in colors.values()}) == 6
        for wire, socket, variable in colors.values():
            assert wire == socket == variable and len(wire) == 7


def test_a_client_of_the_api_gets_no_splats_but_can_take_an_iteration(server):
    graph = {**GRAPH, "6": node("Generate", **{**GRAPH["6"]["inputs"], "seed": 5})}
    graph["8"] = node("TakeIteration", field=["6", 0], iteration=0)
    graph["9"] = node("SaveState", field=["8", 0], filename_prefix="taken")
    first = server.run({name: entry for name, entry in graph.items() if int(name) < 8})
    assert first.status == "success", first.error
    run = server.run(graph)
    assert run.status == "success", run.error
    assert "6" in first.ran and "6" not in run.ran, "the run is kept with the cached field"
    assert run.of("microdreamer.view") == []
    (facts,) = first.outputs["6"]["microdreamer_run"]
    folder = server.base / "temp" / facts["folder"]
    assert not list(folder.glob("*.splat")) and len(list(folder.glob("*.jpg"))) == K + 1
    (entry,) = run.outputs["8"]["images"]
    assert server.view(entry)[:2] == b"\xff\xd8"
