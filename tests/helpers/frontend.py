"""Runs browser.mjs: workflows in the real frontend."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE_PACKAGES = ROOT / ".cache" / "host" / "node"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def missing() -> list[str]:
    """What the browser tests lack here."""
    found = {
        "Chromium": chromium(),
        "Node (node)": shutil.which("node"),
        "playwright-core (which 'make test-host' installs with npm)": (NODE_PACKAGES / "node_modules").is_dir(),
    }
    return [name for name, where in found.items() if not where]


def open_workflows(url: str, workflows: list[Path], out: Path, run: str | None = None, widgets: dict | None = None) -> dict:
    """What browser.mjs reports of these workflows on the server at ``url``; screenshots go to ``out``.

    Args:
        run: the name of a workflow that is queued too, with ``widgets`` by class set before.
    """
    command = ["node", str(Path(__file__).with_name("browser.mjs")), url, str(out), chromium()]
    command += ["--run", run, json.dumps(widgets or {})] if run else []
    environment = {**os.environ, "NODE_PACKAGES": str(NODE_PACKAGES)}
    result = subprocess.run(
        [*command, *map(str, workflows)], env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900
    )
    return json.loads(result.stdout)
