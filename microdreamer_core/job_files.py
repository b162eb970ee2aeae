"""The files that a job leaves: mesh, splat, film, contact sheet, report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from . import __version__
from .cameras import DEFAULT_FOV_Y, Cameras, orbit_cameras
from .errors import InputError
from .io.glb import write_glb
from .io.mesh_files import read_mesh
from .io.ply import read_splat_ply, write_splat_ply
from .io.video import render_frames, write_contact_sheet, write_video
from .job import Asset, Job
from .render.mesh import render_mesh
from .report import machine, peak_memory_mb, versions, write_json

FILM_FRAMES, FILM_SIZE, FILM_ELEVATION = 48, 384, 10.0
SHEET_VIEWS = 8


def write_asset(asset: Asset, job: Job, output: Path, *, splat: bool, film: bool, report: bool) -> dict[str, Path]:
    """Write a job's results beside ``output`` (a .glb); each file appears whole or not at all.

    Returns:
        What was written, by kind.
    """
    stem = output.with_suffix("")
    provenance = {"generator": f"microdreamer {__version__}", "source": job.source, "model": job.model, "seed": job.seed}
    files = {"mesh": write_glb(output, asset.mesh, {**provenance, "plan": asdict(job.plan)})}
    if splat:
        files["splat"] = write_splat_ply(stem.with_suffix(".ply"), asset.field)
    if film:
        clock = asset.clock
        with clock.stage("film"):
            frames = film_frames(asset)
            files["film"] = write_video(Path(f"{stem}_turntable.mp4"), frames)
            files["contact sheet"] = _write_sheet(Path(f"{stem}_sheet.png"), job, frames)
    if report:
        files["report"] = write_json(stem.with_suffix(".json"), report_content(asset, job, files))
    return files


def film_frames(asset: Asset) -> Tensor:
    """One turn around the textured mesh."""
    extent = float(asset.mesh.vertices.norm(dim=1).max())
    cameras = film_cameras(extent, FILM_FRAMES, FILM_SIZE, FILM_ELEVATION)
    return render_frames(lambda views: render_mesh(asset.mesh, views, supersample=2).rgb, cameras)


def _write_sheet(path: Path, job: Job, frames: Tensor) -> Path:
    """The reference and evenly spread frames of the film, with their azimuths."""
    views = frames[:: len(frames) // SHEET_VIEWS][:SHEET_VIEWS]
    reference = job.reference.at_size(frames.shape[1]).image[None]
    captions = ["reference", *(f"{round(i * 360 / SHEET_VIEWS)} degrees" for i in range(SHEET_VIEWS))]
    return write_contact_sheet(path, torch.cat([reference, views]), columns=3, captions=captions)


def report_content(asset: Asset, job: Job, files: dict[str, Path]) -> dict:
    """Everything measured, as JSON values."""
    return {
        "source": job.source,
        "model": job.model,
        "preset": job.plan.name,
        "seed": job.seed,
        "plan": asdict(job.plan),
        "seconds": {name: round(value, 3) for name, value in asset.clock.seconds.items()},
        "seconds_total": round(asset.clock.total, 3),
        "evaluations": {"planned": asdict(job.plan.evaluations(job.seed)), "used": asset.evaluations},
        "iterations": [asdict(record) for record in asset.records],
        "gaussians": len(asset.field),
        "mesh": {"vertices": len(asset.mesh.vertices), "faces": len(asset.mesh.faces), "texture": asset.mesh.texture.shape[0]},
        "peak_memory_mb": peak_memory_mb(),
        "files": {kind: path.name for kind, path in files.items()},
        "machine": machine(),
        "versions": versions(),
    }


def film_cameras(extent: float, frames: int, size: int, elevation: float) -> Cameras:
    """A turn around an object whose farthest point is ``extent`` from the origin, all of it in the picture."""
    if not -90 < elevation < 90:
        raise InputError(f"The elevation must lie between -90 and 90 degrees, got {elevation}; 10 is usual.")
    distance = 1.05 * extent / math.sin(math.radians(DEFAULT_FOV_Y / 2))
    return orbit_cameras(elevation, torch.arange(frames) * (360.0 / frames), distance, DEFAULT_FOV_Y, size)


def film_renderer(path: Path) -> tuple[Callable[[Cameras], Tensor], float]:
    """(cameras -> [V,H,W,3], farthest distance from the origin) of a splat .ply or a mesh.

    Raises:
        InputError: the file is neither.
    """
    if path.suffix.lower() == ".ply":
        field = read_splat_ply(path)
        return lambda views: field.render(views).rgb, float(field.parameters.means.norm(dim=1).quantile(0.99))
    mesh = read_mesh(path)
    return lambda views: render_mesh(mesh, views, supersample=2).rgb, float(mesh.vertices.norm(dim=1).max())
