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
    return _browser(url, out, *(["--run", run, json.dumps(widgets or {})] if run else []), *map(str, workflows))


def check_page(url: str, out: Path, module: str, value) -> dict:
    """What browser.mjs reports of a page in which a module beside it did something, given a value: "checked" and "errors"."""
    return _browser(url, out, "--check", str(Path(__file__).with_name(module)), json.dumps(value))


def _browser(url: str, out: Path, *options: str) -> dict:
    command = ["node", str(Path(__file__).with_name("browser.mjs")), url, str(out), chromium(), *options]
    environment = {**os.environ, "NODE_PACKAGES": str(NODE_PACKAGES)}
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900)
    return json.loads(result.stdout)
