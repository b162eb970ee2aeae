"""Mesh files and films: read back by other programs, and never left half written."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from microdreamer_core.cameras import turntable
from microdreamer_core.errors import Cancelled, InputError
from microdreamer_core.io import video
from microdreamer_core.io.glb import glb_bytes, write_glb
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.io.video import contact_sheet, render_frames, write_contact_sheet, write_video
from microdreamer_core.mesh import Mesh
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.util.atomic import replace_file
from microdreamer_core.util.colors import decode_srgb

trimesh = pytest.importorskip("trimesh")

CORNERS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])  # upper left, upper right, lower right, lower left


@pytest.fixture
def quad():
    """Two triangles whose texture has another colour in every corner; uvs lie on the centres of the corner texels."""
    vertices = torch.tensor([[-0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, -0.5, 0.1], [-0.5, -0.5, 0.1]])
    low, high = 0.5 / 8, 7.5 / 8
    uvs = torch.tensor([[low, low], [high, low], [high, high], [low, high]])
    texture = torch.full((8, 8, 3), 0.5)
    texture[0, 0], texture[0, 7], texture[7, 7], texture[7, 0] = CORNERS
    return Mesh(vertices, torch.tensor([[0, 3, 2], [0, 2, 1]]), uvs=uvs, texture=texture)


@pytest.fixture
def painted():
    shape = trimesh.creation.icosphere(2, 0.4)
    vertices = torch.tensor(np.array(shape.vertices), dtype=torch.float32)
    return Mesh(vertices, torch.tensor(np.array(shape.faces)), colors=(vertices + 0.5).clamp(0, 1))


def parse(data: bytes) -> tuple[dict, bytes]:
    """GLB container by the specification: (JSON, binary chunk)."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    start = 20 + size
    binary_size, binary_kind = struct.unpack_from("<I4s", data, start)
    assert binary_kind == b"BIN\0" and binary_size % 4 == 0 and start + 8 + binary_size == len(data)
    return json.loads(data[20:start], parse_constant=pytest.fail), data[start + 8 :]


def accessor(document: dict, binary: bytes, index: int) -> np.ndarray:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[entry["type"]]
    dtype = {5126: "<f4", 5125: "<u4"}[entry["componentType"]]
    assert view["byteOffset"] % 4 == 0
    return np.frombuffer(binary, dtype, entry["count"] * width, view["byteOffset"]).reshape(entry["count"], width)


def test_glb_holds_what_the_specification_asks_for(quad):
    document, binary = parse(glb_bytes(quad, {"seed": 7, "model": "embedded"}))
    assert document["asset"]["version"] == "2.0" and document["asset"]["extras"] == {"seed": 7, "model": "embedded"}
    assert "microdreamer" in document["asset"]["generator"]
    assert document["buffers"] == [{"byteLength": len(binary)}]
    primitive = document["meshes"][0]["primitives"][0]
    attributes = primitive["attributes"]
    positions = document["accessors"][attributes["POSITION"]]
    assert np.allclose(positions["min"], [-0.5, -0.5, 0]) and np.allclose(positions["max"], [0.5, 0.5, 0.1])
    assert np.array_equal(accessor(document, binary, attributes["POSITION"]), quad.vertices.numpy())
    assert np.array_equal(accessor(document, binary, primitive["indices"]).reshape(-1, 3), quad.faces.numpy())
    assert np.array_equal(accessor(document, binary, attributes["TEXCOORD_0"]), quad.uvs.numpy())
    assert np.allclose(np.linalg.norm(accessor(document, binary, attributes["NORMAL"]), axis=1), 1, atol=1e-6)
    material = document["materials"][0]
    surface = material["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0 and surface["roughnessFactor"] == 1 and material["doubleSided"]
    image = document["images"][document["textures"][surface["baseColorTexture"]["index"]]["source"]]
    view = document["bufferViews"][image["bufferView"]]
    assert image["mimeType"] == "image/png" and binary[view["byteOffset"] :].startswith(b"\x89PNG")
    assert all("target" not in document["bufferViews"][i] for i in [image["bufferView"]])


def test_glb_writes_linear_vertex_colours(painted):
    grey = replace(painted, colors=torch.full_like(painted.colors, 0.5))
    document, binary = parse(glb_bytes(grey))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    assert np.allclose(accessor(document, binary, attributes["COLOR_0"]), 0.2140, atol=1e-4)  # sRGB 0.5 in linear light
    assert "textures" not in document and "TEXCOORD_0" not in attributes


def test_glb_keeps_every_bit(painted, quad):
    """Of what trimesh would round by itself: v close to 0, colours, normals; NaN is written, but not into the JSON."""
    generator = torch.Generator().manual_seed(0)
    uvs, colors = (torch.rand(len(painted.vertices), n, generator=generator) for n in (2, 3))
    uvs[0], colors[0] = 1e-12, torch.nan
    mesh = replace(painted, uvs=uvs, colors=colors, normals=painted.vertices * 3)
    document, binary = parse(glb_bytes(mesh))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    normals = mesh.normals / mesh.normals.norm(dim=1, keepdim=True)
    expected = {"POSITION": mesh.vertices, "TEXCOORD_0": uvs, "NORMAL": normals, "COLOR_0": decode_srgb(colors)}
    assert attributes.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(accessor(document, binary, attributes[name]), values.numpy(), equal_nan=True), name
    assert [document["nodes"], document["scenes"]] == [[{"mesh": 0, "name": "object"}], [{"nodes": [0]}]]
    sampler = parse(glb_bytes(quad))[0]["samplers"][0]
    assert sampler == {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_other_programs_see_every_corner_in_its_colour(quad, tmp_path, suffix):
    path = write_mesh(tmp_path / f"my quad{suffix}", quad)
    shape = trimesh.load(path, force="mesh", process=False)
    material = shape.visual.material
    image = material.baseColorTexture if suffix == ".glb" else material.image
    seen = trimesh.visual.color.uv_to_color(shape.visual.uv, image)[:, :3] / 255
    for position, colour in zip(quad.vertices.numpy(), CORNERS.numpy(), strict=True):
        index = np.abs(shape.vertices - position).sum(1).argmin()
        assert np.allclose(shape.vertices[index], position, atol=1e-6) and np.allclose(seen[index], colour)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_textured_meshes_look_the_same_when_read_back(quad, tmp_path, suffix):
    again, cameras = read_mesh(write_mesh(tmp_path / f"quad{suffix}", quad)), turntable(3, 20.0, size=48)
    assert again.texture.shape == (8, 8, 3)
    assert torch.allclose(render_mesh(again, cameras).rgb, render_mesh(quad, cameras).rgb, atol=0.01)


def test_an_objs_texture_does_not_take_the_name_of_a_picture_beside_it(quad, tmp_path):
    (tmp_path / "quad.png").write_bytes(b"mine")
    write_mesh(tmp_path / "quad.obj", quad)
    assert (tmp_path / "quad.png").read_bytes() == b"mine"


@pytest.mark.parametrize("suffix", [".obj", ".ply"])
def test_vertex_colours_come_back(painted, tmp_path, suffix):
    again = read_mesh(write_mesh(tmp_path / f"ball{suffix}", painted))
    assert torch.allclose(again.vertices, painted.vertices, atol=1e-5) and torch.equal(again.faces, painted.faces)
    assert torch.allclose(again.colors, painted.colors, atol=0.003)


def test_ply_samples_the_texture_at_the_vertices(quad, tmp_path):
    path = write_mesh(tmp_path / "quad.ply", quad)
    assert torch.allclose(read_mesh(path).colors, CORNERS, atol=0.003)
    header = path.read_bytes().split(b"end_header")[0].decode().split("\n")
    properties = ["float " + name for name in ("x", "y", "z", "nx", "ny", "nz")] + ["uchar red", "uchar green", "uchar blue"]
    assert header[2].startswith("comment microdreamer") and header[4:13] == ["property " + name for name in properties]


def test_unusable_meshes_and_places_are_refused(quad, tmp_path):
    cases = [
        ("x.dae", quad, {}, "change the suffix"),
        ("none/x.glb", quad, {}, "create it first"),
        ("x.glb", quad, {"made": object()}, "must be JSON"),
        ("x.glb", replace(quad, vertices=quad.vertices * torch.nan), {}, "NaN"),
        ("x.obj", Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)), {}, "at least one face"),
    ]
    for name, mesh, provenance, message in cases:
        with pytest.raises(InputError, match=message):
            write_mesh(tmp_path / name, mesh, provenance)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="There is no mesh"):
        read_mesh(tmp_path / "missing.glb")
    (tmp_path / "broken.glb").write_bytes(b"glTF nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        read_mesh(tmp_path / "broken.glb")


def test_failed_write_leaves_the_old_file_and_nothing_else(quad, tmp_path, monkeypatch):
    path = write_glb(tmp_path / "a.glb", quad)
    old = path.read_bytes()
    with pytest.raises(OSError, match="disk full"), replace_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(PermissionError("locked")))
    with pytest.raises(PermissionError):
        write_glb(path, quad)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def film():
    """Five frames of odd size: the left part red, the right blue, brighter with time."""
    frames = torch.zeros(5, 47, 65, 3)
    frames[:, :, :32, 0], frames[:, :, 32:, 2] = 1, 1
    return frames * torch.linspace(0.6, 1, 5).reshape(5, 1, 1, 1)


def test_mp4_plays_back(film, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = write_video(tmp_path / "film.mp4", film, fps=10)
    reader = ffmpeg.read_frames(str(path))
    meta = next(reader)
    frames = [np.frombuffer(f, np.uint8).reshape(48, 66, 3) for f in reader]
    assert len(frames) == 5 and meta["size"] == (66, 48) and meta["fps"] == 10
    assert np.abs(frames[4][20, 10] - np.array([255.0, 0, 0])).max() < 20
    assert np.abs(frames[4][20, 50] - np.array([0, 0, 255.0])).max() < 20
    assert list(tmp_path.iterdir()) == [path]


def test_gif_is_written_when_there_is_no_ffmpeg(film, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(video, "_ffmpeg", lambda: None)
    path = write_video(tmp_path / "film.mp4", film)
    assert path == tmp_path / "film.gif" and list(tmp_path.iterdir()) == [path]
    with Image.open(path) as picture:
        assert picture.n_frames == 5 and picture.size == (65, 47)
        assert np.abs(np.array(picture.convert("RGB"))[20, 10] - np.array([153, 0, 0])).max() < 8


def test_failed_film_leaves_nothing(film, tmp_path, monkeypatch):
    class Broken:
        def write_frames(self, path, *_, **__):
            Path(path).write_bytes(b"half a film")
            yield
            raise OSError("Broken pipe")

    monkeypatch.setattr(video, "_ffmpeg", Broken)
    with pytest.raises(OSError, match="Broken pipe"):
        write_video(tmp_path / "film.mp4", film)
    assert list(tmp_path.iterdir()) == []
    for path, frames in ((tmp_path / "film.avi", film), (tmp_path / "film.mp4", film[:0]), (tmp_path / "no" / "f.gif", film)):
        with pytest.raises(InputError):
            write_video(path, frames)


def test_contact_sheet_is_a_grid_with_captions(film, tmp_path):
    sheet = contact_sheet(film, columns=3, gap=4)
    assert sheet.shape == (2 * 47 + 3 * 4, 3 * 65 + 4 * 4, 3)
    assert torch.equal(sheet[4:51, 4:69], film[0]) and torch.equal(sheet[55:102, 73:138], film[4])
    assert torch.equal(sheet[55:, 142:], torch.ones_like(sheet[55:, 142:]))  # the empty sixth place
    captioned = contact_sheet(film, columns=3, captions=["one", "two", "three", "four", ""])
    assert float(captioned[51:69, 4:69].min()) < 0.2 and float(captioned[51 + 69 : 69 + 69, 73:138].min()) == 1
    assert write_contact_sheet(tmp_path / "sheet.png", film).stat().st_size > 100
    with pytest.raises(InputError, match="one caption for each"):
        contact_sheet(film, captions=["one"])


def test_frames_come_in_order_and_can_be_stopped(painted):
    cameras, seen = turntable(6, size=24), []
    frames = render_frames(lambda c: render_mesh(painted, c).rgb, cameras, lambda done, total: seen.append((done, total)))
    assert torch.equal(frames, render_mesh(painted, cameras).rgb) and seen == [(4, 6), (6, 6)]

    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        render_frames(lambda c: render_mesh(painted, c).rgb, cameras, check=stop)
