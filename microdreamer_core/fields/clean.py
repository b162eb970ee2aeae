"""Cleaning of finished Gaussians: pruning, removal of floaters, and the renderer's low-pass filter merged into the scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cameras import Cameras, concatenate, orbit_cameras
from ..render.protocol import Splats
from .density_control import worth_keeping
from .gaussians import Gaussians


def clean(field: Gaussians) -> Gaussians:
    """Prepare finished Gaussians for meshing and viewers: prune and remove floaters (section V), absorb the low-pass filter."""
    return remove_white(final_prune(field)).absorb_low_pass()


def final_prune(field: Gaussians) -> Gaussians:
    """Remove faint and oversized Gaussians before meshing (section V's last prune).

    The limits are ``final_min_opacity`` and ``final_max_scale`` of the field's settings. If nothing would be left, the field is
    returned unchanged.
    """
    splats, settings = field.splats(), field.settings.density
    kept = worth_keeping(splats.opacities, splats.scales, settings.final_min_opacity, settings.final_max_scale)
    return field.subset(kept) if bool(kept.any()) else field


def remove_white(
    field: Gaussians,
    *,
    cameras: Cameras | None = None,
    white: float = 0.95,
    min_scale: float = 0.01,
    alone: float = 0.2,
) -> Gaussians:
    """Remove white Gaussians that float around the object (section V: "white Gaussians with scales larger than 0.01").

    In training on a white background, a white Gaussian in front of empty background has no loss, but it thickens the mesh.
    Colour alone is not a criterion, as the object itself may be white. So a white Gaussian is removed only if it is visible and
    isolated: more than the fraction ``alone`` of its visible contribution, over all views, is in front of empty background. A
    white Gaussian on a surface has the rest of the body behind it, and one inside the body is not visible. Floaters can hide
    each other, so the rule is applied until nothing changes. See :func:`isolated_share` for the measure.

    Args:
        field: not changed.
        cameras: views of the test; 14 views around the unit object at 128 pixels when None.
        white: smallest colour channel, 0..1, from which a Gaussian counts as white.
        min_scale: Gaussians whose largest scale is smaller are kept.
        alone: 0..1; smaller removes more (at 0.2 fitted objects painted white kept their silhouettes within 0.2 % IoU).

    Returns:
        The field without floaters, or the field itself if there are none or if nothing else would be left.
    """
    cameras = _surrounding_cameras() if cameras is None else cameras
    cleaned = field
    while True:
        splats = cleaned.splats()
        suspects = (splats.colors.amin(1) >= white) & (splats.scales.amax(1) > min_scale)
        if not bool(suspects.any()):
            return cleaned
        floating = suspects & (isolated_share(cleaned, cameras) > alone)
        if not bool(floating.any()):
            return cleaned
        if bool(floating.all()):
            return field
        cleaned = cleaned.subset(~floating)


def isolated_share(field: Gaussians, cameras: Cameras) -> Tensor:
    """Return the fraction [N] of each Gaussian's visible contribution in front of empty background; 0 where it is not visible.

    With w = T α its weight in a pixel and T_b the transmittance behind it, the fraction is Σ w T_b / Σ w over all pixels and
    views. Both sums are derivatives of one render: Σ w is the derivative of the summed colours by its colour, and Σ w T_b is
    its opacity times the derivative of the summed coverage by its opacity, i.e. the coverage lost by removing it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        splats = field.splats()
        color = torch.ones_like(splats.colors[:, :1]).requires_grad_()
        opacities = splats.opacities.clone().requires_grad_()
        probe = Splats(splats.means.clone(), splats.quats.clone(), splats.scales.clone(), opacities, color.expand(-1, 3))
        render = field.renderer()(probe, cameras.to(field.device), splats.means.new_zeros(3))
        (shown,) = torch.autograd.grad(render.rgb[..., 0].sum(), color, retain_graph=True)
        (lost,) = torch.autograd.grad(render.alpha.sum(), opacities)
    shown, lost = shown[:, 0], lost * splats.opacities
    return torch.where(shown > 0, lost / shown.clamp_min(torch.finfo(shown.dtype).tiny), torch.zeros_like(shown))


def _surrounding_cameras() -> Cameras:
    """Place rings of cameras at three heights and two at the poles, far enough for the unit cube."""
    azimuths = torch.arange(4) * 90.0
    rings = [
        orbit_cameras(height, azimuths + turn, 2.5, width=128) for height, turn in ((0.0, 0.0), (40.0, 45.0), (-40.0, 45.0))
    ]
    return concatenate([*rings, orbit_cameras([89.0, -89.0], 0.0, 2.5, width=128)])
