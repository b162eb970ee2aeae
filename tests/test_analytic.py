"""The analytic oracle is exact: it is what other tests trust."""

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras, turntable
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, Imperfection
from microdreamer_core.diffusion.ddim import predict_noise
from microdreamer_core.diffusion.samplers import get_sampler
from microdreamer_core.diffusion.timesteps import sampling_path
from microdreamer_core.reference import Reference

SIZE = 12
PATH = sampling_path(951, 20)


def flat_objects(cameras):
    """Three objects that look like flat colours with a view-dependent stripe: [3,V,S,S,3]."""
    colors = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.9]])
    pictures = colors[:, None, None, None, :].expand(3, len(cameras), SIZE, SIZE, 3).clone()
    stripe = ((cameras.azimuth % 360) / 360 * SIZE).long()
    for v, column in enumerate(stripe):
        pictures[:, v, :, column % SIZE] = 1.0
    return pictures


def model(**kwargs):
    return AnalyticDiffusion(flat_objects, SIZE, **kwargs)


def reference_of(index):
    camera = orbit_cameras(0, 0, 1.5, width=SIZE)
    return Reference(flat_objects(camera)[index, 0], torch.ones(SIZE, SIZE, 1))


def test_the_score_is_the_gradient_of_the_log_density():
    """ε = -σ ∇ log p_t(x), with p_t the mixture written out in float64 and differentiated by autograd."""
    oracle = model(spread=0.3, reference=reference_of(1), tolerance=20.0)
    conditioning = oracle.condition(turntable(2, size=SIZE))
    for t, guidance in ((10, 1.0), (400, 0.0), (900, 1.0)):
        a_bar = float(oracle.process.alphas_cumprod[t])
        x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        x = (a_bar**0.5 * conditioning.means[0].double() + (1 - a_bar) ** 0.5 * x).requires_grad_()
        variance = a_bar * 0.3**2 + 1 - a_bar
        logits = -(x[None] - a_bar**0.5 * conditioning.means.double()).square().flatten(1).sum(1) / (2 * variance)
        prior = oracle._log_prior.double() if guidance else torch.zeros(3, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(torch.logsumexp(logits + prior, 0), x)
        noisy = x.detach().float()
        eps = predict_noise(noisy, oracle.denoised(noisy, t, conditioning, guidance), t, oracle.process).double()
        assert torch.allclose(eps, -((1 - a_bar) ** 0.5) * gradient, atol=1e-4)


def test_samples_are_objects_and_all_views_show_the_same_one():
    oracle = model(spread=0.02)
    conditioning = oracle.condition(turntable(4, size=SIZE))
    sampler, seen = get_sampler("ddim", 1.0), set()
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(4, *oracle.latent_shape, generator=draw)
        x = sampler(lambda x, t: oracle.denoised(x, t, conditioning, 1.0), noise, PATH, oracle.process, draw)
        errors = (x[None] - conditioning.means).square().mean((2, 3, 4))
        assert float(errors.min(0).values.max()) < 0.01
        assert len(set(errors.argmin(0).tolist())) == 1
        seen.add(int(errors[:, 0].argmin()))
    assert len(seen) > 1


@pytest.mark.parametrize("index", range(3))
def test_the_reference_chooses_the_object(index):
    oracle = model(reference=reference_of(index))
    assert int(oracle._log_prior.argmax()) == index
    assert float(oracle._log_prior[index].exp()) > 0.99


def test_evaluations_are_counted_by_view_and_branch():
    oracle = model(reference=reference_of(0))
    conditioning = oracle.condition(turntable(4, size=SIZE))
    x = torch.zeros(4, *oracle.latent_shape)
    u, c, g = (oracle.denoised(x, 500, conditioning, guidance) for guidance in (0, 1, 3.0))
    assert oracle.evaluations == 4 + 4 + 8
    assert torch.allclose(g, u + 3 * (c - u))


def test_imperfections_repeat_for_the_same_camera_and_differ_between_cameras():
    cameras = turntable(4, size=SIZE)
    wrong = model(imperfection=Imperfection(camera_degrees=20.0, tint=0.2, seed=3))
    first = wrong.condition(cameras).means
    assert torch.equal(first, wrong.condition(cameras).means)
    assert torch.equal(first[:, 2:3], wrong.condition(cameras[2:3]).means)
    exact = model().condition(cameras).means
    shift = (first - exact)[0].flatten(1).mean(1)
    assert float(shift.abs().max()) > 0.01 and float(shift.std()) > 0.01


def test_codec_round_trip():
    images = torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model().decode(model().encode(images)), images, atol=1e-6)
