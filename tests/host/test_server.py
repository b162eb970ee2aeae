"""The pack in a real server: it loads, quickly, and every node is there and explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

import workflows
from helpers.comfy_server import PACK, ROOT

HEAVY = {"numba", "llvmlite", "diffusers", "transformers", "scipy", "skimage", "trimesh", "xatlas", "imageio"}


def test_the_pack_loads(server):
    lines = server.log().splitlines()
    ours = [line for line in lines if PACK in line]
    assert any("seconds" in line for line in ours), "the server lists the import times of all packs"
    assert not [line for line in ours if "FAILED" in line or "Cannot import" in line]


def test_every_node_is_there_and_explains_its_inputs(server, pack):
    info = server.json("/object_info")
    ours = {name: entry for name, entry in info.items() if entry["python_module"] == f"custom_nodes.{PACK}"}
    assert set(ours) == set(pack.node_classes)
    for name, entry in ours.items():
        assert entry["description"] and entry["display_name"] == pack.node_classes[name].TITLE
        assert len(entry["output_tooltips"]) == len(entry["output"]) and all(entry["output_tooltips"]), name
        for group in ("required", "optional"):
            for socket, (_, *options) in entry["input"].get(group, {}).items():
                assert options and options[0].get("tooltip"), f"{name}: {socket}"


def test_help_pages_and_texts_are_served(server, pack):
    texts = server.json("/i18n")["en"]["nodeDefs"]
    for name in pack.node_classes:
        assert server.get(f"/extensions/{PACK}/docs/{name}.md").startswith(b"# ")
        assert texts[name]["display_name"]


def test_blueprints_are_served_and_may_be_placed(server):
    try:
        listed = server.json("/global_subgraphs")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI lists no subgraphs of packs")
    ours = {entry["name"]: number for number, entry in listed.items() if PACK in entry["info"]["node_pack"]}
    assert set(ours) == {path.stem for path in (ROOT / "subgraphs").glob("*.json")} != set()
    for number in ours.values():
        (inside,) = json.loads(server.json(f"/global_subgraphs/{number}")["data"])["definitions"]["subgraphs"]
        assert {node["type"] for node in inside["nodes"]} <= set(server.json("/object_info"))


def test_recorded_interfaces_of_later_nodes_are_those_of_a_comfyui_that_has_them(server):
    """After a change: python scripts/workflows.py ADDRESS --record, on such a ComfyUI."""
    recorded, known = json.loads(workflows.LATER.read_text()), server.json("/object_info")
    if not set(recorded) <= set(known):
        pytest.skip("this ComfyUI lacks some of them")
    assert {name: workflows.interface(known[name]) for name in recorded} == recorded


def test_the_import_is_quick_because_heavy_packages_wait(report):
    script = Path(__file__).with_name("import_time.py")
    command = [sys.executable, str(script), os.environ["COMFYUI_PATH"]]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    report(f"import of the pack beside a loaded host: {found['seconds']:.2f} s for {found['nodes']} nodes")
    assert not HEAVY & set(found["new"])
