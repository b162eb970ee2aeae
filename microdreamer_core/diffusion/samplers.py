"""Samplers that denoise latents from t2 (Eq. 10): DDIM, consistency sampling, and others through diffusers' schedulers.

All evaluate the network at the times that they are given, so that the number of evaluations is the plan's for every sampler.
diffusers is imported at the first use of one of its schedulers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..util.hooks import Hook
from ..util.vocabulary import SAMPLERS
from .ddim import Denoise, add_noise, check_samples, estimate, sample, sample_noise
from .noise import NoiseProcess


class Sampler(Protocol):
    """Denoises latents from t2 to 0."""

    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        path: Sequence[int],
        process: NoiseProcess,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        """Denoise ``latents`` = α_t2 x0 + σ_t2 ε to clean latents.

        Args:
            denoise: guided clean estimate; takes latents in the same variance-preserving scale.
            path: times of the evaluations, descending from t2.
            generator: CPU generator of all noise.
            check: called before every network evaluation.

        Raises:
            NumericalError: an estimate is not finite.
        """
        ...


def get_sampler(name: str, eta: float = 0.0) -> Sampler:
    """Return a sampler by name.

    >>> get_sampler("ddim", eta=0.5)
    DDIM(eta=0.5)

    Args:
        name: one of ``SAMPLERS``; "lcm" is consistency sampling.
        eta: noise of "ddim", 0 deterministic to 1 ancestral; the other samplers ignore it.

    Raises:
        InputError: the sampler is unknown, or eta outside 0..1.
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in 0..1, got {eta}; 0 is deterministic.")
    if name == "ddim":
        return DDIM(eta)
    if name == "lcm":
        return Consistency()
    if name not in _SOLVERS:
        raise InputError(f"Unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}.")
    return SchedulerSampler(name)


@dataclass(frozen=True)
class DDIM:
    """DDIM, the paper's sampler (Eq. 3), with noise η: 0 is deterministic, 1 ancestral."""

    eta: float = 0.0

    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        path: Sequence[int],
        process: NoiseProcess,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        return sample(latents, path, denoise, process, eta=self.eta, generator=generator, check=check)


@dataclass(frozen=True)
class Consistency:
    """Multistep consistency sampling for distilled models (arXiv 2303.01469, Algorithm 1): x' = α' x̂0 + σ' z, at the end x̂0."""

    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        path: Sequence[int],
        process: NoiseProcess,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        x = latents
        for t, prev in pairwise(path):
            x = add_noise(estimate(denoise, x, t, check), prev, sample_noise(x, generator), process)
        return check_samples(estimate(denoise, x, path[-1], check))


@dataclass(frozen=True)
class SchedulerSampler:
    """A diffusers scheduler run over our grid."""

    name: str

    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        path: Sequence[int],
        process: NoiseProcess,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        solver = _SOLVERS[self.name]
        levels = process.levels[list(path)].clamp(max=_HIGHEST_LEVEL)
        scheduler = solver.prepare(process.alphas_cumprod, list(path))
        scheduler.timesteps = torch.tensor(path, dtype=torch.float32)
        scheduler.sigmas = torch.cat([levels, levels.new_zeros(1)]).float()
        noise_source = {"generator": generator} if solver.stochastic else {}
        x = latents * float((1 + levels[0] ** 2).sqrt()) if solver.sigma_space else latents
        for t, label in zip(path, scheduler.timesteps, strict=True):
            x0 = estimate(denoise, scheduler.scale_model_input(x, label), t, check)
            x = scheduler.step(x0, label, x, **noise_source).prev_sample
        return check_samples(x.to(latents.dtype))


_HIGHEST_LEVEL = 1e4
"""In place of the infinite level of pure noise, on which these solvers cannot compute."""


def _betas(alphas_cumprod: Tensor) -> list[float]:
    """Return the betas from which diffusers computes this schedule."""
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()


def _euler(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(len(alphas_cumprod), trained_betas=_betas(alphas_cumprod), prediction_type="sample")
    scheduler.set_timesteps(len(times))
    return scheduler


def _dpmpp_2m(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        len(alphas_cumprod), trained_betas=_betas(alphas_cumprod), solver_order=2, prediction_type="sample"
    )
    scheduler.set_timesteps(timesteps=times)
    return scheduler


def _unipc(alphas_cumprod: Tensor, times: list[int]) -> Any:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        len(alphas_cumprod), trained_betas=_betas(alphas_cumprod), solver_order=2, prediction_type="sample"
    )
    scheduler.set_timesteps(len(times))
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
}
