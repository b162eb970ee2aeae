"""`microdreamer batch --comfy` on two real servers, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.comfy_server import ROOT, Server

COUNT = 12
MODEL = json.loads((ROOT / "workflows" / "api" / "01_image_to_3d_stages.json").read_text())["1"]["inputs"]
GRAPH = {
    "1": {"class_type": "MicroDreamerExamplePicture", "inputs": {"picture": "bird"}},
    "2": {
        "class_type": "MicroDreamerPrepareReference",
        "inputs": {"model": ["4", 0], "image": ["1", 0], "mask": ["1", 1], "mask_shows": "auto"},
    },
    "4": {"class_type": "MicroDreamerLoadModel", "inputs": MODEL},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "batch/made"}},
}


@pytest.fixture
def colors(tmp_path):
    """Pictures of boxes that differ in colour, by name."""
    (tmp_path / "pictures").mkdir()
    found = {}
    for i in range(COUNT):
        pixels = np.zeros((64, 64, 4), np.uint8)
        found[f"box{i:02}"] = (20 * i, 200 - 10 * i, 60)
        pixels[16:48, 16:48] = (*found[f"box{i:02}"], 255)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"box{i:02}.png")
    return found


def start_batch(folder, *urls):
    """The command line on the folder's pictures."""
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    servers = [word for url in urls for word in ("--comfy", url)]
    command = [sys.executable, "-m", "microdreamer_core.cli", "batch", folder / "pictures", "-o", folder / "out", *servers]
    command += ["--workflow", folder / "graph.json", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([str(word) for word in command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def records(folder: Path) -> dict[str, dict]:
    """The finished results by name."""
    read = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("out/*/batch.json")}
    return {name: record["result"] for name, record in read.items() if "files" in record.get("result", ())}


def test_a_server_killed_in_the_middle_loses_nothing_and_nothing_is_made_twice(server, colors, tmp_path, tmp_path_factory):
    before = len(server.json("/history"))
    with Server(Path(os.environ["COMFYUI_PATH"]), tmp_path_factory.mktemp("second")) as second:
        batch = start_batch(tmp_path, second.url, server.url)
        while len([r for r in records(tmp_path).values() if r["numbers"]["server"] == second.url]) < 2:
            assert batch.poll() is None, "it ended before both servers had worked"
            time.sleep(0.02)
        second.kill()
        assert batch.wait(300) == 0
    assert f"{COUNT} made, 0 kept from before" in batch.stdout.read()
    made = records(tmp_path)
    assert sorted(made) == sorted(colors)
    for name, color in colors.items():
        [file] = made[name]["files"].values()
        with Image.open(tmp_path / "out" / name / file) as image:
            center = image.width // 2, image.height // 2
            assert image.convert("RGB").getpixel(center) == pytest.approx(color, abs=3), name
    kept = [name for name in made if made[name]["numbers"]["server"] == server.url]
    assert 2 <= COUNT - len(kept) < COUNT - 1, "both made some, and the dead one's task went to the other"
    assert len(server.json("/history")) - before == len(kept), "what one has made the other does not make again"
    again = start_batch(tmp_path, server.url)
    assert again.wait(300) == 0 and f"0 made, {COUNT} kept from before" in again.stdout.read()
    assert len(server.json("/history")) - before == len(kept)
