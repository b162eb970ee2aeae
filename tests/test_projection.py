"""Projection of Gaussians to the screen against covariance matrices in float64, and who is culled where."""

import math
from dataclasses import fields

import pytest
import torch

from helpers import reference_splats
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.render.projection import project, rotation_matrices

WIDTH, HEIGHT = 48, 32
CAMERA = orbit_cameras(15.0, 30.0, 2.0, 60.0, WIDTH, HEIGHT)
VIEW, K = CAMERA.viewmats[0].double(), CAMERA.Ks[0].double()
FRONT = orbit_cameras(0.0, 0.0, 2.0, 60.0, WIDTH, HEIGHT)
FOCAL = HEIGHT / 2 / math.tan(math.radians(30))


def scene(count=60, seed=0):
    draw = torch.Generator().manual_seed(seed)
    means, quats = (torch.randn(count, size, generator=draw, dtype=torch.float64) for size in (3, 4))
    scales = torch.rand(count, 3, generator=draw, dtype=torch.float64) * 0.2 + 0.01
    opacities = torch.rand(count, generator=draw, dtype=torch.float64)
    opacities[:5] = 0.003
    return 0.7 * means, quats, scales, opacities


def one(mean=(0.0, 0.0, 0.0), scale=0.05, opacity=0.9, **options):
    """A single round Gaussian; the front camera stands at (0, 0, 2)."""
    tensors = (torch.tensor(v, dtype=torch.float64) for v in (mean, (1.0, 0.0, 0.0, 0.0), [scale] * 3, opacity))
    return project(*tensors, FRONT.viewmats[0].double(), FRONT.Ks[0].double(), WIDTH, HEIGHT, **options)


def test_rotations_are_those_of_rodrigues_whatever_the_norm():
    quats = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    got = rotation_matrices(quats)
    torch.testing.assert_close(got, reference_splats.rotations(quats), rtol=0, atol=1e-12)
    torch.testing.assert_close(got @ got.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3), rtol=0, atol=1e-12)
    assert bool(rotation_matrices(torch.zeros(4)).isnan().all())


@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_is_the_covariance_seen_through_the_jacobian(antialiased):
    means, quats, scales, opacities = scene()
    got = project(means, quats, scales, opacities, VIEW, K, WIDTH, HEIGHT, antialiased)
    means2d, sharp, depths = reference_splats.project(means, quats, scales, VIEW, K, WIDTH, HEIGHT)
    blurred = sharp + 0.3 * torch.eye(2, dtype=torch.float64)
    inverse = torch.linalg.inv(blurred)
    torch.testing.assert_close(got.means2d, means2d)
    torch.testing.assert_close(got.depths, depths)
    torch.testing.assert_close(got.conics, torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], -1))
    share = (torch.linalg.det(sharp) / torch.linalg.det(blurred)).sqrt() if antialiased else 1.0
    torch.testing.assert_close(got.opacities, opacities * share)
    # a Gaussian ends where its alpha falls below 1/255
    reach = (2 * (255 * got.opacities).log()).sqrt().clamp_max(3.33)
    bounds = reach[:, None] * torch.stack([blurred[:, 0, 0], blurred[:, 1, 1]], -1).sqrt()
    shown = got.opacities > 1 / 255
    torch.testing.assert_close(got.extents[shown], bounds[shown])
    inside = ((means2d + bounds.ceil() > 0) & (means2d - bounds.ceil() < torch.tensor([WIDTH, HEIGHT]))).all(-1)
    assert torch.equal(got.visible, shown & inside) and 0 < int(got.visible.sum()) < len(means)
    assert torch.equal(got.radii, (bounds.nan_to_num().ceil() * got.visible[:, None]).int()) and got.radii.dtype == torch.int32


@pytest.mark.parametrize("offset", [(0.0, 0.0), (7.0, -5.0)], ids=["centred", "shifted"])
@pytest.mark.parametrize("mean", [(3.0, 0.1, 0.3), (-3.0, 0.1, 0.3), (0.1, 3.0, 0.3), (0.1, -3.0, 0.3)])
def test_far_outside_the_jacobian_stays_that_of_the_frustums_margin(mean, offset):
    """As gsplat has it: the slope is held within 15 percent of the picture beyond its borders."""
    intrinsics = FRONT.Ks[0].double().clone()
    intrinsics[:2, 2] += torch.tensor(offset, dtype=torch.float64)
    mean = torch.tensor(mean, dtype=torch.float64)
    quat, scale = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    got = project(mean, quat, scale, torch.tensor(0.9).double(), FRONT.viewmats[0].double(), intrinsics, WIDTH, HEIGHT)

    x, y, z = mean[0], -mean[1], 2 - mean[2]
    cx, cy = intrinsics[0, 2], intrinsics[1, 2]
    slope_x = (x / z).clamp(-(cx + 0.15 * WIDTH) / FOCAL, (WIDTH - cx + 0.15 * WIDTH) / FOCAL)
    slope_y = (y / z).clamp(-(cy + 0.15 * HEIGHT) / FOCAL, (HEIGHT - cy + 0.15 * HEIGHT) / FOCAL)
    jacobian = FOCAL / z * torch.tensor([[1.0, 0.0, -slope_x], [0.0, 1.0, -slope_y]], dtype=torch.float64)
    blurred = jacobian @ torch.diag(scale**2) @ jacobian.T + 0.3 * torch.eye(2)
    inverse = torch.linalg.inv(blurred)
    torch.testing.assert_close(got.conics, torch.stack([inverse[0, 0], inverse[0, 1], inverse[1, 1]]), rtol=1e-5, atol=0)


def test_a_round_gaussian_in_the_middle():
    got = one()
    assert float(got.opacities) == pytest.approx(0.9), "not compensated unless asked for"
    assert float(one(antialiased=True).opacities) < 0.8
    deviation = math.sqrt((0.05 * FOCAL / 2) ** 2 + 0.3)
    assert got.means2d.tolist() == pytest.approx([WIDTH / 2, HEIGHT / 2]) and float(got.depths) == pytest.approx(2.0)
    assert got.conics.tolist() == pytest.approx([1 / deviation**2, 0.0, 1 / deviation**2], rel=1e-6)
    reach = math.sqrt(2 * math.log(255 * 0.9)) * deviation
    assert got.extents.tolist() == pytest.approx([reach, reach]) and got.radii.tolist() == [math.ceil(reach)] * 2


@pytest.mark.parametrize(("opacity", "reach"), [(1.0, math.sqrt(2 * math.log(255))), (2.0, 3.33)])
def test_no_gaussian_reaches_further_than_full_opacity_does(opacity, reach):
    assert one(opacity=opacity).extents[0] == pytest.approx(reach * math.sqrt((0.05 * FOCAL / 2) ** 2 + 0.3))


@pytest.mark.parametrize(
    ("z", "visible"), [(0.0, True), (1.98, True), (1.995, False), (2.0, False), (2.5, False), (-1e9, True), (-2e10, False)]
)
def test_depth_limits(z, visible):
    """Nearer than 0.01, behind the camera, or further than 1e10."""
    assert bool(one((0.0, 0.0, z), 1e-4 if z > 0 else 0.05).visible) == visible


@pytest.mark.parametrize(("opacity", "visible"), [(0.004, True), (0.0039, False), (0.0, False), (math.inf, False)])
def test_what_is_too_faint_is_culled(opacity, visible):
    assert bool(one(opacity=opacity).visible) == visible


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_what_is_not_finite_is_culled(scale):
    got = one(scale=scale)
    assert not got.visible and got.radii.tolist() == [0, 0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("past", "visible"), [(-0.01, True), (0.01, False)])
def test_culled_where_the_last_pixel_of_its_reach_leaves_the_picture(axis, sign, past, visible):
    """Its reach in whole pixels, from the border outwards: 4 of this one, which stands at a depth of 2."""
    reach, place = 4, [0.0, 0.0, 0.0]
    place[axis] = sign * (1, -1)[axis] * ((WIDTH, HEIGHT)[axis] / 2 + reach + past) * 2 / FOCAL
    got = one(place)
    assert math.ceil(float(got.extents[axis])) == reach and bool(got.visible) == visible


def test_pairs_of_gaussians_and_views_broadcast():
    means, quats, scales, opacities = (t[None].float() for t in scene(7))
    cameras = orbit_cameras([0.0, 20.0, -30.0], [0.0, 120.0, 250.0], 2.0, 60.0, WIDTH, HEIGHT)
    together = project(means, quats, scales, opacities, cameras.viewmats[:, None], cameras.Ks[:, None], WIDTH, HEIGHT, True)
    for v in range(3):
        alone = project(
            means[0], quats[0], scales[0], opacities[0], cameras.viewmats[v], cameras.Ks[v], WIDTH, HEIGHT, antialiased=True
        )
        for field in fields(alone):
            torch.testing.assert_close(getattr(together, field.name)[v], getattr(alone, field.name), equal_nan=True)


def test_huge_radii_fit_their_integers():
    assert one(scale=1e12).radii.tolist() == [10**9, 10**9]


def test_culling_gives_no_gradient_of_its_own():
    mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    quat, scale = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), torch.full((3,), 0.05, dtype=torch.float64)
    opacity = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    got = project(mean, quat, scale, opacity, FRONT.viewmats[0].double(), FRONT.Ks[0].double(), WIDTH, HEIGHT)
    assert not got.extents.requires_grad and got.means2d.requires_grad and got.opacities.requires_grad
