"""Views of native models that see each other while they are denoised, so that they agree sooner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from einops import rearrange, repeat
from torch import Tensor

from ..microdreamer_core.diffusion.protocol import ViewCount
from ..microdreamer_core.errors import InputError

ALONE, SHARED, GRID = COUPLINGS = ("alone", "shared attention", "grid")
"""Each view by itself; self-attention over the views of a group (MVDream section 3.1, here without training); the views of a
group as one picture."""


@dataclass(frozen=True)
class Coupling:
    """Which views see each other.

    Attributes:
        kind: one of ``COUPLINGS``.
        group: how many; a square number for grids.

    Raises:
        InputError: there is no such kind, or no such group.
    """

    kind: str = ALONE
    group: int = 1

    def __post_init__(self):
        if self.kind not in COUPLINGS:
            raise InputError(f"coupling must be one of {', '.join(COUPLINGS)}, got {self.kind!r}.")
        is_square = math.isqrt(max(self.group, 0)) ** 2 == self.group
        if self.group < 1 or (self.kind == GRID and not is_square):
            allowed = "1, 4, 9 or 16" if self.kind == GRID else "at least 1"
            raise InputError(f"The group of {self.kind!r} must be {allowed}, got {self.group}.")

    @property
    def side(self) -> int:
        """Views beside each other in a picture of the network."""
        return math.isqrt(self.group) if self.kind == GRID else 1

    @property
    def view_count(self) -> ViewCount:
        return ViewCount() if self.kind == ALONE else ViewCount(self.group)

    def pictures(self, views: int) -> list[tuple[int, ...]]:
        """Return the views of each picture that the network makes, groups one after the other.

        View i is in group i modulo V / group, as in MVDream, so that each group is evenly spread.
        """
        groups = (
            [range(views)] if self.kind == ALONE else [range(g, views, views // self.group) for g in range(views // self.group)]
        )
        if self.kind == GRID:
            return [tuple(group) for group in groups]
        return [(view,) for group in groups for view in group]

    def join(self, latents: Tensor) -> Tensor:
        """Put the views [V,...,h,w] of each group side by side, row by row."""
        return rearrange(latents, "(g r c) ... h w -> g ... (r h) (c w)", r=self.side, c=self.side)

    def split(self, latents: Tensor) -> Tensor:
        """Undo ``join``."""
        return rearrange(latents, "g ... (r h) (c w) -> (g r c) ... h w", r=self.side, c=self.side)

    def join_images(self, images: Tensor) -> Tensor:
        """Put images [V,H,W,C] side by side as ``join`` does latents."""
        return rearrange(images, "(g r c) h w k -> g (r h) (c w) k", r=self.side, c=self.side)


UNCOUPLED = Coupling()


def share_attention(patcher: Any, group: int) -> Any:
    """Return a MODEL whose self-attention runs over every ``group`` consecutive pictures of a batch.

    Queries stay; keys and values are those of all pictures of the group. ComfyUI may batch the branches of the guidance, but
    never splits the batch of one, and other patches of the same attention apply as well.

    Raises:
        InputError: the network is no UNet, whose self-attention could be patched.
    """
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    if not isinstance(patcher.model.diffusion_model, UNetModel):
        kind = type(patcher.model).__name__
        raise InputError(f"Shared attention needs a UNet (SD1, SD2, SDXL, Stable Zero123), got {kind}; use a grid or none.")
    coupled = patcher.clone()
    coupled.set_model_attn1_patch(partial(_see_all, group))
    return coupled


def _see_all(group: int, query: Tensor, key: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
    pictures = len(query) // len(options.get("cond_or_uncond", "1"))  # a batch may hold several branches of the guidance
    if pictures % group:
        raise InputError(f"This model denoises pictures in groups of {group}, got {pictures}; change the latent's batch size.")

    def of_all(tokens: Tensor) -> Tensor:
        return repeat(tokens, "(g v) l c -> (g u) (v l) c", v=group, u=group)

    keys = of_all(key)
    return query, keys, keys if value is key else of_all(value)
