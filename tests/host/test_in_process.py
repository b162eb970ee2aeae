"""The pack inside the host's own process: samplers of the host on our diffusion models."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch


def ancestral(comfy, eta: float):
    """What the host's node SamplerEulerAncestral gives out, whichever API it is written in."""
    node = importlib.import_module("comfy_extras.nodes_custom_sampler").SamplerEulerAncestral
    made = getattr(node if hasattr(node, "GET_SCHEMA") else node(), node.FUNCTION)(eta=eta, s_noise=1.0)
    return made[0]


def denoise(x, t):
    """Depends on everything a real network depends on, and is cheap."""
    return torch.tanh(x.flip(1) + 0.001 * t)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps, t2", [(10, 801), (20, 451)])
def test_the_hosts_ancestral_sampler_equals_our_ddim(comfy, pack, eta, steps, t2):
    native = importlib.import_module(f"{pack.__name__}.nodes.native")
    diffusion = f"{pack.__name__}.microdreamer_core.diffusion"
    ddim, process = importlib.import_module(f"{diffusion}.ddim"), importlib.import_module(f"{diffusion}.noise").STABLE_DIFFUSION
    path = importlib.import_module(f"{diffusion}.timesteps").sampling_path(t2, steps)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    # how the host seeds its noise is its own affair, so the draws are listened to instead of guessed
    sampling = importlib.import_module("comfy.k_diffusion.sampling")
    noises, default = [], sampling.default_noise_sampler

    def recorded(x, seed=None):
        drawn = default(x, seed=seed)

        def sampler(*levels):
            noises.append(drawn(*levels))
            return noises[-1]

        return sampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "default_noise_sampler", recorded)
        sampler = native.NativeSampler(ancestral(comfy, eta))
        got = sampler(denoise, x, path, process, torch.Generator().manual_seed(2))
    assert len(noises) == len(path)
    expected = ddim.sample(x, path, denoise, process, eta=eta, noises=noises)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", ["sgm_uniform", "simple", "beta", "karras", "normal", "ddim_uniform", "exponential"])
@pytest.mark.parametrize("prediction", ["EPS", "V_PREDICTION"])
def test_sigmas_of_a_plan_are_the_hosts_own(comfy, pack, scheduler, prediction):
    """As BasicScheduler makes them for Stable Diffusion, whose noise levels MVDream, Zero123 and the shipped model share."""
    sampling = importlib.import_module("comfy.model_sampling")
    model = type("Sampling", (sampling.ModelSamplingDiscrete, getattr(sampling, prediction)), {})()
    expected = comfy.samplers.calculate_sigmas(model, scheduler, 12)
    types, presets = (importlib.import_module(f"{pack.__name__}.{name}") for name in ("nodes.types", "microdreamer_core.sir"))
    noise = importlib.import_module(f"{pack.__name__}.microdreamer_core.diffusion.noise")
    plan = importlib.import_module(f"{presets.__name__}.presets").get_plan("embedded", discretization=12)
    diffusion = SimpleNamespace(process=noise.STABLE_DIFFUSION, latent_shape=(4, 32, 32))
    node = pack.node_classes["MicroDreamerPlanSigmas"]
    inputs = {"plan": plan, "condition": types.Conditioned(diffusion, None, None), "scheduler": scheduler}
    (sigmas,) = node.execute(**inputs).args
    torch.testing.assert_close(sigmas, expected, atol=1e-5, rtol=1e-4)
    (cut,) = node.execute(**inputs, t2=500).args
    torch.testing.assert_close(cut[1:], expected[expected < cut[0] * (1 - 1e-4)], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cut[0], model.sigmas[500], atol=1e-5, rtol=1e-4)


def test_every_scheduler_of_the_host_is_offered(comfy, pack):
    schema = pack.node_classes["MicroDreamerPlanSigmas"].define_schema()
    (combo,) = (socket for socket in schema.inputs if socket.id == "scheduler")
    assert list(combo.options) == comfy.samplers.SCHEDULER_NAMES
