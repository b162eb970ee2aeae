"""SIR's diffusion mathematics: noise-adding, DDIM, its inversion and the hybrid forward process.

Equation numbers are MicroDreamer's (arXiv 2404.19525). α_t = sqrt(alphas_cumprod[t]), σ_t = sqrt(1 - alphas_cumprod[t]); a time
below 0 is the end of sampling, which uses the coefficients of t = 0 (``set_alpha_to_one=False`` in diffusers).
Latents may have any shape; keep them in float32, whatever the precision of the network.
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
"""eps_fn(x_t, t) predicts the noise, with conditioning and guidance already bound."""


def scaled_linear_alphas_cumprod() -> Tensor:
    """Return the noise schedule [1000] float64 of Stable Diffusion and of every supported multi-view model.

    betas = linspace(sqrt(0.00085), sqrt(0.012))², called "linear" by ldm and "scaled_linear" by diffusers.

    >>> scaled_linear_alphas_cumprod()[[0, 500, 999]].float()
    tensor([0.9991, 0.2763, 0.0047])
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, DIFFUSION_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def add_noise(x0: Tensor, t: int, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Add noise to a clean latent, Eq. 1: x_t = α_t x0 + σ_t ε.

    >>> schedule, x0, noise = scaled_linear_alphas_cumprod(), torch.ones(2), torch.zeros(2)
    >>> predict_x0(add_noise(x0, 500, noise, schedule), noise, 500, schedule)
    tensor([1., 1.])
    """
    alpha, sigma = _alpha_sigma(t, alphas_cumprod)
    return alpha * x0 + sigma * noise


def predict_x0(x: Tensor, eps: Tensor, t: int, alphas_cumprod: Tensor) -> Tensor:
    """Estimate the clean latent in one step, Eq. 2: (x_t - σ_t ε) / α_t."""
    alpha, sigma = _alpha_sigma(t, alphas_cumprod)
    return (x - sigma * eps) / alpha


def ddim_step(
    x: Tensor, eps: Tensor, t: int, prev: int, alphas_cumprod: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Denoise from t to prev: Eq. 3 for η = 0, DDIM's stochastic step (arXiv 2010.02502, Eq. 12 and 16) for η > 0.

    Args:
        eps: predicted noise at (x, t).
        prev: the earlier time; below 0 for the last step, which uses the coefficients of t = 0.
        eta: 0 is deterministic, 1 is ancestral sampling.
        noise: standard normal, shaped like x; required for eta > 0.

    Raises:
        InputError: eta > 0 without noise.
    """
    x0 = predict_x0(x, eps, t, alphas_cumprod)
    alpha, sigma = _alpha_sigma(prev, alphas_cumprod)
    if eta == 0:
        return alpha * x0 + sigma * eps
    if noise is None:
        raise InputError(f"DDIM with eta = {eta} needs noise at every step; give the noise or a generator, or set eta to 0.")
    alpha_t, sigma_t = _alpha_sigma(t, alphas_cumprod)
    variance = sigma**2 / sigma_t**2 * (1 - alpha_t**2 / alpha**2)
    deviation = eta * max(variance, 0.0) ** 0.5
    return alpha * x0 + max(sigma**2 - deviation**2, 0.0) ** 0.5 * eps + deviation * noise


def inversion_step(x: Tensor, eps: Tensor, t: int, following: int, alphas_cumprod: Tensor) -> Tensor:
    """Invert one DDIM step from t to the later time ``following``, Eq. 4, with the noise predicted at (x, t)."""
    return add_noise(predict_x0(x, eps, t, alphas_cumprod), following, eps, alphas_cumprod)


def inversion_steps(
    x: Tensor, t1: int, t2: int, eps_fn: EpsFn, steps: int, alphas_cumprod: Tensor, check: Hook | None = None
) -> Iterator[Tensor]:
    """Run DDIM inversion t1 -> t2; yields the latent after every step, nothing if t1 = t2."""
    for t, following in pairwise(inversion_path(t1, t2, steps)):
        x = inversion_step(x, predict_noise(eps_fn, x, t, check), t, following, alphas_cumprod)
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
    """Run DDIM sampling t2 -> 0; yields the latent after every step. Arguments as for ``sample``."""
    path = sampling_path(t2, steps)
    for i, (t, prev) in enumerate(pairwise((*path, END))):
        eps = predict_noise(eps_fn, x, t, check)
        noise = None
        if eta > 0:
            noise = noises[i] if noises is not None else _sample_noise(x, generator)
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
    """Run the hybrid forward process, Eq. 9: add noise to t1, then DDIM inversion t1 -> t2.

    >>> x0, schedule = torch.zeros(1, 4, 8, 8), scaled_linear_alphas_cumprod()
    >>> rng = torch.Generator().manual_seed(0)
    >>> hybrid_forward(x0, 300, 500, lambda x, t: x, 20, schedule, generator=rng).shape
    torch.Size([1, 4, 8, 8])

    Args:
        x0: clean latents of any shape.
        t1, t2: 0 <= t1 <= t2 < 1000; equal times add noise only.
        eps_fn: the unconditional branch only, as in the released code: one network branch, not two.
        steps: N of the grid.
        generator: CPU generator of the noise, or ``noise`` itself, shaped like x0.
        check: called before every network evaluation.

    Raises:
        InputError: times out of order, or neither generator nor noise.
        NumericalError: the predicted noise is not finite.
    """
    x = add_noise(x0, t1, _sample_noise(x0, generator) if noise is None else noise, alphas_cumprod)
    return _last(inversion_steps(x, t1, t2, eps_fn, steps, alphas_cumprod, check), x)


def noise_forward(
    x0: Tensor, t2: int, alphas_cumprod: Tensor, *, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """Run the forward process without inversion: Eq. 1 directly to t2, no network evaluation."""
    return add_noise(x0, t2, _sample_noise(x0, generator) if noise is None else noise, alphas_cumprod)


def invert_forward(
    x0: Tensor, t2: int, eps_fn: EpsFn, steps: int, alphas_cumprod: Tensor, *, check: Hook | None = None
) -> Tensor:
    """Run the forward process without noise: DDIM inversion 0 -> t2 of the clean latent, the inverse of sampling.

    The clean latent is taken as x at t = 0, as at the end of sampling.
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
    """Denoise latents from t2 to 0 by DDIM, Eq. 10.

    Args:
        x: latents at t2.
        eps_fn: the guided noise prediction.
        steps: N of the grid; the network is evaluated at t2 and at the grid points below it.
        eta: 0 is deterministic, 1 ancestral; noise is added at the last step too, as in the released code.
        generator: CPU generator of the noise for eta > 0, or ``noises``, one tensor per step.
        check: called before every network evaluation.

    Raises:
        InputError: a time outside 0..999, or eta > 0 without a source of noise.
        NumericalError: the predicted noise is not finite.
    """
    steps_taken = sampling_steps(x, t2, eps_fn, steps, alphas_cumprod, eta=eta, generator=generator, noises=noises, check=check)
    return _last(steps_taken, x)


def guide_noise(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Apply classifier-free guidance (arXiv 2207.12598) as u + g (c - u): 0 is unconditional, 1 conditional.

    >>> guide_noise(torch.tensor(1.0), torch.tensor(2.0), 3.0)
    tensor(4.)
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def predict_noise(eps_fn: EpsFn, x: Tensor, t: int, check: Hook | None = None) -> Tensor:
    """Evaluate the network once and check its prediction; on an accelerator ``check_samples`` checks the last latents instead.

    Raises:
        NumericalError: the prediction has NaN or infinite values.
    """
    if check is not None:
        check()
    eps = eps_fn(x, t)
    if not devices.is_async(eps.device) and not bool(torch.isfinite(eps).all()):
        raise NumericalError(f"The predicted noise is not finite at t = {t}; run the diffusion model in float32.")
    return eps


def check_samples(x: Tensor) -> Tensor:
    """Check latents after their last step on devices where single steps are not checked; a NaN persists until then.

    Raises:
        NumericalError: they have NaN or infinite values.
    """
    if devices.is_async(x.device) and not bool(torch.isfinite(x).all()):
        raise NumericalError("The predicted noise is not finite at some time; run the diffusion model in float32.")
    return x


def _alpha_sigma(t: int, alphas_cumprod: Tensor) -> tuple[float, float]:
    a_bar = float(alphas_cumprod[max(t, 0)])
    return a_bar**0.5, (1 - a_bar) ** 0.5


def _sample_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample standard normal noise on the CPU in float32, so that it does not depend on device and precision."""
    if generator is None:
        raise InputError("Adding noise needs a torch.Generator or the noise itself, got neither.")
    return devices.to_device_async(torch.randn(like.shape, generator=generator), like)


def _last(latents: Iterator[Tensor], x: Tensor) -> Tensor:
    for latent in latents:
        x = latent
    return check_samples(x)
