"""The shipped workflows in the host's own frontend, in a headless browser."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from helpers import workflow_graphs as graphs
from helpers.comfy_server import PACK
from helpers.frontend import ROOT, missing, open_workflows

OUT = ROOT / "outputs" / "host"
HELLO = graphs.UI[0].stem

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"missing: {', '.join(missing())}"),
    pytest.mark.skipif(not graphs.UI, reason="there are no workflows for the frontend"),
]


@pytest.fixture(scope="module")
def seen(server):
    """What the browser saw: all workflows opened, the first one also queued with little to do."""
    return open_workflows(server.url, graphs.UI, OUT, HELLO, graphs.SMALL)


@pytest.fixture(params=graphs.UI, ids=lambda path: path.stem)
def opened(seen, request):
    """One workflow's file and what was seen of it."""
    found = seen["workflows"][request.param.stem]
    if found["missing"] and graphs.needs_later_host(request.param):
        pytest.skip(f"this ComfyUI has no {found['missing'][0]}")
    return request.param, found


def test_all_nodes_are_known_and_nothing_of_ours_fails(opened):
    _, workflow = opened
    assert workflow["missing"] == []
    # the frontend's own complaints, and its tries to reach the outside, are not ours
    assert [error for error in workflow["errors"] if f"/extensions/{PACK}" in error] == []


def test_the_frontend_exports_the_shipped_api_file(opened):
    path, workflow = opened
    shipped, exported = graphs.load(graphs.api_name(path)), graphs.without_optional(path, workflow["prompt"])
    assert set(exported) == set(shipped)
    for node, entry in shipped.items():
        assert exported[node]["class_type"] == entry["class_type"]
        assert comparable(exported[node], entry) == comparable(entry, exported[node]), node


def comparable(entry: dict, other: dict) -> dict:
    """An entry's inputs; of the host's own nodes only what both have, because releases of the frontend differ in extras."""
    ours = entry["class_type"].startswith("MicroDreamer")
    return {name: value for name, value in entry["inputs"].items() if ours or name in other["inputs"]}


def test_a_run_from_the_browser_ends_with_the_object_in_preview_3d(seen):
    run = seen["workflows"][HELLO]["run"]
    assert run["end"] == ["execution_success", ""]
    assert "subfolder=microdreamer" in run["shown"]
    with Image.open(OUT / f"{HELLO}_preview3d.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    colourful = np.ptp(pixels, axis=2) > 60  # neither background nor grid
    assert colourful.mean() > 0.02
