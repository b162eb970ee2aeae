"""Measurements of a run: seconds by stage, evaluations, peak memory, versions; the JSON that ``--report`` writes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..util.atomic import replace_file
from ..util.processes import read_proc

_LIBRARIES = (
    "torch",
    "numpy",
    "numba",
    "diffusers",
    "transformers",
    "scipy",
    "scikit-image",
    "trimesh",
    "xatlas",
    "fast-simplification",
)


def peak_memory_mb() -> float | None:
    """Return the process's peak resident memory in MB; None where the system does not report it."""
    kilobytes = read_proc("self/status", "VmHWM")  # Linux: unlike the resource module's, not inherited from the parent process
    if kilobytes is not None:
        return kilobytes * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that results depend on; missing ones are left out."""
    found = {"microdreamer": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """Describe the machine that a run was measured on."""
    import torch

    return {
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def hash_values(values: Any) -> str:
    """Hash JSON values and dataclasses of them.

    >>> hash_values({"a": 1, "b": 2}) == hash_values({"b": 2, "a": 1})
    True
    """
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=asdict).encode(), digest_size=10).hexdigest()


def read_json(path: Path) -> dict:
    """Read a JSON file's object; empty if there is none or the file is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict) -> Path:
    """Write a JSON file, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
