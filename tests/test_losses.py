"""The losses of reconstruction against sums written out, and their weights where several are added."""

from dataclasses import replace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.reference import ReferenceView
from microdreamer_core.render.protocol import Render
from microdreamer_core.sir.losses import paint_loss, reconstruction_loss, reference_loss
from microdreamer_core.sir.reconstruct import LatentTargets, reconstruct, reference_view_loss

SIZE = 4
PIXELS = SIZE * SIZE


def pictures(value, views=1, channels=3):
    return torch.full((views, SIZE, SIZE, channels), float(value))


def view_of(color=1.0, opacity=1.0, **changes):
    """A grey picture that covers its pixels half, seen from the front."""
    camera = orbit_cameras(0.0, 0.0, width=SIZE)
    return ReferenceView(camera, pictures(0.5), pictures(0.5, channels=1), color, opacity, **changes)


def render_of(rgb, alpha, views=1):
    return Render(pictures(rgb, views), pictures(alpha, views, 1), torch.zeros(views, SIZE, SIZE, 1))


@pytest.mark.parametrize(("norm", "expected"), [("l1", 0.5 * 3 * PIXELS), ("l2", 0.25 * 3 * PIXELS)])
def test_data_losses_are_sums_over_pixels_and_means_over_views(norm, expected):
    for views in (1, 3):
        loss = reconstruction_loss(pictures(0.25, views), pictures(0.75, views), norm)
        assert loss.shape == () and float(loss) == pytest.approx(expected)


def test_the_papers_norm_is_the_default_and_others_are_refused():
    assert float(reconstruction_loss(pictures(0.0), pictures(0.1))) == pytest.approx(0.1 * 3 * PIXELS)
    with pytest.raises(InputError, match=r"^The loss norm must be 'l1' or 'l2', got 'huber'\.$"):
        reconstruction_loss(pictures(0.0), pictures(0.1), "huber")


@pytest.mark.parametrize(
    ("color", "opacity", "expected"),
    [
        (1.0, 0.0, 0.3 * 3 * PIXELS),
        (0.0, 1.0, 0.2**2 * PIXELS),
        (0.3, 0.01, 0.3 * 0.3 * 3 * PIXELS + 0.01 * 0.2**2 * PIXELS),  # Table I's weights
        (0.0, 0.0, 0.0),
    ],
)
def test_reference_losses_are_weighted_sums(color, opacity, expected):
    """Absolute colours and squared coverage, both summed over the pixels of the one view."""
    loss = reference_loss(view_of(color, opacity), pictures(0.8), pictures(0.7, channels=1))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_opacity_loss_pulls_coverage_from_both_sides():
    alpha = pictures(0.9, channels=1).requires_grad_()
    reference_loss(view_of(0.0, 2.0), pictures(0.5), alpha).backward()
    assert torch.allclose(alpha.grad, pictures(2.0 * 2 * (0.9 - 0.5), channels=1))
    low = reference_loss(view_of(0.0, 2.0), pictures(0.5), pictures(0.1, channels=1))
    assert float(low) == pytest.approx(2.0 * 0.4**2 * PIXELS, rel=1e-5)


def test_the_norm_is_the_colours_alone():
    loss = reference_loss(view_of(1.0, 1.0, norm="l2"), pictures(0.9), pictures(0.7, channels=1))
    assert float(loss) == pytest.approx(0.4**2 * 3 * PIXELS + 0.2**2 * PIXELS, rel=1e-5)


def test_inside_the_object_colours_count_by_coverage():
    inside = view_of(1.0, 0.0, inside=True)
    assert float(reference_loss(inside, pictures(1.0), pictures(0.0, channels=1))) == pytest.approx(0.0, abs=1e-6)
    assert float(reference_loss(inside, pictures(0.6), pictures(0.0, channels=1))) == pytest.approx(0.2 * 3 * PIXELS)


def test_paint_is_weighed_apart_from_colour():
    view = view_of(0.3, 0.01, paint_weight=2.0)
    assert float(paint_loss(view, pictures(0.8))) == pytest.approx(2.0 * 0.3 * 3 * PIXELS, rel=1e-5)


class Copy:
    """A working copy of a field with one number to learn, which notes what it is asked for."""

    kind, device = "copy", torch.device("cpu")

    def __init__(self, rgb=0.25, alpha=0.75):
        self.rgb, self.alpha = torch.tensor(rgb, requires_grad=True), alpha
        self.renders, self.losses, self.stretch = [], [], None

    def optimizer(self, stretch=None):
        self.stretch = stretch
        return self

    def render(self, cameras, background=None, *, colors_only=False):
        self.renders.append((cameras, background, colors_only))
        views = len(cameras)
        rgb = self.rgb.expand(views, cameras.height, cameras.width, 3)
        return Render(rgb, torch.full((views, cameras.height, cameras.width, 1), self.alpha), torch.zeros(()))

    def step(self, loss, render):
        loss.backward()
        self.losses.append(loss)

    def finish(self):
        return "learned"


def test_painting_looks_again_at_the_last_view_with_the_geometry_held():
    copy, cameras = Copy(0.8), orbit_cameras(0.0, [0.0, 90.0, 180.0], width=SIZE)
    background = torch.zeros(3)
    first = Render(torch.cat([pictures(0.0, 2), pictures(0.7)]), pictures(0.5, 3, 1), torch.zeros(()))
    plain = reference_view_loss(view_of(), copy, first, cameras, background)
    assert float(plain) == pytest.approx(0.2 * 3 * PIXELS, rel=1e-5) and not copy.renders, "the last view alone, and no more"
    painted = reference_view_loss(view_of(paint_weight=0.5), copy, first, cameras, background)
    assert float(painted.detach()) == pytest.approx((0.2 + 0.5 * 0.3) * 3 * PIXELS, rel=1e-5)
    ((seen, behind, colors_only),) = copy.renders
    assert seen.azimuth.tolist() == [180.0] and behind is background and colors_only
    given = replace(first, painted=first.rgb)
    assert float(reference_view_loss(view_of(paint_weight=0.5), copy, given, cameras, background)) == pytest.approx(
        (0.2 + 0.5 * 0.2) * 3 * PIXELS, rel=1e-5
    )
    assert len(copy.renders) == 1, "a renderer that gives it renders once"


def test_reconstruction_adds_the_reference_to_the_views():
    copy, cameras = Copy(), orbit_cameras(0.0, [90.0, 180.0], width=SIZE)
    larger = orbit_cameras(20.0, 0.0, width=2 * SIZE)
    view = ReferenceView(larger, pictures(0.5), pictures(0.5, channels=1), 2.0, 3.0)
    checks = []
    result = reconstruct(
        copy,
        cameras,
        pictures(0.75, 2),
        2,
        reference=view,
        background=torch.ones(3),
        after=7,
        check=lambda: checks.append(len(copy.losses)),
    )
    data, reference = 0.5 * 3 * PIXELS, 2.0 * 0.25 * 3 * PIXELS + 3.0 * 0.25**2 * PIXELS
    assert result.losses == pytest.approx((data + reference,) * 2) and result.field == "learned"
    assert checks == [0, 1] and (copy.stretch.steps, copy.stretch.after) == (2, 7)
    for seen, background, colors_only in copy.renders:
        assert seen.azimuth.tolist() == [90.0, 180.0, 0.0] and (seen.width, seen.height) == (SIZE, SIZE)
        assert torch.equal(background, torch.ones(3)) and not colors_only
    assert float(copy.rgb.grad) == pytest.approx(-2 * (3 * PIXELS + 2.0 * 3 * PIXELS)), "of two steps; views are averaged"


def test_what_is_left_out_is_not_asked_for():
    copy, cameras = Copy(), orbit_cameras(0.0, [90.0, 180.0], width=SIZE)
    result = reconstruct(copy, cameras, pictures(0.75, 2), 1, norm="l2")
    assert result.losses == pytest.approx((0.25 * 3 * PIXELS,)) and copy.stretch is None
    ((seen, background, _),) = copy.renders
    assert len(seen) == 2 and background is None


def test_latent_targets_are_compared_after_the_encoder():
    copy, cameras = Copy(), orbit_cameras(0.0, [90.0, 180.0], width=SIZE)
    targets = LatentTargets(torch.zeros(2, 4, 1, 1), lambda rgb: 2 * rgb[:, :1, :1, :1].expand(2, 4, 1, 1))
    result = reconstruct(copy, cameras, targets, 1, norm="l2")
    assert result.losses == pytest.approx((4 * 0.5**2,))
    with pytest.raises(InputError, match=r"must have shape \[2\] to match the cameras, got \[3, 4, 1, 1\]; resize"):
        reconstruct(copy, cameras, LatentTargets(torch.zeros(3, 4, 1, 1), targets.encode), 1)


@pytest.mark.parametrize("shape", [(1, SIZE, SIZE, 3), (2, SIZE + 1, SIZE, 3), (2, SIZE, SIZE + 1, 3), (2, SIZE, SIZE, 4)])
def test_targets_must_fit_the_cameras(shape):
    with pytest.raises(InputError, match=r"must have shape \[2, 4, 4, 3\] to match the cameras, got "):
        reconstruct(Copy(), orbit_cameras(0.0, [0.0, 90.0], width=SIZE), torch.zeros(shape), 1)


def test_a_loss_that_is_not_finite_names_its_step():
    class Diverging(Copy):
        def step(self, loss, render):
            self.losses.append(loss)
            if len(self.losses) == 2:
                self.rgb = torch.tensor(float("inf"))

    copy = Diverging()
    with pytest.raises(NumericalError, match=r"^The reconstruction loss became inf at step 2 of 5\.$"):
        reconstruct(copy, orbit_cameras(0.0, 0.0, width=SIZE), pictures(0.0), 5)


def test_losses_of_an_accelerator_are_read_together_at_the_end(monkeypatch):
    from microdreamer_core.sir import reconstruct as module

    monkeypatch.setattr(module.devices, "is_async", lambda device: True)
    copy = Copy()
    assert reconstruct(copy, orbit_cameras(0.0, 0.0, width=SIZE), pictures(0.0), 2).losses == pytest.approx((12.0, 12.0))
    broken = Copy(float("nan"))
    with pytest.raises(NumericalError, match="became nan at step 0 of 3"):
        reconstruct(broken, orbit_cameras(0.0, 0.0, width=SIZE), pictures(0.0), 3)
    assert len(broken.losses) == 3, "nothing is read before the last step"
