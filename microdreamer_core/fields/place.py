"""Splats of any place and size, moved to where cameras and thresholds expect an object."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..mesh import Fit, Placement
from ..render.protocol import Splats
from .gaussians import Gaussians

_OUTLIERS = 0.005
"""Share of the Gaussians at each end of an axis that the box of an object leaves out: a single floater must not decide."""
_FAINTEST = 0.05


def fit_splats(splats: Splats, fit: Fit = "auto") -> Placement:
    """Find the placement that centres splats on the origin and scales their longest side to 1, see ``Placement.of_box``.

    The box is that of the centres, without the outermost half percent on each side and without faint Gaussians.
    """
    means = splats.means.detach().cpu().double()
    seen = (splats.opacities.detach().cpu().reshape(-1) > _FAINTEST) & means.isfinite().all(1)
    if not bool(seen.any()):
        return Placement.identity()
    ordered = means[seen].sort(0).values
    cut = int(_OUTLIERS * len(ordered))
    return Placement.of_box(ordered[cut], ordered[-1 - cut], fit)


def move_splats(splats: Splats, placement: Placement) -> Splats:
    """Move splats by a placement that shifts and scales, the same along all axes; the splats themselves if nothing moves."""
    if placement.is_identity:
        return splats
    means = placement.move(splats.means.cpu()).to(splats.means.device)  # in float64, which not every device has
    return replace(splats, means=means, scales=splats.scales * _scale(placement))


def move_gaussians(field: Gaussians, placement: Placement) -> Gaussians:
    """Move Gaussians as ``move_splats`` does; the optimiser's state stays as it is."""
    if placement.is_identity:
        return field
    scale, parameters = _scale(placement), field.parameters
    means = placement.move(parameters.means.cpu()).to(parameters.means.device)
    moved = parameters._replace(means=means, log_scales=parameters.log_scales + math.log(scale))
    return replace(field, parameters=moved, pixel=field.pixel * scale)


def _scale(placement: Placement) -> float:
    scale = placement.matrix[0, 0]
    uniform = torch.eye(3, dtype=torch.float64) * scale
    assert torch.allclose(placement.matrix[:3, :3], uniform, rtol=0, atol=1e-9 * abs(float(scale))), "a shift and one scale"
    return float(scale)
