"""The included checkpoint's stand-in where its quality does not matter: the same network, small and untrained."""

from __future__ import annotations

import torch

from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.diffusion.embedded.network import EmbeddedConfig, MultiViewDenoiser, PatchCodec


def small_load() -> classmethod:
    """In place of ``EmbeddedModel.load``: a random model, with which SIR still finds the object by its reference."""
    config = EmbeddedConfig(image_size=32, channels=8, widths=(16, 32), head_dim=8, context=16)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        parts = config, PatchCodec(config), MultiViewDenoiser(config).eval()

    def load(cls: type[EmbeddedModel], path=None, device="cpu") -> EmbeddedModel:
        return cls(*parts)

    return classmethod(load)
