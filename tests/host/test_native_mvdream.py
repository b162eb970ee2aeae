"""MVDream as the host's own MODEL, against our family's own network on the same random file."""

from __future__ import annotations

import importlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from helpers import tiny_checkpoints as tiny
from helpers.tiny_native import Clip, refiner_plan, vae

ELSEWHERE = ("vae", "text", "vision")
PROMPT = "a red box"


def write(folder, family="mvdream", **changes):
    """A file of two shallow levels whose widths are Stable Diffusion 2's, by which the host knows it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", 320)
        patch.setattr(tiny, "CONTEXT", 1024)
        patch.setattr(tiny, "_tower", partial(tiny._tower, blocks=3))
        return tiny.write(folder, family, "flat", **changes)


@pytest.fixture(scope="module")
def made(core, run, comfy, tmp_path_factory):
    """MODEL, what the pack makes of it, our own model of the same weights, and text tokens of both branches."""
    folder = tmp_path_factory.mktemp("mvdream")
    with torch.inference_mode():
        # the host's VAE and CLIP are of full size only
        model, _, _ = core("nodes.native_mvdream").load_mvdream(str(write(folder, without=ELSEWHERE)))
    own = core("microdreamer_core.checkpoints.load").load(write(folder, name="whole"))
    loaded = run("ModelFromComfyUI", model=model, vae=vae(4), clip=Clip(1024, 1024))[0]
    draw = torch.Generator().manual_seed(2)
    positive, negative = (torch.randn(1, 7, 1024, generator=draw) for _ in range(2))
    return SimpleNamespace(model=model, loaded=loaded, own=own, positive=positive, negative=negative)


def cameras(core, views=4):
    azimuths = torch.arange(views) * 360.0 / views
    return core("microdreamer_core.cameras").orbit_cameras(10.0, azimuths, 2.0, 49.1, 256)


def noise(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(core, made):
    """The same conditioned model twice: of our family, and through the host."""
    own = core("microdreamer_core.diffusion.mvdream").MVDreamDiffusion(
        made.own.parts, torch.cat([made.negative, made.positive])
    )
    return own, made.loaded.model.condition_as([[made.positive, {}]], [[made.negative, {}]])


@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_the_hosts_unet_is_mvdream(core, made, report, guidance):
    """Every tensor of the file has its place; eight views are two groups; cameras, text and the other views all count."""
    own, ours = pair(core, made)
    rig, latents = cameras(core, 8), noise(8, 4, 8, 8)
    expected, got = (model.denoised(latents, 601, model.condition(rig), guidance) for model in (own, ours))
    error = float((got - expected).abs().max() / expected.abs().max())
    report(f"native MVDream against our own family, guidance {guidance}: {error:.1e}")
    assert error < 1e-5 and own.evaluations == ours.evaluations
    turned = cameras(core, 8)[[1, 2, 3, 4, 5, 6, 7, 0]]
    other = ours.denoised(latents, 601, ours.condition(turned), guidance)
    assert float((other - got).abs().max() / got.abs().max()) > 1e-4


def test_the_hosts_sampler_makes_four_views_of_it(core, run, made):
    """From the host's own sampling to the views of our DDIM on our own network."""
    own, _ = pair(core, made)
    rig, x = cameras(core), noise(4, 4, 8, 8)
    told = run("MVDreamCameras", positive=[[made.positive, {}]], negative=[[made.negative, {}]], cameras=rig).args
    path, process = (601, 301), own.process
    levels = process.levels[[*path, 0]].float()
    with torch.inference_mode():
        sample = importlib.import_module("comfy.sample").sample_custom
        options = {"latent_image": torch.zeros_like(x), "disable_pbar": True, "seed": 0}
        euler = importlib.import_module("comfy.samplers").ksampler("euler")
        got = sample(made.model, x * (1 + levels[0] ** 2).sqrt() / levels[0], 5.0, euler, levels, *told, **options)
        got = made.model.get_model_object("latent_format").process_in(got) * process.alpha_sigma(0)[0]
    conditioning = own.condition(rig)
    expected = core("microdreamer_core.diffusion.ddim").sample(
        x, path, lambda x, t: own.denoised(x, t, conditioning, 5.0), process
    )
    torch.testing.assert_close(got.clone(), expected, atol=2e-4, rtol=2e-4)


@pytest.fixture(scope="module")
def whole(core, comfy, tmp_path_factory):
    """(MODEL, CLIP, VAE) of the host and our own model, from one file: the autoencoder of full size, three blocks of text.

    The host knows an autoencoder of no other size, and the text tower's depth from a file of its own. On a CPU it rounds the
    text tower's weights to half precision, so they are halves in the file.
    """
    sd2, autoencoders = (
        importlib.import_module(f"comfy.{name}") for name in ("text_encoders.sd2_clip", "ldm.models.autoencoder")
    )
    path, draw = write(tmp_path_factory.mktemp("mvdream"), without=("vae",)), torch.Generator().manual_seed(5)
    weights = torch.load(path)
    text = {name: value.half().float() for name, value in weights.items() if name.startswith("cond_stage_model")}
    with torch.inference_mode():
        full = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "double_z": True, "dropout": 0.0}
        full |= {"in_channels": 3, "out_ch": 3, "resolution": 256, "attn_resolutions": []}
        network = autoencoders.AutoencoderKL(ddconfig=full, embed_dim=4).state_dict()
    autoencoder = {f"first_stage_model.{name}": tiny._values(name, value.shape, draw) for name, value in network.items()}
    torch.save(weights | text | autoencoder, path)

    class Shallow(sd2.SD2ClipHModel):
        def __init__(self, *given, model_options={}, **named):  # noqa: B006 - the host's signature
            super().__init__(*given, model_options={**model_options, "clip_h_model_config": {"num_hidden_layers": 3}}, **named)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(sd2, "SD2ClipHModel", Shallow)
        native = core("nodes.native_mvdream").load_mvdream(str(path))
    yield native, core("microdreamer_core.checkpoints.load").load(path)
    path.unlink()


def test_its_vae_and_clip_are_those_of_our_family(core, run, whole, report):
    """Pictures, prompts and what the network makes of them, all from the file, by the nodes of the host and by ours."""
    (model, clip, vae), loaded = whole
    native = run("ModelFromComfyUI", model=model, vae=vae, clip=clip, image_size=64)[0]
    ours = run("ConditionOnPrompt", model=native, prompt=PROMPT)[0].ready()
    own = loaded.condition(prompt=PROMPT)
    images, rig = torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(1)), cameras(core)

    def compare(what, got, expected):
        error = float((got - expected).abs().max() / expected.abs().max())
        report(f"native MVDream against our own family, {what}: {error:.1e}")
        assert got.shape == expected.shape and float(expected.std()) > 0.01 and error < 1e-4

    latents = own.encode(images)
    compare("encode", ours.encode(images), latents)
    compare("decode", ours.decode(latents), own.decode(latents))
    tokens = torch.cat([ours.condition(rig)[0].negative[0][0], ours.condition(rig)[0].positive[0][0]])
    compare(
        "text", tokens, core("microdreamer_core.diffusion.mvdream").text_tokens(loaded.parts, PROMPT, native.model.negative)
    )
    x = noise(*latents.shape)
    compare("denoised", *(it.denoised(x, 601, it.condition(rig), 5.0) for it in (ours, own)))


def test_it_takes_the_plans_of_mvdream_and_runs_in_sir(core, run, made):
    model = made.loaded.model
    assert (model.preset, model.radius, model.image_size) == ("mvdream-gaussians", 2.0, 256)
    assert model.negative == core("microdreamer_core.diffusion.mvdream").NEGATIVE
    condition = run("ConditionOnPrompt", model=made.loaded, prompt=PROMPT)[0]
    assert condition.diffusion.view_count.group == 4
    start = run("NewGaussians", model=made.loaded, num_points=60)[0]
    plan = refiner_plan(core, views=4, iterations=0, discretization=2, image_size=32)
    assert run("Generate", condition=condition, plan=plan, field=start)[0].k == -1


def test_what_it_cannot_do_is_said(core, run, made, tmp_path):
    load, text = core("nodes.native_mvdream").load_mvdream, [[made.positive, {}]]
    for family in ("imagedream", "zero123"):
        with pytest.raises(ValueError, match="Expected an MVDream checkpoint in the original layout"):
            load(str(write(tmp_path, family, without=ELSEWHERE)))
    with pytest.raises(ValueError, match="a multiple of 4 views, got 6 cameras; change the layout"):
        run("MVDreamCameras", positive=text, negative=text, cameras=cameras(core, 6))
    with pytest.raises(ValueError, match="The views of MVDream see each other anyway; set coupling to 'alone', got 'grid'"):
        run("ModelFromComfyUI", model=made.model, vae=vae(4), coupling="grid")
    with torch.inference_mode():
        sample = importlib.import_module("comfy.sample").sample_custom
        euler, x = importlib.import_module("comfy.samplers").ksampler("euler"), noise(3, 4, 8, 8)
        rest = {"latent_image": torch.zeros_like(x), "disable_pbar": True, "seed": 0}
        levels = torch.tensor([1.0, 0.5])
        with pytest.raises(ValueError, match="needs a camera for each view, got none; put MVDream Cameras between"):
            sample(made.model, x, 5.0, euler, levels, text, text, **rest)
        told = core("nodes.native_mvdream").with_cameras(text, cameras(core))
        for views in (2, 3):  # two views in both branches are four rows, and no group
            few = {**rest, "latent_image": torch.zeros_like(x[:views])}
            with pytest.raises(ValueError, match=f"in groups of 4, got {views}; change the latent's batch size"):
                sample(made.model, x[:views], 5.0, euler, levels, told, told, **few)
