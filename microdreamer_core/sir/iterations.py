"""Score-based iterative reconstruction: Algorithm 1 as a generator."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as default

import torch
from torch import Tensor

from ..diffusion.protocol import MultiViewDiffusion
from ..diffusion.samplers import Sampler
from ..errors import InputError, NumericalError
from ..fields.protocol import WHITE, Field
from ..reference import Reference
from ..util.clock import Clock
from ..util.images import resize
from .hooks import Hooks
from .plan import IterationTimes, SIRPlan
from .stages import fit_views, refine_views
from .step import INITIALISATION, Step, reference_elevation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Iteration:
    """One finished iteration of Algorithm 1.

    Attributes:
        step: number k, cameras and noise levels.
        field: θ after this iteration; targets: the refined images [V,S,S,3], before a colour fix.
        losses: one per update.
        evaluations: network evaluations of the whole run so far, per view and per branch.
        seconds: of this iteration, by stage ("refine", "reconstruct"); both stages end with a synchronisation, so that the
            device's work is included.
    """

    step: Step
    field: Field
    targets: Tensor
    losses: tuple[float, ...]
    evaluations: int
    seconds: dict[str, float] = default(default_factory=dict)

    @property
    def k(self) -> int:
        """0..K-1; ``INITIALISATION`` after the initialisation."""
        return self.step.k

    @property
    def times(self) -> IterationTimes | None:
        """t1 and t2; None after the initialisation."""
        return self.step.times

    @torch.no_grad()
    def sheet(self) -> Tensor:
        """Render a preview [2H, V W, 3]: the field on white above its targets, H x W the larger size of the two."""
        renders = self.field.render(self.step.cameras, WHITE).rgb
        height, width = max(renders.shape[1:3], self.targets.shape[1:3])
        rows = [torch.cat(list(resize(row.cpu(), height, width)), 1) for row in (renders, self.targets)]
        return torch.cat(rows, 0).clamp(0, 1)


def sir_iterations(
    field: Field,
    diffusion: MultiViewDiffusion,
    plan: SIRPlan,
    seed: int,
    *,
    reference: Reference | None = None,
    first: int = INITIALISATION,
    sampler: Sampler | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
) -> Iterator[Iteration]:
    """Run Algorithm 1: initialise θ0, then run K iterations, each yielded when it is finished.

    If ``hooks.check`` raises, the iterations yielded before remain valid.

    Args:
        field: the start field, or the field of a saved iteration.
        diffusion: the conditioned model.
        seed: of all random numbers.
        reference: adds the reference losses if the plan weights them.
        first: k to start at; -1 for the initialisation, k+1 after a saved iteration k.
        sampler: in place of the plan's.

    Raises:
        InputError: the model does not allow the plan's number of views, or ``first`` is out of range.
        NumericalError: a value became NaN or infinite; the message names iteration and stage.
    """
    diffusion.view_count.check(plan.views)
    if not INITIALISATION <= first <= plan.iterations:
        raise InputError(f"The first iteration must lie in {INITIALISATION}..{plan.iterations}, got {first}.")
    size, elevation = diffusion.image_size, reference_elevation(reference)
    for k in range(first, plan.iterations):
        step = Step.of_plan(plan, seed, k, size, elevation=elevation, diffusion=diffusion)
        try:
            iteration = _iterate(field, step, reference, sampler, hooks)
        except NumericalError as error:
            raise NumericalError(f"Iteration {k}: {error}") from error
        log.debug("iteration %d: loss %.1f, %d evaluations", k, iteration.losses[-1], iteration.evaluations)
        field = iteration.field
        yield iteration


def _iterate(field: Field, step: Step, reference: Reference | None, sampler: Sampler | None, hooks: Hooks) -> Iteration:
    clock = Clock()
    with clock.stage("refine"):
        refined = refine_views(step, field, sampler=sampler, hooks=hooks)
    with clock.stage("reconstruct"):
        check = hooks.count("reconstruct", step.updates)
        fitted = fit_views(
            step, field, refined.images, latents=refined.latents, reference=reference, check=check, watch=hooks.watch
        )
    return Iteration(step, fitted.field, refined.images, fitted.losses, step.model.evaluations, clock.seconds)
