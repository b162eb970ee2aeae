"""Samplers that denoise latents from t2 (Eq. 10): our DDIM, and others through diffusers' schedulers.

All evaluate the network at t2 and at the points of our grid below it, so that the number of evaluations is the plan's for every
sampler. diffusers is imported at the first use of one of its schedulers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..util.hooks import Hook
from ..util.vocabulary import SAMPLERS
from .ddim import EpsFn, check_samples, predict_noise, sample
from .timesteps import sampling_path


class Sampler(Protocol):
    """Denoises latents from t2 to 0."""

    def __call__(
        self,
        eps_fn: EpsFn,
        latents: Tensor,
        t2: int,
        steps: int,
        alphas_cumprod: Tensor,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        """Denoise ``latents`` = α_t2 x0 + σ_t2 ε to clean latents.

        Args:
            eps_fn: guided noise prediction; takes latents in the same variance-preserving scale.
            steps: N of ``timesteps.timestep_grid``.
            generator: CPU generator of all noise.
            check: called before every network evaluation.

        Raises:
            NumericalError: the predicted noise is not finite.
        """
        ...


def get_sampler(name: str, eta: float = 0.0) -> Sampler:
    """Return a sampler by name.

    >>> get_sampler("ddim", eta=0.5)
    DDIM(eta=0.5)

    Args:
        name: one of ``SAMPLERS``.
        eta: noise of "ddim", 0 deterministic to 1 ancestral; the other samplers ignore it.

    Raises:
        InputError: the sampler is unknown, or eta outside 0..1.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in 0..1, got {eta}; 0 is deterministic.")
    if name == "ddim":
        return DDIM(eta)
    if name not in _SOLVERS:
        raise InputError(f"Unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    return SchedulerSampler(name)


@dataclass(frozen=True)
class DDIM:
    """DDIM, the paper's sampler (Eq. 3), with noise η: 0 is deterministic, 1 ancestral."""

    eta: float = 0.0

    def __call__(
        self,
        eps_fn: EpsFn,
        latents: Tensor,
        t2: int,
        steps: int,
        alphas_cumprod: Tensor,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        return sample(latents, t2, eps_fn, steps, alphas_cumprod, eta=self.eta, generator=generator, check=check)


@dataclass(frozen=True)
class SchedulerSampler:
    """A diffusers scheduler run over our grid."""

    name: str

    def __call__(
        self,
        eps_fn: EpsFn,
        latents: Tensor,
        t2: int,
        steps: int,
        alphas_cumprod: Tensor,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        solver = _SOLVERS[self.name]
        times = list(sampling_path(t2, steps))
        scheduler = solver.prepare(alphas_cumprod, times)
        noise_source = {"generator": generator} if solver.stochastic else {}
        x = latents / float(alphas_cumprod[t2]) ** 0.5 if solver.sigma_space else latents
        for t, label in zip(times, scheduler.timesteps, strict=True):
            eps = predict_noise(eps_fn, scheduler.scale_model_input(x, label), t, check)
            x = scheduler.step(eps, label, x, **noise_source).prev_sample
        return check_samples(x.to(latents.dtype))


def _betas(alphas_cumprod: Tensor) -> list[float]:
    """Return the betas from which diffusers computes this schedule."""
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()


def _euler(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(len(alphas_cumprod), trained_betas=_betas(alphas_cumprod))
    scheduler.set_timesteps(timesteps=times)
    return scheduler


def _dpmpp_2m(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        len(alphas_cumprod), trained_betas=_betas(alphas_cumprod), algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(timesteps=times)
    return scheduler


def _unipc(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(len(alphas_cumprod), trained_betas=_betas(alphas_cumprod), solver_order=2)
    scheduler.set_timesteps(len(times))
    # this scheduler accepts no custom times: replace its own, ending at sigma 0 as by default
    a_bar = alphas_cumprod[times].cpu()
    scheduler.timesteps = torch.tensor(times)
    scheduler.sigmas = torch.cat([((1 - a_bar) / a_bar).sqrt(), a_bar.new_zeros(1)]).float()
    return scheduler


def _lcm(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    total = len(alphas_cumprod)
    scheduler = LCMScheduler(total, trained_betas=_betas(alphas_cumprod), original_inference_steps=total, clip_sample=False)
    scheduler.set_timesteps(len(times))
    # replaced afterwards, because custom times that do not start at T - 1 cause a warning at every call
    scheduler.timesteps = torch.tensor(times)
    return scheduler


@dataclass(frozen=True)
class _Solver:
    """The set-up of a scheduler, whether its step takes a generator, and whether its samples are x / α (variance exploding)."""

    prepare: Callable[[Tensor, list[int]], Any]
    stochastic: bool = False
    sigma_space: bool = False


_SOLVERS = {
    "euler": _Solver(_euler, stochastic=True, sigma_space=True),
    "dpmpp_2m": _Solver(_dpmpp_2m, stochastic=True),
    "unipc": _Solver(_unipc),
    "lcm": _Solver(_lcm, stochastic=True),
}
