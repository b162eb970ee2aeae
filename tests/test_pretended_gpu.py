"""The whole way from picture to textured mesh with every tensor on a GPU, which is pretended: nothing may mix devices, no
array may be made of a GPU's tensor, and nothing may be read while a CUDA graph is recorded."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tiny_checkpoints
from helpers.pretend_cuda import pretend_cuda
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.checkpoints.load import ModelOptions, load
from microdreamer_core.cli import main as cli
from microdreamer_core.convert.nerf_to_gaussians import gaussians_from_nerf
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.diffusion.graphs import CudaRecorder
from microdreamer_core.fields.clean import remove_white
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.io.mesh_files import read_mesh
from microdreamer_core.job import run as job
from microdreamer_core.meshing import density
from microdreamer_core.meshing.pipeline import texture_mesh
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.reference import Reference, ReferenceView
from microdreamer_core.render import Splats, backends, splat_cuda
from microdreamer_core.sir import presets
from microdreamer_core.sir.reconstruct import reconstruct
from microdreamer_core.util.devices import to_device_async


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU; numba draws in place of the CUDA renderer, and graphs are the calls themselves."""
    backends._load.cache_clear()
    monkeypatch.setitem(backends._BACKENDS, "cuda", backends._numba)
    recorded = []

    def record(self, call):
        with found.recording():
            output = call()
        recorded.append(output)
        return lambda: output.copy_(call()), output

    monkeypatch.setattr(CudaRecorder, "record", record)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)  # a CUDA build of torch would ask the driver
    with pretend_cuda(monkeypatch) as found:
        found.recorded = recorded
        yield found
    backends._load.cache_clear()


def test_the_pretence_refuses_what_a_gpu_refuses(gpu):
    ours, theirs = torch.ones(3, device="cuda"), torch.ones(3)
    assert ours.device == (2 * ours[1:]).device == torch.device("cuda:0") and theirs.device.type == "cpu"
    for mix in (lambda: ours + theirs, lambda: torch.stack([ours[0], theirs[0]]), lambda: theirs[ours > 0]):
        with pytest.raises(RuntimeError, match="device|indexed"):
            mix()
    for read in (ours.numpy, lambda: np.asarray(ours)):
        with pytest.raises(TypeError, match="cuda:0"):
            read()
    for call in (ours.cpu, ours.tolist, lambda: ours.sum().item(), lambda: ours[ours > 0]):
        with gpu.recording(), pytest.raises(RuntimeError, match="capturing"):
            call()
        call()
    leaf = theirs.requires_grad_()
    (leaf.to("cuda") * ours).sum().cpu().backward()
    assert leaf.grad.tolist() == [1, 1, 1] and leaf.grad.device.type == "cpu"
    layer = torch.nn.Linear(3, 2).to("cuda")
    assert layer.weight.device.type == "cuda" and layer(ours).device.type == "cuda"


@pytest.fixture
def emulated(gpu, emulated_cuda, monkeypatch):
    """The CUDA renderer's own kernels, whose arguments must all be on the GPU."""
    plain = splat_cuda.arguments

    def arguments(*given):
        tensors = [value for value in given if isinstance(value, torch.Tensor)]
        # zeros: torch's engine makes the cotangents that nobody gave, and knows nothing of the pretence
        assert all(t.is_contiguous() and (gpu.on_gpu(t) or not t.any()) for t in tensors)
        return plain(*given)

    monkeypatch.setattr(splat_cuda, "arguments", arguments)
    monkeypatch.setitem(backends._BACKENDS, "cuda", lambda: splat_cuda.CudaSplatRenderer(emulated_cuda._launch, "cuda"))
    return backends.get_renderer("auto", "cuda")


def test_auto_takes_the_cuda_renderer_after_its_probe(emulated):
    assert emulated.name == "cuda"


def test_the_cuda_renderer_takes_tensors_of_the_cpu(emulated):
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.rand(20, k, generator=draw).requires_grad_() for k in (3, 4, 3, 1, 3)]
    splats = Splats(*tensors[:2], 0.1 * tensors[2], tensors[3][:, 0], tensors[4])
    render = emulated(splats, orbit_cameras(0.0, [0.0], width=20), torch.ones(3), track_means2d=True)
    (render.rgb.sum() + render.depth.sum()).backward()
    assert {t.device.type for t in (render.rgb, render.radii, render.means2d, tensors[0].grad)} == {"cpu"}


def test_gaussians_learn_and_are_cleaned_on_a_gpu(emulated):
    settings = GaussianSettings(num_points=60, density=DensitySettings(every=2, until=4, grad_threshold=1e-3))
    cameras, front = (orbit_cameras(10.0, azimuths, 2.0, width=16) for azimuths in ([0.0, 120.0], [0.0]))
    targets = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)).to("cuda")
    reference = ReferenceView(front, torch.rand(1, 16, 16, 3), torch.ones(1, 16, 16, 1), 1.0, 1.0)
    learned = reconstruct(Gaussians.ball(settings, device="cuda"), cameras, targets, 5, reference=reference).field
    white = learned.parameters._replace(dc=torch.full_like(learned.parameters.dc, 1.8))
    cleaned = remove_white(replace(learned, parameters=white), cameras=front)
    assert len(learned) != 60 and learned.device.type == cleaned.device.type == "cuda"


def test_what_density_control_leaves_too_many_goes_when_their_number_has_come(gpu, monkeypatch):
    """Without waiting for it, and the result is that of the CPU."""
    settings = GaussianSettings(num_points=60, density=DensitySettings(every=3, until=3, grad_threshold=60.0))
    cameras = orbit_cameras(10.0, [0.0, 120.0], 2.0, width=16)
    targets = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    on_cpu = reconstruct(Gaussians.ball(settings), cameras, targets, 8).field
    drawn, draw = [], backends.get_renderer("auto", "cuda")
    monkeypatch.setattr(
        Gaussians, "renderer", lambda self: lambda splats, *a, **k: drawn.append(len(splats)) or draw(splats, *a, **k)
    )
    learned = reconstruct(Gaussians.ball(settings, device="cuda"), cameras, targets.to("cuda"), 8).field
    assert 60 < len(learned) < 120 and drawn == [60] * 3 + [120] * 2 + [len(learned)] * 3 and gpu.waits() == 0
    # vectorised functions may round the last of fewer numbers otherwise
    assert all(torch.allclose(a.cpu(), b, atol=1e-6) for a, b in zip(learned.parameters, on_cpu.parameters, strict=True))
    stopped = reconstruct(Gaussians.ball(settings, device="cuda"), cameras, targets.to("cuda"), 4).field
    assert len(stopped) == len(learned) and gpu.waits() == 1, "at the end it is waited for"
    counts, targets = [], targets.to("cuda")
    watch = lambda current: counts.append(len(current()))  # noqa: E731
    watched = reconstruct(Gaussians.ball(settings, device="cuda"), cameras, targets, 8, watch=watch).field
    assert counts == [60] * 2 + [len(learned)] * 6, "a copy for whoever watches holds no padding"
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(watched.parameters, learned.parameters, strict=True))


def test_what_is_handed_over_goes_through_page_locked_memory(gpu, monkeypatch):
    """In its final precision, else a pageable copy would be made on the way, and waited for."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.dtype) or self.clone())
    like, noise = torch.zeros(1, dtype=torch.float16, device="cuda"), torch.arange(3.0)
    there = to_device_async(noise, like)
    assert gpu.on_gpu(there) and there.dtype == torch.float16 and pinned == [torch.float16]
    assert to_device_async(there, like) is there and len(pinned) == 1, "what is there stays"


@pytest.mark.parametrize("background", ["learned", "white"])
def test_a_nerf_learns_and_becomes_a_mesh_and_gaussians_on_a_gpu(gpu, background, monkeypatch):
    sizes = {"levels": 3, "log2_table": 10, "hidden": 8, "samples": 24, "occupancy_resolution": 16, "occupancy_every": 2}
    blob = {"density_scale": 100.0, "blob_scale": 60.0}
    nerf = NeRF.start(NeRFSettings(**sizes, **blob, background=background), device="cuda")
    cameras, front = (orbit_cameras(10.0, azimuths, 2.0, width=12) for azimuths in ([0.0, 120.0], [0.0]))
    targets = torch.rand(2, 12, 12, 3, generator=torch.Generator().manual_seed(0)).to("cuda")
    reference = ReferenceView(front, torch.rand(1, 12, 12, 3), torch.ones(1, 12, 12, 1), 1.0, 1.0)
    learned = reconstruct(nerf, cameras, targets, 4, reference=reference).field
    assert learned.device.type == "cuda" and learned.step == 4
    assert all(gpu.on_gpu(tensor) for tensor in learned.to_state()[0].values())
    if background == "learned":
        return  # what follows is on white in any case
    monkeypatch.setattr(density, "_SILHOUETTE_SIZE", 48)
    made = texture_mesh(learned, MeshSettings(resolution=24, target_faces=200, texture_size=64, views=12, view_size=24))
    assert made.mesh.texture.shape == (64, 64, 3)
    assert gaussians_from_nerf(learned, 50, resolution=24, size=16).device.type == "cuda"


@pytest.mark.slow
def test_a_job_of_a_released_model_in_half_precision(gpu, benchmark):
    """The GPU benchmark's own job: condition, SIR, clean, mesh, texture refinement, GLB."""
    timing = benchmark("gpu")
    device, sizes = torch.device("cuda"), replace(timing.TINY, plan=(*timing.TINY.plan, ("init_steps", 6)))
    model = timing.random_zero123(sizes.unet, sizes.vae, sizes.vision, device, torch.float16)
    rows = list(timing.Bench(device, sizes)._whole_job(model, 1, 1.0))
    assert any(row["stage"] == "K = 1, whole job" for row in rows)
    assert len(gpu.recorded) == 2 and all(gpu.on_gpu(output) and output.dtype == torch.float16 for output in gpu.recorded)


@pytest.mark.parametrize(("family", "dtype"), [("mvdream", "float32"), ("imagedream", "float32"), ("imagedream", "float16")])
def test_from_words_to_a_mesh_by_the_command_line(gpu, monkeypatch, tmp_path, family, dtype):
    """Nothing is said of a device, so the GPU is found; the model runs there on recorded calls, in half precision if asked."""
    preset = f"{family}-gaussians"
    monkeypatch.setitem(presets.PRESETS, preset, replace(presets.PRESETS[preset], discretization=2, steps=2, init_steps=4))
    small = partial(job.TextureRefinement.suited_to, views=4, discretization=4, steps=2)
    monkeypatch.setattr(job.TextureRefinement, "suited_to", small)
    small = MeshSettings(resolution=32, target_faces=200, texture_size=64, views=12, view_size=64)
    monkeypatch.setattr(cli, "mesh_settings", lambda args: small)
    command, out = ["text-to-3d"], tmp_path / "a.glb"
    if family == "imagedream":
        box = Image.new("RGBA", (64, 64))
        box.paste((200, 50, 50, 255), (20, 16, 40, 48))
        box.save(tmp_path / "box.png")
        command = ["image-to-3d", str(tmp_path / "box.png"), "--prompt"]
    model = ["--model", str(tiny_checkpoints.write(tmp_path, family, "safetensors"))]
    model += ["--dtype", dtype] if dtype == "float16" else []
    assert cli.main([*command, "a red box", *model, "-o", str(out), "--iterations", "1", "--quiet"]) == cli.DONE
    assert read_mesh(out).texture.shape[0] == 64
    assert gpu.recorded and all(gpu.on_gpu(output) and output.dtype == getattr(torch, dtype) for output in gpu.recorded)


def test_a_call_of_the_shipped_model(gpu):
    model = EmbeddedModel.load(device="cuda")
    model.use_graphs()
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    diffusion = model.condition(Reference(picture, torch.ones(64, 64, 1)))
    conditioning = diffusion.condition(orbit_cameras(10.0, torch.arange(4) * 90.0))
    latents = torch.randn(4, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0)).to("cuda")
    for guidance in (0.0, 2.0) * 3:
        assert diffusion.denoised(latents, 501, conditioning, guidance).device.type == "cuda"
    assert diffusion.decode(latents).device.type == "cuda" and len(gpu.recorded) == 2


@pytest.mark.parametrize("low_memory", [False, True], ids=["usual", "low memory"])
@pytest.mark.parametrize("family", ["mvdream", "imagedream", "zero123"])
def test_a_call_of_the_released_models(gpu, tmp_path, family, low_memory):
    path = tiny_checkpoints.write(tmp_path, family, "safetensors")
    model = load(path, ModelOptions(dtype="float16", low_memory=low_memory), device="cuda")
    towers = [tower.model for tower in (model.parts.text, model.parts.vision) if tower]
    assert {tower.device.type for tower in towers} == {"cpu" if low_memory else "cuda"}
    assert {tower.dtype for tower in towers} == {torch.float32 if low_memory else torch.float16}
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    reference = Reference(picture, torch.ones(64, 64, 1)) if model.takes_picture else None
    diffusion = model.condition(reference, **({"prompt": "a red box"} if model.takes_prompt else {}))
    conditioning = diffusion.condition(orbit_cameras(10.0, torch.arange(4) * 90.0))
    latents = torch.randn(4, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0)).to("cuda")
    for guidance in (0.0, 2.0) * 3:
        assert diffusion.denoised(latents, 501, conditioning, guidance).device.type == "cuda"
    pictures = diffusion.decode(latents)
    assert pictures.device.type == diffusion.encode(pictures).device.type == "cuda"
    assert len(gpu.recorded) == (0 if low_memory else 2)
