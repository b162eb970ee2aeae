"""The ground plan: which package may import which, and what importing the core does not load."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import architecture
import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("errors",),
    ("util",),
    ("cameras", "mesh"),
    ("reference",),
    ("render",),
    ("fields", "diffusion"),
    ("io",),
    ("sir", "meshing"),
    ("checkpoints", "convert"),
    ("job",),
    ("evaluation", "batch"),
    ("training", "api"),
    ("cli",),
)
"""Lowest first; packages of one layer do not know each other."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


MODULES, package_of = architecture.MODULES, architecture.package_of
ARROWS = {(name, target) for name in MODULES if name != "microdreamer_core" for target in architecture.imported_modules(name)}


def test_every_package_has_its_layer():
    assert {package_of(name) for name in MODULES if name != "microdreamer_core"} <= set(RANK)


def test_no_package_imports_upwards_or_sideways():
    wrong = [
        f"{name} imports {target}"
        for name, target in sorted(ARROWS)
        if package_of(name) != package_of(target) and RANK[package_of(name)] <= RANK[package_of(target)]
    ]
    assert not wrong


def test_no_circle_of_modules():
    graph = graphlib.TopologicalSorter()
    for name, target in ARROWS:
        graph.add(name, target)
    graph.prepare()  # raises CycleError


def test_the_core_knows_neither_comfyui_nor_the_nodes():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [n for n in names if n.split(".")[0] in ("comfy", "comfy_api", "nodes", "folder_paths")], name


@pytest.mark.parametrize("heavy", ["comfy", "diffusers", "transformers", "numba", "torch"])
def test_importing_the_core_loads_nothing_heavy(heavy):
    code = f"import microdreamer_core, sys; raise SystemExit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
