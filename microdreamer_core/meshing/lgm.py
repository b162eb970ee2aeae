"""The paper's mesh extraction: a NeRF fitted to the Gaussians, and marching cubes at density 5, after LGM (Tang et al. 2024).

Paper section V: "We follow the mesh extraction method in LGM [43] and employ a threshold value of 5 in the marching cube
algorithm". LGM's ``convert.py``: a NeRF is fitted to renders of the Gaussians (512 steps of one view of 128 pixels, elevations
within 45 degrees, distances 1.5 to 3; squared error of the colours + 0.1 of alpha), its level set on 256³ points is remeshed
and reduced to 50,000 faces, and vertices and colours are fitted to renders. The first half is here; ``meshing.pipeline``
reduces, fits (``meshing.fit``) and bakes.

What differs: hash grid and activation are those of ``fields.nerf`` (its small size on a CPU), its ball fits the object;
hollows are filled; Taubin smoothing stands in for isotropic remeshing; vertices are fitted by linear systems in place of 2,048
steps of Adam through a differentiable rasteriser, to outlines from all sides in place of elevations within 10 degrees; colours
are baked from renders, not fitted by 512 steps of Adam (fitting a baked texture to the same renders, tried on a known house,
changed nothing: 30.59 dB on other views both ways).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..cameras import Cameras, distance_to_hold, orbit_cameras
from ..errors import InputError
from ..fields.nerf import NeRF
from ..fields.nerf_settings import AUTO, nerf_settings
from ..fields.protocol import WHITE
from ..util.hooks import Hook
from ..util.seeds import generator
from .density import DensitySource
from .extract import Extraction, extract_mesh
from .nerf_density import STEP, NeRFDensity

DENSITY = 5.0
"""σ of the surface, per unit of length (paper section V; LGM itself takes 10)."""
RESOLUTION = 256
STEPS = 512
SIZE = 128
_ALPHA_WEIGHT = 0.1
_ELEVATION = 45.0
_FARTHEST = 2.0  # times the smallest distance that sees all of the object: LGM's 1.5 to 3
_MARGIN = 1.1  # of the ball around the object


def extract_by_nerf(
    solid: DensitySource,
    resolution: int = RESOLUTION,
    density: float | None = None,
    steps: int = STEPS,
    size: int = SIZE,
    seed: int = 0,
    *,
    check: Hook | None = None,
) -> Extraction:
    """Extract the level set of a NeRF fitted to the source, or of the source itself if it is a NeRF.

    Args:
        resolution: grid points along a side.
        density: σ of the surface, per unit of length; the paper's 5 if None.
        steps: updates of the NeRF, each on one view; 512 of 128 pixels take 30 to 40 s of a CPU core, of 64 12 s.
        size: side of a view in pixels.
        seed: determines the views and the NeRF's samples.
        check: called before each step; raises to stop.

    Raises:
        InputError: nothing is visible, or there is no surface at that density.
    """
    density = DENSITY if density is None else density
    nerf = solid.field if isinstance(solid, NeRFDensity) else nerf_like(solid, steps, size, seed, check=check)
    found = extract_mesh(nerf, resolution, -math.expm1(-density * STEP))
    return replace(found, threshold=float(density))


def nerf_like(
    solid: DensitySource,
    steps: int = STEPS,
    size: int = SIZE,
    seed: int = 0,
    *,
    check: Hook | None = None,
) -> NeRF:
    """Fit a NeRF to renders of the source. Arguments as for :func:`extract_by_nerf`.

    Raises:
        InputError: less than one step, or views below 16 pixels.
    """
    if steps < 1 or size < 16:
        raise InputError(
            f"The NeRF of lgm needs at least 1 view of at least 16 pixels, got {steps} of {size}; 512 of 128 are published."
        )
    extent = solid.extent()
    # nodes run in inference mode, which has no gradients
    with torch.inference_mode(False), torch.enable_grad():
        optimizer = _start(solid, extent, seed).optimizer()
        for step in range(steps):
            if check is not None:
                check()
            cameras = _view(extent, size, seed, step)
            with torch.no_grad():
                wanted = solid.render(cameras, WHITE)
            render = optimizer.render(cameras, WHITE)
            rgb, alpha = (getattr(wanted, name).to(render.rgb).clone() for name in ("rgb", "alpha"))
            loss = (render.rgb - rgb).square().mean() + _ALPHA_WEIGHT * (render.alpha - alpha).square().mean()
            optimizer.step(loss, render)
        return optimizer.finish()


def _start(solid: DensitySource, extent: float, seed: int) -> NeRF:
    """A NeRF that starts as a blob, in the smallest ball around the object."""
    device = solid.render(_view(extent, 16, seed, 0), WHITE).rgb.device
    radius = _MARGIN * extent
    settings = replace(nerf_settings(AUTO, device=device), radius=radius, blob_radius=radius / 2, opacity_entropy=0.0)
    return NeRF.start(settings, seed, device)


def _view(extent: float, size: int, seed: int, step: int) -> Cameras:
    """A random camera around the object."""
    up, around, away = torch.rand(3, generator=generator(seed, step, "lgm")).tolist()
    nearest = distance_to_hold(extent)
    distance = nearest * (1 + (_FARTHEST - 1) * away)
    return orbit_cameras(_ELEVATION * (2 * up - 1), 360 * around, distance, width=size)
