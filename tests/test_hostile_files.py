"""Files that want more than to be read: images that choose their decoder, meshes that name files elsewhere, false states."""

import ast
import base64
import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, features
from safetensors import safe_open
from safetensors.torch import save_file

from helpers import tiny_checkpoints as tiny
from microdreamer_core.checkpoints import torch_files
from microdreamer_core.checkpoints.files import WeightFile
from microdreamer_core.checkpoints.load import inspect, load
from microdreamer_core.checkpoints.registry import model_spec
from microdreamer_core.cli.main import main
from microdreamer_core.diffusion.embedded import checkpoint as embedded_checkpoint
from microdreamer_core.diffusion.embedded.checkpoint import SHIPPED, load_checkpoint
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.job.run import job_from_image, resume_job, run_record
from microdreamer_core.mesh import Mesh
from microdreamer_core.util.image_files import FORMATS, LARGEST, check_encoded, open_image

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


def encoded(kind="PNG", color=(200, 30, 30), size=(32, 32), **options):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, kind, **options)
    return stream.getvalue()


def refusal(call, *arguments):
    """The one sentence with which a call refuses."""
    with pytest.raises(InputError) as refused:
        call(*arguments)
    text = str(refused.value)
    assert text and "\n" not in text and len(text) < 500
    return text


# --- who opens images


def opened_images(path):
    """Lines of a module that let Pillow open an image by itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open"):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image" and "open" in [name.name for name in node.names]:
            yield node.lineno
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "PIL"
            and [n for n in node.names if n.name == "Image" and n.asname]
        ):
            yield node.lineno


def test_images_are_opened_in_one_place():
    modules = [path for folder in ("microdreamer_core", "nodes") for path in (ROOT / folder).rglob("*.py")]
    opening = [path.name for path in modules for _ in opened_images(path)]
    assert opening == ["image_files.py"]


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A ``gs`` first on the PATH that leaves a mark; () -> whether it was started since the last question."""
    mark, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def started():
        monkeypatch.setattr(EpsImagePlugin, "gs_binary", None, raising=False)
        found = mark.exists()
        mark.unlink(missing_ok=True)
        return found

    started()
    if os.name == "posix":  # what this guards against: Pillow by itself does start it
        with pytest.raises(Exception, match="gs"):  # noqa: B017 - the kind is Pillow's choice
            Image.open(io.BytesIO(POSTSCRIPT)).load()
        assert started()
    return started


def test_a_picture_of_postscript_is_refused(ghostscript, tmp_path, capsys):
    (tmp_path / "chair.png").write_bytes(POSTSCRIPT)
    assert main(["image-to-3d", str(tmp_path / "chair.png"), "-o", str(tmp_path / "a.glb")]) == 2
    message = capsys.readouterr().err.strip()
    assert "chair.png cannot be read as a picture" in message and "\n" not in message
    assert not ghostscript() and not (tmp_path / "a.glb").exists()


def ball_document(image):
    """A textured tetrahedron as glTF: (document without buffer and image, binary part, where the image begins)."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], "<f4")
    faces, uvs = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]], "<u4"), vertices[:, :2].copy()
    parts = [vertices.tobytes(), faces.tobytes(), uvs.tobytes(), image]
    starts = np.cumsum([0, *map(len, parts)])
    accessors = [("VEC3", 5126, 4), ("SCALAR", 5125, 12), ("VEC2", 5126, 4)]
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 2}, "indices": 1, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 3, "mimeType": "image/png"}],
        "accessors": [
            {"bufferView": i, "componentType": code, "count": count, "type": kind, "min": [0] * 3, "max": [1] * 3}
            for i, (kind, code, count) in enumerate(accessors)
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": int(start), "byteLength": len(part)} for start, part in zip(starts, parts, strict=False)
        ],
        "buffers": [{"byteLength": int(starts[-1])}],
    }
    return document, b"".join(parts)


def write_gltf(path, document, binary):
    if path.suffix == ".gltf":
        path.write_text(json.dumps(document))
        return path
    text = json.dumps(document).encode()
    text, binary = text + b" " * (-len(text) % 4), binary + b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
    return path


def write_obj(path, texture="t.png", material="m.mtl"):
    path.with_name("m.mtl").write_text(f"newmtl a\nKd 1 1 1\nmap_Kd {texture}\n")
    lines = [f"mtllib {material}", "usemtl a", "v 0 0 0", "v 1 0 0", "v 0 1 0", "v 0 0 1", "vt 0 0", "vt 1 0", "vt 0 1"]
    path.write_text("\n".join([*lines, "f 1/1 2/2 3/3", "f 1/1 2/2 4/3", "f 1/1 3/2 4/3", "f 2/1 3/2 4/3"]) + "\n")
    return path


def image_uris(tmp_path, content):
    """The same image at every place where a glTF may keep it."""
    (tmp_path / "t.png").write_bytes(content)
    yield {"bufferView": 3, "mimeType": "image/png"}
    yield {"uri": "t.png"}
    yield {"uri": "data:image/png;base64," + base64.b64encode(content).decode()}


@pytest.mark.parametrize("several", [False, True], ids=["one material", "two materials"])
def test_textures_of_postscript_are_refused(several, ghostscript, tmp_path):
    document, binary = ball_document(POSTSCRIPT)
    if several:  # which trimesh packs into one texture while it reads
        document["materials"] *= 2
        document["meshes"] = [{"primitives": [{**document["meshes"][0]["primitives"][0], "material": i} for i in (0, 1)]}]
    for image in image_uris(tmp_path, POSTSCRIPT):
        said = refusal(read_mesh, write_gltf(tmp_path / "a.glb", {**document, "images": [image]}, binary))
        assert "texture of a.glb" in said and "cannot be read as a picture" in said
    assert "t.png" in refusal(read_mesh, write_obj(tmp_path / "a.obj"))
    (tmp_path / "m.txt").write_bytes(POSTSCRIPT)
    assert "m.txt" in refusal(read_mesh, write_obj(tmp_path / "b.obj", material="m.txt"))
    assert not ghostscript()


def test_a_material_file_named_as_its_own_texture_is_no_postscript(ghostscript, tmp_path):
    path = write_obj(tmp_path / "a.obj", texture="m.mtl")
    (tmp_path / "m.mtl").write_bytes(POSTSCRIPT + b"newmtl a\nmap_Kd m.mtl\n")
    assert read_mesh(path).texture is None
    assert not ghostscript()


def test_the_picture_in_a_saved_run_of_postscript_is_refused(ghostscript, state):
    path = state(lambda extra: extra["reference"].update(png=base64.b64encode(POSTSCRIPT).decode()))
    assert "saved reference picture cannot be read as a picture" in refusal(resume_job, path)
    assert not ghostscript()


# --- images


@pytest.mark.parametrize("kind", FORMATS)
def test_usual_formats_are_opened(kind, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    lossy = {"quality": 100} if kind in ("JPEG", "AVIF", "WEBP") else {}
    (tmp_path / "a.bin").write_bytes(encoded(kind, **lossy))
    assert torch.allclose(read_picture(tmp_path / "a.bin"), torch.tensor([200.0, 30, 30]) / 255, atol=0.03)
    assert Image.open(io.BytesIO(check_encoded((tmp_path / "a.bin").read_bytes(), "a"))).format in ("PNG", kind)


def test_photos_of_phones_with_a_second_picture_are_jpegs(tmp_path):
    options = {"save_all": True, "append_images": [Image.new("RGB", (32, 32))], "quality": 100}
    (tmp_path / "a.jpg").write_bytes(encoded("MPO", **options))
    assert torch.allclose(read_picture(tmp_path / "a.jpg"), torch.tensor([200.0, 30, 30]) / 255, atol=0.03)
    assert Image.open(io.BytesIO(check_encoded((tmp_path / "a.jpg").read_bytes(), "a"))).format in ("PNG", "JPEG")


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "SGI", "ICO", "JPEG2000", "DDS"])
def test_unusual_formats_are_refused(kind):
    content = encoded(kind)
    assert "none of PNG, JPEG" in refusal(open_image, content, "a.png")
    assert "none of PNG, JPEG" in refusal(check_encoded, content, "a.png")


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(width, height):
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(LARGEST + 1, 16), (LARGEST, LARGEST), (14000, 13000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_size(size, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other packs in the same process do
    for call in (open_image, check_encoded):
        assert f"at most {LARGEST} a side and 178 million work" in refusal(call, claiming(*size), "a.png")


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "TIFF", "GIF", "PNG", "JPEG", "TGA"])
def test_damaged_images_are_refused_or_read(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    whole, rng = encoded(kind), np.random.default_rng(0)
    refused = 0
    for cut in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        for content in (whole[:cut], damaged.tobytes()):
            try:
                open_image(content, "a")
            except InputError:
                refused += 1
    assert refused > 10


# --- what meshes name


@pytest.fixture
def elsewhere(tmp_path):
    """A folder beside the mesh's with a green texture, a material and a buffer that must not be read; and the mesh's."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir(), inside.mkdir()
    (outside / "green.png").write_bytes(encoded(color=(0, 255, 0)))
    (outside / "c.mtl").write_text("newmtl a\nmap_Kd green.png\n")
    (outside / "b.bin").write_bytes(ball_document(encoded())[1])
    return outside, inside


def names_of(outside, inside, file):
    (inside / "link").symlink_to(outside, target_is_directory=True)
    (inside / f"linked{Path(file).suffix}").symlink_to(outside / file)
    absolute = f"{outside}/{file}"
    return [absolute, f"../outside/{file}", f"./x/../../outside/{file}", f"link/{file}", f"linked{Path(file).suffix}",
            f"file://{absolute}", f"..%2foutside%2f{file}", f"..\\outside\\{file}", f"\\\\server\\share\\{file}"]  # fmt: skip


def shows_green(mesh):
    return mesh.texture is not None and bool((mesh.texture[..., 1] > 0.9).any())


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_nothing_outside_the_folder_is_read(elsewhere):
    outside, inside = elsewhere
    document, binary = ball_document(encoded())
    for name in names_of(outside, inside, "green.png"):
        mesh = read_mesh(write_gltf(inside / "a.glb", {**document, "images": [{"uri": name}]}, binary))
        assert mesh.texture is None and len(mesh.faces) == 4, name
        assert not shows_green(read_mesh(write_obj(inside / "a.obj", texture=name))), name
    (inside / "link").unlink()
    for name in names_of(outside, inside, "c.mtl"):
        assert not shows_green(read_mesh(write_obj(inside / "a.obj", material=name))), name
    (inside / "link").unlink()
    for name in names_of(outside, inside, "b.bin"):
        document["buffers"] = [{"byteLength": len(binary), "uri": name}]
        for kind in ("a.glb", "a.gltf"):
            assert "not in its folder" in refusal(read_mesh, write_gltf(inside / kind, document, b"")), name


@pytest.mark.parametrize(
    "name", ["t.png", "maps/t.png", "maps\\t.png", "C:\\work\\chair\\t.png", "/home/someone/t.png", "../t.png"]
)
def test_what_lies_beside_the_mesh_is_read_wherever_it_once_lay(name, tmp_path):
    (tmp_path / "maps").mkdir()
    for place in (tmp_path, tmp_path / "maps"):
        (place / "t.png").write_bytes(encoded())
    assert read_mesh(write_obj(tmp_path / "a.obj", texture=name)).texture.shape == (32, 32, 3)
    document, binary = ball_document(b"")
    (tmp_path / "my buffer.bin").write_bytes(binary)
    document["buffers"] = [{"byteLength": len(binary), "uri": "my%20buffer.bin"}]
    document["images"] = [{"uri": name}]
    assert read_mesh(write_gltf(tmp_path / "a.gltf", document, b"")).texture.shape == (32, 32, 3)


@pytest.mark.parametrize("marked", ["toy.obj", "toy.mtl"])
def test_the_mark_that_windows_editors_write_is_no_word(marked, tmp_path):
    files = {
        "toy.obj": "mtllib toy.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "toy.mtl": "newmtl a\nKd 0.8 0.1 0.1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig" if name == marked else "utf-8")
    mesh = read_mesh(tmp_path / "toy.obj")
    assert len(mesh.vertices) == 3 and mesh.colors[:, 0].min() > 0.7 and mesh.colors[:, 1].max() < 0.2


def test_textures_in_a_file_are_read_as_before(tmp_path):
    document, binary = ball_document(encoded("WEBP", lossless=True))
    for image in image_uris(tmp_path, encoded("WEBP", lossless=True)):
        mesh = read_mesh(write_gltf(tmp_path / "a.glb", {**document, "images": [image]}, binary))
        assert torch.allclose(mesh.texture, torch.tensor([200.0, 30, 30]) / 255)
    normal_map = {**document, "images": [{"bufferView": 3}, {"uri": "data:image/ktx2;base64,q0tUWCAyMLs="}]}
    normal_map["materials"] = [{**document["materials"][0], "normalTexture": {"index": 1}}]
    normal_map["textures"] = [{"source": 0}, {"source": 1}]
    assert read_mesh(write_gltf(tmp_path / "a.glb", normal_map, binary)).texture is not None


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_own_meshes_keep_their_texture(suffix, tmp_path):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    texture = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2]]), uvs=vertices[:, :2].clone(), texture=texture)
    assert torch.allclose(read_mesh(write_mesh(tmp_path / f"a{suffix}", mesh)).texture, texture)


@pytest.mark.parametrize("what", ["faces", "vertices"])
def test_meshes_with_impossible_numbers_are_refused(what, tmp_path):
    document, binary = ball_document(encoded())
    changed = bytearray(binary)
    changed[48:52] = struct.pack("<I", 9) if what == "faces" else changed[48:52]
    changed[0:4] = struct.pack("<f", float("nan")) if what == "vertices" else changed[0:4]
    refusal(read_mesh, write_gltf(tmp_path / "a.glb", document, bytes(changed)))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "null", '{"buffers": 5}', '{"images": [{}], "materials": [5]}'])
def test_damaged_gltf_is_refused(text, tmp_path):
    (tmp_path / "a.gltf").write_text(text)
    refusal(read_mesh, tmp_path / "a.gltf")


# --- saved runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A saved run of each representation."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for kind in ("gaussians", "nerf"):
        job = job_from_image(SAMPLES / "bird.png", representation=kind, iterations=4)
        settings = GaussianSettings(num_points=40)
        field = Gaussians.ball(settings) if kind == "gaussians" else NeRF.start(NeRFSettings(log2_table=6))
        extra = run_record(job.seed, 0, job.source, job.plan, job.model, job.reference, options=job.options)
        found[kind] = save_state(folder / f"{kind}.state.safetensors", field, extra)
    return found


@pytest.fixture
def state(runs, tmp_path):
    """(change of the run's record, of the field's values, of its tensors; kind) -> a state that says so."""

    def made(extra=None, values=None, tensors=None, kind="gaussians"):
        with safe_open(runs[kind], "pt") as file:
            metadata, content = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, change in (("extra", extra), ("values", values)):
            if change is not None:
                value = json.loads(metadata[name])
                metadata[name] = json.dumps(change(value) or value)
        if tensors is not None:
            tensors(content)
        save_file(content, tmp_path / "a.state.safetensors", metadata)
        return tmp_path / "a.state.safetensors"

    return made


def test_saved_runs_as_they_are_go_on(state):
    assert resume_job(state()).first == 1
    assert resume_job(state(kind="nerf")).first == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("source", 5), ("source", None), ("model", ["embedded"]), ("k", True), ("k", 1.0), ("k", 10**9), ("seed", "7"),
     ("seed", None), ("seed", float("inf")), ("prompt", 5), ("prompt", "a bird"), ("negative", ["x"]), ("options", 5),
     ("options", {"ema": "no"}), ("options", {"more": 1}), ("plan", None), ("plan", []), ("reference", None),
     ("reference", {"png": "?"})],
)  # fmt: skip
def test_a_saved_run_is_checked_like_the_command_line(key, value, state):
    refusal(resume_job, state(lambda extra: extra.update({key: value})))


@pytest.mark.parametrize("elevation", [float("nan"), 1e308, 90, -90, "5", None, True])
def test_the_saved_elevation_is_checked(elevation, state):
    said = refusal(resume_job, state(lambda extra: extra["reference"].update(elevation=elevation)))
    assert "elevation must lie between -90 and 90" in said
    assert said.split(", got")[0] == refusal(lambda: job_from_image(SAMPLES / "bird.png", elevation=95)).split(", got")[0]


@pytest.mark.parametrize(
    "name,value",
    [("iterations", 10**7), ("steps", 10**9), ("views", 4 * 10**8), ("image_size", 10**6), ("radius", float("nan"))],
)
def test_the_saved_plan_is_checked(name, value, state):
    message = refusal(resume_job, state(lambda extra: extra["plan"].update({name: value})))
    assert f"setting {name} " in message and "of the plan must be" in message


@pytest.mark.parametrize("image", [Image.new("RGB", (64, 64)), Image.new("RGBA", (64, 32)), Image.new("L", (64, 64))])
def test_the_saved_picture_is_square_with_coverage(image, state):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    path = state(lambda extra: extra["reference"].update(png=base64.b64encode(stream.getvalue()).decode()))
    assert "must be square and RGBA" in refusal(resume_job, path)


@pytest.mark.parametrize("kind", ["gaussians", "nerf"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.float16, torch.int32, "shape", "gone"], ids=str)
def test_saved_tensors_are_checked(kind, value, state):
    name = "exp_avg.means" if kind == "gaussians" else "exp_avg.table"

    def change(tensors):
        if isinstance(value, float):
            tensors[name][1] = value
        elif isinstance(value, torch.dtype):
            tensors[name] = tensors[name].to(value)
        elif value == "shape":
            tensors[name] = tensors[name][1:].clone()
        else:
            del tensors[name]

    refusal(load_state, state(tensors=change, kind=kind))


@pytest.mark.parametrize(
    ("name", "value"),
    [("parameters.log_scales", 1e20), ("parameters.log_scales", 100.0), ("parameters.means", 1e30), ("parameters.quats", 0.0),
     ("exp_avg_sq.means", -1.0), ("views_seen", -1.0)],
)  # fmt: skip
def test_gaussians_that_no_run_leaves_are_refused(name, value, state):
    refusal(load_state, state(tensors=lambda tensors: tensors[name].fill_(value)))


@pytest.mark.parametrize("kind", ["gaussians", "nerf"])
@pytest.mark.parametrize("value", [None, "x", [], {}, float("nan"), float("inf"), True])
def test_saved_settings_are_checked(kind, value, state):
    with safe_open(state(kind=kind), "pt") as file:
        values = json.loads(file.metadata()["values"])
    allowed = [("renderer", "x"), ("density", {})]  # an unknown renderer is refused where it is chosen, on its device
    for name in values["settings"]:
        if (name, value) in allowed or (value is True and name == "antialiased"):
            continue
        if value == float("inf") and kind == "gaussians" and isinstance(values["settings"][name], float):
            continue  # "never" is a threshold too
        refusal(load_state, state(values=lambda v, name=name: v["settings"].update({name: value}), kind=kind))
    for name in ("step", "seed") if value is not True else ():
        refusal(load_state, state(values=lambda v, name=name: v.update({name: value}), kind=kind))


@pytest.mark.parametrize("text", ["", "null", "[]", "5", "[" * 100_000, '{"a":' * 100_000, "NaN"])
@pytest.mark.parametrize("name", ["values", "extra"])
def test_damaged_metadata_is_refused(name, text, state, tmp_path):
    with safe_open(state(), "pt") as file:
        metadata, content = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(content, tmp_path / "b.safetensors", {**metadata, name: text})
    refusal(load_state, tmp_path / "b.safetensors")


# --- checkpoints


def saved(content, old=False):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def archive(table, *, compressed=False, **members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, content in {"data.pkl": table, "version": b"3\n", **members}.items():
            file.writestr(f"archive/{name}", content)
    return stream.getvalue()


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


def opened(tmp_path, content, suffix=".pt"):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    return WeightFile(path)


@pytest.mark.parametrize("old", [False, True])
def test_files_of_torch_are_read_as_torch_reads_them(old, tmp_path):
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 5, 4, generator=draw)
    tensors = {
        "plain": whole, "view": whole[1:3], "turned": whole.permute(2, 0, 1), "column": whole[:, 2, 1], "half": whole.half(),
        "brain": whole.bfloat16(), "small": whole.to(torch.float8_e4m3fn), "numbers": torch.arange(7), "flags": whole[0] > 0,
        "number": torch.tensor(3.5), "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(whole[0].clone()),
        "double": whole.double(), "one": torch.zeros(1, 1).expand(1, 1),
    }  # fmt: skip
    content = {"state_dict": OrderedDict(tensors), "epoch": 3, "lr": np.float64(0.5), "hyper": {"a": [None, (1, "x")]}}
    file = opened(tmp_path, saved(content, old))
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        read = file.read(name)
        assert read.dtype == tensor.dtype and file.dtypes[name] == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(read.float(), tensor.detach().float()), name


def test_looking_into_a_file_reads_its_table_alone(tmp_path, monkeypatch):
    """Also of files that torch wrote before it knew archives."""
    for i, old in enumerate((False, True)):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(saved({"a": torch.zeros(40 << 20, dtype=torch.uint8)}, old))
        tracemalloc.start()
        assert WeightFile(path).shapes == {"a": (40 << 20,)}
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (70 << 20 if old else 1 << 20)
    monkeypatch.setattr(WeightFile, "read", lambda *_: pytest.fail("a tensor was read"))
    assert model_spec(str(SHIPPED)).size == 64


FOREIGN = [
    Reduced(os.system, "echo"), Reduced(exec, "1"), Reduced(bytearray, 10**10), Reduced(bytes, 10**10),
    Reduced(torch.load, "a"), Reduced(np.load, "a"), Reduced(getattr, "os", "system"), Reduced(__import__, "os"),
    Reduced(torch.zeros, 10**9), os.system,
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("foreign", FOREIGN, ids=[getattr(getattr(f, "_call", (f,))[0], "__name__", "?") for f in FOREIGN])
def test_foreign_names_are_refused(foreign, protocol, tmp_path):
    table = pickle.dumps({"state_dict": {"a": foreign}}, protocol)
    assert "foreign code" in refusal(opened, tmp_path, archive(table))


LONG = 1 << 20
TABLES = {
    "a buffer of a claimed size": b"\x80\x05\x96" + struct.pack("<Q", 10**11) + b".",
    "a text of a claimed size": b"\x80\x04\x8d" + struct.pack("<Q", 10**11) + b".",
    "a place far away in memory": b"\x80\x02}r" + struct.pack("<I", 2**31) + b".",
    "tuples in tuples": b"\x80\x02})" + b"\x85" * LONG + b"Ns.",
    "tuples in pairs": b"\x80\x02})" + b"N\x86" * LONG + b"Ns.",
    "marks": b"\x80\x02" + b"(" * LONG + b".",
    "lists in lists": b"\x80\x02" + b"]" * LONG + b"a" * (LONG - 1) + b".",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "copies": b"\x80\x02](" + b"N" * LONG + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10**4 + b".",
    "a call of nothing": b"\x80\x02}R.",
    "a changed function": b"\x80\x02ctorch\nSize\nN}X\x01\0\0\0a]s\x86b.",
    "a changed class": b"\x80\x02cnumpy\ndtype\nN}X\x08\0\0\0__init__]s\x86b.",
    "a changed tensor": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR}X\x06\0\0\0offsetK\x00sb.",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "no pickle": b"hello",
    "a number": b"\x80\x02K\x05.",
    "many digits": b"\x80\x02I" + b"9" * LONG + b"\n.",
}


@pytest.mark.parametrize("name", TABLES)
def test_hostile_tables_are_refused_at_once(name, tmp_path):
    begin = time.process_time()
    refusal(opened, tmp_path, archive(TABLES[name]))
    refusal(opened, tmp_path, torch_files._OLD_START + TABLES[name])
    refusal(opened, tmp_path, TABLES[name] or b"x")
    assert time.process_time() - begin < 20
    assert "__init__" in vars(torch_files._Inert) and torch_files._Inert(1, a=2)


def test_archives_that_are_no_checkpoints_are_refused(tmp_path):
    table = pickle.dumps({"a": 1}, 2)
    assert "is compressed" in refusal(opened, tmp_path, archive(table, compressed=True))
    assert "is compressed" in refusal(opened, tmp_path, archive(b"\x80\x02" + b"(" * (50 << 20), compressed=True))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("model.safetensors", b"x")
    assert "without a torch checkpoint" in refusal(opened, tmp_path, stream.getvalue())
    assert "byte order" in refusal(opened, tmp_path, archive(table, byteorder=b"big"))
    whole = saved({"a": torch.zeros(100)})
    for cut in range(0, len(whole), 37):
        refusal(opened, tmp_path, whole[:cut] or b"P")


@pytest.mark.parametrize("shape", [(2**31 - 1, 4), (5, 5), (-1, 4), (2**40, 2**40)])
def test_tensors_that_the_file_does_not_hold_are_refused(shape, tmp_path):
    def table(size, stride):
        """One tensor on a storage of 16 float32."""
        numbers = [b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in values) + b"t" for values in (size, stride)]
        named = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x10tQ"
        call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + named + b"K\0" + numbers[0] + numbers[1] + b"\x89NtR"
        return archive(b"\x80\x02}X\x01\0\0\0a" + call + b"s.", **{"data/0": b"\0" * 64})

    assert opened(tmp_path, table((4, 4), (4, 1))).read("a").shape == (4, 4)
    for stride in ((4, 1), (0, 0)):
        refusal(lambda content: opened(tmp_path, content).read("a"), table(shape, stride))


CONFIGS = [("patch", 10**6), ("patch", 16), ("channels", 10**9), ("channels", 64), ("widths", []), ("widths", [0, 0]),
           ("widths", [10**6] * 50), ("widths", None), ("widths", [96, 160, 160]), ("widths", [1024, 1024]), ("head_dim", 1000),
           ("head_dim", 0), ("context", 10**15), ("context", 256), ("views", 0), ("views", 10**9), ("radius", float("nan")),
           ("fill", 0), ("image_size", -5), ("image_size", 10**6), ("image_size", 65), ("copies", "yes"), ("copies", False),
           ("more", 1)]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), CONFIGS)
def test_a_config_is_held_against_the_tensors_before_anything_is_built(name, value, tmp_path, monkeypatch):
    with safe_open(SHIPPED, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), name: value})
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    for part in ("PatchCodec", "MultiViewDenoiser"):
        monkeypatch.setattr(embedded_checkpoint, part, lambda *_: pytest.fail("it was built"))
    for call in (inspect, model_spec, load_checkpoint):
        refusal(call, tmp_path / "a.safetensors" if call is not model_spec else str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "1e999", "[" * 100_000])
@pytest.mark.parametrize("name", ["config", "version", "kind"])
def test_damaged_descriptions_of_checkpoints_are_refused(name, text, tmp_path):
    with safe_open(SHIPPED, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "a.safetensors", {**metadata, name: text})
    refusal(load, tmp_path / "a.safetensors")


@pytest.mark.parametrize("family", ["mvdream", "zero123"])
def test_networks_of_other_shapes_are_refused(family, tmp_path):
    whole, rng = tiny.original(family), np.random.default_rng(0)
    unread = "cond_stage_model.model.transformer.resblocks.1."  # the text tower's last block
    names = [name for name in whole if name.endswith(("weight", "bias", "embedding")) and not name.startswith(unread)]
    for i in range(30):
        name, shape = names[rng.integers(len(names))], ((), (0,), (0, 3), (1,), (3, 3), (1, 2, 3, 4, 5))[i % 6]
        if tuple(whole[name].shape) == shape:
            continue
        save_file({**whole, name: torch.zeros(shape)}, tmp_path / "a.safetensors")
        refusal(load, tmp_path / "a.safetensors")
    level = next((name for name in whole if ".encoder.down.0." in name), None)
    save_file({**whole, level.replace("down.0", "down.999999999"): torch.zeros(1)}, tmp_path / "a.safetensors")
    assert inspect(tmp_path / "a.safetensors").image_size == 64


@pytest.mark.parametrize("read", [load_state, load_checkpoint, inspect])
def test_a_refusal_does_not_quote_the_file(read, tmp_path):
    """safetensors' error repeats the text that stands where a tensor's description should."""
    header = json.dumps({"extra": "line\n" * 5000}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError) as refusal:
        read(path)
    assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value)
