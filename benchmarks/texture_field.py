"""SIR on the texture of a mesh against one-shot projection and inpainting, with an exact model; seconds and memory by size.

    python benchmarks/texture_field.py --json FILE [--seeds 4]      # the table: 4 minutes on 2 cores
    python benchmarks/texture_field.py --json FILE --sizes 1024 2048 4096

Three objects of one shape and three textures are equally likely, and the model's score of them is exact; but it denoises every
view alone (what a plain checkpoint knows: the shape, not which texture the other views show), or groups of four. "share" is the
part of the pixels of eight test views that belong to one and the same object, "whole" their PSNR in dB to that object,
"nearest" to the nearest object pixel by pixel. Seams: the mean step of colour across borders of charts against that inside.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion
from microdreamer_core.diffusion.ddim import add_noise, ddim_step, sample
from microdreamer_core.diffusion.protocol import ViewCount
from microdreamer_core.diffusion.timesteps import timestep_grid
from microdreamer_core.fields.protocol import StepRange
from microdreamer_core.fields.texture import TextureField, texture_field
from microdreamer_core.job.record import machine, versions, write_json
from microdreamer_core.mesh import Mesh, vertex_normals
from microdreamer_core.meshing.project import Projection, project_images
from microdreamer_core.meshing.retexture import final_projection
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.render.mesh import sample_texture, texture_view
from microdreamer_core.render.texels import fill_nearest, texel_map
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.plan import SIRPlan

RADIUS = 1.5
WHITE = torch.ones(3)
TRUST = Projection(reach=0.0)


def bumpy_ball(rows: int = 24, columns: int = 48) -> Mesh:
    """Return a ball with three bumps around it and its longitude and latitude as uvs."""
    theta, phi = torch.linspace(0.02, math.pi - 0.02, rows), torch.linspace(0, 2 * math.pi, columns)
    a, b = torch.meshgrid(theta, phi, indexing="ij")
    r = 0.5 * (1 + 0.15 * torch.sin(3 * b) * torch.sin(a))
    vertices = torch.stack([r * a.sin() * b.sin(), r * a.cos(), r * a.sin() * b.cos()], -1).reshape(-1, 3)
    uvs = torch.stack([b / (2 * math.pi), a / math.pi], -1).reshape(-1, 2).clamp(0, 1)
    i = (torch.arange(rows - 1)[:, None] * columns + torch.arange(columns - 1)).reshape(-1)
    down = i + columns
    faces = torch.cat([torch.stack([i, down, i + 1], 1), torch.stack([i + 1, down, down + 1], 1)])
    return Mesh(vertices, faces, uvs, vertex_normals(vertices, faces))


@dataclass(frozen=True)
class Scene:
    """One mesh and M textures [M,T,T,3], seen at ``size`` pixels."""

    mesh: Mesh
    textures: Tensor
    size: int

    @classmethod
    def of_points(cls, mesh: Mesh, texels: int, size: int) -> Scene:
        """Paint a mesh with three patterns of two colours: stripes around it, rings, and a screw."""
        points = texel_map(mesh, texels)
        x, y, z = points.positions.unbind(1)
        turn = torch.atan2(x, z)
        waves = torch.sin(6 * turn), torch.sin(10 * math.pi * y), torch.sin(4 * turn + 6 * math.pi * y)
        textures = []
        for seed, wave in enumerate(waves):
            colors = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed)) * 0.8 + 0.1
            texture = torch.zeros(texels, texels, 3)
            texture[points.used] = torch.where(wave[:, None] > 0, colors[0], colors[1])
            textures.append(fill_nearest(texture, points.used))
        return cls(mesh, torch.stack(textures), size)

    def render(self, cameras: Cameras) -> Tensor:
        """Render all objects: [M,V,H,W,3]."""
        view = texture_view(self.mesh, cameras, 2)
        return torch.stack([view.render(texture, WHITE) for texture in self.textures])

    def model(self, group: int = 1) -> LoneViews:
        """Return the exact model that denoises ``group`` views at a time."""
        return LoneViews(AnalyticDiffusion(render=self.render, image_size=self.size, spread=0.1), group)

    def cameras(self, azimuths: Sequence[float] | Tensor, size: int | None = None) -> Cameras:
        return orbit_cameras(0.0, azimuths, RADIUS, width=size or self.size)

    def score(self, mesh: Mesh) -> dict[str, float]:
        """Compare a textured mesh with the three objects from eight sides that no method used."""
        view = texture_view(self.mesh, self.cameras(torch.arange(8) * 45.0 + 10.0, 2 * self.size), 2)
        inside, shown = view.alpha[..., 0] > 0.99, view.render(mesh.require_texture(), WHITE)
        errors = [(shown - view.render(texture, WHITE)).square().mean(-1)[inside] for texture in self.textures]
        error = torch.stack(errors)
        best = error.mean(1).argmin()
        share = float((error.argmin(0) == best).float().mean())
        return {"share": share, "whole": _psnr(error[best]), "nearest": _psnr(error.amin(0))}


@dataclass
class LoneViews:
    """A model whose groups of views know nothing of each other: the responsibilities are computed for each alone."""

    inner: AnalyticDiffusion
    group: int = 1
    evaluations: int = 0
    view_count: ViewCount = field(default_factory=ViewCount)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def condition(self, cameras: Cameras) -> list[Any]:
        return [self.inner.condition(cameras[i : i + self.group]) for i in range(0, len(cameras), self.group)]

    def denoised(self, latents: Tensor, t: int, conditioning: list[Any], guidance_scale: float) -> Tensor:
        self.evaluations += len(latents)
        parts = zip(latents.split(self.group), conditioning, strict=True)
        return torch.cat([self.inner.denoised(x, t, mixture, 1.0) for x, mixture in parts])


def sir_plan(size: int, iterations: int, **changes: Any) -> SIRPlan:
    """Return the plan of the table: 4 views, 15 steps, no reference."""
    usual = {"steps": 15, "init_steps": 15, "guidance_scale": 1.0, "image_size": size, "radius": RADIUS}
    return SIRPlan("texture", iterations=iterations, **{**usual, **changes})


def run_sir(scene: Scene, model: LoneViews, seed: int, iterations: int = 20, **changes: Any) -> TextureField:
    """Run SIR on a grey texture."""
    current = texture_field(scene.mesh, scene.textures.shape[1], "grey")
    for iteration in sir_iterations(current, model, sir_plan(scene.size, iterations, **changes), seed):
        assert isinstance(iteration.field, TextureField)
        current = iteration.field
    return current


def run_sir_and_project(scene: Scene, model: LoneViews, seed: int, iterations: int = 20) -> TextureField:
    """Run SIR, then the final projection."""
    return final_projection(run_sir(scene, model, seed, iterations), model, radius=RADIUS, seed=seed)


def run_one_shot(scene: Scene, model: LoneViews, seed: int, views: int = 8, steps: int = 20) -> TextureField:
    """Sample all views from noise and project them once."""
    cameras, current = scene.cameras(torch.arange(views) * (360.0 / views)), _grey(scene)
    noise = torch.randn(views, 3, scene.size, scene.size, generator=torch.Generator().manual_seed(seed))
    return _project(current, cameras, _sample(model, cameras, noise, timestep_grid(steps)[::-1]))


def run_sequential(scene: Scene, model: LoneViews, seed: int, views: int = 8, steps: int = 20) -> TextureField:
    """Paint view by view, as projection with inpainting does: what earlier views painted is replaced at every step."""
    rng, current = torch.Generator().manual_seed(seed), _grey(scene)
    path = timestep_grid(steps)[::-1]
    order = sorted(range(views), key=lambda i: (min(i, views - i), i))
    for i in order:
        cameras = scene.cameras([i * 360.0 / views])
        view = texture_view(scene.mesh, cameras, 2)
        done = (current.seen > 0).float().expand(-1, -1, 3)
        known = (view.render(done, torch.zeros(3))[..., :1] > 0.9).float().permute(0, 3, 1, 2)
        now = model.encode(view.render(current.texture, WHITE))
        x, mixture = torch.randn(now.shape, generator=rng), model.condition(cameras)
        for t, after in zip(path, (*path[1:], -1), strict=True):
            noisy = add_noise(now, t, torch.randn(now.shape, generator=rng), model.process)
            x = known * noisy + (1 - known) * x
            x = ddim_step(x, model.denoised(x, t, mixture, 1.0), t, after, model.process)
        painted = _project(current, cameras, model.decode(known * now + (1 - known) * x))
        current = replace(painted, texture=torch.where(current.seen > 0, current.texture, painted.texture))
    return current


METHODS: dict[str, tuple[int, Callable[[Scene, LoneViews, int], TextureField]]] = {
    "one shot, 8 views": (1, run_one_shot),
    "sequential inpainting, 8 views": (1, run_sequential),
    "SIR, K = 5, and projection": (1, partial(run_sir_and_project, iterations=5)),
    "SIR, K = 20": (1, run_sir),
    "SIR, K = 20, and projection": (1, run_sir_and_project),
    "one shot, 8 views in fours": (4, run_one_shot),
    "SIR, K = 5, views in fours": (4, partial(run_sir, iterations=5)),
    "SIR, K = 5, views in fours, and projection": (4, partial(run_sir_and_project, iterations=5)),
}
"""Views that are denoised together, and the method."""


def seam_ratio(mesh: Mesh, depth: float = 0.25, points: int = 8) -> float:
    """Return the mean step of colour across the borders of charts against that across edges inside them.

    Points along every edge are compared in pairs, one on either side, at a share ``depth`` of the way to the faces' centres.
    """
    places, same = torch.unique(mesh.vertices, dim=0, return_inverse=True)
    corners = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    corners = torch.where((same[corners[:, :1]] < same[corners[:, 1:]]), corners, corners.flip(1))
    owner = torch.arange(len(mesh.faces)).repeat_interleave(3)
    keys = same[corners[:, 0]] * len(places) + same[corners[:, 1]]
    order = keys.argsort(stable=True)
    first, second = order[:-1], order[1:]
    paired = keys[first] == keys[second]
    first, second = first[paired], second[paired]
    uvs, along = mesh.texture_coordinates(), ((torch.arange(points) + 0.5) / points)[:, None]
    centres = uvs[mesh.faces].mean(1)

    def beside(edges: Tensor) -> Tensor:
        ends = uvs[corners[edges]]
        on_edge = torch.lerp(ends[:, None, 0], ends[:, None, 1], along)
        uv = torch.lerp(on_edge, centres[owner[edges]][:, None], depth)
        return sample_texture(mesh.require_texture(), uv.reshape(-1, 2)).reshape(len(edges), points, 3)

    step = (beside(first) - beside(second)).abs().mean((1, 2))
    seam = (corners[first] != corners[second]).any(1)
    return float(step[seam].mean() / step[~seam].mean())


def measure_table(scene: Scene, seeds: Sequence[int], methods: Sequence[str] = tuple(METHODS)) -> list[dict[str, Any]]:
    """Run methods with all seeds; a row for each."""
    rows = []
    for name in methods:
        group, run = METHODS[name]
        begin, scores, model = time.process_time(), [], scene.model(group)
        for seed in seeds:
            model = scene.model(group)
            scores.append(scene.score(run(scene, model, seed).mesh))
        mean = {key: statistics.mean(score[key] for score in scores) for key in scores[0]}
        seconds = (time.process_time() - begin) / len(scores)
        rows.append({"method": name, **mean, "evaluations": model.evaluations, "cpu_seconds": seconds, "seeds": scores})
    return rows


def measure_size(size: int, views: int = 4, pixels: int = 256, steps: int = 15) -> dict[str, Any]:
    """Time one iteration's fit of a [size,size] texture to ``views`` random images, and the peak memory of this process."""
    import trimesh

    shape = trimesh.creation.icosphere(5, 0.5)
    mesh = unwrap(Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)), min(size, 2048))
    resting, begin = peak_memory(), time.perf_counter()
    current = texture_field(mesh, size, "grey")
    made = time.perf_counter()
    targets = torch.rand(views, pixels, pixels, 3, generator=torch.Generator().manual_seed(0))
    cameras = orbit_cameras(10.0, torch.arange(views) * (360.0 / views), 2.0, width=pixels)
    optimizer = current.optimizer(StepRange(steps, 0))
    optimizer.render(cameras)
    ready = time.perf_counter()
    for _ in range(steps):
        render = optimizer.render(cameras)
        optimizer.step((render.rgb - targets).abs().sum() / views, render)
    stepped = time.perf_counter()
    current = optimizer.finish().complete()
    done = time.perf_counter()
    seconds = {"start": made - begin, "rasterise": ready - made, "step": (stepped - ready) / steps, "complete": done - stepped}
    return {"size": size, "seconds": seconds, "peak_memory_mb": peak_memory(), "before_mb": resting}


def peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _grey(scene: Scene) -> TextureField:
    return texture_field(scene.mesh, scene.textures.shape[1], "grey")


def _sample(model: LoneViews, cameras: Cameras, noise: Tensor, path: Sequence[int]) -> Tensor:
    mixture = model.condition(cameras)
    return model.decode(sample(noise, path, lambda x, t: model.denoised(x, t, mixture, 1.0), model.process))


def _project(current: TextureField, cameras: Cameras, images: Tensor) -> TextureField:
    """Lay images over a texture and mark what they show."""
    view = texture_view(current.surface, cameras, 2)
    mesh = project_images(current.mesh, cameras, images, view.alpha, TRUST)
    marked = replace(current.surface, texture=current.seen.expand(-1, -1, 3).contiguous())
    seen = project_images(marked, cameras, torch.ones_like(images), torch.ones_like(view.alpha), TRUST)
    return replace(current, texture=mesh.require_texture(), seen=(seen.require_texture()[..., :1] > 0.5).float())


def _psnr(error: Tensor) -> float:
    return float(-10 * error.mean().log10())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", help="measure these sizes in place of the table")
    parser.add_argument("--one-size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_size:
        write_json(args.json, measure_size(args.one_size))
        return
    write, content = sys.stdout.write, {"machine": machine(), "versions": versions()}
    if args.sizes:
        content["sizes"] = [_measure_apart(size, args.json) for size in args.sizes]
        for row in content["sizes"]:
            seconds = ", ".join(f"{name} {value:.2f} s" for name, value in row["seconds"].items())
            write(f"{row['size']:5d}  {seconds}, {row['peak_memory_mb'] - row['before_mb']:.0f} MB\n")
        write_json(args.json, content)
        return
    scene = Scene.of_points(bumpy_ball(), 128, 48)
    content["table"] = measure_table(scene, range(args.seeds))
    for row in content["table"]:
        numbers = f"share {row['share']:.2f}  whole {row['whole']:4.1f} dB  nearest {row['nearest']:4.1f} dB"
        write(f"{row['method']:44s} {numbers}  {row['evaluations']:5d} evaluations  {row['cpu_seconds']:4.1f} CPU s\n")
    write_json(args.json, content)


def _measure_apart(size: int, path: Path) -> dict[str, Any]:
    """Measure in a process of its own, for its peak memory."""
    import json

    subprocess.run([sys.executable, __file__, "--one-size", str(size), "--json", str(path)], check=True)
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
