"""Control networks of the host that are shown renders of the field: what they see, view by view, and that it counts."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_native import Recorder, control_network, image_model, model_patch, refiner_plan

SIZE = 64


@pytest.fixture(scope="module")
def made(run, comfy):
    model, vae, clip = image_model("sd")
    loaded = run("ModelFromComfyUI", model=model, vae=vae, clip=clip, image_size=SIZE)[0]
    condition = run("ConditionOnPrompt", model=loaded, prompt="a red box", negative="blurry")[0]
    return SimpleNamespace(loaded=loaded, condition=condition, field=run("NewGaussians", model=loaded, num_points=300)[0])


@pytest.fixture(scope="module")
def network(comfy):
    return control_network()


@pytest.mark.parametrize("hint", ["depth", "normal", "canny", "soft edge", "tile", "inpaint"])
def test_every_view_is_shown_its_own_render_of_the_current_field(core, run, made, hint):
    recorder, plan = Recorder(), refiner_plan(core)
    condition = run("ControlFromRenders", condition=made.condition, control_net=recorder, hint=hint)[0]
    start, _, _ = run("Generate", condition=condition, plan=replace(plan, iterations=0), field=made.field).args
    shown, hints = core("microdreamer_core.fields.protocol").WHITE, core("microdreamer_core.render.hints").HINTS
    recorder.seen.clear()
    run("Generate", condition=condition, plan=plan, field=start)
    cameras = run("SampleCameras", field=start, plan=plan, condition=condition)[0].cameras.resize(SIZE)
    expected = hints[hint](start.field.render(cameras, shown), cameras)
    assert recorder.seen and {rows for rows, _ in recorder.seen} <= {2, 4}
    for _, given in recorder.seen:
        torch.testing.assert_close(given, expected)
    if hint != "normal":
        assert float((expected[0] - expected[1]).abs().max()) > 0.05, "views differ"


def test_a_control_changes_what_is_learned_and_stages_equal_generate(core, run, made, network):
    plan = refiner_plan(core)
    condition = run("ControlFromRenders", condition=made.condition, control_net=network, strength=1.0)[0]
    fused = run("Generate", condition=condition, plan=plan, field=made.field)[0]
    without = run("Generate", condition=made.condition, plan=plan, field=made.field)[0]
    unused = run("ControlFromRenders", condition=made.condition, control_net=network, strength=0.0)[0]
    same = run("Generate", condition=unused, plan=plan, field=made.field)[0]
    assert not torch.equal(fused.field.parameters.means, without.field.parameters.means)
    assert torch.equal(same.field.parameters.means, without.field.parameters.means)
    field = made.field
    for _ in range(2):
        cameras = run("SampleCameras", field=field, plan=plan, condition=condition)[0]
        images = run("RenderViews", field=field, cameras=cameras)[0]
        latent = run("HybridForward", condition=condition, cameras=cameras, images=images)[0]
        refined = run("DDIMRefine", condition=condition, cameras=cameras, latent=latent)[0]
        field = run("ReconstructSteps", field=field, cameras=cameras, images=refined, condition=condition)[0]
    for ours, theirs in zip(field.field.parameters, fused.field.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_controls_add_up_and_a_mesh_takes_the_fields_place(core, run, made):
    first, second = Recorder(), Recorder()
    vertices = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]])
    mesh = core("nodes.types").to_native_mesh(core("microdreamer_core.mesh").Mesh(vertices, torch.tensor([[0, 1, 2]])))
    one = run("ControlFromRenders", condition=made.condition, control_net=first, hint="depth", mesh=mesh)[0]
    both = run("ControlFromRenders", condition=one, control_net=second, hint="tile", mesh=mesh)[0]
    cameras = core("microdreamer_core.cameras").orbit_cameras(0.0, torch.tensor([0.0, 40.0, 180.0]), 2.0, 49.1, SIZE)
    diffusion = both.ready()
    latents = torch.randn(3, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    for guidance in (0.0, 1.0, 4.0):
        diffusion.denoised(latents, 500, diffusion.condition(cameras), guidance)
    assert len(first.seen) == len(second.seen) == 3
    render = core("microdreamer_core.render.mesh").render_mesh
    for recorder, hint in ((first, "depth"), (second, "tile")):
        expected = core("microdreamer_core.render.hints").HINTS[hint](
            render(core("nodes.types").from_native_mesh(mesh), cameras), cameras
        )
        torch.testing.assert_close(recorder.seen[-1][1], expected)
    before = diffusion.evaluations
    assert before == 3 + 3 + 6 and both.diffusion.evaluations == 0


def test_views_with_longer_texts_see_their_own_hints(core, run, made):
    """Views that are denoised apart, because their texts differ in length, are shown their own renders."""
    recorder = Recorder()
    condition = run("ConditionOnPrompt", model=made.loaded, prompt="x" * 62)[0]
    condition = run("ControlFromRenders", condition=condition, control_net=recorder, hint="tile")[0]
    cameras = core("microdreamer_core.cameras").orbit_cameras(
        torch.tensor([0.0, 80.0, 0.0]), torch.tensor([0.0, 0.0, 180.0]), 2.0, 49.1, SIZE
    )
    diffusion = condition.ready()
    conditioning = diffusion.condition_on(cameras, made.field.field.render)
    diffusion.denoised(torch.zeros(3, *diffusion.latent_shape), 500, conditioning, 1.0)
    rendered = made.field.field.render(cameras).rgb.clamp(0, 1)
    assert [group.rows for group in conditioning] == [(0, 2), (1,)]
    assert torch.equal(recorder.seen[0][1], rendered[[0, 2]]) and torch.equal(recorder.seen[1][1], rendered[[1]])


def test_texture_refinement_and_sds_show_what_they_optimise(core, run, made):
    recorder, plan = Recorder(), refiner_plan(core)
    condition = run("ControlFromRenders", condition=made.condition, control_net=recorder, hint="tile")[0]
    run("SDSSteps", field=made.field, condition=condition, plan=plan, steps=1)
    assert len(recorder.seen) == 1


@pytest.mark.parametrize("hint", ["tile", "inpaint"])
@pytest.mark.parametrize("kind", ["qwen", "zimage"])
def test_a_model_patch_is_shown_one_render_a_view(core, run, made, kind, hint):
    """The estimate of each view is that of a model patched by the host's own node with that view's hint alone."""
    network = model_patch(kind, fills_in=hint == "inpaint")
    if network is None:
        pytest.skip("this ComfyUI has no Z-Image union network")
    model, vae, clip = image_model(kind)
    text = {"prompt": "x" * 62, "negative": "blurry"}  # long enough for texts of two lengths

    def conditioned(model):
        return run(
            "ConditionOnPrompt", **text, model=run("ModelFromComfyUI", model=model, vae=vae, clip=clip, image_size=SIZE)[0]
        )[0]

    usual = conditioned(model)
    condition = run("ControlFromRenders", condition=usual, control_net=network, hint=hint, strength=0.7)[0]
    cameras = core("microdreamer_core.cameras").orbit_cameras(
        torch.tensor([0.0, 80.0, 0.0]), torch.tensor([0.0, 0.0, 180.0]), 2.0, 49.1, SIZE
    )
    diffusion, plain, render = condition.ready(), usual.ready(), made.field.field.render
    latents = torch.randn(3, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = diffusion.condition_on(cameras, render)
    assert sorted(branches.rows for branches in conditioning) == [(0,), (1,), (2,)]
    got = diffusion.denoised(latents, 500, conditioning, 4.0)
    without = plain.denoised(latents, 500, plain.condition(cameras), 4.0)
    assert diffusion.evaluations == 6
    assert float((got - without).abs().amax((1, 2, 3)).min()) > 1e-3
    hints = core("microdreamer_core.render.hints").HINTS[hint](render(cameras), cameras)
    node = importlib.import_module("comfy_extras.nodes_model_patch").QwenImageDiffsynthControlnet()
    for view in range(3):
        shown = hints[[view]].clamp_min(0)
        given = {"image": shown}
        if hint == "inpaint":
            given = {"image": None, "inpaint_image": shown} if kind == "zimage" else given
            given["mask"] = (hints[[view], ..., 0] < 0).float()
        with torch.inference_mode():
            patched = node.diffsynth_controlnet(model, network, vae, strength=0.7, **given)[0]
        alone = conditioned(patched).ready()
        expected = alone.denoised(latents[[view]], 500, alone.condition(cameras[[view]]), 4.0)
        torch.testing.assert_close(got[[view]], expected, atol=1e-5, rtol=1e-5)
    outside = run("ControlFromRenders", condition=usual, control_net=network, hint=hint, end_percent=0.2)[0].ready()
    unpatched = outside.denoised(latents, 500, outside.condition_on(cameras, render), 4.0)
    torch.testing.assert_close(unpatched, without, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "wide"])
def test_a_network_of_another_family_is_named(core, run, made, kind):
    """Whatever it stumbles over: a control network of SD on SDXL and SD3, and one with wider texts on SD."""
    network = control_network(**({"context_dim": 1024} if kind == "wide" else {}))
    if kind == "wide":
        condition = made.condition
    else:
        model, vae, clip = image_model(kind)
        loaded = run("ModelFromComfyUI", model=model, vae=vae, clip=clip, image_size=SIZE)[0]
        condition = run("ConditionOnPrompt", model=loaded, prompt="a red box")[0]
    diffusion = run("ControlFromRenders", condition=condition, control_net=network)[0].ready()
    cameras = core("microdreamer_core.cameras").orbit_cameras(0.0, torch.tensor([0.0, 40.0]), 2.0, 49.1, SIZE)
    conditioning = diffusion.condition_on(cameras, made.field.field.render)
    with pytest.raises(ValueError, match="The control network is another family's than the model, got .*; load one that was"):
        diffusion.denoised(torch.zeros(2, *diffusion.latent_shape), 500, conditioning, 4.0)


def test_what_cannot_be_controlled_is_said(core, run, made):
    control = {"control_net": Recorder()}
    embedded = run("LoadModel", checkpoint="embedded")[0]
    image, mask = torch.ones(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE)
    image[:, 16:48, 20:44], mask[:, 16:48, 20:44] = 0.5, 1.0
    pictured = run("ConditionOnImage", model=embedded, image=image, mask=mask)[0]
    with pytest.raises(ValueError, match="Control from Renders: A CONTROL_NET needs a condition of Model from ComfyUI"):
        run("ControlFromRenders", condition=pictured, **control)
    with pytest.raises(ValueError, match="hint must be one of depth, normal, .*, got 'pose'"):
        run("ControlFromRenders", condition=made.condition, hint="pose", **control)
    with pytest.raises(ValueError, match=r"must begin before it ends, got 0\.8 to 0\.2"):
        run("ControlFromRenders", condition=made.condition, start_percent=0.8, end_percent=0.2, **control)
    condition, plan = run("ControlFromRenders", condition=made.condition, **control)[0], refiner_plan(core)
    cameras = run("SampleCameras", field=made.field, plan=plan, condition=made.condition)[0]
    latent = run("HybridForward", condition=made.condition, cameras=cameras, images=torch.rand(2, SIZE, SIZE, 3))[0]
    with pytest.raises(ValueError, match="renders the current field, got none; link the condition to Sample Cameras as well"):
        run("DDIMRefine", condition=condition, cameras=cameras, latent=latent)
