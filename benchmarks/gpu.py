"""All GPU benchmarks in one command: python benchmarks/gpu.py [--json FILE] [--sections NAME ...]

Sections: "first use" of every splat renderer in a new process, "conformance" of renders and gradients with float64,
"renderer", "kernels" of the best one by torch's profiler, "unet" and "vae" at Stable Zero123's size with random weights, and
"sir": picture to textured GLB at that size. The targets and their verdicts come last. Networks of
random weights give no images, so SIR's targets are renders of a known object, in place of what the networks decoded after doing
all of their work. The physical limits are measured first: a large matrix product, a large copy.

``--device cpu --tiny`` runs the same code at toy size, as a smoke test; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sections import ROOT, Row, run_sections
from stand_ins import WithKnownPictures, known_object, picture_of, random_vae, random_zero123
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.unet import UNetConfig, build_unet
from microdreamer_core.job.record import machine, peak_memory_mb, versions, write_json
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.render import SplatRenderer, Splats, available_renderers, get_renderer
from microdreamer_core.render._cuda_program import CACHE_VARIABLE
from microdreamer_core.util.devices import to_channels_last

TOLERANCE = 1e-3  # relative, as in the probe of render.backends
TARGETS = (  # on one H100, as (section, stage, what is measured, limit)
    ("first use", "cuda, nothing cached", "seconds", 1.0),
    ("sir", "K = 20, whole job", "seconds", 6.0),
    ("sir", "K = 30, whole job", "seconds", 9.0),
    ("sir", "K = 20, peak", "memory_mb", 6000.0),
    ("sir", "K = 30, peak", "memory_mb", 6000.0),
)
NO_GPU = "There is no CUDA GPU here (torch finds none); run this on a machine with one, or add --device cpu --tiny to try it.\n"

_FIRST_USE = """
import json, sys, time
import torch
from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.render import get_renderer
device = torch.device(sys.argv[2])
torch.zeros(1, device=device)
begin = time.perf_counter()
get_renderer(sys.argv[1], device)
if device.type == "cuda":
    torch.cuda.synchronize()
print(json.dumps(time.perf_counter() - begin))
"""


@dataclass(frozen=True)
class Sizes:
    """Problem sizes; the defaults are the published ones."""

    gaussians: int = 10_000
    views: int = 6
    pixels: int = 256
    repeats: int = 20
    matrix: int = 8192
    copied: int = 2**30
    unet: UNetConfig = UNetConfig(in_channels=8, context_dim=768, num_heads=8, linear_projection=False, camera_dim=None)  # noqa: RUF009
    vae: tuple[int, ...] = (128, 256, 512, 512)
    vision: tuple[int, int, int, int, int] = (1024, 24, 16, 224, 14)
    iterations: tuple[int, ...] = (20, 30)
    plan: tuple[tuple[str, int], ...] = ()
    mesh: MeshSettings = MeshSettings()  # noqa: RUF009 - immutable
    texture: tuple[tuple[str, int], ...] = ()


TINY = Sizes(
    gaussians=200,
    views=2,
    pixels=64,
    repeats=2,
    matrix=128,
    copied=2**20,
    unet=UNetConfig(8, 4, 32, (1, 2), 1, (False, True), num_heads=4, context_dim=64, linear_projection=False, camera_dim=None),
    vae=(32, 32),
    vision=(64, 2, 4, 28, 7),
    iterations=(1, 2),
    plan=(("views", 2), ("init_steps", 30), ("steps", 2), ("discretization", 4)),
    mesh=MeshSettings(resolution=32, target_faces=400, texture_size=64, views=12, view_size=48),
    texture=(("views", 2), ("discretization", 8), ("steps", 3)),
)


class Meter:
    """Measures seconds, memory and shares of the limits of one device; always synchronises."""

    def __init__(self, device: torch.device, sizes: Sizes):
        self.device, self.sizes = device, sizes
        self._peaks: dict[torch.dtype, float] = {}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median over the repeats, after two calls to warm up."""
        times = []
        for repeat in range(self.sizes.repeats + 2):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            if repeat >= 2:
                times.append(time.perf_counter() - begin)
        return statistics.median(times)

    @contextmanager
    def memory(self) -> Iterator[Callable[[], float | None]]:
        """Measure the block's peak memory in MB: the GPU's, or the process's without a GPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / 1e6 if self.device.type == "cuda" else peak_memory_mb()

    def row(self, stage: str, call: Callable[[], object], **known) -> Row:
        with self.memory() as peak:
            seconds = self.seconds(call)
            return {"stage": stage, "seconds": seconds, "memory_mb": peak(), **known}

    def flops_per_second(self, dtype: torch.dtype) -> float:
        """Measure the rate of a large matrix product."""
        if dtype not in self._peaks:
            n = self.sizes.matrix
            a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            self._peaks[dtype] = 2 * n**3 / self.seconds(lambda: a @ b)
        return self._peaks[dtype]

    def bytes_per_second(self) -> float:
        """Measure the rate of a large copy within the device's memory, reads plus writes."""
        source = torch.empty(self.sizes.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * self.sizes.copied / self.seconds(lambda: target.copy_(source))

    def of_flops(self, row: Row, flops: float, dtype: torch.dtype) -> Row:
        """Return the row with its share of the device's peak rate."""
        share = flops / row["seconds"] / self.flops_per_second(dtype)
        return {**row, "flops": flops, "of_limit": share, "limit": "flops"}


class Bench:
    """The sections."""

    def __init__(self, device: torch.device, sizes: Sizes):
        self.device, self.sizes = device, sizes
        self.meter = Meter(device, sizes)
        self.half = (torch.float16, torch.bfloat16) if device.type == "cuda" else (torch.float32,)

    def sections(self) -> dict[str, Callable[[], Iterator[Row]]]:
        names = ("limits", "first use", "conformance", "renderer", "kernels", "unet", "vae", "sir")
        return {name: getattr(self, name.replace(" ", "_")) for name in names}

    def limits(self) -> Iterator[Row]:
        for dtype in (*self.half, torch.float32) if self.device.type == "cuda" else self.half:
            rate = self.meter.flops_per_second(dtype)
            yield {"stage": f"matrix product {_name(dtype)}", "flops_per_second": rate, "note": f"{rate / 1e12:.2f} Tflop/s"}
        rate = self.meter.bytes_per_second()
        yield {"stage": "copy", "bytes_per_second": rate, "note": f"{rate / 1e9:.1f} GB/s"}

    def first_use(self) -> Iterator[Row]:
        """Time compiling or loading kernels, and their comparison with the reference, in a new process."""
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {CACHE_VARIABLE: cache}
            for name in available_renderers(self.device):
                # only the CUDA renderer's cache is known here
                kinds = (", nothing cached", ", cached") if name == "cuda" else ("",)
                for kind in kinds:
                    command = [sys.executable, "-c", _FIRST_USE, name, str(self.device)]
                    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
                    if ran.returncode:
                        raise RuntimeError(f"{name}: {ran.stderr.strip().splitlines()[-1]}")
                    yield {"stage": name + kind, "seconds": json.loads(ran.stdout)}

    def conformance(self) -> Iterator[Row]:
        wrong = []
        for name in available_renderers(self.device):
            for antialiased in (False, True):
                error = conformance_error(get_renderer(name, self.device), self.device, antialiased)
                stage = f"{name}, {'antialiased' if antialiased else 'classic'}"
                if not error <= TOLERANCE:
                    wrong.append(stage)
                yield {"stage": stage, "error_relative": error, "note": f"differs by {error:.1e} from float64"}
        if wrong:
            raise ArithmeticError(f"{'; '.join(wrong)}: more than {TOLERANCE:.0e} away from float64")

    def renderer(self) -> Iterator[Row]:
        bandwidth = self.meter.bytes_per_second()
        for name in available_renderers(self.device):
            splats, forward, both = self._passes(name)
            for what, call, passes in (("forward", forward, 1), ("forward + backward", both, 2)):
                row = self.meter.row(f"{name}, {what}", call)
                least = passes * least_bytes(splats, self.sizes)
                yield {**row, "bytes": least, "of_limit": least / row["seconds"] / bandwidth, "limit": "bandwidth"}

    def _passes(self, name: str) -> tuple[Splats, Callable[[], object], Callable[[], object]]:
        """The benchmark's scene, its forward pass, and its forward and backward pass."""
        from renderer import scene

        splats, cameras = scene(self.sizes.gaussians, self.sizes.views, self.sizes.pixels)
        splats = Splats(*(t.detach().to(self.device).requires_grad_() for t in vars(splats).values()))
        cameras, white = cameras.to(self.device), torch.ones(3, device=self.device)
        draw = get_renderer(name, self.device)

        def forward():
            with torch.no_grad():
                return draw(splats, cameras, white)

        def both():
            render = draw(splats, cameras, white, track_means2d=True)
            ((render.rgb - 0.5).abs().sum() + render.alpha.sum()).backward()

        return splats, forward, both

    def kernels(self) -> Iterator[Row]:
        """List the kernels of the best renderer's forward and backward pass, the longest first."""
        name = available_renderers(self.device)[0]
        _, _, both = self._passes(name)
        both()
        gpu = self.device.type == "cuda"
        with torch.profiler.profile() as profiler:
            for _ in range(self.sizes.repeats):
                both()
            self.meter.wait()
        spent = [
            (event.self_device_time_total if gpu else event.self_cpu_time_total, event.count, event.key)
            for event in profiler.key_averages()
            if not gpu or event.device_type == torch.autograd.DeviceType.CUDA
        ]
        for microseconds, count, key in sorted(spent, reverse=True)[:20]:
            seconds, times = microseconds / 1e6 / self.sizes.repeats, count / self.sizes.repeats
            yield {"stage": f"{name}: {key[:36]}", "seconds": seconds, "note": f"{times:g} times per pass"}

    def unet(self) -> Iterator[Row]:
        rows = 2 * self.sizes.views
        x = torch.randn(rows, 4, 32, 32, device=self.device)
        context = torch.randn(rows, 1, self.sizes.unet.context_dim, device=self.device)
        concat = torch.randn(rows, 4, 32, 32, device=self.device)
        for dtype in self.half:
            network = build_unet(self.sizes.unet, self.device).requires_grad_(False).to(dtype)

            def call(network=network):
                with torch.no_grad():
                    return network(x, 500, context, concat=concat)

            flops = count_flops(call)
            yield self._call(f"{_name(dtype)}, {rows} rows, as built", call, flops, dtype)
            to_channels_last(network, self.device)
            yield self._call(f"{_name(dtype)}, {rows} rows, channels last", call, flops, dtype)
            network.use_graphs()
            yield self._call(f"{_name(dtype)}, {rows} rows, CUDA graph", call, flops, dtype)

    def vae(self) -> Iterator[Row]:
        for dtype in self.half:
            autoencoder = random_vae(self.sizes.vae, self.device, dtype)
            pictures = torch.rand(self.sizes.views, *[32 * autoencoder.factor] * 2, 3, device=self.device)
            latents = torch.randn(self.sizes.views, 4, 32, 32, device=self.device)

            def encode(autoencoder=autoencoder, pictures=pictures):
                with torch.no_grad():
                    return autoencoder.encode(pictures)

            def decode(autoencoder=autoencoder, latents=latents):
                return autoencoder.decode(latents)

            for name, call in (("encode", encode), ("decode", decode)):
                yield self._call(f"{_name(dtype)}, {name} {self.sizes.views} views", call, count_flops(call), dtype)

    def sir(self) -> Iterator[Row]:
        model = random_zero123(self.sizes.unet, self.sizes.vae, self.sizes.vision, self.device, self.half[0])
        # counted now, because replayed calls hide what they do
        flops = one_evaluation_flops(model, self.device)
        self._whole_job(model, 1, flops)  # the first run compiles, records and warms up
        for iterations in self.sizes.iterations:
            yield from self._whole_job(model, iterations, flops)

    def _call(self, stage: str, call: Callable[[], object], flops: float, dtype: torch.dtype) -> Row:
        row = self.meter.of_flops(self.meter.row(stage, call), flops, dtype)
        if "graph" in stage and self.device.type != "cuda":
            row["note"] = f"no graphs on {self.device.type}: the same as above"
        return row

    def _whole_job(self, model, iterations: int, flops: float) -> list[Row]:
        """Rows of the stages from image to GLB, and of the whole; ``flops`` are those of one network evaluation, and what the
        autoencoder does is left out of the share."""
        from microdreamer_core.fields.clean import clean
        from microdreamer_core.io.glb import write_glb
        from microdreamer_core.job.run import Job, run_sir
        from microdreamer_core.meshing.pipeline import texture_mesh
        from microdreamer_core.meshing.refine import TextureRefinement, refine_texture
        from microdreamer_core.sir.presets import get_plan

        plan = get_plan("stable-zero123-gaussians", iterations=iterations, **dict(self.sizes.plan))
        truth = known_object(self.device)
        reference = picture_of(truth, model.image_size)
        seconds: dict[str, float] = {}

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            self.meter.wait()
            begin = time.perf_counter()
            yield
            self.meter.wait()
            seconds[name] = time.perf_counter() - begin

        with self.meter.memory() as peak, tempfile.TemporaryDirectory() as folder:
            with stage("whole job"):
                with stage("condition"):
                    diffusion = WithKnownPictures(model.condition(reference), truth)
                with stage("sir"):
                    field, _, parts = run_sir(Job(reference, plan), diffusion)
                with stage("clean"):
                    field = clean(field)
                with stage("mesh"):
                    made = texture_mesh(field.splats(), self.sizes.mesh)
                with stage("refine texture"):
                    settings = TextureRefinement(radius=plan.radius, fov_y=plan.fov_y)
                    mesh = refine_texture(made.mesh, diffusion, replace(settings, **dict(self.sizes.texture)))
                with stage("write"):
                    write_glb(Path(folder) / "object.glb", mesh)
            memory = peak()
        seconds |= {f"sir: {name}": value for name, value in parts.items()}
        seconds |= {f"mesh: {name}": value for name, value in made.seconds.items()}
        rows = [{"stage": f"K = {iterations}, {name}", "seconds": value} for name, value in seconds.items()]
        refine = next(row for row in rows if row["stage"].endswith("sir: refine"))
        rows[rows.index(refine)] = self.meter.of_flops(refine, flops * plan.evaluations().total, self.half[0])
        note = f"{len(field)} Gaussians, {len(mesh.faces)} faces, {diffusion.evaluations} evaluations"
        return [*rows, {"stage": f"K = {iterations}, peak", "memory_mb": memory, "note": note}]


def one_evaluation_flops(model, device: torch.device) -> float:
    """Count the network's FLOPs for one view and one guidance branch."""
    diffusion = model.condition(picture_of(known_object(device), model.image_size))
    conditioning = diffusion.condition(orbit_cameras(0.0, 0.0, model.radius, width=model.image_size))
    latents = torch.randn(1, 4, 32, 32, device=device)
    return count_flops(lambda: diffusion.denoised(latents, 500, conditioning, 0.0))


def conformance_error(renderer: SplatRenderer, device: torch.device, antialiased: bool) -> float:
    """Return the largest relative error of renders and gradients against plain torch in float64 on the CPU."""
    from renderer import scene

    splats, cameras = scene(300, 2, 48)
    found = _pictures_and_gradients(renderer, splats, cameras, device, torch.float32, antialiased)
    truth = _pictures_and_gradients(get_renderer("torch"), splats, cameras, "cpu", torch.float64, antialiased)
    return max(float((a.cpu().double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True))


def _pictures_and_gradients(renderer, splats, cameras, device, dtype, antialiased) -> list[Tensor]:
    own = [t.detach().to(device, dtype).requires_grad_() for t in vars(splats).values()]
    white = torch.ones(3, device=device, dtype=dtype)
    render = renderer(Splats(*own), cameras.to(device), white, antialiased=antialiased, track_means2d=True)
    pictures = [render.rgb, render.alpha, render.depth]
    draw = torch.Generator().manual_seed(1)
    weights = [torch.rand(p.shape, generator=draw).to(device, dtype) for p in pictures]
    return [p.detach() for p in pictures] + list(torch.autograd.grad(pictures, [*own, render.means2d], weights))


def verdicts(rows: dict[str, list[Row]]) -> list[Row]:
    """Judge the targets that were measured."""
    found = {(section, row["stage"]): row for section, several in rows.items() for row in several}
    limits = [(found.get((section, stage)), stage, what, limit) for section, stage, what, limit in TARGETS]
    ours, theirs = (found.get(("renderer", f"{name}, forward + backward")) for name in ("cuda", "gsplat"))
    if theirs is not None:
        limits.append((ours, "renderer, against gsplat", "seconds", theirs["seconds"]))
    return [
        {"stage": stage, "measured": what, "value": row[what], "target": limit, "met": row[what] <= limit}
        for row, stage, what, limit in limits
        if row is not None
    ]


def verdict_text(verdict: Row) -> str:
    scale, unit = (1.0, "MB") if verdict["measured"] == "memory_mb" else (1e3, "ms")
    value, target = scale * verdict["value"], scale * verdict["target"]
    return f"  {verdict['stage']:44s}{value:10.2f} {unit}, {'met' if verdict['met'] else 'MISSED'}: at most {target:.2f} {unit}"


def least_bytes(splats: Splats, sizes: Sizes) -> int:
    """Return the least bytes that a pass must move: every Gaussian once, every pixel of colour, coverage and depth once."""
    return 4 * (14 * len(splats) + 5 * sizes.views * sizes.pixels**2)


def count_flops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def select_device(name: str | None) -> torch.device | None:
    """Return the device to measure; None if there is no GPU and none was named."""
    if name is None:
        return torch.device("cuda") if torch.cuda.is_available() else None
    if name.startswith("cuda") and not torch.cuda.is_available():
        return None
    return torch.device(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: the CUDA GPU, without which nothing is measured")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--sections", nargs="+", metavar="NAME", help="only these (default: all)")
    args = parser.parse_args()
    device = select_device(args.device)
    if device is None:
        sys.stderr.write(NO_GPU)
        return 2
    bench = Bench(device, TINY if args.tiny else Sizes())
    known = bench.sections()
    if unknown := set(args.sections or ()) - known.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}; choose of {', '.join(known)}")
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, not a GPU"
    size = "toy sizes, the numbers mean nothing" if args.tiny else "published sizes, random weights"
    sys.stdout.write(f"on {kind}; {size}; median of {bench.sizes.repeats}\n")
    rows, failed = run_sections(known, args.sections)
    targets = [] if args.tiny else verdicts(rows)
    if targets:
        sys.stdout.write("\ntargets (for one H100)\n" + "".join(f"{verdict_text(each)}\n" for each in targets))
    if args.json:
        head = {"device": kind, "device_type": device.type, "tiny": args.tiny, "cuda": torch.version.cuda, "failed": failed}
        write_json(args.json, {**head, "targets": targets, "sections": rows, "machine": machine(), "versions": versions()})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
