"""The inputs that all stages of an iteration share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..cameras import Cameras, sample_orbit
from ..diffusion.noise import PAPER_SIDE
from ..diffusion.protocol import Conditioning, MultiViewDiffusion, condition_model
from ..diffusion.view_words import snap_cameras
from ..errors import InputError
from ..reference import Reference
from ..render.protocol import Render
from ..util.seeds import generator
from .plan import IterationTimes, SIRPlan

INITIALISATION = -1
"""The k of the initialisation, which reconstructs θ0 before the K iterations."""


@dataclass(frozen=True)
class Step:
    """One iteration of Algorithm 1, or the initialisation: the input of its stages.

    Attributes:
        cameras: the poses c^(k), at the size of the renders.
        plan, seed: of the run; each stage samples from a generator derived from (seed, k, stage).
        k: 0..K-1, or ``INITIALISATION``.
        times: t1 and t2; None in the initialisation, which samples from pure noise.
        diffusion: the conditioned model; None if no stage needs one.
        render: renders the current field, for models that look at it (``HintedDiffusion``).
    """

    cameras: Cameras
    plan: SIRPlan
    seed: int
    k: int
    times: IterationTimes | None = None
    diffusion: MultiViewDiffusion | None = None
    render: Callable[[Cameras], Render] | None = None

    @classmethod
    def of_plan(
        cls,
        plan: SIRPlan,
        seed: int,
        k: int,
        size: int,
        *,
        elevation: float = 0.0,
        diffusion: MultiViewDiffusion | None = None,
    ) -> Step:
        """Create iteration ``k`` of a plan, with its cameras and times.

        Args:
            size: pixels of the diffusion model's images; the plan's resolutions may be smaller.
            elevation: the reference's in degrees, which shifts the range of elevations (see ``SIRPlan.elevations``).
        """
        times = None if k == INITIALISATION else plan.iteration_times(k, seed)
        return cls(iteration_cameras(plan, seed, k, size, elevation), plan, seed, k, times, diffusion)

    def with_model(self, diffusion: MultiViewDiffusion) -> Step:
        """Return this step with a conditioned model."""
        return replace(self, diffusion=diffusion)

    @property
    def model(self) -> MultiViewDiffusion:
        """The conditioned model.

        Raises:
            InputError: there is none, or it does not allow this number of views.
        """
        if self.diffusion is None:
            raise InputError("This step has no diffusion model; bind it with with_model(...) first.")
        planned = len(self.cameras) == self.plan.views
        mend = "change the plan's views" if planned else f"use as many cameras as the plan has views, {self.plan.views}"
        self.diffusion.view_count.check(len(self.cameras), mend)
        return self.diffusion

    @cached_property
    def conditioning(self) -> Conditioning:
        """The model's conditioning on the cameras, computed once."""
        return condition_model(self.model, self.cameras, self.render)

    @property
    def inversion_path(self) -> tuple[int, ...]:
        """The model's times of the forward process, ascending from t1 to t2.

        Raises:
            InputError: this is the initialisation, which has none, or there is no model.
        """
        if self.times is None:
            raise InputError("The initialisation samples from pure noise and has no forward process.")
        return model_times(self.plan, self.plan.inversion_path(self.times), self.model)

    @property
    def sampling_path(self) -> tuple[int, ...]:
        """The model's times at which sampling evaluates the network, descending.

        Pure noise enters at the plan's last time for Stable Diffusion's process, as in the released code, at T - 1 for others.
        """
        path = model_times(self.plan, self.plan.sampling_path(self.times), self.model)
        process = self.model.process
        if self.times is None and not process.is_stable_diffusion:
            return (len(process) - 1, *path[1:])
        return path

    @property
    def noise_level(self) -> float:
        """The noise-to-signal ratio ν of the model at t2, of pure noise in the initialisation."""
        return self.model.process.level(self.sampling_path[0])

    @property
    def updates(self) -> int:
        """Reconstruction steps I of this iteration."""
        return self.plan.init_steps if self.times is None else self.plan.steps

    @property
    def calls(self) -> int:
        """Network calls of refinement; one call covers all views."""
        return self.plan.discretization if self.times is None else self.times.calls

    @property
    def updates_after(self) -> int:
        """Reconstruction steps of all iterations that follow."""
        return max(self.plan.iterations - 1 - self.k, 0) * self.plan.steps


def model_times(plan: SIRPlan, times: Sequence[int], model: MultiViewDiffusion) -> tuple[int, ...]:
    """Convert times of the plan's clock to the model's; a path keeps its length, so that evaluations are the plan's."""
    if plan.clock == "model":
        return tuple(times)
    return model.process.convert_times(times, plan.clock_factor * model.latent_shape[-1] / PAPER_SIDE)


def iteration_cameras(plan: SIRPlan, seed: int, k: int, size: int, elevation: float = 0.0) -> Cameras:
    """Sample the camera poses c^(k) of one iteration (section V), at the size of its renders.

    Args:
        size: pixels of the diffusion model's images; the plan's resolutions may be smaller.
        elevation: the reference's in degrees, which shifts the range of elevations (see ``SIRPlan.elevations``).
    """
    rng = generator(seed, k, "cameras")
    cameras = sample_orbit(plan.views, plan.elevations(elevation), plan.radius, rng, plan.fov_y, plan.render_size(k, size))
    return snap_cameras(cameras) if plan.poses == "words" else cameras


def reference_elevation(reference: Reference | None) -> float:
    """Return the elevation of the reference's camera in degrees; 0 without a reference."""
    return 0.0 if reference is None else reference.elevation
