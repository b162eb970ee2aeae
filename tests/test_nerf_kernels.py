"""The fast parts of a NeRF against plain torch, against finite differences, and when they are broken."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.fields import encoders, perceptron
from microdreamer_core.fields.encoders import get_encoder
from microdreamer_core.fields.hashgrid import HashGrid, encode_torch
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.render import set_threads, volume

GRID = HashGrid(levels=3, features=2, log2_table=8, base_resolution=4, per_level_scale=1.9)
# thin, so that no ray ends early: there pictures jump, and finite differences with them
SETTINGS = NeRFSettings(levels=3, log2_table=8, hidden=4, samples=12, occupancy_resolution=8, blob_scale=1.0)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fresh_probes():
    caches = (encoders._works, perceptron._numba_works, volume._numba_works)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def any_threads():
    yield
    set_threads(None)


def test_gradients_of_the_encoder():
    pytest.importorskip("numba")
    points, table = draw(300, 3).sigmoid(), draw(GRID.entries, 2, seed=1).requires_grad_()
    numba = get_encoder("numba", GRID)
    cotangent = draw(300, GRID.width, seed=2)
    results = [encode(points, table, GRID) for encode in (numba, encode_torch)]
    gradients = [torch.autograd.grad(result, table, cotangent)[0] for result in results]
    assert torch.allclose(*results, rtol=0, atol=1e-12) and torch.allclose(*gradients, rtol=0, atol=1e-11)
    assert torch.autograd.gradcheck(lambda t: numba(points[:4], t, GRID), table, fast_mode=True)


def test_gradients_of_the_perceptron():
    pytest.importorskip("numba")
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(((4500, 6), (5, 6), (3, 5)))]
    cotangent = draw(4500, 3, seed=3)
    cotangent[40:200] = 0  # whole blocks without a gradient
    assert perceptron._numba_works()
    results = [function(*inputs) for function in (perceptron.perceptron, perceptron._plain)]
    gradients = [torch.autograd.grad(result, inputs, cotangent) for result in results]
    assert torch.allclose(*results, rtol=0, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-11) for a, b in zip(*gradients, strict=True))
    few = [inputs[0].detach()[:300].requires_grad_(), *inputs[1:]]
    assert torch.autograd.gradcheck(perceptron.perceptron, few, fast_mode=True)


def test_composition_is_the_sum_over_samples():
    counts = torch.tensor([3, 0, 5])
    ray = torch.repeat_interleave(torch.arange(3), counts)
    samples = volume.Samples(torch.zeros(8, 3), torch.zeros(8), ray, counts)
    sigmas = draw(8).exp().requires_grad_()
    weights, rest = volume.ray_weights(sigmas, samples, 0.3)
    left, place = [1.0, 1.0, 1.0], 0
    for r, count in enumerate(counts.tolist()):
        for _ in range(count):
            alpha = 1 - float(torch.exp(-sigmas[place].detach() * 0.3))
            assert float(weights[place].detach()) == pytest.approx(left[r] * alpha, rel=1e-12)
            left[r] *= 1 - alpha
            place += 1
    assert torch.allclose(rest, torch.tensor(left, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda s: volume.ray_weights(s, samples, 0.3), sigmas)


def test_nothing_behind_the_end_of_a_ray_weighs_or_learns():
    samples = volume.Samples(torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, dtype=torch.long), torch.tensor([4]))
    sigmas = torch.tensor([5.0, 6.0, 3.0, 2.0], dtype=torch.float64, requires_grad=True)
    weights, rest = volume.ray_weights(sigmas, samples, 1.0)
    (gradient,) = torch.autograd.grad((weights * torch.arange(1.0, 5.0)).sum() + rest.sum(), sigmas)
    assert weights[:2].min() > 0 and not weights[2:].any() and gradient[:2].all() and not gradient[2:].any()


def rendered(field, cameras):
    """A scalar of the pictures, and its gradient by all parameters."""
    optimizer = field.optimizer()
    render = optimizer.render(cameras)
    value = (render.rgb.sin() + render.alpha + 0.3 * render.depth).sum()
    value.backward()
    return value.item(), {name: p.grad for name, p in optimizer._parameters.items()}


def double_field(encoder, background="white"):
    settings = replace(SETTINGS, encoder=encoder, background=background)
    start = NeRF.start(settings)
    parameters = {name: p.double() for name, p in start.parameters.items()}
    parameters["table"] = draw(*parameters["table"].shape)
    return NeRF(parameters, settings)


def double_views():
    cameras = orbit_cameras(10.0, [0.0, 130.0], 2.0, width=12)
    return replace(cameras, c2w=cameras.c2w.double())


def test_gradients_of_the_whole_render(monkeypatch):
    pytest.importorskip("numba")
    value, gradients = rendered(double_field("numba"), double_views())
    with monkeypatch.context() as plain:
        plain.setattr("microdreamer_core.fields.nerf.perceptron", perceptron._plain)
        plain.setattr(volume, "_numba_works", lambda: False)
        expected_value, expected = rendered(double_field("torch"), double_views())
    assert value == pytest.approx(expected_value, rel=1e-12)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9, atol=1e-10), name
    field, width = double_field("numba"), 1e-6
    for i, name in enumerate(gradients):
        direction = draw(*gradients[name].shape, seed=10 + i)

        def moved(by, name=name, direction=direction):
            changed = field.parameters | {name: field.parameters[name] + by * direction}
            return rendered(replace(field, parameters=changed), double_views())[0]

        slope = (moved(width) - moved(-width)) / (2 * width)
        assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("threads", [2, 3])
def test_numba_learns_the_same_bits_with_any_number_of_threads(threads, any_threads):
    pytest.importorskip("numba")
    field, cameras = NeRF.start(replace(SETTINGS, encoder="numba")), orbit_cameras(10.0, [0.0, 130.0], 2.0, width=24)
    set_threads(1)
    value, expected = rendered(field, cameras)
    set_threads(threads)
    again, gradients = rendered(field, cameras)
    assert again == value and all(torch.equal(gradients[name], expected[name]) for name in expected)


def nothing(*arguments):
    """A kernel that leaves its output as it was."""


def test_a_wrong_encoder_kernel_is_not_used(monkeypatch, fresh_probes, caplog):
    pytest.importorskip("numba")
    monkeypatch.setattr("microdreamer_core.fields.hashgrid_numba.hash_backward", nothing)
    assert get_encoder("auto", GRID) is encode_torch
    assert "'numba' is skipped: ArithmeticError: its gradients differ" in caplog.text


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_wrong_perceptron_kernel_is_not_used(monkeypatch, fresh_probes, caplog, part):
    pytest.importorskip("numba")
    monkeypatch.setattr(f"microdreamer_core.fields._numba_perceptron.perceptron_{part}", nothing)
    inputs = [draw(*shape, seed=i) for i, shape in enumerate(((300, 6), (5, 6), (3, 5)))]
    assert torch.equal(perceptron.perceptron(*inputs), perceptron._plain(*inputs))
    assert "The perceptron of numba is skipped: ArithmeticError" in caplog.text


def test_a_wrong_marching_kernel_is_not_used(monkeypatch, fresh_probes, caplog):
    pytest.importorskip("numba")

    def all_kept(begin, end, *arguments):
        arguments[-1][begin:end] = True

    monkeypatch.setattr("microdreamer_core.render._numba_volume.mark_samples", all_kept)
    rays = volume.camera_rays(orbit_cameras(0.0, [0.0], 2.0, width=6), 1.0)
    assert len(volume.march(rays, torch.zeros(4, 4, 4, dtype=torch.bool), 1.0, 8).points) == 0
    assert "The ray marching of numba is skipped: ArithmeticError" in caplog.text


class FakeEncoding(torch.nn.Module):
    """What the adapter needs of ``tinycudann.Encoding``, on the CPU."""

    def __init__(self, n_input_dims, encoding_config, dtype):
        super().__init__()
        c = encoding_config
        names = ("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution", "per_level_scale")
        self.grid = HashGrid(*(c[name] for name in names))
        self.params = torch.nn.Parameter(torch.zeros(self.grid.entries * self.grid.features, dtype=dtype))

    def forward(self, x):
        return encode_torch(x, self.params.view(-1, self.grid.features), self.grid)


class OtherLayout(FakeEncoding):
    def forward(self, x):
        return encode_torch(x, self.params.view(self.grid.features, -1).T, self.grid)


@pytest.fixture
def fake_tinycudann(monkeypatch, fresh_probes):
    name = "microdreamer_core.fields.hashgrid_tinycudann"

    def install(encoding):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=encoding))
        monkeypatch.setitem(encoders._PREFERENCE, "cpu", ("tinycudann", "torch"))

    yield install
    sys.modules.pop(name, None)  # it holds the fake


def test_tinycudann_encodes_with_our_table(fake_tinycudann):
    fake_tinycudann(FakeEncoding)
    encoder = get_encoder("auto", GRID)
    assert type(encoder).__name__ == "TinyCudaEncoder"
    points, table = draw(50, 3).sigmoid().float(), draw(GRID.entries, 2, seed=1).float().requires_grad_()
    got, expected = encoder(points, table, GRID), encode_torch(points, table, GRID)
    gradients = [torch.autograd.grad(result.square().sum(), table)[0] for result in (got, expected)]
    assert torch.equal(got, expected) and torch.equal(*gradients)
    assert encoder(points[:0], table, GRID).shape == (0, GRID.width)


def test_a_tinycudann_of_another_layout_is_not_used(fake_tinycudann, caplog):
    fake_tinycudann(OtherLayout)
    assert get_encoder("auto", GRID) is encode_torch and "'tinycudann' is skipped: ArithmeticError" in caplog.text


def test_the_real_tinycudann_agrees_with_torch():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU: tiny-cuda-nn's encoder is not compared with torch here")
    pytest.importorskip("tinycudann", reason="tiny-cuda-nn is not installed: its encoder is not compared with torch here")
    grid = NeRFSettings.of_size("full").grid
    points, table = draw(1000, 3).sigmoid().float().cuda(), draw(grid.entries, 2, seed=1).float().cuda().requires_grad_()
    got, expected = (encode(points, table, grid) for encode in (get_encoder("tinycudann", grid, "cuda"), encode_torch))
    gradients = [torch.autograd.grad(result.square().sum(), table)[0] for result in (got, expected)]
    assert float((got - expected).norm() / expected.norm()) < 2e-2
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 2e-2
