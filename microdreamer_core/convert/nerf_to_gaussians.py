"""Gaussians that look like a NeRF, so that what was made as one can be refined as the other."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..fields.density_control import DensitySettings
from ..fields.gaussians import SH_C0, Gaussians, GaussianSettings
from ..fields.nerf import NeRF
from ..meshing.clean import keep_largest_components
from ..meshing.extract import extract_mesh
from ..util.hooks import Hook
from .fit import fit_to
from .mesh_to_gaussians import gaussians_on_mesh

USUAL_COUNT = 10_000
_FIT_STEPS = 150
_FIT_SIZE = 160  # smaller pictures leave flakes around the outline that show in larger ones
# the Gaussians are in their places already, at the published rate they would leave them; their number shall stay
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
) -> Gaussians:
    """Flat Gaussians on the surface of a NeRF, in its colours there, then fitted to its pictures.

    The surface is that of ``mesh.extract``, at the threshold whose silhouettes are the NeRF's; the Gaussians are spread evenly
    over it, as large as their spacing. Their outline is then too fat by a pixel (no splat is sharper), which 150 steps on
    pictures of the NeRF take off.

    Args:
        count: number of Gaussians, more than 3.
        settings, seed: of the new field, which starts with step 0; the places of the Gaussians derive from the seed too.
        resolution: grid points along a side for the surface.
        size: pixels of the pictures.
        check: called before each step of the fit; raises to stop.

    Raises:
        InputError: the NeRF has no surface, or the count is too small.
    """
    surface = keep_largest_components(extract_mesh(nerf, resolution).mesh)
    spread = gaussians_on_mesh(surface, count, _FIT_SETTINGS, seed, nerf.device)
    with torch.no_grad():
        colors = nerf.colors(spread.parameters.means)
    painted = replace(spread, parameters=spread.parameters._replace(dc=(colors - 0.5) / SH_C0))
    fitted = fit_to(painted, nerf, _FIT_STEPS, seed, size=size, check=check)
    return Gaussians(fitted.parameters, settings or GaussianSettings(), seed)
