"""From a field to a textured mesh in one call, for the command line and the nodes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..cameras import Cameras, distance_to_hold, orbit_cameras
from ..fields.protocol import WHITE
from ..mesh import Mesh, face_normals
from ..render.mesh import render_mesh
from ..render.protocol import Render, SplatRenderer
from ..render.texels import bake
from ..util.clock import Clock
from ..util.hooks import Hook
from .clean import decimate, keep_largest_components, smooth
from .density import DensitySource
from .extract import Extraction, extract_mesh
from .fit import FitSettings, fit_to_views
from .settings import BELT, MeshSettings
from .source import Source, density_source, placed_source
from .unwrap import unwrap

log = logging.getLogger(__name__)

ShowImage = Callable[[Tensor, float], None]
"""show(image, part): an image [H,W,3] of the result so far, and how much of the current stage is done."""

STAGES = ("extract", "clean", "unwrap", "render", "bake")
_FIT_VIEWS, _FIT_SIZE = 26, 256
_RENDERS_AT_ONCE = 3  # few enough that a NeRF's can be interrupted
_SHOWN_SIZE = 192
_FIT_SMOOTHING = {
    "density": 1,
    "lgm": 3,
}  # Taubin rounds between two measurements, where LGM has a loss on neighbouring normals


@dataclass(frozen=True)
class MeshResult:
    """A textured mesh and measurements of its making.

    Attributes:
        mesh: with uvs, normals, colours and texture.
        threshold: density of its surface; nan if the surface was given.
        iou: silhouette IoU of the extracted surface with the field; nan if no threshold was searched.
        seconds: by stage.
    """

    mesh: Mesh
    threshold: float
    iou: float
    seconds: dict[str, float] = field(default_factory=dict)


def texture_mesh(
    source: Source,
    settings: MeshSettings = MeshSettings(),  # noqa: B008 - immutable
    *,
    renderer: SplatRenderer | None = None,
    on_stage: Callable[[str, int, int], None] | None = None,
    check: Hook | None = None,
) -> MeshResult:
    """Make a textured mesh of a field: extract, clean, unwrap, and bake renders of the field.

    Args:
        source: Gaussians, their splats, or a NeRF.
        renderer: renders splats; the automatic choice for their device if None.
        on_stage: called as (stage, done, total) before each stage of ``STAGES``.
        check: called before each stage; raises to stop.

    Raises:
        InputError: the field has no surface, or settings are out of range.
    """
    source = density_source(source, renderer)
    surface = surface_mesh(source, settings, on_stage=on_stage, check=check)
    baked = bake_pictures(surface.mesh, source, settings, on_stage=on_stage, check=check)
    seconds = surface.seconds | baked.seconds
    log.info("Mesh of %d faces at density %.2f in %.1f s.", len(baked.mesh.faces), surface.threshold, sum(seconds.values()))
    return replace(surface, mesh=baked.mesh, seconds=seconds)


@torch.no_grad()
def surface_mesh(
    source: Source,
    settings: MeshSettings = MeshSettings(),  # noqa: B008 - immutable
    *,
    renderer: SplatRenderer | None = None,
    on_stage: Callable[[str, int, int], None] | None = None,
    show: ShowImage | None = None,
    check: Hook | None = None,
) -> MeshResult:
    """Extract the cleaned surface with vertex colours, the first half of ``texture_mesh``; arguments and errors as there.

    Args:
        show: receives images of the surface, as extracted and when it is finished.
    """
    stage, (solid, placement) = _Stages(on_stage, check), placed_source(source, renderer)
    with stage("extract"):
        found = _extract(solid, settings, check)
        if show is not None:
            show(render_around(found.mesh), 1.0)
    with stage("clean"):
        mesh = keep_largest_components(found.mesh, settings.smallest_piece)
        mesh = decimate(smooth(mesh, settings.smoothing), settings.target_faces)
        if settings.fit_outlines:
            mesh = fit_to_source(mesh, solid, _FIT_SMOOTHING[settings.extractor], check=check)
        mesh = replace(mesh, colors=solid.colors(mesh.vertices))
        if show is not None:
            show(render_around(mesh), 1.0)
    return MeshResult(placement.undo(mesh), found.threshold, found.iou, stage.seconds)


def _extract(solid: DensitySource, settings: MeshSettings, check: Hook | None) -> Extraction:
    if settings.extractor == "density":
        return extract_mesh(solid, settings.resolution, settings.threshold)
    from .lgm import extract_by_nerf

    numbers = (settings.resolution, settings.threshold, settings.nerf_steps, settings.nerf_size)
    return extract_by_nerf(solid, *numbers, check=check)


@torch.no_grad()
def fit_to_source(mesh: Mesh, solid: DensitySource, smoothing: int = 0, *, check: Hook | None = None) -> Mesh:
    """Fit a mesh to the source's outlines from all sides (``meshing.fit``); ``smoothing`` as in ``FitSettings``."""
    cameras = baking_cameras(mesh, _FIT_VIEWS, _FIT_SIZE)
    alpha = solid.render(cameras, WHITE).alpha
    return fit_to_views(mesh, cameras, alpha, settings=FitSettings(smoothing=smoothing), check=check)


@torch.no_grad()
def bake_pictures(
    mesh: Mesh,
    source: Source,
    settings: MeshSettings = MeshSettings(),  # noqa: B008 - immutable
    *,
    renderer: SplatRenderer | None = None,
    on_stage: Callable[[str, int, int], None] | None = None,
    show: ShowImage | None = None,
    check: Hook | None = None,
) -> MeshResult:
    """Unwrap any mesh and bake renders of the field onto it, the second half of ``texture_mesh``.

    Args:
        show: receives the renders as they are made, and the textured mesh from four sides.
    """
    stage, (solid, placement) = _Stages(on_stage, check), placed_source(source, renderer)
    mesh = placement.apply(mesh)
    with stage("unwrap"):
        facing = face_normals(mesh.vertices, mesh.faces)
        toward = (facing[:, 2] / facing.norm(dim=1).clamp_min(1e-12)).clamp_min(0)
        mesh = unwrap(mesh, settings.texture_size, detail=1 + (settings.front_detail - 1) * toward)
    with stage("render"):
        cameras = baking_cameras(mesh, settings.views, settings.view_size)
        pictures = _render_views(solid, cameras, show, check)
    with stage("bake"):
        mesh = bake(mesh, cameras, pictures.rgb, pictures.alpha, WHITE, settings.texture_size)
        if show is not None:
            show(render_around(mesh), 1.0)
    return MeshResult(placement.undo(mesh), math.nan, math.nan, stage.seconds)


def _render_views(solid: DensitySource, cameras: Cameras, show: ShowImage | None, check: Hook | None) -> Render:
    """Render a few views at a time."""
    renders, views = [], len(cameras)
    for start in range(0, views, _RENDERS_AT_ONCE):
        if check is not None:
            check()
        renders.append(solid.render(cameras[start : start + _RENDERS_AT_ONCE], WHITE))
        if show is not None:
            show(torch.cat(list(renders[-1].rgb), 1), min(start + _RENDERS_AT_ONCE, views) / views)
    return Render(*(torch.cat([getattr(render, name) for render in renders]) for name in ("rgb", "alpha", "depth")))


@torch.no_grad()
def render_around(mesh: Mesh) -> Tensor:
    """Render a mesh from four sides [S, 4 S, 3], slightly from above."""
    farthest = float(mesh.vertices.norm(dim=1).max())
    cameras = orbit_cameras(15.0, [0.0, 90.0, 180.0, 270.0], distance_to_hold(farthest), width=_SHOWN_SIZE)
    return torch.cat(list(render_mesh(mesh, cameras, WHITE).rgb), 1)


@dataclass(frozen=True)
class _Stages:
    """Announces, checks and times the stages of a mesh."""

    on_stage: Callable[[str, int, int], None] | None
    check: Hook | None
    clock: Clock = field(default_factory=Clock)

    @property
    def seconds(self) -> dict[str, float]:
        return self.clock.seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self.check is not None:
            self.check()
        if self.on_stage is not None:
            self.on_stage(name, STAGES.index(name), len(STAGES))
        with self.clock.stage(name):
            yield


def baking_cameras(mesh: Mesh, views: int, size: int) -> Cameras:
    """Return cameras on every side: 8 around, one above, one below, the rest in two rings at ±35 degrees.

    Args:
        mesh: every camera is far enough away to see all of it.
    """
    upper = (views - BELT - 2 + 1) // 2
    lower = views - BELT - 2 - upper
    rings = [(0.0, BELT, 0.0), (35.0, upper, 0.5), (-35.0, lower, 0.0), (85.0, 1, 0.0), (-85.0, 1, 0.0)]
    elevation = [e for e, count, _ in rings for _ in range(count)]
    azimuth = [360.0 * (i + shift) / count for _, count, shift in rings for i in range(count)]
    farthest = float(mesh.vertices.norm(dim=1).max())
    return orbit_cameras(elevation, azimuth, distance_to_hold(farthest), width=size)
