"""Every reader of foreign files, on damaged ones: it reads them, or refuses them in one sentence."""

import gzip
import io
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from safetensors.torch import save_file

from helpers import tiny_checkpoints as tiny
from helpers.damage import check_refusal, damaged, hostile, text_of_glb, text_of_safetensors, text_of_state
from microdreamer_core.checkpoints.load import inspect
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.fields.place import fit_splats, move_gaussians
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.io.splats import holds_splat, read_splat, write_gaussians
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.job.run import job_from_image, resume_job, run_record
from microdreamer_core.mesh import Mesh
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.presets import PRESETS, get_plan
from microdreamer_core.util.settings import parse_assignments, settings_of
from microdreamer_core.util.vocabulary import SPLAT_FORMATS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


def stored(make):
    """The bytes that ``make`` writes to a path that it gets."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(make(Path(folder))).read_bytes()


def encoded(kind, mode="RGB", **options):
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, len(mode)), np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(stream, kind, **options)
    return stream.getvalue()


def small_mesh(textured):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    if not textured:
        return Mesh(vertices, faces, colors=vertices.clamp(0, 1))
    return Mesh(vertices, faces, uvs=vertices[:, :2], texture=torch.rand(16, 16, 3, generator=torch.Generator().manual_seed(0)))


PICTURES = [encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")] + [
    encoded("PNG", "RGBA"),
    encoded("PNG", "L"),
    encoded("PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()),
]
GLBS = [stored(lambda f, t=t: write_mesh(f / "a.glb", small_mesh(t))) for t in (False, True)]
OBJS = [stored(lambda f, t=t: write_mesh(f / "a.obj", small_mesh(t))) for t in (False, True)]
PLYS = [stored(lambda f: write_mesh(f / "a.ply", small_mesh(False)))]
FIELD = Gaussians.ball(GaussianSettings(num_points=12))
SPLATS = {kind: stored(lambda f, k=kind: write_gaussians(f / f"a.{k}", FIELD)) for kind in SPLAT_FORMATS}
KSPLAT = struct.pack("<4B4IH", 0, 1, 0, 0, 1, 1, 3, 3, 0).ljust(4096, b"\0") + struct.pack("<2I", 3, 3).ljust(1024, b"\0")
SPLATS["ksplat"] = KSPLAT + struct.pack("<10f4B", 1, 2, 3, 0.5, 0.25, 1, 1, 0, 0, 0, 255, 0, 51, 204) * 3


@hostile
@given(damaged(*PICTURES))
def test_pictures(folder, content):
    (folder / "a.png").write_bytes(content)
    check_refusal(read_picture, folder / "a.png")


@hostile
@given(damaged(*GLBS, text=text_of_glb))
def test_glb(folder, content):
    (folder / "a.glb").write_bytes(content)
    mesh = check_refusal(read_mesh, folder / "a.glb")
    assert mesh is None or bool(mesh.vertices.isfinite().all())


@hostile
@given(damaged(*OBJS))
def test_obj(folder, content):
    (folder / "a.obj").write_bytes(content)
    mesh = check_refusal(read_mesh, folder / "a.obj")
    assert mesh is None or bool(mesh.vertices.isfinite().all())


@hostile
@given(damaged(*PLYS))
def test_mesh_ply(folder, content):
    (folder / "m.ply").write_bytes(content)
    mesh = check_refusal(read_mesh, folder / "m.ply")
    assert mesh is None or bool(mesh.vertices.isfinite().all())


@hostile
@given(st.data())
def test_splats(folder, data):
    kind = data.draw(st.sampled_from(sorted(SPLATS)))
    content = SPLATS[kind]
    if kind == "spz" and data.draw(st.booleans()):  # what lies inside; a damaged gzip is mostly refused as a whole
        content = gzip.compress(data.draw(damaged(gzip.decompress(content))), mtime=0)
    else:
        content = data.draw(damaged(content, text=text_of_glb if kind == "glb" else None))
    path = folder / f"s.{kind}"
    path.write_bytes(content)
    assert holds_splat(path) in (True, False)
    field = check_refusal(read_splat, path)
    if field is not None:
        assert len(field) and all(bool(value.isfinite().all()) for value in field.parameters)
        placed = move_gaussians(field, fit_splats(field.splats()))
        assert all(bool(value.isfinite().all()) for value in placed.parameters)


def saved_run(kind):
    job = job_from_image(ROOT / "samples" / "bird.png", representation=kind, iterations=4)
    field = FIELD if kind == "gaussians" else NeRF.start(NeRFSettings(log2_table=6))
    extra = run_record(job.seed, 0, job.source, job.plan, job.model, job.reference, options=job.options)
    return stored(lambda f: save_state(f / "a.state.safetensors", field, extra))


@pytest.fixture(scope="module")
def runs():
    return [saved_run(kind) for kind in ("gaussians", "nerf")]


@hostile
@given(st.data())
def test_saved_runs(folder, runs, data):
    content = data.draw(st.one_of(damaged(*runs, text=text_of_safetensors), damaged(*runs, text=text_of_state)))
    path = folder / "a.state.safetensors"
    path.write_bytes(content)
    check_refusal(load_state, path)
    check_refusal(resume_job, path)


@pytest.fixture(scope="module")
def checkpoints():
    """Checkpoints of torch, of today and of before 1.6, and safetensors, with the names of a published one."""
    tensors = {name: value.flatten()[:4].clone() for name, value in list(tiny.original("zero123").items())[:40]}
    files = {".ckpt": [], ".safetensors": [stored(lambda f: save_file(tensors, f / "a") or f / "a")]}
    for new in (True, False):
        stream = io.BytesIO()
        torch.save({"state_dict": tensors}, stream, _use_new_zipfile_serialization=new)
        files[".ckpt"].append(stream.getvalue())
    return files


@hostile
@given(st.data())
def test_checkpoints(folder, checkpoints, data):
    ending = data.draw(st.sampled_from(sorted(checkpoints)))
    text = text_of_safetensors if ending == ".safetensors" else None
    path = folder / f"stable_zero123{data.draw(st.sampled_from(sorted(checkpoints)))}"  # the content decides, not the ending
    path.write_bytes(data.draw(damaged(*checkpoints[ending], text=text)))
    check_refusal(inspect, path)


NAMES = st.one_of(st.sampled_from(sorted(settings_of(SIRPlan))), st.text(max_size=6))
VALUES = st.one_of(
    st.floats().map(str),
    st.integers().map(str),
    st.text(max_size=8),
    st.sampled_from(["none", "True", "1e3", "0x10", "٣", "nerf", "gaussians", "latent", "hybrid"]),
)


@hostile
@given(st.sampled_from(sorted(PRESETS)), st.lists(st.tuples(NAMES, VALUES), max_size=4))
def test_plans(preset, changes):
    def plan():
        return get_plan(preset, **parse_assignments(SIRPlan, [f"{name}={value}" for name, value in changes]))

    made = check_refusal(plan)
    if made is not None:
        assert made.evaluations(0).per_view >= 0 and len(made.times(0)) == made.iterations
