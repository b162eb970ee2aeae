"""The adapters of MVDream, ImageDream and Zero123: branches, views, cameras; on tiny random weights."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from helpers import tiny_checkpoints as tiny
from microdreamer_core.cameras import orbit_cameras, turntable
from microdreamer_core.checkpoints.load import ModelOptions, load
from microdreamer_core.checkpoints.registry import own_radii, right_distance
from microdreamer_core.diffusion.encoders import SCALE
from microdreamer_core.diffusion.protocol import ViewCount
from microdreamer_core.errors import InputError
from microdreamer_core.reference import Reference
from microdreamer_core.sir.presets import get_plan

KINDS = ("mvdream", "imagedream-pixel", "imagedream-local", "zero123-stable", "zero123-xl")
AXES = {"right": (0.5, 0, 0), "up": (0, 0.5, 0), "front": (0, 0, 0.5)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    paths = {family: tiny.write(folder, family, "safetensors") for family in tiny.FAMILIES}
    made = {}
    for kind in KINDS:
        family, _, variant = kind.partition("-")
        made[kind] = load(paths[family], ModelOptions(variant=variant or "auto"))
    yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference():
    image = torch.ones(128, 128, 3)
    image[40:100, 30:90] = torch.tensor([0.8, 0.2, 0.1])
    return Reference(image, (image[..., 1:2] < 0.9).float(), 10.0)


def condition_model(model, reference, **words):
    """The model on all that it takes."""
    words = {"prompt": "a red box", **words} if model.takes_prompt else {}
    return model.condition(reference if model.takes_picture else None, **words)


class Recorder(nn.Module):
    """In place of the UNet: keeps what it is called with and answers with numbers of x and branch."""

    def __init__(self, unet):
        super().__init__()
        self.config, self.calls, self._unet = unet.config, [], unet
        self.device, self.dtype = unet.device, unet.dtype

    def tokens(self, hidden):
        return self._unet.tokens(hidden)

    def forward(self, x, t, context, **known):
        self.calls.append({"x": x, "t": t, "context": context, **known})
        return self._unet(x, t, context, **known)


def recorded(diffusion):
    """The diffusion model with a recorder in place of its UNet: (model, calls)."""
    watched = copy.copy(diffusion)
    recorder = Recorder(diffusion._parts.unet)
    watched._parts = dataclasses.replace(diffusion._parts, unet=recorder)
    return watched, recorder.calls


def noise(diffusion, views=4, seed=0):
    return torch.randn(views, *diffusion.latent_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_models_say_what_they_want(models, kind):
    model = models[kind]
    plan = get_plan(model.preset)
    assert plan.representation == "gaussians" and (plan.radius, plan.fov_y) == (model.radius, model.fov_y)
    assert (model.fill, model.image_size) == (0.8, 64)
    assert own_radii(model) == {"gaussians": plan.radius, "nerf": get_plan(model.nerf_preset).radius}
    assert all(right_distance(get_plan(name), own_radii(model)) for name in (model.preset, model.nerf_preset))
    model.view_count.check(plan.views)
    expected = {"mvdream": (True, False, 4), "imagedream": (True, True, 4), "zero123": (False, True, None)}
    takes_prompt, takes_picture, group = expected[kind.partition("-")[0]]
    assert (model.takes_prompt, model.takes_picture, model.view_count) == (takes_prompt, takes_picture, ViewCount(group))
    assert all(not p.requires_grad for p in model.networks().parameters())


def test_words_and_pictures_that_a_model_does_not_take(models, reference):
    with pytest.raises(InputError, match="needs a reference picture and takes no prompt, got a prompt"):
        models["zero123-xl"].condition(reference, "a box")
    with pytest.raises(InputError, match="got none"):
        models["zero123-xl"].condition(None)
    with pytest.raises(InputError, match="MVDream makes what a prompt says"):
        models["mvdream"].condition(reference, " ")
    with pytest.raises(InputError, match="ImageDream needs a reference picture"):
        models["imagedream-local"].condition(None, "a box")
    empty, none = (models["imagedream-local"].condition(reference, prompt, negative="") for prompt in ("", None))
    assert torch.equal(empty._context, none._context) and torch.equal(empty._context[0], empty._context[1])


@pytest.mark.parametrize("kind", ["mvdream", "imagedream-pixel", "imagedream-local"])
def test_the_released_negative_prompt_unless_another_is_given(models, reference, kind):
    """configs/text_mv.yaml and imagedream.yaml of the released code; the branch of guidance and of all inversion."""
    model = models[kind]
    assert model.negative.startswith("ugly, bad anatomy, blurry, pixelated obscure,") and len(model.negative.split(", ")) == 19
    tokens = [condition_model(model, reference, **words)._context[0] for words in ({}, {"negative": ""}, {"negative": "ugly"})]
    for context, text in zip(tokens, (model.negative, "", "ugly"), strict=True):
        assert torch.equal(context, model.parts.text([text])[0])
    assert not torch.equal(tokens[0], tokens[1]) and not torch.equal(tokens[0], tokens[2])


def test_precision_is_that_of_the_released_programs_unless_chosen():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    auto, chosen = ModelOptions(), ModelOptions(dtype="float16")
    usual = {"zero123": torch.float16, "mvdream": torch.float32, "imagedream": torch.float32}
    assert {family: auto.torch_dtype(gpu, family) for family in usual} == usual
    assert {auto.torch_dtype(cpu, family) for family in usual} == {torch.float32}
    assert chosen.torch_dtype(gpu, "mvdream") == chosen.torch_dtype(cpu, "zero123") == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_joins_two_branches_in_one_call(models, reference, kind):
    diffusion, calls = recorded(condition_model(models[kind], reference))
    conditioning, x = diffusion.condition(turntable(4)), noise(diffusion)
    kept = x.clone()
    unconditional, conditional = (diffusion.denoised(x, 301, conditioning, g) for g in (0.0, 1.0))
    assert diffusion.evaluations == 8, "one branch each"
    guided = diffusion.denoised(x, 301, conditioning, 3.0)
    assert (diffusion.evaluations, len(calls)) == (16, 3)
    assert len(calls[2]["x"]) == 2 * len(calls[0]["x"]) and torch.equal(x, kept)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional), rtol=0, atol=2e-5)
    assert float((conditional - unconditional).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["mvdream", "imagedream-pixel", "imagedream-local"])
def test_eight_views_are_two_groups_of_evenly_spread_ones(models, reference, kind):
    diffusion, cameras = condition_model(models[kind], reference), turntable(8, elevation=10)
    x = noise(diffusion, 8)
    together = diffusion.denoised(x, 501, diffusion.condition(cameras), 2.0)
    assert diffusion.evaluations == 16
    for group in (0, 1):
        alone = diffusion.denoised(x[group::2], 501, diffusion.condition(cameras[slice(group, None, 2)]), 2.0)
        torch.testing.assert_close(together[group::2], alone, rtol=0, atol=2e-5)
    with pytest.raises(InputError, match="multiple of 4 views, got 6"):
        diffusion.condition(turntable(6))


def test_zero123_takes_any_number_of_views_each_alone(models, reference):
    diffusion, cameras = condition_model(models["zero123-stable"], reference), turntable(3)
    x = noise(diffusion, 3)
    together = diffusion.denoised(x, 501, diffusion.condition(cameras), 2.0)
    alone = diffusion.denoised(x[1:2], 501, diffusion.condition(cameras[1:2]), 2.0)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=2e-5)


def test_mvdreams_branches(models):
    """Unconditional: the negative prompt's tokens, the same cameras."""
    diffusion, calls = recorded(models["mvdream"].condition(None, "a red box", negative="ugly"))
    diffusion.denoised(noise(diffusion), 7, diffusion.condition(turntable(4)), 2.0)
    (call,) = calls
    text = models["mvdream"].parts.text
    assert torch.equal(call["context"][:4], text(["ugly"]).expand(4, -1, -1))
    assert torch.equal(call["context"][4:], text(["a red box"]).expand(4, -1, -1))
    assert torch.equal(call["camera"][:4], call["camera"][4:]) and call["num_frames"] == 4


@pytest.mark.parametrize("variant", ["pixel", "local"])
def test_imagedreams_branches(models, reference, variant):
    """Unconditional: the tokens of all-zero features and, for the pixel variant, an all-zero fifth view."""
    model = models[f"imagedream-{variant}"]
    diffusion, calls = recorded(condition_model(model, reference, negative="ugly"))
    x = noise(diffusion)
    diffusion.denoised(x, 7, diffusion.condition(turntable(4)), 2.0)
    (call,) = calls
    frames = 5 if variant == "pixel" else 4
    assert (call["num_frames"], len(call["x"])) == (frames, 2 * frames)
    picture = reference.at_size(64).image[None]
    hidden = model.parts.vision.hidden(picture)
    for rows, features, words in (
        (slice(frames), torch.zeros_like(hidden), "ugly"),
        (slice(frames, None), hidden, "a red box"),
    ):
        expected = model.parts.unet.tokens(features).expand(frames, -1, -1)
        torch.testing.assert_close(call["image_tokens"][rows], expected, rtol=0, atol=1e-5)
        assert torch.equal(call["context"][rows], model.parts.text([words]).expand(frames, -1, -1))
    assert torch.equal(call["x"][:4], x) and torch.equal(call["x"][frames : frames + 4], x)
    if variant == "pixel":
        assert not call["x"][4].any() and not call["camera"][[4, 9]].any()
        torch.testing.assert_close(call["x"][9], model.parts.vae.encode(picture)[0])


def test_zero123s_branches(models, reference):
    """Unconditional: zeros in place of the projected token and of the reference's latent, which is not scaled."""
    model = models["zero123-stable"]
    diffusion, calls = recorded(condition_model(model, reference))
    diffusion.denoised(noise(diffusion), 7, diffusion.condition(turntable(4)), 2.0)
    (call,) = calls
    latent = model.parts.vae.encode(reference.at_size(64).image[None])[0] / SCALE
    assert call["context"].shape == (8, 1, 64)
    assert not call["context"][:4].any() and not call["concat"][:4].any()
    torch.testing.assert_close(call["concat"][4:], latent.expand(4, -1, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_latents(models, reference, kind):
    diffusion = condition_model(models[kind], reference)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = diffusion.encode(images)
    assert latents.shape == (2, *diffusion.latent_shape) == (2, 4, 32, 32)
    latents.square().sum().backward()
    assert float(images.grad.abs().max()) > 0
    decoded = diffusion.decode(latents.detach())
    assert decoded.shape == images.shape and 0 <= float(decoded.min()) <= float(decoded.max()) <= 1
    torch.testing.assert_close(decoded[1:], diffusion.decode(latents.detach()[1:]), rtol=0, atol=1e-5)


# --- cameras -----------------------------------------------------------------------------------------------------------


def pixels(cameras, points):
    """[V,P,2] where points [P,3] of our world appear in our pictures, and [V,P] how far away they are."""
    homogeneous = torch.cat([points, torch.ones(len(points), 1)], 1)
    seen = torch.einsum("vij,pj->vpi", cameras.viewmats, homogeneous)[..., :3]
    flat = torch.einsum("vij,vpj->vpi", cameras.Ks, seen)
    return flat[..., :2] / flat[..., 2:], seen[..., 2]


@pytest.mark.parametrize("kind", ["mvdream", "imagedream-pixel", "imagedream-local"])
def test_painted_axes_appear_where_the_networks_camera_says(models, reference, kind):
    """The matrices that reach the network show the object where our pictures do: upright, its front at their azimuth 90.

    Theirs are OpenGL cameras in a world with z up, seen from distance 1; an object whose front faces the camera at azimuth 90,
    which stands on their x axis, has its right side (our x) along their y.
    """
    diffusion, calls = recorded(condition_model(models[kind], reference))
    cameras = orbit_cameras([15, -20, 0, 40], [0, 90, 200, 300], radius=2.0)
    diffusion.denoised(noise(diffusion), 7, diffusion.condition(cameras), 1.0)
    rows = calls[0]["camera"][:4]
    front = [0, -0.258819, 0.965926, 0.965926, 1, 0, 0, 0, 0, 0.965926, 0.258819, 0.258819, 0, 0, 0, 1]
    torch.testing.assert_close(rows[0], torch.tensor(front), rtol=0, atol=1e-5)
    theirs = rows.reshape(4, 4, 4)
    assert torch.allclose(theirs[:, :3, 3].norm(dim=1), torch.ones(4))
    ours = torch.tensor(list(AXES.values()))
    in_their_world = ours[:, [2, 0, 1]]  # front, right, up along x, y, z
    relative = in_their_world[None] - 2.0 * theirs[:, None, :3, 3]
    seen = torch.einsum("vij,vpi->vpj", theirs[:, :3, :3], relative)  # right, up, backward
    focal = 128 / math.tan(math.radians(49.1 / 2))
    shown = torch.stack([128 + focal * seen[..., 0] / -seen[..., 2], 128 - focal * seen[..., 1] / -seen[..., 2]], -1)
    expected, depth = pixels(cameras, ours)
    torch.testing.assert_close(shown, expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(-seen[..., 2], depth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["zero123-stable", "zero123-xl"])
def test_painted_axes_and_what_zero123_is_told(models, reference, kind):
    """From the numbers that reach the projection, where the camera stands: right of the input view, above it."""
    model = models[kind]
    diffusion = condition_model(model, reference)
    seen = []
    handle = model.parts.camera.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    cameras = orbit_cameras([reference.elevation, 40, -20, 10], [0, 90, 200, 300], radius=2.0)
    try:
        diffusion.condition(cameras)
    finally:
        handle.remove()
    polar, sin, cos, last = seen[0][:, 0, -4:].unbind(1)
    torch.testing.assert_close(seen[0][:, 0, :-4], model.parts.vision.embed(reference.at_size(64).image[None]).expand(4, -1))
    torch.testing.assert_close(torch.stack([polar, sin, cos])[:, 0], torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    assert sin[1] > 0.99, "a camera at azimuth 90 stands right of the input view, where it sees the object's right side"
    assert polar[1] < 0 < polar[2], "a camera above has a smaller polar angle"
    elevation = math.pi / 2 - (math.radians(90 - reference.elevation) + polar)
    direction = torch.stack([elevation.cos() * sin, elevation.sin(), elevation.cos() * cos], 1)
    torch.testing.assert_close(direction, cameras.c2w[:, :3, 3] / 2.0, rtol=0, atol=1e-5)
    nearest = pixels(cameras, torch.tensor(list(AXES.values())))[1].argmin(1)
    assert list(AXES)[nearest[0]] == "front" and list(AXES)[nearest[1]] == "right"
    expected = math.radians(80) if kind == "zero123-stable" else 0.0
    torch.testing.assert_close(last, torch.full((4,), expected), rtol=0, atol=1e-6)
