"""Fit one representation to renders of another."""

from __future__ import annotations

import torch

from ..cameras import Cameras, distance_to_hold, orbit_cameras
from ..fields.protocol import WHITE, Field, FieldT
from ..meshing.source import density_source
from ..sir.hooks import Watch
from ..sir.reconstruct import reconstruct
from ..util.hooks import Hook
from ..util.seeds import generator

USUAL_SIZE = 96
_ELEVATIONS = (0.0,) * 8 + (35.0,) * 4 + (-35.0,) * 4
_AZIMUTHS = tuple(45.0 * i for i in range(8)) + tuple(90.0 * i + 20 for i in range(4)) + tuple(90.0 * i + 65 for i in range(4))
_VIEWS = 4
_STEPS_PER_DRAW = 5


def fit_to(
    student: FieldT,
    teacher: Field,
    steps: int,
    seed: int = 0,
    *,
    size: int = USUAL_SIZE,
    check: Hook | None = None,
    watch: Watch | None = None,
) -> FieldT:
    """Fit a field to renders of another from 16 sides, 4 views at a time, chosen at random every 5 steps.

    Args:
        steps: optimiser updates. Gaussians on the right surface need 150, an empty NeRF about 150.
        size: side of the renders in pixels.
        check: called before each step; raises to stop. watch: called after each step, as in ``reconstruct``.
    """
    cameras = cameras_around(density_source(teacher).extent(), size)
    with torch.no_grad():
        pictures = teacher.render(cameras, WHITE).rgb
    white, done = WHITE.to(student.device), 0
    while done < steps:
        count = min(_STEPS_PER_DRAW, steps - done)
        chosen = torch.randperm(len(cameras), generator=generator(seed, done, "teach"))[:_VIEWS]
        targets = pictures[chosen.to(pictures.device)].to(student.device)
        student = reconstruct(student, cameras[chosen], targets, count, background=white, check=check, watch=watch).field
        done += count
    return student


def cameras_around(extent: float, size: int) -> Cameras:
    """Return cameras on all sides of an object whose farthest point is ``extent`` from the origin."""
    distance = distance_to_hold(extent)
    return orbit_cameras(_ELEVATIONS, _AZIMUTHS, distance, width=size)
