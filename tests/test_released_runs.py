"""Whole runs on tiny random checkpoints of every published family: command line, resume, and the nodes on a stand-in host."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import host_stand_in as stand_in
from helpers import tiny_checkpoints as tiny
from microdreamer_core.cli import main as cli
from microdreamer_core.diffusion.mvdream import NEGATIVE
from microdreamer_core.errors import InputError
from microdreamer_core.io.mesh_files import read_mesh
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.job import outputs as job_files
from microdreamer_core.job import run as job
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.sir import presets
from microdreamer_core.sir.step import Step

PLANS = {"mvdream": "mvdream-gaussians", "imagedream": "imagedream-gaussians", "zero123": "stable-zero123-gaussians"}
LAYOUTS = {"mvdream": "folder", "imagedream": "safetensors", "zero123": "lightning"}
TINY = ["--iterations", "1", "--seed", "3", "--quiet"]


REFINEMENTS = {}
"""Family -> (settings, reference view) of its job's texture refinement."""


@pytest.fixture(scope="module", autouse=True)
def small_plans():
    """The families' own presets with fewer steps; the rest of them as published."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in PLANS.values():
            plan = replace(presets.PRESETS[name], discretization=2, steps=2, init_steps=4)
            patch.setitem(presets.PRESETS, name, plan)
        small = partial(job.TextureRefinement.suited_to, views=4, discretization=4, steps=2)
        patch.setattr(job.TextureRefinement, "suited_to", small)
        refine_texture = job.refine_texture

        def refine(mesh, diffusion, settings, *rest, reference=None, **hooks):
            REFINEMENTS[type(diffusion).__name__.lower()] = settings, reference
            return refine_texture(mesh, diffusion, settings, *rest, reference=reference, **hooks)

        patch.setattr(job, "refine_texture", refine)
        small = MeshSettings(resolution=32, target_faces=200, texture_size=64, views=12, view_size=64)
        patch.setattr(cli, "mesh_settings", lambda args: small)
        patch.setattr(job_files, "FILM_FRAMES", 8)
        patch.setattr(job_files, "FILM_SIZE", 32)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint of each family, one in each layout; the Zero123 one is a stable one by its name."""
    folder = tmp_path_factory.mktemp("models")
    names = {"zero123": "stable_zero123"}
    return {f: tiny.write(folder, f, layout, name=names.get(f)) for f, layout in LAYOUTS.items()}


def draw(path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 20:40] = (200, 50, 50, 255)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def runs(checkpoints, tmp_path_factory):
    """Every family from the command line: family -> folder with its files."""
    made = {}
    for family, checkpoint in checkpoints.items():
        folder = made[family] = tmp_path_factory.mktemp(family)
        picture = [] if family == "mvdream" else [draw(folder / "box.png")]
        command = "text-to-3d" if family == "mvdream" else "image-to-3d"
        words = {"mvdream": ["a red box"], "imagedream": ["--prompt", "a red box", "--negative", "ugly"], "zero123": []}
        arguments = [command, *picture, *words[family], "--model", checkpoint, "-o", folder / "a.glb", "--report", *TINY]
        assert cli.main([str(a) for a in arguments]) == cli.DONE
    return made


@pytest.mark.parametrize("family", PLANS)
def test_a_run_ends_in_a_mesh_and_counts_what_its_plan_counts(runs, family):
    folder = runs[family]
    assert read_mesh(folder / "a.glb").texture.shape[0] == 64
    report = json.loads((folder / "a.json").read_text())
    usual = presets.PRESETS[PLANS[family]]
    plan = replace(usual, iterations=1)
    assert report["preset"] == plan.name and report["departures"] == {"iterations": [usual.iterations, 1]}
    assert report["iterations"][-1]["evaluations"] == plan.evaluations(3).total
    assert report["negative"] == {"mvdream": NEGATIVE, "imagedream": "ugly", "zero123": ""}[family]
    assert str(folder.parent) not in (folder / "a.json").read_text(), "a report names no folders"


def initialised(made, field):
    step = Step.of_plan(made.plan, made.seed, job.INITIALISATION, 8)
    return job.Iteration(step, field, torch.zeros(len(step.cameras), 8, 8, 3), (0.0,), 0)


def test_a_negative_prompt_given_empty_stays_empty_and_one_of_old_states_too(checkpoints, tmp_path):
    choices = {"model": str(checkpoints["imagedream"]), "iterations": 1}
    made = [job.job_from_image(draw(tmp_path / "box.png"), **choices, **words) for words in ({}, {"negative": ""})]
    assert [each.negative for each in made] == [NEGATIVE, ""]
    start = job.start_field("gaussians", 8, 0)
    for negative, expected in ((NEGATIVE, NEGATIVE), ("", ""), (None, "")):  # None: as states were written before there was one
        kept = replace(made[0], negative=negative)
        iteration = initialised(kept, start)
        job.save_run(tmp_path / "start.safetensors", kept, iteration)
        assert job.resume_job(tmp_path / "start.safetensors").negative == expected


def test_a_state_from_before_there_were_elevation_limits_keeps_its_cameras(checkpoints, tmp_path):
    made = job.job_from_image(draw(tmp_path / "box.png"), elevation=30, model=str(checkpoints["zero123"]), iterations=1)
    iteration = initialised(made, job.start_field("gaussians", 8, 0))
    saved = load_state(job.save_run(tmp_path / "start.safetensors", made, iteration))
    assert job.resume_job(tmp_path / "start.safetensors").plan == made.plan
    for name in ("elevation_limits", "lr_networks"):
        del saved.extra["plan"][name]
    saved.extra["plan"]["guidance"] = saved.extra["plan"].pop("guidance_scale")
    save_state(tmp_path / "start.safetensors", saved.field, saved.extra)
    assert job.resume_job(tmp_path / "start.safetensors").plan.elevations(30.0) == made.plan.elevation_range == (-30, 30)


@pytest.mark.parametrize("family", PLANS)
def test_textures_are_refined_as_released_whatever_the_plan_says(runs, family):
    settings, reference = next(value for name, value in REFINEMENTS.items() if family in name)
    assert (settings.strength, settings.guidance_scale, settings.reference_weight) == (0.181, 2.0, 8.0)
    assert (reference is not None) == (family == "zero123")


def same(field, other):
    tensors, others = field.to_state()[0], other.to_state()[0]
    return all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("family", ["mvdream", "zero123"])
def test_a_resumed_run_remembers_model_and_words(checkpoints, family, tmp_path):
    """The second half of a run, from the state alone, gives the same field bit for bit."""
    choices = {"model": str(checkpoints[family]), "iterations": 1, "seed": 5, "options": job.ModelOptions(ema=False)}
    if family == "mvdream":
        whole = job.job_from_prompt("a red box", negative="ugly", **choices)
    else:
        whole = job.job_from_image(draw(tmp_path / "box.png"), elevation=10, **choices)

    def run(made, on_iteration=None):
        model = job.load_model(made.model, torch.device("cpu"), made.options)
        words = {"negative": made.negative} if model.takes_prompt else {}
        return job.run_sir(made, model.condition(made.reference, made.prompt, **words), on_iteration=on_iteration)[0]

    def keep_start(iteration):
        if iteration.k == job.INITIALISATION:
            job.save_run(tmp_path / "start.safetensors", whole, iteration)

    finished = run(whole, keep_start)
    resumed = job.resume_job(tmp_path / "start.safetensors")
    assert (resumed.model, resumed.options, resumed.first) == (str(checkpoints[family]), whole.options, 0)
    assert (resumed.prompt, resumed.negative) == (whole.prompt, whole.negative)
    assert same(run(resumed), finished)


def test_a_moved_checkpoint_is_named_and_can_be_shown(runs, checkpoints, tmp_path):
    saved = load_state(runs["mvdream"] / "a.state.safetensors", torch.device("cpu"))
    gone = tmp_path / "gone.safetensors"
    save_state(gone, saved.field, {**saved.extra, "model": "/nowhere/mvdream.pt"})
    with pytest.raises(InputError, match="There is no model '/nowhere/mvdream.pt'"):
        job.resume_job(gone)
    assert job.resume_job(gone, model=str(checkpoints["mvdream"])).prompt == "a red box"


def refused(capsys, *args):
    assert cli.main([str(arg) for arg in args]) == cli.UNUSABLE
    return capsys.readouterr().err


def test_models_and_words_that_do_not_fit_are_refused_before_any_work(checkpoints, tmp_path, capsys):
    picture, out = draw(tmp_path / "box.png"), tmp_path / "x.glb"
    cases = [
        (["text-to-3d", "a box", "--model", checkpoints["zero123"]], "takes no prompt"),
        (["text-to-3d", "a box", "--model", checkpoints["imagedream"]], "needs a reference picture"),
        (["text-to-3d", " ", "--model", checkpoints["mvdream"]], "The prompt is empty"),
        (["text-to-3d", "a box"], "takes no prompt"),
        (["image-to-3d", picture, "--model", checkpoints["mvdream"]], "use text-to-3d"),
        (["image-to-3d", picture, "--model", checkpoints["zero123"], "--prompt", "x"], "takes no prompt"),
        (["image-to-3d", picture, "--model", checkpoints["zero123"], "--variant", "local"], "no variant 'local'"),
        (["image-to-3d", picture, "--model", checkpoints["zero123"], "--dtype", "int8"], "dtype must be one of"),
        (["image-to-3d", picture, "--model", checkpoints["zero123"], "--preset", "embedded"], "stable-zero123-gaussians"),
        (["image-to-3d", picture, "--preset", "imagedream-gaussians"], "choose the preset 'embedded'"),
        (["image-to-3d", picture, "--model", "nothing"], "There is no model 'nothing'"),
    ]
    for arguments, sentence in cases:
        assert sentence in refused(capsys, *arguments, "-o", out), arguments
    assert not out.exists()


def test_models_are_listed_and_found_by_name(checkpoints, tmp_path, monkeypatch, capsys):
    folder = checkpoints["zero123"].parent
    (folder / "broken.ckpt").write_bytes(b"nothing")
    monkeypatch.setenv("MICRODREAMER_MODELS", str(folder))
    assert cli.main(["models"]) == cli.DONE
    lines = capsys.readouterr().out
    assert "stable_zero123.ckpt   zero123, stable" in lines and "imagedream.safetensors   imagedream, pixel" in lines
    assert "broken.ckpt   not usable" in lines
    (folder / "broken.ckpt").unlink()
    assert job.check_model("stable_zero123") == str(checkpoints["zero123"])
    assert cli.main(["inspect", str(checkpoints["zero123"])]) == cli.DONE
    lines = capsys.readouterr().out
    assert "zero123, stable" in lines and "averages   yes" in lines and "unet, vae, vision, camera" in lines


# --- nodes -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The stand-in host with the pack and a picture; models/microdreamer and models/checkpoints hold a model each."""
    with stand_in.install(tmp_path_factory.mktemp("host")) as host:
        host.run = lambda graph: stand_in.Executor(host).run(graph)
        models = host.base / "models"
        (models / "checkpoints").mkdir()
        tiny.write(models / "microdreamer", "imagedream", "folder", name="imagedream-local")
        tiny.write(models / "microdreamer", "mvdream", "flat", name="sd-v2.1-base-4view")
        tiny.write(models / "checkpoints", "zero123", "lightning", name="zero123-xl")
        (models / "checkpoints" / "sd15.safetensors").write_bytes(b"")
        yield host


GRAPHS = {
    "imagedream-local": ("imagedream-gaussians", "MicroDreamerConditionOnBoth", {"prompt": "a bird", "negative": "ugly"}),
    "sd-v2.1-base-4view.pt": ("mvdream-gaussians", "MicroDreamerConditionOnPrompt", {"prompt": "a bird"}),
    "checkpoints/zero123-xl.ckpt": ("stable-zero123-gaussians", "MicroDreamerConditionOnImage", {"elevation": 5.0}),
}


def graph(checkpoint):
    preset, condition, texts = GRAPHS[checkpoint]
    pictures = {} if condition.endswith("Prompt") else {"image": ["3", 0], "mask": ["3", 1]}
    nodes = {
        "1": ("LoadModel", {"checkpoint": checkpoint}),
        "2": ("ExamplePicture", {"picture": "bird"}),
        "3": ("PrepareReference", {"model": ["1", 0], "image": ["2", 0], "mask": ["2", 1]}),
        "4": (condition.removeprefix("MicroDreamer"), {"model": ["1", 0], **pictures, **texts}),
        "5": ("SIRPlan", {"preset": preset, "iterations": 1, "steps": 2}),
        "6": ("SIRPlanOptions", {"plan": ["5", 0], "discretization": 2, "init_steps": 4}),
        "7": ("Generate", {"condition": ["4", 0], "plan": ["6", 0]}),
        "8": ("ExtractMesh", {"field": ["7", 0], "resolution": 32, "target_faces": 200}),
        "9": ("BakeTexture", {"mesh": ["8", 0], "field": ["7", 0], "texture_size": 64, "views": 12, "view_size": 64}),
        "10": ("SaveMesh", {"mesh": ["9", 0]}),
        "11": ("SaveState", {"field": ["7", 0], "condition": ["4", 0], "plan": ["6", 0]}),
    }
    return {name: {"class_type": f"MicroDreamer{kind}", "inputs": inputs} for name, (kind, inputs) in nodes.items()}


@pytest.mark.parametrize("checkpoint", GRAPHS)
def test_nodes_run_every_family_and_the_command_line_can_go_on(host, checkpoint):
    loads = host.loads
    results = host.run(graph(checkpoint))
    plan, report = results["6"][0], results["7"][2]
    assert f"{plan.evaluations().total} evaluations" in report.splitlines()[-1]
    assert host.loads > loads, "the host moves the networks"
    assert read_mesh(host.base / "output" / results["10"][0]).texture is not None
    state = next((host.base / "output" / "microdreamer").glob("*.state.safetensors"))
    resumed = job.resume_job(state)
    assert Path(resumed.model).name == checkpoint.split("/")[-1]
    assert resumed.prompt == GRAPHS[checkpoint][2].get("prompt")
    assert resumed.negative == {"imagedream-local": "ugly", "sd-v2.1-base-4view.pt": NEGATIVE}.get(checkpoint, "")
    state.unlink()


def test_the_loader_lists_what_could_be_ours(host):
    node = host.nodes["MicroDreamerLoadModel"]
    options = node.define_schema().inputs[0].options["options"]
    assert options == ["embedded", "imagedream-local", "sd-v2.1-base-4view.pt", "checkpoints/zero123-xl.ckpt"]
    loaded = node.execute(checkpoint="imagedream-local", dtype="bfloat16", averages=False).args[0]
    assert loaded.model.variant == "local" and loaded.model.parts.unet.dtype == torch.bfloat16
    assert node.execute(checkpoint="imagedream-local", variant="pixel").args[0].model.variant == "pixel"
    with pytest.raises(ValueError, match="dtype must be one of"):
        node.execute(checkpoint="embedded", dtype="int8")


def test_a_plan_for_cameras_elsewhere_is_refused(host):
    wrong = graph("checkpoints/zero123-xl.ckpt")
    wrong["5"]["inputs"]["preset"] = "embedded"
    with pytest.raises(ValueError, match="Generate: The plan 'embedded' looks from a distance of 1.5.*stable-zero123"):
        host.run(wrong)
