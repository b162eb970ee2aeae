"""Splat files and saved states."""

import logging
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.io.splats import read_splat, write_gaussians
from microdreamer_core.io.state import load_state, save_state

SETTINGS = GaussianSettings(num_points=50, lr_means=1 / 3, density=DensitySettings(until=7))
NAMES = [
    "x",
    "y",
    "z",
    "nx",
    "ny",
    "nz",
    "f_dc_0",
    "f_dc_1",
    "f_dc_2",
    "opacity",
    "scale_0",
    "scale_1",
    "scale_2",
    "rot_0",
    "rot_1",
    "rot_2",
    "rot_3",
]
ROWS = [[float(i + 100 * row) / 8 for i in range(len(NAMES))] for row in range(3)]


@pytest.fixture
def field():
    plain = Gaussians.ball(SETTINGS, seed=11)
    draw = torch.Generator().manual_seed(0)
    return replace(plain, step=23, parameters=plain.parameters.map(lambda t: torch.randn(t.shape, generator=draw)))


def header(names=NAMES, count=3, form="binary_little_endian", kind="float", before="", after=""):
    properties = "".join(f"property {kind} {name}\n" for name in names)
    return f"ply\nformat {form} 1.0\ncomment by hand\n{before}element vertex {count}\n{properties}{after}end_header\n".encode()


def binary(rows, code="<f"):
    return b"".join(struct.pack(code, v) for row in rows for v in row)


def check_rows(field, count=3):
    """The field is that of ROWS."""
    expected = torch.tensor(ROWS[:count])
    column = {name: expected[:, i] for i, name in enumerate(NAMES)}
    parameters = field.parameters
    assert torch.equal(parameters.means, torch.stack([column[n] for n in ("x", "y", "z")], 1))
    assert torch.equal(parameters.dc, torch.stack([column[f"f_dc_{i}"] for i in range(3)], 1))
    assert torch.equal(parameters.opacity_logits, column["opacity"])
    assert torch.equal(parameters.log_scales, torch.stack([column[f"scale_{i}"] for i in range(3)], 1))
    assert torch.equal(parameters.quats, torch.stack([column[f"rot_{i}"] for i in range(4)], 1))


def test_a_splat_file_gives_back_exactly_what_was_written(field, tmp_path):
    read = read_splat(write_gaussians(tmp_path / "a.ply", field), SETTINGS, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(read.parameters, field.parameters, strict=True))
    assert (read.step, read.seed, read.settings) == (0, 2, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_files_lie_as_splat_scenes_do(field, tmp_path):
    """The same picture from a camera that has made the same half turn about x: y down, z away from the viewer."""
    path = write_gaussians(tmp_path / "a.ply", field)
    assert b"comment up -y" in path.read_bytes()[:200]
    lying = read_splat(path, up="+y")
    cameras = orbit_cameras([20.0, -35.0], [40.0, 200.0], 2.0, width=48)
    turned = replace(cameras, c2w=torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])) @ cameras.c2w)
    assert torch.allclose(lying.render(turned).rgb, field.render(cameras).rgb, atol=1e-4)
    assert not torch.allclose(lying.render(cameras).rgb, field.render(cameras).rgb, atol=0.05)


@pytest.mark.parametrize(("comment", "up", "standing"), [("", None, False), ("", "+y", True), ("comment up +y\n", None, True)])
def test_foreign_files_lie_unless_they_or_the_user_say_otherwise(tmp_path, comment, up, standing):
    path = tmp_path / "a.ply"
    path.write_bytes(header().replace(b"element", comment.encode() + b"element", 1) + binary(ROWS))
    y = read_splat(path, up=up).parameters.means[:, 1]
    assert torch.equal(y, torch.tensor(ROWS)[:, 1] * (1 if standing else -1))


def test_an_unknown_way_up_is_refused(field, tmp_path):
    with pytest.raises(InputError, match="up must be one of -y, [+]y, -z, [+]z, got 'z'"):
        write_gaussians(tmp_path / "a.ply", field, "z")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="up must be one of"):
        read_splat(write_gaussians(tmp_path / "a.ply", field), up="z")


def test_the_written_layout_is_that_of_3dgs(field, tmp_path):
    data = write_gaussians(tmp_path / "a.ply", field, "+y").read_bytes()
    lines = data[: data.index(b"end_header")].decode().splitlines()
    assert lines[:4] == ["ply", "format binary_little_endian 1.0", "comment up +y", "element vertex 50"]
    assert [line.split() for line in lines[4:]] == [["property", "float", name] for name in NAMES]
    body = data[data.index(b"end_header\n") + 11 :]
    assert len(body) == 50 * 17 * 4
    first = struct.unpack("<17f", body[:68])
    assert first[:6] == (*field.parameters.means[0].tolist(), 0, 0, 0)
    assert first[9] == field.parameters.opacity_logits[0]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ascii(tmp_path, end):
    path = tmp_path / "a.ply"
    text = header(form="ascii").decode() + "\n".join(" ".join(map(str, row)) for row in ROWS) + "\n"
    path.write_bytes(text.replace("\n", end).encode())
    check_rows(read_splat(path, up="+y"))


@pytest.mark.parametrize(
    ("form", "kind", "code"),
    [("binary_little_endian", "float", "<f"), ("binary_big_endian", "float32", ">f"), ("binary_little_endian", "double", "<d")],
)
def test_binary_forms(tmp_path, form, kind, code):
    path = tmp_path / "a.ply"
    path.write_bytes(header(form=form, kind=kind) + binary(ROWS, code))
    check_rows(read_splat(path, up="+y"))


def test_other_orders_other_properties_and_other_elements(tmp_path):
    path = tmp_path / "a.ply"
    names = [*NAMES[::-1], "f_rest_0", "label"]
    rows = [[*row[::-1], 9.0, 9.0] for row in ROWS]
    before = "element camera 2\nproperty uchar id\nproperty float angle\n"
    after = "element extra 1\nproperty list uchar int stuff\n"
    data = (
        header(names, before=before, after=after)
        + struct.pack("<BfBf", 1, 2.0, 3, 4.0)
        + binary(rows)
        + b"\x01\x00\x00\x00\x00"
    )
    path.write_bytes(data)
    check_rows(read_splat(path, up="+y"))


def test_rows_that_are_not_finite_are_dropped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.ply"
    nan_row = [float("nan"), *ROWS[0][1:]]
    unrotated = [*ROWS[0][:-4], 0.0, 0.0, 0.0, 0.0]
    path.write_bytes(header(count=5) + binary([*ROWS[:2], nan_row, ROWS[2], unrotated]))
    with caplog.at_level(logging.WARNING):
        check_rows(read_splat(path, up="+y"))
    assert "dropped 2 of 5" in caplog.text


def test_infinite_opacities_are_opaque_or_empty(tmp_path):
    path = tmp_path / "a.ply"
    rows = [list(row) for row in ROWS[:2]]
    rows[0][9], rows[1][9] = float("inf"), float("-inf")
    path.write_bytes(header(count=2) + binary(rows))
    opacities = read_splat(path).splats().opacities
    assert float(opacities[0]) > 0.999999 and float(opacities[1]) < 1e-6


MESH = b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
BAD_FILES = {
    "not a PLY": b"solid cube",
    "holds a mesh": MESH + b"property list uchar int vertex_indices\nend_header\n0 0 0\n3 0 0 0\n",
    "Gaussians without packed_rotation": header(["packed_position"], before="element chunk 1\nproperty float min_x\n"),
    "other data": b"ply\nformat ascii 1.0\nend_header\n",
    "announces 3 Gaussians and holds 2": header() + binary(ROWS)[:-1],
    "announces 3 Gaussians and holds 1": header(form="ascii") + " ".join(map(str, ROWS[0])).encode() + b"\n",
    "not 17 numbers": header(form="ascii") + b"1 2 3\n" * 3,
    "ascii or binary": b"ply\nelement vertex 1\nproperty float x\nend_header\n",
    "cannot be understood": header(form="binary_middle_endian"),
    "-3 elements": header(count=-3),
    "twice": header([*NAMES, "x"]) + binary([[*row, 0.0] for row in ROWS]),
    "none of them": header(count=1) + binary([[float("nan")] * 17]),
    "lists before": header(before="element junk 1\nproperty list uchar int a\n") + binary(ROWS),
}


@pytest.mark.parametrize("reason", BAD_FILES)
def test_unusable_splat_files_say_why(tmp_path, reason):
    path = tmp_path / "bad.ply"
    path.write_bytes(BAD_FILES[reason])
    with pytest.raises(InputError, match=reason):
        read_splat(path)


def test_missing_files_and_folders(field, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_splat(tmp_path / "none.ply")
    with pytest.raises(InputError, match="no folder"):
        write_gaussians(tmp_path / "none" / "a.ply", field)
    with pytest.raises(InputError, match="no file"):
        load_state(tmp_path / "none.safetensors")


def test_a_state_comes_back_whole(field, tmp_path):
    extra = {"plan": "image_sai", "iteration": 4, "seed": 2**60}
    state = load_state(save_state(tmp_path / "a.safetensors", field, extra))
    got, expected = state.field.to_state(), field.to_state()
    assert all(torch.equal(got[0][k], v) for k, v in expected[0].items()) and got[0].keys() == expected[0].keys()
    assert got[1] == expected[1] and state.field.settings == SETTINGS and state.extra == extra
    save_state(tmp_path / "a.safetensors", state.field)  # over the file it came from
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_save_keeps_the_old_file(field, tmp_path, monkeypatch):
    path = save_state(tmp_path / "a.safetensors", field)
    old = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_state(path, field)
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def resaved(path, tensors=None, **changes):
    """The state at ``path`` with other metadata or tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) if tensors is None else tensors, path, metadata | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "2"}, "version 2, expected 1"),
        ({"kind": "voxels"}, "kind 'voxels', expected one of gaussians"),
        ({"format": "other"}, "without a saved field"),
        ({"values": "{"}, "damaged metadata"),
        ({"values": "{}"}, "incomplete"),
        ({"values": '{"settings": {"density": {}, "lr_magic": 1}, "seed": 0, "step": 0}'}, "lr_magic"),
    ],
)
def test_states_of_other_versions_and_kinds(field, tmp_path, changes, reason):
    path = save_state(tmp_path / "a.safetensors", field)
    resaved(path, **changes)
    with pytest.raises(InputError, match=reason):
        load_state(path)


def test_states_with_missing_or_misshapen_tensors(field, tmp_path):
    path = save_state(tmp_path / "a.safetensors", field)
    whole = load_file(path)
    resaved(path, {k: v for k, v in whole.items() if k != "exp_avg.quats"})
    with pytest.raises(InputError, match="exp_avg.quats"):
        load_state(path)
    resaved(path, whole | {"exp_avg.quats": torch.zeros(3, 4)})
    with pytest.raises(InputError, match=r"exp_avg.quats of shape \[50, 4\]"):
        load_state(path)


@pytest.mark.parametrize("keep", [0, 5, 700, -1])
def test_truncated_states(field, tmp_path, keep):
    path = save_state(tmp_path / "a.safetensors", field)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_state(path)


def test_extras_must_be_json(field, tmp_path):
    with pytest.raises(InputError, match="JSON"):
        save_state(tmp_path / "a.safetensors", field, {"plan": object()})


def test_a_saved_state_can_be_read_by_whoever_reads_other_files(tmp_path):
    other = tmp_path / "other"
    other.touch()
    path = save_state(tmp_path / "state.safetensors", Gaussians.ball(GaussianSettings(num_points=8)))
    assert path.stat().st_mode == other.stat().st_mode
