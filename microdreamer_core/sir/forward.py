"""The forward process of a plan (Algorithm 1 line 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.ddim import EpsFn, hybrid_forward, invert_forward, noise_forward
from ..util.hooks import Hook
from .plan import IterationTimes, SIRPlan


def forward_process(
    x0: Tensor,
    eps_fn: EpsFn,
    times: IterationTimes,
    plan: SIRPlan,
    alphas_cumprod: Tensor,
    generator: torch.Generator,
    check: Hook | None = None,
) -> Tensor:
    """Diffuse clean latents to ``times.t2`` by the plan's forward process: hybrid, noise or invert (Algorithm 1 line 5).

    Args:
        x0: clean latents of any shape.
        eps_fn: the unconditional branch only.
        generator: CPU generator of the noise.
        check: called before every network evaluation.

    Returns:
        Latents at t2, shaped like ``x0``.
    """
    if plan.forward == "noise":
        return noise_forward(x0, times.t2, alphas_cumprod, generator=generator)
    if plan.forward == "invert":
        return invert_forward(x0, times.t2, eps_fn, plan.discretization, alphas_cumprod, check=check)
    return hybrid_forward(x0, times.t1, times.t2, eps_fn, plan.discretization, alphas_cumprod, generator=generator, check=check)
