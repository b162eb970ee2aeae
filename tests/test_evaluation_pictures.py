"""Table III's protocol: methods as they are written, meshes of other systems, CLIP, the table."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from helpers import tiny_checkpoints
from helpers.tiny_clip import write_clip
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.checkpoints.registry import EMBEDDED
from microdreamer_core.cli.main import main
from microdreamer_core.errors import InputError
from microdreamer_core.evaluation import clip_similarity, metrics, pictures
from microdreamer_core.evaluation import report as reports
from microdreamer_core.evaluation.clip_similarity import load_clip, similarity, views_of
from microdreamer_core.evaluation.runs import Run
from microdreamer_core.evaluation.sources import Setup
from microdreamer_core.io.mesh_files import write_mesh
from microdreamer_core.io.pictures import read_picture, write_picture
from microdreamer_core.job.run import list_pictures
from microdreamer_core.mesh import Mesh
from microdreamer_core.reference import prepare_reference
from microdreamer_core.render.mesh import render_mesh


def box(width, color, scale=1.0) -> Mesh:
    """A coloured box, twice as high as its default width."""
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    vertices = corners * torch.tensor([width, 0.5, 0.25]) * scale
    return Mesh(vertices, faces, colors=torch.tensor(color).expand(8, 3).clone())


RED, BLUE = (0.8, 0.1, 0.1), (0.1, 0.1, 0.8)


@pytest.fixture
def places(tmp_path):
    """Two pictures of boxes, and two systems' meshes of them: one right but larger, one wrong and of the first alone."""
    for folder in ("pictures", "right", "wrong"):
        (tmp_path / folder).mkdir()
    for name, color in (("one", RED), ("two", BLUE)):
        render = render_mesh(box(0.25, color), orbit_cameras(0.0, 0.0, 2.0, width=96), supersample=2)
        write_picture(tmp_path / "pictures" / f"{name}.png", torch.cat([render.rgb[0].clamp(0, 1), render.alpha[0]], -1))
        write_mesh(tmp_path / "right" / f"{name}.ply", box(0.25, color, 3.0))
    write_mesh(tmp_path / "wrong" / "one.glb", box(0.9, BLUE))
    return tmp_path


# --- methods ----------------------------------------------------------------------------------------------------------


def test_methods_as_they_are_written(places):
    folder = pictures.parse_method(f"lgm={places / 'right'}", "analytic")
    assert (folder.name, folder.meshes, folder.plan) == ("lgm", places / "right", None)
    ours = pictures.parse_method("k7=preset=embedded,iterations=7", "analytic")
    assert (ours.model, ours.plan.name, ours.plan.iterations, ours.sds) == (EMBEDDED, "embedded", 7, None)
    nerf = pictures.parse_method("n=representation=nerf,iterations=3", "analytic")
    assert (nerf.plan.name, nerf.plan.representation, nerf.plan.iterations) == ("embedded-nerf", "nerf", 3)
    baseline = pictures.parse_method("dg=sds=dreamgaussian,steps=30", EMBEDDED, 3)
    assert (baseline.sds.name, baseline.sds.steps, baseline.plan.iterations) == ("dreamgaussian", 30, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "A method is NAME=FOLDER or NAME=KEY=VALUE"),
        ("a=no/such/folder", "does not exist"),
        ("a=speed=3", "write KEY=VALUE with one of preset, iterations"),
        ("a=iterations=many", "has iterations='many'; write KEY=VALUE with .* being whole numbers"),
        ("a=preset=nonsense", "nonsense"),
        ("a=preset=stable-zero123-gaussians", "6 views"),
        ("a=sds=nonsense", "Unknown SDS preset"),
        ("a=steps=3", "has steps without sds"),
        ("a=model=nowhere.ckpt", "nowhere.ckpt"),
        ("a=preset=embedded,representation=nerf", "optimises gaussians, not the chosen representation 'nerf'"),
    ],
)
def test_methods_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        pictures.parse_method(text, EMBEDDED)


def test_bad_folders_are_refused_before_work_starts(places, monkeypatch):
    monkeypatch.setattr(Run, "execute", lambda *_, **__: pytest.fail("a run began"))

    def refused(message, **changes):
        options = {"picture_folder": places / "pictures", "methods": (f"a={places / 'right'}",), **changes}
        with pytest.raises(InputError, match=message):
            reports.make_setup(places / "out", quick=True, **options)

    empty = places / "empty"
    empty.mkdir()
    refused("holds no pictures", picture_folder=empty)
    refused("There is no folder of pictures", picture_folder=places / "none")
    refused("holds no mesh .* named like a picture, say one.glb", methods=(f"a={empty}",))
    refused("need different names", methods=(f"a={places / 'right'}", f"a={places / 'wrong'}"))
    (empty / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused("holds no CLIP", clip=empty)
    (empty / "config.json").write_text(json.dumps({"model_type": "clip"}))
    refused("lacks model.safetensors", clip=empty)
    (empty / clip_similarity._OPEN_CLIP).write_text("{}")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    refused("needs open_clip, which does not load here", clip=empty)
    (places / "right" / "two.ply").write_bytes(b"no mesh")
    refused("two.ply cannot be read as a mesh")
    shutil.copy(places / "pictures" / "one.png", places / "pictures" / "one.webp")
    refused("'one' is there twice")
    (places / "pictures" / "one.webp").write_bytes(b"no picture")
    (places / "pictures" / "one.png").unlink()
    refused("cannot be read as a picture")


# --- meshes of other systems ------------------------------------------------------------------------------------------


def test_front_views_do_not_depend_on_scale(places):
    picture = prepare_reference(read_picture(places / "pictures" / "one.png"), None, 0.8, 128, 0.0)
    psnr, iou = metrics.compare_front(box(0.25, RED, 5.0), picture, 0.0)
    assert psnr > 25 and iou > 0.95
    assert metrics.compare_front(box(0.9, BLUE), picture, 0.0)[1] < 0.6


def test_the_table_of_other_systems_meshes(places, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["microdreamer"])  # the page shows the command
    clip = write_clip(places / "clip")
    arguments = ["report", "pictures", "-o", str(places / "out"), "--quick", "--quiet", "--workers", "1"]
    arguments += ["--pictures", str(places / "pictures"), "--clip", str(clip)]
    arguments += [f"--method={name}={places / name}" for name in ("right", "wrong")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "wrong has no mesh of two; its numbers are of the others." in said
    assert "? undecided: right is better than wrong" in said and "on 1 pictures" in said
    (section,) = json.loads((places / "out" / "results.json").read_text())["sections"]
    right, wrong = section["tables"][0]["rows"]
    assert right[0] == "right" and 0 < float(right[1]) <= 1 and float(wrong[1]) <= 1 and right[2] == "not measured"
    assert float(right[3]) > 25 > float(wrong[3]) and right[5:] == ["12", "2"] and wrong[6] == "1"
    page = (places / "out" / "index.html").read_text()
    assert "meshes of another system in right" in page and "clip" in page and "analytic" not in page


def test_without_a_clip_the_rest_is_reported(places, monkeypatch, capsys):
    monkeypatch.setenv("MICRODREAMER_MODELS", str(places))
    arguments = ["report", "pictures", "-o", str(places / "out"), "--quick", "--quiet", "--workers", "1"]
    assert main([*arguments, "--pictures", str(places / "pictures"), f"--method=right={places / 'right'}"]) == 0
    assert "CLIP similarity was not measured. There is no CLIP model" in capsys.readouterr().out
    (section,) = json.loads((places / "out" / "results.json").read_text())["sections"]
    assert section["tables"][0]["rows"][0][1] == "not measured" and section["claims"] == []


# --- ours -------------------------------------------------------------------------------------------------------------


def test_our_methods_are_run_for_every_seed_and_timed_by_stage(places, monkeypatch):
    """The pipeline itself is tested elsewhere; here it gives a box."""
    seen = []

    class Made:
        mesh = box(0.25, RED)

        class clock:  # noqa: N801 - stands for a value
            seconds = {"load model": 50.0, "refine": 1.0, "reconstruct": 2.0, "clean": 0.5, "mesh: bake": 3.0}

    def make_asset(job, *_, **__):
        seen.append((job.source, job.seed, job.plan.iterations, job.start is not None))
        return Made

    monkeypatch.setattr(pictures, "make_asset", make_asset)
    chosen = tuple(pictures.parse_method(text, EMBEDDED) for text in ("ours=iterations=2", "dg=sds=dreamgaussian,steps=1"))
    found = list_pictures(places / "pictures")[:1]
    setup = Setup(places / "out", EMBEDDED, "x", seeds=(4, 5), device="cpu", pictures=found, methods=chosen)
    reports.make_report(setup, ("pictures",), workers=1, quiet=True)
    assert seen == [("one.png", 4, 2, False), ("one.png", 5, 2, False), ("one.png", 4, 0, True), ("one.png", 5, 0, True)]
    (section,) = json.loads((places / "out" / "results.json").read_text())["sections"]
    ours, dg = section["tables"][0]["rows"]
    assert ours[2] == "3.0 + 3.5" and float(dg[2].split(" + ")[0]) > 3.0 and ours[6] == dg[6] == "2"


def test_a_model_that_takes_words_alone_is_judged_by_them(places, monkeypatch):
    model = tiny_checkpoints.write(places, "mvdream", "safetensors")
    folder = write_clip(places / "clip")
    (places / "pictures" / "two.txt").write_text("a blue box\n")
    (places / "pictures" / "one.png").rename(places / "pictures" / "red_box.png")
    conditions = []

    class Made:
        mesh = box(0.25, RED)

        class clock:  # noqa: N801 - stands for a value
            seconds = {"refine": 1.0}

    def make_asset(job, *_, **__):
        conditions.append((job.reference, job.prompt))
        return Made

    monkeypatch.setattr(pictures, "make_asset", make_asset)
    options = {"model": str(model), "iterations": 1, "seeds": 1, "device": "cpu"}
    chosen = {"picture_folder": places / "pictures", "methods": ("words=iterations=1", "toy=model=embedded"), "clip": folder}
    setup, _ = reports.make_setup(places / "out", **options, **chosen)
    reports.make_report(setup, reports.choose_protocols((), setup)[0], workers=1, quiet=True)
    assert [(reference, prompt) for reference, prompt in conditions if reference is None] == [
        (None, "red box"),
        (None, "a blue box"),
    ]
    assert len(conditions) == 4 and {prompt for reference, prompt in conditions if reference is not None} == {None}
    (section,) = json.loads((places / "out" / "results.json").read_text())["sections"]
    words, toy = section["tables"][0]["rows"]
    assert words[3:5] == ["none", "none"] and "none" not in toy and section["claims"] == []
    clip = load_clip(folder)
    seen = clip.embed_images(views_of(next((places / "out").rglob("*.glb"))))
    scores = [similarity(seen, clip.embed_texts([text])).mean() for text in ("red box", "a blue box")]
    assert float(words[1]) == pytest.approx(float(sum(scores)) / 2, abs=1e-3)
    for names, folder in ((("sds",), places / "pictures"), ((), None)):
        setup, _ = reports.make_setup(places / "out", **options, picture_folder=folder)
        with pytest.raises(InputError, match="takes only prompts, which procedural objects lack"):
            reports.choose_protocols(names, setup)


def test_a_claim_compares_what_both_methods_have():
    a, b = "a.png", "b.png"
    ours = {(a, 0): 0.8, (a, 1): 0.81, (b, 0): 0.1, (b, 1): 0.1}
    theirs = {(a, 0): 0.7, (a, 1): 0.71}
    (claim,) = pictures.judge_similarity({"ours": ours, "theirs": theirs})
    assert claim.verdict == "yes" and claim.found == "0.8050 ± 0.0071 against 0.7050 ± 0.0071 on 1 pictures."
    (claim,) = pictures.judge_similarity({"ours": theirs, "theirs": ours})
    assert claim.verdict == "no"


def test_open_clip_is_asked_as_its_hub_layout_says(tmp_path, monkeypatch):
    """A stand-in: open_clip itself needs torchvision, which the tests do without."""
    config = {"model_cfg": {"vision_cfg": {"image_size": 16}}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / clip_similarity._OPEN_CLIP).write_text(json.dumps(config))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def encode_image(self, pixels):
            return pixels.mean((2, 3)) * self.scale

    class Library:
        @staticmethod
        def create_model(name, device):
            assert name == f"local-dir:{tmp_path}"
            return Model()

    monkeypatch.setattr(clip_similarity, "_import_open_clip", lambda: Library)
    clip = load_clip(tmp_path, torch.device("cpu"))
    found = clip.embed_images(torch.tensor([1.0, 0.5, 0.5]).expand(2, 20, 20, 3))
    assert torch.allclose(found, torch.tensor([[1.0, 0.0, 0.0]] * 2), atol=1e-6)
    with pytest.raises(InputError, match="has no text encoder here; choose a whole CLIP"):
        clip.embed_texts(["a box"])


def test_runs_of_one_picture_and_mesh_share_a_key(places):
    setup = Setup(places / "out", EMBEDDED, "x", pictures=list_pictures(places / "pictures"))
    (method,) = (pictures.parse_method(f"right={places / 'right'}", EMBEDDED),)

    def made_by(method):
        (series,) = pictures.list_generations(replace(setup, methods=(method,)))
        return series.runs

    made, again = made_by(method), made_by(method)
    assert [run.key for run in made] == [run.key for run in again]
    write_mesh(places / "right" / "one.ply", box(0.3, RED))
    changed = made_by(method)
    assert [a.key == b.key for a, b in zip(made, changed, strict=True)] == [False, True]
    assert isinstance(made[0], Run) and made[0].load(places / "out") == {}
