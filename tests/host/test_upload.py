"""Files from the user's disk at a node, in the host's own frontend; and the mesh that comes of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from helpers.frontend import ROOT, check_page, missing

OUT = ROOT / "outputs" / "host"


@pytest.fixture(scope="module")
def seen(server):
    if missing():
        pytest.skip(f"missing: {', '.join(missing())}")
    report = check_page(server.url, OUT, "upload_files.mjs", ["tri.mtl", "tri.obj"])
    assert [error for error in report["errors"] if "microdreamer" in error] == []
    return report["checked"]


def test_files_that_are_chosen_together_lie_together(seen):
    assert seen["first"] == "linked mesh" and seen["chosen"] == seen["prompt"]["file"] == "input/3d/tri/tri.obj"


def test_files_are_dropped_on_the_node_and_others_go_to_the_editor(seen):
    assert seen["taken"] == [True, False] and seen["dropped"] == "input/3d/dropped.obj"


def test_what_was_uploaded_is_read_with_its_material(seen, server):
    graph = {
        "1": {"class_type": "MicroDreamerFieldFromMesh", "inputs": {**seen["prompt"], "num_points": 100}},
        "2": {"class_type": "MicroDreamerTurntable", "inputs": {"field": ["1", 0], "frames": 1, "size": 64, "elevation": 10.0}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    run = server.run(graph)
    assert run.status == "success", run.error
    pixels = np.asarray(Image.open(server.path(run.outputs["3"]["images"][0])).convert("RGB")) / 255
    colour = pixels[(pixels < 0.9).any(-1)].mean(0)
    assert colour[2] > colour[0] + 0.1 > colour[1] + 0.2  # Kd 0.5 0.25 0.75
