"""The shipped workflows, each declared once; ``workflows.py`` writes them as files that hosts open.

The text of a stage's note stands in ``workflow_notes``, under the stage's title.

Numbers given as ``id`` are what tests and API clients address nodes by: keep them.
"""

from __future__ import annotations

import json
from pathlib import Path

PRESETS = json.loads((Path(__file__).parents[1] / "web" / "presets.js").read_text(encoding="utf-8").partition("default ")[2])
"""What the widgets of the plan's nodes are in each preset, as the frontend fills them in."""
BLUE, GREEN, PURPLE, BROWN, RED, YELLOW = "#3f789e", "#4f8a5b", "#7a5c99", "#8f5a35", "#a85050", "#a5822d"
KEY = "#2e4a62"
"""Colour of the node that a graph is about."""
SUMMARISED = 380
"""Height of a node that shows its plan in words below the widgets."""
LOWER = 150
"""Every second node of a long chain stands lower, so that links which pass it by are seen."""


def reference(graph, checkpoint: str = "embedded", prompt: str = ""):
    """Model and picture up to the condition: (model, condition); with a prompt, the model takes both."""
    stage = graph.stage("1  Model and picture", BLUE)
    model = stage.node("MicroDreamerLoadModel", id=1, checkpoint=checkpoint)
    return model, conditioned(stage, model, prompt)


def conditioned(stage, model, prompt: str = ""):
    """Picture and condition; the picture stands below the model that the stage has already."""
    picture = stage.node("MicroDreamerExamplePicture", id=2, picture="bird")
    cut_out = stage.column().node(
        "MicroDreamerPrepareReference",
        id=3,
        model=model["model"],
        image=picture["image"],
        mask=picture["mask"],
        mask_shows="auto",
    )
    inputs = {"model": model["model"], "image": cut_out["image"], "mask": cut_out["mask"], "elevation": 5.0}
    stage.column()
    if prompt:
        condition = stage.node(
            "MicroDreamerConditionOnBoth", id=4, width=340, height=320, prompt=prompt, view_words=False, **inputs
        )
    else:
        condition = stage.node("MicroDreamerConditionOnImage", id=4, **inputs)
    stage.node("PreviewImage", id=30, width=270, height=270, title="The object, cut out", images=cut_out["image"])
    return condition


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


def mesh_stages(graph, field, condition, plan):
    """From Gaussians to the saved, previewed mesh, with the ids that 00 and 01 share."""
    stage = graph.stage("3  Mesh and texture", BROWN)
    clean = stage.node("MicroDreamerCleanGaussians", id=20, width=210, field=field)
    mesh = stage.column(drop=LOWER).node("MicroDreamerExtractMesh", id=21, field=clean["field"])
    baked = stage.column().node("MicroDreamerBakeTexture", id=22, mesh=mesh["mesh"], field=clean["field"])
    refined = stage.column(drop=LOWER).node(
        "MicroDreamerRefineTexture", id=23, mesh=baked["mesh"], condition=condition["condition"], plan=plan["plan"]
    )
    stage = graph.stage("4  Results", GREEN)
    saved = stage.node("MicroDreamerSaveMesh", id=24, mesh=refined["mesh"], filename_prefix="microdreamer/mesh", format="glb")
    stage.node("MicroDreamerSaveSplat", id=26, field=clean["field"], filename_prefix="microdreamer/splat")
    film = stage.node("MicroDreamerTurntable", id=31, mesh=refined["mesh"])
    stage.column().node("Preview3D", id=25, title="Preview 3D", width=420, height=480, model_file=saved["path"])
    save_film(stage.column(), 32, film["images"], "turntable")


def save_film(stage, id: int, images, name: str, title: str = ""):
    """The host's animated WEBP, which shows itself in the graph."""
    stage.node(
        "SaveAnimatedWEBP",
        id=id,
        width=400,
        height=560,
        title=title or "Film",
        images=images,
        filename_prefix=f"microdreamer/{name}",
        fps=16.0,
        lossless=False,
        quality=90,
        method="default",
    )


def loop_stages(graph, title: str, ball, condition, plan, count, stops: bool):
    """Algorithm 1 as a loop of its stages, with the ids that 01 and 05 share: the end of the loop."""
    told = {"condition": condition["condition"]}
    stage = graph.stage(title, RED)
    start = stage.node("MicroDreamerLoopStart", id=7, width=210, colour=KEY, field=ball["field"], count=count)
    rig = stage.column().node("MicroDreamerSampleCameras", id=8, width=220, field=start["field"], plan=plan["plan"], **told)
    seen = {"cameras": rig["cameras"]}
    views = stage.column(drop=LOWER).node("MicroDreamerRenderViews", id=9, width=220, field=start["field"], **seen)
    noised = stage.column().node("MicroDreamerHybridForward", id=10, width=220, images=views["images"], **seen, **told)
    refined = stage.column(drop=LOWER).node("MicroDreamerDDIMRefine", id=11, width=220, latent=noised["latent"], **seen, **told)
    learnt = stage.column().node(
        "MicroDreamerReconstructSteps", id=12, field=start["field"], images=refined["images"], **seen, **told
    )
    end = stage.column().node(
        "MicroDreamerLoopEnd",
        id=14,
        width=340,
        colour=KEY,
        flow=start["flow"],
        field=learnt["field"],
        **({"stop": learnt["finished"]} if stops else {}),
    )
    stage.node("PreviewImage", id=13, width=340, height=320, title="Each pass: renders above targets", images=learnt["sheet"])
    return end


def generate_stage(graph, condition, options: dict | None = None, preset: str = "embedded", **numbers):
    """Plan and Generate with its sheet: (plan, field); ``options`` are those of SIR Plan Options between the two."""
    stage = graph.stage("2  Generate", PURPLE)
    plan = plan_node(stage, preset=preset, **numbers)
    if options:
        plan = options_node(stage.column(), 8, plan, preset, **options)
    run = generate(stage.column(), 6, condition, plan)
    stage.column().node("PreviewImage", id=7, width=400, height=420, title="Renders above corrections", images=run["sheet"])
    return plan, run["field"]


def generate(stage, id: int, condition, plan, width: int = 400, height: int = 420, **inputs):
    """Generate, large enough for its live sheet."""
    given = {"condition": condition["condition"], "plan": plan["plan"], **inputs}
    return stage.node("MicroDreamerGenerate", id=id, width=width, height=height, colour=KEY, **given)


def hello(graph):
    graph.intro()
    _, condition = reference(graph)
    plan, field = generate_stage(graph, condition)
    mesh_stages(graph, field, condition, plan)


def stages(graph):
    graph.intro()
    model, condition = reference(graph)
    stage = graph.stage("2  Plan and start", PURPLE)
    plan = plan_node(stage)
    ball = stage.node("MicroDreamerNewGaussians", id=6, model=model["model"])
    end = loop_stages(graph, "Loop: render, noise, sample back, reconstruct", ball, condition, plan, plan["passes"], stops=True)
    mesh_stages(graph, end["field"], condition, plan)


def samplers(graph):
    graph.intro()
    _, condition = reference(graph)
    stage = graph.stage("2  Plan and samplers", YELLOW)
    plan = plan_node(stage, iterations=8)
    ancestral = stage.node("SamplerEulerAncestral", id=10, eta=1.0, s_noise=1.0)
    multistep = stage.node("KSamplerSelect", id=11, sampler_name="dpmpp_2m")
    sigmas = stage.node("KarrasScheduler", id=12, steps=10, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0)
    stage = graph.stage("3  Three runs", PURPLE)
    given = {"A  DDIM of the plan": {}, "B  Euler ancestral": {"sampler": ancestral["SAMPLER"]}}
    given["C  DPM++ 2M, Karras"] = {"sampler": multistep["SAMPLER"], "sigmas": sigmas["SIGMAS"]}
    runs = [
        generate(stage, 20 + i, condition, plan, 340, 330, title=f"Generate {title}", **inputs)
        for i, (title, inputs) in enumerate(given.items())
    ]
    stage = graph.stage("4  Side by side", GREEN)
    for i, run in enumerate(runs):
        stage.node("PreviewImage", id=40 + i, width=380, height=330, title=f"Sheet {'ABC'[i]}", images=run["sheet"])
    stage.column()
    films = [
        stage.node("MicroDreamerTurntable", id=43 + i, field=run["field"], height=330, frames=8, size=192)
        for i, run in enumerate(runs)
    ]
    stage.column()
    for i, film in enumerate(films):
        stage.node("PreviewImage", id=46 + i, width=380, height=330, title=f"Turn {'ABC'[i]}", images=film["images"])


def texture(graph):
    graph.intro()
    model, condition = reference(graph)
    stage = graph.stage("2  Gaussians", PURPLE)
    splat = stage.node(
        "MicroDreamerFieldFromSplat", id=10, file="samples/bird_rough.ply", initialised=True, model=model["model"]
    )
    plan = plan_node(stage)
    clean = stage.column().node("MicroDreamerCleanGaussians", id=20, width=210, field=splat["field"])
    stage = graph.stage("3  Mesh and textures", BROWN)
    mesh = stage.node("MicroDreamerExtractMesh", id=21, field=clean["field"])
    stage.column()
    baked = stage.node("MicroDreamerBakeTexture", id=22, width=340, colour=KEY, mesh=mesh["mesh"], field=clean["field"])
    stage.column()
    refined = stage.node(
        "MicroDreamerRefineTexture",
        id=23,
        width=340,
        colour=KEY,
        mesh=baked["mesh"],
        condition=condition["condition"],
        plan=plan["plan"],
    )
    stage.node("PreviewImage", id=40, height=340, title="Baked texture", images=baked["texture"])
    stage.column().node("PreviewImage", id=41, width=340, height=340, title="Refined texture", images=refined["texture"])
    before = stage.node("MicroDreamerTurntable", id=42, mesh=baked["mesh"], frames=4, size=256, title="Turntable, baked")
    after = stage.node("MicroDreamerTurntable", id=43, mesh=refined["mesh"], frames=4, size=256, title="Turntable, refined")
    stage = graph.stage("4  Results", GREEN)
    glb = stage.node("MicroDreamerSaveMesh", id=24, mesh=refined["mesh"], filename_prefix="microdreamer/textured", format="glb")
    stage.node("MicroDreamerSaveMesh", id=26, mesh=refined["mesh"], filename_prefix="microdreamer/textured", format="obj")
    stage.column()
    stage.node("PreviewImage", id=44, width=400, height=300, title="Baked", images=before["images"])
    stage.node("PreviewImage", id=45, width=400, height=300, title="Refined", images=after["images"])
    stage.column().node("Preview3D", id=25, title="Preview 3D", width=440, height=600, model_file=glb["path"])


def splat(graph):
    graph.intro()
    model, condition = reference(graph)
    stage = graph.stage("2  The splat as it is", YELLOW)
    old = stage.node(
        "MicroDreamerFieldFromSplat",
        id=10,
        colour=KEY,
        file="samples/bird_rough.ply",
        initialised=True,
        model=model["model"],
    )
    plan = plan_node(stage, iterations=8, t2_start=0.7, t2_end=0.4)
    film = stage.column().node("MicroDreamerTurntable", id=11, field=old["field"])
    stage = graph.stage("3  Refine", PURPLE)
    field = generate(stage, 6, condition, plan, field=old["field"])
    stage = graph.stage("4  Before and after", GREEN)
    clean = stage.node("MicroDreamerCleanGaussians", id=20, width=270, field=field["field"])
    stage.column().node("MicroDreamerSaveSplat", id=26, field=clean["field"], filename_prefix="microdreamer/refined")
    new = stage.node("MicroDreamerTurntable", id=12, field=clean["field"])
    save_film(stage.column(), 13, film["images"], "before", "Before")
    save_film(stage.column(), 14, new["images"], "after", "After")


def resume(graph):
    graph.intro()
    model, condition = reference(graph)
    stage = graph.stage("2  Plan and start", PURPLE)
    plan = plan_node(stage)
    ball = stage.node("MicroDreamerNewGaussians", id=6, model=model["model"])
    end = loop_stages(graph, "First half: 2 passes of the loop", ball, condition, plan, 2, stops=False)
    stage = graph.stage("3  Save, load", YELLOW)
    saved = stage.node(
        "MicroDreamerSaveState",
        id=15,
        colour=KEY,
        field=end["field"],
        filename_prefix="microdreamer/run",
        condition=condition["condition"],
        plan=plan["plan"],
    )
    stage.column()
    loaded = stage.node("MicroDreamerLoadState", id=16, colour=KEY, file="linked path", path=saved["path"])
    stage = graph.stage("4  Second half", PURPLE)
    field = generate(stage, 18, condition, plan, field=loaded["field"])
    stage = graph.stage("5  Result", GREEN)
    clean = stage.node("MicroDreamerCleanGaussians", id=20, width=300, field=field["field"])
    stage.column().node("MicroDreamerSaveSplat", id=26, field=clean["field"], filename_prefix="microdreamer/splat")
    film = stage.node("MicroDreamerTurntable", id=31, field=clean["field"])
    save_film(stage.column(), 32, film["images"], "turntable")


def nerf(graph):
    graph.intro()
    _, condition = reference(graph)
    stage = graph.stage("2  NeRF", PURPLE)
    plan = plan_node(stage, preset="embedded-nerf")
    start = stage.node("MicroDreamerNewNeRF", id=10, colour=KEY, size="small")
    run = generate(stage.column(), 6, condition, plan, field=start["field"])
    stage.column().node("PreviewImage", id=7, width=400, height=420, title="Renders above corrections", images=run["sheet"])
    stage = graph.stage("3  Mesh and texture", BROWN)
    mesh = stage.node("MicroDreamerExtractMesh", id=21, field=run["field"])
    baked = stage.column(drop=LOWER).node("MicroDreamerBakeTexture", id=22, mesh=mesh["mesh"], field=run["field"])
    refined = stage.column().node(
        "MicroDreamerRefineTexture", id=23, mesh=baked["mesh"], condition=condition["condition"], plan=plan["plan"]
    )
    stage = graph.stage("4  As Gaussians", YELLOW)
    splat = stage.node("MicroDreamerNeRFToGaussians", id=20, colour=KEY, field=run["field"])
    turns(stage, {"The NeRF": run, "Its Gaussians": splat})
    stage.node("MicroDreamerSaveSplat", id=26, field=splat["field"], filename_prefix="microdreamer/nerf")
    stage = graph.stage("5  Results", GREEN)
    saved = stage.node("MicroDreamerSaveMesh", id=24, mesh=refined["mesh"], filename_prefix="microdreamer/nerf", format="glb")
    film = stage.node("MicroDreamerTurntable", id=31, mesh=refined["mesh"])
    stage.column().node("Preview3D", id=25, title="Preview 3D", width=420, height=480, model_file=saved["path"])
    save_film(stage.column(), 32, film["images"], "nerf")


def turns(stage, fields: dict):
    """Eight steps of a turn around each node's field, below each other under these titles."""
    stage.column()
    films = [
        stage.node("MicroDreamerTurntable", id=40 + i, field=node["field"], height=330, frames=8, size=192)
        for i, node in enumerate(fields.values())
    ]
    stage.column()
    for i, (title, film) in enumerate(zip(fields, films, strict=True)):
        stage.node("PreviewImage", id=45 + i, width=380, height=330, title=title, images=film["images"])


def sir_against_sds(graph):
    graph.intro()
    model, condition = reference(graph)
    stage = graph.stage("2  One plan, one start", YELLOW)
    plan = plan_node(stage, iterations=10)
    ball = stage.node("MicroDreamerNewGaussians", id=10, model=model["model"])
    stage = graph.stage("3  Two ways, 768 evaluations each", PURPLE)
    sir = generate(stage, 6, condition, plan, 380, 420, field=ball["field"], title="SIR: Generate, 10 iterations")
    sds = stage.node(
        "MicroDreamerSDSSteps",
        id=11,
        width=380,
        height=520,
        colour=KEY,
        title="SDS Steps, 96 updates",
        field=ball["field"],
        condition=condition["condition"],
        plan=plan["plan"],
        steps=96,
    )
    stage = graph.stage("4  Side by side", GREEN)
    for i, (title, run) in enumerate({"What SIR cost": sir, "What SDS cost": sds}.items()):
        stage.node("PreviewAny", id=50 + i, width=340, height=330, title=title, source=run["report"])
    turns(stage, {"SIR": sir, "SDS": sds})


def stable_zero123(graph):
    graph.intro()
    _, condition = reference(graph, "stable_zero123.ckpt")
    plan, field = generate_stage(graph, condition, preset="stable-zero123-gaussians")
    mesh_stages(graph, field, condition, plan)


def imagedream(graph):
    graph.intro()
    _, condition = reference(graph, "sd-v2.1-base-4view-ipmv.pt", "a toy bird, 3d asset")
    plan, field = generate_stage(graph, condition, preset="imagedream-gaussians")
    mesh_stages(graph, field, condition, plan)


def mvdream(graph):
    graph.intro()
    stage = graph.stage("1  Model and prompt", BLUE)
    model = stage.node("MicroDreamerLoadModel", id=1, checkpoint="sd-v2.1-base-4view.pt")
    condition = prompted(stage.column(), 4, model, "a toy bird with a yellow beak, 3d asset", negative="")
    shorter = {"title": "SIR Plan Options: 20 steps, not 50", "width": 340, "discretization": 20}
    rounds = {"title": "SIR Plan: 30 rounds, not 50", "width": 300, "iterations": 30}
    plan, field = generate_stage(graph, condition, shorter, preset="mvdream-gaussians", **rounds)
    mesh_stages(graph, field, condition, plan)


def prompted(stage, id: int, model, prompt: str, negative: str, view_words: bool = False):
    """Condition on Prompt, large enough for its texts."""
    return stage.node(
        "MicroDreamerConditionOnPrompt",
        id=id,
        width=360,
        height=300,
        model=model["model"],
        prompt=prompt,
        negative=negative,
        view_words=view_words,
    )


def native(graph):
    graph.intro()
    stage = graph.stage("A1  A native picture model", BLUE)
    loaded = stage.node("ImageOnlyCheckpointLoader", id=1, title="Load Stable Zero123", ckpt_name="stable_zero123.ckpt")
    stage = graph.stage("A2  Model and picture", BLUE)
    seen = {"vae": loaded["VAE"], "clip_vision": loaded["CLIP_VISION"]}
    model = stage.node("MicroDreamerModelFromComfyUI", id=8, colour=KEY, model=loaded["MODEL"], **seen)
    condition = conditioned(stage, model)
    stage = graph.stage("A3  Generate", PURPLE)
    plan = plan_node(stage, preset="stable-zero123-gaussians")
    run = generate(stage.column(), 6, condition, plan)
    stage = graph.stage("A4  Results", GREEN)
    clean = stage.node("MicroDreamerCleanGaussians", id=20, field=run["field"])
    stage.column().node("MicroDreamerSaveSplat", id=26, field=clean["field"], filename_prefix="microdreamer/native_picture")
    film = stage.node("MicroDreamerTurntable", id=31, field=clean["field"])
    save_film(stage.column(), 32, film["images"], "native_picture")

    graph.next_row()
    stage = graph.stage("B1  A native text model", BLUE)
    loaded = stage.node(
        "CheckpointLoaderSimple", id=40, title="Load Stable Diffusion", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors"
    )
    stage = graph.stage("B2  Model, prompt and splat", BLUE)
    told = {"vae": loaded["VAE"], "clip": loaded["CLIP"]}
    model = stage.node("MicroDreamerModelFromComfyUI", id=41, colour=KEY, model=loaded["MODEL"], **told)
    words = {"negative": "ugly, blurry, low resolution", "view_words": True}
    condition = prompted(stage.column(), 42, model, "a photo of a wooden toy bird, white background", **words)
    splat = stage.node(
        "MicroDreamerFieldFromSplat", id=43, file="samples/bird_rough.ply", initialised=True, model=model["model"]
    )
    stage = graph.stage("B3  Refine with words", PURPLE)
    plan = plan_node(stage, 44, preset="imagedream-gaussians", iterations=10, t2_start=0.5, t2_end=0.3, guidance=7.5)
    run = generate(stage.column(), 45, condition, plan, field=splat["field"])
    stage = graph.stage("B4  Results", GREEN)
    clean = stage.node("MicroDreamerCleanGaussians", id=46, field=run["field"])
    stage.column().node("MicroDreamerSaveSplat", id=47, field=clean["field"], filename_prefix="microdreamer/native_text")
    film = stage.node("MicroDreamerTurntable", id=48, field=clean["field"])
    save_film(stage.column(), 49, film["images"], "native_text")


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
}
