"""The graphs that help pages show where a node's point is what it is linked to."""

from __future__ import annotations

from collections.abc import Callable

from help_drawing import INK, PALE, WIDTH, Box, font, way_back, wiring
from PIL import Image, ImageDraw


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


def take_iteration() -> Image.Image:
    boxes = (
        Box("Generate", 0, 20, outputs=("field",), note="slider: k 4"),
        Box("Take Iteration", 1, 20, ("field",), ("field",), "iteration: 4", marked=True),
        Box("Clean Gaussians", 2, 4, ("field",), ("field",)),
        Box("Generate again", 2, 90, ("field",), ("field",), "from k 5 on"),
    )
    links = (
        ("Generate.field", "Take Iteration.field"),
        ("Take Iteration.field", "Clean Gaussians.field"),
        ("Take Iteration.field", "Generate again.field"),
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


def text_to_3d() -> Image.Image:
    boxes = (
        Box("Load Multi-View Model", 0, 4, outputs=("model",), note="checkpoint: MVDream"),
        Box("Text to 3D", 1, 4, ("model",), ("mesh", "field"), "a toy bird, 3d asset", True),
        Box("Save Mesh", 2, 4, ("mesh",)),
        Box("Save Splat", 2, 96, ("field",)),
    )
    links = (("Load Multi-View Model.model", "Text to 3D.model"), ("Text to 3D.mesh", "Save Mesh.mesh"))
    return wiring(boxes, (*links, ("Text to 3D.field", "Save Splat.field")))


def model_from_comfyui() -> Image.Image:
    boxes = (
        Box("Image Only Checkpoint Loader", 0, 4, outputs=("MODEL", "CLIP_VISION", "VAE"), note="stable_zero123"),
        Box("Model from ComfyUI", 1, 4, ("model", "vae", "clip_vision", "clip"), ("model",), marked=True),
        Box("Prepare Reference", 2, 4, ("model",), ("image", "mask")),
        Box("Condition on Image", 2, 120, ("model",), ("condition",)),
    )
    links = (
        ("Image Only Checkpoint Loader.MODEL", "Model from ComfyUI.model"),
        ("Image Only Checkpoint Loader.VAE", "Model from ComfyUI.vae"),
        ("Image Only Checkpoint Loader.CLIP_VISION", "Model from ComfyUI.clip_vision"),
        ("Model from ComfyUI.model", "Prepare Reference.model"),
        ("Model from ComfyUI.model", "Condition on Image.model"),
    )
    return wiring(boxes, links)


def condition_from_comfyui() -> Image.Image:
    boxes = (
        Box("Model from ComfyUI", 0, 4, outputs=("model",)),
        Box("Apply ControlNet", 0, 90, outputs=("positive", "negative")),
        Box("Condition from ComfyUI", 1, 40, ("model", "positive", "negative"), ("condition",), marked=True),
        Box("Generate", 2, 40, ("condition",)),
    )
    links = (
        ("Model from ComfyUI.model", "Condition from ComfyUI.model"),
        ("Apply ControlNet.positive", "Condition from ComfyUI.positive"),
        ("Apply ControlNet.negative", "Condition from ComfyUI.negative"),
        ("Condition from ComfyUI.condition", "Generate.condition"),
    )
    return wiring(boxes, links)


def condition_on_both() -> Image.Image:
    boxes = (
        Box("Model from ComfyUI", 0, 4, outputs=("model",)),
        Box("Prepare Reference", 0, 90, ("model",), ("image", "mask")),
        Box("Condition on Both", 1, 40, ("model", "image", "mask"), ("condition",), "prompt: a bird", True),
        Box("Generate", 2, 40, ("condition",)),
    )
    links = (
        ("Model from ComfyUI.model", "Condition on Both.model"),
        ("Prepare Reference.image", "Condition on Both.image"),
        ("Prepare Reference.mask", "Condition on Both.mask"),
        ("Condition on Both.condition", "Generate.condition"),
    )
    return wiring(boxes, links)


def field_to_splat() -> Image.Image:
    boxes = (
        Box("Generate", 0, 4, outputs=("field",)),
        Box("Field to SPLAT", 1, 4, ("field",), ("splat",), marked=True),
        Box("Render Splat", 2, 4, ("splat",), ("image",)),
    )
    return wiring(boxes, (("Generate.field", "Field to SPLAT.field"), ("Field to SPLAT.splat", "Render Splat.splat")))


def field_from_splat() -> Image.Image:
    boxes = (
        Box("Transform Splat", 0, 4, outputs=("splat",)),
        Box("Field from SPLAT", 1, 4, ("splat", "model"), ("field",), "initialised: true", True),
        Box("Generate", 2, 4, ("field",)),
    )
    return wiring(boxes, (("Transform Splat.splat", "Field from SPLAT.splat"), ("Field from SPLAT.field", "Generate.field")))


def condition_on_prompt() -> Image.Image:
    """The words by azimuth, seen from above with the front below."""
    canvas = Image.new("RGB", (WIDTH, 330), "white")
    draw, centre = ImageDraw.Draw(canvas), (WIDTH // 2, 165)
    box = (centre[0] - 150, 15, centre[0] + 150, 315)
    for i, words in enumerate(("side", "front", "side", "back")):
        draw.pieslice(box, -45 + 90 * i, 45 + 90 * i, fill=("#dfe8f2", "#f6dcc8", "#dfe8f2", "#dcebdd")[i], outline=PALE)
        x, y = centre[0] + (92, 0, -92, 0)[i], centre[1] + (0, 110, 0, -110)[i]
        draw.text((x, y), f"{words} view", INK, font(22), anchor="mm")
    draw.ellipse((centre[0] - 32, 133, centre[0] + 32, 197), fill="#555f6a")
    draw.text(centre, "object", "white", font(18), anchor="mm")
    draw.text((8, 8), "a blue bird,", INK, font(26))
    draw.text((WIDTH - 8, 296), "seen from above", INK, font(22), anchor="ra")
    return canvas


def fit_mesh() -> Image.Image:
    boxes = (
        Box("Load 3D", 0, 4, outputs=("model_3d", "model_3d_info")),
        Box("Fit Mesh", 1, 4, ("mesh", "model_3d_info"), ("mesh", "", "transform"), marked=True),
        Box("Field from Mesh", 2, 4, ("mesh",), ("field",)),
    )
    links = (
        ("Load 3D.model_3d", "Fit Mesh.mesh"),
        ("Load 3D.model_3d_info", "Fit Mesh.model_3d_info"),
        ("Fit Mesh.mesh", "Field from Mesh.mesh"),
    )
    return wiring(boxes, links)


def undo_fit() -> Image.Image:
    boxes = (
        Box("Fit Mesh", 0, 4, outputs=("mesh", "transform")),
        Box("Extract Mesh", 0, 110, outputs=("mesh",)),
        Box("Undo Fit", 1, 50, ("transform", "mesh"), ("mesh",), marked=True),
        Box("Save Mesh", 2, 50, ("mesh",)),
    )
    links = (
        ("Fit Mesh.transform", "Undo Fit.transform"),
        ("Extract Mesh.mesh", "Undo Fit.mesh"),
        ("Undo Fit.mesh", "Save Mesh.mesh"),
    )
    return wiring(boxes, links)


def cameras_from_view() -> Image.Image:
    boxes = (
        Box("Load 3D", 0, 4, outputs=("camera_info", "model_3d_info")),
        Box("Cameras from View", 1, 4, ("camera_info", "model_3d_info"), ("", "", "cameras"), marked=True),
        Box("Render Views", 2, 4, ("cameras", "field"), ("images",)),
    )
    links = (
        ("Load 3D.camera_info", "Cameras from View.camera_info"),
        ("Load 3D.model_3d_info", "Cameras from View.model_3d_info"),
        ("Cameras from View.cameras", "Render Views.cameras"),
    )
    return wiring(boxes, links)


def view_from_cameras() -> Image.Image:
    boxes = (
        Box("Camera Layout", 0, 4, outputs=("cameras",)),
        Box("View from Cameras", 1, 4, ("cameras",), ("", "camera_info"), marked=True),
        Box("Render Splat", 2, 4, ("camera_info", "splat"), ("image",)),
    )
    links = (
        ("Camera Layout.cameras", "View from Cameras.cameras"),
        ("View from Cameras.camera_info", "Render Splat.camera_info"),
    )
    return wiring(boxes, links)


def load_mvdream() -> Image.Image:
    sockets = ("model", "clip", "vae")
    boxes = (
        Box("Load MVDream", 0, 4, outputs=sockets, marked=True),
        Box("Model from ComfyUI", 1, 4, sockets, ("model",)),
        Box("Condition on Prompt", 2, 4, ("model",), ("condition",)),
    )
    links = [(f"Load MVDream.{socket}", f"Model from ComfyUI.{socket}") for socket in sockets]
    return wiring(boxes, (*links, ("Model from ComfyUI.model", "Condition on Prompt.model")))


def mvdream_cameras() -> Image.Image:
    boxes = (
        Box("CLIP Text Encode", 0, 4, outputs=("positive",)),
        Box("Camera Layout", 0, 110, outputs=("cameras",)),
        Box("MVDream Cameras", 1, 40, ("positive", "cameras"), ("positive",), marked=True),
        Box("KSampler", 2, 40, ("positive", "model"), ("latent",)),
    )
    links = (
        ("CLIP Text Encode.positive", "MVDream Cameras.positive"),
        ("Camera Layout.cameras", "MVDream Cameras.cameras"),
        ("MVDream Cameras.positive", "KSampler.positive"),
    )
    return wiring(boxes, links)


GRAPHS: dict[str, Callable[[], Image.Image]] = {
    "LoopStart": loop_start,
    "LoopEnd": loop_end,
    "SaveState": save_state,
    "LoadState": load_state,
    "TakeIteration": take_iteration,
    "SaveSplat": save_splat,
    "SaveMesh": save_mesh,
    "TextTo3D": text_to_3d,
    "ModelFromComfyUI": model_from_comfyui,
    "ConditionFromComfyUI": condition_from_comfyui,
    "ConditionOnBoth": condition_on_both,
    "ConditionOnPrompt": condition_on_prompt,
    "FieldToSplat": field_to_splat,
    "FieldFromNativeSplat": field_from_splat,
    "FitMesh": fit_mesh,
    "UndoFit": undo_fit,
    "CamerasFromView": cameras_from_view,
    "ViewFromCameras": view_from_cameras,
    "LoadMVDreamNative": load_mvdream,
    "MVDreamCameras": mvdream_cameras,
}
