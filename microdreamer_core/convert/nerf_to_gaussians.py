"""Conversion of a NeRF to Gaussians, so that the result of one can be refined as the other."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..fields.density_control import DensitySettings
from ..fields.gaussians import SH_C0, Gaussians, GaussianSettings
from ..fields.nerf import NeRF
from ..meshing.clean import keep_largest_components
from ..meshing.extract import extract_mesh
from ..sir.hooks import Watch
from ..util.hooks import Hook
from .fit import fit_to
from .mesh_to_gaussians import gaussians_on_mesh

USUAL_COUNT = 10_000
FIT_STEPS = 150
_FIT_SIZE = 160  # fitted to smaller renders, the outline shows flakes in larger ones
# the Gaussians start in place and would drift at the published learning rate; their number must not change
_FIT_SETTINGS = GaussianSettings(spatial_lr_scale=1.0, density=DensitySettings(until=0))


def gaussians_from_nerf(
    nerf: NeRF,
    count: int = USUAL_COUNT,
    settings: GaussianSettings | None = None,
    seed: int = 0,
    *,
    resolution: int = 128,
    size: int = _FIT_SIZE,
    check: Hook | None = None,
    watch: Watch | None = None,
) -> Gaussians:
    """Convert a NeRF to Gaussians: flat ones on its surface, in its colours, then fitted to its renders.

    The surface is that of ``meshing.extract``, at the threshold whose silhouettes match the NeRF's; the Gaussians are spread
    evenly over it, as large as their spacing. Their outline is then one pixel too wide (splats have soft edges), which 150
    steps on renders of the NeRF correct.

    Args:
        count: number of Gaussians, more than 3.
        settings, seed: of the new field, which starts at step 0; the seed also determines the Gaussians' positions.
        resolution: grid points along a side for the surface.
        size: side of the renders in pixels.
        check: called before each step of the fit; raises to stop. watch: called after each step, as in ``reconstruct``.

    Raises:
        InputError: the NeRF has no surface, or the count is too small.
    """
    surface = keep_largest_components(extract_mesh(nerf, resolution).mesh)
    spread = gaussians_on_mesh(surface, count, _FIT_SETTINGS, seed, nerf.device)
    with torch.no_grad():
        colors = nerf.colors(spread.parameters.means)
    painted = replace(spread, parameters=spread.parameters._replace(dc=(colors - 0.5) / SH_C0))
    fitted = fit_to(painted, nerf, FIT_STEPS, seed, size=size, check=check, watch=watch)
    return Gaussians(fitted.parameters, settings or GaussianSettings(), seed)
