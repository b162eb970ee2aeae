"""ComfyUI's samplers in place of DDIM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.diffusion.ddim import Denoise, estimate
from ..microdreamer_core.diffusion.noise import NoiseProcess
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.util.hooks import Hook
from .compat import io
from .native_process import HostProcess, host_process


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
            tooltip="Noise levels for that sampler, e.g. of Sigmas of Plan, in the scale of the linked MODEL; those above t2 "
            "are left out. Without them, the plan's grid is used.",
        ),
    ]


def choose_sampler(sampler: Any, sigmas: Tensor | None) -> NativeSampler | None:
    """Wrap the linked ComfyUI sampler for the core; None if none is linked.

    Raises:
        InputError: SIGMAS without a SAMPLER or in the wrong direction, or a sampler that uses both branches of the guidance.
    """
    if sampler is None and sigmas is not None:
        raise InputError("SIGMAS are linked without a SAMPLER; link one, e.g. from KSamplerSelect, or unlink the SIGMAS.")
    if sigmas is not None and bool((sigmas.diff() > 0).any()):
        raise InputError(
            "SIGMAS must fall from noise to 0, got rising ones; unlink Flip Sigmas, the stages invert by themselves."
        )
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if "cfg_pp" in name:
        raise InputError(f"The sampler {name.removeprefix('sample_')} needs ComfyUI's own guidance; choose one without cfg_pp.")
    return None if sampler is None else NativeSampler(sampler, sigmas)


class NativeSampler:
    """A ComfyUI SAMPLER behind the core's ``Sampler`` protocol.

    ComfyUI's samplers work in a model's own scale and levels and take the clean estimate. For native models these are those of
    its ``model_sampling``, which the samplers look up to tell flow models; for ours x / α and σ / α ("variance exploding").
    Without ``sigmas`` they use exactly DDIM's times, so that "euler" is DDIM with η = 0; "euler_ancestral" is DDIM with its own
    η, except for flow models, where ComfyUI means another amount of noise by it.
    """

    def __init__(self, sampler: Any, sigmas: Tensor | None = None):
        self._sampler, self._sigmas = sampler, sigmas

    def __call__(
        self,
        denoise: Denoise,
        latents: Tensor,
        path: Sequence[int],
        process: NoiseProcess,
        generator: torch.Generator,
        check: Hook | None = None,
    ) -> Tensor:
        host = host_process(process)
        sigmas = self._levels(host, path).to(latents.device).float()
        model = _Model(denoise, host, check)
        noise = latents * (host.scale_at(sigmas[0]) / host.noise_factor(sigmas[0]))
        seed = int(torch.randint(0, 2**31, (), generator=generator))
        extra = {"model_options": {"transformer_options": {}}, "seed": seed}
        empty = torch.zeros_like(noise)
        done = self._sampler.sample(model, sigmas, extra, None, noise, latent_image=empty, denoise_mask=None, disable_pbar=True)
        # ComfyUI has divided the result by a
        a, b = host.signal_and_noise(sigmas[-1])
        return (done * (a / math.hypot(a, b))).to(latents.dtype)

    def _levels(self, host: HostProcess, path: Sequence[int]) -> Tensor:
        if self._sigmas is None:
            last = host.sigmas[:1] if host.is_stable_diffusion else host.sigmas.new_zeros(1)
            return torch.cat([host.sigmas[list(path)], last])
        return sigmas_from(self._sigmas, host, path[0])


def sigmas_from(sigmas: Tensor, host: HostProcess, t2: int) -> Tensor:
    """Return falling noise levels that start at time t2: its own, then those of ``sigmas`` below it.

    Raises:
        InputError: there are none below.
    """
    top, given = host.sigmas[t2], sigmas.to(host.sigmas)
    below = given[given < top * (1 - 1e-4)]
    if not len(below):
        raise InputError(
            f"No SIGMAS lie below {float(top):.3f}, the noise level of t2 = {t2} in the model's scale; make more of them, or "
            "unlink them."
        )
    return torch.cat([top[None], below])


class _Model:
    """The model as called by ComfyUI's samplers: (x, s) -> x0, with the few attributes that they read."""

    def __init__(self, denoise: Denoise, host: HostProcess, check: Hook | None):
        self.inner_model = SimpleNamespace(model_sampling=host.sampling)
        self.model_patcher = SimpleNamespace(
            model=self.inner_model, get_model_object=lambda name: getattr(self.inner_model, name)
        )
        self.cfg = 1.0  # logged by newer versions of ComfyUI; guidance is applied inside denoise
        self._denoise, self._host, self._check = denoise, host, check

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        level = sigma.reshape(-1)[0]
        return estimate(self._denoise, x / self._host.scale_at(level), self._host.time_of(level), self._check)
