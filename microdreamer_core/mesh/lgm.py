"""The paper's way from Gaussians to a mesh, by LGM's ``convert.py`` (Tang et al. 2024; paper section V, "threshold value of 5"):
Gaussians -> NeRF -> marching cubes at NeRF density 5 on 256³ -> at most 50,000 faces -> fitted to renders.

A NeRF is fitted to renders of the Gaussians (512 steps of one view of 128 pixels, elevation ±45, once to twice as far as needed;
MSE of the colours + 0.1 MSE of alpha), its level set is meshed, cleaned and reduced, and the vertices are fitted to renders.

Other than there: the hash grid and the activation are those of ``fields.nerf`` (its small size on a CPU), its ball fits the
object, and it starts as a blob; hollows are filled; there is no isotropic remeshing (pymeshlab is GPL), Taubin smoothing
stands in; vertices are fitted by ``mesh.fit`` in place of 2,048 steps of Adam through nvdiffrast, to views from all sides in
place of elevation ±10.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..cameras import DEFAULT_FOV_Y, Cameras, orbit_cameras
from ..errors import InputError
from ..fields.nerf import NeRF
from ..fields.protocol import WHITE
from ..fields.start import AUTO, nerf_settings
from ..seeds import generator
from .extract import Extraction, extract_mesh
from .nerf_solid import STEP, NeRFSolid
from .solid import Solid

DENSITY = 5.0
"""σ of the surface, per unit of length (paper section V; LGM itself takes 10)."""
RESOLUTION = 256
TARGET_FACES = 50_000
_STEPS = 512
_SIZE = 128
_ALPHA_WEIGHT = 0.1
_ELEVATION = 45.0
_FARTHEST = 2.0  # times the distance that just holds the object: LGM's 1.5 to 3
_MARGIN = 1.1  # of the ball around the object


@dataclass(frozen=True)
class NeRFFit:
    """How a NeRF learns to look like Gaussians.

    Attributes:
        steps: updates, each on one view.
        size: pixels of a view.
    """

    steps: int = _STEPS
    size: int = _SIZE

    def __post_init__(self):
        if self.steps < 1 or self.size < 16:
            raise InputError(
                f"A NeRF learns from at least 1 view of at least 16 pixels, got {self.steps} of {self.size}; 512 of 128 are usual."
            )


def extract_by_nerf(
    solid: Solid,
    resolution: int = RESOLUTION,
    density: float | None = None,
    fit: NeRFFit = NeRFFit(),  # noqa: B008 - immutable
    seed: int = 0,
    *,
    check: Callable[[], None] | None = None,
) -> Extraction:
    """The level set of a NeRF that looks like the solid; of the solid itself when it is one.

    Args:
        resolution: grid points along a side.
        density: σ of the surface, per unit of length; the paper's 5 when None.
        seed: views and the NeRF's samples derive from it.
        check: called before each step; raises to stop.

    Raises:
        InputError: nothing can be seen, or there is no surface at that density.
    """
    density = DENSITY if density is None else density
    nerf = solid.field if isinstance(solid, NeRFSolid) else nerf_like(solid, fit, seed, check=check)
    found = extract_mesh(nerf, resolution, -math.expm1(-density * STEP))
    return replace(found, threshold=float(density))


def nerf_like(
    solid: Solid,
    fit: NeRFFit = NeRFFit(),  # noqa: B008 - immutable
    seed: int = 0,
    *,
    check: Callable[[], None] | None = None,
) -> NeRF:
    """A NeRF fitted to renders of a solid. Arguments as for :func:`extract_by_nerf`."""
    extent = solid.extent()
    # nodes run in inference mode, where nothing can learn
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = _start(solid, extent, seed).optimizer()
        for step in range(fit.steps):
            if check is not None:
                check()
            cameras = _view(extent, fit.size, seed, step)
            with torch.no_grad():
                wanted = solid.render(cameras, WHITE)
            render = optimizer.render(cameras, WHITE)
            rgb, alpha = (getattr(wanted, name).to(render.rgb).clone() for name in ("rgb", "alpha"))
            loss = (render.rgb - rgb).square().mean() + _ALPHA_WEIGHT * (render.alpha - alpha).square().mean()
            optimizer.step(loss, render)
        return optimizer.finish()


def _start(solid: Solid, extent: float, seed: int) -> NeRF:
    """A blob in a ball that just holds the object."""
    device = solid.render(_view(extent, 16, seed, 0), WHITE).rgb.device
    radius = _MARGIN * extent
    settings = replace(nerf_settings(AUTO, device=device), radius=radius, blob_radius=radius / 2, opacity_entropy=0.0)
    return NeRF.start(settings, seed, device)


def _view(extent: float, size: int, seed: int, step: int) -> Cameras:
    """A random camera around the object."""
    up, around, away = torch.rand(3, generator=generator(seed, step, "lgm")).tolist()
    nearest = 1.05 * extent / math.sin(math.radians(DEFAULT_FOV_Y / 2))
    distance = nearest * (1 + (_FARTHEST - 1) * away)
    return orbit_cameras(_ELEVATION * (2 * up - 1), 360 * around, distance, width=size)
