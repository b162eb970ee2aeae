"""Users' meshes at the nodes: files, 3D files, any size, maps of materials, viewpoints; on the stand-in host."""

from __future__ import annotations

import importlib
import io
import math

import pytest
import torch
from PIL import Image

from helpers import host_stand_in as stand_in

SCAN = torch.tensor([500.0, -200.0, 80.0])


@pytest.fixture(scope="module")
def pack(host):
    return lambda name: importlib.import_module(f"{stand_in.PACK}.{name}")


@pytest.fixture(scope="module")
def ball(pack):
    """A rough ball of 320 triangles, red at +x and blue elsewhere, of diameter 60 and far from the origin."""
    trimesh = pytest.importorskip("trimesh")
    shape = trimesh.creation.icosphere(2, 30.0)
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    colors = torch.where(vertices[:, :1] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    return pack("microdreamer_core.mesh").Mesh(vertices + SCAN, torch.tensor(shape.faces), colors=colors)


@pytest.fixture
def execute(host):
    def run(node, **inputs):
        with torch.inference_mode():
            return host.nodes[f"MicroDreamer{node}"].execute(**inputs).args

    return run


# --- files


def test_a_mesh_comes_from_a_file_a_3d_file_or_a_link(host, pack, ball, execute):
    write = pack("microdreamer_core.io.mesh_files").write_mesh
    path = host.base / "input" / "3d" / "ball.glb"
    path.parent.mkdir(exist_ok=True)
    write(path, ball)
    node = host.nodes["MicroDreamerFieldFromMesh"]
    listed = next(socket for socket in node.define_schema().inputs if socket.id == "file").options["options"]
    assert listed[0] == "linked mesh" and "input/3d/ball.glb" in listed
    assert node.validate_inputs("input/3d/ball.glb") is True and node.fingerprint_inputs(file="input/3d/ball.glb") > 0
    assert "There is no file" in node.validate_inputs("input/../ball.glb")
    given = [
        {"file": "input/3d/ball.glb"},
        {"mesh": pack("nodes.types").to_native_mesh(ball)},
        {"mesh": stand_in.File3D(str(path))},
        {"mesh": stand_in.File3D(io.BytesIO(path.read_bytes()), "glb")},
    ]
    fields = [execute("FieldFromMesh", num_points=300, **inputs)[0].field for inputs in given]
    for field in fields:
        assert torch.allclose(field.parameters.means, fields[1].parameters.means, atol=1e-5)
        assert torch.allclose(field.splats().colors, fields[1].splats().colors, atol=0.01)


def test_files_and_links_that_do_not_fit_are_refused(host, ball, pack, execute):
    for inputs, said in (
        ({}, "link a mesh, or choose a file"),
        ({"mesh": pack("nodes.types").to_native_mesh(ball), "file": "input/x.glb"}, "or unlink the mesh"),
        ({"file": "input/none.glb"}, "There is no file 'input/none.glb'"),
        ({"mesh": stand_in.File3D(io.BytesIO(b""), "fbx")}, "got .fbx; link a .glb"),
        ({"mesh": stand_in.File3D(io.BytesIO(b"no"), "stl")}, "cannot be read as a mesh|holds no triangles"),
    ):
        with pytest.raises(ValueError, match=said):
            execute("FieldFromMesh", **inputs)


def test_the_inputs_of_old_graphs_are_where_they_were(host):
    schema = host.nodes["MicroDreamerFieldFromMesh"].define_schema()
    names = [socket.id for socket in schema.inputs]
    assert names == ["mesh", "num_points", "normalise", "seed", "initialised", "model", "file", "model_3d_info"]
    assert schema.inputs[0].kind.split(",")[:3] == ["MESH", "FILE_3D", "FILE_3D_GLB"]
    assert [out.kind for out in host.nodes["MicroDreamerSaveMesh"].define_schema().outputs] == ["STRING", "FILE_3D_GLB"]
    assert [out.kind for out in host.nodes["MicroDreamerSaveSplat"].define_schema().outputs] == ["STRING", "FILE_3D_PLY"]


def test_older_hosts_have_meshes_alone(pack, monkeypatch):
    compat = pack("nodes.compat")
    for name in list(vars(stand_in.io)):
        if name.startswith(("File3D", "Load3D")):
            monkeypatch.delattr(stand_in.io, name)
    assert compat.mesh_input("mesh", tooltip="x").kind == "MESH" and compat.model_info_input() == []
    assert compat.file_3d_output("File3DGLB", "x") == [] == compat.file_3d(b"", ".glb") and not compat.has_3d_cameras()


@pytest.mark.parametrize("format", ["glb", "obj", "ply", "stl"])
def test_save_mesh_gives_a_glb_of_every_format(host, ball, pack, execute, format):
    path, file = execute("SaveMesh", mesh=pack("nodes.types").to_native_mesh(ball), filename_prefix="t/ball", format=format)
    assert path.endswith(format) and (host.base / "output" / path).is_file() and file.format == "glb"
    again = pack("nodes.types").from_native_mesh(file)
    assert torch.allclose(again.vertices, ball.vertices) and torch.allclose(again.colors, ball.colors, atol=1e-4)


def test_save_splat_gives_its_file(host, ball, pack, execute):
    (state,) = execute("FieldFromMesh", mesh=pack("nodes.types").to_native_mesh(ball), num_points=100)
    path, file = execute("SaveSplat", field=state, filename_prefix="t/ball")
    assert file.format == "ply" and file.get_source() == str(host.base / "output" / path)


# --- any size and place


def test_a_scan_is_baked_in_its_own_frame(ball, pack, execute):
    native = pack("nodes.types").to_native_mesh(ball)
    (state,) = execute("FieldFromMesh", mesh=native, num_points=2000)
    mesh, texture = execute("BakeTexture", mesh=native, field=state, texture_size=128, views=12, view_size=96)
    baked = pack("nodes.types").from_native_mesh(mesh)
    assert torch.allclose(baked.vertices.amin(0), ball.vertices.amin(0), atol=1e-3) and texture.shape == (1, 128, 128, 3)
    seen = pack("microdreamer_core.render.mesh").sample_texture(baked.texture, baked.uvs)
    side = baked.vertices[:, 0] - SCAN[0]
    for chosen, colour in ((side > 8, [0.9, 0.1, 0.1]), (side < -8, [0.1, 0.1, 0.9])):
        assert torch.allclose(seen[chosen].mean(0), torch.tensor(colour), atol=0.06)


def test_a_field_that_lies_where_its_mesh_does_is_baked_there(ball, pack, execute):
    mesh = pack("microdreamer_core.mesh").Mesh(ball.vertices - SCAN, ball.faces, colors=ball.colors)  # 60 wide, at the origin
    native = pack("nodes.types").to_native_mesh(mesh)
    (state,) = execute("FieldFromMesh", mesh=native, num_points=2000, normalise="never")
    (baked, _) = execute("BakeTexture", mesh=native, field=state, texture_size=128, views=12, view_size=96)
    baked = pack("nodes.types").from_native_mesh(baked)
    seen = pack("microdreamer_core.render.mesh").sample_texture(baked.texture, baked.uvs)
    assert torch.allclose(seen[baked.vertices[:, 0] > 8].mean(0), torch.tensor([0.9, 0.1, 0.1]), atol=0.06)


def test_a_turntable_shows_a_scan_as_it_shows_a_unit_object(ball, pack, execute):
    types = pack("nodes.types")
    (images,) = execute("Turntable", mesh=types.to_native_mesh(ball), frames=3, size=48)
    unit = pack("microdreamer_core.mesh").Mesh((ball.vertices - SCAN) / 60, ball.faces, colors=ball.colors)
    (expected,) = execute("Turntable", mesh=types.to_native_mesh(unit), frames=3, size=48)
    assert torch.allclose(images, expected, atol=0.02) and float((images < 0.99).any(-1).float().mean()) > 0.3


def test_fit_and_undo(ball, pack, execute):
    native = pack("nodes.types").to_native_mesh(ball)
    fitted, transform = execute("FitMesh", mesh=native)
    vertices = pack("nodes.types").from_native_mesh(fitted).vertices
    assert float(vertices.abs().max()) == pytest.approx(0.5, abs=1e-4)
    (back,) = execute("UndoFit", mesh=fitted, transform=transform)
    assert torch.allclose(pack("nodes.types").from_native_mesh(back).vertices, ball.vertices, atol=1e-3)
    with pytest.raises(ValueError, match="must be a Placement"):
        execute("UndoFit", mesh=fitted, transform="sideways")


QUARTER = [
    {
        "position": {"x": 1, "y": 2, "z": 3},
        "quaternion": {"x": 0, "y": 0.5**0.5, "z": 0, "w": 0.5**0.5},
        "scale": {"x": 2, "y": 2, "z": 2},
    }
]


def test_the_placement_in_the_viewer_counts(ball, pack, execute):
    native = pack("nodes.types").to_native_mesh(ball)
    turned, _ = execute("FitMesh", mesh=native, normalise="never", model_3d_info=QUARTER)
    moved = pack("nodes.types").from_native_mesh(turned).vertices
    x, y, z = ball.vertices.unbind(1)
    assert torch.allclose(moved, torch.stack([2 * z + 1, 2 * y + 2, -2 * x + 3], 1), atol=1e-3)
    (state,) = execute("FieldFromMesh", mesh=native, num_points=500, model_3d_info=QUARTER)
    splats = state.field.splats()
    red = splats.colors[:, 0] > 0.5
    assert float(splats.means[red, 2].mean()) < -0.1 and float(splats.means.abs().max()) < 0.55  # +x was turned to -z
    for wrong in ([{}], [{"position": 1}], "left", [QUARTER[0] | {"scale": {"x": 0, "y": 1, "z": 1}}]):
        with pytest.raises(ValueError, match=r"A placement needs"):
            execute("FitMesh", mesh=native, model_3d_info=wrong)


# --- materials


def test_maps_of_a_native_mesh_survive_our_nodes(pack, execute):
    types, mesh_class = pack("nodes.types"), stand_in.MESH
    image = torch.arange(48).reshape(1, 4, 4, 3) / 255
    native = mesh_class(
        torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]]),
        torch.tensor([[[0, 1, 2]]]),
        uvs=torch.rand(1, 3, 2),
        texture=torch.ones(1, 4, 4, 3),
        metallic_roughness=image,
        normal_map=1 - image,
        occlusion_in_mr=True,
        emissive=image / 2,
        material={"normal_scale": 0.5, "metallic_factor": -1, "base_color_factor": [0.5, 1, 1, 1], "emissive_strength": 3.0},
    )
    mesh = types.from_native_mesh(native)
    maps = mesh.maps
    assert torch.equal(maps.metallic_roughness, image[0]) and torch.equal(maps.normal, 1 - image[0])
    assert torch.equal(maps.occlusion, image[0]) and maps.emission == (3, 3, 3) and maps.normal_scale == 0.5
    assert (maps.metallic, maps.roughness) == (1, 1) and float(mesh.texture[0, 0, 0]) == pytest.approx(0.735, abs=0.001)
    _, file = execute("SaveMesh", mesh=native, filename_prefix="t/maps")
    saved = types.from_native_mesh(file).maps
    for name in ("metallic_roughness", "normal", "occlusion", "emissive"):
        assert torch.allclose(getattr(saved, name), getattr(maps, name), atol=0.003), name
    again = types.to_native_mesh(mesh)
    assert torch.equal(again.normal_map, native.normal_map) and again.occlusion_in_mr and types.from_native_mesh(again) is mesh
    again.normal_map = None
    assert types.from_native_mesh(again).maps.normal is None


def test_vertex_colours_that_tint_a_native_texture_are_baked(pack):
    vertices = torch.tensor([[[-0.5, 0.5, 0], [0.5, 0.5, 0], [0.5, -0.5, 0], [-0.5, -0.5, 0]]])
    tint = torch.tensor([[[0.0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]])
    uvs = torch.tensor([[[0.0, 0], [1, 0], [1, 1], [0, 1]]])
    native = stand_in.MESH(
        vertices, torch.tensor([[[0, 3, 2], [0, 2, 1]]]), uvs=uvs, vertex_colors=tint, texture=torch.full((1, 8, 8, 3), 0.5)
    )
    mesh = pack("nodes.types").from_native_mesh(native)
    seen = pack("microdreamer_core.render.mesh").sample_texture(mesh.texture, mesh.uvs)
    left = mesh.vertices[:, 0] < 0
    assert float(seen[left].max()) < 0.15 and float(seen[~left].min()) > 0.45


# --- viewpoints


def look(**changes):
    view = {"position": {"x": 0.0, "y": 1.0, "z": 3.0}, "target": {"x": 0.0, "y": 1.0, "z": 0.0}, "fov": 40.0, "zoom": 1.0}
    return view | {"cameraType": "perspective"} | changes


def test_a_view_becomes_the_camera_it_is(execute):
    (camera,) = execute("CamerasFromView", camera_info=look(), width=80, height=60)
    assert (len(camera), camera.fov_y, camera.width, camera.height) == (1, pytest.approx(40), 80, 60)
    assert torch.allclose(camera.c2w[0], torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 3], [0, 0, 0, 1]]), atol=1e-6)
    pixels, depth = camera.project(torch.tensor([[0.0, 1, 0], [0.1, 1.1, 0]]))
    assert pixels[0, 0].tolist() == pytest.approx([40, 30]) and depth[0].tolist() == pytest.approx([3, 3])
    assert pixels[0, 1, 0] > 40 and pixels[0, 1, 1] < 30  # right and up
    (zoomed,) = execute("CamerasFromView", camera_info=look(zoom=2.0))
    assert math.tan(math.radians(zoomed.fov_y) / 2) == pytest.approx(math.tan(math.radians(20)) / 2)
    (usual,) = execute("CamerasFromView", camera_info={k: v for k, v in look().items() if k != "fov"})
    assert usual.fov_y == pytest.approx(35)


def test_a_quaternion_decides_over_the_target(execute):
    half = 0.5**0.5
    (camera,) = execute("CamerasFromView", camera_info=look(quaternion={"x": 0, "y": half, "z": 0, "w": half}))
    assert torch.allclose(camera.c2w[0, :3, 2], torch.tensor([1.0, 0, 0]), atol=1e-6)  # looks along -x
    (rolled,) = execute("CamerasFromView", camera_info=look(quaternion={"x": 0, "y": 0, "z": half, "w": half}))
    assert torch.allclose(rolled.c2w[0, :3, 0], torch.tensor([0.0, 1, 0]), atol=1e-6)


@pytest.mark.parametrize("height", [5.0, -5.0])
def test_straight_down_and_up(execute, height):
    view = look(position={"x": 0, "y": height, "z": 0}, target={"x": 0, "y": 0, "z": 0})
    (camera,) = execute("CamerasFromView", camera_info=view)
    assert torch.allclose(camera.c2w[0, :3, 0], torch.tensor([1.0, 0, 0]), atol=1e-6)
    assert camera.c2w[0, 1, 2] == pytest.approx(math.copysign(1, height))


def test_a_parallel_view_keeps_its_height(execute):
    for changes, half in (
        ({"frustum": {"left": -2, "right": 2, "top": 1.5, "bottom": -1.5}}, 1.5),
        ({}, 3 * math.tan(math.radians(20))),
    ):
        (camera,) = execute("CamerasFromView", camera_info=look(cameraType="orthographic", **changes), width=100, height=100)
        pixels, _ = camera.project(torch.tensor([[0.0, 1 + half, 0.0], [0.0, 1 + half / 2, -0.5]]))
        assert pixels[0, 0, 1] == pytest.approx(0, abs=0.1) and pixels[0, 1, 1] == pytest.approx(25, abs=0.3)


def test_views_and_cameras_are_inverse(host, pack, ball, execute):
    rig = pack("microdreamer_core.cameras").orbit_cameras([-30.0, 10.0, 80.0], [10.0, 150.0, 280.0], 2.2, 37.0, 64)
    _, transform = execute("FitMesh", mesh=pack("nodes.types").to_native_mesh(ball))
    for told in ({}, {"model_3d_info": QUARTER, "transform": transform}):
        for index in range(3):
            (view,) = execute("ViewFromCameras", cameras=rig, index=index, **told)
            (camera,) = execute("CamerasFromView", camera_info=view, width=64, height=64, **told)
            assert torch.allclose(camera.c2w[0], rig.c2w[index], atol=2e-5) and camera.fov_y == pytest.approx(37, abs=1e-4)
            (aimed,) = execute("CamerasFromView", camera_info=view | {"quaternion": None}, width=64, height=64, **told)
            assert torch.allclose(aimed.c2w[0], rig.c2w[index], atol=2e-3)
    (view,) = execute("ViewFromCameras", cameras=rig, index=1)
    assert [view["target"][axis] for axis in "xyz"] == pytest.approx([0, 0, 0], abs=1e-5)
    with pytest.raises(ValueError, match="There are 3 cameras, got index 3"):
        execute("ViewFromCameras", cameras=rig, index=3)


@pytest.mark.parametrize(
    "view", [None, {}, {"position": 3}, "front", look(target=None), look(position={"x": float("nan"), "y": 0, "z": 0})]
)
def test_views_without_sense_are_refused(execute, view):
    with pytest.raises(ValueError, match="A camera_info needs position and target"):
        execute("CamerasFromView", camera_info=view)


def test_a_camera_in_its_own_target_is_refused(execute):
    with pytest.raises(ValueError, match="are the same"):
        execute("CamerasFromView", camera_info=look(target=look()["position"]))


def test_a_camera_of_the_object_is_rendered(pack, ball, execute):
    (state,) = execute("FieldFromMesh", mesh=pack("nodes.types").to_native_mesh(ball), num_points=2000)
    view = look(position={"x": 2.0, "y": 0.0, "z": 0.0}, target={"x": 0.0, "y": 0.0, "z": 0.0})
    (cameras,) = execute("CamerasFromView", camera_info=view, width=64, height=64)
    images, mask, *_ = execute("RenderViews", field=state, cameras=cameras)
    assert torch.allclose(images[0, 30:34, 30:34].mean((0, 1)), torch.tensor([0.9, 0.1, 0.1]), atol=0.08)
    assert 0.2 < float(mask.mean()) < 0.6


def test_a_picture_of_ones_own_is_read(pack, execute, tmp_path, monkeypatch):
    folder, files = tmp_path / "input", pack("nodes.files")
    folder.mkdir()
    Image.new("RGB", (24, 18), (255, 0, 0)).save(folder / "photo.png")
    monkeypatch.setattr(files, "input_folder", lambda: folder)
    image, mask = execute("ExamplePicture", picture="input/photo.png")
    assert image.shape == (1, 18, 24, 3) and float(image[..., 0].min()) == 1
    assert mask.shape == (1, 18, 24) and float(mask.max()) == 0, "empty, so that Prepare Reference removes the background"
    Image.new("RGBA", (24, 18), (255, 0, 0, 128)).save(folder / "cut out.png")
    assert float(execute("ExamplePicture", picture="input/cut out.png")[1].max()) == pytest.approx(0.5, abs=0.01)
    node = pack("nodes.reference").ExamplePicture
    assert node.validate_inputs("bird") is True and node.validate_inputs("input/photo.png") is True
    assert "There is no file" in node.validate_inputs("input/../photo.png") and "photo.glb" in node.validate_inputs(
        "input/photo.glb"
    )
    assert node.fingerprint_inputs("input/photo.png") > 0 == node.fingerprint_inputs("bird")
