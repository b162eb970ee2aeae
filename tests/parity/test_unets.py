"""Our UNets against the original implementations, on tiny random weights."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from helpers.fixture_files import Fixture, cases, close, filled, full_size, shapes
from microdreamer_core.diffusion import keys, unet
from microdreamer_core.diffusion.ddim import guide
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
    if ours.resampler is not None:  # as for the UNet, shapes do not tell how the width of the attention is shared by heads
        stated = resampler_config(fixture.json("resampler_config"))
        assert replace(ours.resampler, heads=stated.heads, head_channels=stated.head_channels) == stated
        ours = replace(ours, resampler=stated)
    assert ours.widths == tuple(config["model_channels"] * mult for mult in config["channel_mult"])
    assert ours.num_res_blocks == config["num_res_blocks"]
    assert ours.attention == tuple(2**i in config["attention_resolutions"] for i in range(len(config["channel_mult"])))
    assert (ours.context_dim, ours.in_channels) == (config["context_dim"], config["in_channels"])
    return filled(unet.build_unet(ours), keys.unet_map(weights), weights)


def resampler_config(sizes):
    return unet.ResamplerConfig(
        embed_dim=sizes["embedding_dim"],
        width=sizes["dim"],
        output_dim=sizes["output_dim"],
        tokens=sizes["num_queries"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        head_channels=sizes["dim_head"],
        ff_mult=sizes["ff_mult"],
    )


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
    close(guide(unconditional, conditional, fixture.json("guidance_scale")), expected["eps_cfg"], GUIDED)


def test_guidance():
    fixture = Fixture("cfg")
    inp = fixture.group("inp")
    for name, expected in fixture.group("out").items():
        close(guide(inp["uncond"], inp["cond"], float(name.removeprefix("g"))), expected, EPS)


def test_resampler():
    check_resampler(Fixture("resampler"))


@pytest.mark.parametrize(
    "sizes",
    [
        {"ff_mult": 2},
        {
            "ff_mult": 3,
            "depth": 3,
            "heads": 5,
            "dim_head": 4,
            "num_queries": 7,
            "dim": 12,
            "embedding_dim": 20,
            "output_dim": 9,
        },
    ],
    ids=["narrow", "all"],
)
def test_resampler_of_other_sizes(sizes, tmp_path):
    """Every size is the file's own: here of files that are made here, by the published layers written out."""
    base = {"dim": 16, "depth": 2, "dim_head": 8, "heads": 2, "num_queries": 3, "embedding_dim": 24, "output_dim": 10}
    write_resampler(tmp_path / "resampler.safetensors", base | sizes)
    check_resampler(Fixture("resampler", tmp_path))


def test_the_width_of_feed_forward_layers_is_read_off_the_shapes():
    listed = shapes(Fixture("imagedream_unet").group("sd"))
    known = unet.UNetConfig.from_shapes(listed, num_heads=1).resampler
    for name in listed:
        if name.startswith("image_embed.layers.") and name.endswith(".1.1.weight"):
            listed[name] = (2 * known.width, known.width)
    assert unet.UNetConfig.from_shapes(listed, num_heads=1).resampler == replace(known, ff_mult=2)


@torch.no_grad()
def check_resampler(fixture):
    weights = fixture.group("sd")
    with torch.device("meta"):
        module = unet.build_resampler(resampler_config(fixture.json("config")))
    filled(module, keys.resampler_map(weights), weights)
    x, expected = fixture.group("inp")["x"], fixture.group("out")
    close(module(x), expected["tokens"], EPS)
    close(module(torch.zeros_like(x)), expected["tokens_of_zeros"], EPS)


def write_resampler(path, sizes):
    """A fixture as the originals left it, with random weights."""
    draw, width = torch.Generator().manual_seed(0), sizes["dim"]
    inner = sizes["heads"] * sizes["dim_head"]
    shapes_ = {
        "latents": (1, sizes["num_queries"], width),
        "proj_in.weight": (width, sizes["embedding_dim"]),
        "proj_in.bias": (width,),
    }
    shapes_ |= {"proj_out.weight": (sizes["output_dim"], width), "proj_out.bias": (sizes["output_dim"],)}
    shapes_ |= {f"norm_out.{kind}": (sizes["output_dim"],) for kind in ("weight", "bias")}
    for i in range(sizes["depth"]):
        norms = (f"layers.{i}.{name}.{kind}" for name in ("0.norm1", "0.norm2", "1.0") for kind in ("weight", "bias"))
        shapes_ |= dict.fromkeys(norms, (width,))
        shapes_ |= {f"layers.{i}.0.to_q.weight": (inner, width), f"layers.{i}.0.to_kv.weight": (2 * inner, width)}
        shapes_ |= {f"layers.{i}.0.to_out.weight": (width, inner)}
        shapes_ |= {f"layers.{i}.1.1.weight": (sizes["ff_mult"] * width, width)}
        shapes_ |= {f"layers.{i}.1.3.weight": (width, sizes["ff_mult"] * width)}
    weights = {name: torch.randn(shape, generator=draw) * 0.5 for name, shape in shapes_.items()}
    x = torch.randn(2, 5, sizes["embedding_dim"], generator=draw)
    file = {f"sd.{name}": value for name, value in weights.items()} | {"inp.x": x}
    file |= {"out.tokens": resample(weights, sizes, x), "out.tokens_of_zeros": resample(weights, sizes, torch.zeros_like(x))}
    save_file(file, path, {"config": json.dumps(sizes)})


def resample(weights, sizes, x):
    """The perceiver of IP-Adapter Plus: latents look at the tokens and at themselves, then go through a feed-forward layer."""

    def norm(name, value):
        return F.layer_norm(value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def split(value):
        return value.unflatten(-1, (sizes["heads"], sizes["dim_head"])).transpose(1, 2)

    x = F.linear(x, weights["proj_in.weight"], weights["proj_in.bias"])
    latents = weights["latents"].expand(len(x), -1, -1)
    for i in range(sizes["depth"]):
        attention, feed = f"layers.{i}.0", f"layers.{i}.1"
        seen, asking = norm(f"{attention}.norm1", x), norm(f"{attention}.norm2", latents)
        query = split(asking @ weights[f"{attention}.to_q.weight"].T)
        pair = (torch.cat([seen, asking], 1) @ weights[f"{attention}.to_kv.weight"].T).chunk(2, -1)
        key, value = map(split, pair)
        shares = (query @ key.mT / sizes["dim_head"] ** 0.5).softmax(-1)
        latents = latents + (shares @ value).transpose(1, 2).flatten(2) @ weights[f"{attention}.to_out.weight"].T
        wide = F.gelu(norm(f"{feed}.0", latents) @ weights[f"{feed}.1.weight"].T)
        latents = latents + wide @ weights[f"{feed}.3.weight"].T
    return norm("norm_out", F.linear(latents, weights["proj_out.weight"], weights["proj_out.bias"]))


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
