"""Views of native models that see each other, on tiny random networks of the real host and on one that is exact."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_native import Clip, Recorder, image_model, native, refiner_plan, run_stages, vae

SIZE, PROMPT = 64, "a red box"
EIGHT = tuple(45.0 * i for i in range(8))


@pytest.fixture(scope="module")
def coupled(run, comfy):
    """``coupled(kind, coupling, group)``: (loaded, condition, diffusion ready to run) of a tiny model."""

    def make(kind="sd", coupling="shared attention", group=4, prompt=PROMPT, view_words=False, **more):
        model, vae, clip = image_model(kind)
        given = {"model": model, "vae": vae, "clip": clip, "image_size": SIZE, **more}
        loaded = run("ModelFromComfyUI", **given, coupling=coupling, group=group)[0]
        words = {"prompt": prompt, "negative": "blurry", "view_words": view_words}
        condition = run("ConditionOnPrompt", model=loaded, **words)[0]
        return SimpleNamespace(loaded=loaded, condition=condition, diffusion=condition.ready(), clip=clip)

    return make


def views(core, azimuths=EIGHT, elevation=0.0):
    return core("microdreamer_core.cameras").orbit_cameras(elevation, torch.tensor(azimuths), 2.0, 49.1, SIZE)


def noise(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def estimate(found, cameras, latents, guidance=4.0, t=500):
    diffusion = found.diffusion
    return diffusion.denoised(latents, t, diffusion.condition(cameras), guidance)


# --- shared attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_views_that_share_attention_are_equal_among_themselves(core, coupled, kind, guidance):
    """Which of them comes first does not matter: permuted views give permuted estimates."""
    found = coupled(kind)
    latents, order = noise(4, *found.diffusion.latent_shape), [2, 0, 3, 1]
    cameras = views(core, EIGHT[::2])
    plain, permuted = (estimate(found, cameras[rows], latents[rows], guidance) for rows in ([0, 1, 2, 3], order))
    torch.testing.assert_close(permuted, plain[order], atol=1e-5, rtol=1e-5)
    assert found.diffusion.evaluations == 8 * (2 if guidance else 1)


def test_a_group_of_one_is_a_view_alone(core, coupled):
    latents, cameras = noise(3, 4, 8, 8), views(core, EIGHT[:3])
    alone, ones, grids = (
        estimate(coupled("sd", *kind), cameras, latents) for kind in (("alone", 4), ("shared attention", 1), ("grid", 1))
    )
    torch.testing.assert_close(ones, alone, atol=1e-6, rtol=1e-6)
    assert torch.equal(grids, alone)


def test_a_view_sees_its_own_group_and_no_other(core, coupled):
    """Of eight views, every other one makes a group, as in MVDream; so each group is spread all around."""
    found, cameras, latents = coupled(), views(core), noise(8, 4, 8, 8)
    assert found.diffusion.view_count.group == 4
    before = estimate(found, cameras, latents)
    other = latents.clone()
    other[3] = 2 * noise(4, 8, 8, seed=8)
    change = (estimate(found, cameras, other) - before).abs().amax((1, 2, 3))
    assert float(change[1::2].min()) > 20 * float(change[::2].max())
    pair = estimate(found, cameras[[0, 2, 4, 6]], latents[::2])
    torch.testing.assert_close(pair, before[::2], atol=1e-5, rtol=1e-5)


def test_views_share_attention_although_their_texts_have_other_lengths(core, coupled):
    """A text that is repeated to the length of another counts as before: the views are denoised in one call all the same."""
    found = coupled(prompt="x" * 62, view_words=True)
    cameras, latents = views(core, EIGHT[::2]), noise(4, 4, 8, 8)
    cameras = core("microdreamer_core.cameras").concatenate([cameras[:3], views(core, EIGHT[6:7], 80.0)])
    (branches,) = found.diffusion.condition(cameras)
    assert branches.positive[0][0].shape[:2] == (4, 154) and branches.rows == (0, 1, 2, 3)
    ones = coupled(prompt="x" * 62, view_words=True, group=1)
    alone = coupled(prompt="x" * 62, view_words=True, coupling="alone")
    assert len(alone.diffusion.condition(cameras)) == 2
    repeated, apart = (estimate(model, cameras, latents) for model in (ones, alone))
    torch.testing.assert_close(repeated, apart, atol=1e-5, rtol=1e-5)


# --- grids -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "sd3", "zimage", "flux", "qwen"])
def test_a_grid_is_one_picture_to_the_network(core, coupled, kind):
    """The estimate of views in a grid is the estimate of that picture, cut up; each group is another picture."""
    found, whole = coupled(kind, "grid"), coupled(kind, "alone", image_size=2 * SIZE)
    assert found.diffusion.image_size == SIZE
    latents = noise(8, *found.diffusion.latent_shape)
    cut = estimate(found, views(core), latents)
    for group in (0, 1):
        a, b, c, d = latents[group::2]
        picture = torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)[None]
        expected = estimate(whole, views(core, (0.0,)), picture)[0]
        upper, lower = expected.chunk(2, 1)
        expected = torch.stack([*upper.chunk(2, 2), *lower.chunk(2, 2)])
        torch.testing.assert_close(cut[group::2], expected, atol=1e-5, rtol=1e-4)
    assert found.diffusion.evaluations == 16, "counted by views"


WORDS = "front view, side view, back view, side view", "side view, side view, side view, side view"


def test_the_text_of_a_grid_names_its_views(core, coupled):
    found = coupled(coupling="grid", view_words=True)
    found.diffusion.condition(views(core))
    start = f"{PROMPT}, 2 x 2 grid of views of the same object: "
    assert found.clip.texts == ["blurry", *(start + words for words in WORDS)]
    assert coupled(coupling="grid").clip.texts == [PROMPT, "blurry"]


def test_the_usual_size_of_a_grid_is_that_of_one_picture(run, comfy):
    model, vae, clip = image_model("sd")
    for group, side in ((4, 256), (1, 512)):
        loaded = run("ModelFromComfyUI", model=model, vae=vae, clip=clip, coupling="grid", group=group)[0]
        assert loaded.model.image_size == side


# --- agreement ---------------------------------------------------------------------------------------------------------------


class Exact(torch.nn.Module):
    """A network of noise that knows the exact score of M objects: of their pictures, or of grids of them.

    Row i of the batch of one branch shows picture i modulo their number; ``means`` [M,P,C,H,W] are the pictures.
    """

    dtype = torch.float32

    def __init__(self, means, spread=0.05):
        super().__init__()
        self.means, self.spread, self.weight = means, spread, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t, *_, **__):
        sigma = self.levels[t.round().long()].reshape(-1, 1, 1, 1)
        x = x * (1 + sigma**2).sqrt()  # back from the network's scaled input
        means = self.means.repeat(1, len(x) // self.means.shape[1], 1, 1, 1)
        variance = self.spread**2 + sigma**2
        distance = ((x - means) ** 2).flatten(2).sum(2)
        weights = torch.softmax(-distance / (2 * variance.flatten()), 0)
        mean = torch.einsum("mp,mpchw->pchw", weights, means)
        return (x - mean - self.spread**2 / variance * (x - mean)) / sigma


def denoise_at(diffusion, conditioning, x, t):
    return diffusion.denoised(x, t, conditioning, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_views_in_a_grid_agree_where_views_alone_do_not(core, run, comfy, report, seed):
    """From pure noise, under the exact score of six objects: a view alone shows any, a grid one and the same."""
    objects, ddim = noise(6, 8, 4, 8, 8, seed=9), core("microdreamer_core.diffusion.ddim")
    shown = {}
    for coupling in ("alone", "grid"):
        model, _ = native()
        grid = core("nodes.native_views").Coupling(coupling, 4 if coupling == "grid" else 1)
        order = [view for picture in grid.pictures(8) for view in picture]
        network = Exact(torch.stack([grid.join(one[order]) for one in objects]))
        loaded = run("ModelFromComfyUI", model=model, vae=vae(4), clip=Clip(), image_size=SIZE, coupling=coupling)[0]
        diffusion = run("ConditionOnPrompt", model=loaded, prompt=PROMPT, view_words=False)[0].ready()
        network.levels, model.model.diffusion_model = diffusion.process.sigmas.float(), network
        conditioning = diffusion.condition(views(core))
        path = core("microdreamer_core.diffusion.timesteps").sampling_path(951, 20)
        start = noise(8, 4, 8, 8, seed=seed)
        denoise = partial(denoise_at, diffusion, conditioning)
        found = ddim.sample(start, path, denoise, diffusion.process)
        distance = (found[None] - objects).square().mean((2, 3, 4))
        assert float(distance.amin(0).max()) < 0.05, "every view is one of the objects"
        shown[coupling] = distance.argmin(0).tolist()
    report(f"objects shown by views of seed {seed}: alone {shown['alone']}, in grids of four {shown['grid']}")
    assert all(len(set(shown["grid"][group::2])) == 1 for group in (0, 1))
    assert len(set(shown["alone"][::2])) > 1


# --- in SIR -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", ["shared attention", "grid"])
def test_coupled_views_run_in_sir_and_stages_equal_generate(core, run, coupled, coupling):
    found, plan = coupled(coupling=coupling, view_words=True), refiner_plan(core, views=4)
    start = run("NewGaussians", model=found.loaded, num_points=60)[0]
    fused, _, said = run("Generate", condition=found.condition, plan=plan, field=start).args
    field = run_stages(run, start, plan, found.condition)
    for ours, theirs in zip(field.field.parameters, fused.field.parameters, strict=True):
        assert torch.equal(ours, theirs)
    assert f"{plan.evaluations().total} evaluations" in said.splitlines()[-1]


def test_a_grid_of_controls_is_shown_a_grid_of_renders(core, run, coupled):
    found, recorder = coupled(coupling="grid"), Recorder()
    condition = run("ControlFromRenders", condition=found.condition, control_net=recorder, hint="tile")[0]
    field = run("NewGaussians", model=found.loaded, num_points=300)[0].field
    diffusion, cameras = condition.ready(), views(core)
    diffusion.denoised(noise(8, 4, 8, 8), 500, diffusion.condition_on(cameras, field.render), 1.0)
    ((_, hints),) = recorder.seen
    shown = field.render(cameras).rgb.clamp(0, 1)
    assert hints.shape == (2, 2 * SIZE, 2 * SIZE, 3)
    assert torch.equal(hints[1, :SIZE, SIZE:], shown[3]) and torch.equal(hints[0, SIZE:, :SIZE], shown[4])


def test_what_cannot_be_coupled_is_said(core, run, comfy, coupled):
    with pytest.raises(ValueError, match="Shared attention needs a UNet .*, got SD3; use a grid or none"):
        coupled("sd3")
    with pytest.raises(ValueError, match="coupling must be one of alone, shared attention, grid, got 'all'"):
        coupled(coupling="all")
    with pytest.raises(ValueError, match="The group of 'grid' must be 1, 4, 9 or 16, got 6"):
        coupled(coupling="grid", group=6)
    with pytest.raises(ValueError, match="Stable_Zero123 takes one camera for a picture, got a grid of views"):
        run("ModelFromComfyUI", model=native("zero123")[0], vae=vae(4), coupling="grid")
    found = coupled()
    with pytest.raises(ValueError, match="a multiple of 4 views, got 6"):
        found.diffusion.condition(views(core, EIGHT[:6]))
