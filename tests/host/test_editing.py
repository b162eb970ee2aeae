"""Edit models: what their networks and text encoders are shown, view by view."""

from __future__ import annotations

import importlib

import pytest
import torch

from helpers.tiny_native import image_model, native

SIZE = 64


@pytest.fixture(scope="module")
def picture():
    image, mask = torch.ones(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE)
    image[:, 16:48, 20:44] = torch.tensor([0.8, 0.2, 0.2])
    mask[:, 16:48, 20:44] = 1
    return {"image": image, "mask": mask}


def made(run, kind):
    model, vae, clip = image_model(kind)
    loaded = run("ModelFromComfyUI", model=model, vae=vae, clip=clip, image_size=SIZE)[0]
    return loaded, model, vae, clip


def views(core, azimuths=(0.0, 50.0, 180.0)):
    return core("microdreamer_core.cameras").orbit_cameras(0.0, torch.tensor(azimuths), 2.0, 49.1, SIZE)


def spied(model):
    """The reference latents of every call of a network."""
    seen, plain = [], model.model.diffusion_model.forward

    def forward(*args, **values):
        seen.append([tuple(latent.shape) for latent in values.get("ref_latents") or ()])
        return plain(*args, **values)

    model.model.diffusion_model.forward = forward
    return seen


@pytest.mark.parametrize("kind", ["flux", "qwen"])
def test_every_view_has_its_words_and_the_reference(core, comfy, run, picture, kind):
    loaded, model, vae, clip = made(run, kind)
    condition = run("ConditionForEditing", model=loaded, **picture, prompt="on white", elevation=10.0)[0]
    assert condition.reference.elevation == 10.0
    diffusion, seen = condition.ready(), spied(model)
    conditioning = diffusion.condition(views(core))
    words = ("front view", "front-right quarter view", "back view")
    expected = [f"<sks> {word} eye-level shot medium shot, on white" for word in words]
    said = [text.split("<|vision_end|>")[-1] for text in clip.texts]
    assert said == ["", *expected]
    diffusion.condition(views(core))
    assert len(clip.texts) == 4, "every text is encoded once"
    assert bool(len(clip.images)) == (kind == "qwen")
    x = torch.randn(3, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    clean = [diffusion.denoised(x, 500, conditioning, guidance) for guidance in (0.0, 1.0, 4.0)]
    assert all(shapes and shapes[0][-2:] == shapes[0][-1:] * 2 for shapes in seen), "in both branches"
    if kind == "flux":
        assert {rows for ((rows, *_),) in seen} <= {3, 6}
    assert float((clean[0] - clean[1]).abs().max()) > 0


def test_the_reference_counts_and_the_words_too(core, comfy, run, picture):
    loaded, *_ = made(run, "flux")
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))

    def estimate(**changes):
        diffusion = run("ConditionForEditing", model=loaded, **{**picture, **changes})[0].ready()
        return diffusion.denoised(x, 500, diffusion.condition(views(core)), 1.0)

    plain = estimate()
    assert torch.equal(plain, estimate())
    assert not torch.equal(plain, estimate(image=picture["image"].flip(-1)))
    assert not torch.equal(plain, estimate(camera_words=False))


def test_an_edit_model_makes_a_field_in_few_steps(core, comfy, run, picture):
    loaded, *_ = made(run, "flux")
    condition = run("ConditionForEditing", model=loaded, **picture)[0]
    plan = core("microdreamer_core.sir.presets").get_plan(
        "few-step", poses="words", iterations=1, steps=2, init_steps=2, views=2
    )
    field, _, said = run("Generate", condition=condition, plan=plan).args
    assert field.k == 0 and f"{plan.evaluations().total} evaluations" in said


def test_what_cannot_edit_says_so(core, comfy, run, picture):
    embedded = run("LoadModel", checkpoint="embedded")[0]
    with pytest.raises(ValueError, match="Condition for Editing: Editing needs a native model, got 'embedded'"):
        run("ConditionForEditing", model=embedded, **picture)
    _, model, vae, _ = made(run, "flux")
    mute = run("ModelFromComfyUI", model=model, vae=vae, image_size=SIZE)[0]
    with pytest.raises(ValueError, match="told the camera in words, got Flux, which needs a text encoder; link its CLIP"):
        run("ConditionForEditing", model=mute, **picture)
    tiny = importlib.import_module("helpers.tiny_native").vae(4)
    blind = run("ModelFromComfyUI", model=native("zero123")[0], vae=tiny)[0]
    with pytest.raises(ValueError, match="got Stable_Zero123, which takes no text"):
        run("ConditionForEditing", model=blind, **picture)
