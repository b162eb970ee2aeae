"""Any image model of the host in SIR: tiny random models of its classes, from the noise process to a mesh."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_native import KINDS, Clip, StubVae, image_model, patcher, run_stages, stub_model

SIZE, PROMPT = 64, "a red box"
AZIMUTHS = (0.0, 90.0, 180.0)


@pytest.fixture(scope="module")
def conditioned(run, comfy):
    """``conditioned(kind)``: (patcher, loaded, condition) of a tiny model, made once."""
    made = {}

    def make(kind):
        if kind not in made:
            model, vae, clip = image_model(kind)
            loaded = run("ModelFromComfyUI", model=model, vae=vae, clip=clip, image_size=SIZE)[0]
            condition = run("ConditionOnPrompt", model=loaded, prompt=PROMPT, negative="blurry")[0]
            made[kind] = SimpleNamespace(patcher=model, loaded=loaded, condition=condition)
        return made[kind]

    return make


def views(core, azimuths=AZIMUTHS):
    return core("microdreamer_core.cameras").orbit_cameras(0.0, torch.tensor(azimuths), 2.0, 49.1, SIZE)


def noise(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hosts_result(found, conditioning, x, sigmas, sampler, guidance=4.0, seed=0):
    """The host's own sampling of plain noise ``x`` down to a clean latent, in the network's scale."""
    video = found.patcher.get_model_object("latent_format").latent_dimensions == 3
    x = x.unsqueeze(2) if video else x
    (branches,) = conditioning
    with torch.inference_mode():
        sample = importlib.import_module("comfy.sample").sample_custom
        options = {"latent_image": torch.zeros_like(x), "disable_pbar": True, "seed": seed}
        got = sample(found.patcher, x, guidance, sampler, sigmas, branches.positive, branches.negative, **options)
        got = found.patcher.get_model_object("latent_format").process_in(got)
    return (got[:, :, 0] if video else got).clone()


@pytest.mark.parametrize("linked", ["nothing", "euler", "euler with SIGMAS"])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim_from_pure_noise_equals_the_hosts_euler(core, conditioned, report, kind, linked):
    """Over the same levels: our loop in the variance-preserving scale, and the host's alone in the model's own."""
    found = conditioned(kind)
    diffusion, euler = found.condition.ready(), importlib.import_module("comfy.samplers").ksampler("euler")
    process, conditioning = diffusion.process, diffusion.condition(views(core))
    path, x = (999, 749, 499, 249), noise(3, *diffusion.latent_shape)
    sigmas = torch.cat([process.sigmas[list(path)].float(), torch.zeros(1)])
    if process.is_stable_diffusion and linked != "euler with SIGMAS":
        sigmas[-1] = process.sigmas[0]

    def guided(x, t):
        return diffusion.denoised(x, t, conditioning, 4.0)

    if linked == "nothing":
        ours = core("microdreamer_core.diffusion.ddim").sample(x, path, guided, process)
    else:
        given = sigmas if linked == "euler with SIGMAS" else None
        ours = core("nodes.native").NativeSampler(euler, given)(guided, x, path, process, torch.Generator())
    expected = hosts_result(found, conditioning, x, sigmas, euler) / process.scale_at(sigmas[-1])
    error = float((ours - expected).abs().max() / expected.abs().max())
    report(f"DDIM against the host's euler, {kind}, {linked}: {error:.1e}")
    assert float(expected.abs().mean()) > 0.1 and error < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_noisy_latent_is_the_hosts(core, conditioned, kind):
    """Eq. 1 in our scale is ``noise_scaling`` in the host's; the clean estimate is the network's at that very level."""
    process = conditioned(kind).condition.ready().process
    x0, eps = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=5)
    for t in (100, 500, 998):
        sigma = process.sigmas[[t]].float()
        with torch.inference_mode():
            expected = process.sampling.noise_scaling(sigma, eps.clone(), x0.clone()).clone()
        got = core("microdreamer_core.diffusion.ddim").add_noise(x0, t, eps, process) * float(process.scales[t])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert process.time_of(sigma[0]) in (t, *range(t - 20, t + 20)[:: 1 if kind == "lcm" else 40])


@pytest.mark.parametrize("kind", ["sd", "sd3", "qwen", "v_edm", "lcm"])
@pytest.mark.parametrize("name", ["euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "uni_pc"])
def test_the_hosts_samplers_give_what_they_give_there(core, conditioned, kind, name):
    """They find the model's own ``model_sampling``, by which they tell flow from other processes, and their own noise."""
    found, sampler = conditioned(kind), importlib.import_module("comfy.samplers").sampler_object(name)
    diffusion = found.condition.ready()
    process, conditioning = diffusion.process, diffusion.condition(views(core))
    path, x = (999, 799, 599, 399, 199), noise(3, *diffusion.latent_shape)
    sigmas = torch.cat([process.sigmas[list(path)].float(), torch.zeros(1)])

    def guided(x, t):
        return diffusion.denoised(x, t, conditioning, 4.0)

    ours = core("nodes.native").NativeSampler(sampler, sigmas)(guided, x, path, process, torch.Generator().manual_seed(1))
    seed = int(torch.randint(0, 2**31, (), generator=torch.Generator().manual_seed(1)))
    expected = hosts_result(found, conditioning, x, sigmas, sampler, seed=seed)
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-4


def test_sigmas_are_in_the_models_own_scale(core, conditioned):
    """Those of a flow model are its times 0..1, not noise-to-signal ratios."""
    found = conditioned("sd3")
    diffusion, native = found.condition.ready(), core("nodes.native")
    process, euler = diffusion.process, importlib.import_module("comfy.samplers").ksampler("euler")
    seen, x = [], noise(1, *diffusion.latent_shape)

    def denoise(x, t):
        seen.append(float(process.sigmas[t]))
        return torch.zeros_like(x)

    native.NativeSampler(euler, torch.tensor([1.0, 0.95, 0.7, 0.3, 0.0]))(denoise, x, (800,), process, torch.Generator())
    assert seen == pytest.approx([float(process.sigmas[800]), 0.7, 0.3], abs=2e-3)
    with pytest.raises(ValueError, match="No SIGMAS lie below 0.924, the noise level of t2 = 800 in the model's scale"):
        native.NativeSampler(euler, torch.tensor([14.6]))(denoise, x, (800,), process, torch.Generator())
    with pytest.raises(ValueError, match="SIGMAS must fall from noise to 0, got rising ones"):
        native.choose_sampler(euler, torch.tensor([0.0, 0.3, 1.0]))


def test_pictures_of_a_video_autoencoder_go_one_by_one(conditioned):
    diffusion = conditioned("qwen").condition.ready()
    images = torch.rand(3, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1))
    latents = diffusion.encode(images)
    assert latents.shape == (3, 16, 8, 8) == (3, *diffusion.latent_shape)
    torch.testing.assert_close(diffusion.encode(images[1:2]), latents[1:2])
    back = diffusion.decode(latents)
    assert back.shape == images.shape
    torch.testing.assert_close(diffusion.decode(latents[1:2]), back[1:2], rtol=1e-4, atol=1e-4)
    learning = images.clone().requires_grad_()
    with torch.enable_grad():
        again = diffusion.encode(learning)
        torch.testing.assert_close(again.detach(), latents, rtol=1e-4, atol=1e-4)
        again.sum().backward()
    assert float(learning.grad.abs().max()) > 0


def test_a_distilled_table_is_asked_at_its_own_levels(core, conditioned):
    """LCM knows 50 of the 1000 times; ours take the nearest, and pure noise enters at the last."""
    process = conditioned("lcm").condition.ready().process
    assert not process.is_stable_diffusion and len(set(process.sigmas.tolist())) == 50
    with torch.inference_mode():
        asked = [int(process.sampling.timestep(process.sigmas[[t]].float())) for t in (249, 499, 749, 999)]
    assert asked == [239, 499, 759, 999]


# --- whole runs ----------------------------------------------------------------------------------------------------------


def tiny_plan(core, preset="imagedream-gaussians", **changes):
    plan = core("microdreamer_core.sir.presets").get_plan(preset)
    numbers = {"iterations": 1, "steps": 2, "init_steps": 2, "views": 2, "discretization": 3, "image_size": SIZE}
    return replace(plan, **{**numbers, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_goes_all_the_way_to_a_mesh(core, conditioned, run, kind, tmp_path):
    """Generate and its stages give the same field, whose mesh is written as GLB."""
    found, plan = conditioned(kind), tiny_plan(core)
    start = run("NewGaussians", model=found.loaded, num_points=600)[0]
    fused, _, said = run("Generate", condition=found.condition, plan=plan, field=start).args
    assert f"{plan.evaluations().total} evaluations" in said.splitlines()[-1]
    process, (times,) = found.condition.diffusion.process, plan.times(0)
    (own,) = process.convert_times([times.t2], 8 / 32)
    both = f"t2 {times.t2} (the model's " if own != times.t2 else f"t2 {times.t2}, loss"
    assert both in said and (process.is_stable_diffusion or f"and {own}, noise-to-signal {process.level(own):.2g})" in said)
    field = run_stages(run, start, plan, found.condition)
    for ours, theirs in zip(field.field.parameters, fused.field.parameters, strict=True):
        assert torch.equal(ours, theirs)
    mesh = run("ExtractMesh", field=fused, resolution=32, target_faces=200)[0]
    written = core("microdreamer_core.io.glb").write_glb(tmp_path / "mesh.glb", core("nodes.types").from_native_mesh(mesh))
    assert written.read_bytes()[:4] == b"glTF"


@pytest.mark.parametrize("preset", ["few-step", "lcm"])
@pytest.mark.parametrize("kind", ["sd", "lcm", "zimage"])
def test_few_steps_ask_the_network_at_the_trained_times(core, conditioned, run, kind, preset):
    """From pure noise at T - 1 in one branch, and no inversion."""
    found = conditioned(kind)
    plan = tiny_plan(core, preset, discretization=4, iterations=2)
    start = run("NewGaussians", model=found.loaded, num_points=60)[0]
    asked, denoised = [], type(found.condition.diffusion).denoised

    def record(self, latents, t, conditioning, guidance_scale):
        asked.append((t, guidance_scale))
        return denoised(self, latents, t, conditioning, guidance_scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(found.condition.diffusion), "denoised", record)
        _, _, said = run("Generate", condition=found.condition, plan=plan, field=start).args
    first = [(999, 1.0), (749, 1.0), (499, 1.0), (249, 1.0)]
    assert asked == first + first[1:] + first[2:]
    assert f"{2 * len(asked)} evaluations" in said.splitlines()[-1] and plan.evaluations().total == 2 * len(asked)


# --- the classes of this host ----------------------------------------------------------------------------------------------


NOT_MADE = {"Stable_Zero123", "SV3D_p", "StableAudio", "StableAudio1", "StableAudio3"}
"""Configurations that need weights to make a model, or a picture: the first two have tests of their own."""


def test_every_image_model_of_this_host_runs_and_all_others_are_refused(core, comfy, report):
    configs, native_model = importlib.import_module("comfy.supported_models").models, core("nodes.native_model")
    ran, refused = [], []
    for config in configs:
        if config.__name__ in NOT_MADE:
            continue
        with torch.inference_mode():
            model = stub_model(config)
            try:
                native = native_model.NativeModel(
                    patcher(model), StubVae(model.latent_format), clip=Clip(64, 64, 20), image_size=256
                )
            except ValueError as error:
                assert f"got {type(model).__name__}: it " in str(error) and str(error).endswith("; load another checkpoint.")
                refused.append(config.__name__)
                continue
            diffusion = native.condition(prompt=PROMPT)
            conditioning, latents = diffusion.condition(views(core)), noise(3, *diffusion.latent_shape)
            for guidance in (0.0, 1.0, 4.0):
                clean = diffusion.denoised(latents, 700, conditioning, guidance)
                assert clean.shape == latents.shape and clean.isfinite().all(), config.__name__
            assert diffusion.encode(diffusion.decode(clean)).shape == latents.shape
        ran.append(config.__name__)
    report(f"{len(ran)} model classes of the host run, {len(refused)} are refused with a reason: {', '.join(refused)}")
    assert {"SD15", "SDXL", "SD3", "AuraFlow", "PixArtSigma", "Flux", "Flux2", "Chroma", "HiDream", "Lumina2"} < set(ran)
    assert {"ZImage", "QwenImage", "Omnigen2", "HunyuanImage21", "CosmosT2IPredict2"} < set(ran)
    assert {"SVD_img2vid", "Stable_Cascade_C", "WAN21_T2V", "LTXV", "ACEStep", "Hunyuan3Dv2", "LotusD"} < set(refused)
