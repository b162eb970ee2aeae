"""Native models behind our protocol, in the real host: tiny random networks against plain calls of them."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers import tiny_native
from helpers.tiny_native import UNET, Clip, native, randomise

PROMPT = "a red box"
PICTURED = ("zero123", "sv3d_p")
"""Kinds that are conditioned on a picture."""
SIZE = 64


@pytest.fixture(scope="module")
def vae(comfy):
    return tiny_native.vae(4)


@pytest.fixture(scope="module")
def clip_vision(comfy, tmp_path_factory):
    module = importlib.import_module("comfy.clip_vision")
    path = tmp_path_factory.mktemp("clip") / "config.json"
    values = {"hidden_size": 32, "image_size": 28, "intermediate_size": 64, "num_attention_heads": 4, "num_channels": 3}
    values |= {"num_hidden_layers": 2, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu"}
    path.write_text(json.dumps({**values, "layer_norm_eps": 1e-5, "model_type": "clip_vision_model"}))
    with torch.inference_mode():
        made = module.ClipVisionModel(str(path))
        randomise(made.model, 2)
    return made


@pytest.fixture(scope="module")
def made(run, vae, clip_vision):
    """``made(kind, model_type)``: (loaded, patcher, calls, clip) of a tiny native model through the node."""

    def make(kind="sd", model_type="EPS", **inputs):
        model, calls = native(kind, model_type)
        clip = Clip(2048, 1280) if kind == "sdxl" else Clip()
        extra = {"clip_vision": clip_vision} if kind in PICTURED else {"clip": clip}
        loaded = run("ModelFromComfyUI", model=model, vae=vae, **{"image_size": SIZE, **extra, **inputs})[0]
        return SimpleNamespace(loaded=loaded, patcher=model, calls=calls, clip=clip)

    return make


@pytest.fixture(scope="module")
def picture():
    """(image [1,S,S,3], mask [1,S,S]) of a red box on white."""
    image, mask = torch.ones(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE)
    image[:, 16:48, 20:44] = torch.tensor([0.8, 0.2, 0.2])
    mask[:, 16:48, 20:44] = 1
    return {"image": image, "mask": mask}


@pytest.fixture
def conditioned(made, run, picture):
    """``conditioned(kind, model_type)``: the same with ``diffusion``, ready to run."""

    def make(kind="sd", model_type="EPS", elevation=0.0, **text):
        found = made(kind, model_type)
        if kind in PICTURED:
            condition = run("ConditionOnImage", model=found.loaded, **picture, elevation=elevation)[0]
        else:
            condition = run("ConditionOnPrompt", model=found.loaded, prompt=PROMPT, negative="blurry", **text)[0]
        found.condition, found.diffusion = condition, condition.ready()
        return found

    return make


def views(core, elevations=0.0, azimuths=(0.0, 90.0, 180.0)):
    return core("microdreamer_core.cameras").orbit_cameras(elevations, torch.tensor(azimuths), 2.0, 49.1, SIZE)


def noise(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def predicted_noise(diffusion, latents, t, conditioning, guidance_scale):
    """The ε that our clean estimate implies (Eq. 2)."""
    alpha, sigma = diffusion.process.alpha_sigma(t)
    return (latents - alpha * diffusion.denoised(latents, t, conditioning, guidance_scale)) / sigma


def plain_eps(calls, diffusion, x, t, context, **values):
    """ε of a plain call of the UNet on α x; of v for the model types that predict it."""
    with torch.inference_mode():
        return calls.plain(x, torch.full((len(x),), float(t)), context=context, **values).clone()


# --- the noise prediction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, model_type", [("sd", "EPS"), ("sd", "V_PREDICTION"), ("sdxl", "EPS")])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 7.5])
def test_noise_is_that_of_plain_calls_of_the_network(core, conditioned, kind, model_type, guidance):
    found = conditioned(kind, model_type)
    diffusion, calls, t = found.diffusion, found.calls, 500
    latents = noise(3, *diffusion.latent_shape)
    conditioning = diffusion.condition(views(core))
    (branches,) = conditioning
    calls.seen.clear()
    eps = predicted_noise(diffusion, latents, t, conditioning, guidance)
    (call,) = calls.seen
    rows = {0.0: [1], 1.0: [0], 7.5: [1, 0]}[guidance]
    assert call.branches == rows and len(call.x) == 3 * len(rows) and set(call.t) == {float(t)}
    assert diffusion.evaluations == 3 * len(rows)
    assert found.condition.diffusion.evaluations == 0
    assert not eps.is_inference() and not eps.requires_grad
    torch.testing.assert_close(call.x[:3], latents, atol=1e-6, rtol=1e-6)

    tokens = {0: branches.positive[0][0], 1: branches.negative[0][0].expand(3, -1, -1)}
    out = {}
    for row, branch in enumerate(rows):
        values = {} if call.y is None else {"y": call.y[3 * row : 3 * row + 3]}
        assert torch.equal(call.context[3 * row : 3 * row + 3], tokens[branch])
        out[branch] = plain_eps(calls, diffusion, latents, t, tokens[branch], **values)
    expected = out[rows[0]] if len(rows) == 1 else out[1] + guidance * (out[0] - out[1])
    alpha, sigma = diffusion.process.alpha_sigma(t)
    if model_type == "V_PREDICTION":
        expected = alpha * expected + sigma * latents
    assert float(expected.abs().mean()) > 0.01
    torch.testing.assert_close(eps, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("t", [1, 51, 901, 999])
def test_the_network_is_asked_at_the_very_time(core, conditioned, t):
    found = conditioned()
    diffusion = found.diffusion
    latents, branches = noise(1, *diffusion.latent_shape), diffusion.condition(views(core, azimuths=(0.0,)))
    eps = predicted_noise(diffusion, latents, t, branches, 0.0)
    assert found.calls.seen[-1].t == [float(t)]
    expected = plain_eps(found.calls, diffusion, latents, t, branches[0].negative[0][0])
    torch.testing.assert_close(eps, expected, atol=1e-5, rtol=1e-4)


def test_the_noise_schedule_is_that_of_stable_diffusion(core, conditioned):
    diffusion = conditioned().diffusion
    found = diffusion.process.alphas_cumprod
    assert found.dtype == torch.float64 and len(found) == 1000 and diffusion.process.is_stable_diffusion
    expected = core("microdreamer_core.diffusion.noise").scaled_linear_alphas_cumprod()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert diffusion.latent_shape == (4, 8, 8) and diffusion.view_count.group is None


@pytest.mark.parametrize("linked", ["nothing", "euler"])
def test_ddim_equals_the_hosts_own_euler(core, comfy, conditioned, linked):
    """Both from the same noised latents over the same noise levels: through our loop, and through the host's alone."""
    found = conditioned()
    diffusion, ddim = found.diffusion, core("microdreamer_core.diffusion.ddim")
    samplers, process = importlib.import_module("comfy.samplers"), diffusion.process
    conditioning, path = diffusion.condition(views(core)), core("microdreamer_core.diffusion.timesteps").sampling_path(601, 5)
    start = noise(3, *diffusion.latent_shape)

    def guided(x, t):
        return diffusion.denoised(x, t, conditioning, 7.5)

    if linked == "nothing":
        ours = ddim.sample(start, path, guided, process)
    else:
        sampler = core("nodes.native").NativeSampler(samplers.ksampler("euler"))
        ours = sampler(guided, start, path, process, torch.Generator().manual_seed(0))
    sigmas = process.sigmas[[*path, 0]].float()
    with torch.inference_mode():
        ve = start * (1 + sigmas[0] ** 2).sqrt()
        options = {"latent_image": torch.zeros_like(ve), "disable_pbar": True, "seed": 0}
        conds = conditioning[0].positive, conditioning[0].negative
        sample = importlib.import_module("comfy.sample").sample_custom
        sampled = sample(found.patcher, ve / sigmas[0], 7.5, samplers.ksampler("euler"), sigmas, *conds, **options)
        native_result = found.patcher.get_model_object("latent_format").process_in(sampled) * process.alpha_sigma(0)[0]
    assert float(native_result.abs().mean()) > 0.1
    torch.testing.assert_close(ours, native_result.clone(), atol=2e-4, rtol=2e-4)


def test_a_weight_patch_counts(core, conditioned, run, vae):
    """What LoRA loaders do: a clone of the MODEL with patches, and weights that the host patches when it loads it."""
    found = conditioned()
    model = found.patcher.clone()
    name = "diffusion_model.out.2.weight"
    weight = dict(found.patcher.model.named_parameters())[name]
    patched = model.add_patches({name: ("diff", (torch.full(weight.shape, 0.05),))}, 1.0)
    assert patched == [name]
    loaded = run("ModelFromComfyUI", model=model, vae=vae, clip=found.clip, image_size=SIZE)[0]
    other = run("ConditionOnPrompt", model=loaded, prompt=PROMPT, negative="blurry")[0].ready()
    latents, cameras = noise(2, *other.latent_shape), views(core, azimuths=(0.0, 180.0))

    def estimate(diffusion):
        return diffusion.denoised(latents, 300, diffusion.condition(cameras), 3.0)

    before, changed, after = estimate(found.diffusion), estimate(other), estimate(found.diffusion)
    assert float((changed - before).abs().max()) > 0.01
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)


def test_an_interrupt_stops_within_a_call(core, conditioned):
    mm = importlib.import_module("comfy.model_management")
    found = conditioned()
    diffusion = found.diffusion
    branches = diffusion.condition(views(core))
    found.calls.seen.clear()
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        predicted_noise(diffusion, noise(3, *diffusion.latent_shape), 300, branches, 3.0)
    assert diffusion.evaluations == 0 and not found.calls.seen
    predicted_noise(diffusion, noise(3, *diffusion.latent_shape), 300, branches, 3.0)
    assert diffusion.evaluations == 6


# --- pictures and latents ------------------------------------------------------------------------------------------------


def test_pictures_and_latents_have_the_hosts_scale(conditioned, vae):
    diffusion = conditioned().diffusion
    images = torch.rand(2, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    latents = diffusion.encode(images)
    assert latents.shape == (2, *diffusion.latent_shape) and not latents.is_inference()
    with torch.inference_mode():
        torch.testing.assert_close(latents, vae.encode(images).clone() * 0.18215)
    back = diffusion.decode(latents)
    assert back.shape == images.shape and not back.is_inference()
    assert float(back.min()) >= 0 and float(back.max()) <= 1
    with torch.inference_mode():
        torch.testing.assert_close(back, vae.decode(latents / 0.18215).clone())


def test_gradients_pass_through_the_encoder(conditioned):
    diffusion = conditioned().diffusion
    images = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    direction = noise(*images.shape) * 1e-2
    learning = images.clone().requires_grad_()
    weights = noise(1, *diffusion.latent_shape, seed=9)
    latents = diffusion.encode(learning)
    torch.testing.assert_close(latents.detach(), diffusion.encode(images), atol=1e-6, rtol=1e-5)
    (latents * weights).sum().backward()
    ahead, behind = (float((diffusion.encode(images + s * direction) * weights).sum()) for s in (1, -1))
    slope = float((learning.grad * direction).sum())
    assert abs(slope) > 1e-5
    assert slope == pytest.approx((ahead - behind) / 2, rel=2e-2)


def test_a_foreign_vae_cannot_learn_and_says_so(core, conditioned, vae):
    native_model = core("nodes.native_model")
    with pytest.raises(ValueError, match="SimpleNamespace cannot pass gradients on; set the plan's loss_space to pixel"):
        native_model._differentiable_encode(SimpleNamespace(encode=vae.encode), torch.rand(1, 8, 8, 3), False)


# --- conditioning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elevation, azimuth", [(0.0, 0.0), (20.0, 60.0), (-30.0, -100.0)])
def test_zero123_is_told_what_the_hosts_own_node_tells_it(core, conditioned, picture, vae, clip_vision, elevation, azimuth):
    """The host's node takes the reference to be at eye level and front, elevations positive above and azimuths to the right."""
    node = importlib.import_module("comfy_extras.nodes_stable3d").StableZero123_Conditioning
    with torch.inference_mode():
        arguments = {"init_image": picture["image"], "vae": vae, "width": SIZE, "height": SIZE, "batch_size": 1}
        output = node.execute(clip_vision, **arguments, elevation=elevation, azimuth=azimuth)
    positive, negative = output.args[:2] if hasattr(output, "args") else output[:2]
    found = conditioned("zero123")
    cameras = views(core, torch.tensor([elevation, 10.0]), (azimuth, 45.0))
    (branches,) = found.diffusion.condition(cameras)
    tokens, values = branches.positive[0]
    assert tokens.shape == (2, 1, 772)
    torch.testing.assert_close(tokens[:1], positive[0][0].clone(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(values["concat_latent_image"], positive[0][1]["concat_latent_image"].clone())
    assert torch.equal(branches.negative[0][0], negative[0][0])
    assert torch.equal(branches.negative[0][1]["concat_latent_image"], negative[0][1]["concat_latent_image"])


def test_zero123_sees_every_camera_in_one_batch(core, conditioned):
    found = conditioned("zero123", elevation=15.0)
    diffusion, model = found.diffusion, found.patcher.model
    latents, branches = noise(3, *diffusion.latent_shape), diffusion.condition(views(core, 15.0))
    found.calls.seen.clear()
    eps = predicted_noise(diffusion, latents, 500, branches, 3.0)
    (call,) = found.calls.seen
    assert call.x.shape == (6, 8, 8, 8) and call.context.shape == (6, 1, 768) and diffusion.evaluations == 6
    tokens, values = branches[0].positive[0]
    camera = tokens[0, 0, 768:]
    torch.testing.assert_close(camera, torch.tensor([0.0, 0.0, 1.0, torch.deg2rad(torch.tensor(75.0))]), atol=1e-6, rtol=1e-6)
    with torch.inference_mode():
        context = model.cc_projection(tokens)
        beside = values["concat_latent_image"].expand(3, -1, -1, -1)
        conditional = plain_eps(found.calls, diffusion, torch.cat([latents, beside], 1), 500, context)
        alone = torch.cat([latents, torch.zeros_like(latents)], 1)
        unconditional = plain_eps(found.calls, diffusion, alone, 500, torch.zeros(3, 1, 768))
    assert float((conditional[0] - conditional[1]).abs().max()) > 1e-3
    torch.testing.assert_close(eps, unconditional + 3.0 * (conditional - unconditional), atol=1e-5, rtol=1e-5)


def test_sv3d_is_told_what_the_hosts_own_node_tells_it(core, conditioned, picture, vae, clip_vision):
    """Five frames at elevation 20: the host's begin and end at the reference, whose own view is the last one here."""
    node = importlib.import_module("comfy_extras.nodes_stable3d").SV3D_Conditioning
    with torch.inference_mode():
        output = node.execute(clip_vision, picture["image"], vae, SIZE, SIZE, 5, 20.0)
    positive, negative = output.args[:2] if hasattr(output, "args") else output[:2]
    (branches,) = conditioned("sv3d_p").diffusion.condition(views(core, 20.0, (270.0, 0.0, 90.0, 180.0)))
    assert branches.rows == (2, 3, 0, 1)
    for ours, theirs in ((branches.positive, positive), (branches.negative, negative)):
        (tokens, values), (expected, others) = ours[0], theirs[0]
        torch.testing.assert_close(tokens, expected.clone())
        torch.testing.assert_close(values["concat_latent_image"], others["concat_latent_image"].clone())
        assert values["azimuth"][:3] == pytest.approx(others["azimuth"][1:4]) and values["azimuth"][3] == 0
        assert values["elevation"] == pytest.approx(others["elevation"][1:])


def test_the_angles_of_sv3d_are_where_its_authors_draw_them(core, conditioned):
    """Their plot has the reference on +x and z up; ours is on +z with y up. A camera on the right is at 90 degrees."""
    elevations, azimuths = torch.tensor([0.0, 20.0, -30.0, 10.0]), (0.0, 90.0, 200.0, -45.0)
    cameras = views(core, elevations, azimuths)
    (branches,) = conditioned("sv3d_p").diffusion.condition(cameras)
    angles = branches.positive[0][1]
    e, a = (torch.deg2rad(torch.tensor(angles[name])) for name in ("elevation", "azimuth"))
    drawn = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], 1)
    at = cameras.c2w[list(branches.rows), :3, 3] / 2.0
    torch.testing.assert_close(drawn, at[:, [2, 0, 1]].to(drawn), atol=1e-6, rtol=1e-6)
    right = list(branches.rows).index(1)
    assert float(at[right, 0]) > 0.9 and angles["azimuth"][right] == 90


def test_frames_of_sv3d_are_denoised_together_in_the_order_of_a_turn(core, conditioned):
    """Estimates belong to cameras, in whatever order these come; each depends on all frames; the result is the host's."""
    found, order = conditioned("sv3d_p"), [3, 1, 0, 2]
    diffusion, cameras = found.diffusion, views(core, torch.tensor([0.0, 30.0, -10.0, 5.0]), (10.0, 100.0, 190.0, 280.0))
    latents = noise(4, *diffusion.latent_shape)

    def estimate(rig, x, guidance=4.0):
        return diffusion.denoised(x, 500, diffusion.condition(rig), guidance)

    before = estimate(cameras, latents)
    torch.testing.assert_close(estimate(cameras[order], latents[order]), before[order], atol=1e-5, rtol=1e-5)
    other = latents.clone()
    other[2] += noise(*diffusion.latent_shape, seed=9)
    change = (estimate(cameras, other) - before).abs().amax((1, 2, 3))
    assert float(change.min()) > 1e-4
    known = found.calls.seen[-1].y
    estimate(views(core, torch.tensor([0.0, 30.0, -10.0, 5.0]), (10.0, 110.0, 190.0, 280.0)), latents)
    assert (found.calls.seen[-1].y != known).any(1).tolist() == [False, True, False, False] * 2, "each frame has its camera"
    (branches,) = diffusion.condition(cameras)
    level = diffusion.process.sigmas[[500]].float()
    with torch.inference_mode():
        sample = importlib.import_module("comfy.sample").sample_custom
        euler = importlib.import_module("comfy.samplers").ksampler("euler")
        sigmas = torch.cat([level, torch.zeros(1)])
        x = latents * float(diffusion.process.scales[500]) / level
        options = {"latent_image": torch.zeros_like(x), "disable_pbar": True, "seed": 0}
        got = sample(found.patcher, x, 4.0, euler, sigmas, branches.positive, branches.negative, **options)
        got = found.patcher.get_model_object("latent_format").process_in(got)
    torch.testing.assert_close(before, got.clone(), atol=1e-4, rtol=1e-4)
    assert diffusion.evaluations == 4 * 4 * 2 and found.loaded.model.takes_prompt is False


def test_the_original_zero123_is_told_a_distance(core, made, run, picture):
    loaded = made("zero123", zero123="original").loaded
    condition = run("ConditionOnImage", model=loaded, **picture, elevation=15.0)[0]
    tokens = condition.diffusion.condition(views(core, 15.0))[0].positive[0][0]
    assert torch.equal(tokens[:, 0, -1], torch.zeros(3))


def test_each_view_has_its_words(core, conditioned):
    found = conditioned()
    cameras = views(core, torch.tensor([0.0, 10.0, 0.0, 75.0]), (10.0, -90.0, 180.0, 0.0))
    ((branches, *others),) = [found.diffusion.condition(cameras)]
    assert not others and branches.rows == (0, 1, 2, 3)
    tokens, values = branches.positive[0]
    expected = [f"{PROMPT}, {word}" for word in ("front view", "side view", "back view", "overhead view")]
    assert set(found.clip.texts) == {*expected, "blurry"} and len(found.clip.texts) == 5
    for view, text in enumerate(expected):
        encoded, pooled = Clip().encode_from_tokens_scheduled(text)[0]
        assert torch.equal(tokens[view], encoded[0])
        assert torch.equal(values["pooled_output"][view], pooled["pooled_output"][0])


def test_without_view_words_all_views_share_the_prompt(core, conditioned):
    found = conditioned(view_words=False)
    assert found.clip.texts == [PROMPT, "blurry"]
    assert found.diffusion.condition(views(core))[0].positive[0][0].shape == (1, 77, 768)


def test_the_hosts_own_text_encoder_is_understood(core, made, run):
    """A real CLIP object with its tokenizer, of one small layer."""
    clip_model, sd = importlib.import_module("comfy.sd1_clip"), importlib.import_module("comfy.sd")
    target = SimpleNamespace(params={}, clip=clip_model.SD1ClipModel, tokenizer=clip_model.SD1Tokenizer)
    options = {"clip_l_model_config": {"num_hidden_layers": 1, "intermediate_size": 64}}
    with torch.inference_mode():
        clip = sd.CLIP(target, model_options={**options, "dtype": torch.float32})
        randomise(clip.cond_stage_model, 4)
    loaded = made(clip=clip).loaded
    diffusion = run("ConditionOnPrompt", model=loaded, prompt=PROMPT, negative="blurry")[0].ready()
    conditioning = diffusion.condition(views(core))
    (branches,) = conditioning
    with torch.inference_mode():
        texts = [f"{PROMPT}, {word} view" for word in ("front", "side", "back")]
        tokens = [clip.encode_from_tokens(clip.tokenize(text)) for text in (*texts, "blurry")]
    torch.testing.assert_close(branches.positive[0][0], torch.cat(tokens[:3]))
    torch.testing.assert_close(branches.negative[0][0], tokens[3])
    assert float((tokens[0] - tokens[1]).abs().max()) > 1e-3
    assert predicted_noise(diffusion, noise(3, *diffusion.latent_shape), 400, conditioning, 7.5).isfinite().all()


def test_texts_of_different_lengths_are_asked_apart(core, made, run):
    """None is repeated: attention over text and image together would weigh it twice. Evaluations are counted as ever."""
    found = made()
    long = "x" * 62  # with ", front view" below 77 characters, with ", overhead view" above
    diffusion = run("ConditionOnPrompt", model=found.loaded, prompt=long)[0].ready()
    conditioning = diffusion.condition(views(core, torch.tensor([0.0, 80.0, 10.0]), (0.0, 0.0, 20.0)))
    assert [(group.rows, group.positive[0][0].shape) for group in conditioning] == [
        ((0, 2), (2, 77, 768)),
        ((1,), (1, 154, 768)),
    ]
    latents = noise(3, *diffusion.latent_shape)
    eps = predicted_noise(diffusion, latents, 400, conditioning, 1.0)
    assert diffusion.evaluations == 3
    for view, word in enumerate(("front", "overhead", "front")):
        tokens = Clip().encode_from_tokens_scheduled(f"{long}, {word} view")[0][0]
        expected = plain_eps(found.calls, diffusion, latents[view : view + 1], 400, tokens)
        torch.testing.assert_close(eps[view : view + 1], expected, atol=1e-5, rtol=1e-5)


def test_native_conditioning_is_taken_as_it_is(core, made, run, picture):
    found = made()
    positive, negative = ([[noise(1, 77, 768, seed=seed), {}]] for seed in (1, 2))
    condition = run("ConditionFromComfyUI", model=found.loaded, positive=positive, negative=negative)[0]
    assert condition.reference is None
    (branches,) = condition.ready().condition(views(core))
    assert branches.positive is positive and branches.negative is negative
    inputs = {"positive": positive, "negative": negative, **picture, "elevation": 5.0}
    assert run("ConditionFromComfyUI", model=found.loaded, **inputs)[0].reference.elevation == 5.0


def test_a_controlnet_counts_as_in_the_hosts_own_sampling(core, comfy, made, run):
    """Through Apply ControlNet of the host: our ε against one Euler step of its own down to x0."""
    found, mm = made(), importlib.import_module("comfy.model_management")
    control, operations = importlib.import_module("comfy.controlnet"), importlib.import_module("comfy.ops").manual_cast
    unet = {name: value for name, value in UNET.items() if name not in ("out_channels", "transformer_depth_output")}
    with torch.inference_mode():
        network = importlib.import_module("comfy.cldm.cldm").ControlNet(**unet, hint_channels=3, operations=operations)
        control_net = control.ControlNet(randomise(network, 6), load_device=mm.get_torch_device())
        apply = importlib.import_module("nodes").ControlNetApplyAdvanced().apply_controlnet
        texts = ([[noise(1, 77, 768, seed=seed), {}]] for seed in (1, 2))
        positive, negative = apply(*texts, control_net, torch.rand(3, SIZE, SIZE, 3), 1.0, 0.0, 1.0)
    diffusion = run("ConditionFromComfyUI", model=found.loaded, positive=positive, negative=negative)[0].ready()
    t, latents = 500, noise(3, *diffusion.latent_shape)
    alpha, sigma = diffusion.process.alpha_sigma(t)
    found.calls.seen.clear()
    eps = predicted_noise(diffusion, latents, t, diffusion.condition(views(core)), 4.0)
    assert len(found.calls.seen) == 1
    level = sigma / alpha
    with torch.inference_mode():
        sigmas, euler = torch.tensor([level, 0.0]), importlib.import_module("comfy.samplers").ksampler("euler")
        sample = importlib.import_module("comfy.sample").sample_custom
        start, conds = latents / alpha, (positive, negative)
        options = {"latent_image": torch.zeros_like(latents), "disable_pbar": True, "seed": 0}
        clean = sample(found.patcher, start / level, 4.0, euler, sigmas, *conds, **options) * 0.18215
    torch.testing.assert_close(eps, (start - clean.clone()) / level, atol=1e-4, rtol=1e-4)
    plain = run("ConditionFromComfyUI", model=found.loaded, positive=[[positive[0][0], {}]], negative=[[negative[0][0], {}]])[0]
    other = predicted_noise(plain.ready(), latents, t, plain.diffusion.condition(views(core)), 4.0)
    assert float((other - eps).abs().max()) > 0.01


# --- whole runs ----------------------------------------------------------------------------------------------------------


def tiny_plan(core, **changes):
    plan = core("microdreamer_core.sir.presets").get_plan("stable-zero123-gaussians")
    numbers = {"iterations": 1, "steps": 2, "init_steps": 2, "views": 2, "discretization": 3, "image_size": SIZE}
    return replace(plan, **{**numbers, **changes})


@pytest.mark.parametrize("kind", ["zero123", "sd"])
@pytest.mark.parametrize("changes", [{}, {"loss_space": "latent"}], ids=["pixel", "latent"])
def test_generate_makes_a_field(core, conditioned, run, kind, changes):
    found, plan = conditioned(kind), tiny_plan(core, **changes)
    start = run("NewGaussians", model=found.loaded, num_points=60)[0]
    field, sheet, report = run("Generate", condition=found.condition, plan=plan, field=start).args
    assert field.k == 0 and len(field.field) > 0 and sheet.shape[-1] == 3
    assert f"{plan.evaluations().total} evaluations" in report.splitlines()[-1]
    again = run("Generate", condition=found.condition, plan=plan, field=start)[0]
    assert torch.equal(again.field.parameters.means, field.field.parameters.means)
    assert not torch.equal(field.field.parameters.means[:10], start.field.parameters.means[:10])


def test_stages_and_saved_states_do_without_a_picture(core, conditioned, run, tmp_path):
    found, plan = conditioned(), tiny_plan(core)
    start = run("NewGaussians", model=found.loaded, num_points=60)[0]
    cameras = run("SampleCameras", field=start, plan=plan, condition=found.condition)[0]
    images = torch.rand(2, SIZE, SIZE, 3)
    after = run("ReconstructSteps", field=start, cameras=cameras, images=images, condition=found.condition)[0]
    assert after.k == -1
    states = core("nodes.states")
    saved = states.save_field(tmp_path / "run.state.safetensors", after, found.condition, plan)
    assert states.load_field(saved, "cpu").k == -1


def test_condition_on_both_adds_the_reference(made, run, picture):
    condition = run("ConditionOnBoth", model=made().loaded, **picture, prompt=PROMPT, elevation=10.0)[0]
    assert condition.reference.elevation == 10.0


# --- errors --------------------------------------------------------------------------------------------------------------


def test_processes_without_noise_are_refused_with_the_reason(run, vae):
    model, _ = native(model_type="IMG_TO_IMG")
    with pytest.raises(ValueError, match=r"Model from ComfyUI: .*got BaseModel: it turns one picture into another"):
        run("ModelFromComfyUI", model=model, vae=vae)


@pytest.mark.parametrize(
    "kind, reason",
    [("SVD_img2vid", "frames of a video"), ("WAN21", "frames of a video"), ("StableCascade_C", "one half of a cascade")],
)
def test_what_is_no_image_model_is_refused_with_the_reason(run, vae, kind, reason):
    model, _ = native()
    model.model.__class__ = type(kind, (type(model.model),), {})
    with pytest.raises(ValueError, match=rf"Model from ComfyUI: .*got {kind}: it .*{reason}.*load another"):
        run("ModelFromComfyUI", model=model, vae=vae)


def test_sizes_are_the_models_own(made):
    sizes = {"zero123": 256, "sd": 512, "sdxl": 1024}
    assert {kind: made(kind, image_size=0).loaded.model.image_size for kind in sizes} == sizes
    with pytest.raises(ValueError, match="BaseModel must be a multiple of 64, got 100"):
        made(image_size=100)


def test_what_is_missing_is_named(made, run, vae, picture):
    zero123, sd = made("zero123").loaded, made().loaded
    blind = run("ModelFromComfyUI", model=native("zero123")[0], vae=vae)[0]
    mute = run("ModelFromComfyUI", model=native()[0], vae=vae)[0]
    with pytest.raises(ValueError, match="Condition on Image: Stable_Zero123 encodes the reference with CLIP_VISION"):
        run("ConditionOnImage", model=blind, **picture)
    with pytest.raises(ValueError, match="Condition on Prompt: Stable_Zero123 needs a reference picture and takes no prompt"):
        run("ConditionOnPrompt", model=zero123, prompt=PROMPT)
    with pytest.raises(ValueError, match="Condition on Both: Stable_Zero123 .* takes no prompt, got a prompt"):
        run("ConditionOnBoth", model=zero123, **picture, prompt=PROMPT)
    with pytest.raises(ValueError, match="Condition on Prompt: A prompt needs a text encoder, got none; link .*CLIP"):
        run("ConditionOnPrompt", model=mute, prompt=PROMPT)
    with pytest.raises(ValueError, match="Condition on Image: BaseModel takes a prompt, got a picture alone"):
        run("ConditionOnImage", model=sd, **picture)
    with pytest.raises(ValueError, match="Condition on Prompt: The embedded checkpoint needs a reference picture"):
        run("ConditionOnPrompt", model=run("LoadModel", checkpoint="embedded")[0], prompt=PROMPT)
    with pytest.raises(ValueError, match="Condition from ComfyUI: Native CONDITIONING needs a native model, got 'embedded'"):
        run("ConditionFromComfyUI", model=run("LoadModel", checkpoint="embedded")[0], positive=[], negative=[])
    with pytest.raises(ValueError, match="needs image and mask, got one of them"):
        run("ConditionFromComfyUI", model=sd, positive=[], negative=[], image=picture["image"])
    other = SimpleNamespace(latent_channels=16, latent_dim=2, spacial_compression_encode=lambda: 8)
    with pytest.raises(ValueError, match="4 channels, 2 axes and 8 pixels a side, got a VAE of 16 channels"):
        run("ModelFromComfyUI", model=native()[0], vae=other)
    with pytest.raises(ValueError, match="zero123 must be one of stable, original"):
        made("zero123", zero123="xl")
