"""Imports the pack in a process that has the host loaded, as the host does, and prints what that took.

Usage: HOST_PYTHON import_time.py COMFYUI
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_host(comfyui: str) -> None:
    sys.path[0] = comfyui  # in place of this file's folder
    sys.argv = ["x", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    for name in ("comfy.samplers", "folder_paths", "nodes", "comfy_api.latest", "comfy_execution.graph_utils"):
        importlib.import_module(name)


def import_pack() -> dict:
    """Seconds, and the packages that came with it."""
    before, begin = set(sys.modules), time.perf_counter()
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    seconds = time.perf_counter() - begin
    new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    return {"seconds": seconds, "nodes": len(nodes), "new": new}


if __name__ == "__main__":
    load_host(sys.argv[1])
    sys.stdout.write(json.dumps(import_pack()) + "\n")
