"""The shipped workflows, each declared once; ``workflows.py`` writes them as files that hosts open.

The text of a graph's note stands in ``workflow_notes``. Tests and API clients address nodes by the numbers given as ``id``,
one in a subgraph as OUTER:INNER: keep them.
"""

from __future__ import annotations

import json
from pathlib import Path

PRESETS = json.loads((Path(__file__).parents[1] / "web" / "presets.js").read_text(encoding="utf-8").partition("default ")[2])
"""What the widgets of the plan's nodes are in each preset, as the frontend fills them in."""
BLUE, GREEN, PURPLE, BROWN, RED, YELLOW = "#3f789e", "#4f8a5b", "#7a5c99", "#8f5a35", "#a85050", "#a5822d"
FINE = "embedded-high"
"""Ten noise levels: the usual four are too few for a narrow range or an ancestral sampler."""
KEY = "#2e4a62"
"""Colour of the node that a graph is about."""
SUMMARISED = 400
"""Height of a node that shows its plan in words below the widgets."""
HUB = "https://huggingface.co"
Z_IMAGE = f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files"
QWEN_IMAGE = f"{HUB}/Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
PUBLISHED = {
    "stable_zero123.ckpt": f"{HUB}/stabilityai/stable-zero123/resolve/main/stable_zero123.ckpt",
    "sd-v2.1-base-4view-ipmv.pt": f"{HUB}/Peng-Wang/ImageDream/resolve/main/sd-v2.1-base-4view-ipmv.pt",
    "sd-v2.1-base-4view.pt": f"{HUB}/MVDream/MVDream/resolve/main/sd-v2.1-base-4view.pt",
    "v1-5-pruned-emaonly-fp16.safetensors": (
        f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors"
    ),
    "hunyuan_3d_v2.1.safetensors": f"{HUB}/Comfy-Org/hunyuan3D_2.1_repackaged/resolve/main/hunyuan_3d_v2.1.safetensors",
    "triposplat_fp16.safetensors": f"{HUB}/VAST-AI/TripoSplat/resolve/main/diffusion_models/triposplat_fp16.safetensors",
    "dino_v3_vit_h.safetensors": f"{HUB}/VAST-AI/TripoSplat/resolve/main/clip_vision/dino_v3_vit_h.safetensors",
    "flux2-vae.safetensors": f"{HUB}/VAST-AI/TripoSplat/resolve/main/vae/flux2-vae.safetensors",
    "triposplat_vae_decoder_fp16.safetensors": (
        f"{HUB}/VAST-AI/TripoSplat/resolve/main/vae/triposplat_vae_decoder_fp16.safetensors"
    ),
    "z_image_turbo_bf16.safetensors": f"{Z_IMAGE}/diffusion_models/z_image_turbo_bf16.safetensors",
    "qwen_3_4b.safetensors": f"{Z_IMAGE}/text_encoders/qwen_3_4b.safetensors",
    "ae.safetensors": f"{Z_IMAGE}/vae/ae.safetensors",
    "control_v11f1p_sd15_depth_fp16.safetensors": (
        f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11f1p_sd15_depth_fp16.safetensors"
    ),
    "qwen_image_edit_2511_fp8mixed.safetensors": (
        f"{HUB}/Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files/diffusion_models/"
        "qwen_image_edit_2511_fp8mixed.safetensors"
    ),
    "qwen_2.5_vl_7b_fp8_scaled.safetensors": f"{QWEN_IMAGE}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
    "qwen_image_vae.safetensors": f"{QWEN_IMAGE}/vae/qwen_image_vae.safetensors",
    "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors": (
        f"{HUB}/lightx2v/Qwen-Image-Edit-2511-Lightning/resolve/main/"
        "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors"
    ),
    "qwen-image-edit-2511-multiple-angles-lora.safetensors": (
        f"{HUB}/fal/Qwen-Image-Edit-2511-Multiple-Angles-LoRA/resolve/main/qwen-image-edit-2511-multiple-angles-lora.safetensors"
    ),
}
"""Addresses of the files that graphs want, for the frontend's dialog of missing models."""


def models(file: str, directory: str) -> dict:
    """Properties of a loader of that file, in ComfyUI's words."""
    return {"models": [{"name": file, "url": PUBLISHED[file], "directory": directory}]}


# --- parts that graphs share ----------------------------------------------------------------------------------------------


def picture(stage):
    return stage.node("MicroDreamerExamplePicture", id=2, height=110, title="Picture", picture="bird")


def loader(stage, checkpoint: str = "embedded"):
    more = {} if checkpoint == "embedded" else {"properties": models(checkpoint, "microdreamer")}
    return stage.node("MicroDreamerLoadModel", id=1, checkpoint=checkpoint, **more)


def condition_on(stage, model, image, prompt: str = ""):
    """Prepare Reference and the condition below it: (condition, the object cut out)."""
    given = {"image": image["image"], "mask": image["mask"], "mask_shows": "auto"}
    cut_out = stage.node("MicroDreamerPrepareReference", id=3, model=model["model"], **given)
    inputs = {"model": model["model"], "image": cut_out["image"], "mask": cut_out["mask"], "elevation": 5.0}
    if prompt:
        words = {"prompt": prompt, "view_words": False}
        return stage.node("MicroDreamerConditionOnBoth", id=4, height=340, **words, **inputs), cut_out
    return stage.node("MicroDreamerConditionOnImage", id=4, **inputs), cut_out


def reference(graph):
    """Picture and, folded, the pack's own model conditioned on it: a node with model, condition and the cut-out image."""
    graph.intro()
    stage = graph.stage("1  Picture", BLUE, below=True)
    image = picture(stage)
    inner = graph.subgraph("Model and reference", {"image": image["image"], "mask": image["mask"]})
    model = loader(inner.stage("", ""))
    condition, cut_out = condition_on(inner.stage("", ""), model, inner)
    outputs = {"model": model["model"], "condition": condition["condition"], "image": cut_out["image"]}
    return inner.fold(stage, 50, outputs)


def plan_node(stage, id: int = 5, preset: str = "embedded", **numbers):
    """SIR Plan; what is not given is the preset's."""
    return stage.node("MicroDreamerSIRPlan", id=id, preset=preset, **filled(stage, "MicroDreamerSIRPlan", preset, numbers))


def options_node(stage, id: int, plan, preset: str, **numbers):
    """SIR Plan Options behind a plan of that preset; what is not given is the preset's."""
    values = filled(stage, "MicroDreamerSIRPlanOptions", preset, numbers)
    return stage.node("MicroDreamerSIRPlanOptions", id=id, plan=plan["plan"], **values)


def filled(stage, type: str, preset: str, numbers: dict) -> dict:
    """The numbers, with those of the preset for every other widget of that node; room for the plan in words."""
    widgets = stage.graph.schemas[type]["input"]["optional"]
    return {"height": SUMMARISED, **{name: value for name, value in PRESETS[preset].items() if name in widgets}, **numbers}


def mesh_and_texture(graph, stage, id: int, field, condition, plan):
    """From a field of Gaussians to the textured mesh, folded: a node with mesh and cleaned field."""
    inner = graph.subgraph("Mesh and texture", {"field": field, "condition": condition, "plan": plan})
    clean = inner.stage("", "").node("MicroDreamerCleanGaussians", id=20, field=inner["field"])
    mesh = inner.stage("", "").node("MicroDreamerExtractMesh", id=21, field=clean["field"])
    baked = inner.stage("", "").node("MicroDreamerBakeTexture", id=22, mesh=mesh["mesh"], field=clean["field"])
    links = {"condition": inner["condition"], "plan": inner["plan"]}
    refined = inner.stage("", "").node("MicroDreamerRefineTexture", id=23, mesh=baked["mesh"], **links)
    return inner.fold(stage, id, {"mesh": refined["mesh"], "field": clean["field"]})


def save_and_turn(graph, stage, id: int, mesh=None, field=None, name: str = "mesh"):
    """Files and a turn of a mesh, or of the field where there is no mesh, folded: a node with path and images."""
    given = {"mesh": mesh, "field": field}
    inner = graph.subgraph("Save and turn", {key: value for key, value in given.items() if value})
    column, outputs = inner.stage("", ""), {}
    if mesh:
        files = {"filename_prefix": f"microdreamer/{name}", "format": "glb"}
        outputs["path"] = column.node("MicroDreamerSaveMesh", id=24, mesh=inner["mesh"], **files)["path"]
    if field:
        prefix = f"microdreamer/{'splat' if name == 'mesh' else name}"
        outputs["splat"] = column.node("MicroDreamerSaveSplat", id=26, field=inner["field"], filename_prefix=prefix)["path"]
    shown = "mesh" if mesh else "field"
    outputs["images"] = column.node("MicroDreamerTurntable", id=31, **{shown: inner[shown]})["images"]
    return inner.fold(stage, id, outputs)


def turns(graph, stage, id: int, fields: dict):
    """Eight steps of a turn around each field, folded: a node with images by the same names."""
    inner = graph.subgraph("Eight views of each", {name: node["field"] for name, node in fields.items()})
    column = inner.stage("", "")
    films = {
        name: column.node("MicroDreamerTurntable", id=40 + i, field=inner[name], frames=8, size=192)
        for i, name in enumerate(fields)
    }
    return inner.fold(stage, id, {name: film["images"] for name, film in films.items()})


def viewer(stage, id: int, path, height: int = 400, width: int = 330):
    return stage.node("Preview3D", id=id, title="Preview 3D", width=width, height=height, model_file=path)


def save_film(stage, id: int, images, name: str, title: str = "Film", height: int = 480, width: int = 300):
    """The host's animated WEBP, which shows itself in the graph."""
    more = {"fps": 16.0, "lossless": False, "quality": 90, "method": "default"}
    place = {"width": width, "height": height, "title": title}
    return stage.node("SaveAnimatedWEBP", id=id, images=images, filename_prefix=f"microdreamer/{name}", **place, **more)


def generate(stage, id: int, condition, plan, width: int = 300, height: int = 680, **inputs):
    """Generate, large enough for its live viewer and sheet."""
    given = {"condition": condition["condition"], "plan": plan["plan"], **inputs}
    return stage.node("MicroDreamerGenerate", id=id, width=width, height=height, colour=KEY, **given)


def one_iteration(graph, stage, id: int, field, condition, plan):
    """The five stages of an iteration, folded: a node with field, sheet and finished."""
    inner = graph.subgraph("One iteration", {"field": field, "condition": condition, "plan": plan})
    links = {"condition": inner["condition"]}
    rig = inner.stage("", "").node("MicroDreamerSampleCameras", id=8, field=inner["field"], plan=inner["plan"], **links)
    seen = {"cameras": rig["cameras"]}
    views = inner.stage("", "").node("MicroDreamerRenderViews", id=9, field=inner["field"], **seen)
    noised = inner.stage("", "").node("MicroDreamerHybridForward", id=10, images=views["images"], **seen)
    refined = inner.stage("", "").node("MicroDreamerDDIMRefine", id=11, latent=noised["latent"], **seen)
    fit = {"field": inner["field"], "images": refined["images"]}
    learnt = inner.stage("", "").node("MicroDreamerReconstructSteps", id=12, **fit, **seen)
    return inner.fold(stage, id, {name: learnt[name] for name in ("field", "sheet", "finished")})


# --- the graphs -----------------------------------------------------------------------------------------------------------


def hello(graph):
    graph.intro()
    stage = graph.stage("1  Picture", BLUE, below=True)
    image = picture(stage)
    stage = graph.stage("2  Object", PURPLE)
    given = {"image": image["image"], "mask": image["mask"], "quality": "standard", "elevation": 5.0}
    made = stage.node("MicroDreamerImageTo3D", id=6, width=340, height=720, colour=KEY, title="Image to 3D", **given)
    saved = save_and_turn(graph, stage, 52, made["mesh"], made["field"])
    stage = graph.stage("3  Result", GREEN)
    viewer(stage, 25, saved["path"], 390)
    save_film(stage, 32, saved["images"], "turntable", height=400, width=330)
    splat_viewer(graph, made["field"])


def splat_viewer(graph, field):
    """ComfyUI's own viewer of splats, in versions that have it."""
    stage = graph.stage("4  Gaussians", YELLOW)
    inner = graph.subgraph("Splat as a file", {"field": field})
    native = inner.stage("", "").node("MicroDreamerFieldToSplat", id=27, field=inner["field"])
    file = inner.stage("", "").node("SplatToFile3D", id=28, splat=native["splat"], format="ply")
    file = inner.fold(stage, 53, {"model_3d": file["model_3d"]}, optional=True)
    size = {"width": 340, "height": 480}
    stage.node("PreviewGaussianSplat", id=29, title="Preview Splat", optional=True, model_3d=file["model_3d"], **size)


def stages(graph):
    graph.intro()
    stage = graph.stage("1  Model and picture", BLUE)
    model, image = loader(stage), picture(stage)
    condition, cut_out = condition_on(stage.column(), model, image)
    stage.column().node("PreviewImage", id=30, width=230, height=280, title="The object, cut out", images=cut_out["image"])
    stage = graph.stage("2  Plan and start", PURPLE)
    plan = plan_node(stage)
    ball = stage.column().node("MicroDreamerNewGaussians", id=6, width=230, model=model["model"])

    graph.next_row()
    links = {"condition": condition["condition"]}
    stage = graph.stage("Loop: render, add noise, denoise, reconstruct", RED)
    start = stage.node("MicroDreamerLoopStart", id=7, width=230, colour=KEY, field=ball["field"], count=plan["passes"])
    rig = stage.column().node("MicroDreamerSampleCameras", id=8, width=230, field=start["field"], plan=plan["plan"], **links)
    seen = {"cameras": rig["cameras"]}
    views = stage.column().node("MicroDreamerRenderViews", id=9, width=230, field=start["field"], **seen)
    noised = stage.column().node("MicroDreamerHybridForward", id=10, width=230, images=views["images"], **seen)
    refined = stage.line().node("MicroDreamerDDIMRefine", id=11, width=230, latent=noised["latent"], **seen)
    fit = {"field": start["field"], "images": refined["images"]}
    learnt = stage.column().node("MicroDreamerReconstructSteps", id=12, width=230, **fit, **seen)
    inputs = {"flow": start["flow"], "field": learnt["field"], "stop": learnt["finished"]}
    end = stage.column().node("MicroDreamerLoopEnd", id=14, width=230, colour=KEY, **inputs)
    stage.column().node("PreviewImage", id=13, width=230, height=240, title="Each pass", images=learnt["sheet"])
    stage = graph.stage("3  Mesh, texture, result", BROWN)
    mesh = mesh_and_texture(graph, stage, 51, end["field"], condition["condition"], plan["plan"])
    saved = save_and_turn(graph, stage, 52, mesh["mesh"], mesh["field"])
    stage.column()
    viewer(stage, 25, saved["path"], 400)
    save_film(stage.column(), 32, saved["images"], "turntable", height=400, width=270)


def samplers(graph):
    about = reference(graph)
    stage = graph.stage("2  Plan and samplers", YELLOW)
    plan = plan_node(stage, preset=FINE, iterations=8)
    ancestral = stage.node("SamplerEulerAncestral", id=10, eta=1.0, s_noise=1.0)
    multistep = stage.node("KSamplerSelect", id=11, sampler_name="dpmpp_2m")
    sigmas = stage.node("KarrasScheduler", id=12, steps=10, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0)
    stage = graph.stage("3  Three runs", PURPLE)
    given = {"A  DDIM of the plan": {}, "B  Euler ancestral": {"sampler": ancestral["SAMPLER"]}}
    given["C  DPM++ 2M, Karras"] = {"sampler": multistep["SAMPLER"], "sigmas": sigmas["SIGMAS"]}
    runs = {
        title: generate(stage.column() if i else stage, 20 + i, about, plan, title=f"SIR Generate {title}", **inputs)
        for i, (title, inputs) in enumerate(given.items())
    }
    stage = graph.stage("4  Side by side", GREEN)
    films = turns(graph, stage, 53, {title[0]: run for title, run in runs.items()})
    for i, title in enumerate(runs):
        stage.node("PreviewImage", id=46 + i, width=300, height=220, title=title, images=films[title[0]])


def texture(graph):
    about = reference(graph)
    stage = graph.stage("2  Gaussians", PURPLE)
    given = {"file": "samples/bird_rough.ply", "initialised": True, "model": about["model"]}
    splat = stage.node("MicroDreamerFieldFromSplat", id=10, **given)
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=splat["field"])
    plan = plan_node(stage)
    stage = graph.stage("3  Mesh and textures", BROWN)
    mesh = stage.node("MicroDreamerExtractMesh", id=21, field=clean["field"])
    baked = stage.column().node("MicroDreamerBakeTexture", id=22, colour=KEY, mesh=mesh["mesh"], field=clean["field"])
    links = {"condition": about["condition"], "plan": plan["plan"]}
    refined = stage.column().node("MicroDreamerRefineTexture", id=23, colour=KEY, mesh=baked["mesh"], **links)
    stage.line()
    shown = graph.subgraph("Four views of each", {"baked": baked["mesh"], "refined": refined["mesh"]})
    column = shown.stage("", "")
    films = {
        name: column.node("MicroDreamerTurntable", id=42 + i, mesh=shown[name], frames=4, size=256)["images"]
        for i, name in enumerate(("baked", "refined"))
    }
    shown = shown.fold(stage, 57, films)
    stage.column().node("PreviewImage", id=40, width=250, height=290, title="Baked texture", images=baked["texture"])
    stage.column().node("PreviewImage", id=41, width=250, height=290, title="Refined texture", images=refined["texture"])
    stage = graph.stage("4  Result", GREEN)
    files = graph.subgraph("Save as glb and obj", {"mesh": refined["mesh"]})
    column, prefix = files.stage("", ""), {"filename_prefix": "microdreamer/textured"}
    glb = column.node("MicroDreamerSaveMesh", id=24, mesh=files["mesh"], format="glb", **prefix)
    column.node("MicroDreamerSaveMesh", id=26, mesh=files["mesh"], format="obj", **prefix)
    saved = files.fold(stage, 58, {"path": glb["path"]})
    viewer(stage, 25, saved["path"], 400, 300)
    stage.column().node("PreviewImage", id=44, width=250, height=300, title="Baked", images=shown["baked"])
    stage.node("PreviewImage", id=45, width=250, height=300, title="Refined", images=shown["refined"])


def splat(graph):
    about = reference(graph)
    stage = graph.stage("2  The splat as it is", YELLOW)
    given = {"file": "samples/bird_rough.ply", "initialised": True, "model": about["model"]}
    old = stage.node("MicroDreamerFieldFromSplat", id=10, colour=KEY, **given)
    plan = plan_node(stage, preset=FINE, iterations=8, t2_start=0.7, t2_end=0.4)
    film = stage.node("MicroDreamerTurntable", id=11, field=old["field"])
    stage = graph.stage("3  Refine", PURPLE)
    field = generate(stage, 6, about, plan, field=old["field"])
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=field["field"])
    saved = save_and_turn(graph, stage, 52, field=clean["field"], name="refined")
    stage = graph.stage("4  Before and after", GREEN)
    save_film(stage, 13, film["images"], "before", "Before", 420)
    save_film(stage, 14, saved["images"], "after", "After", 420)


def resume(graph):
    about = reference(graph)
    stage = graph.stage("2  Plan and start", PURPLE)
    plan = plan_node(stage)
    ball = stage.node("MicroDreamerNewGaussians", id=6, model=about["model"])
    stage = graph.stage("3  First half: 2 passes", RED)
    start = stage.node("MicroDreamerLoopStart", id=7, width=250, colour=KEY, field=ball["field"], count=2)
    stage.column()
    learnt = one_iteration(graph, stage, 54, start["field"], about["condition"], plan["plan"])
    ends = {"flow": start["flow"], "field": learnt["field"]}
    end = stage.column().node("MicroDreamerLoopEnd", id=14, width=250, colour=KEY, **ends)
    stage.line().node("PreviewImage", id=13, width=250, height=300, title="Each pass", images=learnt["sheet"])
    stage.column()
    saved = stage.node(
        "MicroDreamerSaveState",
        id=15,
        colour=KEY,
        field=end["field"],
        filename_prefix="microdreamer/run",
        condition=about["condition"],
        plan=plan["plan"],
    )
    stage.column()
    loaded = stage.node("MicroDreamerLoadState", id=16, colour=KEY, file="linked path", path=saved["path"])
    stage = graph.stage("4  Second half", PURPLE, below=True)
    field = generate(stage, 18, about, plan, height=400, field=loaded["field"])
    stage.column()
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=field["field"])
    made = save_and_turn(graph, stage, 52, field=clean["field"], name="splat")
    save_film(stage.column(), 32, made["images"], "turntable", height=340, width=270)


def nerf(graph):
    about = reference(graph)
    stage = graph.stage("2  NeRF", PURPLE)
    plan = plan_node(stage, preset="embedded-nerf")
    start = stage.node("MicroDreamerNewNeRF", id=10, colour=KEY, size="small")
    run = generate(stage, 6, about, plan, height=330, field=start["field"])
    stage = graph.stage("3  Mesh and texture", BROWN)
    inner = graph.subgraph("Mesh of a NeRF", {"field": run["field"], "condition": about["condition"], "plan": plan["plan"]})
    mesh = inner.stage("", "").node("MicroDreamerExtractMesh", id=21, field=inner["field"])
    baked = inner.stage("", "").node("MicroDreamerBakeTexture", id=22, mesh=mesh["mesh"], field=inner["field"])
    links = {"condition": inner["condition"], "plan": inner["plan"]}
    refined = inner.stage("", "").node("MicroDreamerRefineTexture", id=23, mesh=baked["mesh"], **links)
    meshed = inner.fold(stage, 51, {"mesh": refined["mesh"]})
    saved = save_and_turn(graph, stage, 52, mesh=meshed["mesh"], name="nerf")
    viewer(stage, 25, saved["path"], 420, 300)
    stage = graph.stage("4  As Gaussians", YELLOW)
    gaussians = stage.node("MicroDreamerNeRFToGaussians", id=20, colour=KEY, field=run["field"])
    stage.node("MicroDreamerSaveSplat", id=26, field=gaussians["field"], filename_prefix="microdreamer/nerf")
    films = turns(graph, stage, 53, {"NeRF": run, "Gaussians": gaussians})
    stage.column()
    for i, (name, title) in enumerate({"NeRF": "The NeRF", "Gaussians": "Its Gaussians"}.items()):
        stage.node("PreviewImage", id=45 + i, width=300, height=300, title=title, images=films[name])
    save_film(stage.column(), 32, saved["images"], "nerf", height=420, width=300)


def sir_against_sds(graph):
    about = reference(graph)
    stage = graph.stage("2  One plan, one start", YELLOW)
    plan = plan_node(stage, iterations=10)
    ball = stage.node("MicroDreamerNewGaussians", id=10, model=about["model"])
    stage = graph.stage("3  Two ways, 768 evaluations each", PURPLE)
    sir = generate(stage, 6, about, plan, field=ball["field"], title="SIR: Generate, 10 iterations")
    given = {"field": ball["field"], "condition": about["condition"], "plan": plan["plan"], "steps": 96}
    more = {"width": 300, "height": 480, "colour": KEY, "title": "SDS Steps, 96 updates"}
    sds = stage.column().node("MicroDreamerSDSSteps", id=11, **more, **given)
    stage = graph.stage("4  Side by side", GREEN)
    films = turns(graph, stage, 53, {"SIR": sir, "SDS": sds})
    for i, (title, run) in enumerate({"What SIR cost": sir, "What SDS cost": sds}.items()):
        stage.node("PreviewAny", id=50 + i if i else 55, width=270, height=270, title=title, source=run["report"])
    stage.column()
    for i, title in enumerate(("SIR", "SDS")):
        stage.node("PreviewImage", id=45 + i, width=270, height=300, title=title, images=films[title])


def published(graph, checkpoint: str, preset: str, prompt: str = ""):
    """The whole job with a published model that takes a picture."""
    graph.intro()
    stage = graph.stage("1  Model and picture", BLUE)
    model, image = loader(stage, checkpoint), picture(stage)
    condition, _ = condition_on(stage, model, image, prompt)
    stage = graph.stage("2  Generate", PURPLE)
    plan = plan_node(stage, preset=preset)
    run = generate(stage, 6, condition, plan)
    stage = graph.stage("3  Mesh, texture, result", GREEN)
    mesh = mesh_and_texture(graph, stage, 51, run["field"], condition["condition"], plan["plan"])
    saved = save_and_turn(graph, stage, 52, mesh["mesh"], mesh["field"])
    viewer(stage, 25, saved["path"], 420, 300)
    save_film(stage.column(), 32, saved["images"], "turntable", width=280)


def stable_zero123(graph):
    published(graph, "stable_zero123.ckpt", "stable-zero123-gaussians")


def imagedream(graph):
    published(graph, "sd-v2.1-base-4view-ipmv.pt", "imagedream-gaussians", "a toy bird, 3d asset")


def mvdream(graph):
    graph.intro()
    stage = graph.stage("1  Model and prompt", BLUE)
    model = loader(stage, "sd-v2.1-base-4view.pt")
    condition = prompted(stage, 4, model, "a toy bird with a yellow beak, 3d asset", negative="")
    stage = graph.stage("2  Generate", PURPLE)
    preset = "mvdream-gaussians"
    plan = plan_node(stage, preset=preset, title="SIR Plan: 30 rounds, not 50", width=310, iterations=30)
    plan = options_node(stage, 8, plan, preset, title="SIR Plan Options: 20 steps, not 50", discretization=20)
    run = generate(stage.column(), 6, condition, plan)
    stage = graph.stage("3  Mesh, texture, result", GREEN)
    mesh = mesh_and_texture(graph, stage, 51, run["field"], condition["condition"], plan["plan"])
    saved = save_and_turn(graph, stage, 52, mesh["mesh"], mesh["field"])
    viewer(stage, 25, saved["path"], 420, 300)
    save_film(stage.column(), 32, saved["images"], "turntable", width=280)


def prompted(stage, id: int, model, prompt: str, negative: str, view_words: bool = False):
    """Condition on Prompt, large enough for its texts."""
    words = {"prompt": prompt, "negative": negative, "view_words": view_words}
    return stage.node("MicroDreamerConditionOnPrompt", id=id, width=320, height=300, model=model["model"], **words)


def native(graph):
    graph.intro()
    stage = graph.stage("A  A model of pictures", BLUE)
    file = "stable_zero123.ckpt"
    more = {"title": "Load Stable Zero123", "properties": models(file, "checkpoints")}
    loaded = stage.node("ImageOnlyCheckpointLoader", id=1, ckpt_name=file, **more)
    image = picture(stage)
    seen = {"vae": loaded["VAE"], "clip_vision": loaded["CLIP_VISION"]}
    stage.column()
    model = stage.node("MicroDreamerModelFromComfyUI", id=8, colour=KEY, model=loaded["MODEL"], **seen)
    condition, _ = condition_on(stage, model, image)
    plan = plan_node(stage.column(), preset="stable-zero123-gaussians")
    run = generate(stage.column(), 6, condition, plan)
    stage.column()
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=run["field"])
    saved = save_and_turn(graph, stage, 52, field=clean["field"], name="native_picture")
    save_film(stage.column(), 32, saved["images"], "native_picture", height=480, width=300)

    graph.next_row()
    stage = graph.stage("B  A model of words refines a splat", PURPLE)
    file = "v1-5-pruned-emaonly-fp16.safetensors"
    more = {"title": "Load Stable Diffusion", "properties": models(file, "checkpoints"), "width": 300}
    loaded = stage.node("CheckpointLoaderSimple", id=40, ckpt_name=file, **more)
    links = {"vae": loaded["VAE"], "clip": loaded["CLIP"]}
    model = stage.node("MicroDreamerModelFromComfyUI", id=41, colour=KEY, model=loaded["MODEL"], **links)
    words = {"negative": "ugly, blurry, low resolution", "view_words": True}
    condition = prompted(stage.column(), 42, model, "a photo of a wooden toy bird, white background", **words)
    given = {"file": "samples/bird_rough.ply", "initialised": True, "model": model["model"]}
    splat = stage.node("MicroDreamerFieldFromSplat", id=43, **given)
    numbers = {"iterations": 10, "t2_start": 0.5, "t2_end": 0.3, "guidance": 7.5}
    plan = plan_node(stage.column(), 44, preset="imagedream-gaussians", **numbers)
    run = generate(stage.column(), 45, condition, plan, height=440, field=splat["field"])
    stage.column()
    clean = stage.node("MicroDreamerCleanGaussians", id=46, field=run["field"])
    stage.node("MicroDreamerSaveSplat", id=47, field=clean["field"], filename_prefix="microdreamer/native_text")
    film = stage.node("MicroDreamerTurntable", id=48, field=clean["field"])
    save_film(stage.column(), 49, film["images"], "native_text", height=480, width=300)


def three_loaders(stage, files: dict[str, str], kind: str):
    """ComfyUI's loaders of a diffusion model, a text encoder of that kind and a VAE: nodes with MODEL, CLIP, VAE."""
    (unet, clip, vae), wide = files.items(), {"width": 330}
    return (
        stage.node("UNETLoader", id=1, unet_name=unet[0], weight_dtype="default", properties=models(*unet), **wide),
        stage.node("CLIPLoader", id=40, clip_name=clip[0], type=kind, device="default", properties=models(*clip), **wide),
        stage.node("VAELoader", id=41, vae_name=vae[0], properties=models(*vae), **wide),
    )


def refined_splat(graph, model, condition, name: str, preset: str, **numbers):
    """The rough splat, and below, in a new row, refined: two stages."""
    stage = graph.stage("2  A rough splat", YELLOW)
    given = {"file": "samples/bird_rough.ply", "initialised": True, "model": model["model"]}
    old = stage.node("MicroDreamerFieldFromSplat", id=10, **given)
    graph.next_row()
    stage = graph.stage("3  SIR refines it", PURPLE)
    plan = plan_node(stage, preset=preset, **numbers)
    run = generate(stage.column(), 6, condition, plan, height=440, field=old["field"])
    stage.column()
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=run["field"])
    saved = save_and_turn(graph, stage, 52, field=clean["field"], name=name)
    save_film(stage.column(), 32, saved["images"], name, height=480, width=300)
    return old


def any_checkpoint(graph):
    graph.intro()
    stage = graph.stage("1  Z-Image, or any other model", BLUE)
    files = {
        "z_image_turbo_bf16.safetensors": "diffusion_models",
        "qwen_3_4b.safetensors": "text_encoders",
        "ae.safetensors": "vae",
    }
    unet, clip, vae = three_loaders(stage, files, "lumina2")
    stage.column()
    shifted = stage.node("ModelSamplingAuraFlow", id=42, model=unet["MODEL"], shift=3.0)
    given = {"model": shifted["MODEL"], "vae": vae["VAE"], "clip": clip["CLIP"], "coupling": "grid"}
    model = stage.node("MicroDreamerModelFromComfyUI", id=43, colour=KEY, **given)
    condition = prompted(stage.column(), 4, model, "a photo of a wooden toy bird, white background", "", view_words=True)
    refined_splat(graph, model, condition, "any_checkpoint", "few-step", iterations=8, t2_start=0.7, t2_end=0.5)


def control_from_renders(graph):
    graph.intro()
    stage = graph.stage("1  Model, words, control network", BLUE)
    file, network = "v1-5-pruned-emaonly-fp16.safetensors", "control_v11f1p_sd15_depth_fp16.safetensors"
    more = {"properties": models(file, "checkpoints"), "width": 330}
    loaded = stage.node("CheckpointLoaderSimple", id=1, ckpt_name=file, **more)
    more = {"properties": models(network, "controlnet"), "width": 330}
    control = stage.node("ControlNetLoader", id=40, control_net_name=network, **more)
    given = {"model": loaded["MODEL"], "vae": loaded["VAE"], "clip": loaded["CLIP"], "coupling": "shared attention"}
    model = stage.node("MicroDreamerModelFromComfyUI", id=43, **given)
    stage.column()
    text, negative = "a photo of a wooden toy bird, white background", "ugly, blurry, low resolution"
    condition = prompted(stage, 42, model, text, negative, view_words=True)
    links = {"condition": condition["condition"], "control_net": control["CONTROL_NET"]}
    controlled = stage.column().node("MicroDreamerControlFromRenders", id=4, colour=KEY, hint="depth", strength=0.8, **links)
    numbers = {"iterations": 8, "t2_start": 0.7, "t2_end": 0.4, "guidance": 7.5}
    old = refined_splat(graph, model, controlled, "controlled", "imagedream-gaussians", **numbers)
    stage = graph.stage("4  What the network is shown", GREEN)
    rig = stage.node("MicroDreamerCameraLayout", id=44, views=4)
    seen = stage.node("MicroDreamerRenderViews", id=9, field=old["field"], cameras=rig["cameras"])
    stage.node("PreviewImage", id=45, width=270, height=290, title="Inverse depth", images=seen["inverse depth"])


def camera_words(graph):
    graph.intro()
    stage = graph.stage("1  Qwen-Image-Edit with camera angles", BLUE)
    files = {
        "qwen_image_edit_2511_fp8mixed.safetensors": "diffusion_models",
        "qwen_2.5_vl_7b_fp8_scaled.safetensors": "text_encoders",
        "qwen_image_vae.safetensors": "vae",
    }
    unet, clip, vae = three_loaders(stage, files, "qwen_image")
    stage.column()
    patched = unet
    loras = "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16", "qwen-image-edit-2511-multiple-angles-lora"
    for number, (file, title) in enumerate(zip(loras, ("Four steps", "Camera angles"), strict=True), 42):
        name = f"{file}.safetensors"
        more = {"properties": models(name, "loras"), "width": 330, "title": title}
        patched = stage.node(
            "LoraLoaderModelOnly", id=number, model=patched["MODEL"], lora_name=name, strength_model=1.0, **more
        )
    given = {"model": patched["MODEL"], "vae": vae["VAE"], "clip": clip["CLIP"]}
    model = stage.node("MicroDreamerModelFromComfyUI", id=44, **given)
    stage = graph.stage("2  A picture and words for each camera", YELLOW)
    image = picture(stage)
    shown = {"image": image["image"], "mask": image["mask"], "mask_shows": "auto"}
    cut_out = stage.node("MicroDreamerPrepareReference", id=3, model=model["model"], **shown)
    seen = {"image": cut_out["image"], "mask": cut_out["mask"], "elevation": 5.0}
    more = {"colour": KEY, "height": 340, "width": 280}
    condition = stage.column().node("MicroDreamerConditionForEditing", id=4, model=model["model"], **seen, **more)
    graph.next_row()
    stage = graph.stage("3  Cameras that words can say", PURPLE)
    plan = plan_node(stage, preset="few-step", iterations=8)
    plan = options_node(stage.column(), 8, plan, "few-step", poses="words")
    run = generate(stage.column(), 6, condition, plan, height=560)
    stage = graph.stage("4  Mesh, texture, result", GREEN)
    mesh = mesh_and_texture(graph, stage, 51, run["field"], condition["condition"], plan["plan"])
    saved = save_and_turn(graph, stage, 52, mesh["mesh"], mesh["field"], name="camera_words")
    viewer(stage, 25, saved["path"], 420, 300)
    save_film(stage.column(), 32, saved["images"], "camera_words", width=280)


def texture_plan(stage, preset: str, **numbers):
    """SIR Plan and its options for texels: the squared loss."""
    plan = plan_node(stage, preset=preset, t2_start=0.8, t2_end=0.3, **numbers)
    return options_node(stage.column(), 8, plan, preset, title="SIR Plan Options: squared loss", loss="l2")


def textured_mesh(graph, stage, id: int, field, transform, condition, plan, **numbers):
    """From a texture to its mesh, finished and in its own place, folded: a node with mesh and texture."""
    inner = graph.subgraph("Finish the texture", {"field": field, "transform": transform, "condition": condition, "plan": plan})
    mesh = inner.stage("", "").node("MicroDreamerExtractMesh", id=21, field=inner["field"])
    links = {"condition": inner["condition"], "plan": inner["plan"], "method": "project", "strength": 0.3, **numbers}
    refined = inner.stage("", "").node("MicroDreamerRefineTexture", id=23, mesh=mesh["mesh"], **links)
    back = inner.stage("", "").node("MicroDreamerUndoFit", id=27, mesh=refined["mesh"], transform=inner["transform"])
    return inner.fold(stage, id, {"mesh": back["mesh"], "texture": refined["texture"]})


def before_and_after(graph, stage, old, new, name: str):
    """A mesh saved and turning, and four views of it as it was."""
    saved = save_and_turn(graph, stage, 52, mesh=new, name=name)
    shown = graph.subgraph("Four views before", {"mesh": old})
    film = shown.stage("", "").node("MicroDreamerTurntable", id=42, mesh=shown["mesh"], frames=4, size=256)
    shown = shown.fold(stage, 57, {"images": film["images"]})
    stage.node("PreviewImage", id=44, width=270, height=280, title="Before", images=shown["images"])
    stage.column()
    viewer(stage, 25, saved["path"], 420, 260)
    save_film(stage.column(), 32, saved["images"], name, height=420, width=260)


def retexture(graph):
    about = reference(graph)
    stage = graph.stage("2  The mesh, its texture as a field", YELLOW)
    plan = texture_plan(stage, "embedded")
    links = {"condition": about["condition"], "plan": plan["plan"]}
    start = stage.node("MicroDreamerNewTexture", id=10, colour=KEY, file="samples/bird_clay.glb", **links)
    stage = graph.stage("3  New texture", PURPLE)
    run = generate(stage, 6, about, plan, height=640, field=start["field"])
    done = textured_mesh(graph, stage, 51, run["field"], start["transform"], about["condition"], plan["plan"], guidance=1.0)
    stage.node("PreviewImage", id=41, width=300, height=300, title="Texture", images=done["texture"])
    before_and_after(graph, graph.stage("4  Result", GREEN), start["mesh"], done["mesh"], "retextured")


def retexture_any(graph):
    graph.intro()
    stage = graph.stage("1  Any checkpoint, guided by depth", BLUE)
    files = {
        "ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors",
        "control_net_name": "control_v11f1p_sd15_depth_fp16.safetensors",
    }
    more = {"title": "Load Checkpoint", "properties": models(files["ckpt_name"], "checkpoints"), "width": 320}
    loaded = stage.node("CheckpointLoaderSimple", id=1, ckpt_name=files["ckpt_name"], **more)
    more = {"properties": models(files["control_net_name"], "controlnet"), "width": 320}
    control = stage.node("ControlNetLoader", id=2, control_net_name=files["control_net_name"], **more)
    links = {"vae": loaded["VAE"], "clip": loaded["CLIP"]}
    model = stage.node("MicroDreamerModelFromComfyUI", id=3, model=loaded["MODEL"], **links)
    stage.column()
    words = {"negative": "ugly, blurry, shadows, text", "view_words": True}
    prompt = prompted(stage, 4, model, "a toy bird of glazed ceramic, blue flowers on white, white background", **words)
    given = {"condition": prompt["condition"], "control_net": control["CONTROL_NET"], "hint": "depth"}
    hinted = stage.node("MicroDreamerControlFromRenders", id=7, colour=KEY, **given)
    stage = graph.stage("2  The mesh, its texture as a field", YELLOW)
    preset = "imagedream-gaussians"
    plan = texture_plan(stage, preset, iterations=20, guidance=7.5)
    start = stage.node("MicroDreamerNewTexture", id=10, colour=KEY, file="samples/bird_clay.glb", start="noise")

    graph.next_row()
    stage = graph.stage("3  New texture", PURPLE)
    run = generate(stage, 6, hinted, plan, height=420, field=start["field"])
    links = (start["transform"], hinted["condition"], plan["plan"])
    done = textured_mesh(graph, stage.column(), 51, run["field"], *links, guidance=7.5)
    stage.node("PreviewImage", id=41, width=300, height=300, title="Texture", images=done["texture"])
    before_and_after(graph, graph.stage("4  Result", GREEN), start["mesh"], done["mesh"], "retextured")


def recolour(graph):
    about = reference(graph)
    stage = graph.stage("2  The splat, its shape kept", YELLOW)
    given = {"file": "samples/bird_rough.ply", "initialised": True, "model": about["model"], "change": "appearance"}
    old = stage.node("MicroDreamerFieldFromSplat", id=10, colour=KEY, **given)
    plan = plan_node(stage, preset=FINE, iterations=8, t2_start=0.5, t2_end=0.2)
    film = stage.node("MicroDreamerTurntable", id=11, field=old["field"])
    stage = graph.stage("3  Refine", PURPLE)
    field = generate(stage, 6, about, plan, field=old["field"])
    saved = save_and_turn(graph, stage, 52, field=field["field"], name="recoloured")
    stage = graph.stage("4  Before and after", GREEN)
    save_film(stage, 13, film["images"], "before", "Before", 420)
    save_film(stage, 14, saved["images"], "recoloured", "After", 420)


def refine_triposplat(graph):
    about = reference(graph)
    stage = graph.stage("2  TripoSplat makes a splat", YELLOW)
    image = next(node for node in graph.nodes if node.id == 2)
    made = triposplat(graph, stage, image)
    native = stage.node("TransformSplat", id=61, title="Turn it until it faces the front", splat=made["splat"])
    given = {"splat": native["splat"], "initialised": True, "model": about["model"]}
    old = stage.node("MicroDreamerFieldFromNativeSplat", id=10, colour=KEY, **given)
    stage = graph.stage("3  SIR refines it", PURPLE)
    plan = plan_node(stage, preset=FINE, iterations=8, t2_start=0.5, t2_end=0.3)
    field = generate(stage, 6, about, plan, field=old["field"])
    stage = graph.stage("4  Before and after", GREEN)
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=field["field"])
    saved = save_and_turn(graph, stage, 52, field=clean["field"], name="triposplat")
    films = turns(graph, stage, 53, {"before": old, "after": clean})
    save_film(stage, 32, saved["images"], "triposplat", height=400, width=250)
    stage.column()
    for i, name in enumerate(("before", "after")):
        stage.node("PreviewImage", id=45 + i, width=250, height=300, title=name.title(), images=films[name])


def triposplat(graph, stage, image):
    """ComfyUI's own nodes from the picture to its SPLAT, folded."""
    inner = graph.subgraph("TripoSplat", {"image": image["image"], "mask": image["mask"]})
    column = inner.stage("", "")

    def load(type: str, id: int, widget: str, file: str, folder: str, **more):
        return column.node(type, id=id, width=330, properties=models(file, folder), **{widget: file}, **more)

    unet = load("UNETLoader", 11, "unet_name", "triposplat_fp16.safetensors", "diffusion_models", weight_dtype="default")
    seen = load("CLIPVisionLoader", 12, "clip_name", "dino_v3_vit_h.safetensors", "clip_vision")
    vae = load("VAELoader", 13, "vae_name", "flux2-vae.safetensors", "vae")
    decoder = load("VAELoader", 14, "vae_name", "triposplat_vae_decoder_fp16.safetensors", "vae")
    column = inner.stage("", "")
    cropped = column.node("TripoSplatPreprocessImage", id=15, image=inner["image"], mask=inner["mask"])
    given = {"clip_vision": seen["CLIP_VISION"], "vae": vae["VAE"], "image": cropped["image"]}
    conditioning = inner.stage("", "").node("TripoSplatConditioning", id=16, **given)
    numbers = {"seed": 0, "steps": 20, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "simple", "denoise": 1.0}
    links = {"positive": conditioning["positive"], "negative": conditioning["negative"], "latent_image": conditioning["latent"]}
    latent = inner.stage("", "").node("KSampler", id=17, model=unet["MODEL"], **links, **numbers)
    made = inner.stage("", "").node(
        "VAEDecodeTripoSplat", id=18, samples=latent["LATENT"], vae=decoder["VAE"], num_gaussians=32768
    )
    return inner.fold(stage, 56, {"splat": made["splat"]})


def refine_mesh(graph):
    about = reference(graph)
    image = next(node for node in graph.nodes if node.id == 2)
    stage = graph.stage("2  Hunyuan3D makes a mesh", YELLOW)
    made = hunyuan(graph, stage, image)
    given = {"mesh": made["mesh"], "initialised": True, "model": about["model"]}
    old = stage.node("MicroDreamerFieldFromMesh", id=10, colour=KEY, **given)
    stage = graph.stage("3  SIR refines it", PURPLE)
    plan = plan_node(stage, preset=FINE, iterations=8, t2_start=0.7, t2_end=0.3)
    field = generate(stage, 6, about, plan, field=old["field"])
    stage = graph.stage("4  Mesh, texture, result", GREEN)
    mesh = mesh_and_texture(graph, stage, 51, field["field"], about["condition"], plan["plan"])
    saved = save_and_turn(graph, stage, 52, mesh["mesh"], mesh["field"])
    viewer(stage, 25, saved["path"], 420, 300)
    save_film(stage.column(), 32, saved["images"], "turntable", width=280)


def hunyuan(graph, stage, image):
    """ComfyUI's own nodes from the picture to its MESH, folded."""
    inner = graph.subgraph("Hunyuan3D 2.1", {"image": image["image"]})
    file = "hunyuan_3d_v2.1.safetensors"
    column = inner.stage("", "")
    loaded = column.node("ImageOnlyCheckpointLoader", id=11, width=330, ckpt_name=file, properties=models(file, "checkpoints"))
    empty = column.node("EmptyLatentHunyuan3Dv2", id=12, resolution=4096, batch_size=1)
    column = inner.stage("", "")
    seen = column.node("CLIPVisionEncode", id=13, clip_vision=loaded["CLIP_VISION"], image=inner["image"], crop="center")
    shifted = column.node("ModelSamplingAuraFlow", id=14, model=loaded["MODEL"], shift=1.0)
    conditioning = inner.stage("", "").node("Hunyuan3Dv2Conditioning", id=15, clip_vision_output=seen["CLIP_VISION_OUTPUT"])
    numbers = {"seed": 0, "steps": 30, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"positive": conditioning["positive"], "negative": conditioning["negative"], "latent_image": empty["LATENT"]}
    latent = inner.stage("", "").node("KSampler", id=16, model=shifted["MODEL"], **links, **numbers)
    column = inner.stage("", "")
    voxel = column.node("VAEDecodeHunyuan3D", id=17, samples=latent["LATENT"], vae=loaded["VAE"])
    column = inner.stage("", "")
    mesh = column.node("VoxelToMesh", id=18, voxel=voxel["VOXEL"], algorithm="surface net", threshold=0.6)
    return inner.fold(stage, 56, {"mesh": mesh["MESH"]})


GRAPHS = {
    "00_hello": hello,
    "01_image_to_3d_stages": stages,
    "02_swap_the_sampler": samplers,
    "03_texture_and_mesh": texture,
    "04_refine_existing_splat": splat,
    "05_resume": resume,
    "06_nerf": nerf,
    "07_sir_against_sds": sir_against_sds,
    "10_stable_zero123": stable_zero123,
    "11_imagedream": imagedream,
    "12_mvdream_text": mvdream,
    "13_native_model": native,
    "14_any_checkpoint_refines_a_splat": any_checkpoint,
    "15_control_from_renders": control_from_renders,
    "16_camera_words": camera_words,
    "17_retexture_a_mesh": retexture,
    "18_retexture_any_checkpoint": retexture_any,
    "19_refine_a_splat": recolour,
    "20_refine_triposplat": refine_triposplat,
    "21_refine_trellis_or_hunyuan_mesh": refine_mesh,
}
"""By the names that API clients know: workflows/api/NAME.json."""

TITLES = {
    "00_hello": "00 Hello, one picture to 3D",
    "01_image_to_3d_stages": "01 Image to 3D, every stage a node",
    "02_swap_the_sampler": "02 Swap the sampler",
    "03_texture_and_mesh": "03 Texture and mesh",
    "04_refine_existing_splat": "04 Refine a splat of your own",
    "05_resume": "05 Stop and go on",
    "06_nerf": "06 NeRF in place of Gaussians",
    "07_sir_against_sds": "07 SIR against SDS",
    "10_stable_zero123": "10 Stable Zero123 (8.6 GB checkpoint)",
    "11_imagedream": "11 ImageDream (8.1 GB checkpoint)",
    "12_mvdream_text": "12 MVDream, words to 3D (5.2 GB checkpoint)",
    "13_native_model": "13 Models of ComfyUI (8.6 GB checkpoint)",
    "14_any_checkpoint_refines_a_splat": "14 Any checkpoint refines a splat (Z-Image, 21 GB)",
    "15_control_from_renders": "15 Control from renders (2.9 GB)",
    "16_camera_words": "16 Camera words, picture to 3D (Qwen-Image-Edit, 32 GB)",
    "17_retexture_a_mesh": "17 Retexture a mesh",
    "18_retexture_any_checkpoint": "18 Retexture a mesh with any checkpoint (2.9 GB)",
    "19_refine_a_splat": "19 Refine a splat, its shape kept",
    "20_refine_triposplat": "20 Refine a TripoSplat (ComfyUI 0.33, 4 GB)",
    "21_refine_trellis_or_hunyuan_mesh": "21 Refine a Hunyuan3D or TRELLIS mesh (4.9 GB)",
}
"""What users read in the list of templates, which shows the names of the files: workflows/TITLE.json and TITLE.jpg."""


def blueprint_mesh(graph):
    mesh_and_texture(graph, graph.stage("", ""), 1, "MD_FIELD", "MD_CONDITION", "MD_PLAN")


def blueprint_iteration(graph):
    one_iteration(graph, graph.stage("", ""), 1, "MD_FIELD", "MD_CONDITION", "MD_PLAN")


BLUEPRINT_GRAPHS = {
    "MicroDreamer Mesh and texture": (
        blueprint_mesh,
        "Cleans a field of Gaussians and makes a mesh of it, whose texture is baked and refined.",
    ),
    "MicroDreamer One iteration": (
        blueprint_iteration,
        "One iteration of SIR: sample cameras, render views, add noise, denoise, reconstruct. For a loop's body.",
    ),
}
"""Subgraphs for the list of nodes, subgraphs/NAME.json, with what they do."""
