"""Meshes of other programs look as glTF 2.0 says: colours, textures, samplers, transforms, masks, parts, skins; OBJ, STL."""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError
from microdreamer_core.fields.texture import texture_field
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.mesh import Mesh, SurfaceMaps
from microdreamer_core.meshing.atlas import lay_out_texture
from microdreamer_core.meshing.project import project_images
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.render.mesh import render_mesh

PURPLE = [0.5, 0.25, 0.75]
LINEAR = [0.2140411, 0.0508761, 0.5225216]
RED, GREEN, BLUE = (0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.9)
REPEAT, MIRROR, CLAMP = 10497, 33648, 33071
QUAD = np.array([[-0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, -0.5, 0], [-0.5, -0.5, 0]], np.float32)
FACES = np.array([0, 3, 2, 0, 2, 1], np.uint16)
UVS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
TYPES = {"float32": 5126, "uint8": 5121, "uint16": 5123, "uint32": 5125}


class Glb:
    """Builds a .glb: the document is plain JSON, its numbers and pictures are added to one buffer."""

    def __init__(self):
        self.document = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [{"primitives": []}],
            "materials": [],
            "textures": [],
            "images": [],
            "samplers": [],
            "accessors": [],
            "bufferViews": [],
        }
        self.binary = b""

    def view(self, data: bytes) -> int:
        self.binary += b"\0" * (-len(self.binary) % 4)
        self.document["bufferViews"].append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)})
        self.binary += data
        return len(self.document["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, **more) -> int:
        kind = "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}" if values.ndim == 2 else "MAT4"
        entry = {"bufferView": self.view(values.tobytes()), "componentType": TYPES[values.dtype.name], "type": kind}
        self.document["accessors"].append({**entry, "count": len(values), **more})
        return len(self.document["accessors"]) - 1

    def texture(self, pixels, wrap=(REPEAT, REPEAT)) -> int:
        return self.encoded(png_of(Image.fromarray((np.asarray(pixels) * 255 + 0.5).astype(np.uint8))), wrap)

    def encoded(self, png: bytes, wrap=(REPEAT, REPEAT)) -> int:
        self.document["images"].append({"bufferView": self.view(png), "mimeType": "image/png"})
        self.document["samplers"].append({"wrapS": wrap[0], "wrapT": wrap[1]})
        number = len(self.document["images"]) - 1
        self.document["textures"].append({"source": number, "sampler": number})
        return number

    def material(self, factor=None, texture=None, info=None, **more) -> int:
        look = {} if factor is None else {"baseColorFactor": [*factor, 1][:4]}
        if texture is not None:
            look["baseColorTexture"] = {"index": texture, **(info or {})}
        self.document["materials"].append({"pbrMetallicRoughness": look, **more})
        return len(self.document["materials"]) - 1

    def quad(self, material=None, move=(0, 0, 0), uvs=UVS, colors=None, **more) -> None:
        attributes = {"POSITION": self.accessor(QUAD + np.float32(move))}
        if uvs is not None:
            attributes["TEXCOORD_0"] = self.accessor(uvs.astype(np.float32))
        if colors is not None:
            attributes["COLOR_0"] = self.accessor(colors, normalized=colors.dtype.kind == "u")
        primitive = {"attributes": attributes, "indices": self.accessor(FACES), **more}
        self.document["meshes"][0]["primitives"].append(primitive if material is None else {**primitive, "material": material})

    def write(self, path) -> Mesh:
        text = json.dumps(
            {k: v for k, v in self.document.items() if v} | {"buffers": [{"byteLength": len(self.binary)}]}
        ).encode()
        text, binary = text + b" " * (-len(text) % 4), self.binary + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return read_mesh(path)


def png_of(image: Image.Image, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def see(mesh: Mesh, size: int = 64, centre=(0.0, 0.0)) -> torch.Tensor:
    """[H,W,3] the unit square around ``centre`` in the xy plane, seen from +z; what is not covered is nan."""
    radius = 100.0
    camera = orbit_cameras(0.0, 0.0, radius, float(np.degrees(2 * np.arctan(0.5 / radius))), size)
    moved = replace(mesh, vertices=mesh.vertices - torch.tensor([*centre, 0.0]))
    render = render_mesh(moved, camera, supersample=2)
    return torch.where(render.alpha[0] > 0.999, render.rgb[0], torch.nan)


def mean(picture: torch.Tensor) -> list[float]:
    return picture.reshape(-1, 3).nanmean(0).tolist()


def stripes(*columns, repeat=8):
    """[repeat, n*repeat, 3] a picture of coloured columns."""
    return np.repeat(np.repeat(np.array([columns], np.float32), repeat, 0), repeat, 1)


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("with_material", [False, True])
def test_vertex_colours_are_linear_whatever_their_type(kind, width, with_material, tmp_path):
    glb = Glb()
    scale = 1 if kind == "float32" else np.iinfo(kind).max
    colors = np.tile(np.array([*LINEAR, 1.0][:width]) * scale + (scale > 1) * 0.5, (4, 1)).astype(kind)
    glb.quad(glb.material() if with_material else None, colors=colors)
    mesh = glb.write(tmp_path / "a.glb")
    assert mesh.texture is None and torch.allclose(mesh.colors, torch.tensor(PURPLE), atol=0.005)
    assert mean(see(mesh)) == pytest.approx(PURPLE, abs=0.005)


def test_vertex_colours_are_interpolated_in_linear_light(tmp_path):
    glb = Glb()
    glb.quad(colors=np.array([[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]], np.float32))
    middle = see(glb.write(tmp_path / "a.glb"))[:, 31:33].mean()
    assert float(middle) == pytest.approx(0.735, abs=0.01)  # sRGB of one half, not one half


def test_factor_texture_and_vertex_colours_are_multiplied(tmp_path):
    half = np.tile(np.float32([0.5, 1, 1]), (4, 1))
    for factor, texture, colors, expected in (
        (LINEAR, None, None, PURPLE),
        (LINEAR, np.ones((4, 4, 3)), None, PURPLE),
        (LINEAR, None, half, [0.3625, 0.25, 0.75]),
        (None, np.full((4, 4, 3), PURPLE), half, [0.3625, 0.25, 0.75]),
        ([1, 1, 0.5], np.full((4, 4, 3), PURPLE), half, [0.3625, 0.25, 0.5474]),
    ):
        glb = Glb()
        glb.quad(glb.material(factor, None if texture is None else glb.texture(texture)), colors=colors)
        assert mean(see(glb.write(tmp_path / "a.glb"))) == pytest.approx(expected, abs=0.005)


def test_vertex_colours_that_vary_tint_a_texture(tmp_path):
    glb = Glb()
    colors = np.float32([[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]])
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE, repeat=64))), colors=colors)
    picture = see(glb.write(tmp_path / "a.glb"), 128)
    assert not bool(picture.isnan().any())
    for column, colour in ((32, RED), (96, BLUE)):
        linear = torch.tensor(colour).clamp(0) ** 2.2 * (column + 0.5) / 128
        assert torch.allclose(picture[:, column], (linear ** (1 / 2.2)).expand(128, 3), atol=0.02)


@pytest.mark.parametrize(
    "wrap, low, expected",
    [
        (REPEAT, 0.0, (RED, BLUE, RED, BLUE)),
        (MIRROR, 0.0, (RED, BLUE, BLUE, RED)),
        (CLAMP, 0.0, (RED, BLUE, BLUE, BLUE)),
        (REPEAT, -3.0, (RED, BLUE, RED, BLUE)),
        (MIRROR, -3.0, (BLUE, RED, RED, BLUE)),
        (CLAMP, -1.0, (RED, RED, RED, BLUE)),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_uvs_beyond_the_border_follow_the_sampler(wrap, low, expected, several, tmp_path):
    glb = Glb()
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE), (wrap, wrap))), uvs=UVS * 2 + [low, 0])
    if several and wrap != CLAMP:  # in a shared texture a clamped one is continued by half its side only
        glb.quad(glb.material(None, glb.texture(stripes(GREEN))), move=(2, 0, 0))
    picture = see(glb.write(tmp_path / "a.glb"))
    for i, colour in enumerate(expected):
        assert torch.allclose(picture[:, 16 * i + 4 : 16 * i + 12], torch.tensor(colour), atol=0.02), i


def test_a_texture_that_tiles_many_times_keeps_its_mean_and_its_size(tmp_path):
    glb = Glb()
    uvs = UVS * 300 + 7
    glb.quad(glb.material(None, glb.texture(np.random.default_rng(0).random((64, 64, 3)) * 0.2 + 0.4)), uvs=uvs)
    mesh = glb.write(tmp_path / "a.glb")
    assert max(mesh.texture.shape) <= 2050 and mean(see(mesh)) == pytest.approx([0.5] * 3, abs=0.03)
    assert float(mesh.uvs.min()) >= 0 and float(mesh.uvs.max()) <= 1


def test_more_tiles_than_texels_are_their_mean(tmp_path):
    glb = Glb()
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE))), uvs=UVS * 1e9)
    mesh = glb.write(tmp_path / "a.glb")
    assert mesh.texture.shape[0] * mesh.texture.shape[1] <= 64 and mean(see(mesh)) == pytest.approx([0.5, 0.1, 0.5], abs=0.03)


def test_a_far_offset_needs_no_larger_texture(tmp_path):
    glb = Glb()
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE))), uvs=UVS + [250, -90])
    mesh = glb.write(tmp_path / "a.glb")
    assert mesh.texture.shape == (8, 16, 3) and len(mesh.vertices) == 4


@pytest.mark.parametrize(
    "transform, expected",
    [
        ({"offset": [0.5, 0]}, (BLUE, RED)),
        ({"scale": [0.5, 1]}, (RED, RED)),
        ({"scale": [0.5, 1], "offset": [0.5, 0]}, (BLUE, BLUE)),
        ({"rotation": np.pi, "offset": [1, 1]}, (BLUE, RED)),
    ],
)
def test_texture_transforms(transform, expected, tmp_path):
    glb = Glb()
    info = {"extensions": {"KHR_texture_transform": transform}}
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE)), info))
    picture = see(glb.write(tmp_path / "a.glb"))
    for half, colour in zip((picture[:, 4:28], picture[:, 36:60]), expected, strict=True):
        assert torch.allclose(half, torch.tensor(colour), atol=0.02)


def test_a_quarter_turn_is_counter_clockwise_in_uv(tmp_path):
    """KHR_texture_transform: the picture turns clockwise, so its left column is seen at the top."""
    glb = Glb()
    info = {"extensions": {"KHR_texture_transform": {"rotation": np.pi / 2, "offset": [0, 1]}}}
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE)), info))
    picture = see(glb.write(tmp_path / "a.glb"))
    assert torch.allclose(picture[4:28], torch.tensor(RED), atol=0.02)
    assert torch.allclose(picture[36:60], torch.tensor(BLUE), atol=0.02)


def test_another_set_of_uvs(tmp_path):
    glb = Glb()
    glb.quad(glb.material(None, glb.texture(stripes(RED, BLUE)), {"texCoord": 1}), uvs=UVS * 0)
    second = glb.accessor((UVS * [0.4, 1] + [0.55, 0]).astype(np.float32))
    glb.document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_1"] = second
    assert mean(see(glb.write(tmp_path / "a.glb"))) == pytest.approx(BLUE, abs=0.01)


def disc(size: int = 64):
    """[size,size,4] red, opaque within half its width."""
    y, x = np.mgrid[0:size, 0:size] + 0.5
    alpha = np.hypot(x - size / 2, y - size / 2) < size / 4
    return np.concatenate([np.broadcast_to(np.float32(RED), (size, size, 3)), alpha[..., None]], -1)


@pytest.mark.parametrize("mode, covered", [("OPAQUE", 1.0), ("MASK", np.pi / 16), ("BLEND", np.pi / 16)])
def test_alpha_masks_cut_the_surface(mode, covered, tmp_path):
    glb = Glb()
    glb.quad(glb.material(None, glb.texture(disc()), alphaMode=mode))
    mesh = glb.write(tmp_path / "a.glb")
    picture = see(mesh, 128)
    share = float((~picture[..., 0].isnan()).float().mean())
    assert share == pytest.approx(covered, abs=0.012) and mean(picture) == pytest.approx(RED, abs=0.02)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    assert bool((torch.linalg.cross(b - a, c - a)[:, 2] >= -1e-9).all())  # none is turned over


def test_a_mask_follows_factor_cutoff_and_vertex_alpha(tmp_path):
    colors = np.float32([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    for factor, cutoff, covered in ((1.0, 0.5, 0.5), (1.0, 0.25, 0.75), (0.5, 0.25, 0.5)):
        glb = Glb()
        glb.quad(glb.material([*LINEAR, factor], alphaMode="MASK", alphaCutoff=cutoff), colors=colors)
        share = float((~see(glb.write(tmp_path / "a.glb"))[..., 0].isnan()).float().mean())
        assert share == pytest.approx(covered, abs=0.02)


def test_several_materials_share_one_texture(tmp_path):
    glb = Glb()
    wide = stripes(GREEN, BLUE, repeat=40)
    glb.quad(glb.material(None, glb.texture(stripes(RED, repeat=5))), move=(-1, 0, 0))
    glb.quad(glb.material(None, glb.texture(wide), {}), uvs=UVS * 0.9 + 0.05)
    glb.quad(glb.material(LINEAR), move=(1, 0, 0), uvs=None)
    glb.quad(move=(2, 0, 0), uvs=None, colors=np.tile(np.float32(LINEAR), (4, 1)))
    mesh = glb.write(tmp_path / "a.glb")
    middle = see(mesh)
    assert mean(see(mesh, centre=(-1, 0))) == pytest.approx(RED, abs=0.01)
    assert mean(middle[:, :24]) == pytest.approx(GREEN, abs=0.01) and mean(middle[:, 40:]) == pytest.approx(BLUE, abs=0.01)
    for x in (1, 2):
        assert mean(see(mesh, centre=(x, 0))) == pytest.approx(PURPLE, abs=0.01)


def test_parts_of_one_material_keep_its_texture_as_it_is(tmp_path):
    glb = Glb()
    material = glb.material(None, glb.texture(stripes(RED, BLUE)))
    for x in range(3):
        glb.quad(material, move=(x, 0, 0))
    assert glb.write(tmp_path / "a.glb").texture.shape == (8, 16, 3)


def test_nodes_move_turn_scale_and_mirror(tmp_path):
    glb = Glb()
    glb.quad()
    glb.document["nodes"] = [
        {"children": [1], "translation": [1, 2, 3], "scale": [2, 2, 2]},
        {"mesh": 0, "rotation": [0, 0.5**0.5, 0, 0.5**0.5]},
    ]
    mesh = glb.write(tmp_path / "a.glb")
    assert mesh.colors is None
    assert torch.allclose(mesh.vertices[1], torch.tensor([1.0, 3.0, 2.0]), atol=1e-5)  # (.5,.5,0) about y: (0,.5,-.5)
    glb.document["nodes"] = [{"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]}]
    mesh = glb.write(tmp_path / "b.glb")
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    assert bool((torch.linalg.cross(b - a, c - a)[:, 2] > 0).all())  # still faces +z
    glb.document["nodes"] = [{"children": [0], "mesh": 0}]  # a circle
    assert len(glb.write(tmp_path / "c.glb").faces) == 2


def test_skins_are_posed_by_their_joints(tmp_path):
    glb = Glb()
    glb.quad()
    attributes = glb.document["meshes"][0]["primitives"][0]["attributes"]
    attributes["JOINTS_0"] = glb.accessor(np.tile(np.uint8([0, 1, 0, 0]), (4, 1)))
    attributes["WEIGHTS_0"] = glb.accessor(np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0]]))
    binds = np.stack([np.eye(4)] * 2).astype(np.float32)
    binds[1, 3, 0] = -1  # column-major: the second joint was bound at x = 1
    glb.document["nodes"] = [{"mesh": 0, "skin": 0, "translation": [9, 9, 9]}, {}, {"translation": [1, 4, 0]}]
    glb.document["scenes"] = [{"nodes": [0, 1, 2]}]
    glb.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": glb.accessor(binds)}]
    mesh = glb.write(tmp_path / "a.glb")
    expected = torch.from_numpy(QUAD) + torch.tensor([[0.0, 0, 0], [0, 4, 0], [0, 2, 0], [0, 0, 0]])
    assert torch.allclose(mesh.vertices, expected, atol=1e-5)


def test_strips_fans_and_sparse_accessors(tmp_path):
    for mode, order in ((5, [0, 3, 1, 2]), (6, [0, 3, 2, 1])):
        glb = Glb()
        glb.quad(mode=mode)
        glb.document["meshes"][0]["primitives"][0]["indices"] = glb.accessor(np.array(order, np.uint32))
        mesh = glb.write(tmp_path / "a.glb")
        assert len(mesh.faces) == 2 and not bool(see(mesh)[4:60, 4:60].isnan().any())
        a, b, c = mesh.vertices[mesh.faces].unbind(1)
        assert bool((torch.linalg.cross(b - a, c - a)[:, 2] > 0).all())
    glb = Glb()
    glb.quad()
    places, values = glb.view(np.uint16([1]).tobytes()), glb.view(np.float32([5, 6, 7]).tobytes())
    glb.document["accessors"][0]["sparse"] = {
        "count": 1,
        "indices": {"bufferView": places, "componentType": 5123},
        "values": {"bufferView": values},
    }
    assert glb.write(tmp_path / "b.glb").vertices[1].tolist() == [5, 6, 7]


def test_white_says_nothing_of_colour(tmp_path):
    glb = Glb()
    glb.quad(glb.material([1, 1, 1]))
    mesh = glb.write(tmp_path / "a.glb")
    assert mesh.colors is None and mesh.texture is None


def test_compressed_files_are_refused_with_their_compression(tmp_path):
    glb = Glb()
    glb.quad()
    glb.document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    with pytest.raises(InputError, match="draco.*without compression"):
        glb.write(tmp_path / "a.glb")


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_own_colours_come_back(suffix, tmp_path):
    colors = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    mesh = Mesh(torch.from_numpy(QUAD), torch.from_numpy(FACES.astype(np.int64)).reshape(-1, 3), colors=colors)
    again = read_mesh(write_mesh(tmp_path / f"a{suffix}", mesh))
    assert float((again.colors - colors).abs().max()) < 0.005 and torch.equal(again.faces, mesh.faces)


def test_obj_materials_multiply_their_picture_and_quads_are_split(tmp_path):
    Image.fromarray((stripes(RED, BLUE) * 255).astype(np.uint8)).save(tmp_path / "t.png")
    lines = ["mtllib a.mtl", *(f"v {x} {y} {z}" for x, y, z in QUAD), "vt 0 1", "vt 2 1", "vt 2 0", "vt 0 0"]
    (tmp_path / "a.obj").write_text("\n".join([*lines, "usemtl m", "f 1/1 4/4 3/3 2/2"]))
    for material, expected in (
        ("Kd 0.5 0.25 0.75", [PURPLE] * 4),
        ("Kd 1 1 1\nmap_Kd t.png", [RED, BLUE, RED, BLUE]),
        ("Kd 0 0 0\nmap_Kd t.png", [RED, BLUE, RED, BLUE]),
        ("Kd 0 0 0", [(0, 0, 0)] * 4),
        ("map_Kd t.png", [RED, BLUE, RED, BLUE]),
    ):
        (tmp_path / "a.mtl").write_text(f"newmtl m\n{material}\n")
        picture = see(read_mesh(tmp_path / "a.obj"))
        for i, colour in enumerate(expected):
            assert torch.allclose(picture[4:60, 16 * i + 4 : 16 * i + 12], torch.tensor(colour).float(), atol=0.02), material


def test_obj_of_several_materials(tmp_path):
    corners = [*(f"v {x} {y} {z}" for x, y, z in QUAD), *(f"v {x + 1} {y} {z}" for x, y, z in QUAD)]
    faces = ["usemtl a", "f 1 4 3 2", "usemtl b", "f 5 8 7 6"]
    (tmp_path / "a.obj").write_text("\n".join(["mtllib a.mtl", *corners, *faces]))
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 0.5 0.25 0.75\nnewmtl b\nKd 0.1 0.8 0.1\n")
    mesh = read_mesh(tmp_path / "a.obj")
    assert mean(see(mesh)) == pytest.approx(PURPLE, abs=0.01) and mean(see(mesh, centre=(1, 0))) == pytest.approx(
        GREEN, abs=0.01
    )


def test_stl_goes_out_and_in(tmp_path):
    mesh = Mesh(torch.from_numpy(QUAD), torch.from_numpy(FACES.astype(np.int64)).reshape(-1, 3))
    again = read_mesh(write_mesh(tmp_path / "a.stl", mesh))
    assert again.colors is None and len(again.vertices) == 4  # the corners that triangles share are one again
    ours, theirs = (m.vertices[m.faces].sum((0, 1)) for m in (mesh, again))
    assert torch.allclose(ours, theirs) and not bool(see(again)[2:62, 2:62].isnan().any())


def test_maps_come_back_and_are_named_where_they_cannot_be_kept(tmp_path, caplog):
    image = torch.arange(48).reshape(4, 4, 3) / 255
    maps = SurfaceMaps(0.5, 0.25, image, 1 - image, 0.5, image / 2, 0.75, image, (2.0, 1.0, 0.0))
    mesh = Mesh(
        torch.from_numpy(QUAD), torch.tensor([[0, 3, 2]]), torch.from_numpy(UVS), texture=torch.ones(4, 4, 3), maps=maps
    )
    again = read_mesh(write_mesh(tmp_path / "a.glb", mesh)).maps
    for name in ("metallic_roughness", "normal", "occlusion", "emissive"):
        assert torch.allclose(getattr(again, name), getattr(maps, name), atol=0.003), name
    for name in ("metallic", "roughness", "normal_scale", "occlusion_strength", "emission"):
        assert getattr(again, name) == pytest.approx(getattr(maps, name)), name
    assert not caplog.messages
    write_mesh(tmp_path / "a.obj", mesh)
    assert "metallic-roughness, normal map, occlusion, emission" in caplog.text


def test_unwrapping_names_the_maps_that_it_drops(caplog):
    pytest.importorskip("xatlas")
    maps = SurfaceMaps(normal=torch.ones(4, 4, 3))
    mesh = Mesh(
        torch.from_numpy(QUAD), torch.tensor([[0, 3, 2]]), torch.from_numpy(UVS), texture=torch.ones(4, 4, 3), maps=maps
    )
    assert unwrap(mesh, 32).maps is None and "dropped from its material: normal map" in caplog.text


def test_maps_of_a_texture_that_is_laid_out_anew_are_named(tmp_path, caplog):
    glb = Glb()
    texture = glb.texture(stripes(RED, BLUE))
    glb.quad(glb.material(None, texture, normalTexture={"index": texture}), uvs=UVS * 3)
    assert glb.write(tmp_path / "a.glb").maps is None and "normal map" in caplog.text


# --- images of every kind


def sixteen_bits(values: np.ndarray, kind: int) -> bytes:
    """A PNG [H,W,C] with 16 bits a channel, which Pillow cannot write in colour; kind is PNG's colour type."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def halves(left, right, width=12, height=7) -> np.ndarray:
    """[H,W,C] two colours of 0..255, beside each other."""
    picture = np.empty((height, width, len(left)), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = left, right
    return picture


RED_BLUE, GREYS = halves((204, 51, 51), (51, 51, 204)), halves((51,), (204,))
TRANSPARENT = halves((204, 51, 51, 255), (51, 51, 204, 0))
TWO_GREYS = ((0.2,) * 3, (0.8,) * 3)
COLOURS = ((0.8, 0.2, 0.2), (0.2, 0.2, 0.8))
IMAGES = {
    "odd": (png_of(Image.fromarray(halves((204, 51, 51), (51, 51, 204), 517, 333))), COLOURS),
    "one texel": (png_of(Image.new("RGB", (1, 1), (204, 51, 51))), COLOURS[:1] * 2),
    "one row": (png_of(Image.fromarray(halves((204, 51, 51), (51, 51, 204), 300, 1))), COLOURS),
    "alpha": (png_of(Image.fromarray(TRANSPARENT)), COLOURS),
    "palette": (png_of(Image.fromarray(RED_BLUE).quantize(4)), COLOURS),
    "palette with a transparent colour": (png_of(Image.fromarray(RED_BLUE).quantize(4), transparency=0), COLOURS),
    "grey": (png_of(Image.fromarray(GREYS[..., 0])), TWO_GREYS),
    "grey with alpha": (png_of(Image.fromarray(halves((51, 255), (204, 255)), "LA")), TWO_GREYS),
    "black and white": (png_of(Image.fromarray(halves((0,), (255,))[..., 0]).convert("1")), ((0.0,) * 3, (1.0,) * 3)),
    "grey of 16 bits": (sixteen_bits(GREYS.astype(np.uint16) * 257, 0), TWO_GREYS),
    "colours of 16 bits": (sixteen_bits(RED_BLUE.astype(np.uint16) * 257, 2), COLOURS),
    "colours of 16 bits with alpha": (sixteen_bits(TRANSPARENT.astype(np.uint16) * 257, 6), COLOURS),
}


def write_obj(folder, png: bytes):
    (folder / "map.png").write_bytes(png)
    (folder / "a.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd map.png\n")
    corners = "".join(f"v {x} {y} {z}\n" for x, y, z in QUAD) + "".join(f"vt {u} {1 - v}\n" for u, v in UVS)
    faces = "".join(f"f {a}/{a} {b}/{b} {c}/{c}\n" for a, b, c in FACES.reshape(-1, 3) + 1)
    (folder / "a.obj").write_text(f"mtllib a.mtl\n{corners}usemtl m\n{faces}")
    return read_mesh(folder / "a.obj")


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_textures_of_every_kind_are_read_and_can_be_changed(kind, suffix, tmp_path):
    """Files, a field of texels, texture refinement and projection take images of any size, depth and mode."""
    png, (left, right) = IMAGES[kind]
    if suffix == "glb":
        glb = Glb()
        glb.quad(glb.material(texture=glb.encoded(png, (CLAMP, CLAMP))))
        mesh = glb.write(tmp_path / "a.glb")
    else:
        mesh = write_obj(tmp_path, png)

    def assert_halves(shown):
        seen = see(shown)
        for colour, part in ((left, seen[:, 8:24]), (right, seen[:, 40:56])):
            assert mean(part) == pytest.approx(colour, abs=0.02)

    assert_halves(mesh)
    field = texture_field(lay_out_texture(mesh, 48), 48)
    assert_halves(field.mesh)
    written = write_mesh(tmp_path / "written.glb", mesh)
    assert_halves(read_mesh(written))
    front = orbit_cameras(0.0, 0.0, 3.0, width=32)
    picture, alpha = torch.tensor([0.1, 0.9, 0.1]).expand(1, 32, 32, 3), torch.ones(1, 32, 32, 1)
    projected = project_images(mesh, front, picture, alpha)
    assert mean(see(projected)[28:36, 28:36]) == pytest.approx([0.1, 0.9, 0.1], abs=0.02)
