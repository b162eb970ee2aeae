"""The noise process of a native model: its own scale and clock, in the core's variance-preserving one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.diffusion.noise import NoiseProcess
from ..microdreamer_core.diffusion.timesteps import DIFFUSION_STEPS
from .compat import host_sampling


@dataclass(frozen=True, eq=False)
class HostProcess(NoiseProcess):
    """The process of ComfyUI's ``model_sampling``: x = a(s) x0 + b(s) ε at ComfyUI's level s, asked of its ``noise_scaling``.

    That covers every Gaussian process (ε, v, EDM, rectified flow with any shift, distilled) without knowing its class.

    Attributes:
        sampling: ComfyUI's object.
        sigmas: [T] float64 levels s of times 0..T-1, spread evenly over ComfyUI's own table.
        scales: [T] float64 sqrt(a² + b²), the factor from the core's scale to ComfyUI's.
    """

    sampling: Any
    sigmas: Tensor
    scales: Tensor

    @classmethod
    def of(cls, sampling: Any) -> HostProcess:
        """Read ``model_sampling``.

        Raises:
            ValueError: it is no Gaussian process whose noise grows with its level; the message says why.
        """
        known = getattr(sampling, "sigmas", None)
        if not isinstance(known, Tensor) or not len(known):
            raise ValueError("it has no table of noise levels")
        with torch.inference_mode():
            table = known.detach().cpu().double()
            index = [max(round((t + 1) * len(table) / DIFFUSION_STEPS) - 1, 0) for t in range(DIFFUSION_STEPS)]
            sigmas = table[index].clone()
            a, b = _signal_and_noise(sampling, sigmas)
        if _predicts_pictures(sampling) or not (b > 0).all():
            raise ValueError("it turns one picture into another in a single step, without noise")
        levels = b / a
        if not ((a >= 0).all() and (levels.diff().nan_to_num(0.0) >= 0).all()):
            raise ValueError("its noise does not grow with its level")
        power = a**2 + b**2
        return cls(a**2 / power, sampling, sigmas, power.sqrt())

    def signal_and_noise(self, sigma: Tensor) -> tuple[float, float]:
        """Return a and b of any level s, between the table's too."""
        a, b = _signal_and_noise(self.sampling, sigma.detach().reshape(1).cpu().double())
        return float(a), float(b)

    def scale_at(self, sigma: Tensor) -> float:
        """Return sqrt(a² + b²) of any level s."""
        return math.hypot(*self.signal_and_noise(sigma))

    @torch.inference_mode()
    def noise_factor(self, sigma: Tensor) -> float:
        """Return the factor that ComfyUI gives the noise of an empty latent: b(s), or more at the highest level."""
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        highest = float(sigma) >= float(self.sampling.sigma_max) * (1 - 1e-5)
        return float(self.sampling.noise_scaling(sigma.detach().reshape(1).cpu().double(), one, 0 * one, highest))

    def time_of(self, sigma: Tensor) -> int:
        """Return the time whose level s is nearest in its logarithm."""
        return int((self.sigmas.log() - sigma.cpu().double().log()).abs().argmin())


def host_process(process: NoiseProcess) -> HostProcess:
    """Return a native model's process as it is, of our own models one in ComfyUI's scale x / α with levels σ / α."""
    if isinstance(process, HostProcess):
        return process
    return HostProcess.of(host_sampling(process.levels))


@torch.inference_mode()
def _signal_and_noise(sampling: Any, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of levels s, [N] float64: what a clean latent of 1 and a noise of 1 become."""
    one = torch.ones(len(sigmas), 1, 1, 1, dtype=torch.float64)
    a, b = (sampling.noise_scaling(sigmas, noise, latent) for noise, latent in ((0 * one, one), (one, 0 * one)))
    return a.flatten().clone(), b.flatten().clone()


@torch.inference_mode()
def _predicts_pictures(sampling: Any) -> bool:
    """Whether the network's output is the result whatever its input, which it is given unscaled (ComfyUI's IMG_TO_IMG)."""
    level, x, output = sampling.sigmas[-1:].cpu(), torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    return bool(sampling.calculate_denoised(level, output, x) == output) and bool(sampling.calculate_input(level, x) == x)
