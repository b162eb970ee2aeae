"""Random command lines: an exit code, at most one sentence, no traceback, and no file changed that was not announced."""

import contextlib
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.damage import hostile
from microdreamer_core.cli import main as cli
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.io.mesh_files import write_mesh
from microdreamer_core.io.splats import write_gaussians
from microdreamer_core.io.state import save_state
from microdreamer_core.job.run import job_from_image, run_record
from microdreamer_core.mesh import Mesh

BIRD = Path(__file__).resolve().parents[2] / "samples" / "bird.png"
NUMBERS = ["0", "1", "-1", "2", "99", "1e3", "nan", "inf", "-inf", "", "x", "1" + "0" * 22, "1_000", "0x10", " 5", "５", "-0.0"]
WORDS = ["", "x", "auto", "cpu", "cuda", "mps", "float16", "nerf", "gaussians", "embedded", "embedded-nerf", "small", "lgm"]
WORDS += ["-y", "+z", "spz"]
WORDS += ["\0", "ü", "../..", "-h", "--", "'; ls", "a" * 5000, "\udcff", "iterations=3", "t2_start=2", "steps=x", "=", "size"]
NUMBERED = ["--elevation", "--iterations", "--seed", "--faces", "--texture-size", "--size", "--frames", "--nerf-steps"]
NAMED = [
    "--device",
    "--dtype",
    "--representation",
    "--preset",
    "--nerf-size",
    "--variant",
    "--model",
    "--prompt",
    "--mask",
    "--up",
]
NAMED += ["--splat-format"]
FLAGS = ["--keep-splat", "--report", "--no-film", "--quiet", "--low-memory", "--no-ema", "--version", "--help"]
FILES = ["bird.png", "s.ply", "a.state.safetensors", "m.glb", "dir.glb", "missing.png", "text", "", ".", "..", "/", "a\0b"]
FILES += ["x" * 300 + ".png"]
OUTPUTS = [
    "o.glb",
    "o.obj",
    "o.ply",
    "o.spz",
    "o.mp4",
    "o.gif",
    "dir.glb",
    "sub/sub/o.glb",
    "text/o.glb",
    "bird.png",
    "s.ply",
    "",
    ".",
]
OUTPUTS += ["/dev/full", ".glb", "o.GLB", "o", "x" * 300 + ".glb", "ü.glb", "new\nline.glb", "-o.glb", "m.glb"]
KEPT = ("bird.png", "s.ply", "a.state.safetensors", "text")
RIGHT = {"image-to-3d": "bird.png", "resume": "a.state.safetensors", "mesh": "s.ply", "turntable": "m.glb"}

option = st.one_of(
    st.tuples(st.sampled_from(NUMBERED), st.sampled_from(NUMBERS)),
    st.tuples(st.sampled_from([*NAMED, "--set"]), st.sampled_from(WORDS + FILES)),
    st.tuples(st.sampled_from(FLAGS)),
)
command = st.one_of(
    st.sampled_from(list(RIGHT)).flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(st.just(RIGHT[name]), st.sampled_from(FILES)))
    ),
    st.tuples(st.just("text-to-3d"), st.sampled_from(["a duck", "", " ", "../../x", "\n", "\udcff", "ü" * 300, "-x"])),
    st.tuples(st.just("models"), st.sampled_from(FILES)),
    st.tuples(st.just("clip-similarity"), st.sampled_from(FILES), st.just("--image"), st.sampled_from(FILES)),
    st.tuples(st.just("fetch"), st.sampled_from(["nope", "mvdream", "-"]), st.just("--to"), st.sampled_from(["text", "new"])),
    st.tuples(st.sampled_from(["nonsense", ""])),
)
output = st.one_of(st.just(()), st.tuples(st.just("-o"), st.sampled_from(OUTPUTS)))


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin")
    picture = folder / "bird.png"
    with Image.open(BIRD) as bird:
        bird.resize((48, 48)).save(picture)
    (folder / "dir.glb").mkdir()
    (folder / "text").write_text("x")
    field = Gaussians.ball(GaussianSettings(num_points=12))
    write_gaussians(folder / "s.ply", field)
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    write_mesh(folder / "m.glb", Mesh(vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])))
    job = job_from_image(picture, iterations=4)
    save_state(folder / "a.state.safetensors", field, run_record(job.seed, 0, job.source, job.plan, job.model, job.reference))
    return folder


@pytest.fixture(scope="module")
def light():
    """The heavy parts are cut off; arguments, pictures, plans and files before them are real."""
    from microdreamer_core.io import video
    from microdreamer_core.job import run
    from microdreamer_core.meshing import pipeline

    def begin(*_, **__):
        raise InputError("The heavy part would begin here.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "make_asset", begin)
        patch.setattr(pipeline, "texture_mesh", begin)
        patch.setattr(video, "write_video", begin)
        patch.setattr(sys, "stdin", None)
        yield


@hostile
@given(command, output, st.lists(option, max_size=3))
def test_command_lines(origin, light, tmp_path_factory, command, output, options):
    folder = tmp_path_factory.mktemp("arguments")
    shutil.copytree(origin, folder, dirs_exist_ok=True)
    argv = [*command, *output, *(word for words in options for word in words)]
    before = {name: (folder / name).read_bytes() for name in KEPT}
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(argv)
            except SystemExit as end:
                code = end.code
    finally:
        os.chdir(here)
    text = err.getvalue()
    assert code in (cli.DONE, cli.UNUSABLE, None), (argv, code, text)
    assert "Traceback" not in text
    if code == cli.UNUSABLE and not text.startswith("usage:"):
        lines = [line for line in text.splitlines() if line.startswith("microdreamer: ")]
        assert lines and len(lines) <= 2, text
    assert {name: (folder / name).read_bytes() for name in KEPT} == before, argv
    left = [path.name for path in folder.rglob(".*")]
    assert left in ([], [".glb"]), (argv, left)
    shutil.rmtree(folder)
