"""Our closed-form DDIM against the released MicroDreamer loops over diffusers' schedulers: every case, every latent."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from microdreamer_core.diffusion import ddim
from microdreamer_core.diffusion.noise import STABLE_DIFFUSION
from microdreamer_core.diffusion.timesteps import inversion_path, sampling_path, timestep_grid

FIXTURES = Path(os.environ.get("MICRODREAMER_FIXTURES", Path(__file__).parents[1] / "fixtures"))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

with safe_open(FIXTURES / "ddim.safetensors", "pt") as _file:
    METADATA = _file.metadata()
    TENSORS = {key: _file.get_tensor(key) for key in _file.keys()}  # noqa: SIM118 - not a dict
GUIDANCE = load_file(FIXTURES / "cfg.safetensors")
CASES = json.loads(METADATA["cases"])


def toy_network(branch):
    """tanh(a x + b t) with the numbers that the file states for this branch."""
    found = re.search(rf"eps_{branch}=tanh\(([-+.\d]+)\*x([-+.\d]+)\*t\)", METADATA["eps"])
    a, b = float(found[1]), float(found[2])
    return lambda x, t: torch.tanh(a * x + b * t)


def guided(case):
    """The clean estimates of the unconditional branch and of the guided prediction, as the case combines them; both record the
    times they saw."""
    conditional = toy_network("cond")
    unconditional = toy_network("uncond") if case["uncond_branch"] == "distinct" else conditional
    seen = {"inversion": [], "sampling": []}

    def invert(x, t):
        seen["inversion"].append(t)
        return ddim.predict_x0(x, unconditional(x, t), t, STABLE_DIFFUSION)

    def sample(x, t):
        seen["sampling"].append(t)
        u = unconditional(x, t)
        guided = ddim.guide(u, conditional(x, t), case["guidance"])
        return ddim.predict_x0(x, guided, t, STABLE_DIFFUSION)

    return invert, sample, seen


def test_the_file_holds_cases():
    assert len(CASES) >= 1


def test_noise_schedule():
    torch.testing.assert_close(
        STABLE_DIFFUSION.alphas_cumprod.float(), TENSORS["table.alphas_cumprod"].float(), rtol=3e-6, atol=0
    )


@pytest.mark.parametrize("name", sorted(key for key in TENSORS if key.startswith("table.timesteps.")))
def test_grid(name):
    assert timestep_grid(int(name.rsplit(".", 1)[1])) == tuple(reversed(TENSORS[name].tolist()))


@pytest.mark.parametrize("name", sorted(key for key in TENSORS if key.startswith("table.inverse_timesteps.")))
def test_inverse_grid(name):
    assert timestep_grid(int(name.rsplit(".", 1)[1])) == tuple(TENSORS[name].tolist())


@pytest.mark.parametrize("key", sorted(key for key in GUIDANCE if key.startswith("out.g")))
def test_guidance(key):
    got = ddim.guide(GUIDANCE["inp.uncond"], GUIDANCE["inp.cond"], float(key.removeprefix("out.g")))
    torch.testing.assert_close(got, GUIDANCE[key], rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", CASES)
def test_noise_adding(name):
    noised = ddim.add_noise(TENSORS[f"inp.{name}.x0"], CASES[name]["t1"], TENSORS[f"inp.{name}.noise_t1"], STABLE_DIFFUSION)
    torch.testing.assert_close(noised, TENSORS[f"out.{name}.noised_t1"], **TOLERANCE)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case["init"]])
def test_hybrid_forward(name):
    case, (invert, _, seen) = CASES[name], guided(CASES[name])
    noise, steps = TENSORS[f"inp.{name}.noise_t1"], case["denoise_steps"]
    x = ddim.add_noise(TENSORS[f"inp.{name}.x0"], case["t1"], noise, STABLE_DIFFUSION)
    path = inversion_path(case["t1"], case["t2"], steps)
    latents = list(ddim.inversion_steps(x, path, invert, STABLE_DIFFUSION))
    assert seen["inversion"] == case["inverse_model_t"]
    assert list(path[1:]) == case["inverse_target_t"]
    if latents:
        torch.testing.assert_close(torch.stack(latents), TENSORS[f"out.{name}.inverse_latents"], **TOLERANCE)
    whole = ddim.hybrid_forward(TENSORS[f"inp.{name}.x0"], path, invert, STABLE_DIFFUSION, noise=noise)
    assert torch.equal(whole, latents[-1] if latents else x)


@pytest.mark.parametrize("name", CASES)
def test_sampling(name):
    """From our own latents at t2, so that errors of the forward process add up with those of sampling."""
    case, (invert, sample, seen) = CASES[name], guided(CASES[name])
    steps, t2 = case["denoise_steps"], case["t2"]
    if case["init"]:
        x, t2 = TENSORS[f"inp.{name}.init_noise"], timestep_grid(steps)[-1]
    else:
        x0, noise = TENSORS[f"inp.{name}.x0"], TENSORS[f"inp.{name}.noise_t1"]
        x = ddim.hybrid_forward(x0, inversion_path(case["t1"], t2, steps), invert, STABLE_DIFFUSION, noise=noise)
    noises = TENSORS.get(f"inp.{name}.variance_noise")
    path = sampling_path(t2, steps)
    latents = list(ddim.sampling_steps(x, path, sample, STABLE_DIFFUSION, eta=case["eta"], noises=noises))
    assert seen["sampling"] == case["forward_t"]
    torch.testing.assert_close(torch.stack(latents), TENSORS[f"out.{name}.forward_latents"], **TOLERANCE)
    assert len(seen["sampling"]) + len(seen["inversion"]) == case["unet_calls"]
