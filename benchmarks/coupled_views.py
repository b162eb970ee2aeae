"""SIR of Gaussians with views that are denoised alone, in groups or all together, with an exact model.

    python benchmarks/coupled_views.py --json FILE [--seeds 4]

Three objects are equally likely, and the model's score of them is exact, for as many views as see each other: one (a plain
checkpoint), four (a 2 x 2 grid, or shared attention that were perfect) or all. Two sets of objects: three textures on one bumpy
ball, and three toys of different shape. "share" is the part of the pixels of eight test views, among those where the objects
differ, that are nearest to one and the same object; PSNR is that of whole test views to this object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from texture_field import RADIUS, LoneViews, Scene, bumpy_ball, sir_plan
from torch import Tensor

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.analytic import AnalyticDiffusion, ObjectRenderer, toy_renderer
from microdreamer_core.diffusion.embedded.toys import make_held_out_toy
from microdreamer_core.fields.protocol import WHITE, Field
from microdreamer_core.job.record import machine, versions, write_json
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.start import start_field
from microdreamer_core.util.markdown import write_table

SIZE = 64
INIT_STEPS = 115
"""With a round of density control, as in the preset `embedded`."""
_DIFFERS = 0.2
"""Least difference of two objects' colours in a pixel that tells them apart."""


@dataclass(frozen=True)
class Setting:
    """Views of an iteration, how many of them see each other, and K."""

    views: int
    group: int
    iterations: int

    @property
    def title(self) -> str:
        coupling = {1: "alone", self.views: "together"}.get(self.group, f"in groups of {self.group}")
        return f"{self.views} views {coupling}, K = {self.iterations}"


SETTINGS = [Setting(*numbers) for numbers in ((4, 1, 5), (4, 1, 20), (4, 4, 5), (8, 1, 5), (8, 4, 5), (8, 8, 5))]


class SpreadViews(LoneViews):
    """Groups as *Model from ComfyUI* makes them: view i belongs to group i modulo V / G, so that each is spread all around."""

    def condition(self, cameras: Cameras) -> list[Any]:
        return super().condition(cameras[self._order(len(cameras))])

    def denoised(self, latents: Tensor, t: int, conditioning: list[Any], guidance_scale: float) -> Tensor:
        order = self._order(len(latents))
        return super().denoised(latents[order], t, conditioning, guidance_scale)[order.argsort()]

    def _order(self, views: int) -> Tensor:
        return torch.arange(views).reshape(self.group, -1).T.flatten()


def objects() -> dict[str, ObjectRenderer]:
    """Return both sets of objects."""
    return {
        "textures": Scene.of_points(bumpy_ball(), 128, SIZE).render,
        "toys": toy_renderer(list(map(make_held_out_toy, range(3)))),
    }


def run_sir(render: ObjectRenderer, setting: Setting, seed: int) -> tuple[Field, int]:
    """Run SIR from noise; returns the last field and the network evaluations."""
    model = SpreadViews(AnalyticDiffusion(render=render, image_size=SIZE, spread=0.1), setting.group)
    plan = sir_plan(SIZE, setting.iterations, views=setting.views, init_steps=INIT_STEPS)
    (*_, last) = sir_iterations(start_field("gaussians", SIZE, seed), model, plan, seed)
    return last.field, model.evaluations


@torch.no_grad()
def score(render: ObjectRenderer, field: Field) -> dict[str, float]:
    """Compare a field with the objects from eight sides that no iteration saw."""
    cameras = orbit_cameras(0.0, torch.arange(8) * 45.0 + 10.0, RADIUS, width=SIZE)
    images, shown = render(cameras), field.render(cameras, WHITE).rgb.clamp(0, 1)
    errors = (images - shown).square().mean(-1)
    best = errors.mean((1, 2, 3)).argmin()
    differ = (images[:, None] - images[None]).abs().amax((0, 1, -1)) > _DIFFERS
    share = (errors[:, differ].argmin(0) == best).float().mean()
    return {"share": float(share), "psnr": float(-10 * errors[best].mean().log10())}


def measure(seeds: int, settings: list[Setting] = SETTINGS) -> list[dict[str, Any]]:
    """Run every setting on both sets of objects; a row for each."""
    rows = []
    for title, render in objects().items():
        for setting in settings:
            begin, scores, evaluations = time.process_time(), [], 0
            for seed in range(seeds):
                field, evaluations = run_sir(render, setting, seed)
                scores.append(score(render, field))
            seconds = (time.process_time() - begin) / seeds
            row = {"objects": title, "setting": setting.title, "evaluations": evaluations, "cpu_seconds": seconds}
            rows.append({**row, "seeds": scores})
            sys.stdout.write(f"{_cells(rows[-1])}\n")
            sys.stdout.flush()
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    numbers = {name: [seed[name] for seed in row["seeds"]] for name in ("share", "psnr")}
    spread = {name: f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})" for name, found in numbers.items()}
    return row["objects"], row["setting"], str(row["evaluations"]), *spread.values(), f"{row['cpu_seconds']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    rows = measure(args.seeds)
    header = ("objects", "views", "evaluations", "share of one object", "PSNR dB", "CPU s")
    sys.stdout.write(f"{write_table(header, list(map(_cells, rows)))}\n")
    write_json(args.json, {"table": rows, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
