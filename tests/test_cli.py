"""The command line: results, sentences instead of tracebacks, exit codes, and that nothing computed is lost."""

import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.small_model import small_load
from microdreamer_core.cli import main as cli
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.errors import InputError
from microdreamer_core.io.state import load_state, save_state

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--faces", "300", "--texture-size", "64"]
RUN = ["--iterations", "2", "--seed", str(10**30), *TINY]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tests' tensors are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(EmbeddedModel, "load", small_load())


def draw(path, box=(16, 48, 20, 40), size=64):
    """A red box on transparency."""
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[box[0] : box[1], box[2] : box[3]] = (200, 50, 50, 255)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    return draw(tmp_path / "box.png")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def run(*args):
    return cli.main([str(arg) for arg in args])


def refused(capsys, *args):
    """The one sentence that an unusable command is answered with."""
    code = run(*args)
    out, err = capsys.readouterr()
    assert code == cli.UNUSABLE and out == ""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("microdreamer: ") and lines[0].endswith((".", ").")), err
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(exit code, folder, stdout) of one whole run with all its files."""
    from microdreamer_core.job import outputs as job_files

    folder = tmp_path_factory.mktemp("made")
    picture = draw(folder / "box.png")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedModel, "load", small_load())
        patch.setattr(job_files, "FILM_FRAMES", 8)
        patch.setattr(job_files, "FILM_SIZE", 48)
        patch.setattr(sys, "stdout", out)
        output = folder / "new" / "a.toy.glb"
        code = run("image-to-3d", picture, "-o", output, *RUN, "--keep-splat", "--report")
    return code, output.parent, out.getvalue()


def test_a_run_writes_what_it_says_and_nothing_else(made):
    from microdreamer_core.io.mesh_files import read_mesh
    from microdreamer_core.io.splats import read_splat

    code, folder, out = made
    assert code == cli.DONE
    endings = [".glb", ".json", ".ply", ".state.safetensors", "_sheet.png", "_turntable.mp4"]
    assert names(folder) == ["a.toy" + ending for ending in endings]
    assert sorted(Path(line.split()[-1]).name for line in out.splitlines()) == names(folder)
    mesh = read_mesh(folder / "a.toy.glb")
    assert 50 < len(mesh.faces) <= 330 and mesh.texture.shape[0] == 64
    report = json.loads((folder / "a.toy.json").read_text())
    assert [line["k"] for line in report["iterations"]] == [-1, 0, 1]
    assert report["seed"] == 10**30 and report["field"] == {
        "kind": "gaussians",
        "summary": f"{len(read_splat(folder / 'a.toy.ply'))} Gaussians",
    }
    assert sorted(report["files"].values()) == names(folder)


@pytest.fixture
def tiny_nerf(monkeypatch):
    """The size "small", smaller still, and few pictures: what is tested here does not depend on them."""
    from microdreamer_core.convert import nerf_to_gaussians as from_nerf
    from microdreamer_core.fields import nerf_settings
    from microdreamer_core.job import outputs as job_files
    from microdreamer_core.meshing import density, pipeline
    from microdreamer_core.sir import presets

    values = {"levels": 4, "log2_table": 10, "hidden": 8, "samples": 24, "occupancy_resolution": 16, "density_scale": 30.0}
    monkeypatch.setitem(nerf_settings.SIZES, "small", values)
    monkeypatch.setitem(presets.PRESETS, "embedded-nerf", presets.get_plan("embedded-nerf", init_steps=15, discretization=5))
    monkeypatch.setattr(from_nerf, "FIT_STEPS", 2)
    for name, value in (("resolution", 24), ("size", 24)):
        monkeypatch.setitem(from_nerf.gaussians_from_nerf.__kwdefaults__, name, value)
    monkeypatch.setattr(pipeline.MeshSettings, "__init__", _few_pictures(pipeline.MeshSettings.__init__))
    monkeypatch.setattr(density, "_SILHOUETTE_SIZE", 64)
    monkeypatch.setattr(job_files, "FILM_FRAMES", 8)
    monkeypatch.setattr(job_files, "FILM_SIZE", 48)


def _few_pictures(usual):
    return lambda self, **values: usual(self, **{"views": 12, "view_size": 32, "resolution": 32} | values)


def test_a_nerf_is_made_stopped_and_continued_bit_for_bit(small, tiny_nerf, picture, tmp_path, capsys, monkeypatch):
    whole, part = tmp_path / "whole.glb", tmp_path / "part.glb"
    options = ["--representation", "nerf", "--keep-splat", "--report", *RUN]
    assert run("image-to-3d", picture, "-o", whole, *options) == cli.DONE
    report = json.loads((tmp_path / "whole.json").read_text())
    assert report["preset"] == "embedded-nerf" and report["field"]["kind"] == "nerf"
    assert all("NeRF" in line["field"] for line in report["iterations"])
    assert "1000" in (tmp_path / "whole.ply").read_bytes()[:200].decode(errors="replace")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 1, KeyboardInterrupt())
        assert run("image-to-3d", picture, "-o", part, *options) == cli.STOPPED
    command = resume_command(capsys.readouterr().err)
    assert run(*command) == cli.DONE
    assert_same_state(tmp_path / "whole.state.safetensors", tmp_path / "part.state.safetensors")
    assert whole.read_bytes() == part.read_bytes()
    meshed_and_filmed(tmp_path / "whole.state.safetensors", tmp_path)


def meshed_and_filmed(state, folder):
    from microdreamer_core.io.mesh_files import read_mesh

    assert run("mesh", state, "-o", folder / "state.glb", *TINY) == cli.DONE
    mesh = read_mesh(folder / "state.glb")
    assert 50 < len(mesh.faces) <= 330 and mesh.texture.shape[0] == 64
    assert run("turntable", state, "-o", folder / "state.gif", "--size", 32, "--frames", 2) == cli.DONE
    with Image.open(folder / "state.gif") as frames:
        assert frames.n_frames == 2 and np.asarray(frames.convert("L"), float)[12:20, 12:20].mean() < 240


def test_the_gaussians_of_a_saved_run_are_meshed_and_filmed_as_its_end_shows_them(made, tmp_path, monkeypatch):
    from microdreamer_core.job import run as job

    cleaned = []
    monkeypatch.setattr(job, "clean", lambda field, usual=job.clean: cleaned.append(field) or usual(field))
    meshed_and_filmed(made[1] / "a.toy.state.safetensors", tmp_path)
    assert len(cleaned) == 2


def test_a_nerfs_state_is_refused_for_gaussians(small, tmp_path, capsys, made):
    from microdreamer_core.sir.start import start_field

    extra = load_state(made[1] / "a.toy.state.safetensors").extra
    state = save_state(tmp_path / "nerf.state.safetensors", start_field("nerf", 32, 0), extra)
    assert "optimises gaussians; choose a plan for nerf" in refused(capsys, "resume", state, "-o", tmp_path / "x.glb")


def test_splats_and_meshes_can_be_meshed_and_filmed(made, tmp_path, capsys):
    from microdreamer_core.io.mesh_files import read_mesh

    splat = made[1] / "a.toy.ply"
    assert run("mesh", splat, "-o", tmp_path / "x.ply", *TINY) == cli.DONE
    assert len(read_mesh(tmp_path / "x.ply").faces) <= 330
    for file, film in ((splat, "splat.gif"), (tmp_path / "x.ply", "mesh.gif"), (made[1] / "a.toy.glb", "glb.gif")):
        assert run("turntable", file, "-o", tmp_path / film, "--size", 32, "--frames", 2) == cli.DONE
        with Image.open(tmp_path / film) as frames:
            assert frames.n_frames == 2
            red, green, blue = np.asarray(frames.convert("RGB"), float)[10:22, 10:22].mean((0, 1))
        # two iterations give a pale box, but neither the white background nor a grey object
        assert red > max(green, blue) + 8, film
    assert "triangles" in capsys.readouterr().out


@pytest.mark.parametrize("axis", ["-y", "+y", "-z", "+z"])
def test_the_up_axis_of_a_file_can_be_given(axis, made, tmp_path):
    """The film of a file that says nothing of its axis is the same if the command line says it."""
    from microdreamer_core.io.splats import read_splat, write_gaussians

    splat = made[1] / "a.toy.ply"
    turned = write_gaussians(tmp_path / "turned.splat", read_splat(splat), axis)

    def film(path, *options):
        assert run("turntable", path, "-o", tmp_path / "a.gif", "--size", 48, "--frames", 1, *options) == cli.DONE
        with Image.open(tmp_path / "a.gif") as frames:
            return np.asarray(frames.convert("RGB"), float)

    assert abs(film(turned, "--up", axis) - film(splat)).mean() < 1
    if axis != "-y":
        assert abs(film(turned) - film(splat)).mean() > 2
    assert run("mesh", turned, "--up", axis, "-o", tmp_path / "x.ply", *TINY) == cli.DONE


def test_meshes_too_may_have_another_up_axis(tmp_path):
    from microdreamer_core.io.mesh_files import write_mesh
    from microdreamer_core.job.outputs import read_result
    from microdreamer_core.mesh import Mesh

    path = write_mesh(tmp_path / "a.stl", Mesh(torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]])))
    assert read_result(path, "+z").vertices.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, -1]]


def test_a_saved_run_knows_its_up_axis(made, tmp_path, capsys):
    state = made[1] / "a.toy.state.safetensors"
    assert "knows its up axis, got -y" in refused(capsys, "mesh", state, "--up", "-y", "-o", tmp_path / "x.glb")


@pytest.mark.parametrize(("kind", "ending"), [("spz", ".spz"), ("glb", "_splat.glb"), ("compressed.ply", ".compressed.ply")])
def test_splats_in_other_formats(small, picture, kind, ending):
    from microdreamer_core.io.splats import read_splat

    options = ["--iterations", "0", "--no-film", "--quiet", *TINY]
    assert run("image-to-3d", picture, "--splat-format", kind, *options) == cli.DONE
    assert names(picture.parent) == sorted(["box.glb", "box.png", "box.state.safetensors", f"box{ending}"])
    assert len(read_splat(picture.with_name(f"box{ending}"))) > 100


def pixels(**changes):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    opaque = np.full((64, 64, 1), 255, np.uint8)
    return {
        "transparent": np.concatenate([noise, 0 * opaque], 2),
        "opaque": np.concatenate([noise, opaque], 2),
        "noise": noise,
        "one colour": np.full((64, 64, 3), 128, np.uint8),
        "tiny": noise[:8, :8],
        "long": np.zeros((16, 16400), np.uint8),
    }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("transparent", "no object"),
        ("opaque", "background"),
        ("noise", "background"),
        ("one colour", "no object"),
        ("tiny", "at least 16"),
        ("long", "at most 16384"),
    ],
)
def test_pictures_without_a_usable_object_are_refused(name, sentence, tmp_path, capsys):
    Image.fromarray(pixels()[name]).save(tmp_path / "picture.png")
    assert sentence in refused(capsys, "image-to-3d", tmp_path / "picture.png", "-o", tmp_path / "new" / "x.glb")
    assert names(tmp_path) == ["picture.png"]


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_files_that_are_no_pictures_are_refused(content, tmp_path, capsys, picture):
    bad = tmp_path / "bad.png"
    bad.write_bytes(picture.read_bytes()[:100] if content is None else content)
    assert "cannot be read as a picture" in refused(capsys, "image-to-3d", bad)
    assert "no picture at" in refused(capsys, "image-to-3d", tmp_path / "missing.png")
    assert names(tmp_path) == ["bad.png", "box.png"]


def test_odd_pictures_and_masks_are_understood(tmp_path):
    from microdreamer_core.job.run import job_from_image

    expected = job_from_image(draw(tmp_path / "box.png")).reference.alpha
    inside = np.zeros((64, 64), bool)
    inside[16:48, 20:40] = True
    grey16 = Image.fromarray(np.where(inside, 20000, 60000).astype(np.uint16))
    grey16.save(tmp_path / "grey16.png")
    on_white = np.where(inside[..., None], (200, 50, 50), (255, 255, 255)).astype(np.uint8)
    Image.fromarray(on_white).quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "noise.png")
    Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert("RGBA").save(tmp_path / "mask.png")
    for name, mask in (("grey16.png", None), ("palette.png", None), ("noise.png", tmp_path / "mask.png")):
        alpha = job_from_image(tmp_path / name, mask).reference.alpha
        assert float((alpha - expected).abs().mean()) < 0.01, name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "fast"], "choose one of"),
        (["--preset", "mvdream-nerf"], "choose the preset 'embedded-nerf'"),
        (["--representation", "voxels"], "one of gaussians, nerf"),
        (["--representation", "nerf", "--preset", "embedded"], "choose the preset 'embedded-nerf'"),
        (["--representation", "gaussians", "--preset", "embedded-nerf"], "choose the preset 'embedded'"),
        (["--representation", "nerf", "--nerf-size", "huge"], "auto, small, full"),
        (["--nerf-size", "small"], "optimises Gaussians"),
        (["--preset", "stable-zero123-gaussians"], "multiple of 4"),
        (["--device", "gpu"], "auto, cpu, cuda, mps"),
        (["--elevation", "95"], "between -90 and 90"),
        (["--elevation", "nan"], "between -90 and 90"),
        (["--iterations", "-1"], "0..10000"),
        (["--iterations", "99999999"], "0..10000"),
        (["--faces", "0"], "100..1000000"),
        (["--texture-size", "1"], "64..8192"),
        (["--mask", "missing.png"], "no picture at"),
        (["-o", "x"], "must end in .glb"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_made(options, sentence, picture, tmp_path, capsys):
    if "-o" not in options:
        options = [*options, "-o", tmp_path / "new" / "x.glb"]
    assert sentence in refused(capsys, "image-to-3d", picture, *options)
    assert names(tmp_path) == ["box.png"]


def test_argparse_refuses_with_the_same_exit_code(capsys):
    for args in ([], ["dream"], ["image-to-3d"], ["image-to-3d", "x.png", "--seed", "one"]):
        with pytest.raises(SystemExit) as stopped:
            run(*args)
        assert stopped.value.code == cli.UNUSABLE
    assert "invalid int value: 'one'" in capsys.readouterr().err


def test_unusable_states_splats_and_meshes_are_refused(made, tmp_path, capsys, picture):
    from safetensors.torch import save_file

    state, splat, glb = (made[1] / f"a.toy{ending}" for ending in (".state.safetensors", ".ply", ".glb"))
    cut = tmp_path / "cut.state.safetensors"
    cut.write_bytes(state.read_bytes()[:-1000])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, str(foreign))
    bare = save_state(tmp_path / "bare.safetensors", load_state(state).field)
    extra = load_state(state).extra
    nerf = {**extra, "plan": {**extra["plan"], "representation": "nerf", "ref_paint_weight": 0.0}}
    nerf = save_state(tmp_path / "nerf.safetensors", load_state(state).field, nerf)
    late = save_state(tmp_path / "late.safetensors", load_state(state).field, {**extra, "k": 2})
    draw(tmp_path / "a_box_texture.png")
    half = tmp_path / "half.ply"
    half.write_bytes(splat.read_bytes()[:3000])
    before = names(tmp_path)
    for args, sentence in (
        (["resume", tmp_path / "none"], "no file"),
        (["resume", picture], "not a whole safetensors"),
        (["resume", cut], "not a whole safetensors"),
        (["resume", foreign], "without a saved field"),
        (["resume", bare], "no run to continue"),
        (["resume", nerf], "optimises nerf"),
        (["resume", late], "iteration 2 of 2"),
        (["mesh", tmp_path / "none.ply"], "check the path"),
        (["mesh", half], "truncated"),
        (["mesh", picture], "not a splat in a format"),
        (["mesh", splat, "-o", splat], "overwrite"),
        (["mesh", splat, "-o", tmp_path / "x.dae"], "must end in"),
        (["mesh", splat, "-o", tmp_path / "a box.obj"], "overwrite"),
        (["turntable", half, "-o", tmp_path / "x.gif"], "truncated"),
        (["mesh", tmp_path / "no.state.safetensors"], "no file"),
        (["turntable", picture], "Meshes are read from"),
        (["turntable", "."], "folder"),
        (["turntable", glb, "-o", tmp_path / "x.png"], "must end in"),
        (["turntable", glb, "-o", tmp_path / "x.gif", "--elevation", 95], "between -90 and 90"),
        (["turntable", glb, "-o", tmp_path / "x.gif", "--frames", 0], "1..1000"),
        (["turntable", glb, "-o", tmp_path / "x.gif", "--frames", 1000, "--size", 4096], "at most 8"),
    ):
        assert sentence in refused(capsys, *args)
        assert names(tmp_path) == before, args


@pytest.mark.parametrize("content", ["missing", "cut", "foreign", "renamed"])
def test_an_unusable_checkpoint_is_refused(content, picture, tmp_path, capsys, monkeypatch):
    from safetensors.torch import save_file

    from microdreamer_core.diffusion.embedded import checkpoint, model
    from microdreamer_core.diffusion.embedded.network import EmbeddedConfig

    path = tmp_path / "model.safetensors"
    metadata = {"kind": checkpoint.KIND, "version": "1", "config": json.dumps(EmbeddedConfig().to_dict())}
    if content != "missing":
        save_file({"codec.x": torch.zeros(9)}, str(path), metadata if content == "renamed" else None)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    load = model.EmbeddedModel.load.__func__
    monkeypatch.setattr(model.EmbeddedModel, "load", classmethod(lambda cls, device: load(cls, path, device)))
    before = names(tmp_path)
    assert run("image-to-3d", picture, "--quiet") == cli.UNUSABLE
    sentence = {"missing": "is not at", "cut": "not a whole", "foreign": "is not an embedded", "renamed": "does not hold"}[
        content
    ]
    assert sentence in capsys.readouterr().err
    assert names(tmp_path) == before


def test_unusable_outputs_are_found_before_the_work(picture, tmp_path, capsys, monkeypatch):
    from microdreamer_core.job import run as job

    monkeypatch.setattr(job, "make_asset", lambda *args, **kwargs: pytest.fail("the work began"))
    (tmp_path / "file").write_text("")
    (tmp_path / "a.glb").mkdir()
    (tmp_path / "b.state.safetensors").mkdir()
    (tmp_path / "c.ply").mkdir()
    draw(tmp_path / "d_sheet.png")
    before = names(tmp_path)
    for output, sentence in (
        ("file/x.glb", "cannot be written"),
        ("a.glb", "is a folder"),
        ("b.glb", "is a folder"),
        ("c.glb", "is a folder"),
    ):
        assert sentence in refused(capsys, "image-to-3d", picture, "-o", tmp_path / output, "--keep-splat")
    assert "overwrite" in refused(capsys, "image-to-3d", tmp_path / "d_sheet.png", "-o", tmp_path / "d.glb")

    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in refused(capsys, "image-to-3d", picture, "-o", tmp_path / "x.glb")
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried"), RuntimeError("can't allocate memory: 9")]
)
def test_a_full_memory_is_one_sentence(monkeypatch, capsys, tmp_path, error):
    from microdreamer_core.job import run as job

    def full(*_, **__):
        raise error

    monkeypatch.setattr(job, "job_from_image", full)
    assert run("image-to-3d", draw(tmp_path / "box.png")) == cli.FAILED
    assert "The memory is full" in capsys.readouterr().err
    monkeypatch.setattr(job, "job_from_image", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("image-to-3d", tmp_path / "box.png")


def test_a_memory_that_gets_full_on_the_way_keeps_what_was_finished(small, picture, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted_at(patch, 1, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
        assert run("image-to-3d", picture, "-o", tmp_path / "x.glb", *RUN) == cli.FAILED
    err = capsys.readouterr().err
    assert "The memory is full" in err and "--nerf-size small" in err
    assert resume_command(err)[:2] == ["resume", str(tmp_path / "x.state.safetensors")]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(InputError, match="no picture"):
        run("image-to-3d", tmp_path / "none.png", "--debug")


def interrupted_at(monkeypatch, k, error):
    """Let saving of iteration k raise ``error``."""
    from microdreamer_core.job import run as job

    original = job.save_run

    def save(path, job, iteration):
        if iteration.k == k:
            raise error
        return original(path, job, iteration)

    monkeypatch.setattr(job, "save_run", save)


def resume_command(err):
    """The arguments of the command that the message gives."""
    words = shlex.split(re.search(r"continue with: (.*)", err)[1])
    assert words[0] == "microdreamer"
    return words[1:]


def assert_same_state(one, other):
    fields = [load_state(path).field.to_state() for path in (one, other)]
    assert fields[0][1] == fields[1][1]
    for name, tensor in fields[0][0].items():
        assert torch.equal(tensor, fields[1][0][name]), name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), cli.STOPPED),
        (OSError(errno.ENOSPC, "No space left on device", "x.state.safetensors"), cli.UNUSABLE),
    ],
)
def test_a_stopped_run_is_continued_bit_for_bit(error, code, small, made, picture, tmp_path, capsys, monkeypatch):
    parts = tmp_path / "my parts"
    with monkeypatch.context() as patch:
        interrupted_at(patch, 1, error)
        assert run("image-to-3d", picture, "-o", parts / "x.glb", "--no-film", *RUN) == code
    assert names(parts) == ["x.state.safetensors"] and load_state(parts / "x.state.safetensors").extra["k"] == 0
    assert run(*resume_command(capsys.readouterr().err)) == cli.DONE
    assert_same_state(made[1] / "a.toy.state.safetensors", parts / "x.state.safetensors")
    assert (made[1] / "a.toy.glb").read_bytes() == (parts / "x.glb").read_bytes()


def test_a_finished_run_can_be_resumed_elsewhere(small, made, tmp_path):
    from microdreamer_core.io.mesh_files import read_mesh

    state = made[1] / "a.toy.state.safetensors"
    assert run("resume", state, "-o", tmp_path / "b.glb", "--no-film", "--faces", 200, "--texture-size", 64) == cli.DONE
    assert names(tmp_path) == ["b.glb", "b.state.safetensors"]
    assert_same_state(state, tmp_path / "b.state.safetensors")
    assert len(read_mesh(tmp_path / "b.glb").faces) <= 220


def test_stopping_before_the_first_iteration_does_not_offer_an_older_run(small, picture, tmp_path, capsys, monkeypatch):
    old = tmp_path / "box.state.safetensors"
    old.write_bytes(b"older run")
    interrupted_at(monkeypatch, -1, KeyboardInterrupt())
    assert run("image-to-3d", picture, "--iterations", 0, "--no-film") == cli.STOPPED
    err = capsys.readouterr().err
    assert "start again" in err and "continue with" not in err
    assert old.read_bytes() == b"older run" and names(tmp_path) == ["box.png", "box.state.safetensors"]


def test_gaussians_without_a_surface_are_kept(small, picture, tmp_path, capsys, monkeypatch):
    from microdreamer_core.fields import gaussians as fields
    from microdreamer_core.job import run as job

    def faint(field):
        logits = torch.full_like(field.parameters.opacity_logits, -9.0)
        return fields.replace(field, parameters=field.parameters._replace(opacity_logits=logits))

    monkeypatch.setattr(job, "clean", faint)
    code = run("image-to-3d", picture, "--iterations", 0, "--keep-splat", "--no-film", "--quiet")
    lines = capsys.readouterr().err.splitlines()
    assert code == cli.UNUSABLE and len(lines) == 2
    assert "needs Gaussians with opacity" in lines[0]
    assert "box.state.safetensors" in lines[1] and "box.ply" in lines[1]
    assert names(tmp_path) == ["box.ply", "box.png", "box.state.safetensors"]


def test_numbers_that_are_not_finite_end_with_1(small, picture, tmp_path, capsys, monkeypatch):
    from microdreamer_core.diffusion.embedded.model import EmbeddedDiffusion

    monkeypatch.setattr(EmbeddedDiffusion, "decode", lambda self, latents: torch.full((4, 32, 32, 3), float("nan")))
    assert run("image-to-3d", picture, "--quiet") == cli.FAILED
    assert "not finite at iteration -1" in capsys.readouterr().err
    assert names(tmp_path) == ["box.png"]


def test_ctrl_c_saves_the_last_iteration(picture, tmp_path):
    """A real SIGINT to a real process, in the middle of 10000 iterations."""
    code = (
        "import signal, sys, torch\n"
        "sys.path.insert(0, 'tests')\n"
        "from helpers.small_model import EmbeddedModel, small_load\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background processes may be born with it ignored
        "torch.set_num_threads(1)\n"
        "EmbeddedModel.load = small_load()\n"
        "from microdreamer_core.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    args = ["image-to-3d", str(picture), "--iterations", "10000", "--report"]
    state = tmp_path / "box.state.safetensors"
    process = subprocess.Popen([sys.executable, "-c", code, *args], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == cli.STOPPED, err
    assert "Traceback" not in err
    assert resume_command(err) == ["resume", str(state), "--report"]
    assert names(tmp_path) == ["box.png", "box.state.safetensors"]
    assert load_state(state).extra["k"] >= -1


def test_the_module_runs_and_every_command_explains_itself(capsys):
    done = subprocess.run([sys.executable, "-m", "microdreamer_core.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "examples:" in done.stdout
    for command in ("image-to-3d", "resume", "mesh", "turntable", "models"):
        assert command in done.stdout
        with pytest.raises(SystemExit) as stopped:
            run(command, "--help")
        assert stopped.value.code == 0 and len(capsys.readouterr().out) > 100


def test_models_lists_the_presets_and_says_which_run(capsys):
    from microdreamer_core.sir.presets import PRESETS

    assert run("models") == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    runs = {line.split()[0]: line for line in lines if line.split()[0] in PRESETS}
    assert set(runs) == set(PRESETS)
    assert "yes, the default" in runs["embedded"] and "no: camera distance" in runs["mvdream-nerf"]
    assert runs["embedded-nerf"].endswith("yes, the default for a NeRF")
    assert "no: views" in runs["stable-zero123-gaussians"]


def test_the_time_left_follows_each_kind_of_step():
    from microdreamer_core.cli.progress import TimeLeft

    now = 0.0
    left = TimeLeft({"refine": 4, "reconstruct": 10}, clock=lambda: now)
    for kind, seconds in [("refine", 30.0), ("refine", 2.0), ("reconstruct", 20.0), ("reconstruct", 0.5)]:
        left.begins(kind)
        assert left.seconds() is None
        now += seconds
    left.ends()
    # the first of each compiled kernels; 2 calls of 2 s and 8 steps of 0.5 s are left
    assert left.seconds() == pytest.approx(2 * 2.0 + 8 * 0.5)
    now += 100.0  # between steps nothing counts
    for _ in range(2):
        left.begins("refine")
        now += 2.0
    left.ends()
    assert left.seconds() == pytest.approx(8 * 0.5)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_is_short_when_piped_and_a_bar_on_a_terminal(stream, picture):
    from microdreamer_core.cli.progress import JobProgress
    from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
    from microdreamer_core.job.run import job_from_image
    from microdreamer_core.sir.iterations import Iteration
    from microdreamer_core.sir.step import Step

    job = job_from_image(picture, iterations=1000)
    field = Gaussians.ball(GaussianSettings(num_points=10))
    with JobProgress(job, stream=stream()) as progress:
        out = progress._stream
        progress.stage("sir")
        for k in range(-1, 1000):
            for kind, count in (("refine", 3), ("reconstruct", 3)):
                for done in range(count):
                    progress.hooks.progress(kind, done, count)
            progress.iteration(Iteration(Step.of_plan(job.plan, 0, k, 64), field, torch.zeros(4, 8, 8, 3), (42.0,), 0))
            if k == 500:
                time.sleep(0.2)  # the bar is redrawn ten times a second at most
        progress.stage("mesh")
    text = out.getvalue()
    if stream is Terminal:
        assert "\r" in text and "left" in text and text.rstrip().endswith("done")
        return
    lines = text.splitlines()
    assert "\r" not in text and len(lines) == 23
    assert re.fullmatch(r"microdreamer: k 500/1000, t2 \d+, loss 42, 10 Gaussians, .* left, then the mesh", lines[11])
    quiet = io.StringIO()
    with JobProgress(job, quiet=True, stream=quiet) as progress:
        progress.stage("sir")
    assert quiet.getvalue() == ""


def test_the_shipped_model_makes_an_object(picture, tmp_path):
    from microdreamer_core.diffusion.embedded.checkpoint import SHIPPED
    from microdreamer_core.io.mesh_files import read_mesh

    if not SHIPPED.is_file():
        pytest.skip("the shipped checkpoint is not in this checkout")
    assert run("image-to-3d", picture, "--iterations", 0, "--no-film", "--quiet", *TINY) == cli.DONE
    texture = read_mesh(picture.with_suffix(".glb")).texture.mean((0, 1))
    assert texture[0] > 1.5 * max(texture[1:])


def test_a_closed_pipe_ends_quietly():
    command = [sys.executable, "-m", "microdreamer_core.cli", "fetch"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == cli.DONE and said == ""
