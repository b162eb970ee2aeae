"""Between the raw parameters of Gaussians and what compact splat files hold: bytes, packed bits, activated values."""

from __future__ import annotations

import numpy as np
import torch

from ..fields.gaussians import SH_C0, Parameters


def gaussians_from(
    means: np.ndarray,
    log_scales: np.ndarray,
    quats: np.ndarray,
    opacities: np.ndarray,
    colors: np.ndarray,
    step: float = 1 / 255,
) -> Parameters:
    """Make raw parameters of N Gaussians from opacities [N] and colours [N,3] in [0,1]; means [N,3], quats [N,4] wxyz.

    Args:
        step: between two opacities of the format. 0 and 1 have no logit and become half a step and 1 less half a step.
    """
    opacities = np.clip(opacities, step / 2, 1 - step / 2)
    parts = means, log_scales, quats, np.log(opacities / (1 - opacities)), (colors - 0.5) / SH_C0
    return Parameters(*(torch.from_numpy(np.array(part, np.float32, order="C")) for part in parts))


def arrays_of(parameters: Parameters) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return float64 means, log-scales, unit quaternions wxyz, opacities [N] and unclamped colours of raw parameters."""
    means, log_scales, quats, logits, dc = (part.double().numpy() for part in parameters)
    opacities = torch.from_numpy(logits).sigmoid().numpy()
    return means, log_scales, quats / np.linalg.norm(quats, axis=1, keepdims=True), opacities, dc * SH_C0 + 0.5


def to_steps(values: np.ndarray, steps: int) -> np.ndarray:
    """Quantise values in [0,1] to integers 0..steps, those outside to the ends.

    >>> to_steps(np.array([-1.0, 0.5, 1.0]), 4)
    array([0, 2, 4], dtype=uint32)
    """
    return np.rint(np.clip(values, 0, 1) * steps).astype(np.uint32)
