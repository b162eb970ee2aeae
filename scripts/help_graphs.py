"""The graphs that help pages show where a node's point is what it is linked to."""

from __future__ import annotations

from collections.abc import Callable

from help_drawing import Box, way_back, wiring
from PIL import Image


def loop_start() -> Image.Image:
    boxes = (
        Box("New Gaussians", 0, 4, outputs=("field",)),
        Box("SIR Plan", 0, 90, outputs=("plan", "passes")),
        Box("SIR Loop Start", 1, 50, ("field", "count"), ("flow", "field", "index"), marked=True),
        Box("the body", 2, 4, ("field",), note="any nodes"),
        Box("SIR Loop End", 2, 120, ("flow",)),
    )
    links = (
        ("New Gaussians.field", "SIR Loop Start.field"),
        ("SIR Plan.passes", "SIR Loop Start.count"),
        ("SIR Loop Start.field", "the body.field"),
        ("SIR Loop Start.flow", "SIR Loop End.flow"),
    )
    return wiring(boxes, links)


def loop_end() -> Image.Image:
    boxes = (
        Box("SIR Loop Start", 0, 4, outputs=("flow", "field")),
        Box("the body", 1, 70, ("field",), ("field", "finished"), "ends in Reconstruct"),
        Box("SIR Loop End", 2, 4, ("flow", "field", "stop"), ("field",), marked=True),
    )
    links = (
        ("SIR Loop Start.flow", "SIR Loop End.flow"),
        ("SIR Loop Start.field", "the body.field"),
        ("the body.field", "SIR Loop End.field"),
        ("the body.finished", "SIR Loop End.stop"),
    )
    tops = (boxes[-1].top + boxes[-1].height, boxes[0].top + boxes[0].height)
    return way_back(wiring(boxes, links), boxes[-1].left + 95, boxes[0].left + 95, tops, "next pass")


def save_state() -> Image.Image:
    boxes = (
        Box("Condition on Image", 0, 4, outputs=("condition",)),
        Box("SIR Plan", 0, 90, outputs=("plan",)),
        Box("Generate", 1, 20, ("condition", "plan"), ("field",)),
        Box("Save State", 2, 20, ("field", "condition", "plan"), ("path",), marked=True),
    )
    links = (
        ("Condition on Image.condition", "Generate.condition"),
        ("SIR Plan.plan", "Generate.plan"),
        ("Generate.field", "Save State.field"),
        ("Condition on Image.condition", "Save State.condition"),
        ("SIR Plan.plan", "Save State.plan"),
    )
    return wiring(boxes, links)


def load_state() -> Image.Image:
    boxes = (
        Box("Load State", 0, 20, outputs=("field", "k"), note="file: output/...", marked=True),
        Box("Condition on Image", 0, 150, outputs=("condition",)),
        Box("SIR Plan", 0, 236, outputs=("plan",), note="iterations: more"),
        Box("Generate", 1, 90, ("field", "condition", "plan"), ("field",)),
        Box("Extract Mesh", 2, 90, ("field",), ("mesh",)),
    )
    links = (
        ("Load State.field", "Generate.field"),
        ("Condition on Image.condition", "Generate.condition"),
        ("SIR Plan.plan", "Generate.plan"),
        ("Generate.field", "Extract Mesh.field"),
    )
    return wiring(boxes, links)


def save_splat() -> Image.Image:
    boxes = (
        Box("Generate", 0, 4, outputs=("field",)),
        Box("Save Splat", 1, 4, ("field",), ("path",), "microdreamer/splat", True),
        Box("Field from Splat", 2, 4, ("path",), ("field",), "file: linked path"),
    )
    return wiring(boxes, (("Generate.field", "Save Splat.field"), ("Save Splat.path", "Field from Splat.path")))


def save_mesh() -> Image.Image:
    boxes = (
        Box("Bake Texture", 0, 4, outputs=("mesh", "texture")),
        Box("Save Mesh", 1, 4, ("mesh",), ("path",), "format: glb", True),
        Box("Preview 3D", 2, 4, ("model_file",)),
    )
    return wiring(boxes, (("Bake Texture.mesh", "Save Mesh.mesh"), ("Save Mesh.path", "Preview 3D.model_file")))


GRAPHS: dict[str, Callable[[], Image.Image]] = {
    "LoopStart": loop_start,
    "LoopEnd": loop_end,
    "SaveState": save_state,
    "LoadState": load_state,
    "SaveSplat": save_splat,
    "SaveMesh": save_mesh,
}
