"""Splat files of other programs: round trips within each format's precision, up axes, places and sizes."""

import gzip
import json
import logging
import struct
import zlib
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import SH_C0, Gaussians, GaussianSettings, Parameters
from microdreamer_core.fields.place import fit_splats, move_gaussians
from microdreamer_core.io.mesh_files import write_mesh
from microdreamer_core.io.splat_axes import from_file_axes, mesh_placement, to_file_axes
from microdreamer_core.io.splats import holds_splat, read_splat, write_gaussians
from microdreamer_core.job.outputs import film_cameras, film_renderer, read_result
from microdreamer_core.mesh import Mesh, Placement
from microdreamer_core.meshing.pipeline import surface_mesh
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.render.projection import rotation_matrices
from microdreamer_core.util.vocabulary import SPLAT_FORMATS, UPS

COUNT = 700  # three chunks of a compressed .ply, the last of them not full
STEPS = {  # largest errors of positions, log-scales, rotation matrices, opacities and colours
    ".ply": (0, 0, 0, 0, 0),
    ".glb": (0, 1e-6, 1e-6, 1e-6, 1e-6),
    ".compressed.ply": (0.5 / 1023, 2.5 / 1023, 0.003, 0.51 / 255, 0.51 / 255),
    ".spz": (2**-17 + 1e-7, 0.51 / 16, 0.006, 0.51 / 255, 0.51 / 255 * SH_C0 / 0.15),
    ".splat": (0, 1e-6, 0.04, 0.51 / 255, 0.51 / 255),
}


@pytest.fixture
def field():
    rng = torch.Generator().manual_seed(0)
    means = torch.rand(COUNT, 3, generator=rng) - 0.5
    values = Parameters(
        means,
        torch.rand(COUNT, 3, generator=rng) * 2 - 5,
        torch.nn.functional.normalize(torch.randn(COUNT, 4, generator=rng), dim=1),
        torch.randn(COUNT, generator=rng) * 2,
        (torch.rand(COUNT, 3, generator=rng) - 0.5) / SH_C0,
    )
    return Gaussians(values, GaussianSettings())


def errors(found, expected):
    """Largest errors of the five groups, and the Gaussians' order by their means."""
    near = torch.cdist(expected.parameters.means, found.parameters.means).argmin(1)
    assert len(near.unique()) == len(expected) == len(found)
    a, b = found.subset(near).splats(), expected.splats()
    pairs = (
        (a.means, b.means),
        (a.scales.log(), b.scales.log()),
        (rotation_matrices(a.quats), rotation_matrices(b.quats)),
        (a.opacities, b.opacities),
        (a.colors, b.colors),
    )
    return [float((x - y).abs().max()) for x, y in pairs]


@pytest.mark.parametrize("suffix", [f".{kind}" for kind in SPLAT_FORMATS])
def test_a_round_trip_keeps_what_the_format_can_hold(field, tmp_path, suffix):
    path = write_gaussians(tmp_path / f"a{suffix}", field)
    assert holds_splat(path) and [p.name for p in tmp_path.iterdir()] == [path.name]
    for error, most in zip(errors(read_splat(path), field), STEPS[suffix], strict=True):
        assert error <= most + 1e-7
    again = write_gaussians(tmp_path / f"b{suffix}", field)
    assert again.read_bytes() == path.read_bytes(), "nothing of the time or of the name is written"


@pytest.mark.parametrize("suffix", [".spz", ".splat", ".compressed.ply"])
def test_compact_formats_are_smaller(field, tmp_path, suffix):
    exact, compact = (write_gaussians(tmp_path / f"a{s}", field).stat().st_size for s in (".ply", suffix))
    assert compact < exact / 1.9


@pytest.mark.parametrize("suffix", [".spz", ".compressed.ply"])
@pytest.mark.parametrize("size", [1e-2, 100.0])
def test_compact_positions_follow_the_size(field, tmp_path, suffix, size):
    moved = field.parameters
    moved = Gaussians(moved._replace(means=moved.means * size, log_scales=moved.log_scales + np.log(size)), GaussianSettings())
    read = read_splat(write_gaussians(tmp_path / f"a{suffix}", moved))
    assert errors(read, moved)[0] <= 2 * size * STEPS[suffix][0]


def test_sizes_that_a_format_cannot_say_are_told(field, tmp_path, caplog):
    small = Gaussians(field.parameters._replace(log_scales=field.parameters.log_scales - 7), GaussianSettings())
    with caplog.at_level(logging.WARNING):
        write_gaussians(tmp_path / "a.spz", small)
    assert "change their size" in caplog.text


def test_an_unknown_ending_is_refused(field, tmp_path):
    with pytest.raises(InputError, match="written as .*spz.*got 'a.sog'"):
        write_gaussians(tmp_path / "a.sog", field)
    (tmp_path / "a.sog").write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match="not a splat in a format that is read"):
        read_splat(tmp_path / "a.sog")
    with pytest.raises(InputError, match="at least one"):
        write_gaussians(tmp_path / "a.spz", field.subset(slice(0)))


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".glb"])
def test_the_content_decides_not_the_name(field, tmp_path, suffix):
    path = write_gaussians(tmp_path / f"a{suffix}", field).rename(tmp_path / "a.splat")
    up = "-y" if suffix != ".glb" else None
    assert torch.allclose(read_splat(path, up=up).parameters.means, field.parameters.means, atol=1e-4)


# --- layouts, written here by hand -------------------------------------------------------------------------------------


def by_hand_spz(version, rotations, position=b"\x00\x10\x00" + b"\x00\xf0\xff" + b"\x00\x00\x00"):
    """One Gaussian at (1, -1, 0) with 12 fractional bits."""
    header = struct.pack("<4sIIBBBB", b"NGSP", version, 1, 1, 12, 0, 0)
    return gzip.compress(header + position + bytes([128, 255, 0, 128, 160, 144, 128]) + rotations + bytes(9))


@pytest.mark.parametrize(
    ("version", "rotations", "position"),
    [
        (1, bytes([128, 128, 255]), struct.pack("<3e", 1, -1, 0)),
        (2, bytes([128, 128, 255]), b"\x00\x10\x00\x00\xf0\xff\x00\x00\x00"),
        (3, struct.pack("<I", 2 << 30), b"\x00\x10\x00\x00\xf0\xff\x00\x00\x00"),
    ],
)
def test_spz_versions(tmp_path, version, rotations, position):
    path = tmp_path / "a.spz"
    path.write_bytes(by_hand_spz(version, rotations, position))
    means, log_scales, quats, logits, dc = read_splat(path, up="+y").parameters
    assert torch.equal(means, torch.tensor([[1.0, -1, 0]]))
    assert torch.equal(log_scales, torch.tensor([[0.0, -1, -2]]))
    assert float(logits.sigmoid()) == pytest.approx(128 / 255)
    assert dc[0].tolist() == pytest.approx([0.5 / 0.15, -0.5 / 0.15, (128 / 255 - 0.5) / 0.15], rel=1e-5)
    half_turn = torch.tensor([0.0, 0, 0, 1])  # about z
    assert torch.allclose(quats[0] / quats[0].norm(), half_turn, atol=0.01)


def test_spz_of_later_versions_and_other_gzip_files_are_refused_by_name(tmp_path):
    path = tmp_path / "a.spz"
    for content, reason in (
        (b"NGSP" + struct.pack("<I", 4) + bytes(24), "version 4, 1 to 3 are read"),
        (gzip.compress(b"x" * 100), "gzip file but no .spz"),
        (by_hand_spz(9, b"\0\0\0"), "version 9"),
        (gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 2, 5, 0, 12, 0, 0) + bytes(90)), "is truncated"),
        (gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", 2, 2**32 - 1, 0, 12, 0, 0)), "announces 4294967295"),
        (by_hand_spz(2, b"\0\0\0")[:20], "damaged|truncated"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_splat(path)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    """A gzip bomb behind a header of one Gaussian is never unpacked as a whole."""
    stream = zlib.compressobj(9, wbits=31)
    head = struct.pack("<4sIIBBBB", b"NGSP", 2, 1, 0, 12, 0, 0)
    bomb = stream.compress(head + bytes(19)) + b"".join(stream.compress(bytes(1 << 20)) for _ in range(64)) + stream.flush()
    (tmp_path / "a.spz").write_bytes(bomb)
    assert len(read_splat(tmp_path / "a.spz")) == 1


def ksplat(level=0, count=2, degree=0, sections=1):
    header = bytearray(4096)
    header[1] = 1
    struct.pack_into("<4IH", header, 4, sections, sections, count, count, level)
    section = bytearray(1024)
    struct.pack_into("<2I", section, 0, count, count)
    struct.pack_into("<H", section, 40, degree)
    row = struct.pack("<10f4B", 1, 2, 3, 0.5, 0.25, 1, 1, 0, 0, 0, 255, 0, 51, 204) + bytes(4 * {0: 0, 1: 9}[degree])
    return bytes(header) + bytes(section) * sections + row * count * sections


@pytest.mark.parametrize(("degree", "sections"), [(0, 1), (1, 1), (0, 2)])
def test_ksplat(tmp_path, degree, sections):
    path = tmp_path / "a.ksplat"
    path.write_bytes(ksplat(degree=degree, sections=sections))
    splats = read_splat(path, up="+y").splats()
    assert splats.means.tolist() == [[1, 2, 3]] * 2 * sections
    assert splats.scales[0].tolist() == pytest.approx([0.5, 0.25, 1])
    assert splats.colors[0].tolist() == pytest.approx([1, 0, 0.2], abs=1e-5)
    assert float(splats.opacities[0]) == pytest.approx(0.8)


def test_compressed_and_cut_ksplats_are_refused(tmp_path):
    path = tmp_path / "a.ksplat"
    for content, reason in ((ksplat(level=1), "compression level 1"), (ksplat()[:-1], "truncated"), (b"\0\1", "damaged")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_splat(path)


def test_splat_records_by_hand(tmp_path):
    path = tmp_path / "a.splat"
    path.write_bytes(struct.pack("<6f8B", 1, 2, 3, 0.5, 0.25, 1, 255, 0, 51, 204, 128, 255, 128, 128))
    splats = read_splat(path, up="+y").splats()
    assert splats.means.tolist() == [[1, 2, 3]] and splats.scales[0].tolist() == pytest.approx([0.5, 0.25, 1])
    assert splats.colors[0].tolist() == pytest.approx([1, 0, 0.2], abs=1e-5) and splats.quats[0].argmax() == 1
    path.write_bytes(bytes(33))
    with pytest.raises(InputError, match="33 bytes, a .splat has 32 a Gaussian"):
        read_splat(path)


BOUNDS = [
    f"{end}_{axis}" for axes in ("xyz", ("scale_x", "scale_y", "scale_z"), "rgb") for end in ("min", "max") for axis in axes
]


def packed_ply(bounds, chunk, words):
    lines = ["ply", "format binary_little_endian 1.0", "element chunk 1", *(f"property float {name}" for name in bounds)]
    lines += ["element vertex 1", *(f"property uint packed_{name}" for name in ("position", "rotation", "scale", "color"))]
    return ("\n".join([*lines, "end_header"]) + "\n").encode() + struct.pack(f"<{len(chunk)}f4I", *chunk, *words)


@pytest.mark.parametrize("colored", [True, False])
def test_a_compressed_ply_by_hand(tmp_path, colored):
    """Files before 2024 have no bounds of colours."""
    chunk = [0, 0, 0, 2047, 1023, 2047, -6, -6, -6, -2, -2, -2] + ([0.2] * 3 + [0.4] * 3 if colored else [])
    position = 5 << 21 | 6 << 11 | 7
    rotation = 1 << 30 | 512 << 20 | 512 << 10 | 512  # x is the largest of w, x, y, z
    (tmp_path / "a.ply").write_bytes(
        packed_ply(BOUNDS[: len(chunk)], chunk, (position, rotation, 2047 << 21 | 0 << 11 | 0, 255 << 24 | 51))
    )
    read = read_splat(tmp_path / "a.ply", up="+y")
    splats = read.splats()
    assert splats.means[0].tolist() == [5, 6, 7] and read.parameters.log_scales[0].tolist() == pytest.approx([-2, -6, -6])
    assert splats.quats[0].tolist() == pytest.approx([0, 1, 0, 0], abs=0.002)
    assert splats.colors[0].tolist() == pytest.approx([0.4, 0.2, 0.2] if colored else [1, 0, 0], abs=1e-5)
    assert float(splats.opacities[0]) == pytest.approx(0.2)


def test_a_compressed_ply_without_its_chunks_is_refused(field, tmp_path):
    path = write_gaussians(tmp_path / "a.compressed.ply", field)
    path.write_bytes(path.read_bytes().replace(b"element chunk 3", b"element chunk 1"))
    with pytest.raises(InputError, match="1 chunks for 700 Gaussians"):
        read_splat(path)


def test_2d_gaussians_get_a_thickness(tmp_path):
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "rot_0", "rot_1", "rot_2", "rot_3"]
    head = "ply\nformat ascii 1.0\nelement vertex 1\n" + "".join(f"property float {name}\n" for name in names)
    (tmp_path / "a.ply").write_text(f"{head}end_header\n1 2 3 0 0 0 0 -2 -1 1 0 0 0\n")
    assert read_splat(tmp_path / "a.ply").parameters.log_scales[0].tolist() == pytest.approx([-2, -1, -2 + np.log(0.01)])


def point_cloud(rows, faces=None):
    head = f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\nproperty float x\nproperty float y\nproperty float z\n"
    head += "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    head += "" if faces is None else f"element face {faces}\nproperty list uchar int vertex_indices\n"
    return head + "end_header\n" + "".join(" ".join(map(str, row)) + "\n" for row in rows)


def test_coloured_points_are_a_start(tmp_path):
    rows = [(x, y, 0, 255, 0, 51) for x in range(4) for y in range(4)]
    (tmp_path / "a.ply").write_text(point_cloud(rows))
    splats = read_splat(tmp_path / "a.ply", up="+y").splats()
    assert len(splats) == 16 and splats.colors[0].tolist() == pytest.approx([1, 0, 0.2], abs=1e-5)
    assert 0.9 < float(splats.scales.min()) <= float(splats.scales.max()) < 1.6 and float(splats.opacities[0]) > 0.8
    (tmp_path / "a.ply").write_text(point_cloud(rows[:3]))
    with pytest.raises(InputError, match="3 usable points"):
        read_splat(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_text(point_cloud(rows, faces=1) + "3 0 1 2\n")
    with pytest.raises(InputError, match="holds a mesh"):
        read_splat(tmp_path / "a.ply")
    assert isinstance(read_result(tmp_path / "a.ply"), Mesh)


def test_points_without_colours_are_named(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    (tmp_path / "p.ply").write_text(header + "0 0 0\n")
    with pytest.raises(InputError, match="holds points without colours, no 3D Gaussians"):
        read_splat(tmp_path / "p.ply")


@pytest.mark.parametrize("length", [1e-30, 1e-20, 1e20, 3e34])
def test_quaternions_whose_squares_float32_does_not_hold_are_rotations(length, field, tmp_path):
    """The renderers would disagree on them."""
    scaled = replace(field, parameters=field.parameters._replace(quats=field.parameters.quats * length))
    found = read_splat(write_gaussians(tmp_path / "a.ply", scaled))
    assert max(errors(found, field)) < 1e-5
    assert 0.5 < float(found.parameters.quats.norm(dim=1).min()) <= float(found.parameters.quats.norm(dim=1).max()) <= 2


def test_an_empty_list_of_faces_does_not_make_a_splat_a_mesh(field, tmp_path):
    path = write_gaussians(tmp_path / "a.ply", field)
    faces = b"element face 0\nproperty list uchar int vertex_indices\nend_header"
    path.write_bytes(path.read_bytes().replace(b"end_header", faces, 1))
    assert len(read_result(path)) == COUNT
    assert film_renderer(path)[0](film_cameras(1.0, 2, 32, 10.0)).std() > 0.05


# --- glTF --------------------------------------------------------------------------------------------------------------


def gltf_parts(path):
    content = path.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[20 : 20 + length]), content[20 + length :]


def put_document(path, document, rest):
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
    path.write_bytes(head + struct.pack("<I4s", len(text), b"JSON") + text + rest)


def test_gltf_says_what_the_extension_asks_for(field, tmp_path):
    document, _ = gltf_parts(write_gaussians(tmp_path / "a.glb", field))
    (primitive,) = document["meshes"][0]["primitives"]
    assert document["extensionsUsed"] == ["KHR_gaussian_splatting"] and primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"]["kernel"] == "ellipse"
    kinds = {name: document["accessors"][index]["type"] for name, index in primitive["attributes"].items()}
    prefix = "KHR_gaussian_splatting:"
    expected = {"POSITION": "VEC3", f"{prefix}ROTATION": "VEC4", f"{prefix}SCALE": "VEC3", f"{prefix}OPACITY": "SCALAR"}
    assert kinds == {**expected, f"{prefix}SH_DEGREE_0_COEF_0": "VEC3", "COLOR_0": "VEC4"}


def test_nodes_of_gltf_move_and_stretch_splats(field, tmp_path):
    path = write_gaussians(tmp_path / "a.glb", field)
    document, rest = gltf_parts(path)
    half = 0.5**0.5
    document["nodes"][0] |= {"translation": [1, 2, 3], "rotation": [0, half, 0, half], "scale": [2, 1, 1]}
    put_document(path, document, rest)
    found, given = read_splat(path).splats(), field.splats()
    matrix = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-2, 0, 0]])  # a quarter turn about y after twice the width
    assert torch.allclose(found.means, given.means @ matrix.T + torch.tensor([1.0, 2, 3]), atol=1e-5)

    def covariances(splats):
        axes = rotation_matrices(splats.quats) * splats.scales[:, None]
        return axes @ axes.transpose(1, 2)

    assert torch.allclose(covariances(found), matrix @ covariances(given) @ matrix.T, atol=1e-6)


def test_early_drafts_of_the_extension_had_logarithms(field, tmp_path):
    path = write_gaussians(tmp_path / "a.glb", field)
    document, rest = gltf_parts(path)
    index = document["meshes"][0]["primitives"][0]["attributes"]["KHR_gaussian_splatting:SCALE"]
    view = document["bufferViews"][document["accessors"][index]["bufferView"]]
    start = 8 + view["byteOffset"]
    logs = np.log(np.frombuffer(rest, "<f4", 3 * COUNT, start)).astype("<f4").tobytes()
    put_document(path, document, rest[:start] + logs + rest[start + len(logs) :])
    assert errors(read_splat(path), field)[1] < 1e-5


def test_compressed_and_foreign_gltf_is_refused(field, tmp_path):
    path = write_gaussians(tmp_path / "a.glb", field)
    document, rest = gltf_parts(path)
    del document["accessors"][1]["bufferView"]
    put_document(path, document, rest)
    with pytest.raises(InputError, match="without KHR_gaussian_splatting:ROTATION, as compressed ones"):
        read_splat(path)
    mesh = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    write_mesh(tmp_path / "m.glb", mesh)
    assert not holds_splat(tmp_path / "m.glb")
    with pytest.raises(InputError, match="holds no splats"):
        read_splat(tmp_path / "m.glb")


@pytest.mark.parametrize("change", [{"count": 0}, {"count": 1}, {"count": COUNT - 1}, {"type": "SCALAR"}])
@pytest.mark.parametrize("name", ["POSITION", "KHR_gaussian_splatting:SCALE", "KHR_gaussian_splatting:SH_DEGREE_0_COEF_0"])
def test_attributes_of_gltf_splats_fit_each_other(field, tmp_path, name, change):
    path = write_gaussians(tmp_path / "a.glb", field)
    document, rest = gltf_parts(path)
    index = document["meshes"][0]["primitives"][0]["attributes"][name]
    document["accessors"][index] |= change
    put_document(path, document, rest)
    with pytest.raises(InputError, match="attributes have too few numbers; export it again"):
        read_splat(path)


# --- up axes, places and sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", UPS)
def test_up_axes(field, tmp_path, up):
    axis = {"y": 1, "z": 2}[up[1]]
    sign = 1 if up[0] == "+" else -1
    stored = to_file_axes(field.parameters, up)
    assert torch.equal(stored.means[:, axis] * sign, field.parameters.means[:, 1])
    for back, given in zip(from_file_axes(stored, up), field.parameters, strict=True):
        assert torch.allclose(back, given, atol=1e-6)
    for suffix in (".ply", ".compressed.ply"):  # which say it
        read = read_splat(write_gaussians(tmp_path / f"a{suffix}", field, up))
        assert errors(read, field)[0] <= STEPS[suffix][0] + 1e-7
    path = write_gaussians(tmp_path / "a.splat", field, up)
    assert errors(read_splat(path, up=up), field)[2] <= STEPS[".splat"][2]
    mesh = Mesh(stored.means[:3], torch.tensor([[0, 1, 2]]))
    assert torch.allclose(mesh_placement(up).apply(mesh).vertices, field.parameters.means[:3], atol=1e-6)


@pytest.mark.parametrize(
    ("comment", "up"),
    [("Vertical Axis: z", "+z"), ("vertical axis: -Y", "-y"), ("up -z", "-z"), ("Vertical Axis: x", "-y"), ("upset", "-y")],
)
def test_comments_of_orientation_are_believed(field, tmp_path, comment, up):
    path = write_gaussians(tmp_path / "a.ply", field, up)
    path.write_bytes(path.read_bytes().replace(f"comment up {up}".encode(), f"comment {comment}".encode(), 1))
    assert errors(read_splat(path), field)[0] < 1e-6


@pytest.fixture(scope="module")
def toy():
    """A grey ball with a green knob on top and a blue nose in front."""
    rng = torch.Generator().manual_seed(1)
    parts = [
        ((0, 0, 0), 0.3, 900, (0.6, 0.6, 0.6)),
        ((0, 0.3, 0), 0.15, 400, (0.1, 0.8, 0.1)),
        ((0, 0, 0.3), 0.1, 300, (0.1, 0.1, 0.9)),
    ]
    means, colors = [], []
    for centre, radius, count, color in parts:
        means.append(torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=1) * radius + torch.tensor(centre))
        colors.append(torch.tensor(color).expand(count, 3))
    means = torch.cat(means)
    values = Parameters(
        means,
        torch.full_like(means, np.log(0.02)),
        torch.tensor([1.0, 0, 0, 0]).expand(len(means), 4).contiguous(),
        torch.full((len(means),), 3.0),
        (torch.cat(colors) - 0.5) / SH_C0,
    )
    return Gaussians(values, GaussianSettings())


def displaced(field, scale, offset):
    values = field.parameters
    means = values.means * scale + torch.tensor(offset)
    return Gaussians(values._replace(means=means, log_scales=values.log_scales + np.log(scale)), GaussianSettings())


PLACES = [(1.0, (100.0, 50.0, -30.0)), (1.0, (10.0, 0.0, 0.0)), (1e-3, (0.0, 0.0, 0.0)), (1e5, (0.0, 0.0, 0.0))]


@pytest.mark.parametrize(("scale", "offset"), PLACES)
def test_a_film_does_not_depend_on_place_and_size(toy, tmp_path, scale, offset):
    def film(path):
        render, extent = film_renderer(path)
        return render(film_cameras(extent, 2, 64, 10.0))

    at_home = displaced(move_gaussians(toy, fit_splats(toy.splats(), "always")), 1.0, (0.0, 0.0, 0.0))
    expected = film(write_gaussians(tmp_path / "home.ply", at_home))
    found = film(write_gaussians(tmp_path / "away.ply", displaced(toy, scale, offset)))
    assert (expected < 0.98).any(-1).float().mean() > 0.25
    assert float((found - expected).abs().mean()) < 2e-3


@pytest.mark.parametrize(("scale", "offset"), PLACES)
def test_a_mesh_does_not_depend_on_place_and_size(toy, scale, offset):
    settings = MeshSettings(resolution=48, target_faces=600, fit_outlines=False)
    mesh = surface_mesh(displaced(toy, scale, offset), settings).mesh
    assert len(mesh.faces) <= 600
    local = Mesh((mesh.vertices - torch.tensor(offset)) / scale, mesh.faces)
    assert local.vertices.norm(dim=1).amax() < 0.55 and local.vertices[:, 1].amax() > 0.42
    colors = mesh.colors
    assert colors is not None
    top, front = colors[local.vertices[:, 1] > 0.4].mean(0), colors[local.vertices[:, 2] > 0.37].mean(0)
    assert top.argmax() == 1 and front.argmax() == 2


def test_usual_places_are_left_alone(toy):
    assert fit_splats(toy.splats()).is_identity and move_gaussians(toy, fit_splats(toy.splats())) is toy
    floater = toy.parameters._replace(means=torch.cat([toy.parameters.means[:-1], torch.tensor([[1e6, 0, 0]])]))
    assert fit_splats(Gaussians(floater, GaussianSettings()).splats()).is_identity


def test_a_scale_may_be_rounded_but_not_differ_by_axis(toy):
    """Inverting a matrix leaves its diagonal equal up to rounding only, which depends on the linear algebra library."""
    for error, fits in ((1e-15, True), (1e-3, False)):
        placement = Placement(torch.diag(torch.tensor([3.0, 3.0 * (1 + error), 3.0, 1.0], dtype=torch.float64)))
        with nullcontext() if fits else pytest.raises(AssertionError):
            assert move_gaussians(toy, placement).pixel == toy.pixel * 3.0


def test_a_moved_field_renders_the_same(toy):
    away = displaced(toy, 2.0, (3.0, 0.0, 0.0))
    cameras = orbit_cameras(10.0, [0.0, 120.0], 2.0, width=48)
    home = displaced(move_gaussians(toy, fit_splats(toy.splats(), "always")), 1.0, (0.0, 0.0, 0.0))
    back = move_gaussians(away, fit_splats(away.splats()))
    assert torch.allclose(back.render(cameras).rgb, home.render(cameras).rgb, atol=2e-3)
