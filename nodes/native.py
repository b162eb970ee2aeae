"""ComfyUI's samplers in place of DDIM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.diffusion.ddim import EpsFn, predict_noise
from ..microdreamer_core.diffusion.timesteps import sampling_path
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.util.hooks import Hook
from .compat import host_sampling, io


def sampler_inputs() -> list:
    """Return the optional inputs of every node that samples."""
    return [
        io.Sampler.Input(
            "sampler",
            optional=True,
            tooltip="Any ComfyUI sampler (KSamplerSelect ...) in place of the plan's; second-order samplers call the "
            "network more often than the plan counts.",
        ),
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels for that sampler, e.g. of Sigmas of Plan; those above t2 are left out. Without them, the "
            "plan's grid is used.",
        ),
    ]


def chosen_sampler(sampler: Any, sigmas: Tensor | None) -> NativeSampler | None:
    """Wrap the linked ComfyUI sampler for the core; None if none is linked.

    Raises:
        InputError: SIGMAS without a SAMPLER, or a sampler that uses both branches of the guidance.
    """
    if sampler is None and sigmas is not None:
        raise InputError("SIGMAS are linked without a SAMPLER; link one, e.g. from KSamplerSelect, or unlink the SIGMAS.")
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if "cfg_pp" in name:
        raise InputError(f"The sampler {name.removeprefix('sample_')} needs ComfyUI's own guidance; choose one without cfg_pp.")
    return None if sampler is None else NativeSampler(sampler, sigmas)


class NativeSampler:
    """A ComfyUI SAMPLER behind the core's ``Sampler`` protocol.

    ComfyUI's samplers work on x / α ("variance exploding", noise level σ / α), take x0 instead of ε and noise levels instead
    of times. Without ``sigmas`` they use exactly DDIM's times, so that "euler" is DDIM with η = 0 and "euler_ancestral" DDIM
    with its own η.
    """

    def __init__(self, sampler: Any, sigmas: Tensor | None = None):
        self._sampler, self._sigmas = sampler, sigmas

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
        levels = noise_levels(alphas_cumprod).to(latents.device)
        sigmas = self._levels(levels, t2, steps).float()
        model = _Model(eps_fn, levels, check)
        start = latents * (1 + sigmas[0] ** 2).sqrt()
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        extra = {"model_options": {"transformer_options": {}}, "seed": seed}
        # the latent is noised already: with zero noise, ComfyUI starts from exactly this sample
        done = self._sampler.sample(
            model, sigmas, extra, None, torch.zeros_like(start), latent_image=start, denoise_mask=None, disable_pbar=True
        )
        return (done / (1 + sigmas[-1] ** 2).sqrt()).to(latents.dtype)

    def _levels(self, levels: Tensor, t2: int, steps: int) -> Tensor:
        if self._sigmas is None:
            return levels[[*sampling_path(t2, steps), 0]]
        return sigmas_from(self._sigmas.to(levels), levels, t2)


def noise_levels(alphas_cumprod: Tensor) -> Tensor:
    """Return σ / α of every time [T], ComfyUI's "sigma"."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def sigmas_from(sigmas: Tensor, levels: Tensor, t2: int) -> Tensor:
    """Return descending noise levels that start at time t2: its own, then those of ``sigmas`` below it.

    Raises:
        InputError: there are none below.
    """
    below = sigmas[sigmas < levels[t2] * (1 - 1e-4)]
    if not len(below):
        raise InputError(
            f"No SIGMAS lie below {float(levels[t2]):.3f}, the noise level of t2 = {t2}; make more of them, or unlink them."
        )
    return torch.cat([levels[t2 : t2 + 1], below])


class _Model:
    """The model as called by ComfyUI's samplers: (x / α, σ / α) -> x0, with the few attributes that they read."""

    def __init__(self, eps_fn: EpsFn, levels: Tensor, check: Hook | None):
        self.inner_model = SimpleNamespace(model_sampling=host_sampling(levels))
        self.model_patcher = SimpleNamespace(
            model=self.inner_model, get_model_object=lambda name: getattr(self.inner_model, name)
        )
        self.cfg = 1.0  # logged by newer versions of ComfyUI; guidance is applied inside eps_fn
        self._eps_fn, self._levels, self._check = eps_fn, levels.log(), check

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = sigma.reshape(-1)[0].to(self._levels)
        t = int((self._levels - level.log()).abs().argmin())
        eps = predict_noise(self._eps_fn, x / float((1 + level**2).sqrt()), t, self._check)
        return x - float(level) * eps
