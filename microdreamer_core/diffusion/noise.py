"""Noise processes: what a diffusion time means.

Every Gaussian process x = a x0 + b ε (variance preserving, EDM, rectified flow) is variance preserving up to a change of scale
and of clock; only its noise-to-signal ratio ν = b / a matters. The core works in the variance-preserving scale throughout,
x_t = α_t x0 + σ_t ε with α² + σ² = 1 and σ / α = ν, at integer times 0..T-1; a model of another scale multiplies its input by
sqrt(a² + b²).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .timesteps import DIFFUSION_STEPS

PAPER_SIDE = 32
"""Side of the latents of the paper's models, for which Table I was tuned."""

_LANDMARKS = (0, DIFFUSION_STEPS // 5, DIFFUSION_STEPS // 2)


@dataclass(frozen=True, eq=False)
class NoiseProcess:
    """A noise process by its table of times.

    >>> process = NoiseProcess.stable_diffusion()
    >>> [round(process.level(t), 2) for t in (1, 501, 999)]
    [0.04, 1.62, 14.61]

    Attributes:
        alphas_cumprod: [T] float64, T = 1000, falling; α_t = sqrt(alphas_cumprod[t]), σ_t = sqrt(1 - alphas_cumprod[t]). The
            last may be 0: pure noise, as rectified flow has it.
    """

    alphas_cumprod: Tensor

    @classmethod
    def of_levels(cls, levels: Tensor) -> NoiseProcess:
        """Make the process of noise levels ν_t [T], rising; inf is pure noise."""
        return cls(1 / (1 + levels.double() ** 2))

    @classmethod
    def stable_diffusion(cls) -> NoiseProcess:
        """Return the process of Stable Diffusion and of every published multi-view model."""
        return STABLE_DIFFUSION

    @classmethod
    def rectified_flow(cls, shift: float = 1.0) -> NoiseProcess:
        """Make rectified flow, (1 - s) x0 + s ε (arXiv 2403.03206): ν = s / (1 - s) = shift u / (1 - u), u = (t + 1) / T."""
        u = torch.arange(1, DIFFUSION_STEPS + 1, dtype=torch.float64) / DIFFUSION_STEPS
        return cls.of_levels(shift * u / (1 - u))

    @classmethod
    def edm(cls, lowest: float = 0.002, highest: float = 80.0) -> NoiseProcess:
        """Make EDM's process, x0 + σ ε with ν = σ evenly spread in its logarithm (arXiv 2206.00364)."""
        return cls.of_levels(torch.logspace(math.log10(lowest), math.log10(highest), DIFFUSION_STEPS, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def alpha_sigma(self, t: int) -> tuple[float, float]:
        """Return α_t and σ_t; a time below 0 is the end of sampling.

        The end is clean, except for Stable Diffusion's process, which ends with the coefficients of t = 0
        (``set_alpha_to_one=False`` in diffusers) as the released code does.
        """
        if t < 0 and not self.is_stable_diffusion:
            return 1.0, 0.0
        a_bar = float(self.alphas_cumprod[max(t, 0)])
        return a_bar**0.5, (1 - a_bar) ** 0.5

    @cached_property
    def levels(self) -> Tensor:
        """[T] float64 noise-to-signal ratios ν = σ / α, rising; the last may be inf."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def level(self, t: int) -> float:
        """Return ν of a time."""
        return float(self.levels[t])

    def time(self, level: float) -> int:
        """Return the time whose ν is nearest to ``level`` in its logarithm; the ends for levels beyond them.

        >>> NoiseProcess.stable_diffusion().time(1.62)
        500
        """
        return int((self.levels.log() - math.log(level)).abs().argmin())

    @cached_property
    def is_stable_diffusion(self) -> bool:
        """Whether fractions of T mean about what Table I means: ν within 15 % of Stable Diffusion's at T/2, T/5 and 0.

        True with rescaled zero terminal SNR (arXiv 2305.08891); False for distilled models that know few levels.
        """
        own, usual = (process.levels[list(_LANDMARKS)] for process in (self, STABLE_DIFFUSION))
        return bool(((own / usual).log().abs() < math.log(1.15)).all())

    def convert_times(self, times: Sequence[int], factor: float = 1.0) -> tuple[int, ...]:
        """Convert times of Stable Diffusion's clock to this process's: the same ν, times ``factor``.

        >>> NoiseProcess.rectified_flow(shift=3.0).convert_times((201, 801))
        (160, 630)

        Stable Diffusion's own times stay as they are, whatever the factor.

        Args:
            factor: side of the latents over ``PAPER_SIDE``, because larger images need more noise to hide the same structure:
                Stable Diffusion 3's rule for shifts with resolution (arXiv 2403.03206, section 5.3.2).
        """
        if self.is_stable_diffusion:
            return tuple(times)
        return tuple(self.time(STABLE_DIFFUSION.level(t) * factor) for t in times)


def scaled_linear_alphas_cumprod() -> Tensor:
    """Return the noise schedule [1000] float64 of Stable Diffusion and of every published multi-view model.

    betas = linspace(sqrt(0.00085), sqrt(0.012))², called "linear" by ldm and "scaled_linear" by diffusers.

    >>> scaled_linear_alphas_cumprod()[[0, 500, 999]].float()
    tensor([0.9991, 0.2763, 0.0047])
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, DIFFUSION_STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


STABLE_DIFFUSION = NoiseProcess(scaled_linear_alphas_cumprod())
