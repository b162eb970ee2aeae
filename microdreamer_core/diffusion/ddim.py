"""SIR's diffusion mathematics: noise-adding, DDIM, its inversion and the hybrid forward process.

Equation numbers are MicroDreamer's (arXiv 2404.19525), in terms of the clean estimate x̂0 in place of the predicted noise
ε = (x_t - α_t x̂0) / σ_t, because at pure noise (α = 0) ε says nothing of x0. α_t, σ_t and the end of sampling are a
:class:`~.noise.NoiseProcess`'s. Latents may have any shape; keep them in float32, whatever the precision of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InputError, NumericalError
from ..util import devices
from ..util.hooks import Hook
from .noise import NoiseProcess
from .timesteps import END

Denoise = Callable[[Tensor, int], Tensor]
"""denoise(x_t, t) estimates x0, with conditioning and guidance already bound."""


def add_noise(x0: Tensor, t: int, noise: Tensor, process: NoiseProcess) -> Tensor:
    """Add noise to a clean latent, Eq. 1: x_t = α_t x0 + σ_t ε.

    >>> process, x0, noise = NoiseProcess.stable_diffusion(), torch.ones(2), torch.zeros(2)
    >>> predict_x0(add_noise(x0, 500, noise, process), noise, 500, process)
    tensor([1., 1.])
    """
    alpha, sigma = process.alpha_sigma(t)
    return alpha * x0 + sigma * noise


def predict_x0(x: Tensor, eps: Tensor, t: int, process: NoiseProcess) -> Tensor:
    """Estimate the clean latent from the predicted noise, Eq. 2: (x_t - σ_t ε) / α_t."""
    alpha, sigma = process.alpha_sigma(t)
    return (x - sigma * eps) / alpha


def predict_noise(x: Tensor, x0: Tensor, t: int, process: NoiseProcess) -> Tensor:
    """Return the noise that a clean estimate implies, the inverse of Eq. 2: (x_t - α_t x0) / σ_t."""
    alpha, sigma = process.alpha_sigma(t)
    return (x - alpha * x0) / sigma


def ddim_step(
    x: Tensor, x0: Tensor, t: int, prev: int, process: NoiseProcess, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Denoise from t to prev: Eq. 3 for η = 0, DDIM's stochastic step (arXiv 2010.02502, Eq. 12 and 16) for η > 0.

    With β = η σ' sqrt(1 - (ν' / ν)²), the noise level ν = σ / α of both times: x' = α' x̂0 + sqrt(σ'² - β²) ε + β z.

    Args:
        x0: clean estimate at (x, t).
        prev: the earlier time; below 0 for the end of sampling.
        eta: 0 is deterministic, 1 is ancestral sampling.
        noise: standard normal z, shaped like x; required for eta > 0.

    Raises:
        InputError: eta > 0 without noise.
    """
    alpha, sigma = process.alpha_sigma(prev)
    eps = predict_noise(x, x0, t, process)
    if eta == 0:
        return alpha * x0 + sigma * eps
    if noise is None:
        raise InputError(f"DDIM with eta = {eta} needs noise at every step; give the noise or a generator, or set eta to 0.")
    alpha_t, sigma_t = process.alpha_sigma(t)
    variance = sigma**2 / sigma_t**2 * (1 - alpha_t**2 / alpha**2)
    deviation = eta * max(variance, 0.0) ** 0.5
    return alpha * x0 + max(sigma**2 - deviation**2, 0.0) ** 0.5 * eps + deviation * noise


def inversion_step(x: Tensor, x0: Tensor, t: int, following: int, process: NoiseProcess) -> Tensor:
    """Invert one DDIM step from t to the later time ``following``, Eq. 4, with the clean estimate at (x, t)."""
    return add_noise(x0, following, predict_noise(x, x0, t, process), process)


def inversion_steps(
    x: Tensor, path: Sequence[int], denoise: Denoise, process: NoiseProcess, check: Hook | None = None
) -> Iterator[Tensor]:
    """Run DDIM inversion along an ascending path of times; yields the latent after every step, nothing for a single time."""
    for t, following in pairwise(path):
        x = inversion_step(x, estimate(denoise, x, t, check), t, following, process)
        yield x


def sampling_steps(
    x: Tensor,
    path: Sequence[int],
    denoise: Denoise,
    process: NoiseProcess,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    noises: Sequence[Tensor] | None = None,
    check: Hook | None = None,
) -> Iterator[Tensor]:
    """Run DDIM sampling; yields the latent after every step. Arguments as for ``sample``."""
    for i, (t, prev) in enumerate(pairwise((*path, END))):
        x0 = estimate(denoise, x, t, check)
        noise = None
        if eta > 0:
            noise = noises[i] if noises is not None else sample_noise(x, generator)
        x = ddim_step(x, x0, t, prev, process, eta, noise)
        yield x


def hybrid_forward(
    x0: Tensor,
    path: Sequence[int],
    denoise: Denoise,
    process: NoiseProcess,
    *,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    check: Hook | None = None,
) -> Tensor:
    """Run the hybrid forward process, Eq. 9: add noise to t1, then DDIM inversion t1 -> t2.

    >>> from microdreamer_core.diffusion.timesteps import inversion_path
    >>> x0, process = torch.zeros(1, 4, 8, 8), NoiseProcess.stable_diffusion()
    >>> rng = torch.Generator().manual_seed(0)
    >>> hybrid_forward(x0, inversion_path(300, 500, 20), lambda x, t: x, process, generator=rng).shape
    torch.Size([1, 4, 8, 8])

    Args:
        x0: clean latents of any shape.
        path: times from t1 to t2, ascending (``timesteps.inversion_path``); a single time adds noise only.
        denoise: the unconditional branch only, as in the released code: one network branch, not two.
        generator: CPU generator of the noise, or ``noise`` itself, shaped like x0.
        check: called before every network evaluation.

    Raises:
        InputError: neither generator nor noise.
        NumericalError: an estimate is not finite.
    """
    x = noise_forward(x0, path[0], process, generator=generator, noise=noise)
    return _last(inversion_steps(x, path, denoise, process, check), x)


def noise_forward(
    x0: Tensor, t2: int, process: NoiseProcess, *, generator: torch.Generator | None = None, noise: Tensor | None = None
) -> Tensor:
    """Run the forward process without inversion: Eq. 1 directly to t2, no network evaluation."""
    return add_noise(x0, t2, sample_noise(x0, generator) if noise is None else noise, process)


def invert_forward(
    x0: Tensor, path: Sequence[int], denoise: Denoise, process: NoiseProcess, *, check: Hook | None = None
) -> Tensor:
    """Run the forward process without noise: DDIM inversion 0 -> t2 of the clean latent, the inverse of sampling.

    The clean latent is taken as x at the path's first time, t = 0, as at the end of sampling.
    """
    return _last(inversion_steps(x0, path, denoise, process, check), x0)


def sample(
    x: Tensor,
    path: Sequence[int],
    denoise: Denoise,
    process: NoiseProcess,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    noises: Sequence[Tensor] | None = None,
    check: Hook | None = None,
) -> Tensor:
    """Denoise latents from t2 to the end by DDIM, Eq. 10.

    Args:
        x: latents at the path's first time, t2.
        path: times of the evaluations, descending (``timesteps.sampling_path``).
        denoise: the guided estimate.
        eta: 0 is deterministic, 1 ancestral; noise is added at the last step too, as in the released code.
        generator: CPU generator of the noise for eta > 0, or ``noises``, one tensor per step.
        check: called before every network evaluation.

    Raises:
        InputError: eta > 0 without a source of noise.
        NumericalError: an estimate is not finite.
    """
    return _last(sampling_steps(x, path, denoise, process, eta=eta, generator=generator, noises=noises, check=check), x)


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
    """Apply classifier-free guidance (arXiv 2207.12598) as u + g (c - u): 0 is unconditional, 1 conditional.

    The same in terms of noise, velocity or clean estimate, which are linear in each other.

    >>> guide(torch.tensor(1.0), torch.tensor(2.0), 3.0)
    tensor(4.)
    """
    return unconditional + guidance_scale * (conditional - unconditional)


def estimate(denoise: Denoise, x: Tensor, t: int, check: Hook | None = None) -> Tensor:
    """Evaluate the network once and check its estimate; on an accelerator ``check_samples`` checks the last latents instead.

    Raises:
        NumericalError: the estimate has NaN or infinite values.
    """
    if check is not None:
        check()
    x0 = denoise(x, t)
    if not devices.is_async(x0.device) and not bool(torch.isfinite(x0).all()):
        raise NumericalError(f"The model's estimate is not finite at t = {t}; run the diffusion model in float32.")
    return x0


def check_samples(x: Tensor) -> Tensor:
    """Check latents after their last step on devices where single steps are not checked; a NaN persists until then.

    Raises:
        NumericalError: they have NaN or infinite values.
    """
    if devices.is_async(x.device) and not bool(torch.isfinite(x).all()):
        raise NumericalError("The model's estimate is not finite at some time; run the diffusion model in float32.")
    return x


def sample_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Sample standard normal noise on the CPU in float32, so that it does not depend on device and precision.

    Raises:
        InputError: there is no generator.
    """
    if generator is None:
        raise InputError("Adding noise needs a torch.Generator or the noise itself, got neither.")
    return devices.to_device_async(torch.randn(like.shape, generator=generator), like)


def _last(latents: Iterator[Tensor], x: Tensor) -> Tensor:
    for latent in latents:
        x = latent
    return check_samples(x)
