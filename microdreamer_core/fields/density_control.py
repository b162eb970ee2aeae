"""Density control of 3D Gaussians: where detail is missing they are cloned or split, where they show nothing they go.

Pure functions on tensors, called by :mod:`.gaussians` between updates.
The scheme is that of 3D Gaussian splatting (Kerbl et al. 2023, section 5.2) with DreamGaussian's constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..render.projection import rotation_matrices
from ..render.protocol import Render
from ..util.checks import check_types

if TYPE_CHECKING:
    pass

REFERENCE_SIZE = 256  # pixels; the published gradient threshold belongs to pictures of this size
FIRST_CHILD, SPLIT_INTO = 2, 2  # first of the rounds in which children are born, and how many there are; see Growth.round
SPLIT_SHRINK = 0.8 * SPLIT_INTO  # Kerbl et al.: children are smaller by 1.6


_QUIET = 0.25
"""Share of a run at its end in which the number of Gaussians stays."""
_SETTLE = 15
"""Updates that mend most of what a round did, where an iteration has so many."""


@dataclass(frozen=True)
class DensitySettings:
    """When and how the number of Gaussians changes; the defaults are those of the published runs.

    Attributes:
        every, until: densify and prune at each update divisible by ``every``, up to and including update ``until``
            (section V: 100 and 300); ``until`` 0 switches density control off. Runs that are known as a whole take these
            rounds as ``rounds`` says.
        grad_threshold: mean screen gradient from which a Gaussian is cloned or split: NDC units, loss summed over pixels and
            averaged over views, at 256 x 256 (other sizes are converted).
        split_scale: Gaussians whose largest scale exceeds this are split, smaller ones cloned (published as 0.01 of extent 4).
        min_opacity: fainter Gaussians are pruned.
        max_scale: larger ones too (published as 0.1 of extent 4).
        max_points: no growth beyond this number; the Gaussians with the largest gradients come first.
        final_min_opacity, final_max_scale: the limits of the last prune (published with extent 1).
    """

    every: int = 100
    until: int = 300
    grad_threshold: float = 0.01
    split_scale: float = 0.04
    min_opacity: float = 0.005
    max_scale: float = 0.4
    max_points: int = 40_000
    final_min_opacity: float = 0.01
    final_max_scale: float = 0.1

    def __post_init__(self):
        check_types(self)
        if self.every < 1 or self.until < 0 or self.max_points < 1:
            raise InputError(
                f"Density control needs every >= 1, until >= 0 and max_points >= 1, got {self.every}, {self.until} and "
                f"{self.max_points}; set until to 0 to switch it off."
            )

    def observes(self, step: int) -> bool:
        """Whether update ``step`` (1, 2, ...) still counts towards a decision."""
        return step <= self.until

    def acts(self, step: int) -> bool:
        """Whether Gaussians are added and removed after update ``step``."""
        return step <= self.until and step % self.every == 0

    def rounds(self, done: int, steps: int, after: int) -> tuple[int, ...]:
        """The updates of one iteration of a run after which Gaussians are added and removed.

        Right after a round a field looks several dB worse, and the next iteration would refine that; so a round leaves half
        of its iteration's updates behind it, or 15, and no round falls in the last quarter of a run. For that, short runs take
        their rounds at smaller distances, down to half of ``every``, and leave out what still comes too late. (The released
        code counts one update more in each iteration, which puts its rounds at 93, 187 and 281 of 315: inside iterations too,
        but the last one late. Here they are 78, 157 and 233, 0.3 dB better on six toys.)

        Args:
            done: updates before this iteration; steps: of this iteration; after: of the iterations that follow.
        """
        last, count, end = (1 - _QUIET) * (done + steps + after), self.until // self.every, done + steps
        distance = min(self.every, max(last / max(count, 1), self.every / 2))
        due = (int(number * distance) for number in range(1, count + 1) if number * distance <= last)
        return tuple(min(update, end - min(steps // 2, _SETTLE)) for update in due if done < update <= end)


@dataclass(frozen=True)
class Growth:
    """Which Gaussians stand after densification, in terms of those before.

    Survivors come in their order, then clones, then children: parts of a split Gaussian, still to be shrunk and moved. Only the
    device knows how many these are; M is the most that there can be.

    Attributes:
        source: [M] int64, whom each one comes from.
        round: [M] int64: 0 for survivors, 1 for clones, 2 and up for the children, born one round after the other.
        count: [] int64, how many stand. Those from there on are of no account.
    """

    source: Tensor
    round: Tensor
    count: Tensor


def screen_gradients(render: Render) -> tuple[Tensor, Tensor]:
    """How strongly the loss pulls at each Gaussian's place on the screen, over all views of ``render`` after backward.

    Pixel gradients become NDC gradients by (W/2, H/2) as in Kerbl et al.; since those of a loss summed over pixels grow with
    the number of pixels, they are also scaled by 256² / (W H), so that one threshold serves all sizes.

    Returns:
        [N] sum of the gradients' lengths over the views that see the Gaussian; [N] the number of those views.

    Raises:
        InputError: the render was made without tracking, or nothing was propagated back to it.
    """
    if render.means2d is None or render.means2d.grad is None or render.radii is None:
        raise InputError("Density control needs the render that the loss was computed from, got one without gradients.")
    height, width = render.rgb.shape[1:3]
    # filled on the device: a list of numbers would be copied there, and waited for
    halves = torch.stack([render.means2d.new_full((), side / 2) for side in (width, height)])
    to_ndc = halves * (REFERENCE_SIZE**2 / (width * height))
    seen = (render.radii > 0).all(-1)
    return ((render.means2d.grad * to_ndc).norm(dim=-1) * seen).sum(0), seen.sum(0)


def plan_growth(mean_gradients: Tensor, opacities: Tensor, scales: Tensor, settings: DensitySettings) -> Growth:
    """Choose whom to clone and whom to split, and leave out what would be too faint or too large.

    All sizes are known beforehand, so that nothing is read back from an accelerator.

    Args:
        mean_gradients: [N] mean screen gradient, see :func:`screen_gradients`.
        opacities: [N]; scales: [N,3] standard deviations.
    """
    count = len(scales)
    chosen = mean_gradients >= settings.grad_threshold
    budget = max(settings.max_points - count, 0)
    if budget < count:
        strongest = torch.argsort(mean_gradients, descending=True, stable=True)[:budget]
        chosen = chosen & torch.zeros_like(chosen).index_fill_(0, strongest, True)
    large = scales.amax(1) > settings.split_scale
    limits = settings.min_opacity, settings.max_scale
    fit, fit_halves = (worth_keeping(opacities, s, *limits) for s in (scales, scales / SPLIT_SHRINK))
    split = chosen & large
    stands = torch.stack([~split & fit, chosen & ~large & fit, *[split & fit_halves] * SPLIT_INTO])
    places = torch.argsort((~stands).flatten().to(torch.uint8), stable=True)[: count + min(count, budget)]
    return Growth(places % count, places // count, stands.sum())


def split_offsets(scales: Tensor, quats: Tensor, normal: Tensor) -> Tensor:
    """[K,3] world offsets of children, drawn from their parents' own Gaussians (Kerbl et al., section 5.2).

    Args:
        scales: [K,3] of the parents; quats: [K,4] wxyz, any norm.
        normal: [K,3] standard normal numbers.
    """
    return (rotation_matrices(quats) @ (scales * normal)[:, :, None]).squeeze(2)


def worth_keeping(opacities: Tensor, scales: Tensor, min_opacity: float, max_scale: float) -> Tensor:
    """[N] bool: neither too faint nor too large."""
    return (opacities >= min_opacity) & (scales.amax(1) <= max_scale)
