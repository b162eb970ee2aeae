"""Native meshes and splats of the host, to our own and back, on the stand-in host."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers import host_stand_in as stand_in
from helpers import node_graphs


@pytest.fixture(scope="module")
def pack(host):
    """The pack's modules by their path below the pack."""
    return lambda name: importlib.import_module(f"{stand_in.PACK}.{name}")


def square(pack, **values):
    """Two triangles in front of the origin, red at the left and green at the right."""
    vertices = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
    mesh = pack("microdreamer_core.mesh").Mesh
    return mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), **values)


def colored(pack):
    red, green = [0.8, 0.1, 0.1], [0.1, 0.6, 0.1]
    return square(pack, colors=torch.tensor([red, green, green, red]))


def textured(pack):
    texture = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0))
    return square(pack, uvs=torch.tensor([[0.0, 1], [1, 1], [1, 0], [0, 0]]), texture=texture)


# --- meshes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [colored, textured])
def test_a_native_mesh_carries_colours_that_other_packs_read(pack, make):
    types, mesh = pack("nodes.types"), make(pack)
    native = types.to_native_mesh(mesh)
    assert types.from_native_mesh(native) is mesh
    foreign = copy.copy(native)
    del foreign.microdreamer
    back = types.from_native_mesh(foreign)
    for name in ("vertices", "faces", "uvs", "texture", "normals"):
        ours, theirs = getattr(mesh, name), getattr(back, name)
        assert ours is theirs is None or torch.equal(ours, theirs), name
    if make is colored:  # linear, as glTF wants them
        assert native.vertex_colors[0, 0].tolist() == pytest.approx([0.60383, 0.01002, 0.01002], abs=1e-4)
        assert torch.allclose(back.colors, mesh.colors, atol=1e-6)


def test_what_other_nodes_changed_counts(pack):
    types = pack("nodes.types")
    native = types.to_native_mesh(textured(pack))
    turned = copy.copy(native)  # as the host's Rotate Mesh does
    turned.vertices = native.vertices * torch.tensor([-1.0, 1, -1])
    mesh = types.from_native_mesh(turned)
    assert torch.equal(mesh.vertices, turned.vertices[0]) and torch.equal(mesh.texture, native.texture[0])
    repainted = copy.copy(native)
    repainted.texture = native.texture * 0.5
    assert torch.equal(types.from_native_mesh(repainted).texture, native.texture[0] * 0.5)
    repainted.texture = torch.cat([native.texture, native.texture[..., :1]], -1)
    assert torch.equal(types.from_native_mesh(repainted).texture, native.texture[0]), "its alpha is left out"
    repainted.texture = native.texture[..., :1]
    assert torch.equal(types.from_native_mesh(repainted).texture, native.texture[0, ..., :1].expand(-1, -1, 3)), "a mask"


def test_an_old_hosts_mesh_keeps_what_it_has_no_room_for(pack, monkeypatch):
    types, compat, mesh = pack("nodes.types"), pack("nodes.compat"), textured(pack)
    mesh = replace(mesh, maps=pack("microdreamer_core.mesh").SurfaceMaps(roughness=0.5))
    monkeypatch.setattr(compat, "_mesh_class", lambda: stand_in.OldMESH)
    native = types.to_native_mesh(mesh)
    assert not hasattr(native, "uvs") and types.from_native_mesh(native) is mesh
    native.vertices = native.vertices * 2
    moved = types.from_native_mesh(native)
    assert torch.equal(moved.texture, mesh.texture) and torch.equal(moved.vertices, mesh.vertices * 2)
    assert moved.maps is mesh.maps
    native.faces = native.faces[:, :1]
    assert types.from_native_mesh(native).texture is None


def test_padding_is_taken_off_and_a_batch_refused(pack):
    types = pack("nodes.types")
    native = types.to_native_mesh(colored(pack))
    padded = stand_in.MESH(
        torch.cat([native.vertices, torch.zeros(1, 3, 3)], 1),
        torch.cat([native.faces, torch.zeros(1, 5, 3, dtype=torch.long)], 1),
        vertex_colors=torch.cat([native.vertex_colors, torch.zeros(1, 3, 3)], 1),
        vertex_counts=torch.tensor([4]),
        face_counts=torch.tensor([2]),
    )
    mesh = types.from_native_mesh(padded)
    assert (len(mesh.vertices), len(mesh.faces), len(mesh.colors)) == (4, 2, 4)
    with pytest.raises(ValueError, match="a batch of 2 meshes, one is expected; make one at a time"):
        types.from_native_mesh(stand_in.MESH(native.vertices.expand(2, -1, -1), native.faces.expand(2, -1, -1)))
    with pytest.raises(ValueError, match="needs vertices and faces, got SimpleNamespace"):
        types.from_native_mesh(SimpleNamespace(vertices=torch.zeros(0, 4, 3), faces=torch.zeros(0, 1, 3)))


def test_field_from_mesh(host, pack):
    node, native = host.nodes["MicroDreamerFieldFromMesh"], pack("nodes.types").to_native_mesh(colored(pack))
    with torch.inference_mode():
        (state,) = node.execute(mesh=native, num_points=500, seed=7).args
    assert (state.seed, state.k, len(state.field)) == (7, -1, 500)
    splats = state.field.splats()
    left = splats.means[:, 0] < -0.4
    assert float(splats.colors[left, 0].mean()) > 0.7 and float(splats.colors[left, 1].mean()) < 0.2
    model = SimpleNamespace(image_size=32)
    loaded = pack("nodes.types").LoadedModel(model, None, "small")
    (other,) = node.execute(mesh=native, num_points=500, seed=7, initialised=False, model=loaded).args
    assert other.k is None and other.field.settings.density.max_points == 32 * 32 * 3 // 2
    assert torch.equal(other.field.parameters.means, state.field.parameters.means)
    with pytest.raises(ValueError, match="Field from Mesh: The fit must be one of auto, always, never, got 'bogus'"):
        node.execute(mesh=native, normalise="bogus")


# --- splats ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(pack):
    gaussians = pack("microdreamer_core.fields.gaussians")
    draw = torch.Generator().manual_seed(3)
    shapes = ((40, 3), (40, 3), (40, 4), (40,), (40, 3))
    parameters = gaussians.Parameters(*(torch.randn(*shape, generator=draw) * 0.3 for shape in shapes))
    return pack("nodes.types").FieldState(gaussians.Gaussians(parameters), 5, 2)


def to_splat(host, state):
    with torch.inference_mode():
        return host.nodes["MicroDreamerFieldToSplat"].execute(field=state).args[0]


def from_splat(host, splat, **options):
    return host.nodes["MicroDreamerFieldFromNativeSplat"].execute(splat=splat, **options).args[0]


def test_a_splat_passes_through_the_native_type(host, pack, state):
    splat = to_splat(host, state)
    assert splat.positions.shape == (1, 40, 3) and splat.opacities.shape == (1, 40, 1) and splat.sh.shape == (1, 40, 1, 3)
    assert torch.allclose(splat.rotations.norm(dim=-1), torch.ones(1, 40))
    back = from_splat(host, splat, seed=9)
    assert (back.seed, back.k) == (9, -1)
    mine, theirs = state.field.splats(), back.field.splats()
    for name in ("means", "scales", "opacities", "colors"):
        assert torch.allclose(getattr(mine, name), getattr(theirs, name), atol=1e-5), name
    turns = pack("microdreamer_core.render.projection").rotation_matrices
    assert torch.allclose(turns(mine.quats), turns(theirs.quats), atol=1e-5)


def test_native_splats_are_y_down(host, pack, state):
    """Half a turn about x takes means and covariances over, as the host's own cameras and meshes assume."""
    splat, mine = to_splat(host, state), state.field.splats()
    turns = pack("microdreamer_core.render.projection").rotation_matrices
    half = torch.diag(torch.tensor([1.0, -1, -1]))
    assert torch.allclose(splat.positions[0], mine.means @ half)
    covariance, native = (
        turns(quats) @ torch.diag_embed(scales**2) @ turns(quats).mT
        for quats, scales in ((mine.quats, mine.scales), (splat.rotations[0], splat.scales[0]))
    )
    assert torch.allclose(native, half @ covariance @ half, atol=1e-5)


def test_higher_harmonics_padding_and_bad_rows_are_left_out(host, state):
    splat = to_splat(host, state)
    padded = {name: torch.cat([v, torch.zeros_like(v[:, :5])], 1) for name, v in vars(splat).items() if v is not None}
    padded["sh"] = torch.cat([padded["sh"], torch.ones(1, 45, 8, 3)], 2)
    padded["positions"][0, 3, 0] = float("nan")
    padded["scales"][0, 4] = 0
    padded["rotations"][0, 5] = 0
    padded["opacities"][0, 6] = 1
    native = stand_in.SPLAT(**padded, counts=torch.tensor([40]))
    field = from_splat(host, native).field
    assert len(field) == 37 and bool(field.parameters.opacity_logits.isfinite().all())
    kept = torch.tensor([i not in (3, 4, 5) for i in range(40)])
    assert torch.allclose(field.parameters.dc, state.field.parameters.dc[kept])
    for empty in (replace(native, counts=torch.tensor([0])), replace(splat, positions=splat.positions[:0])):
        with pytest.raises(ValueError, match="Field from SPLAT: The splat is empty"):
            from_splat(host, empty)
    with pytest.raises(ValueError, match="none of them with finite numbers"):
        from_splat(host, replace(splat, scales=splat.scales * 0))
    with pytest.raises(ValueError, match="A SPLAT has positions.*got SimpleNamespace"):
        from_splat(host, SimpleNamespace())


def test_hosts_without_splats_have_no_splat_nodes(pack, monkeypatch):
    splat = pack("nodes.splat")
    assert len(splat.NODES) == 2
    monkeypatch.delattr(stand_in.io, "Splat")
    spec = importlib.util.spec_from_file_location(f"{splat.__name__}_again", splat.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.NODES == ()


def test_a_mesh_is_refined_by_the_iterations_without_a_new_start(host, pack):
    native = pack("nodes.types").to_native_mesh(colored(pack))
    host.nodes["Given"] = type("Given", (), {"OUTPUT_NODE": False, "execute": lambda: stand_in.NodeOutput(native)})
    graph = node_graphs.workflow("00_hello", 6)
    graph["7"] = {"class_type": "Given", "inputs": {}}
    graph["8"] = {"class_type": "MicroDreamerFieldFromMesh", "inputs": {"mesh": ["7", 0], "num_points": 300, "model": ["1", 0]}}
    graph["6"]["inputs"]["field"] = ["8", 0]
    results = stand_in.Executor(host).run(node_graphs.keep(graph, "6", 2))
    assert results["8"][0].k == -1 and results["6"][0].k == node_graphs.K - 1
    assert results["keep"][0].startswith("k 0:"), "no initialisation"
