"""The workflows that refine what models of ComfyUI make, with a splat and a mesh in the place of those models' outputs."""

from __future__ import annotations

import pytest

from helpers import workflow_graphs as graphs

SPLAT = {"file": "samples/bird_rough.ply", "seed": 0, "initialised": True}
OURS = {"given": {"class_type": "MicroDreamerFieldFromSplat", "inputs": SPLAT}}


def with_stand_in(name: str, decoder: str, stand_in: str, **inputs) -> dict:
    """The graph made small, whose model is replaced from its decoder on by a node that takes the field of a splat."""
    graph = graphs.small(graphs.load(name))
    (decoded,) = graphs.of_class(graph, decoder)
    folder = decoded.partition(":")[0]
    graphs.relink(graph, decoded, 0, ["stand_in", 0])
    graph = {node: entry for node, entry in graph.items() if node.partition(":")[0] != folder}
    entry = {"class_type": stand_in, "inputs": {"field": ["given", 0], **inputs}}
    return {**graph, **OURS, "stand_in": entry}


def files(server, run) -> set[str]:
    assert run.status == "success", run.error
    return {server.path(entry).suffix for entry in run.files if entry["type"] == "output"}


def test_a_triposplat_is_refined(server):
    if "VAEDecodeTripoSplat" not in server.json("/object_info"):
        pytest.skip("this ComfyUI has no TripoSplat")
    graph = with_stand_in("20_refine_triposplat", "VAEDecodeTripoSplat", "MicroDreamerFieldToSplat")
    assert graphs.of_class(graph, "TransformSplat"), "ComfyUI's own node stands between"
    assert files(server, server.run(graph)) == {".ply", ".webp"}


def test_a_mesh_without_colours_is_refined(server):
    shape = {"resolution": 48, "threshold": 0.0, "target_faces": 300, "smoothing": 5}
    graph = with_stand_in("21_refine_trellis_or_hunyuan_mesh", "VoxelToMesh", "MicroDreamerExtractMesh", **shape)
    assert files(server, server.run(graph)) == {".glb", ".ply", ".webp"}
