"""Runs a script of the repository with the address of a fresh server that has this pack as its first argument.

Usage: COMFYUI_PATH=... HOST_PYTHON tests/host/with_server.py SCRIPT [ARGUMENT ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.comfy_server import Server


def main(script: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as base, Server(Path(os.environ["COMFYUI_PATH"]), Path(base)) as server:
        return subprocess.run([sys.executable, script, server.url, *arguments]).returncode


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
