"""The plan of a SIR run: how often, from which noise level, through which views; with the presets of the paper's Table I.

Diffusion times are stored as fractions of T = 1000 and snapped to the sampler's grid when a run begins, exactly as the released
code does.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..diffusion.timesteps import DIFFUSION_STEPS, inversion_path, sampling_path, timestep_grid
from ..errors import InputError
from ..util.settings import check_settings, setting
from ..util.vocabulary import DEFAULT_FOV_Y, SAMPLERS, Background, Norm, Representation

Curve = Literal["linear", "square", "random", "cosine"]
T1Rule = Literal["ratio", "square"]
Forward = Literal["hybrid", "noise", "invert"]
LossSpace = Literal["pixel", "latent"]


@dataclass(frozen=True)
class IterationTimes:
    """The diffusion times of iteration k and what they cost.

    Attributes:
        t1, t2: integer times; t1 = t2 for pure noise-adding, t1 = 0 for pure inversion.
        inversion, sampling: network calls of the two halves (one call serves all views).
    """

    k: int
    t2: int
    t1: int
    inversion: int
    sampling: int

    @property
    def calls(self) -> int:
        """Network calls of the iteration."""
        return self.inversion + self.sampling


@dataclass(frozen=True)
class Evaluations:
    """Network evaluations of a whole run.

    Attributes:
        inversion, sampling: calls per view.
        per_view_paper: their sum, as the paper counts (guidance not doubled, initialisation included).
        per_view: with branches counted: inversion runs one, sampling two unless guidance is 0 or 1.
        total: per_view times the views.
    """

    inversion: int
    sampling: int
    per_view_paper: int
    per_view: int
    total: int


@dataclass(frozen=True)
class SIRPlan:
    """All numbers of Algorithm 1 that a user may choose; immutable, changed with ``dataclasses.replace`` or ``get_plan``.

    Diffusion times are fractions of T. Ranges and meaning of the fields are their :class:`~..util.settings.Setting`.

    Attributes:
        name: what to call it.
        elevation_range: (lowest, highest) degrees, positive above, for a reference taken at eye level.
        elevation_limits: how far other references may widen that range, see ``elevations``.
        resolutions: sizes through which the renders grow during the K iterations, each for an equal share of them, the first
            for the initialisation too (Table I); empty for renders of the model's size throughout.

    Raises:
        InputError: a value outside its range.
    """

    name: str
    representation: Representation = setting("gaussians", "what the plan was tuned for", choices=get_args(Representation))
    iterations: int = setting(20, "K, rounds of optimisation; 0 stops after the initialisation", 0, 10_000, flag="--iterations")
    steps: int = setting(15, "I, reconstruction steps of an iteration", 1, 10_000)
    init_steps: int = setting(15, "reconstruction steps of the initialisation, on views sampled from pure noise", 1, 10_000)
    views: int = setting(4, "cameras of an iteration", 1, 256)
    elevation_range: tuple[float, float] = (-30.0, 30.0)
    elevation_limits: tuple[float, float] = (-80.0, 80.0)
    radius: float = setting(2.0, "distance of the cameras from the middle of the object", 0)
    fov_y: float = setting(DEFAULT_FOV_Y, "vertical field of view in degrees", 0, 180)
    image_size: int = setting(256, "pixels a side of the renders", 1, 4096)
    resolutions: tuple[int, ...] = ()
    t2_start: float = setting(0.8, "noise level t2 of the first iteration, a share of T", 0, 1)
    t2_end: float = setting(0.2, "noise level t2 of the last iteration, at most t2_start", 0, 1)
    t2_curve: Curve = setting("linear", "how t2 goes from start to end; the paper's is linear", choices=get_args(Curve))
    t1_rule: T1Rule = setting("ratio", "how t1 follows from t2: t1_ratio t2, or the square t2² / T", choices=get_args(T1Rule))
    t1_ratio: float = setting(0.6, "t1 / t2 of the rule ratio", 0, 1)
    forward: Forward = setting(
        "hybrid", "forward process: hybrid (Eq. 9), noise (no inversion) or invert (no noise)", choices=get_args(Forward)
    )
    discretization: int = setting(20, "N, steps of the sampler's full grid", 1, DIFFUSION_STEPS - 1)
    sampler: str = setting("ddim", "sampler of the refinement", choices=SAMPLERS)
    eta: float = setting(0.0, "noise that DDIM adds in every step: 0 is deterministic, 1 ancestral", 0, 1)
    guidance_scale: float = setting(3.0, "classifier-free guidance of sampling; inversion is unconditional", 0)
    loss: Norm = setting("l1", "norm of the reconstruction loss, Eq. 8", choices=get_args(Norm))
    loss_space: LossSpace = setting(
        "pixel", "where renders and targets are compared: pixel (Eq. 12) or latent (Eq. 11)", choices=get_args(LossSpace)
    )
    ref_color_weight: float = setting(0.0, "weight of the reference's colours; 0 leaves them out", 0)
    ref_opacity_weight: float = setting(0.0, "weight of the reference's outline; 0 leaves it out", 0)
    background: Background = setting(
        "white", "background of renders in refinement and reconstruction: white, or learned", choices=get_args(Background)
    )
    ref_paint_weight: float = setting(
        0.0, "weight of the reference's colours where they change colours only, not the geometry; Gaussians alone", 0
    )
    lr_networks: float | None = setting(
        None, "learning rate of the networks of a NeRF of full size; None for the size's own", 0, optional=True
    )

    def __post_init__(self):
        check_settings(self, "the plan")
        paintable = self.representation == "gaussians" or not self.ref_paint_weight
        _require(paintable, "ref_paint_weight", "0 for a NeRF, whose colours and shape are one", self.ref_paint_weight)
        _require(self.radius > 0, "radius", "positive", self.radius)
        _require(0 < self.fov_y < 180, "fov_y", "between 0 and 180 degrees", self.fov_y)
        _require(0 < self.t2_end <= self.t2_start, "t2_end", f"positive and at most t2_start = {self.t2_start}", self.t2_end)
        for name in ("elevation_range", "elevation_limits"):
            _require(_is_range(getattr(self, name)), name, "(lowest, highest) within -90..90", getattr(self, name))
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = self.resolutions
        growing = isinstance(sizes, tuple | list) and all(_is_size(s) for s in sizes) and list(sizes) == sorted(sizes)
        _require(growing, "resolutions", "a growing list of sizes in pixels", sizes)
        object.__setattr__(self, "resolutions", tuple(sizes))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SIRPlan:
        """Restore a plan from the JSON of ``dataclasses.asdict``, also as earlier versions wrote it.

        They called ``guidance_scale`` "guidance" and had no ``elevation_limits``: a run goes on with the cameras that it began
        with.

        Raises:
            KeyError, TypeError, InputError: the values are not a plan's.
        """
        values = {"elevation_limits": values["elevation_range"]} | values
        if "guidance" in values:
            values["guidance_scale"] = values.pop("guidance")
        return cls(**values)

    @property
    def weighs_reference(self) -> bool:
        """Whether the reference view takes part in reconstruction."""
        return bool(self.ref_color_weight or self.ref_opacity_weight or self.ref_paint_weight)

    def grid(self) -> tuple[int, ...]:
        """The times of the full discretisation, ascending; the initialisation samples from the last."""
        return timestep_grid(self.discretization)

    def elevations(self, reference: float = 0.0) -> tuple[float, float]:
        """(lowest, highest) degrees of the cameras for a reference taken from ``reference`` degrees.

        The range holds both as it is and moved along with the reference, so that a picture from above does not leave the top to
        itself alone (main.py of the released code, whose limits are 80 degrees and whose angles are positive below).
        """
        (low, high), (lowest, highest) = self.elevation_range, self.elevation_limits
        return min(low, max(low + reference, lowest)), max(high, min(high + reference, highest))

    def render_size(self, k: int, model_size: int) -> int:
        """Pixels of the renders of iteration k (Table I, "Resolution"; it does not say when they grow: evenly, here).

        Args:
            k: -1 is the initialisation.
            model_size: pixels of the model's pictures; never more, for there is no more in its targets.
        """
        if not self.resolutions:
            return model_size
        share = max(k, 0) * len(self.resolutions) // max(self.iterations, 1)
        return min(self.resolutions[min(share, len(self.resolutions) - 1)], model_size)

    def times(self, seed: int) -> tuple[IterationTimes, ...]:
        """t1 and t2 of iterations 0..K-1, on the grid.

        Only the random curve depends on the seed. As in the released code k / K never reaches 1, so that t2_end itself is
        not visited, and indices are truncated, floating-point error included (20 (1 - 0.9) counts as 1).
        """
        return tuple(self._times(k, seed) for k in range(self.iterations))

    def evaluations(self, seed: int = 0, initialise: bool = True) -> Evaluations:
        """Network evaluations of a run, with or without the initialisation (which the paper counts)."""
        times = self.times(seed)
        inversion = sum(t.inversion for t in times)
        sampling = sum(t.sampling for t in times) + (self.discretization if initialise else 0)
        branches = 1 if self.guidance_scale in (0, 1) else 2
        per_view = inversion + branches * sampling
        return Evaluations(inversion, sampling, inversion + sampling, per_view, per_view * self.views)

    def _times(self, k: int, seed: int) -> IterationTimes:
        grid = self.grid()
        n = self.discretization
        first, last = n * (1 - self.t2_start), n * (1 - self.t2_end)
        index = int(self._progress(k, seed) * (last - first) + first)
        t2 = grid[n - 1 - min(index, n - 1)]
        t1 = self._t1(t2)
        return IterationTimes(k, t2, t1, len(inversion_path(t1, t2, n)) - 1, len(sampling_path(t2, n)))

    def _progress(self, k: int, seed: int) -> float:
        """How far t2 has come from start (0) to end (1)."""
        fraction = k / self.iterations
        if self.t2_curve == "square":
            # Fig. 12c's t2 = (k/K)² (start - end) + end with k counted down: as printed it would grow with k
            return 1 - (1 - fraction) ** 2
        if self.t2_curve == "cosine":
            return (1 - math.cos(math.pi * fraction)) / 2
        if self.t2_curve == "random":
            import torch

            from ..util.seeds import generator

            return float(torch.rand((), generator=generator(seed, k, "t2")))
        return fraction

    def _t1(self, t2: int) -> int:
        if self.forward == "noise":
            return t2
        if self.forward == "invert":
            return 0
        ratio = self.t1_ratio if self.t1_rule == "ratio" else t2 / DIFFUSION_STEPS
        # the released code floors t1 to the sampler's coarse grid, so that t1 / t2 comes out at 0.50 to 0.60 for 0.6
        return self.grid()[int(t2 / DIFFUSION_STEPS * self.discretization * ratio)]


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"The setting {name} of the plan must be {expected}, got {got!r}.")


def _is_size(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_range(value: object) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    numeric = all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in value)
    return numeric and -90 < value[0] <= value[1] < 90
