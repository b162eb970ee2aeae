"""Images of any size between the stages: how they are resized, and what larger targets are good for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, toy_renderer
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.evaluation.metrics import psnr
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.reference import Reference
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.stages import fit_views, reference_view, refine_views
from microdreamer_core.sir.start import start_field
from microdreamer_core.sir.step import INITIALISATION, Step
from microdreamer_core.util.images import on_white, resize, resize_by_height

MODEL, LARGE, HELD_OUT = 32, 64, 128


def test_a_wider_or_narrower_image_is_cut_or_continued_but_not_stretched():
    image = torch.rand(2, 8, 12, 3)
    assert torch.equal(resize_by_height(image, 8, 8), image[:, :, 2:10])
    continued = resize_by_height(image, 8, 15)
    assert torch.equal(continued[:, :, 1:13], image)
    assert torch.equal(continued[:, :, :1], image[:, :, :1]) and torch.equal(
        continued[:, :, 13:], image[:, :, -1:].expand(-1, -1, 2, -1)
    )
    assert torch.equal(resize_by_height(image, 4, 6), resize(image, 4, 6)), "antialiased, as everywhere"


def test_a_square_shows_the_same_to_cameras_of_any_width():
    """What a camera of one vertical field of view renders wider agrees in the middle."""
    renderer = toy_renderer([toys.make_toy(toys.HELD_OUT, "bird")])
    cameras = orbit_cameras(10.0, [0.0, 90.0], 1.5, width=32)
    square, wide = renderer(cameras)[0], renderer(cameras.resize(48, 32))[0]
    torch.testing.assert_close(resize_by_height(wide, 32, 32), square)


def test_alpha_is_laid_over_white_and_grey_is_repeated():
    rgba = torch.rand(1, 2, 2, 4)
    expected = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    torch.testing.assert_close(on_white(rgba), expected)
    assert torch.equal(on_white(rgba[..., :1]), rgba[..., :1].expand(-1, -1, -1, 3))
    assert torch.equal(on_white(rgba[..., :3]), rgba[..., :3])


def test_the_reference_takes_the_targets_shape():
    reference = Reference(torch.rand(16, 16, 3), torch.rand(16, 16, 1), 5.0)
    view = reference_view(reference, get_plan("embedded"), 16).of_width(24)
    assert view.image.shape == (1, 16, 24, 3) and view.alpha.shape == (1, 16, 24, 1)
    assert (view.cameras.width, view.cameras.height) == (24, 16)
    assert torch.equal(view.image[0, :, 4:20], reference.image)


# --- larger targets --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle():
    renderer = toy_renderer([toys.make_toy(toys.HELD_OUT + i, name) for i, name in enumerate(["mushroom", "bird"])])
    image = renderer(orbit_cameras(0, 0, 1.5, width=MODEL))[1, 0]
    return AnalyticDiffusion(renderer, MODEL, reference=Reference(image, (image.min(-1, keepdim=True).values < 0.99).float()))


def enlarge(images):
    sized = F.interpolate(images.permute(0, 3, 1, 2), (LARGE, LARGE), mode="bicubic", align_corners=False)
    return sized.clamp(0, 1).permute(0, 2, 3, 1)


def learn(oracle, upscaler=None):
    """Run SIR on the model's images, or on enlarged ones, as the nodes do with an upscaler before Reconstruct Steps."""
    plan = get_plan("embedded", iterations=4)
    field = start_field("gaussians", MODEL, 0)
    for k in range(INITIALISATION, plan.iterations):
        step = Step.of_plan(plan, 0, k, MODEL, diffusion=oracle)
        if upscaler is not None and k != INITIALISATION:  # the field was learned at this size in the pass before
            step = replace(step, cameras=step.cameras.resize(LARGE))
        images = refine_views(step, field).images
        if upscaler is not None:
            step = replace(step, cameras=step.cameras.resize(LARGE))
            images = upscaler(images, step.cameras)
        field = fit_views(step, field, images).field
    return field.absorb_low_pass()  # what the user looks at


def score(oracle, field):
    """PSNR and sharpness (squared differences of neighbours, as a share of the truth's) of views that nobody learned from."""
    cameras = orbit_cameras([10.0, -5.0, 20.0, 0.0, 15.0], [20.0, 110.0, 200.0, 290.0, 340.0], 1.5, width=HELD_OUT)
    truth, render = oracle.render(cameras)[1], field.render(cameras, WHITE).rgb

    def sharpness(images):
        grey = images.mean(-1)
        return float(grey.diff(dim=1).square().mean() + grey.diff(dim=2).square().mean())

    return psnr(render, truth), sharpness(render) / sharpness(truth)


def test_larger_targets_give_a_better_and_sharper_field(oracle, record_property):
    """Targets of twice the model's size: enlarged smoothly, and by an upscaler that knows the object's details."""

    def detailed(images, cameras):
        truth = oracle.render(cameras)[1]
        return (enlarge(images) + truth - enlarge(resize(truth, MODEL))).clamp(0, 1)

    usual, smooth, sharp = (
        score(oracle, learn(oracle, upscaler)) for upscaler in (None, lambda images, _: enlarge(images), detailed)
    )
    record_property("psnr and sharpness", f"usual {usual}, smooth {smooth}, detailed {sharp}")
    assert smooth[0] > usual[0] - 0.1 and smooth[1] > 0.9 * usual[1]
    assert sharp[0] > usual[0] + 0.5 and sharp[1] > 1.2 * usual[1]
