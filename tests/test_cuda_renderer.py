"""What surrounds the CUDA kernels: compiling, caching, refusing; the gsplat adapter; and GPUs where there is one."""

import ctypes
import importlib.machinery
import json
import logging
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from helpers import cuda_emulation, reference_splats
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError
from microdreamer_core.render import Splats, _cuda_program, available_renderers, backends, get_renderer
from microdreamer_core.render.splat_gsplat import BUILD_VARIABLE, GsplatSplatRenderer
from microdreamer_core.render.splat_torch import TorchSplatRenderer

ROOT = Path(__file__).resolve().parent.parent
BINDINGS_PROGRAM = """
import ctypes, json, sys, types
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # its name inside is the driver's, which the bindings then find loaded
import torch
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.render import Splats, _cuda_program
from microdreamer_core.render.splat_cuda import CudaSplatRenderer
from microdreamer_core.render.splat_torch import TorchSplatRenderer
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda device: (9, 0)
torch.cuda.current_stream = lambda: types.SimpleNamespace(cuda_stream=42)
_cuda_program.load_kernels = lambda capability: b"machine code"
draw = torch.Generator().manual_seed(4)
values = [torch.rand(30, k, generator=draw) for k in (3, 4, 3, 1, 3)]
values = [values[0] - 0.5, values[1] - 0.5, 0.02 + 0.08 * values[2], 0.1 + 0.8 * values[3][:, 0], values[4]]
results = []
for renderer in CudaSplatRenderer(device_type="cpu"), TorchSplatRenderer():
    leaves = [t.clone().requires_grad_() for t in values]
    cameras = orbit_cameras(10.0, [20.0, 140.0], width=30, height=22)
    render = renderer(Splats(*leaves), cameras, torch.ones(3), antialiased=True, track_means2d=True)
    total = render.rgb.square().sum() + render.alpha.sum() + render.depth.sum()
    pictures = [render.rgb, render.alpha, render.depth]
    results.append([p.detach() for p in pictures] + list(torch.autograd.grad(total, [*leaves, render.means2d])))
print(json.dumps([float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True)]))
"""
CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.fixture
def nvrtc():
    try:
        return _cuda_program.nvrtc_version()
    except _cuda_program.CudaUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def fresh_backends():
    backends._load.cache_clear()
    backends._order_by_speed.cache_clear()
    yield
    backends._load.cache_clear()
    backends._order_by_speed.cache_clear()


def scene():
    draw = torch.Generator().manual_seed(4)
    count = 30
    values = [torch.rand(count, k, generator=draw) for k in (3, 4, 3, 1, 3)]
    sizes = 0.02 + 0.08 * values[2]
    return Splats(values[0] - 0.5, values[1] - 0.5, sizes, 0.1 + 0.8 * values[3][:, 0], values[4])


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_kernels_compile_for_every_gpu(nvrtc, capability):
    cubin = _cuda_program.compile_kernels(_cuda_program.architecture(capability))
    assert cubin[:4] == b"\x7fELF" and all(name.encode() in cubin for name in _cuda_program.KERNELS)


def test_a_gpu_newer_than_the_compiler_gets_ptx_of_the_newest_known(nvrtc):
    arch = _cuda_program.architecture((99, 0))
    assert arch.startswith("compute_1") and b".target sm_" in _cuda_program.compile_kernels(arch)
    assert _cuda_program.architecture((8, 1)) == "compute_80", "another GPU's machine code need not run on it"


def test_a_gpu_too_old_for_the_compiler_is_refused(nvrtc):
    with pytest.raises(_cuda_program.CudaUnavailable, match="and newer, this GPU has 3.0"):
        _cuda_program.architecture((3, 0))


def test_what_the_compiler_refuses_is_told_in_its_words(nvrtc):
    with pytest.raises(_cuda_program.CudaUnavailable, match="cannot compile for sm_30: .*gpu-architecture"):
        _cuda_program.compile_kernels("sm_30")


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Counts compilations, into a cache folder of its own."""
    calls = []
    monkeypatch.setenv(_cuda_program.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(_cuda_program, "nvrtc_version", lambda: "1.2")
    monkeypatch.setattr(_cuda_program, "architecture", lambda capability: "sm_{}{}".format(*capability))
    monkeypatch.setattr(_cuda_program, "compile_kernels", lambda arch: calls.append(arch) or b"code of %d" % len(calls))
    return calls


def test_machine_code_is_compiled_once_per_gpu_compiler_and_source(compiled, monkeypatch):
    assert [_cuda_program.load_kernels((9, 0)) for _ in range(2)] == [b"code of 1"] * 2
    assert _cuda_program.load_kernels((8, 9)) == b"code of 2"
    monkeypatch.setattr(_cuda_program, "nvrtc_version", lambda: "1.3")
    assert _cuda_program.load_kernels((9, 0)) == b"code of 3"
    monkeypatch.setattr(_cuda_program, "source", lambda: "other")
    assert _cuda_program.load_kernels((9, 0)) == b"code of 4"


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_cache_is_compiled_anew(compiled, damage):
    _cuda_program.load_kernels((9, 0))
    (file,) = _cuda_program.cache_folder().iterdir()
    file.write_bytes(damage)
    assert _cuda_program.load_kernels((9, 0)) == b"code of 2"
    assert _cuda_program.load_kernels((9, 0)) == b"code of 2"


def test_a_folder_that_cannot_be_written_is_no_error(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(_cuda_program.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert [_cuda_program.load_kernels((9, 0)) for _ in range(2)] == [b"code of 1", b"code of 2"]


def test_missing_packages_say_how_to_get_them(monkeypatch):
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "cuda.bindings.nvrtc"):
        monkeypatch.setitem(sys.modules, name, None)
    for version, words in (("12.8", "cuda-bindings==12.*' 'nvidia-cuda-nvrtc-cu12"), ("13.0", "cuda-bindings==13.*")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(_cuda_program.CudaUnavailable, match="pip install") as refusal:
            _cuda_program.nvrtc_version()
        assert words in str(refusal.value)


def test_a_launch_reaches_the_driver_on_torchs_stream(monkeypatch):
    """A stand-in for the driver records what it is asked, in whose context."""
    calls = []

    def answer(name, *values):
        return lambda *given: calls.append((name, given)) or (0, *values)

    names = {"cuInit": (), "cuDeviceGet": (7,), "cuDevicePrimaryCtxRetain": ("context",), "cuCtxSetCurrent": ()}
    names |= {"cuModuleLoadData": ("module",), "cuLaunchKernel": ()}
    driver = types.SimpleNamespace(**{name: answer(name, *values) for name, values in names.items()})
    driver.cuModuleGetFunction = lambda module, name: (0, name)
    driver.CUstream = lambda address: ("stream", address)
    monkeypatch.setattr(_cuda_program, "_bindings", lambda: (None, driver))
    monkeypatch.setattr(_cuda_program, "load_kernels", lambda capability: b"code for %d%d" % capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 5 + device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=42))
    _cuda_program._load.cache_clear()
    values = torch.zeros(3)
    _cuda_program.launch("project", (2, 3, 4), 64, *_cuda_program.arguments(5, values))
    _cuda_program._load.cache_clear()
    assert ("cuModuleLoadData", (b"code for 86",)) in calls and calls[-2] == ("cuCtxSetCurrent", ("context",))
    packed = (5, values.data_ptr()), (ctypes.c_int, ctypes.c_void_p)
    assert calls[-1] == ("cuLaunchKernel", (b"project", 2, 3, 4, 64, 1, 1, 0, ("stream", 42), packed, 0))


def test_the_real_bindings_bring_every_argument_to_the_driver(tmp_path):
    """cuda.bindings itself, in a process of its own whose driver is a stand-in that runs the kernels built as C++."""
    pytest.importorskip("cuda.bindings")
    if sys.platform != "linux" or cuda_emulation.find_compiler() is None:
        pytest.skip("needs Linux and a C++ compiler")
    driver = cuda_emulation.build_driver(tmp_path)
    ran = subprocess.run([sys.executable, "-c", BINDINGS_PROGRAM, driver], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    errors = json.loads(ran.stdout)
    assert len(errors) == 9 and max(errors) < 1e-5


def test_code_that_the_driver_refuses_says_what_may_be_wrong(monkeypatch):
    answers = {"cuInit": (0,), "cuDeviceGet": (0, 7), "cuDevicePrimaryCtxRetain": (0, "context"), "cuCtxSetCurrent": (0,)}
    status = types.SimpleNamespace(name="CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
    answers["cuModuleLoadData"] = (status,)
    driver = types.SimpleNamespace(**{name: lambda *_, answer=answer: answer for name, answer in answers.items()})
    monkeypatch.setattr(_cuda_program, "_bindings", lambda: (None, driver))
    monkeypatch.setattr(_cuda_program, "nvrtc_version", lambda: "13.5")
    monkeypatch.setattr(_cuda_program, "load_kernels", lambda capability: b"code")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    _cuda_program._load.cache_clear()
    with pytest.raises(_cuda_program.CudaUnavailable, match="UNSUPPORTED_PTX.* NVRTC 13.5 may be newer than the driver: pip"):
        _cuda_program._load(0)
    assert _cuda_program._load.cache_info().currsize == 0


def test_without_a_gpu_the_renderer_is_refused_once(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(InputError, match="'cuda' does not work on cpu; expected one of auto"):
                get_renderer("cuda")
    assert sum("no CUDA GPU" in record.getMessage() for record in caplog.records) == 1


def test_rocm_never_meets_the_cuda_kernels(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(backends, "_order_by_speed", lambda device_type: ("timed", device_type))
    assert backends._preference("cuda") == ("timed", "cuda")
    with pytest.raises(_cuda_program.CudaUnavailable, match="ROCm"):
        _cuda_program.check_usable()


@pytest.mark.parametrize("fast", ["torch", "numba"])
def test_other_devices_get_what_the_stopwatch_prefers(monkeypatch, fast):
    monkeypatch.setattr(backends, "_load", lambda name, device_type: name)
    monkeypatch.setattr(backends, "_seconds", lambda renderer, device_type: 1.0 if renderer == fast else 2.0)
    backends._order_by_speed.cache_clear()
    assert backends._preference("mps")[0] == fast


def test_the_stopwatch_draws(monkeypatch):
    monkeypatch.setattr(backends, "_TIMED_SCENE", (40, 24))
    assert 0 < backends._seconds(TorchSplatRenderer(), "cpu") < 60


def test_non_contiguous_inputs(emulated_cuda):
    splats = scene()
    strided = Splats(*(torch.stack([t, t], -1)[..., 0] for t in vars(splats).values()))
    assert not strided.means.is_contiguous()
    cameras = orbit_cameras(0.0, [30.0], width=20)
    expected = emulated_cuda(splats, cameras, torch.ones(3))
    assert torch.equal(emulated_cuda(strided, cameras, torch.ones(3)).rgb, expected.rgb)


@pytest.fixture
def fake_gsplat(monkeypatch):
    """A module gsplat backed by the torch renderer, which records how it was called."""
    calls = []

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):  # noqa: N803
        calls.append(options)
        cameras = orbit_cameras(10.0, [20.0, 140.0], width=width, height=height)
        assert torch.equal(viewmats, cameras.viewmats) and torch.equal(Ks, cameras.Ks)
        splats = Splats(means, quats, scales, opacities, colors)
        antialiased = options["rasterize_mode"] == "antialiased"
        render = TorchSplatRenderer()(splats, cameras, options["backgrounds"], antialiased=antialiased, track_means2d=True)
        meta = {"radii": render.radii, "means2d": render.means2d}
        return torch.cat([render.rgb, render.depth], -1), render.alpha, meta

    for name in ("gsplat", "gsplat.csrc"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="compiled")
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["gsplat"].rasterization = rasterization
    return calls


@pytest.mark.parametrize("antialiased", [False, True])
def test_gsplat_is_called_as_its_interface_asks(fake_gsplat, antialiased):
    splats, cameras = scene(), orbit_cameras(10.0, [20.0, 140.0], width=30, height=22)
    results = []
    for renderer in (GsplatSplatRenderer(), TorchSplatRenderer()):
        leaves = [t.clone().requires_grad_() for t in vars(splats).values()]
        background = torch.rand(3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        render = renderer(Splats(*leaves), cameras, background, antialiased=antialiased, track_means2d=True)
        outputs = [render.rgb, render.alpha, render.depth]
        total = sum((o * (i + o.detach())).sum() for i, o in enumerate(outputs))
        results.append([*outputs, render.radii, *torch.autograd.grad(total, [*leaves, background, render.means2d])])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))
    (options,) = fake_gsplat
    assert options["packed"] is False and options["render_mode"] == "RGB+D"
    assert options["rasterize_mode"] == ("antialiased" if antialiased else "classic")


def test_gsplat_renders_may_be_differentiated_twice(fake_gsplat):
    """As the removal of white Gaussians does."""
    leaf = scene().colors.clone().requires_grad_()
    splats = Splats(*(leaf if name == "colors" else tensor for name, tensor in vars(scene()).items()))
    render = GsplatSplatRenderer()(splats, orbit_cameras(10.0, [20.0, 140.0], width=30, height=22), torch.ones(3))
    first, second = (torch.autograd.grad(render.rgb.sum(), leaf, retain_graph=keep)[0] for keep in (True, False))
    assert torch.equal(first, second) and first.abs().sum() > 0


def test_gsplat_is_built_only_on_request(fake_gsplat, monkeypatch):
    monkeypatch.delenv(BUILD_VARIABLE, raising=False)
    monkeypatch.delitem(sys.modules, "gsplat.csrc")
    with pytest.raises(ImportError, match=f"{BUILD_VARIABLE}=1"):
        GsplatSplatRenderer()
    monkeypatch.setenv(BUILD_VARIABLE, "1")
    assert GsplatSplatRenderer().name == "gsplat"


@pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("antialiased", [False, True])
def test_gpu_renderers_match_the_dense_reference(antialiased):
    names = available_renderers("cuda")
    assert names[0] == "cuda"
    cameras, background = orbit_cameras(10.0, [20.0, 140.0, 260.0], width=61, height=45), torch.tensor([0.2, 0.5, 0.7])
    truth = Splats(*(t.double().requires_grad_() for t in vars(scene()).values()))
    moved = torch.zeros(3, len(truth), 2, dtype=torch.float64, requires_grad=True)
    *expected, clear = reference_splats.render(truth, cameras, background.double(), antialiased, moved)
    weights = [torch.rand(p.shape).double() * clear for p in expected]
    gradients = torch.autograd.grad(expected, [*vars(truth).values(), moved], weights)
    for name in names:
        own = Splats(*(t.cuda().requires_grad_() for t in vars(scene()).values()))
        options = {"antialiased": antialiased, "track_means2d": True}
        render = get_renderer(name, "cuda")(own, cameras.to("cuda"), background.cuda(), **options)
        pictures = [render.rgb, render.alpha, render.depth]
        got = torch.autograd.grad(pictures, [*vars(own).values(), render.means2d], [w.float().cuda() for w in weights])
        for a, b in zip(pictures, expected, strict=True):
            assert float(((a.cpu() - b) * clear).abs().max()) < 1e-4, name
        for a, b in zip(got, gradients, strict=True):
            assert float((a.cpu() - b).norm() / b.norm()) < 1e-4, name
