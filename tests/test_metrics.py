"""Metrics against hand-made truth and, where one exists, an independent implementation."""

import math

import pytest
import torch

from microdreamer_core.errors import InputError
from microdreamer_core.evaluation.metrics import chamfer, f_score, psnr, sample_points, silhouette_iou, ssim


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(seed, *shape):
    return torch.rand(*shape, generator=generator(seed))


def test_psnr():
    a = torch.full((4, 4, 3), 0.5)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 0.1) == pytest.approx(20.0, abs=1e-4)
    with pytest.raises(InputError, match="shape"):
        psnr(a, a[:2])


@pytest.mark.parametrize("noise", [0.02, 0.2])
def test_ssim_agrees_with_scikit_image(noise):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    a = torch.nn.functional.interpolate(picture(1, 1, 3, 8, 8), (40, 32), mode="bilinear")[0].permute(1, 2, 0)
    b = (a + noise * (picture(2, *a.shape) - 0.5)).clamp(0, 1)
    expected = structural_similarity(
        a.double().numpy(), b.double().numpy(), channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
    assert ssim(torch.stack([a, a]), torch.stack([b, a])) == pytest.approx((expected + 1) / 2, abs=1e-9)


def test_ssim_needs_its_window():
    with pytest.raises(InputError, match="11 pixels"):
        ssim(torch.zeros(10, 32, 3), torch.zeros(10, 32, 3))


def test_silhouette_iou():
    a, b = torch.zeros(8, 8), torch.zeros(8, 8)
    assert silhouette_iou(a, b) == 1.0
    a[:4], b[2:6] = 0.9, 0.6
    assert silhouette_iou(a, b) == pytest.approx(2 / 6)
    assert silhouette_iou(a, b, threshold=0.7) == 0.0


def test_chamfer_and_f_score_of_shifted_points():
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    shifted = grid + torch.tensor([0.1, 0.0, 0.0])
    assert chamfer(grid, grid) == 0.0
    assert chamfer(grid, shifted) == pytest.approx(0.1, abs=1e-6)
    assert f_score(grid, shifted, 0.11) == 1.0
    assert f_score(grid, shifted, 0.09) == 0.0


def test_f_score_is_the_harmonic_mean():
    """All of half the points: precision 1, recall 1/2."""
    truth = torch.arange(10.0)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    assert f_score(truth[:5], truth, 0.5) == pytest.approx(2 * 0.5 / 1.5)
    assert chamfer(truth[:5], truth) == pytest.approx((0 + (1 + 2 + 3 + 4 + 5) / 10) / 2)


def test_points_are_checked():
    with pytest.raises(InputError, match=r"\[N,3\]"):
        chamfer(torch.zeros(0, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match="positive"):
        f_score(torch.zeros(4, 3), torch.zeros(4, 3), 0.0)


def two_triangles():
    """One of area 1/2 in z = 0 and one of area 2 in z = 1, with an empty face between."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 1], [0, 2, 1]])
    return vertices, torch.tensor([[0, 1, 2], [0, 0, 1], [3, 4, 5]])


def test_points_are_spread_by_area():
    vertices, faces = two_triangles()
    points = sample_points(vertices, faces, 20000, generator())
    assert points.shape == (20000, 3) and points.dtype == vertices.dtype
    upper = points[:, 2] > 0.5
    assert float(upper.float().mean()) == pytest.approx(0.8, abs=0.01)
    for part, size in ((points[~upper], 1.0), (points[upper], 2.0)):
        assert bool((part[:, :2] >= 0).all()) and float(part[:, :2].sum(1).max()) <= size + 1e-6
        assert part[:, :2].mean(0).tolist() == pytest.approx([size / 3] * 2, abs=0.02)


def test_points_depend_on_the_generator_alone():
    vertices, faces = two_triangles()
    state = torch.get_rng_state()
    first, again, other = (sample_points(vertices, faces, 10, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("faces", [torch.zeros(0, 3, dtype=torch.long), torch.tensor([[0, 0, 1]])])
def test_a_mesh_without_area_is_refused(faces):
    with pytest.raises(InputError, match="area"):
        sample_points(two_triangles()[0], faces, 10, generator())
