"""New textures for given meshes: alignment with a picture, jobs, the command line, and nodes on the stand-in host."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers.small_model import small_load
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.cli import main as cli
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.errors import InputError
from microdreamer_core.io.mesh_files import read_mesh, write_mesh
from microdreamer_core.io.pictures import write_picture
from microdreamer_core.io.splats import read_splat
from microdreamer_core.io.state import load_state
from microdreamer_core.job.refine import job_to_retexture
from microdreamer_core.mesh import Mesh, Placement, SurfaceMaps
from microdreamer_core.meshing.align import align_to_reference, face_outwards
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.reference import ReferenceView
from microdreamer_core.render.mesh import render_mesh

trimesh = pytest.importorskip("trimesh")
ROOT = stand_in.ROOT
FRONT = orbit_cameras(5.0, 0.0, 1.5, width=96)
TINY = ["--iterations", "1", "--texture-size", "64", "--set", "steps=3", "--no-film", "--quiet"]


def capsule() -> Mesh:
    """A textured capsule with another map, of usual size."""
    shape = trimesh.creation.capsule(height=0.5, radius=0.2, count=[10, 10])
    vertices = torch.tensor(shape.vertices, dtype=torch.float32)
    mesh = unwrap(Mesh(vertices[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0]), torch.tensor(shape.faces)), 64)
    maps = SurfaceMaps(roughness=0.4, normal=torch.tensor([0.5, 0.5, 1.0]).expand(8, 8, 3).contiguous())
    return replace(mesh, colors=None, texture=torch.full((64, 64, 3), 0.5), maps=maps)


def moved(mesh: Mesh, scale: float, shift: tuple[float, float, float]) -> Mesh:
    matrix = torch.diag(torch.tensor([scale, scale, scale, 1.0], dtype=torch.float64))
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return Placement(matrix).apply(mesh)


def view_of(mesh: Mesh) -> ReferenceView:
    shown = render_mesh(mesh, FRONT, supersample=2)
    return ReferenceView(FRONT, shown.rgb, shown.alpha, 1.0, 1.0)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """(mesh file in a place and size of its own, picture of it from the front); the shipped model's stand-in is small."""
    monkeypatch.setattr(EmbeddedModel, "load", small_load())
    mesh = write_mesh(tmp_path / "capsule.glb", moved(capsule(), 30.0, (500.0, 2.0, -80.0)))
    alpha = view_of(capsule()).alpha[0]
    red = torch.tensor([0.9, 0.1, 0.1]).expand(96, 96, 3)
    return mesh, write_picture(tmp_path / "red.png", torch.cat([red, alpha], -1))


# --- where the mesh goes


def test_a_mesh_is_moved_until_its_outline_is_the_pictures():
    mesh = capsule()
    placement, overlap = align_to_reference(moved(mesh, 0.8, (0.05, -0.03, 0.0)), view_of(mesh))
    assert overlap > 0.95
    centre = placement.apply(moved(mesh, 0.8, (0.05, -0.03, 0.0))).vertices.mean(0)
    assert (centre - mesh.vertices.mean(0)).norm() < 0.03
    _, other = align_to_reference(moved(mesh, 1.0, (0.0, 0.0, 0.0)), view_of(Mesh(mesh.vertices[:, [1, 0, 2]], mesh.faces)))
    assert other < 0.6, "the picture of another shape"


def test_a_mesh_that_is_inside_out_is_turned():
    mesh = capsule()
    assert face_outwards(mesh) is mesh
    turned = face_outwards(replace(mesh, faces=mesh.faces.flip(1), normals=-mesh.vertices))
    assert torch.equal(turned.faces, mesh.faces) and torch.equal(turned.normals, mesh.vertices)


# --- command line


def test_retexture_keeps_everything_but_the_colours(files, tmp_path, capsys):
    mesh, picture = files
    output = tmp_path / "new.glb"
    command = ["retexture", str(mesh), "--image", str(picture), "--elevation", "5", "-o", str(output), *TINY]
    assert cli.main(command) == cli.DONE, capsys.readouterr().err
    old, new = read_mesh(mesh), read_mesh(output)
    assert torch.equal(old.faces, new.faces) and torch.equal(old.uvs, new.uvs)
    assert torch.allclose(old.vertices, new.vertices, atol=1e-4 * old.diagonal)
    assert new.maps is not None and new.maps.normal is not None and new.maps.roughness == pytest.approx(0.4)
    assert new.texture.shape == (64, 64, 3)
    front = moved(new, 1 / 30, (-500 / 30, -2 / 30, 80 / 30))
    seen = render_mesh(front, FRONT).rgb[0, 40:56, 44:52].mean((0, 1))
    assert seen[0] > 0.7 and seen[1:].max() < 0.3, "the picture is laid on"


def test_a_retexture_that_was_stopped_goes_on_to_the_same_result(files, tmp_path):
    mesh, picture = files
    command = ["retexture", str(mesh), "--image", str(picture), *TINY, "--iterations"]
    assert cli.main([*command, "2", "-o", str(tmp_path / "whole.glb")]) == cli.DONE
    whole = load_state(tmp_path / "whole.state.safetensors")
    assert whole.field.kind == "texture" and whole.extra["k"] == 1 and "placement" in whole.extra
    # the state as it is after the first of two iterations
    import microdreamer_core.job.run as run
    from microdreamer_core.errors import Cancelled
    from microdreamer_core.sir.hooks import Hooks

    job = job_to_retexture(mesh, picture, texture_size=64, iterations=2, steps=3)
    kept = tmp_path / "half.state.safetensors"

    def stop(iteration):
        run.save_run(kept, job, iteration)
        raise Cancelled

    with pytest.raises(Cancelled):
        run.run_sir(job, EmbeddedModel.load().condition(job.reference), hooks=Hooks(), on_iteration=stop)
    tiny = ["--texture-size", "64", "--no-film", "--quiet"]
    assert cli.main(["resume", str(kept), "-o", str(tmp_path / "resumed.glb"), *tiny]) == cli.DONE
    a, b = read_mesh(tmp_path / "whole.glb"), read_mesh(tmp_path / "resumed.glb")
    assert torch.equal(a.texture, b.texture) and torch.equal(a.vertices, b.vertices)


def test_what_cannot_be_retextured_is_refused(files, tmp_path, capsys):
    mesh, picture = files
    for words, expected in (
        (["retexture", str(mesh)], "a picture or a prompt"),
        (["retexture", str(tmp_path / "no.glb"), "--image", str(picture)], "There is no mesh"),
        (["retexture", str(mesh), "--image", str(picture), "--keep-splat"], "a texture has none"),
        (["refine", str(tmp_path / "no.ply"), "--image", str(picture)], "cannot be read"),
        (
            ["refine", str(ROOT / "samples" / "bird_rough.ply"), "--image", str(picture), "--representation", "nerf"],
            "a plan for",
        ),
    ):
        assert cli.main([*words, "-o", str(tmp_path / ("x.glb" if words[0] == "retexture" else "x.ply"))]) == cli.UNUSABLE
        assert expected in capsys.readouterr().err


def test_a_picture_of_another_shape_guides_but_is_not_laid_on(files, caplog):
    mesh, picture = files
    assert job_to_retexture(mesh, picture, texture_size=64).plan.weighs_reference
    bird = job_to_retexture(mesh, ROOT / "samples" / "bird.png", texture_size=64)
    assert not bird.plan.weighs_reference and "outline is not the mesh's" in caplog.text
    with pytest.raises(InputError, match="Textures? .* got 'red'|starts from"):
        job_to_retexture(mesh, picture, start="red")


def test_refine_keeps_the_shape_of_a_splat(files, tmp_path, capsys):
    _, picture = files
    splat, output = ROOT / "samples" / "bird_rough.ply", tmp_path / "new.ply"
    words = ["--image", str(picture), "--change", "colours", "--iterations", "1", "--set", "steps=2", "--quiet"]
    assert cli.main(["refine", str(splat), *words, "-o", str(output)]) == cli.DONE, capsys.readouterr().err
    old, new = read_splat(splat).parameters, read_splat(output).parameters
    same = {name for name, a, b in zip(old._fields, old, new, strict=True) if torch.equal(a, b)}
    assert same == set(old._fields) - {"dc"}
    assert sorted(path.name for path in tmp_path.glob("new*")) == ["new.ply", "new.state.safetensors", "new_sheet.png"]


# --- nodes


@pytest.fixture(scope="module")
def pack(host):
    return lambda name: importlib.import_module(f"{stand_in.PACK}.{name}")


@pytest.fixture(scope="module")
def native(pack):
    """The capsule as a native MESH of the pack under test, in a place and size of its own."""
    mesh = moved(capsule(), 30.0, (500.0, 2.0, -80.0))
    kinds = pack("microdreamer_core.mesh")
    maps = kinds.SurfaceMaps(roughness=0.4)
    values = {name: getattr(mesh, name) for name in ("vertices", "faces", "uvs", "texture")}
    return pack("nodes.types").to_native_mesh(kinds.Mesh(**values, maps=maps))


@pytest.fixture
def execute(host):
    def run(node, **inputs):
        with torch.inference_mode():
            return host.nodes[f"MicroDreamer{node}"].execute(**inputs).args

    return run


def test_a_new_texture_goes_through_generate_and_comes_back_in_place(native, execute):
    model = execute("LoadModel", checkpoint="embedded")[0]
    image = torch.ones(1, 64, 64, 3)
    image[:, 20:44, 26:38] = torch.tensor([0.9, 0.1, 0.1])
    condition = execute("ConditionOnImage", model=model, image=image, mask=(image[..., 1] < 0.5).float())[0]
    plan = execute("SIRPlan", preset="embedded", iterations=2, steps=3)[0]
    state, transform, placed = execute("NewTexture", mesh=native, texture_size=64)
    assert state.field.kind == "texture" and state.next_k == 0 and float(placed.vertices.abs().max()) < 0.6
    made = execute("Generate", condition=condition, plan=plan, field=state)[0]
    assert made.k == 1 and not torch.equal(made.field.texture, state.field.texture)
    (mesh,) = execute("ExtractMesh", field=made)
    (back,) = execute("UndoFit", mesh=mesh, transform=transform)
    assert torch.allclose(back.vertices, native.vertices, atol=1e-3) and torch.equal(back.uvs, native.uvs)
    assert torch.equal(back.faces, native.faces) and back.microdreamer.maps.roughness == 0.4
    refined, texture = execute(
        "RefineTexture", mesh=mesh, condition=condition, plan=plan, method="project", strength=0.3, views=4
    )
    assert texture.shape == (1, 64, 64, 3) and not torch.equal(refined.texture, mesh.texture)
    assert execute("Turntable", field=made, frames=2, size=32)[0].shape == (2, 32, 32, 3)
    assert execute("NewTexture", mesh=native, texture_size=64, start="grey")[0].next_k == -1


def test_refining_keeps_the_colours_of_parts_without_texels_of_their_own(pack, execute):
    """A palette, as many programs write: a cap whose coordinates all lie in one texel."""
    body = capsule()
    cap = trimesh.creation.icosphere(subdivisions=2, radius=0.15)
    vertices = torch.cat([body.vertices, torch.tensor(cap.vertices, dtype=torch.float32) + torch.tensor([0.0, 0.55, 0.0])])
    faces = torch.cat([body.faces, torch.tensor(cap.faces) + len(body.vertices)])
    uvs = torch.cat([body.uvs, torch.full((len(cap.vertices), 2), 0.995)])
    green = torch.tensor([0.1, 0.8, 0.1])
    texture = body.texture.clone()
    texture[-2:, -2:] = texture[:2, -2:] = green
    mesh = pack("microdreamer_core.mesh").Mesh(vertices, faces, uvs=uvs, texture=texture)
    model = execute("LoadModel", checkpoint="embedded")[0]
    image = torch.ones(1, 64, 64, 3)
    image[:, 20:44, 26:38] = torch.tensor([0.9, 0.1, 0.1])
    condition = execute("ConditionOnImage", model=model, image=image, mask=(image[..., 1] < 0.5).float())[0]
    plan = execute("SIRPlan", preset="embedded", iterations=1, steps=3)[0]
    given = pack("nodes.types").to_native_mesh(mesh)
    options = {"strength": 0.02, "steps": 2, "views": 4, "reference_weight": 0.0}
    refined = pack("nodes.types").from_native_mesh(
        execute("RefineTexture", mesh=given, condition=condition, plan=plan, **options)[0]
    )
    back = orbit_cameras(5.0, 180.0, 2.0, width=96)
    before, after = (render_mesh(one, back).rgb[0] for one in (mesh, refined))
    shown = (before - green).abs().amax(-1) < 0.02
    assert shown.sum() > 50 and (after[shown] - green).abs().mean() < 0.06


def test_texels_outside_a_mask_stay_bit_for_bit(native, execute):
    (rig, _) = execute("CameraLayout", views=1, size=32)
    mask = torch.zeros(1, 48, 48)
    mask[:, 20:28] = 1
    for inputs in ({"mask": mask}, {"mask": mask, "cameras": rig}):
        (state, *_) = execute("NewTexture", mesh=native, texture_size=64, start="noise", **inputs)
        free = state.field.mask[..., 0] > 0
        shown = state.field.mesh.texture
        assert 0 < free.float().mean() < 0.7
        assert torch.equal(shown[~free], torch.full_like(shown[~free], 0.5)) and not torch.equal(
            shown[free], shown[free] * 0 + 0.5
        )
    with pytest.raises(ValueError, match="New Texture: A mask in texture coordinates is one picture, got 2"):
        execute("NewTexture", mesh=native, mask=torch.ones(2, 8, 8))
    with pytest.raises(ValueError, match="New Texture: The file is 'linked mesh' and a mesh is not linked"):
        execute("NewTexture")


def test_views_are_projected_where_they_see_the_mesh(native, execute):
    (rig, _) = execute("CameraLayout", views=2, size=64, radius=1.5)
    red = torch.tensor([0.9, 0.1, 0.1]).expand(2, 96, 96, 3)
    mesh, texture = execute("ProjectViews", mesh=native, images=red, cameras=rig)
    assert texture.shape == (1, 1024, 1024, 3) and torch.allclose(mesh.vertices, native.vertices, atol=1e-3)
    film = execute("Turntable", mesh=mesh, frames=4, size=64, elevation=0.0)[0][:, 32, 32]
    assert (film[[0, 2], 0] > 0.8).all() and (film[[1, 3]] - 0.5).abs().max() < 0.1, "the sides keep theirs"
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    _, half = execute("ProjectViews", mesh=native, images=red, cameras=rig, mask=mask)
    changed = ((texture - 0.5).abs().amax(-1) > 0.1).sum()
    assert 0.3 * changed < ((half - 0.5).abs().amax(-1) > 0.1).sum() < 0.7 * changed
    with pytest.raises(ValueError, match="Project Views: Images of the mesh must have shape"):
        execute("ProjectViews", mesh=native, images=red[:1], cameras=rig)
    with pytest.raises(ValueError, match="Project Views: There must be one mask, or one for each of 2 pictures, got 3"):
        execute("ProjectViews", mesh=native, images=red, cameras=rig, mask=torch.ones(3, 8, 8))


def test_a_mesh_without_texture_gets_one(pack, execute):
    sphere = trimesh.creation.icosphere(2, 0.45)
    mesh = pack("microdreamer_core.mesh").Mesh(torch.tensor(sphere.vertices).float(), torch.tensor(sphere.faces))
    (rig, _) = execute("CameraLayout", views=1, size=64, radius=1.5)
    blue = torch.tensor([0.1, 0.1, 0.9]).expand(1, 64, 64, 3)
    _, texture = execute(
        "ProjectViews", mesh=pack("nodes.types").to_native_mesh(mesh), images=blue, cameras=rig, texture_size=64
    )
    assert texture.shape == (1, 64, 64, 3) and float(texture[..., 2].max()) > 0.85 and math.isfinite(float(texture.sum()))
