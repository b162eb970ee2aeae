"""All splat renderers against the dense float64 reference, and what they must survive."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from helpers import reference_splats
from microdreamer_core.cameras import concatenate, orbit_cameras
from microdreamer_core.errors import InputError
from microdreamer_core.render import Splats, available_renderers, backends, get_renderer, get_threads, set_threads

BACKENDS = ["torch", "numba", "cuda emulated"]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
NAMES = ("means", "quats", "scales", "opacities", "colors")


@pytest.fixture(params=BACKENDS)
def renderer(request):
    if request.param == "cuda emulated":
        return request.getfixturevalue("emulated_cuda")
    if request.param == "numba":
        pytest.importorskip("numba")
    return get_renderer(request.param)


@pytest.fixture
def threads():
    before = get_threads()
    yield set_threads
    set_threads(before)


def draw_splats(count, seed=0, spread=0.5, scales=(0.02, 0.1), opacities=(0.05, 0.95), dtype=torch.float64):
    """Random Gaussians whose values float32 represents, so that all dtypes see the same scene."""
    generator = torch.Generator().manual_seed(seed)
    uniform = [torch.rand(count, width, generator=generator) for width in (3, 3, 1, 3)]
    low, high = scales
    values = (
        (2 * uniform[0] - 1) * spread,
        torch.randn(count, 4, generator=generator),
        low * (high / low) ** uniform[1],
        (opacities[0] + (opacities[1] - opacities[0]) * uniform[2][:, 0]).clamp(max=1),
        uniform[3],
    )
    return Splats(*(v.to(dtype) for v in values))


def leaves_of(splats, dtype):
    return Splats(*(getattr(splats, name).detach().to(dtype).requires_grad_() for name in NAMES))


SCENES = {
    "blobs": (draw_splats(120), orbit_cameras(15.0, [10.0, 130.0], width=40)),
    "saturated": (draw_splats(150, 1, scales=(0.05, 0.5), opacities=(0.3, 1.2)), orbit_cameras(-20.0, [40.0, 250.0], width=40)),
    "all opaque": (draw_splats(150, 1, scales=(0.05, 0.5), opacities=(0.998, 1.0)), orbit_cameras(30.0, [70.0], width=36)),
    "clipped and behind": (
        draw_splats(200, 2, spread=1.5, scales=(0.02, 0.3)),
        orbit_cameras(5.0, [0.0, 77.0], radius=1.0, width=46, height=30),
    ),
    "needles, portrait": (draw_splats(150, 3, scales=(0.003, 0.4)), orbit_cameras(30.0, [200.0], width=23, height=50)),
    "crowd": (draw_splats(1600, 6, scales=(0.03, 0.2), opacities=(0.004, 0.03)), orbit_cameras(20.0, [33.0, 190.0], width=25)),
    "many small": (draw_splats(700, 4, scales=(0.004, 0.03)), orbit_cameras(0.0, [0.0, 90.0, 180.0], width=33)),
}


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


def outputs_and_gradients(render, inputs, weights):
    pictures = [render[0], render[1], render[2]]
    gradients = torch.autograd.grad(pictures, inputs, [w.to(p.dtype) for w, p in zip(weights, pictures, strict=True)])
    return [t.detach().double() for t in pictures], [g.double() for g in gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("scene", SCENES)
def test_pictures_and_gradients_match_the_dense_reference(renderer, scene, antialiased, dtype):
    splats, cameras = SCENES[scene]
    background = torch.tensor([0.25, 0.75, 0.5]).double().repeat(len(cameras), 1) / torch.arange(1, len(cameras) + 1)[:, None]
    background = background.float().double().requires_grad_()
    truth_splats = leaves_of(splats, torch.float64)
    probe = torch.zeros(len(cameras), len(splats), 2, dtype=torch.float64, requires_grad=True)
    *truth, clear = reference_splats.render(truth_splats, cameras, background, antialiased, probe)
    # Pixels that lie on a threshold are left out; there are few, so nothing can hide there.
    assert clear.double().mean() > 0.98
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(p.shape, generator=generator).double() * clear for p in truth]
    truth_inputs = [*(getattr(truth_splats, name) for name in NAMES), background, probe]
    expected, expected_gradients = outputs_and_gradients(truth, truth_inputs, weights)

    own = leaves_of(splats, dtype)
    own_background = background.detach().to(dtype).requires_grad_()
    render = renderer(own, cameras, own_background, antialiased=antialiased, track_means2d=True)
    assert render.rgb.dtype == dtype and render.means2d.shape == probe.shape and not render.means2d.any()
    inputs = [*(getattr(own, name) for name in NAMES), own_background, render.means2d]
    got, gradients = outputs_and_gradients((render.rgb, render.alpha, render.depth), inputs, weights)

    exact = TOLERANCE[dtype if renderer.name == "torch" else torch.float32]
    for a, b in zip(got, expected, strict=True):
        assert float(((a - b) * clear).abs().max()) <= exact
    errors = {
        n: relative_error(a, b)
        for n, a, b in zip((*NAMES, "background", "means2d"), gradients, expected_gradients, strict=True)
    }
    assert max(errors.values()) <= exact, errors


def test_a_scene_reaches_every_special_case():
    """The conformance scenes would prove little if nothing in them were culled, clamped or cut."""
    clipped, cameras = SCENES["clipped and behind"]
    x, y, z = (
        torch.einsum("vij,nj->ivn", cameras.viewmats[:, :3, :3], clipped.means.float()) + cameras.viewmats[0, :3, 3, None, None]
    )
    radii = get_renderer("torch")(clipped, cameras, torch.zeros(3)).radii
    visible = radii[..., 0] > 0
    slope = 1.3 * 0.5 * 46 / cameras.Ks[0, 0, 0]
    assert (z < 0.01).any() and ((z > 0.01) & ~visible).any() and (radii > 40).any()
    assert (visible & ((x / z).abs() > slope)).sum() > 5
    assert (SCENES["saturated"][0].opacities > 0.999).any()
    opaque = get_renderer("torch")(*SCENES["saturated"], torch.zeros(3))
    assert (opaque.alpha > 0.999).double().mean() > 0.3


def test_derivatives_match_finite_differences():
    """Central differences along random directions, for the reference and the float64 torch renderer."""
    splats, cameras = draw_splats(40, 7), orbit_cameras(10.0, [0.0, 100.0], width=20, height=16)
    background = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    probe = torch.zeros(2, 40, 2, dtype=torch.float64)
    *pictures, clear = reference_splats.render(splats, cameras, background, True, probe)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(p.shape, generator=generator).double() * clear for p in pictures]
    leaves = [*(getattr(splats, name) for name in NAMES), background, probe]

    def by_reference(*tensors):
        return reference_splats.render(Splats(*tensors[:5]), cameras, tensors[5], True, tensors[6])[:3]

    def by_torch(*tensors):
        render = get_renderer("torch")(Splats(*tensors[:5]), cameras, tensors[5], antialiased=True)
        return render.rgb, render.alpha, render.depth

    def weighted(render, tensors):
        return sum((w * p).sum() for w, p in zip(weights, render(*tensors), strict=True))

    for render, count in ((by_reference, 7), (by_torch, 6)):
        own = [t.clone().requires_grad_() for t in leaves]
        gradients = torch.autograd.grad(weighted(render, own), own[:count])
        for i in range(count):
            direction = torch.randn(leaves[i].shape, generator=generator).double()
            step = 1e-6 * direction
            shifted = [[*leaves[:i], leaves[i] + sign * step, *leaves[i + 1 :]] for sign in (1, -1)]
            difference = (weighted(render, shifted[0]) - weighted(render, shifted[1])) / 2e-6
            assert float(difference) == pytest.approx(float((gradients[i] * direction).sum()), rel=1e-5)


def all_bits(renderer, splats, cameras):
    own = leaves_of(splats, torch.float32)
    background = torch.full((3,), 0.5, requires_grad=True)
    render = renderer(own, cameras, background, antialiased=True, track_means2d=True)
    generator = torch.Generator().manual_seed(11)
    pictures = [render.rgb, render.alpha, render.depth]
    inputs = [*(getattr(own, name) for name in NAMES), background, render.means2d]
    weights = [torch.randn(p.shape, generator=generator) for p in pictures]
    return [*pictures, render.radii, *torch.autograd.grad(pictures, inputs, weights)]


def test_numba_gives_the_same_bits_for_any_number_of_threads(threads):
    pytest.importorskip("numba")
    scene = draw_splats(400, 9), orbit_cameras(20.0, [0.0, 90.0], width=61, height=45)
    threads(1)
    expected = all_bits(get_renderer("numba"), *scene)
    for count in (1, 2, 3, 7):
        threads(count)
        assert get_threads() == count
        assert all(torch.equal(a, b) for a, b in zip(all_bits(get_renderer("numba"), *scene), expected, strict=True))


def test_painted_colours_are_those_of_a_render_with_fixed_geometry():
    """Gradients through ``painted`` add up with those through ``rgb``, and stop at geometry and screen gradients."""
    pytest.importorskip("numba")
    splats, cameras = draw_splats(200, 5), orbit_cameras(10.0, [0.0, 120.0], width=37)
    generator = torch.Generator().manual_seed(2)
    weights, paint = torch.randn(2, 2, 37, 37, 3, generator=generator)
    render_by = get_renderer("numba")

    def gradients(painted):
        own, background = leaves_of(splats, torch.float32), torch.full((3,), 0.5, requires_grad=True)
        render = render_by(own, cameras, background, track_means2d=True)
        loss = (weights * render.rgb).sum()
        if painted:
            assert torch.equal(render.painted, render.rgb)
            loss = loss + (paint * render.painted)[1:].sum()
        else:
            held = Splats(*(getattr(own, name).detach() for name in NAMES[:4]), own.colors)
            loss = loss + (paint[1:] * render_by(held, cameras[1:], background).rgb).sum()
        return torch.autograd.grad(loss, [*(getattr(own, name) for name in NAMES), background, render.means2d])

    for name, got, expected in zip((*NAMES, "background", "means2d"), gradients(True), gradients(False), strict=True):
        assert relative_error(got, expected) < 1e-6, name
    own = leaves_of(splats, torch.float32)
    alone = torch.autograd.grad(
        render_by(own, cameras, torch.ones(3)).painted.sum(), [own.colors, own.means], allow_unused=True
    )
    assert alone[0].any() and not alone[1].any()


def test_torch_repeats_itself():
    scene = draw_splats(100, 9), orbit_cameras(20.0, [0.0], width=31)
    first, second = (all_bits(get_renderer("torch"), *scene) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_thread_counts_below_one_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        set_threads(0)


def test_no_gaussians_show_the_background(renderer):
    own = leaves_of(draw_splats(0), torch.float32)
    background = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    render = renderer(own, orbit_cameras(0.0, [0.0, 50.0], width=19, height=7), background, track_means2d=True)
    assert torch.equal(render.rgb, background.expand(2, 7, 19, 3))
    assert not render.alpha.any() and not render.depth.any() and render.radii.shape == (2, 0, 2)
    render.rgb.sum().backward()
    assert torch.allclose(background.grad, torch.full((3,), 2.0 * 7 * 19))


def test_gaussians_out_of_sight_show_the_background(renderer):
    """A list of Gaussians, but not one visible pair."""
    splats = draw_splats(5, dtype=torch.float32)
    behind = replace(splats, means=splats.means + torch.tensor([0.0, 0.0, 50.0]))
    own = leaves_of(behind, torch.float32)
    render = renderer(own, orbit_cameras(0.0, [0.0], width=9), torch.ones(3), antialiased=True)
    assert bool((render.rgb == 1).all()) and not render.radii.any()
    render.alpha.sum().backward()
    assert not own.means.grad.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38], ids=str)
def test_broken_gaussians_are_culled_and_harm_nobody(renderer, value):
    cameras, background = orbit_cameras(10.0, [0.0, 120.0], width=40, height=24), torch.tensor([0.2, 0.4, 0.6])
    good = draw_splats(30, 12, dtype=torch.float32)
    bad = draw_splats(15, 13, dtype=torch.float32)
    for i, (name, column) in enumerate((n, c) for n in NAMES for c in (0, -1)):
        tensor = getattr(bad, name)
        tensor[i] = value if column == 0 or tensor.ndim == 1 else torch.cat([tensor[i][:-1], torch.tensor([value])])
    bad.quats[10] = 0.0
    bad.opacities[11] = 0.0
    broken = list(range(12)) if value != 1e38 else [0, 1, 4, 5, 10, 11]  # the other huge numbers are no Gaussian's end
    chosen = Splats(*(torch.cat([getattr(good, n), getattr(bad, n)[broken]]).requires_grad_() for n in NAMES))
    render = renderer(chosen, cameras, background, antialiased=True, track_means2d=True)
    expected = renderer(good, cameras, background, antialiased=True)
    assert torch.allclose(render.rgb, expected.rgb, atol=1e-6) and torch.allclose(render.depth, expected.depth, atol=1e-6)
    assert not render.radii[:, 30:].any()
    (render.rgb.sum() + render.depth.sum()).backward()
    gradients = [getattr(chosen, name).grad for name in NAMES] + [render.means2d.grad.transpose(0, 1)]
    assert all(g.isfinite().all() and not g[30:].any() and g[:30].any() for g in gradients)


@pytest.mark.parametrize("scale", [1e3, 1e8, 1e15, 1e-12, 0.0])
def test_absurd_sizes_stay_finite(renderer, scale):
    own = draw_splats(4, 21, dtype=torch.float32)
    own.scales[:2] = scale
    own = leaves_of(own, torch.float32)
    render = renderer(own, orbit_cameras(0.0, [0.0], width=20), torch.ones(3), antialiased=True)
    assert render.rgb.isfinite().all()
    render.rgb.sum().backward()
    assert own.colors.grad.isfinite().all() and own.opacities.grad.isfinite().all()


@pytest.mark.parametrize(("width", "height", "views"), [(1, 1, 1), (1, 1, 3), (8, 16, 1), (9, 17, 2), (33, 2, 11)])
def test_odd_sizes_and_view_counts(renderer, width, height, views):
    cameras = orbit_cameras(10.0, torch.arange(views) * 31.0, width=width, height=height)
    splats, background = draw_splats(25, 14), torch.rand(views, 3, generator=torch.Generator().manual_seed(1)).double()
    probe = torch.zeros(views, 25, 2, dtype=torch.float64)
    *expected, clear = reference_splats.render(splats, cameras, background, False, probe)
    render = renderer(leaves_of(splats, torch.float32), cameras, background)
    for got, truth in zip((render.rgb, render.alpha, render.depth), expected, strict=True):
        assert got.shape == truth.shape
        assert torch.allclose(got.double() * clear, truth * clear, atol=1e-5)
    assert render.means2d is None and render.radii.shape == (views, 25, 2) and render.radii.dtype == torch.int32


def test_views_do_not_touch_each_other(renderer):
    splats = draw_splats(60, 15, dtype=torch.float32)
    single = [orbit_cameras(5.0, [a], width=21) for a in (0.0, 80.0, 200.0)]
    together = renderer(splats, concatenate(single), torch.ones(3))
    for v, camera in enumerate(single):
        alone = renderer(splats, camera, torch.ones(3))
        assert torch.allclose(alone.rgb[0], together.rgb[v], atol=1e-6)
        assert torch.equal(alone.radii[0], together.radii[v])


def test_a_long_diagonal_needle_is_drawn_whole():
    """It meets tiles hundreds of rows from its middle, where the row ranges must not wrap around."""
    pytest.importorskip("numba")
    eighth = math.pi / 8
    quats = torch.tensor([[math.cos(eighth), 0.0, 0.0, sign * math.sin(eighth)] for sign in (1, -1)])
    sizes = torch.tensor([[0.8, 0.004, 0.004]] * 2)
    splats = Splats(torch.zeros(2, 3), quats, sizes, torch.tensor([0.9, 0.8]), torch.full((2, 3), 0.5))
    cameras = orbit_cameras(0.0, [0.0], width=640)
    numba_picture, torch_picture = (get_renderer(n)(splats, cameras, torch.zeros(3)).alpha for n in ("numba", "torch"))
    assert numba_picture[0, :40].max() > 0.1
    # Far along a needle float32 leaves some 1e-3 of sigma's quadratic form to rounding.
    assert float((numba_picture - torch_picture).abs().max()) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_come_back_as_they_went_in(renderer, dtype):
    own = leaves_of(draw_splats(20, 16), dtype)
    render = renderer(own, orbit_cameras(0.0, [0.0], width=20), torch.ones(3), track_means2d=True)
    assert {render.rgb.dtype, render.alpha.dtype, render.depth.dtype} == {dtype}
    render.rgb.sum().backward()
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in (own.means, own.quats, render.means2d))


def test_renders_under_inference_mode(renderer):
    with torch.inference_mode():
        render = renderer(draw_splats(20, 16, dtype=torch.float32), orbit_cameras(0.0, [0.0], width=20), torch.ones(3))
    assert render.rgb.isfinite().all()


def test_wrong_shapes_are_explained(renderer):
    splats, cameras = draw_splats(6, dtype=torch.float32), orbit_cameras(0.0, [0.0, 9.0], width=8)
    with pytest.raises(InputError, match=r"opacities of shape \[6\], got \[6, 1\]"):
        renderer(replace(splats, opacities=splats.opacities[:, None]), cameras, torch.ones(3))
    with pytest.raises(InputError, match=r"background must be \[3\] or \[2,3\], got \[4\]"):
        renderer(splats, cameras, torch.ones(4))


def test_kernels_compile_where_nothing_can_be_cached():
    """numba refuses to cache what lies in no writable place; a function without a file is the plainest case."""
    pytest.importorskip("numba")
    from microdreamer_core.util._numba_jit import kernel

    namespace = {}
    exec("def twice(x):\n    return 2 * x", namespace)
    assert kernel(namespace["twice"])(21) == 42


@pytest.fixture
def fresh_backends():
    backends._load.cache_clear()
    yield
    backends._load.cache_clear()


def test_auto_prefers_numba_on_the_cpu():
    pytest.importorskip("numba")
    assert available_renderers("cpu") == ("numba", "torch")
    assert get_renderer().name == get_renderer("auto", "cpu").name == "numba"
    assert get_renderer("torch").name == "torch"


def test_unknown_renderers_are_refused():
    with pytest.raises(InputError, match="'opengl' is not known; expected one of auto, .*torch"):
        get_renderer("opengl")


class WrongRenderer:
    """Draws too dark."""

    name = "numba"

    def __call__(self, *arguments, **options):
        render = get_renderer("torch")(*arguments, **options)
        return replace(render, rgb=render.rgb * 0.9)


def missing():
    raise ImportError("no numba here")


@pytest.mark.parametrize(("factory", "reason"), [(missing, "no numba here"), (WrongRenderer, "differ from torch")])
def test_a_backend_that_fails_is_skipped_with_one_warning(fresh_backends, monkeypatch, caplog, factory, reason):
    monkeypatch.setitem(backends._BACKENDS, "numba", factory)
    with caplog.at_level(logging.WARNING):
        assert get_renderer().name == get_renderer().name == "torch"
        assert available_renderers() == ("torch",)
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(InputError, match="'numba' does not work on cpu; expected one of auto, torch"):
        get_renderer("numba")
