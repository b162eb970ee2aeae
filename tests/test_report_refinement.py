"""`report refine`: scores of meshes and splats of other systems, before and after SIR."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from helpers import tiny_checkpoints
from helpers.host_stand_in import ROOT
from helpers.small_model import small_load
from helpers.tiny_clip import write_clip
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.cli.main import main
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.evaluation import refinement
from microdreamer_core.evaluation.refinement import RefineOptions, plan_refinement
from microdreamer_core.evaluation.report import make_setup
from microdreamer_core.evaluation.runs import Run
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.io.pictures import write_picture
from microdreamer_core.mesh import Mesh, Placement
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.render.protocol import Render

AROUND = orbit_cameras(10.0, torch.arange(8) * 45.0, 2.5, width=96)


def ball(shift=(0.0, 0.0, 0.0), radius=0.5) -> Mesh:
    """A ball whose colours change smoothly from place to place."""
    import trimesh

    shape = trimesh.creation.icosphere(subdivisions=3)
    points = torch.tensor(shape.vertices, dtype=torch.float32)
    return Mesh(points * radius + torch.tensor(shift), torch.tensor(shape.faces), colors=0.5 + 0.4 * points)


def join(*meshes: Mesh) -> Mesh:
    faces, count = [], 0
    for mesh in meshes:
        faces.append(mesh.faces + count)
        count += len(mesh.vertices)
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces), colors=torch.cat([m.colors for m in meshes]))


# --- scores -----------------------------------------------------------------------------------------------------------


def test_neighbours_of_a_surface_agree_and_a_tint_is_measured():
    render = render_mesh(ball(), AROUND, supersample=2)
    assert refinement.psnr_of_neighbours(render, render.rgb, AROUND) > 40
    tinted = render.rgb.clone()
    tinted[::2] += 0.1  # every pixel differs by 0.1 from both of its neighbours
    assert refinement.psnr_of_neighbours(render, tinted, AROUND) == pytest.approx(20.0, abs=0.1)
    wrong = refinement.psnr_of_neighbours(render, render.rgb.flip(0), AROUND)
    assert wrong < 25, "views in the wrong order"
    shuffled = torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])
    mixed = Render(render.rgb[shuffled], render.alpha[shuffled], render.depth[shuffled])
    assert refinement.psnr_of_neighbours(mixed, tinted[shuffled], AROUND[shuffled]) == pytest.approx(20.0, abs=0.1)
    one = Render(render.rgb[:1], render.alpha[:1], render.depth[:1])
    assert refinement.psnr_of_neighbours(one, render.rgb[:1], AROUND[:1]) is None


def test_what_only_one_view_sees_does_not_count():
    """A black ball hides parts of a white one from some of the views."""
    pair = join(ball(), ball((0.55, 0.2, 0.0), 0.3))
    colors = torch.ones_like(pair.colors)
    colors[len(colors) // 2 :] = 0.0
    render = render_mesh(replace(pair, colors=colors), AROUND, supersample=2)
    assert refinement.psnr_of_neighbours(render, render.rgb, AROUND) > 40


def test_objects_without_common_pixels_have_no_agreement():
    alpha = torch.zeros(8, 96, 96, 1)
    empty = Render(torch.ones(8, 96, 96, 3), alpha, alpha)
    assert refinement.psnr_of_neighbours(empty, empty.rgb, AROUND) is None


def test_sharpness_is_the_slope_of_the_brightness():
    ramp = (torch.arange(32) * 0.02).expand(1, 32, 32)
    solid = torch.zeros(1, 32, 32, 1)
    solid[:, 4:28, 4:28] = 1.0
    picture = torch.where(solid > 0, ramp[..., None], torch.ones(()))
    render = Render(picture.expand(1, 32, 32, 3), solid, solid)
    assert refinement.sharpness(render) == pytest.approx(2.0, abs=1e-4)
    assert refinement.sharpness(replace(render, rgb=torch.full((1, 32, 32, 3), 0.5))) == 0.0


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A mesh far from the origin with a picture of its front, a splat without one, and a broken file."""
    monkeypatch.setattr(EmbeddedModel, "load", small_load())
    monkeypatch.setenv("MICRODREAMER_MODELS", str(tmp_path))
    (tmp_path / "in").mkdir()
    (tmp_path / "pictures").mkdir()
    matrix = torch.diag(torch.tensor([30.0, 30.0, 30.0, 1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor([500.0, 2.0, -80.0])
    write_mesh(
        tmp_path / "in" / "ball.glb", Placement(matrix).apply(replace(ball(), colors=torch.full_like(ball().colors, 0.5)))
    )
    shutil.copy(ROOT / "samples" / "bird_rough.ply", tmp_path / "in")
    (tmp_path / "in" / "broken.glb").write_bytes(b"no mesh")
    (tmp_path / "in" / "notes.txt").write_text("not a shape")
    alpha = render_mesh(ball(), AROUND[:1]).alpha[0]
    red = torch.tensor([0.9, 0.1, 0.1]).expand(96, 96, 3)
    write_picture(tmp_path / "pictures" / "ball.png", torch.cat([red, alpha], -1))
    return tmp_path


def command(files, *words):
    sizes = ["--seeds", "2", "--iterations", "2", "--set", "steps=2", "--set", "init_steps=2", "--quiet", "--workers", "1"]
    return main(["report", "refine", "--mesh", str(files / "in"), "-o", str(files / "out"), *sizes, *words])


def table(files, caption) -> dict[str, tuple[str, ...]]:
    (section,) = json.loads((files / "out" / "results.json").read_text())["sections"]
    (found,) = [t for t in section["tables"] if t["caption"].startswith(caption)]
    return {row[0]: dict(zip(found["header"][1:], row[1:], strict=True)) for row in found["rows"]}


def test_files_are_scored_refined_and_scored_again(files, capsys, monkeypatch):
    counted, usual = [], Run.execute
    monkeypatch.setattr(Run, "execute", lambda run, *rest, **place: counted.append(run.kind) or usual(run, *rest, **place))
    words = ["--image", str(files / "pictures"), "--elevation", "10", "--clip", str(write_clip(files / "clip"))]
    words += ["--set", "views=8"]
    assert command(files, *words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "broken.glb was left out: cannot be read as a mesh" in said
    assert "bird_rough.ply has no picture named like it" in said and "notes.txt" not in said
    each = table(files, "Every file")
    assert set(each) == {"ball.glb", "bird_rough.ply"}
    front, outline = ([float(v) for v in each["ball.glb"][f"front {name}"].split(" → ")] for name in ("PSNR, dB", "IoU"))
    assert front[1] > front[0] + 3, "grey before, and the picture after"
    assert outline[0] == pytest.approx(outline[1], abs=0.01) and outline[1] > 0.95, "in its own place"
    assert float(each["ball.glb"]["evaluations"]) > 0 and float(each["ball.glb"]["seconds"]) > 0
    assert each["ball.glb"]["model's views at first, dB"] != "–" != each["ball.glb"]["CLIP similarity"]
    rough = each["bird_rough.ply"]
    assert "→" not in rough["neighbouring views, dB"] and rough["front IoU"] == rough["evaluations"] == "–"
    assert sorted(counted) == ["clip"] * 3 + ["refinement"] * 2 + ["scores"] * 2
    made = [read_mesh(path) for path in (files / "out" / "runs").glob("refinement-*.glb")]
    assert len(made) == 2 and all(float(mesh.vertices.mean(0)[0]) == pytest.approx(500.0, abs=1.0) for mesh in made)
    assert not torch.equal(made[0].texture, made[1].texture), "another seed"
    assert list((files / "out" / "figures").glob("refine_*.png"))
    means = table(files, "Means over the 1 files")
    assert float(means["after SIR"]["front PSNR, dB"]) == pytest.approx(front[1], abs=0.01)
    assert float(means["difference"]["front PSNR, dB"].split()[0]) == pytest.approx(front[1] - front[0], abs=0.02)
    assert command(files, *words) == 0
    assert len(counted) == 7, "finished runs are kept"


def test_a_splat_is_refined_in_its_place(files, capsys):
    (files / "in" / "ball.glb").unlink()
    picture = ROOT / "samples" / "bird.png"
    assert command(files, "--image", str(picture), "--seeds", "1", "--preset", "embedded-high", "--set", "t2_end=0.3") == 0
    rough = table(files, "Every file")["bird_rough.ply"]
    before, after = (float(value) for value in rough["front IoU"].split(" → "))
    assert before > 0.9 and after > 0.9, "in its own frame"
    facts = json.loads((files / "out" / "results.json").read_text())["facts"]
    assert facts["plans"] == "embedded-high, K = 2, t2 0.8 to 0.3, 4 views"
    assert "was not measured. There is no CLIP" in capsys.readouterr().out


def test_scores_alone_need_no_picture(files, capsys):
    assert command(files, "--score-only") == 0
    each = table(files, "Every file")
    assert float(each["ball.glb"]["neighbouring views, dB"]) > 40 and each["ball.glb"]["seconds"] == "–"
    (section,) = json.loads((files / "out" / "results.json").read_text())["sections"]
    assert len(section["tables"]) == 1 and not section["claims"]
    assert not list((files / "out" / "runs").glob("refinement*"))


def test_a_model_of_words_refines_by_the_prompt(files):
    model = tiny_checkpoints.write(files, "mvdream", "safetensors")
    (files / "in" / "ball.txt").write_text("a red ball")
    options = RefineOptions(files / "in", files / "pictures", None, {"iterations": 1})
    found, missing = plan_refinement(options, str(model))
    shapes = {shape.path.name: shape for shape in found.shapes}
    assert shapes["ball.glb"].prompt == "a red ball" and shapes["bird_rough.ply"].prompt == "bird rough"
    assert all(shape.plan.iterations == 1 for shape in found.shapes) and len(missing) == 2
    found, _ = plan_refinement(replace(options, prompt="a thing"), str(model))
    assert {shape.prompt for shape in found.shapes} == {"a thing"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "SIR needs a picture of what is refined, got none; add --image"),
        (["--image", "nowhere.png"], "There is no picture at nowhere.png"),
        (["--image", "{}/pictures", "--preset", "nonsense"], "nonsense"),
        (["--image", "{}/pictures", "--set", "views=3"], "views"),
        (["--image", "{}/pictures", "--prompt", "a ball"], "takes no prompt"),
        (["--mesh", "{}/nowhere", "--score-only"], "There is no folder of meshes or splats"),
        (["--mesh", "{}/pictures", "--score-only"], "holds no meshes or splats"),
    ],
)
def test_what_cannot_be_refined_is_refused_before_work_starts(files, capsys, monkeypatch, words, message):
    monkeypatch.setattr(Run, "execute", lambda *_, **__: pytest.fail("a run began"))
    assert command(files, *(word.format(files) for word in words)) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_broken_files_is_refused(files, capsys):
    (files / "in" / "ball.glb").unlink()
    (files / "in" / "bird_rough.ply").unlink()
    assert command(files, "--score-only") == 2
    assert "holds no mesh or splat that can be read: broken.glb" in capsys.readouterr().err


def test_other_settings_are_other_runs(files):
    def keys(**changes):
        options = RefineOptions(files / "in", files / "pictures", None, changes)
        setup, _ = make_setup(files / "out", seeds=1, refine=options)
        return {run.key for one in refinement.list_refinements(setup) for run in one.runs}

    usual = keys()
    assert len(usual) == 3 and usual == keys() and len(usual & keys(t2_start=0.6)) == 2
