"""Files that want more than to be read: images that choose their decoder, meshes that name files elsewhere, false states."""

import ast
import base64
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, features
from safetensors import safe_open
from safetensors.torch import save_file

from microdreamer_core.cli.main import main
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.job.run import job_from_picture, resume_job, run_record
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
    told = capsys.readouterr().err.strip()
    assert "chair.png cannot be read as a picture" in told and "\n" not in told
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
        job = job_from_picture(SAMPLES / "bird.png", representation=kind, iterations=4)
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
    assert said.split(", got")[0] == refusal(lambda: job_from_picture(SAMPLES / "bird.png", elevation=95)).split(", got")[0]


@pytest.mark.parametrize(
    "name,value",
    [("iterations", 10**7), ("steps", 10**9), ("views", 4 * 10**8), ("image_size", 10**6), ("radius", float("nan"))],
)
def test_the_saved_plan_is_checked(name, value, state):
    assert f"plan's {name} must be" in refusal(resume_job, state(lambda extra: extra["plan"].update({name: value})))


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
