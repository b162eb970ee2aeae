"""SIR's diffusion mathematics in closed form: noise-adding, DDIM, its inversion and the hybrid forward process.

Equation numbers are MicroDreamer's (arXiv 2404.19525). α_t = sqrt(alphas_cumprod[t]), σ_t = sqrt(1 - alphas_cumprod[t]); a time
below 0 stands for the end of sampling, where the coefficients of t = 0 are used (``set_alpha_to_one`` False in diffusers).
Latents may have any shape; they are best kept in float32 whatever precision the network runs in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InputError, NumericalError
from ..util import devices
from ..util.hooks import Hook
from .timesteps import DIFFUSION_STEPS, END, inversion_path, sampling_path

EpsFn = Callable[[Tensor, int], Tensor]
"""eps_fn(x_t, t): the predicted noise, already bound to its conditioning and guidance."""


def scaled_linear_alphas_cumprod() -> Tensor:
    """[1000] float64, the noise schedule of Stable Diffusion and of every supported multi-view model.

    betas = linspace(sqrt(0.00085), sqrt(0.012))², called "linear" by ldm and "scaled_linear" by diffusers.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, DIFFUSION_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def add_noise(x0: Tensor, t: int, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Noise-adding(x0, 0 -> t), Eq. 1: x_t = α_t x0 + σ_t ε."""
    alpha, sigma = _alpha_sigma(t, alphas_cumprod)
    return alpha * x0 + sigma * noise


def predict_x0(x: Tensor, eps: Tensor, t: int, alphas_cumprod: Tensor) -> Tensor:
    """The one-step estimate of the clean latent, Eq. 2: (x_t - σ_t ε) / α_t."""
    alpha, sigma = _alpha_sigma(t, alphas_cumprod)
    return (x - sigma * eps) / alpha


def ddim_step(
    x: Tensor, eps: Tensor, t: int, prev: int, alphas_cumprod: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Sampler(x_t, t -> prev): Eq. 3 for η = 0, DDIM's stochastic step (arXiv 2010.02502, Eq. 12 and 16) for η > 0.

    Args:
        eps: predicted noise at (x, t).
        prev: the earlier time; below 0 for the last step, which uses the coefficients of t = 0.
        eta: 0 is deterministic, 1 is ancestral sampling.
        noise: standard normal, like x; needed when eta > 0.
    """
    x0 = predict_x0(x, eps, t, alphas_cumprod)
    alpha, sigma = _alpha_sigma(prev, alphas_cumprod)
    if eta == 0:
        return alpha * x0 + sigma * eps
    if noise is None:
        raise InputError(f"DDIM with eta = {eta} draws noise at every step; give the noise or a generator, or set eta to 0.")
    alpha_t, sigma_t = _alpha_sigma(t, alphas_cumprod)
    variance = sigma**2 / sigma_t**2 * (1 - alpha_t**2 / alpha**2)
    deviation = eta * max(variance, 0.0) ** 0.5
    return alpha * x0 + max(sigma**2 - deviation**2, 0.0) ** 0.5 * eps + deviation * noise


def inversion_step(x: Tensor, eps: Tensor, t: int, following: int, alphas_cumprod: Tensor) -> Tensor:
    """Inversion(x_t, t -> following), Eq. 4: Eq. 3 run towards more noise, with the noise predicted at (x, t)."""
    return add_noise(predict_x0(x, eps, t, alphas_cumprod), following, eps, alphas_cumprod)


def inversion_steps(
    x: Tensor, t1: int, t2: int, eps_fn: EpsFn, steps: int, alphas_cumprod: Tensor, check: Hook | None = None
) -> Iterator[Tensor]:
    """DDIM inversion t1 -> t2; yields the latent after every step, nothing when t1 = t2."""
    for t, following in pairwise(inversion_path(t1, t2, steps)):
        x = inversion_step(x, predicted_noise(eps_fn, x, t, check), t, following, alphas_cumprod)
        yield x


def sampling_steps(
    x: Tensor,
    t2: int,
    eps_fn: EpsFn,
    steps: int,
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    noises: Sequence[Tensor] | None = None,
    check: Hook | None = None,
) -> Iterator[Tensor]:
    """DDIM sampling t2 -> 0; yields the latent after every step. Arguments as ``sample``."""
    path = sampling_path(t2, steps)
    for i, (t, prev) in enumerate(pairwise((*path, END))):
        eps = predicted_noise(eps_fn, x, t, check)
        noise = None
        if eta > 0:
            noise = noises[i] if noises is not None else _draw(x, generator)
        x = ddim_step(x, eps, t, prev, alphas_cumprod, eta, noise)
        yield x


def hybrid_forward(
    x0: Tensor,
    t1: int,
    t2: int,
    eps_fn: EpsFn,
    steps: int,
    alphas_cumprod: Tensor,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    check: Hook | None = None,
) -> Tensor:
    """The hybrid forward process, Eq. 9: noise to t1, then DDIM inversion t1 -> t2.

    Args:
        x0: clean latents of any shape.
        t1, t2: 0 <= t1 <= t2 < 1000; equal times add noise only.
        eps_fn: the unconditional branch alone, as in the released code: one network branch, not two.
        steps: N of the grid.
        generator: CPU generator of the noise, or ``noise`` itself, shaped like x0.
        check: called before every network evaluation.

    Raises:
        InputError: times out of order, or neither generator nor noise.
        NumericalError: the predicted noise is not finite.
    """
    x = add_noise(x0, t1, _draw(x0, generator) if noise is None else noise, alphas_cumprod)
    return _last(inversion_steps(x, t1, t2, eps_fn, steps, alphas_cumprod, check), x)


def noise_forward(
    x0: Tensor, t2: int, alphas_cumprod: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """The forward process without inversion: Eq. 1 straight to t2, no network evaluation."""
    return add_noise(x0, t2, _draw(x0, generator) if noise is None else noise, alphas_cumprod)


def invert_forward(
    x0: Tensor, t2: int, eps_fn: EpsFn, steps: int, alphas_cumprod: Tensor, *, check: Hook | None = None
) -> Tensor:
    """The forward process without noise: DDIM inversion 0 -> t2 of the clean latent, which sampling undoes.

    The clean latent counts as x at t = 0, as it does at the end of sampling.
    """
    return _last(inversion_steps(x0, 0, t2, eps_fn, steps, alphas_cumprod, check), x0)


def sample(
    x: Tensor,
    t2: int,
    eps_fn: EpsFn,
    steps: int,
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    noises: Sequence[Tensor] | None = None,
    check: Hook | None = None,
) -> Tensor:
    """Sampler(x, t2 -> 0), Eq. 10, by DDIM.

    Args:
        x: latents at t2.
        eps_fn: the guided noise prediction.
        steps: N of the grid; the network is evaluated at t2 and at the grid below it.
        eta: noise control; noise is added at the last step too, as in the released code.
        generator: CPU generator of the noise for eta > 0, or ``noises``, one tensor per step.
        check: called before every network evaluation.

    Raises:
        InputError: a time outside 0..999, or eta > 0 without a source of noise.
        NumericalError: the predicted noise is not finite.
    """
    steps_taken = sampling_steps(x, t2, eps_fn, steps, alphas_cumprod, eta=eta, generator=generator, noises=noises, check=check)
    return _last(steps_taken, x)


def guided_noise(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598) in the form u + g (c - u): 0 is unconditional, 1 conditional."""
    return unconditional + guidance_scale * (conditional - unconditional)


def predicted_noise(eps_fn: EpsFn, x: Tensor, t: int, check: Hook | None = None) -> Tensor:
    """One network evaluation, checked on the CPU; on an accelerator ``check_samples`` looks at the last latents instead.

    Raises:
        NumericalError: the prediction holds a NaN or an infinity.
    """
    if check is not None:
        check()
    eps = eps_fn(x, t)
    if not devices.is_async(eps.device) and not bool(torch.isfinite(eps).all()):
        raise NumericalError(f"The predicted noise is not finite at t = {t}; run the diffusion model in float32.")
    return eps


def check_samples(x: Tensor) -> Tensor:
    """Latents after all their steps, checked where the single steps were not: a NaN stays in them to the end.

    Raises:
        NumericalError: they hold a NaN or an infinity.
    """
    if devices.is_async(x.device) and not bool(torch.isfinite(x).all()):
        raise NumericalError("The predicted noise is not finite at some time; run the diffusion model in float32.")
    return x


def _alpha_sigma(t: int, alphas_cumprod: Tensor) -> tuple[float, float]:
    a_bar = float(alphas_cumprod[max(t, 0)])
    return a_bar**0.5, (1 - a_bar) ** 0.5


def _draw(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise drawn on the CPU in float32, so that device and precision do not change it."""
    if generator is None:
        raise InputError("Adding noise needs a torch.Generator or the noise itself, got neither.")
    return devices.to_device_async(torch.randn(like.shape, generator=generator), like)


def _last(latents: Iterator[Tensor], x: Tensor) -> Tensor:
    for latent in latents:
        x = latent
    return check_samples(x)
