"""Evaluation of checkpoints on held-out objects: ``python -m microdreamer_core.training.evaluate --help``.

Four fixed sets: toys, classless shapes, held-out meshes of ``--meshes`` and all meshes of ``--objects``. Each object is
rendered from the front as reference, and from front, right, back and left as ground truth. Two baselines without 3D are scored
too: the reference copied to every side (mirrored for the back), and the mean image of the set.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..diffusion.ddim import add_noise
from ..diffusion.embedded.checkpoint import SHIPPED
from ..diffusion.embedded.model import EmbeddedDiffusion, EmbeddedModel
from ..diffusion.embedded.network import EmbeddedConfig
from ..diffusion.embedded.raycast import on_white, render_toy
from ..diffusion.embedded.toys import CATEGORIES, HELD_OUT, make_toy
from ..errors import InputError
from ..evaluation import metrics
from ..fields.protocol import WHITE
from ..io.pictures import write_picture
from ..reference import Reference
from ..sir.iterations import sir_iterations
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.stages import denoise_views, forward_views
from ..sir.start import start_field
from ..sir.step import INITIALISATION, Step
from .classless import make_shape
from .meshes import held_out_files, mesh_files, read_surfaces, sample_variation
from .surfaces import Surface, frame_surface, render_surface
from .train import Subject

log = logging.getLogger("microdreamer.evaluate")

_REFERENCE_ELEVATION, _ELEVATION = 5.0, 10.0
_SIDES = (0.0, 90.0, 180.0, 270.0)
_SOLID = 0.93
"""Pixels with a darker channel belong to the object, because the network gives no alpha."""


@dataclass(frozen=True)
class Case:
    """An object's reference and ground truth: four sides [4,S,S,3] and, for SIR, eight other views; silhouettes [V,S,S,1]."""

    name: str
    reference: Reference
    sides: Tensor
    silhouettes: Tensor
    around: Tensor


Sets = dict[str, list[tuple[str, Subject]]]
"""Names and objects of each set."""


def make_case(name: str, subject: Subject, config: EmbeddedConfig) -> Case:
    """Render an object: toys at their own size, surfaces framed like a job's reference, all in the toys' light."""
    front = orbit_cameras(_REFERENCE_ELEVATION, 0.0, config.radius, config.fov_y, 2 * config.image_size)
    if isinstance(subject, Surface):
        subject = frame_surface(subject, front.c2w[0].numpy(), config.fov_y, config.fill)
    shown = _render_subject(subject, front)[0]
    sides, around = _render_subject(subject, side_cameras(config)), _render_subject(subject, around_cameras(config))
    reference = Reference(shown[..., :3] * shown[..., 3:] + 1 - shown[..., 3:], shown[..., 3:], _REFERENCE_ELEVATION)
    pictures, others = (torch.from_numpy(on_white(x.numpy())) for x in (sides, around))
    return Case(name, reference, pictures, sides[..., 3:], others)


def _render_subject(subject: Subject, cameras: Cameras) -> Tensor:
    """[V,S,S,4]."""
    if isinstance(subject, Surface):
        return torch.from_numpy(render_surface(subject, cameras))
    return render_toy(subject, cameras)


def side_cameras(config: EmbeddedConfig) -> Cameras:
    """Return the four cameras of a case's sides, at the model's size."""
    return orbit_cameras(_ELEVATION, torch.tensor(_SIDES), config.radius, config.fov_y, config.image_size)


def around_cameras(config: EmbeddedConfig) -> Cameras:
    """Return the eight cameras of its other views."""
    return orbit_cameras(_ELEVATION, torch.arange(8) * 45.0 + 22.5, config.radius, config.fov_y, config.image_size)


def held_out_sets(count: int, meshes: Path | None = None, pack: str | None = None, objects: Path | None = None) -> Sets:
    """Build the four sets, at most ``count`` objects each, evenly chosen from those available.

    Raises:
        InputError: a folder holds no meshes.
    """
    names = list(CATEGORIES)
    sets: Sets = {
        "toys": [(f"{i} {n}", make_toy(HELD_OUT + i, n)) for i, n in ((i, names[i % len(names)]) for i in range(count))],
        "classless": [(f"{i}", make_shape(HELD_OUT + i)) for i in range(count)],
    }
    if meshes is not None:
        chosen, _ = read_surfaces(meshes, _evenly(held_out_files(meshes, pack), count))
        turned = (sample_variation([surface], np.random.default_rng(i), free=False) for i, (_, surface) in enumerate(chosen))
        sets["meshes"] = [(path.relative_to(meshes).as_posix(), s) for (path, _), s in zip(chosen, turned, strict=True)]
    if objects is not None:
        chosen, _ = read_surfaces(objects, _evenly(mesh_files(objects), count))
        sets["objects"] = [(path.relative_to(objects).as_posix(), surface) for path, surface in chosen]
    return sets


def _evenly(items: list, count: int) -> list:
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, min(count, len(items)))]


@torch.no_grad()
def predictions(diffusion: EmbeddedDiffusion, case: Case, cameras: Cameras, plan: SIRPlan, seed: int) -> dict[str, Tensor]:
    """Predict [4,S,S,3] by the network: in one step from the true views at t = 999, and by sampling from noise by the plan."""
    conditioning = diffusion.condition(cameras)
    latents = diffusion.encode(case.sides)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    x0 = diffusion.denoised(add_noise(latents, 999, noise, diffusion.process), 999, conditioning, 1.0)
    step = Step(cameras, plan, seed, INITIALISATION, diffusion=diffusion)
    samples = denoise_views(step, forward_views(step, None))[1]
    return {"x0": diffusion.decode(x0), "sample": samples.clamp(0, 1)}


def guesses(cases: Sequence[Case], case: Case) -> dict[str, Tensor]:
    """Make the baselines [4,S,S,3]: the reference copied (mirrored for the back), and the mean of the set's sides."""
    front = case.reference.at_size(case.sides.shape[1]).image
    return {
        "copied": torch.stack([front, front, front.flip(1), front]),
        "mean": torch.stack([c.sides for c in cases]).mean((0, 1)).expand_as(case.sides),
    }


def compare(images: Tensor, case: Case) -> dict[str, float]:
    """Compute the PSNR in dB of near, side and back views and their mean, and the silhouettes' IoU."""
    near, right, back, left = (metrics.psnr(a, b) for a, b in zip(images, case.sides, strict=True))
    iou = metrics.silhouette_iou((images.amin(-1, keepdim=True) < _SOLID).float(), case.silhouettes)
    side = (right + left) / 2
    return {"all": (near + 2 * side + back) / 4, "near": near, "side": side, "back": back, "iou": iou}


def evaluate_sir(model: EmbeddedModel, case: Case, plan: SIRPlan, seed: int) -> dict[str, float]:
    """Run SIR and return its Gaussians' PSNR in dB after the initialisation (K = 0) and at the end, on eight held-out views."""
    around = around_cameras(model.config)
    start = start_field("gaussians", model.image_size, seed)
    scores = {}
    for iteration in sir_iterations(start, model.condition(case.reference), plan, seed, reference=case.reference):
        if iteration.k in (-1, plan.iterations - 1):
            rgb = iteration.field.render(around, WHITE).rgb.clamp(0, 1)
            key = f"sir{iteration.k + 1}"
            scores[key] = statistics.mean(metrics.psnr(a, b) for a, b in zip(rgb, case.around, strict=True))
    return scores


def evaluate(
    checkpoints: dict[str, Path],
    sets: Sets,
    out: Path,
    sir: int = 0,
    seeds: Sequence[int] = (0, 1),
) -> dict:
    """Score checkpoints and baselines on all sets; writes ``scores.json``, ``scores.md`` and a sheet per set and checkpoint.

    Args:
        checkpoints: files by their names in the tables.
        sir: number of objects of each set to reconstruct, each with ``seeds``.

    Returns:
        {set: {method: {object: {measure: value}}}}.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan, models = get_plan("embedded-high"), {name: EmbeddedModel.load(path) for name, path in checkpoints.items()}
    config = next(iter(models.values())).config
    cases = {title: [make_case(name, subject, config) for name, subject in some] for title, some in sets.items()}
    scores: dict = {}
    for title, some in cases.items():
        rows = scores.setdefault(title, {})
        for case in some:
            for name, images in guesses(some, case).items():
                rows.setdefault(name, {})[case.name] = compare(images, case)
        for name, model in models.items():
            strips = []
            for i, case in enumerate(some):
                made = predictions(model.condition(case.reference), case, side_cameras(model.config), plan, i)
                for kind, images in made.items():
                    rows.setdefault(f"{name} {kind}", {})[case.name] = compare(images, case)
                strips.append(torch.cat([case.reference.at_size(model.image_size).image[None], case.sides, *made.values()]))
                if i < sir:
                    runs = [evaluate_sir(model, case, plan, seed) for seed in seeds]
                    mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
                    rows.setdefault(f"{name} SIR", {})[case.name] = mean
            _write_sheet(strips, out / f"{title}_{name}.png")
            log.info("%s, %s: %s", title, name, _means(rows[f"{name} x0"]))
    (out / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    (out / "scores.md").write_text(table(scores), encoding="utf-8")
    return scores


def _means(objects: dict[str, dict[str, float]]) -> dict[str, float]:
    first = next(iter(objects.values()))
    return {key: round(statistics.mean(row[key] for row in objects.values()), 3) for key in first}


def table(scores: dict) -> str:
    """Write the scores as a Markdown table with a row for each set and method."""
    lines = ["| set | method | PSNR | near | side | back | IoU | SIR K = 0 | K = end |", "|---" * 9 + "|"]
    for title, methods in scores.items():
        for method, objects in methods.items():
            mean = _means(objects)
            cells = [f"{mean[key]:.2f}" if key in mean else "" for key in ("all", "near", "side", "back", "iou", "sir0")]
            end = [f"{value:.2f}" for key, value in mean.items() if key.startswith("sir") and key != "sir0"]
            lines.append(f"| {title} ({len(objects)}) | {method} | {' | '.join(cells)} | {''.join(end)} |")
    return "\n".join(lines) + "\n"


def _write_sheet(strips: list[Tensor], path: Path) -> None:
    """Write one row per object, enlarged twice: reference, four true sides, one-step prediction, samples."""
    lines = torch.cat([torch.cat(list(strip), 1) for strip in strips])
    write_picture(path, F.interpolate(lines.permute(2, 0, 1)[None], scale_factor=2)[0].permute(1, 2, 0).clamp(0, 1))


def main(argv: list[str] | None = None) -> None:
    """Compare checkpoints from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoints", nargs="*", type=Path, default=[SHIPPED], help="files to compare (default: the shipped)")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded-scores"), help="folder of tables and sheets")
    parser.add_argument("--meshes", type=Path, metavar="FOLDER", help="the folder of training, for its held-out meshes")
    parser.add_argument("--held-out-pack", metavar="NAME", help="as in training")
    parser.add_argument("--objects", type=Path, metavar="FOLDER", help="other meshes, y up, front to +z")
    parser.add_argument("--count", type=int, default=24, help="objects of each set")
    parser.add_argument("--sir", type=int, default=0, metavar="N", help="reconstruct N objects of each set with two seeds")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.count < 1:
        raise InputError(f"--count is at least 1, got {args.count}; 24 is usual.")
    sets = held_out_sets(args.count, args.meshes, args.held_out_pack, args.objects)
    evaluate({path.stem: path for path in args.checkpoints}, sets, args.out, args.sir)
    log.info("%s", (args.out / "scores.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
