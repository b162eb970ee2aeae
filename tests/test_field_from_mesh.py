"""Gaussians spread over a mesh: even cover, orientation, colours, fit, and the picture they give."""

from __future__ import annotations

import math

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.convert.mesh_to_gaussians import (
    fit_placement,
    gaussians_on_mesh,
    normalise_mesh,
    placement_on,
    quats_from_normals,
)
from microdreamer_core.errors import InputError
from microdreamer_core.evaluation.metrics import psnr, silhouette_iou
from microdreamer_core.mesh import Mesh, Placement, signed_volume, vertex_normals
from microdreamer_core.meshing.sample import even_samples
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.render.projection import rotation_matrices

CAMERAS = orbit_cameras([0.0, 40.0, -40.0], [0.0, 120.0, 250.0], 1.8, width=128)


def sphere(rows: int = 24, columns: int = 48, radius: float = 0.45) -> Mesh:
    """With uvs (seam vertices twice) and a texture of coloured stripes."""
    v, u = torch.meshgrid(torch.linspace(0, 1, rows + 1), torch.linspace(0, 1, columns + 1), indexing="ij")
    polar, turn = v * math.pi, u * 2 * math.pi
    points = torch.stack([polar.sin() * turn.sin(), polar.cos(), polar.sin() * turn.cos()], -1).reshape(-1, 3) * radius
    corner = torch.arange(rows)[:, None] * (columns + 1) + torch.arange(columns)
    below = corner + columns + 1
    halves = (corner, below, below + 1), (corner, below + 1, corner + 1)
    faces = torch.cat([torch.stack(half, -1).reshape(-1, 3) for half in halves])
    stripes = torch.linspace(0, 6 * math.pi, 64).sin() * 0.4 + 0.5
    texture = torch.stack([stripes.expand(64, 64), stripes[:, None].expand(64, 64), torch.full((64, 64), 0.3)], -1)
    return Mesh(points, faces, torch.stack([u, v], -1).reshape(-1, 2), texture=texture)


def plain(mesh: Mesh, colors=None) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces, colors=colors)


def colored(mesh: Mesh) -> Mesh:
    return plain(mesh, (mesh.vertices / 0.9 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("kind, least", [("texture", 28.0), ("colors", 34.0)])
def test_the_gaussians_look_like_the_mesh(kind, least):
    mesh = sphere() if kind == "texture" else colored(sphere())
    render = gaussians_on_mesh(mesh, 10_000, seed=1).render(CAMERAS)
    truth = render_mesh(mesh, CAMERAS, supersample=3)
    rgb, inside = render.rgb.clamp(0, 1), truth.alpha[..., 0] > 0.999
    assert psnr(rgb[inside], truth.rgb[inside]) > least
    # the renderer's low-pass filter widens the outline by about a pixel
    assert psnr(rgb, truth.rgb) > 22 and silhouette_iou(render.alpha, truth.alpha) > 0.93
    assert float(render.alpha[inside].mean()) > 0.99


def test_they_are_flat_discs_on_the_surface_that_face_outwards():
    mesh = plain(sphere())
    splats = gaussians_on_mesh(mesh, 2000).splats()
    outwards = torch.nn.functional.normalize(splats.means, dim=1)
    normals = rotation_matrices(splats.quats)[:, :, 2]
    assert float((normals * outwards).sum(1).min()) > 0.98
    assert float((splats.means.norm(dim=1) - 0.45).abs().max()) < 0.01
    assert float((splats.scales[:, 2] / splats.scales[:, 0]).max()) < 0.2


def test_a_mesh_without_colours_is_shaded_so_that_its_shape_can_be_seen():
    splats = gaussians_on_mesh(plain(sphere()), 2000).splats()
    outwards, grey = torch.nn.functional.normalize(splats.means, dim=1), splats.colors[:, 0]
    assert torch.allclose(splats.colors, grey[:, None].expand(-1, 3), atol=1e-6)
    assert float(grey.min()) == pytest.approx(0.2, abs=0.02) and float(grey.max()) == pytest.approx(0.8, abs=0.02)
    brightest = outwards[grey.argmax()]
    assert brightest[1] > 0.6 and brightest[2] > 0.3 and brightest[0] < 0
    turned = gaussians_on_mesh(Mesh(-sphere().vertices, sphere().faces[:, [0, 2, 1]]), 2000).splats()  # point-mirrored
    assert float(turned.colors[:, 0].mean()) == pytest.approx(float(grey.mean()), abs=0.02)


def test_the_near_side_hides_the_far_one():
    camera, field = CAMERAS[[0]], gaussians_on_mesh(plain(sphere()), 10_000)
    near = field.parameters.means[:, 2] > 0.02
    front = type(field)(field.parameters.map(lambda values: values[near]), field.settings, 0)
    alpha = front.render(camera).alpha[0, 48:80, 48:80, 0]
    assert float(alpha.min()) > 0.75 and float(alpha.quantile(0.01)) > 0.9  # 0.4 and 0.75 where samples are only random


def test_every_region_gets_its_share():
    mesh = sphere()
    points = gaussians_on_mesh(mesh, 8000).parameters.means
    octant = (points > 0).long() @ torch.tensor([1, 2, 4])
    assert torch.bincount(octant, minlength=8).float().sub(1000).abs().max() < 60
    nearest = torch.cdist(points[:2000], points).topk(2, largest=False).values[:, 1]
    spacing = math.sqrt(4 * math.pi * 0.45**2 / 8000)
    assert float(nearest.mean()) > 0.55 * spacing  # independent draws: 0.5 (Clark and Evans 1954)


def test_places_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (gaussians_on_mesh(sphere(), 100, seed=seed).parameters.means for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_z_axis_is_turned_to_every_normal():
    normals = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0], [0, -3, 0], [1, 2, -2], [1e-5, 0, -1]])
    turned = rotation_matrices(quats_from_normals(normals))[:, :, 2]
    assert torch.allclose(turned, torch.nn.functional.normalize(normals, dim=1), atol=1e-3)


def test_only_what_is_far_away_is_moved():
    mesh = sphere()
    assert normalise_mesh(mesh) is mesh
    far = Mesh(mesh.vertices * 300 + torch.tensor([50.0, 0, 0]), mesh.faces, mesh.uvs, texture=mesh.texture)
    assert normalise_mesh(far, "never") is far
    for moved in (normalise_mesh(far), normalise_mesh(mesh, "always")):
        low, high = moved.vertices.amin(0), moved.vertices.amax(0)
        assert float((high - low).max()) == pytest.approx(1, abs=1e-5) and float((high + low).abs().max()) < 1e-4
        assert moved.texture is mesh.texture
    stray = Mesh(torch.cat([mesh.vertices, torch.full((1, 3), 1e4)]), mesh.faces)
    assert normalise_mesh(stray) is stray  # a vertex without faces does not count


def test_what_cannot_be_covered_is_refused():
    mesh, triangle = sphere(), torch.tensor([[0, 1, 2]])
    with pytest.raises(InputError, match="without any"):
        gaussians_on_mesh(Mesh(torch.zeros(3, 3), triangle), 10)
    with pytest.raises(InputError, match="one point"):
        normalise_mesh(Mesh(torch.zeros(3, 3), triangle))
    with pytest.raises(InputError, match="0 faces"):
        normalise_mesh(Mesh(torch.zeros(3, 3), triangle[:0]))
    with pytest.raises(InputError, match="more than 3"):
        gaussians_on_mesh(mesh, 3)
    with pytest.raises(InputError, match="NaN"):
        gaussians_on_mesh(plain(Mesh(mesh.vertices * math.nan, mesh.faces)), 10)
    with pytest.raises(InputError, match="fit must be one of"):
        normalise_mesh(mesh, "perhaps")
    with pytest.raises(InputError, match="At least one point"):
        even_samples(mesh.vertices, mesh.faces, 0, torch.Generator())


def test_a_placement_is_undone_to_the_last_digit_of_float32():
    mesh = sphere()
    scan = Mesh(mesh.vertices * 60 + torch.tensor([500.0, -200, 80]), mesh.faces, mesh.uvs, mesh.vertices / 0.45)
    placement = fit_placement(scan)
    fitted = placement.apply(scan)
    assert float(fitted.vertices.abs().max()) == pytest.approx(0.5, abs=1e-5)
    again = placement.undo(fitted)
    assert torch.allclose(again.vertices, scan.vertices, rtol=1e-6) and torch.allclose(again.normals, scan.normals, atol=1e-6)
    with pytest.raises(InputError, match="other than 0"):
        Placement(torch.zeros(4, 4, dtype=torch.float64))


def test_a_placement_that_mirrors_and_stretches_keeps_the_outside_outside():
    mesh = sphere()
    matrix = torch.diag(torch.tensor([-2.0, 1.0, 0.5, 1.0], dtype=torch.float64))
    moved = Placement(matrix).apply(Mesh(mesh.vertices, mesh.faces, normals=mesh.vertices / 0.45))
    usual = vertex_normals(moved.vertices, moved.faces)
    inner = mesh.vertices[:, 1].abs() < 0.4  # the pole's vertices are many, with one face each
    assert signed_volume(moved.vertices, moved.faces) > 0
    assert float((moved.normals * usual).sum(1)[inner].min()) > 0.97


def test_a_mesh_is_found_where_its_field_is():
    mesh = sphere()
    scan = Mesh(mesh.vertices * 60 + 300, mesh.faces)
    fitted = normalise_mesh(scan)
    for box, expected in (((fitted.vertices.amin(0), fitted.vertices.amax(0)), fitted), (scan_box(scan), scan)):
        assert torch.equal(placement_on(scan, box).apply(scan).vertices, expected.vertices)
    wider = (fitted.vertices.amin(0) * 1.2, fitted.vertices.amax(0) * 1.1)  # Gaussians reach beyond the surface
    assert torch.equal(placement_on(scan, wider).apply(scan).vertices, fitted.vertices)


def scan_box(mesh):
    return mesh.vertices.amin(0), mesh.vertices.amax(0)
