"""Writes workflows/api/NAME.json for every workflows/TITLE.json, as the real frontend exports it (``make workflows``).

Usage: COMFYUI_PATH=... PYTHONPATH=tests HOST_PYTHON tests/host/export_api.py [TITLE ...]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from helpers.comfy_server import Server
from helpers.frontend import ROOT, missing, open_workflows
from helpers.workflow_graphs import UI, needs_later_host, without_optional

sys.path.append(str(ROOT / "scripts"))
from workflow_graphs import TITLES  # noqa: E402 - a script


def main(names: list[str]) -> None:
    if missing():
        raise SystemExit(f"The frontend cannot be opened here: {', '.join(missing())} is missing.")
    files = [path for path in UI if not names or path.stem in names]
    with tempfile.TemporaryDirectory() as base, Server(Path(os.environ["COMFYUI_PATH"]), Path(base)) as server:
        report = open_workflows(server.url, files, ROOT / "outputs" / "host")
    for path in files:
        seen = report["workflows"][path.stem]
        if seen["missing"] and needs_later_host(path):
            sys.stdout.write(f"{path.name} needs a later ComfyUI than this one and stays as it is\n")
            continue
        if seen["missing"]:
            raise SystemExit(f"{path.name}: the frontend does not know {', '.join(seen['missing'])}.")
        text = json.dumps(without_optional(path, seen["prompt"]), indent=2, ensure_ascii=False)
        name = next(name for name, title in TITLES.items() if title == path.stem)
        (ROOT / "workflows" / "api" / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
