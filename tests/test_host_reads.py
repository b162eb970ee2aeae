"""Where the host waits for an accelerator: reads and copies are counted, on the CPU taken for one and on "meta"."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.ddim import hybrid_forward, sample
from microdreamer_core.diffusion.noise import STABLE_DIFFUSION
from microdreamer_core.diffusion.timesteps import inversion_path, sampling_path
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.reference import ReferenceView
from microdreamer_core.render.protocol import Render
from microdreamer_core.sir.reconstruct import reconstruct
from microdreamer_core.util import devices

SIZE, VIEWS = 16, 3
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "repeat_interleave.Tensor", "unique")
SETTINGS = GaussianSettings(num_points=60, density=DensitySettings(every=4, until=8, grad_threshold=1e-3, split_scale=0.08))


class HostReads(TorchDispatchMode):
    """Notes what makes the host wait for a device: numbers read back, results whose size depends on data, copies to it.

    Float64 is left out: the noise schedule, a table of the host.
    """

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.")
        if name.startswith(READS) or (name.startswith("index") and _by_mask(args)):
            self.note(args[0], name)
        if name.startswith("_to_copy") and args[0].device.type == "cpu" and kwargs.get("device", args[0].device).type != "cpu":
            self.copies.append(name)
        return func(*args, **kwargs)

    def note(self, tensor, name):
        if tensor.device.type == self.device and tensor.dtype != torch.float64:
            self.reads.append(name)


def _by_mask(args) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in indices)


@contextmanager
def counted(monkeypatch, device="cpu"):
    """The reads within; ``tolist`` and ``numpy`` do not pass the dispatcher on the CPU."""
    mode = HostReads(device)
    with monkeypatch.context() as patch:
        for name in ("tolist", "numpy"):
            patch.setattr(torch.Tensor, name, _noted(mode, name, getattr(torch.Tensor, name)))
        with mode:
            yield mode


def _noted(mode, name, original):
    def call(self, *args, **kwargs):
        mode.note(self, name)
        return original(self, *args, **kwargs)

    return call


class SoftRenderer:
    """Blobs on a plane, in plain tensor operations that read nothing back."""

    name = "soft"

    def __init__(self, spoil=()):
        self.calls, self.spoil = 0, spoil

    def __call__(self, splats, cameras, background, *, antialiased=False, track_means2d=False):
        probe = splats.means.new_zeros(len(cameras), len(splats), 2).requires_grad_() if track_means2d else None
        seen = torch.einsum("vij,nj->vni", cameras.viewmats[:, :3, :3], splats.means)[..., :2] * (0.5 * SIZE) + SIZE / 2
        seen = seen if probe is None else seen + probe
        along = torch.arange(SIZE, device=splats.means.device, dtype=torch.float32) + 0.5
        width = (splats.scales.mean(1) * SIZE)[:, None, None].clamp_min(0.5)
        dx, dy = along - seen[..., :1], along - seen[..., 1:]
        weight = splats.opacities[:, None, None] * torch.exp(-0.5 * (dx[:, :, None] ** 2 + dy[..., None] ** 2) / width**2)
        alpha = 1 - torch.exp(-weight.sum(1))[..., None]
        rgb = torch.einsum("vnhw,nc->vhwc", weight, splats.colors) / (weight.sum(1)[..., None] + 1e-3)
        self.calls += 1
        if self.calls in self.spoil:
            rgb = rgb + self.spoil[self.calls] * (rgb - rgb.detach()).abs().sqrt()  # finite value, infinite derivative
        radii = (width[None, :, 0] * torch.ones_like(seen)).detach().to(torch.int32) + 1
        return Render(rgb * alpha + background * (1 - alpha), alpha, alpha, radii, probe)


@pytest.fixture
def renderer(monkeypatch):
    soft = SoftRenderer()
    monkeypatch.setattr(Gaussians, "renderer", lambda self: soft)
    return soft


@pytest.fixture(params=["soft", "CUDA kernels"])
def any_renderer(request, monkeypatch):
    """Also that of NVIDIA's GPUs, whose kernels are built as C++ here."""
    chosen = SoftRenderer() if request.param == "soft" else request.getfixturevalue("emulated_cuda")
    monkeypatch.setattr(Gaussians, "renderer", lambda self: chosen)
    return chosen


@pytest.fixture
def ahead(monkeypatch):
    """The CPU counts as an accelerator."""
    monkeypatch.setattr(devices, "is_async", lambda device: True)


def cameras():
    return orbit_cameras(10.0, torch.arange(VIEWS) * 120.0, 2.0, width=SIZE)


def targets():
    return torch.rand(VIEWS, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(3))


def front():
    view = orbit_cameras(0.0, 0.0, 2.0, width=SIZE)
    return ReferenceView(view, torch.rand(1, SIZE, SIZE, 3), torch.ones(1, SIZE, SIZE, 1), 1.0, 1.0)


def fit(steps, **known):
    return reconstruct(Gaussians.ball(SETTINGS), cameras(), targets(), steps, **known)


def state(field):
    return field.to_state()[0]


@pytest.mark.parametrize(("steps", "densified"), [(3, 0), (7, 1), (11, 2)])
def test_steps_read_nothing_density_control_included(any_renderer, ahead, monkeypatch, steps, densified):
    known = Gaussians.ball(SETTINGS), cameras(), targets(), steps
    view = front()
    with counted(monkeypatch) as found:
        result = reconstruct(*known, reference=view)
    # all at the end: what became of loss and gradients, how many Gaussians stand, the losses; and before a second density
    # control, how many stood after the first
    counts = ["_local_scalar_dense.default"]
    assert found.reads == counts * (densified - 1) + ["tolist"] + counts * (densified > 0) + ["tolist"], found.reads
    assert (len(result.field) != SETTINGS.num_points) == bool(densified)
    assert len(result.losses) == steps


def test_the_counter_sees_what_the_cpu_reads_at_once(renderer, monkeypatch):
    with counted(monkeypatch) as found:
        fit(3)
    assert found.reads.count("_local_scalar_dense.default") >= 3 * 6


def test_a_late_look_changes_nothing(renderer, monkeypatch):
    at_once = fit(9, reference=(view := front()))
    monkeypatch.setattr(devices, "is_async", lambda device: True)
    late = fit(9, reference=view)
    assert late.losses == at_once.losses and len(late.field) == len(at_once.field)
    assert all(torch.equal(tensor, state(at_once.field)[name]) for name, tensor in state(late.field).items())


def test_nothing_is_read_from_a_device_that_holds_nothing(renderer, monkeypatch):
    """On "meta" every read fails: all steps run, and the first read is that of the end. Nothing is copied there in a step."""
    field = replace(
        Gaussians.ball(SETTINGS).to("meta"), settings=replace(SETTINGS, density=DensitySettings(every=50, until=50))
    )
    copies = []

    def check():
        copies.append(len(found.copies))

    known = cameras(), targets().to("meta"), 5
    view, error = front(), pytest.raises((NotImplementedError, RuntimeError), match="meta")
    with counted(monkeypatch, "meta") as found, error:
        reconstruct(field, *known, reference=view, check=check)
    assert len(copies) == renderer.calls == 5 and found.reads == ["tolist"]
    # the first step makes the matrices of the cameras, later ones find them
    assert len(set(copies[1:])) == 1 and len(found.copies) == copies[1]


@pytest.mark.parametrize("steps", [3, 6])  # before and after density control
def test_a_late_error_names_its_step_and_the_field_stays(renderer, ahead, steps):
    renderer.spoil = {2: 1.0}
    field = Gaussians.ball(SETTINGS)
    before = field.clone()
    with pytest.raises(NumericalError, match="The gradient of means is not finite at update 2 of the Gaussians"):
        reconstruct(field, cameras(), targets(), steps)
    assert all(torch.equal(tensor, state(before)[name]) for name, tensor in state(field).items())
    renderer.calls, renderer.spoil = 0, {3: float("nan")}
    with pytest.raises(NumericalError, match="The loss is not finite at update 3 of the Gaussians"):
        reconstruct(field, cameras(), targets(), steps)


class Plain:
    """A field whose optimizer checks nothing."""

    kind = "plain"
    step_count = 0

    def optimizer(self, stretch=None):
        return self

    def render(self, cameras, background=None):
        picture = torch.full((len(cameras), SIZE, SIZE, 3), 0.5, requires_grad=True)
        return Render(picture, picture[..., :1], picture[..., :1])

    def step(self, loss, render):
        self.step_count += 1

    def finish(self):
        return self


def test_losses_of_any_field_are_checked_at_the_end(ahead):
    field, wrong = Plain(), targets()
    assert reconstruct(field, cameras(), wrong, 2).losses[0] > 0
    wrong[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="reconstruction loss became nan at step 0 of 4"):
        reconstruct(field, cameras(), wrong, 4)
    assert field.step_count == 2 + 4


def test_sampling_reads_once_at_its_end(ahead, monkeypatch):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    calls = []

    def denoise(x, t):
        calls.append(t)
        return 0.1 * x

    with counted(monkeypatch) as found:
        sample(x, sampling_path(500, 10), denoise, STABLE_DIFFUSION, eta=0.5, generator=torch.Generator().manual_seed(1))
    assert len(calls) == 6 and found.reads == ["_local_scalar_dense.default"]
    with counted(monkeypatch) as found:
        rng = torch.Generator().manual_seed(1)
        hybrid_forward(x, inversion_path(100, 500, 10), denoise, STABLE_DIFFUSION, generator=rng)
    assert len(calls) > 9 and found.reads == ["_local_scalar_dense.default"]


def test_late_samples_that_are_not_finite_are_refused(ahead):
    x = torch.zeros(1, 4, 2, 2)
    for call in (
        lambda denoise: sample(x, sampling_path(500, 10), denoise, STABLE_DIFFUSION),
        lambda denoise: hybrid_forward(x, inversion_path(100, 500, 10), denoise, STABLE_DIFFUSION, noise=x),
    ):
        calls = []

        def denoise(x, t, calls=calls):
            calls.append(t)
            return x + (float("nan") if len(calls) == 2 else 0.0)

        with pytest.raises(NumericalError, match="not finite"):
            call(denoise)
        assert len(calls) > 2, "it went on to the end"


def test_handing_over_keeps_values_and_takes_the_precision():
    x = torch.arange(4.0)
    assert torch.equal(devices.to_device_async(x, torch.zeros(1, dtype=torch.float64)), x.double())
    assert devices.to_device_async(x, "meta").device.type == "meta" and devices.to_device_async(x, "cpu") is x
    assert devices.is_async("cuda") and devices.is_async("mps") and not devices.is_async(torch.device("cpu"))


def test_cameras_made_in_inference_mode_serve_learning():
    with torch.inference_mode():
        views = cameras()
        Gaussians.ball(SETTINGS).render(views)  # keeps the matrices
    assert not views.viewmats.is_inference() and not views.Ks.is_inference()
    assert views.to("cpu") is views and views.resize(8).Ks[0, 0, 0] == views.Ks[0, 0, 0] / 2
    with pytest.raises(InputError):
        orbit_cameras(91.0, 0.0, device="meta")
    assert orbit_cameras(10.0, 0.0, device="meta").c2w.device.type == "meta"


@pytest.mark.parametrize("family", ["mvdream", "zero123", "embedded"])
def test_a_networks_call_neither_reads_nor_copies(monkeypatch, family):
    """On "meta": what is known on the host is not copied to the device at every call, where it would be waited for."""
    diffusion, copies = on_meta(family)
    views = 4
    conditioning = diffusion.condition(orbit_cameras(10.0, torch.arange(views) * 90.0))
    x = torch.empty(views, *diffusion.latent_shape, device="meta")
    with counted(monkeypatch, "meta") as found:
        for guidance in (0.0, 2.0):
            assert diffusion.denoised(x, 501, conditioning, guidance).shape == x.shape
    assert found.reads == [] and len(found.copies) == 2 * copies


def on_meta(family):
    """(a diffusion model that holds no numbers, copies that do not wait in each of its calls)"""
    from microdreamer_core.diffusion.embedded.model import EmbeddedModel
    from microdreamer_core.diffusion.latent import Parts
    from microdreamer_core.diffusion.mvdream import MVDreamDiffusion
    from microdreamer_core.diffusion.unet import UNetConfig, build_unet
    from microdreamer_core.diffusion.zero123 import Zero123Diffusion
    from microdreamer_core.reference import Reference

    if family == "embedded":
        picture = torch.rand(64, 64, 3)
        return EmbeddedModel.load(device="meta").condition(Reference(picture, picture[..., :1])), 1
    small = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention": (False, True)}
    small |= {"num_heads": 2, "context_dim": 64}
    vae = type("NoVae", (), {"factor": 8})()
    if family == "mvdream":
        return MVDreamDiffusion(Parts(build_unet(UNetConfig(**small)), vae), torch.empty(2, 77, 64, device="meta")), 0
    unet = build_unet(UNetConfig(in_channels=8, camera_dim=None, **small))
    parts = Parts(unet, vae, camera=torch.nn.Linear(68, 64, device="meta"))
    embed, latent = torch.empty(1, 64, device="meta"), torch.empty(1, 4, 32, 32, device="meta")
    return Zero123Diffusion(parts, embed, latent, 0.0, True), 0
