"""ComfyUI's own texturing nodes take this pack's meshes and textures: uvs, texels and size come through as they are."""

from __future__ import annotations

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.io.mesh_files import read_mesh
from microdreamer_core.render.mesh import render_mesh

NODES = {"ApplyTextureToMesh", "BakeNormalMapFromMesh", "BakeAmbientOcclusion", "SaveGLB"}
SIZE, SIZE_OF_MAPS = 192, 64


def graph() -> dict:
    """The clay bird in noise, its colours projected again, beside maps that ComfyUI bakes of it; saved by both."""
    pair = {"low_poly": ["project", 0], "high_poly": ["project", 0], "resolution": SIZE_OF_MAPS}
    texture = {"file": "samples/bird_clay.glb", "start": "noise", "texture_size": SIZE, "seed": 0, "normalise": "auto"}
    layout = {
        "views": 4,
        "elevation": 10.0,
        "azimuth": 0.0,
        "spread": 360.0,
        "radius": 2.0,
        "fov": 49.1,
        "size": 128,
        "poses": "",
    }
    occlusion = {"samples": 8, "max_distance": 0.5, "strength": 1.0, "bias": 0.01}
    nodes = {
        "new": ("MicroDreamerNewTexture", texture),
        "cameras": ("MicroDreamerCameraLayout", layout),
        "views": ("MicroDreamerRenderViews", {"field": ["new", 0], "cameras": ["cameras", 0]}),
        "project": (
            "MicroDreamerProjectViews",
            {"mesh": ["new", 2], "images": ["views", 0], "cameras": ["cameras", 0], "texture_size": SIZE},
        ),
        "normals": ("BakeNormalMapFromMesh", {**pair, "cage_distance": 0.05, "ignore_backfaces": True}),
        "occlusion": ("BakeAmbientOcclusion", {**pair, **occlusion}),
        "apply": (
            "ApplyTextureToMesh",
            {"mesh": ["project", 0], "base_color": ["project", 1], "normal_map": ["normals", 0], "occlusion": ["occlusion", 0]},
        ),
        "theirs": ("SaveGLB", {"mesh": ["apply", 0], "filename_prefix": "pbr/theirs"}),
        "ours": ("MicroDreamerSaveMesh", {"mesh": ["project", 0], "filename_prefix": "pbr/ours", "format": "glb"}),
        "both": ("MicroDreamerSaveMesh", {"mesh": ["apply", 0], "filename_prefix": "pbr/both", "format": "glb"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_base_colour_normals_and_occlusion_fit_together(server):
    if missing := NODES - set(server.json("/object_info")):
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(missing))}")
    run = server.run(graph())
    assert run.status == "success", run.error
    saved = {path.name.partition("_")[0]: read_mesh(path) for path in map(server.path, run.files) if path.suffix == ".glb"}
    ours = saved["ours"]
    assert ours.texture.shape == (SIZE, SIZE, 3) and ours.texture.std() > 0.05, "noise"
    cameras = orbit_cameras(10.0, [0.0, 120.0, 240.0], 2.0, width=128)
    seen = render_mesh(ours, cameras).rgb
    for name in ("theirs", "both"):
        mesh = saved[name]
        assert torch.equal(mesh.faces, ours.faces) and torch.allclose(mesh.uvs, ours.uvs, atol=1e-5), name
        assert (mesh.texture - ours.texture).abs().max() <= 1.01 / 255, name
        assert (render_mesh(mesh, cameras).rgb - seen).abs().mean() < 1e-3, name
        maps = mesh.maps
        assert maps.normal.shape[:2] == (SIZE_OF_MAPS, SIZE_OF_MAPS), name
        assert maps.normal[..., 2].mean() > 0.95, "baked of itself, its normals point straight up"
        assert maps.occlusion is not None and 0.5 < maps.occlusion[..., 0].mean() < 1.0, "open, with creases"
