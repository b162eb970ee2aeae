"""The files that a job writes: mesh, splat, video, contact sheet, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..cameras import Cameras, distance_to_hold, orbit_cameras
from ..convert.mesh_to_gaussians import normalise_mesh
from ..errors import InputError
from ..fields.gaussians import Gaussians
from ..fields.nerf import NeRF
from ..fields.place import fit_splats, move_gaussians
from ..fields.protocol import WHITE, Field
from ..fields.texture import TextureField
from ..io.glb import write_glb
from ..io.mesh_files import read_mesh
from ..io.splat_axes import mesh_placement
from ..io.splats import holds_splat, read_splat, write_gaussians
from ..io.state import load_state
from ..io.video import render_frames, write_contact_sheet, write_video
from ..mesh import Mesh
from ..meshing.density import FOCUS_RESOLUTION
from ..meshing.source import density_source
from ..render.mesh import render_mesh
from ..render.protocol import Render
from ..sir.presets import plan_changes
from ..util.vocabulary import DEFAULT_FOV_Y, Up
from .record import machine, peak_memory_mb, versions, write_json
from .run import Asset, Job, clean_field, saved_placement

FILM_FRAMES, FILM_SIZE, FILM_ELEVATION = 48, 384, 10.0
SHEET_VIEWS = 8


def plan_files(output: Path, *, splat: bool, film: bool, report: bool, splat_format: str = "ply") -> dict[str, Path]:
    """Return the paths of a job's files by kind, all beside ``output`` (a .glb).

    Args:
        splat_format: one of ``SPLAT_FORMATS``; a splat in .glb is called _splat.glb.
    """

    def beside(ending: str) -> Path:
        return output.with_name(output.stem + ending)

    files = {"mesh": output, "state": beside(".state.safetensors")}
    if splat:
        files["splat"] = beside("_splat.glb" if splat_format == "glb" else f".{splat_format}")
    if film:
        files |= {"film": beside("_turntable.mp4"), "contact sheet": beside("_sheet.png")}
    if report:
        files["report"] = beside(".json")
    return files


def write_asset(asset: Asset, job: Job, files: dict[str, Path]) -> dict[str, Path]:
    """Write a job's results, each file atomically.

    Args:
        files: from ``plan_files``; the state is skipped, because the job itself writes it.

    Returns:
        The paths written, by kind (without ffmpeg, the video is a .gif).
    """
    provenance = {
        "generator": f"microdreamer {__version__}",
        "source": job.source,
        "model": Path(job.model).name,
        "seed": job.seed,
    }
    files = {**files, "mesh": write_glb(files["mesh"], asset.mesh, {**provenance, "plan": asdict(job.plan)})}
    if "splat" in files:
        write_splat(files["splat"], asset.field)
    if "film" in files:
        with asset.clock.stage("film"):
            frames = film_frames(asset)
            files["film"] = write_video(files["film"], frames)
            _write_sheet(files["contact sheet"], job, frames)
    if "report" in files:
        write_json(files["report"], report_content(asset, job, files))
    return files


def write_splat(path: Path, field: Field, up: Up = "-y") -> Path:
    """Write a field as a splat, in the format of the path's name; a NeRF is converted to Gaussians on its surface.

    Args:
        path: ends in .ply, .compressed.ply, .spz, .splat or .glb.
        up: up axis of the file; a .glb is always +y.

    Raises:
        InputError: another ending, or the NeRF has no surface.
    """
    if isinstance(field, NeRF):
        from ..convert.nerf_to_gaussians import gaussians_from_nerf

        field = gaussians_from_nerf(field)
    if not isinstance(field, Gaussians):
        raise InputError(f"A splat is written from Gaussians or a NeRF, got {field.kind}; give one of them.")
    return write_gaussians(path, field, up)


def film_frames(asset: Asset) -> Tensor:
    """Render one turn around the textured mesh; returns [F,H,W,3]."""
    mesh = normalise_mesh(asset.mesh)
    cameras = film_cameras(extent_of(mesh), FILM_FRAMES, FILM_SIZE, FILM_ELEVATION)
    return render_frames(renderer_of(mesh), cameras)


def _write_sheet(path: Path, job: Job, frames: Tensor) -> Path:
    """Write the reference, if any, and evenly spread frames of the video, with their azimuths."""
    views = frames[:: len(frames) // SHEET_VIEWS][:SHEET_VIEWS]
    captions = [f"{round(i * 360 / SHEET_VIEWS)} degrees" for i in range(SHEET_VIEWS)]
    if job.reference is not None:
        views = torch.cat([job.reference.at_size(frames.shape[1]).image[None], views])
        captions = ["reference", *captions]
    return write_contact_sheet(path, views, columns=3, captions=captions)


def report_content(asset: Asset, job: Job, files: dict[str, Path]) -> dict:
    """Return everything measured as JSON values, the content of ``--report``."""
    return {
        "source": job.source,
        "model": Path(job.model).name,
        "model_options": asdict(job.options),
        "prompt": job.prompt,
        "negative": job.negative,
        "preset": job.plan.name,
        "departures": plan_changes(job.plan),
        "seed": job.seed,
        "first_iteration": job.first,
        "plan": asdict(job.plan),
        "seconds": {name: round(value, 3) for name, value in asset.clock.seconds.items()},
        "seconds_total": round(asset.clock.total, 3),
        "evaluations": {"planned": asdict(job.plan.evaluations(job.seed)), "used": asset.evaluations},
        "iterations": [asdict(record) for record in asset.records],
        "field": {"kind": asset.field.kind, "summary": asset.field.summary()},
        "mesh": {
            "vertices": len(asset.mesh.vertices),
            "faces": len(asset.mesh.faces),
            "texture": asset.mesh.require_texture().shape[0],
        },
        "peak_memory_mb": peak_memory_mb(),
        "files": {kind: path.name for kind, path in files.items()},
        "machine": machine(),
        "versions": versions(),
    }


def film_cameras(extent: float, frames: int, size: int, elevation: float) -> Cameras:
    """Return cameras of one turn that see all of an object whose farthest point is ``extent`` from the origin."""
    if not -90 < elevation < 90:
        raise InputError(f"The elevation must lie between -90 and 90 degrees, got {elevation}; 10 is usual.")
    azimuth = torch.arange(frames) * (360.0 / frames)
    return orbit_cameras(elevation, azimuth, distance_to_hold(extent), DEFAULT_FOV_Y, size)


def film_renderer(path: Path, up: Up | None = None) -> tuple[Callable[[Cameras], Tensor], float]:
    """Return (cameras -> [V,H,W,3], extent) for a splat, a saved run or a mesh, moved to where cameras look.

    Raises:
        InputError: the file is none of these.
    """
    result = centre_result(read_result(path, up))
    return renderer_of(result), extent_of(result)


def read_result(path: Path, up: Up | None = None) -> Field | Mesh:
    """Read a splat or a saved run as a field, or a mesh file as a mesh.

    Args:
        up: up axis of the file; None takes what the file says, otherwise -y for splats and +y for meshes.

    Raises:
        InputError: the file is none of these.
    """
    if _is_state(path) or holds_splat(path):
        return read_field(path, up)
    mesh = read_mesh(path)
    return mesh if up is None else mesh_placement(up).apply(mesh)


def centre_result(result: Field | Mesh) -> Field | Mesh:
    """Move a mesh or Gaussians that lie far from the origin, or are of another size, to where the cameras look."""
    if isinstance(result, Mesh):
        return normalise_mesh(result)
    return move_gaussians(result, fit_splats(result.splats())) if isinstance(result, Gaussians) else result


def _own_mesh(result: Field | Mesh) -> Field | Mesh:
    """The mesh of a texture field; others as they are."""
    return result.mesh if isinstance(result, TextureField) else result


def extent_of(result: Field | Mesh) -> float:
    """Return the radius around the origin that cameras must see."""
    result = _own_mesh(result)
    return float(result.vertices.norm(dim=1).max()) if isinstance(result, Mesh) else density_source(result).extent()


def renderer_of(result: Field | Mesh) -> Callable[[Cameras], Tensor]:
    """Return a function that renders a result on white: cameras -> [V,H,W,3]."""
    return lambda views: render_result(result, views).rgb


def render_result(result: Field | Mesh, cameras: Cameras) -> Render:
    """Render a result on white; a mesh on the CPU."""
    result = _own_mesh(result)
    return render_mesh(result, cameras, supersample=2) if isinstance(result, Mesh) else result.render(cameras, WHITE)


def box_of(result: Field | Mesh) -> tuple[Tensor, Tensor]:
    """Return the ([3], [3]) corners of the box around a mesh's vertices, or around a field's density on a coarse grid."""
    result = _own_mesh(result)
    if isinstance(result, Mesh):
        return result.vertices.amin(0), result.vertices.amax(0)
    solid = density_source(result)
    grid = solid.density(FOCUS_RESOLUTION)
    dense = grid.values > solid.thresholds[0]
    seen = np.argwhere(dense if dense.any() else np.ones_like(dense)) * grid.voxel + grid.origin
    return torch.from_numpy(seen.min(0)).float(), torch.from_numpy(seen.max(0)).float()


def read_field(path: Path, up: Up | None = None) -> Field:
    """Read the field of a saved run, as it is displayed and in the place of the splat that was refined, or a splat.

    Args:
        up: up axis of a splat; None takes what the file says, otherwise -y.

    Raises:
        InputError: the file is neither, or an up axis is given for a saved run.
    """
    if not _is_state(path):
        return read_splat(path, up=up)
    if up is not None:
        raise InputError(f"A saved run knows its up axis, got {up}; leave it out.")
    saved = load_state(path)
    field, placement = clean_field(saved.field), saved_placement(saved.extra)
    if placement is None or not isinstance(field, Gaussians):
        return field
    return move_gaussians(field, placement.inverse())


def _is_state(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"
