"""Our UNets against the original implementations, on tiny random weights."""

import math

import pytest
import torch

from helpers.fixture_files import Fixture, cases, close, filled, full_size, shapes
from microdreamer_core.diffusion import keys, unet
from microdreamer_core.diffusion.ddim import guided_noise
from microdreamer_core.errors import InputError

EPS, GUIDED = 1e-5, 3e-5


def loaded(fixture, prefix=""):
    config = fixture.json("config")
    weights = {name.removeprefix(prefix): value for name, value in fixture.group("sd").items() if name.startswith(prefix)}
    ours = unet.UNetConfig.from_shapes(
        shapes(weights),
        num_heads=config.get("num_heads"),
        head_channels=config.get("num_head_channels"),
        ip_weight=config.get("ip_weight", 1.0),
    )
    assert ours.widths == tuple(config["model_channels"] * mult for mult in config["channel_mult"])
    assert ours.num_res_blocks == config["num_res_blocks"]
    assert ours.attention == tuple(2**i in config["attention_resolutions"] for i in range(len(config["channel_mult"])))
    assert (ours.context_dim, ours.in_channels) == (config["context_dim"], config["in_channels"])
    return filled(unet.build_unet(ours), keys.unet_map(weights), weights)


@pytest.fixture(scope="module")
def mvdream():
    fixture = Fixture("mvdream_unet")
    return fixture, loaded(fixture)


@pytest.fixture(scope="module")
def imagedream():
    fixture = Fixture("imagedream_unet")
    return fixture, loaded(fixture)


@pytest.fixture(scope="module")
def zero123():
    fixture = Fixture("zero123_unet")
    return fixture, loaded(fixture, "model.diffusion_model.")


def case_inputs(fixture, case):
    return {name.removeprefix(f"{case}."): value for name, value in fixture.group("inp").items() if name.startswith(f"{case}.")}


@torch.no_grad()
@pytest.mark.parametrize("case", cases("mvdream_unet"))
def test_mvdream(mvdream, case):
    fixture, network = mvdream
    inp = case_inputs(fixture, case)
    eps = network(inp["x"], inp["timesteps"], inp["context"], camera=inp.get("camera"), num_frames=int(inp["num_frames"]))
    close(eps, fixture.group("out")[f"{case}.eps"], EPS)


@torch.no_grad()
@pytest.mark.parametrize("case", cases("imagedream_unet"))
def test_imagedream(imagedream, case):
    fixture, network = imagedream
    inp, frames = case_inputs(fixture, case), int(case_inputs(fixture, case)["num_frames"])
    expected = fixture.group("out")
    tokens = network.tokens(inp["ip"])
    close(tokens, expected[f"{case}.ip_tokens"], EPS)
    arguments = {"camera": inp["camera"], "image_tokens": tokens}
    if "ip_img" not in inp:
        eps = network(inp["x"], inp["timesteps"], inp["context"], num_frames=frames, **arguments)
        close(eps, expected[f"{case}.eps"], EPS)
        return
    real = torch.arange(len(inp["x"])) % frames < frames - 1
    x = inp["x"][real]
    kept = x.clone()
    eps = unet.predict_with_picture(
        network, x, inp["timesteps"], inp["context"], picture=inp["ip_img"], num_views=frames - 1, **arguments
    )
    close(eps, expected[f"{case}.eps"][real], EPS)
    assert torch.equal(x, kept)


@torch.no_grad()
def test_zero123(zero123):
    fixture, network = zero123
    inp, expected = fixture.group("inp"), fixture.group("out")
    projection = torch.nn.Linear(**fixture.json("cc_projection"))
    stored = keys.component(fixture.group("sd"), "camera")
    filled(projection, keys.camera_map(stored), {name: fixture.group("sd")[full] for name, full in stored.items()})
    token = projection(torch.cat([inp["clip"].expand(len(inp["T"]), -1, -1), inp["T"]], -1))
    close(token, expected["cc"], EPS)
    conditional = network(inp["x"], inp["timesteps"], token, concat=inp["c_concat"])
    unconditional = network(inp["x"], inp["timesteps"], torch.zeros_like(token), concat=torch.zeros_like(inp["c_concat"]))
    close(conditional, expected["eps_cond"], EPS)
    close(unconditional, expected["eps_uncond"], EPS)
    close(guided_noise(unconditional, conditional, fixture.json("guidance_scale")), expected["eps_cfg"], GUIDED)


def test_guidance():
    fixture = Fixture("cfg")
    inp = fixture.group("inp")
    for name, expected in fixture.group("out").items():
        close(guided_noise(inp["uncond"], inp["cond"], float(name.removeprefix("g"))), expected, EPS)


@torch.no_grad()
def test_resampler():
    fixture = Fixture("resampler")
    sizes = fixture.json("config")
    config = unet.ResamplerConfig(
        embed_dim=sizes["embedding_dim"],
        width=sizes["dim"],
        output_dim=sizes["output_dim"],
        tokens=sizes["num_queries"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        head_channels=sizes["dim_head"],
    )
    weights = fixture.group("sd")
    with torch.device("meta"):
        module = unet.build_resampler(config)
    filled(module, keys.resampler_map(weights), weights)
    x, expected = fixture.group("inp")["x"], fixture.group("out")
    close(module(x), expected["tokens"], EPS)
    close(module(torch.zeros_like(x)), expected["tokens_of_zeros"], EPS)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(imagedream, dtype):
    """Every kind of call works in half precision, near the full one, and answers in the latents' precision."""
    fixture, network = imagedream
    case = next(name for name in fixture.json("cases") if name.startswith("local"))
    inp = case_inputs(fixture, case)
    half = unet.build_unet(network.config)
    half.load_state_dict({name: value.to(dtype) for name, value in network.state_dict().items()}, assign=True)
    eps = half(
        inp["x"],
        int(inp["timesteps"][0]),
        inp["context"],
        camera=inp["camera"],
        num_frames=int(inp["num_frames"]),
        image_tokens=half.tokens(inp["ip"]),
    )
    expected = fixture.group("out")[f"{case}.eps"]
    assert eps.dtype == torch.float32
    assert (eps - expected).abs().max() < (0.02 if dtype == torch.float16 else 0.2) * expected.abs().max()


FULL_SIZE = {
    "mvdream_original": (867_572_164, 4, 16, 1024, False),
    "imagedream_original": (941_672_900, 4, 16, 1024, True),
    "mvdream_sd15_original_unet": (861_182_404, 4, 16, 768, False),
    "zero123_original": (859_532_484, 8, None, 768, False),
    "zero123_diffusers_unet": (859_532_484, 8, None, 768, False),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_config(name):
    """Sizes and heads of the published UNets are read off their shapes, to the last parameter."""
    listed = full_size(name)
    stored = keys.component(listed, "unet")
    config = unet.UNetConfig.from_shapes({short: listed[full] for short, full in stored.items()})
    parameters, in_channels, camera_dim, context_dim, picture = FULL_SIZE[name]
    assert (config.in_channels, config.camera_dim, config.context_dim) == (in_channels, camera_dim, context_dim)
    assert config.heads == ((5, 10, 20, 20) if context_dim == 1024 else (8, 8, 8, 8))
    assert config.linear_projection == (context_dim == 1024)
    assert (config.resampler == unet.ResamplerConfig()) if picture else (config.resampler is None)
    assert sum(math.prod(listed[full]) for full in stored.values()) == parameters


def test_bad_input(mvdream):
    _, network = mvdream
    x = torch.zeros(6, 4, 8, 8)
    with pytest.raises(InputError, match="multiple of 4"):
        network(x, 1, torch.zeros(6, 11, 64), num_frames=4)
    with pytest.raises(InputError, match="takes no picture tokens"):
        network(x, 1, torch.zeros(6, 11, 64), image_tokens=torch.zeros(6, 5, 64))
    with pytest.raises(InputError, match="no picture tokens"):
        network.tokens(torch.zeros(1, 5, 1280))
    with pytest.raises(InputError, match=r"found no 'conv_in.weight'"):
        unet.UNetConfig.from_shapes({"some.weight": (3, 3)})
