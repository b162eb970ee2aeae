"""The methods that protocols compare: SIR and SDS, run on every object with every seed."""

from __future__ import annotations

from collections.abc import Callable

from ..sir.plan import SIRPlan
from ..sir.sds import SDSSettings
from .content import Series, Setup
from .runs import Run, sds_job, sir_job
from .sources import base_plan

SIMILAR = 1.0
"""dB of PSNR within which two settings count as equally good."""

HALF = 2.0
"""Times faster: what the paper reports against DreamGaussian, and at least of the loss in pixels against that in latents."""

REPRESENTATIONS = {"gaussians": "Gaussians", "nerf": "NeRF"}
SDS_MARKS = (5, 10, 25, 50, 75, 95, 130, 160, 195, 240, 290, 340, 400, 500, 700, 1000, 1500, 2000)
"""Updates after which SDS is scored; none right after Gaussians were split and pruned, which costs dB for some updates."""


def sir_marks(iterations: int) -> tuple[int, ...]:
    """Iterations after which SIR is scored."""
    return tuple(sorted({0, iterations, *(round(iterations * share) for share in (0.05, 0.1, 0.25, 0.5, 0.75))}))


def plan_of(setup: Setup, representation: str = "gaussians", **changes) -> SIRPlan:
    """The report's plan with these changes."""
    return base_plan(setup.model, representation, **{"iterations": setup.iterations, **changes})


def sir_series(setup: Setup, name: str, representation: str = "gaussians", **changes) -> Series:
    """SIR on every object with every seed."""
    plan = plan_of(setup, representation, **changes)
    return Series(name, tuple(_each(setup, lambda i, seed: _sir(setup, i, seed, plan))))


def sds_series(setup: Setup, name: str, settings: SDSSettings, representation: str = "gaussians") -> Series:
    """SDS on every object with every seed."""
    plan, settings = plan_of(setup, representation), setup.sds(settings)
    marks = tuple(mark for mark in SDS_MARKS if mark <= settings.steps)
    source = (setup.model, setup.stamp)
    return Series(name, tuple(_each(setup, lambda i, seed: sds_job(*source, i, seed, plan, settings, marks, setup.device))))


def _sir(setup: Setup, index: int, seed: int, plan: SIRPlan) -> Run:
    return sir_job(setup.model, setup.stamp, index, seed, plan, sir_marks(plan.iterations), setup.device)


def _each(setup: Setup, make: Callable[[int, int], Run]) -> list[Run]:
    return [make(index, seed) for index in range(setup.objects) for seed in setup.seeds]
