"""From Gaussians to a textured mesh: every stage against something known."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from microdreamer_core.cameras import Cameras, orbit_cameras, turntable
from microdreamer_core.diffusion.noise import STABLE_DIFFUSION, NoiseProcess
from microdreamer_core.diffusion.protocol import ViewCount
from microdreamer_core.diffusion.timesteps import timestep_grid
from microdreamer_core.errors import Cancelled, InputError
from microdreamer_core.mesh import Mesh, signed_volume, vertex_normals
from microdreamer_core.meshing.clean import decimate, keep_largest_components, smooth
from microdreamer_core.meshing.extract import _close_tunnels, extract_mesh, fill_interior
from microdreamer_core.meshing.pipeline import STAGES, texture_mesh
from microdreamer_core.meshing.refine import TextureRefinement, refine_texture
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.meshing.splat_density import density_grid
from microdreamer_core.meshing.unwrap import split_faces, unwrap
from microdreamer_core.reference import ReferenceView
from microdreamer_core.render.mesh import rasterize, rasterize_uv, render_mesh, texture_view
from microdreamer_core.render.protocol import Splats
from microdreamer_core.render.texels import bake, fill_nearest, splat_colors, texel_map, texel_visibility

trimesh = pytest.importorskip("trimesh")


def sphere(subdivisions: int, radius: float = 0.4) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions, radius)
    return Mesh(torch.tensor(np.array(shape.vertices), dtype=torch.float32), torch.tensor(np.array(shape.faces)))


def pattern(positions: torch.Tensor) -> torch.Tensor:
    """A smooth colour of every point of space."""
    return 0.5 + 0.4 * torch.sin(positions * torch.tensor([9.0, 7.0, 8.0]) + torch.tensor([0.0, 1.0, 2.0]))


def shell(points: torch.Tensor, normals: torch.Tensor | None = None, scale: float = 0.03, opacity: float = 0.9) -> Splats:
    """Flat Gaussians lying on a surface, as fitted ones do; on a sphere around the origin when no normals are given."""
    normals = torch.nn.functional.normalize(points, dim=1) if normals is None else normals
    # the half-way quaternion that turns z into the normal
    quats = torch.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], torch.zeros(len(points))], 1)
    quats[normals[:, 2] < -0.9999] = torch.tensor([0.0, 1, 0, 0])
    scales = torch.tensor([scale, scale, scale / 5]).expand(len(points), 3)
    return Splats(points, quats, scales, torch.full((len(points),), opacity), pattern(points))


def sphere_points(count: int, radius: float = 0.4) -> torch.Tensor:
    """Evenly spread by the golden angle."""
    i = torch.arange(count) + 0.5
    y = 1 - 2 * i / count
    ring, angle = (1 - y**2).sqrt(), i * math.pi * (3 - math.sqrt(5))
    return radius * torch.stack([ring * angle.cos(), y, ring * angle.sin()], 1)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def brute_force(vertices, faces, cameras: Cameras):
    """Möller-Trumbore in float64 for every pixel and triangle: (ids, depth), straight from c2w and the field of view."""
    focal = 0.5 * cameras.height / math.tan(math.radians(cameras.fov_y) / 2)
    y, x = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
    ray = torch.stack([(x - cameras.width / 2) / focal, -(y - cameras.height / 2) / focal, -torch.ones_like(x)], -1).double()
    a, b, c = vertices.double()[faces].unbind(1)
    e1, e2 = b - a, c - a
    ids, depths = [], []
    for c2w in cameras.c2w.double():
        direction, origin = ray @ c2w[:3, :3].T, c2w[:3, 3]
        p = torch.linalg.cross(direction[:, :, None].expand(-1, -1, len(faces), -1), e2.expand(*x.shape, -1, -1))
        det = (e1 * p).sum(-1)
        s = origin - a
        u = (s * p).sum(-1) / det
        q = torch.linalg.cross(s, e1)
        v = (direction[:, :, None] * q).sum(-1) / det
        t = (e2 * q).sum(-1) / det
        t = torch.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0), t, torch.inf)
        nearest, index = t.min(-1)
        ids.append(torch.where(nearest.isfinite(), index, -1))
        depths.append(nearest)
    return torch.stack(ids), torch.stack(depths)


def test_rasterize_sees_the_same_triangles_as_ray_casting():
    draw = torch.Generator().manual_seed(1)
    vertices = torch.rand(90, 3, generator=draw) - 0.5
    faces = torch.arange(90).reshape(30, 3)
    cameras = replace(orbit_cameras([10.0, -30.0, 60.0], [0.0, 100.0, -75.0], 1.6), width=52, height=40)
    fragments = rasterize(vertices, faces, cameras)
    ids, depth = brute_force(vertices, faces, cameras)
    assert (ids >= 0).float().mean() > 0.1
    assert torch.equal(fragments.face_ids.long(), ids)
    hit = fragments.hit
    assert (fragments.depth[hit] - depth[hit]).abs().max() < 1e-5
    points = (vertices[faces[ids[hit]]] * fragments.barycentrics[hit][..., None]).sum(1)
    seen = torch.cat([points, torch.ones(len(points), 1)], 1)[:, None] @ cameras.viewmats[hit.nonzero()[:, 0]].transpose(1, 2)
    pixels = seen[:, 0, :2] / seen[:, 0, 2:3] * cameras.Ks[0, 0, 0] + torch.tensor([26.0, 20.0])
    assert (pixels - (hit.nonzero()[:, [2, 1]] + 0.5)).abs().max() < 1e-3


def test_closed_surface_shows_no_cracks_and_only_its_front():
    ball = sphere(4)
    cameras = turntable(3, 20.0, radius=1.5, size=200)
    fragments = rasterize(ball.vertices, ball.faces, cameras)
    depth = torch.where(fragments.hit, fragments.depth, torch.zeros(()))
    for hit in fragments.hit.numpy():
        assert np.array_equal(fill_interior(np.stack([np.zeros_like(hit), hit, np.zeros_like(hit)]))[1], hit)
    assert depth.max() < 1.5 and depth[depth > 0].min() > 1.05


def quad() -> Mesh:
    """Facing +z; uv (0,0) at its upper left as seen from the front."""
    vertices = torch.tensor([[-0.4, 0.4, 0], [0.4, 0.4, 0], [0.4, -0.4, 0], [-0.4, -0.4, 0.0]])
    uvs = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    texture = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 0]]])
    return Mesh(vertices, torch.tensor([[0, 3, 2], [0, 2, 1]]), uvs=uvs, texture=texture)


def test_texture_stands_upright_and_is_not_mirrored():
    render = render_mesh(quad(), turntable(1, size=64), torch.zeros(3), supersample=2)
    rgb, texture = render.rgb[0], quad().texture
    corner = 19  # the quad covers about pixels 17 to 46
    assert torch.allclose(rgb[corner, corner], texture[0, 0], atol=1e-4)
    assert torch.allclose(rgb[corner, 63 - corner], texture[0, 1], atol=1e-4)
    assert torch.allclose(rgb[63 - corner, corner], texture[1, 0], atol=1e-4)
    assert torch.allclose(rgb[63 - corner, 63 - corner], texture[1, 1], atol=1e-4)
    assert torch.equal(rgb[0, 0], torch.zeros(3))
    assert abs(float(render.depth[0, 32, 32]) - 2.0) < 1e-5
    assert 0 < float(render.alpha.mean()) < 1


@pytest.mark.parametrize("size", [63, 64])
def test_no_pixel_falls_between_triangles_whose_edge_it_lies_on(size):
    hit = rasterize(quad().vertices, quad().faces, turntable(4, 0.0, size=size)).hit
    assert bool(hit[0, 18:-18, 18:-18].all()) and bool(hit[2, 18:-18, 18:-18].all())


@pytest.mark.parametrize("pool", [1, 2])
def test_texture_gradient(pool):
    draw = torch.Generator().manual_seed(0)
    view = texture_view(quad(), orbit_cameras(15.0, [20.0, -50.0], width=8), pool)
    assert view.alpha.shape == (2, 8, 8, 1)
    texture = torch.rand(5, 5, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    background = torch.rand(3, generator=draw, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(view.render, (texture, background))


def test_texture_view_and_render_mesh_agree():
    cameras, background = orbit_cameras(15.0, [20.0, -50.0], width=24), torch.tensor([0.2, 0.4, 0.6])
    render = render_mesh(quad(), cameras, background, supersample=3)
    view = texture_view(quad(), cameras, 3)
    assert torch.allclose(view.render(quad().texture, background), render.rgb, atol=1e-6)
    assert torch.allclose(view.alpha, render.alpha)


def test_untextured_meshes_show_colours_or_clay():
    ball = sphere(2)
    red = replace(ball, colors=torch.tensor([[1.0, 0, 0]]).expand(len(ball.vertices), 3))
    middle = (0, 32, 32)
    assert torch.allclose(render_mesh(red, turntable(1, size=64)).rgb[middle], torch.tensor([1.0, 0, 0]), atol=1e-6)
    clay = render_mesh(ball, turntable(1, size=64)).rgb
    assert 0.7 < float(clay[middle][0]) <= 0.81 and float(clay[0, 0, 0, 0]) == 1


def test_density_of_one_gaussian_is_its_formula():
    scales, quat = torch.tensor([[0.25, 0.1, 0.15]]), torch.tensor([[0.9, 0.3, -0.2, 0.4]])
    splats = Splats(torch.tensor([[0.1, -0.2, 0.3]]), quat, scales, torch.tensor([0.7]), torch.ones(1, 3))
    grid = density_grid(splats, 48)
    rotation = trimesh.transformations.quaternion_matrix(quat[0].double().numpy())[:3, :3]
    axes = [grid.origin[i] + grid.voxel * np.arange(48) for i in range(3)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij"), -1) - splats.means[0].numpy()
    half = 0.5 * ((offset @ rotation / scales[0].numpy()) ** 2).sum(-1)
    expected = np.where(half < 5.6, 0.7 * np.exp(-half), 0)
    assert np.abs(grid.values - expected)[np.abs(half - 5.6) > 0.01].max() < 1e-4
    assert grid.values.max() > 0.65


def test_far_floater_does_not_shrink_the_object():
    points = torch.cat([sphere_points(1500), torch.tensor([[6.0, 0.0, 0.0]])])
    assert density_grid(shell(points), 64).voxel < 0.02


@pytest.fixture(scope="module")
def ball():
    return extract_mesh(shell(sphere_points(1500)), resolution=80)


def test_extracted_sphere_is_closed_round_and_has_no_inner_shell(ball):
    shape = trimesh.Trimesh(ball.mesh.vertices.numpy(), ball.mesh.faces.numpy(), process=False)
    assert shape.is_watertight and shape.body_count == 1
    radii = ball.mesh.vertices.norm(dim=1)
    assert float(radii.min()) > 0.39 and float(radii.max()) < 0.43
    assert signed_volume(ball.mesh.vertices, ball.mesh.faces) > 0.9 * 4 / 3 * math.pi * 0.4**3
    assert ball.iou > 0.97


def box_shell(half: torch.Tensor, count: int, scale: float) -> Splats:
    draw = torch.Generator().manual_seed(3)
    points = (torch.rand(count, 3, generator=draw) * 2 - 1) * half
    axis, side = torch.randint(0, 3, (count,), generator=draw), torch.randint(0, 2, (count,), generator=draw) * 2.0 - 1
    points[torch.arange(count), axis] = side * half[axis]
    return shell(points, torch.nn.functional.one_hot(axis, 3) * side[:, None], scale)


def test_extracted_box_keeps_its_faces():
    half = torch.tensor([0.4, 0.2, 0.3])
    found = extract_mesh(box_shell(half, 6000, 0.02), resolution=80)
    shape = trimesh.Trimesh(found.mesh.vertices.numpy(), found.mesh.faces.numpy(), process=False)
    truth = trimesh.creation.box((2 * half).tolist())
    ours, theirs = (trimesh.sample.sample_surface(s, 3000, seed=0)[0] for s in (shape, truth))
    near = [float((trees(a).query(b)[0] < 0.035).mean()) for a, b in ((ours, theirs), (theirs, ours))]
    assert shape.is_watertight and 2 * near[0] * near[1] / sum(near) > 0.95


def test_threshold_stops_before_a_sparse_shell_leaks():
    """The next threshold has nearly the same silhouette, but its inside runs out and a hollow shell remains."""
    half = torch.tensor([0.4, 0.2, 0.3])
    splats = box_shell(half, 3000, 0.03)
    found = extract_mesh(splats, resolution=80)
    leaking = extract_mesh(splats, resolution=80, threshold=1.2 * found.threshold).mesh
    solid = float(8 * half.prod())
    assert signed_volume(leaking.vertices, leaking.faces) < 0.5 * solid < signed_volume(found.mesh.vertices, found.mesh.faces)


def trees(points):
    from scipy.spatial import cKDTree

    return cKDTree(points)


def test_given_threshold_is_used():
    found = extract_mesh(shell(sphere_points(1500)), resolution=64, threshold=0.5)
    assert found.threshold == 0.5 and math.isnan(found.iou)
    with pytest.raises(InputError, match="no surface at density 1000"):
        extract_mesh(shell(sphere_points(1500)), resolution=64, threshold=1000)


@pytest.mark.parametrize(
    ("splats", "message"),
    [
        (shell(torch.zeros(0, 3)), "got 0 Gaussians"),
        (shell(sphere_points(50), opacity=0.001), "none of them so opaque"),
        (shell(sphere_points(3), opacity=0.03), "show no surface"),
        (shell(torch.full((5, 3), torch.nan)), "NaN"),
    ],
)
def test_gaussians_without_surface_say_so(splats, message):
    with pytest.raises(InputError, match=message):
        extract_mesh(splats, resolution=32)


def test_cleaning_drops_floaters_and_keeps_the_object():
    big, small = sphere(3), sphere(1, 0.02)
    both = Mesh(torch.cat([big.vertices, small.vertices + 0.7]), torch.cat([big.faces, small.faces + len(big.vertices)]))
    kept = keep_largest_components(both, 0.02)
    assert len(kept.faces) == len(big.faces) and torch.equal(kept.vertices, big.vertices)
    assert len(keep_largest_components(both, 0.0).faces) == len(both.faces)
    with pytest.raises(InputError, match="no faces"):
        keep_largest_components(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)))


def test_decimation_keeps_the_shape(ball):
    reduced = decimate(ball.mesh, 1000)
    assert 900 <= len(reduced.faces) <= 1000
    assert trimesh.Trimesh(reduced.vertices.numpy(), reduced.faces.numpy(), process=False).is_watertight
    volumes = [signed_volume(m.vertices, m.faces) for m in (ball.mesh, reduced)]
    assert abs(volumes[1] / volumes[0] - 1) < 0.02


def test_smoothing_takes_off_noise_without_shrinking():
    clean = sphere(4)
    draw = torch.Generator().manual_seed(0)
    rough = replace(clean, vertices=clean.vertices + 0.004 * torch.randn(clean.vertices.shape, generator=draw))
    smoothed = smooth(rough, 5)
    deviation = [float((m.vertices.norm(dim=1) - 0.4).abs().mean()) for m in (rough, smoothed)]
    assert deviation[1] < 0.5 * deviation[0]
    assert abs(signed_volume(smoothed.vertices, smoothed.faces) / signed_volume(clean.vertices, clean.faces) - 1) < 0.01


def test_smoothing_leaves_vertices_of_no_face_where_they_are():
    clean = sphere(1)
    more = Mesh(torch.cat([clean.vertices, torch.full((1, 3), 5.0)]), clean.faces)
    assert torch.equal(smooth(more, 2).vertices[:-1], smooth(clean, 2).vertices)
    assert smooth(more, 2).vertices[-1].tolist() == [5, 5, 5]


def test_normals_of_a_sphere_point_outwards():
    ball = sphere(3)
    assert float((vertex_normals(ball.vertices, ball.faces) * ball.vertices / 0.4).sum(1).min()) > 0.9995


def test_unwrap_gives_every_face_its_own_texels():
    source = sphere(4)
    flat = unwrap(source, 512, faces_per_part=2000)
    corners = [np.sort(m.vertices[m.faces].mean(1).numpy().round(6).view("f4,f4,f4").ravel()) for m in (source, flat)]
    assert np.array_equal(*corners)
    assert float(flat.uvs.min()) >= 0 and float(flat.uvs.max()) <= 1
    a, b, c = (flat.uvs[flat.faces] * 512).unbind(1)
    area = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    covered = int(rasterize_uv(flat.uvs, flat.faces, 512).hit.sum())
    assert float(area.min()) > 0 and abs(float(area.sum()) / covered - 1) < 0.01  # overlaps would cover less than their area
    assert covered > 0.4 * 512**2


def test_submeshes_hold_every_face_once():
    ball = sphere(3)
    parts = split_faces(ball.vertices.numpy(), ball.faces.numpy(), 5)
    assert len(parts) == 5 and np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(ball.faces)))
    assert max(map(len, parts)) < 3 * min(map(len, parts))
    assert len(split_faces(ball.vertices.numpy(), ball.faces.numpy(), 1)) == 1


@pytest.fixture(scope="module")
def flat_ball():
    return unwrap(sphere(3), 256)


def test_baking_brings_a_known_pattern_back(flat_ball):
    fine = sphere(5)
    truth = replace(fine, colors=pattern(fine.vertices))
    cameras = orbit_cameras([0.0] * 6 + [80.0, -80.0], [*range(0, 360, 60), 0, 0], 1.5, width=192)
    pictures = render_mesh(truth, cameras, supersample=2)
    baked = bake(flat_ball, cameras, pictures.rgb, pictures.alpha, texture_size=256)
    unseen = orbit_cameras([30.0, -40.0], [33.0, 200.0], 1.5, width=128)
    assert psnr(render_mesh(baked, unseen, torch.ones(3)).rgb, render_mesh(truth, unseen, torch.ones(3)).rgb) > 28
    texels = texel_map(flat_ball, 256)
    error = (baked.texture[texels.used] - pattern(texels.positions)).abs().amax(1)
    assert float(error.quantile(0.99)) < 0.06 and float(error.max()) < 0.3  # nor any white from behind the silhouettes


def test_baking_does_not_paint_through_what_stands_in_front():
    square = quad()
    hidden = square.vertices * 0.5 - torch.tensor([0.0, 0, 0.4])
    both = Mesh(torch.cat([square.vertices, hidden]), torch.cat([square.faces, square.faces + 4]))
    green = torch.tensor([[0.0, 1, 0]]).expand(8, 3)
    both = replace(
        both,
        uvs=torch.cat([square.uvs * torch.tensor([0.45, 1]), square.uvs * torch.tensor([0.45, 1]) + torch.tensor([0.55, 0])]),
        colors=green,
    )
    red = torch.tensor([1.0, 0, 0]).expand(1, 128, 128, 3)
    texture = bake(both, turntable(1, size=128), red, texture_size=64).texture
    assert torch.allclose(texture[32, 14], torch.tensor([1.0, 0, 0]), atol=0.01)
    assert torch.allclose(texture[32, 50], torch.tensor([0.0, 1, 0]), atol=0.01)


def test_views_count_by_the_fourth_power_of_the_cosine():
    """A wall seen straight on and at 60 degrees: 1 to 1/16."""
    wall, cameras = quad(), orbit_cameras(0.0, [0.0, 60.0], 2.0, width=64)
    texels = texel_map(wall, 32)
    for sight in texel_visibility(wall, texels, cameras, rasterize(wall.vertices, wall.faces, cameras).depth):
        torch.testing.assert_close(sight.weights, sight.cosines**4)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
    images = torch.stack([red.expand(64, 64, 3), blue.expand(64, 64, 3)])
    centre = bake(wall, cameras, images, torch.ones(2, 64, 64, 1), texture_size=33).texture[16, 16]
    assert torch.allclose(centre, (red + blue / 16) / (1 + 1 / 16), atol=5e-3), centre


def test_baking_takes_the_background_out(flat_ball):
    cameras, red, blue = turntable(4, size=64), torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
    pictures = (0.5 * red + 0.5 * blue).expand(4, 64, 64, 3)
    baked = bake(flat_ball, cameras, pictures, torch.full((4, 64, 64, 1), 0.5), blue, texture_size=64)
    assert torch.allclose(baked.texture, red.expand(64, 64, 3), atol=1e-4)


def test_baking_refuses_what_does_not_fit(flat_ball):
    cameras = turntable(2, size=32)
    with pytest.raises(InputError, match="must have shape"):
        bake(flat_ball, cameras, torch.ones(2, 16, 16, 3))
    with pytest.raises(InputError, match="needs uvs"):
        bake(sphere(1), cameras, torch.ones(2, 32, 32, 3))
    with pytest.raises(InputError, match="None of the pictures"):
        away = replace(cameras, c2w=cameras.c2w @ torch.diag(torch.tensor([-1.0, 1, -1, 1])))
        bake(flat_ball, away, torch.ones(2, 32, 32, 3))


def test_unknown_texels_take_the_nearest_colour():
    texture, known = torch.zeros(8, 8, 3), torch.zeros(8, 8, dtype=torch.bool)
    texture[1, 1], texture[6, 6] = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
    known[1, 1] = known[6, 6] = True
    filled = fill_nearest(texture, known)
    assert torch.equal(filled[0, 2], texture[1, 1]) and torch.equal(filled[7, 5], texture[6, 6])


def test_vertex_colours_follow_the_gaussians():
    points = sphere_points(1500)
    ball = sphere(3)
    assert float((splat_colors(shell(points), ball.vertices) - pattern(ball.vertices)).abs().max()) < 0.1


@dataclass
class KnownTruth:
    """A perfect model of one object: its estimate is in every view to the true picture."""

    truth: Mesh
    image_size: int = 32
    view_count: ViewCount = ViewCount(4)
    process: NoiseProcess = STABLE_DIFFUSION
    device: torch.device = torch.device("cpu")
    latent_shape: tuple = (3, 32, 32)
    evaluations: int = 0
    azimuths: list = field(default_factory=list)

    def encode(self, images):
        return images.permute(0, 3, 1, 2) * 2 - 1

    def decode(self, latents):
        return (latents.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    def condition(self, cameras):
        self.azimuths.append(cameras.azimuth.tolist())
        return self.encode(render_mesh(self.truth, cameras, supersample=8).rgb)

    def denoised(self, latents, t, conditioning, guidance):
        self.evaluations += len(latents)
        return conditioning


@pytest.fixture(scope="module")
def painted(flat_ball):
    """(true mesh, the same mesh with a wrong texture) with one set of texture coordinates."""
    texels = texel_map(flat_ball, 128)
    texture = torch.full((128, 128, 3), 0.5)
    texture[texels.used] = pattern(texels.positions)
    truth = replace(flat_ball, texture=fill_nearest(texture, texels.used))
    return truth, replace(flat_ball, texture=torch.full((128, 128, 3), 0.5))


def test_refinement_moves_the_texture_to_the_models_pictures(painted):
    truth, wrong = painted
    model, stages = KnownTruth(truth), []
    settings = TextureRefinement(strength=0.3, discretization=20)
    with torch.inference_mode():  # as nodes run
        refined = refine_texture(wrong, model, settings, seed=1, progress=lambda *report: stages.append(report))
    assert model.azimuths == [[0, 90, 180, 270], [45, 135, 225, 315]]
    assert model.evaluations == 8 * 7  # t = 300 and the grid 251, 201, 151, 101, 51, 1 below it
    assert stages.count(("refine", 0, 14)) == 1 and stages[-1] == ("texture", 29, 30)
    cameras = turntable(8, size=64)
    before, after = (psnr(render_mesh(m, cameras).rgb, render_mesh(truth, cameras).rgb) for m in (wrong, refined))
    assert after > before + 9
    assert float((wrong.texture - 0.5).abs().max()) == 0
    again = refine_texture(wrong, KnownTruth(truth), settings, seed=1)
    assert torch.equal(again.texture, refined.texture)


def test_refinement_keeps_detail_finer_than_the_model_sees(painted):
    truth, _ = painted
    checks = ((torch.arange(128)[:, None] + torch.arange(128)) % 2 * 0.2 - 0.1)[..., None]
    detailed = replace(truth, texture=(truth.texture + checks).clamp(0, 1))
    refined = refine_texture(detailed, KnownTruth(truth, view_count=ViewCount()), TextureRefinement(strength=0.3))
    difference = (refined.texture - detailed.texture).abs()[texel_map(truth, 128).used]
    assert float(difference.mean()) < 0.02


def test_reference_picture_is_one_more_target(painted):
    truth, wrong = painted
    red = torch.tensor([0.9, 0.1, 0.1]).expand(1, 32, 32, 3)
    front = turntable(1, size=32)
    reference = ReferenceView(front, red, torch.ones(1, 32, 32, 1), color_weight=0.3, opacity_weight=0.01)
    middle = (0, 16, 16)
    settings = TextureRefinement(reference_weight=20.0)
    refined = refine_texture(wrong, KnownTruth(truth), settings, reference=reference)
    assert (render_mesh(refined, front).rgb[middle] - red[middle]).abs().max() < 0.1


def test_reference_counts_eight_times_as_much_as_a_view_whatever_the_plan_weighs(painted):
    """Released: mean over the picture plus mean over 8 views (main2.py); Table I's weights are those of 3D training."""
    truth, _ = painted
    front = turntable(1, size=32)
    darker = render_mesh(truth, front, supersample=8).rgb - 0.2

    def front_of(color_weight, settings=TextureRefinement(), model=KnownTruth(truth)):  # noqa: B008
        view = ReferenceView(front, darker, torch.ones(1, 32, 32, 1), color_weight, 0.01)
        return refine_texture(truth, model, settings, reference=view).texture

    released = front_of(0.3)
    assert torch.equal(released, front_of(1.0)) and torch.equal(released, front_of(0.0))
    # where the front view and the views at 0 and ±45 degrees all look straight on, 8 : 1 takes most of the way
    texels = texel_map(truth, 128)
    moved = (released - truth.texture)[texels.used].mean(1)
    facing = texels.normals[:, 2] > 0.98
    share = 8 / (8 + 1 + 2 * 0.5**2)  # cos⁴ of 45 degrees is a quarter
    learned = 1 - 0.9**30  # of the steps, each a tenth of the rest
    assert float(moved[facing].mean()) == pytest.approx(-0.2 * share * learned, abs=0.006)  # the texels are coarse
    assert torch.equal(front_of(0.3, TextureRefinement(reference_weight=0.0)), refine_texture(truth, KnownTruth(truth)).texture)


def test_refinement_goes_to_the_released_level():
    """guidance/zero123_utils.py, ``refine``: strength 0.8 of 50 steps is timesteps[40] = 181; 10 steps from there."""
    settings = TextureRefinement()
    descending = timestep_grid(settings.discretization)[::-1]
    assert settings.path()[0] == descending[int(50 * 0.8)] == 181
    assert settings.path() == descending[40:] and len(descending[40:]) == 10
    assert (settings.guidance_scale, settings.views, settings.elevation, settings.steps) == (2.0, 8, 0.0, 30)


def test_refinement_stops_when_asked_and_refuses_bad_input(painted):
    truth, wrong = painted

    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        refine_texture(wrong, KnownTruth(truth), check=stop)
    with pytest.raises(InputError, match="textured mesh"):
        refine_texture(replace(wrong, texture=None), KnownTruth(truth))
    with pytest.raises(InputError, match="multiple of 4"):
        refine_texture(wrong, KnownTruth(truth), TextureRefinement(views=6))
    with pytest.raises(InputError, match="strength"):
        TextureRefinement(strength=1.5)


def test_whole_pipeline():
    splats, stages = shell(sphere_points(1500)), []
    settings = MeshSettings(resolution=64, target_faces=2000, texture_size=256, views=12, view_size=128)
    result = texture_mesh(splats, settings, on_stage=lambda name, done, total: stages.append(name))
    assert tuple(stages) == STAGES == tuple(result.seconds)
    assert result.iou > 0.95 and result.mesh.texture.shape == (256, 256, 3) and len(result.mesh.faces) <= 2000
    texels = texel_map(result.mesh, 256)
    surface = 0.4 * torch.nn.functional.normalize(texels.positions, dim=1)
    assert psnr(result.mesh.texture[texels.used], pattern(surface)) > 26
    with pytest.raises(InputError, match="views of the mesh must be a whole number in 12..1000"):
        MeshSettings(views=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"faces": torch.tensor([[0, 1, 4]])}, "must index its 4 vertices"),
        ({"uvs": torch.zeros(3, 2)}, "uvs"),
        ({"faces": torch.zeros(2, 4, dtype=torch.long)}, r"\[M,3\]"),
        ({"uvs": None}, "needs uvs"),
    ],
)
def test_mesh_checks_itself(arguments, message):
    with pytest.raises(InputError, match=message):
        replace(quad(), **arguments)


def test_narrow_tunnels_are_filled_and_handles_stay():
    """A block with a tunnel of 2 grid points and one of 12, of 128: only the wide one is left."""
    values = np.zeros((128, 128, 128), np.float32)
    values[20:108, 20:108, 20:108] = 1
    values[30:32, 60:62, :] = 0
    values[60:72, 60:72, :] = 0
    filled = _close_tunnels(values)
    assert filled[31, 61, 64] == 1 and filled[66, 66, 64] == 0
    assert np.array_equal(filled[:20], values[:20]) and (filled >= values).all()
