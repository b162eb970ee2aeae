"""Score-based iterative reconstruction: Algorithm 1 as a generator."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as default

import torch
from torch import Tensor

from ..cameras import Cameras
from ..diffusion.protocol import MultiViewDiffusion
from ..diffusion.samplers import Sampler
from ..errors import InputError, NumericalError
from ..fields.protocol import WHITE, Field
from ..reference import Reference
from .hooks import Hooks
from .plan import IterationTimes, SIRPlan
from .stages import fit_views, iteration_cameras, reference_elevation, refine_views, resize

log = logging.getLogger(__name__)

INITIALISATION = -1
"""The k of θ0's own reconstruction, before the K iterations."""


@dataclass(frozen=True)
class Iteration:
    """One finished iteration of Algorithm 1.

    Attributes:
        k: 0..K-1; -1 after the initialisation.
        field: θ after this iteration; ``cameras``, ``targets``: what it was reconstructed from.
        times: t1 and t2; None for the initialisation.
        losses: of each reconstruction step.
        evaluations: network evaluations of the whole run so far, per view and per branch.
        seconds: of this iteration, by stage ("refine", "reconstruct"); both end by reading from the device, so that they hold
            its work too.
    """

    k: int
    field: Field
    cameras: Cameras
    targets: Tensor
    times: IterationTimes | None
    losses: tuple[float, ...]
    evaluations: int
    seconds: dict[str, float] = default(default_factory=dict)

    @torch.no_grad()
    def sheet(self) -> Tensor:
        """[2S, V S, 3]: the field's renders on white above the targets they learned from, S pixels as the larger of both."""
        renders = self.field.render(self.cameras, WHITE).rgb
        size = max(self.cameras.width, self.targets.shape[2])
        rows = [torch.cat(list(resize(row.cpu(), size)), 1) for row in (renders, self.targets)]
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
    """Algorithm 1: the initialisation of θ0, then K iterations; each is yielded when it is finished.

    Whoever consumes the generator keeps the last iteration: when ``hooks.check`` raises, nothing finished is lost.

    Args:
        field: the start field, or the field of a saved iteration.
        seed: all draws derive from it.
        reference: adds the reference losses when the plan weighs them.
        first: k to begin with; -1 for the initialisation, k+1 after a saved iteration k.

    Raises:
        InputError: the model does not allow the plan's views.
        NumericalError: a NaN or infinity; the message names iteration and stage.
    """
    diffusion.view_count.check(plan.views)
    if not INITIALISATION <= first <= plan.iterations:
        raise InputError(f"The first iteration must lie in {INITIALISATION}..{plan.iterations}, got {first}.")
    times = plan.times(seed)
    for k in range(first, plan.iterations):
        try:
            iteration = _iterate(field, diffusion, plan, seed, k, None if k < 0 else times[k], reference, sampler, hooks)
        except NumericalError as error:
            raise NumericalError(f"Iteration {k}: {error}") from error
        log.debug("iteration %d: loss %.1f, %d evaluations", k, iteration.losses[-1], iteration.evaluations)
        field = iteration.field
        yield iteration


def _iterate(
    field: Field,
    diffusion: MultiViewDiffusion,
    plan: SIRPlan,
    seed: int,
    k: int,
    times: IterationTimes | None,
    reference: Reference | None,
    sampler: Sampler | None,
    hooks: Hooks,
) -> Iteration:
    clock = time.perf_counter()
    cameras = iteration_cameras(plan, seed, k, diffusion.image_size, reference_elevation(reference))
    refined = refine_views(field, diffusion, cameras, plan, times, seed, k, sampler=sampler, hooks=hooks)
    middle = time.perf_counter()
    steps = plan.init_steps if times is None else plan.steps
    result = fit_views(
        field,
        diffusion,
        cameras,
        refined.images,
        plan,
        steps,
        k=k,
        latents=refined.latents,
        reference=reference,
        check=hooks.counted("reconstruct", steps),
    )
    seconds = {"refine": middle - clock, "reconstruct": time.perf_counter() - middle}
    return Iteration(k, result.field, cameras, refined.images, times, result.losses, diffusion.evaluations, seconds)
