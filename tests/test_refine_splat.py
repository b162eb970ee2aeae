"""Refining a splat: what may change of it, and that a degraded one gets better."""

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, toy_renderer
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.errors import InputError
from microdreamer_core.fields.gaussians import SH_C0, Gaussians, GaussianSettings
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.reference import Reference
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.reconstruct import reconstruct

SIZE = 32
CHANGED = {"colours": {"dc"}, "appearance": {"dc", "opacity_logits"}}


def around(count=8):
    return orbit_cameras(10.0, torch.arange(count) * (360.0 / count), 1.5, width=SIZE)


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


@pytest.fixture(scope="module")
def renderer():
    return toy_renderer([toys.make_toy(toys.HELD_OUT + i, name) for i, name in enumerate(["mushroom", "car", "bird", "house"])])


@pytest.fixture(scope="module")
def good(renderer):
    """Gaussians fitted to the bird from all sides."""
    field = Gaussians.ball(GaussianSettings(num_points=700), seed=0)
    cameras = orbit_cameras([0.0, 30.0] * 6, torch.arange(12) * 30.0, 1.5, width=SIZE)
    return reconstruct(field, cameras, renderer(cameras)[2], 200).field


@pytest.fixture(scope="module")
def degraded(good):
    """Its colours blurred over neighbours, and its back red, at step 0."""
    means, colors = good.parameters.means, good.splats().colors
    nearest = torch.cdist(means, means).topk(12, largest=False).indices
    colors = torch.where(means[:, 2:] < 0, torch.tensor([0.8, 0.1, 0.1]), colors[nearest].mean(1))
    return Gaussians(good.parameters._replace(dc=(colors - 0.5) / SH_C0))


@pytest.mark.parametrize("change", CHANGED)
def test_what_may_not_change_stays_bit_for_bit(degraded, renderer, change):
    limited = degraded.limit_to(change)
    cameras = around(4)
    fitted = reconstruct(limited, cameras, renderer(cameras)[2], 30).field
    assert len(fitted) == len(degraded), "density control would add and remove Gaussians"
    pairs = zip(fitted.parameters._fields, fitted.parameters, degraded.parameters, strict=True)
    assert {name for name, new, old in pairs if not torch.equal(new, old)} == CHANGED[change]


def test_everything_may_change_by_default_and_the_limit_is_saved(degraded, renderer, tmp_path):
    cameras = around(4)
    fitted = reconstruct(degraded, cameras, renderer(cameras)[2], 30).field
    assert not torch.equal(fitted.parameters.means[:10], degraded.parameters.means[:10])
    limited = degraded.limit_to("colours")
    loaded = load_state(save_state(tmp_path / "limited.safetensors", limited)).field
    assert loaded.settings == limited.settings and loaded.settings.change == "colours"
    tensors, values = degraded.to_state()
    del values["settings"]["change"]
    assert Gaussians.from_state(tensors, values).settings.change == "everything", "states of earlier versions"
    with pytest.raises(InputError, match="change must be one of everything, appearance, colours, got 'shape'"):
        degraded.limit_to("shape")


@pytest.mark.parametrize("change", ["everything", *CHANGED])
def test_a_degraded_splat_gets_better_and_its_front_no_worse(degraded, renderer, change):
    """The blurred colours and the wrong back of a splat, with the exact score of four objects at low noise."""
    front = orbit_cameras(0.0, 0.0, 1.5, width=SIZE)
    picture = renderer(front)[2, 0]
    reference = Reference(picture, (picture.amin(-1, keepdim=True) < 0.99).float())
    oracle = AnalyticDiffusion(renderer, SIZE, reference=reference)
    plan = get_plan("embedded-high", iterations=4, steps=15, t2_start=0.5, t2_end=0.2)
    field = degraded.limit_to(change)
    before = [psnr(field.render(c).rgb, renderer(c)[2]) for c in (around(), front)]
    *_, last = sir_iterations(field, oracle, plan, 0, reference=reference, first=0)
    after = [psnr(last.field.render(c).rgb, renderer(c)[2]) for c in (around(), front)]
    assert after[0] > before[0] + 2.5 and after[1] >= before[1] - 0.1
