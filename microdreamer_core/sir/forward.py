"""The forward process of a plan (Algorithm 1 line 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..diffusion.ddim import Denoise, hybrid_forward, invert_forward
from ..diffusion.noise import NoiseProcess
from ..util.hooks import Hook
from .plan import SIRPlan


def forward_process(
    x0: Tensor,
    denoise: Denoise,
    path: Sequence[int],
    plan: SIRPlan,
    process: NoiseProcess,
    generator: torch.Generator,
    check: Hook | None = None,
) -> Tensor:
    """Diffuse clean latents to t2 by the plan's forward process: hybrid, noise or invert (Algorithm 1 line 5).

    Args:
        x0: clean latents of any shape.
        denoise: one branch only, the plan's ``inversion_branch``.
        path: the model's times from t1 to t2, ascending; t2 alone for noise, from 0 for invert.
        generator: CPU generator of the noise.
        check: called before every network evaluation.

    Returns:
        Latents at t2, shaped like ``x0``.
    """
    if plan.forward == "invert":
        return invert_forward(x0, path, denoise, process, check=check)
    return hybrid_forward(x0, path, denoise, process, generator=generator, check=check)
