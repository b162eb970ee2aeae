"""The plan of a SIR run: iterations, noise levels, views, sampler and losses.

Diffusion times are stored as fractions of T = 1000 and snapped to the sampler's grid at the start of a run, exactly as in the
released code.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ..diffusion.timesteps import DIFFUSION_STEPS, Spacing, inversion_path, sampling_path, timestep_grid
from ..errors import InputError
from ..util.settings import check_settings, setting
from ..util.vocabulary import DEFAULT_FOV_Y, SAMPLERS, Background, Norm, Representation

Curve = Literal["linear", "square", "random", "cosine"]
T1Rule = Literal["ratio", "square"]
Forward = Literal["hybrid", "noise", "invert"]
LossSpace = Literal["pixel", "latent"]
Clock = Literal["paper", "model"]
Branch = Literal["unconditional", "conditional"]
Poses = Literal["any", "words"]


@dataclass(frozen=True)
class IterationTimes:
    """The diffusion times of iteration k and their network calls.

    Attributes:
        t1, t2: integer times of the plan's clock; t1 = t2 for pure noise-adding, t1 = 0 for pure inversion.
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
        total: per_view times the number of views.
    """

    inversion: int
    sampling: int
    per_view_paper: int
    per_view: int
    total: int


@dataclass(frozen=True)
class SIRPlan:
    """All parameters of Algorithm 1; immutable, changed with ``dataclasses.replace`` or :func:`~.presets.get_plan`.

    Diffusion times are fractions of T. Range and meaning of a field are in its :class:`~..util.settings.Setting`.

    >>> plan = SIRPlan("mine", iterations=10, t2_start=0.9, t2_end=0.5)
    >>> [times.t2 for times in plan.times(seed=0)][:3]
    [901, 851, 801]

    Attributes:
        name: the preset's, or a name of your choice.
        elevation_range: (lowest, highest) degrees, positive above, for a reference taken at eye level.
        elevation_limits: how far other references may widen that range, see ``elevations``.
        resolutions: render sizes in pixels, ascending, each for an equal share of the K iterations, the first for the
            initialisation too (Table I); empty for renders of the model's size throughout.

    Raises:
        InputError: a value is out of range.
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
    spacing: Spacing = setting(
        "leading",
        "times of the sampler's grid: leading (1, 51 ... 951 for N = 20) or trailing (49, 99 ... 999), for few-step models",
        choices=get_args(Spacing),
    )
    inversion_branch: Branch = setting(
        "unconditional",
        "branch that inversion evaluates; conditional for models that are distilled without an unconditional one",
        choices=get_args(Branch),
    )
    poses: Poses = setting(
        "any",
        "poses of the cameras: any, or words, the nearest that camera-angle LoRAs know (azimuths of 45 degrees, elevations "
        "-30, 0, 30 and 60)",
        choices=get_args(Poses),
    )
    clock: Clock = setting(
        "paper",
        "what t2 and t1 are shares of: paper (Stable Diffusion's time, converted to the model's by noise level) or model (the "
        "model's own time); the same for models of Stable Diffusion's process",
        choices=get_args(Clock),
    )
    clock_factor: float = setting(1.0, "factor of that noise level, beside the side of the latents over 32", 0.001, 1000)
    color_fix: float = setting(
        0.0,
        "colours broader than this share of the picture stay those of the renders, the model refines the rest; 0, a latent "
        "loss, a learned background and textures leave all of them to the model",
        0,
        1,
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
        """Restore a plan from the JSON of ``dataclasses.asdict``, also from earlier versions.

        They called ``guidance_scale`` "guidance" and had no ``elevation_limits``: such a run keeps its range of elevations.

        Raises:
            KeyError, TypeError, InputError: the values are not a plan's.
        """
        values = {"elevation_limits": values["elevation_range"]} | values
        if "guidance" in values:
            values["guidance_scale"] = values.pop("guidance")
        return cls(**values)

    @property
    def weighs_reference(self) -> bool:
        """True if the reference view takes part in reconstruction."""
        return bool(self.ref_color_weight or self.ref_opacity_weight or self.ref_paint_weight)

    def grid(self) -> tuple[int, ...]:
        """Return the times of the full discretisation, ascending; the initialisation samples from the last."""
        return timestep_grid(self.discretization, self.spacing)

    def inversion_path(self, times: IterationTimes) -> tuple[int, ...]:
        """Return the times from t1 to t2 of an iteration's forward process, ascending."""
        return inversion_path(times.t1, times.t2, self.discretization, self.spacing)

    def sampling_path(self, times: IterationTimes | None) -> tuple[int, ...]:
        """Return the times at which sampling evaluates the network, descending; None is the initialisation, from pure noise."""
        t2 = self.grid()[-1] if times is None else times.t2
        return sampling_path(t2, self.discretization, self.spacing)

    def elevations(self, reference: float = 0.0) -> tuple[float, float]:
        """Return the range (lowest, highest) of camera elevations in degrees for a reference taken from ``reference`` degrees.

        It is the union of the plan's range and of that range shifted by the reference's elevation, so that the top of an object
        seen from above is also covered by other cameras (main.py of the released code, whose limits are 80 degrees and whose
        angles are positive below).

        >>> SIRPlan("mine", elevation_range=(-30, 30)).elevations(20.0)
        (-30, 50.0)
        """
        (low, high), (lowest, highest) = self.elevation_range, self.elevation_limits
        return min(low, max(low + reference, lowest)), max(high, min(high + reference, highest))

    def render_size(self, k: int, model_size: int) -> int:
        """Return the render size of iteration k in pixels (Table I, "Resolution").

        The paper does not say when the size grows: here, in equal shares of the iterations.

        Args:
            k: -1 is the initialisation.
            model_size: pixels of the model's images, an upper limit, because targets have no more detail.
        """
        if not self.resolutions:
            return model_size
        share = max(k, 0) * len(self.resolutions) // max(self.iterations, 1)
        return min(self.resolutions[min(share, len(self.resolutions) - 1)], model_size)

    def times(self, seed: int) -> tuple[IterationTimes, ...]:
        """Compute t1 and t2 of iterations 0..K-1, on the grid.

        Only the random curve depends on the seed. As in the released code, k / K never reaches 1, so that t2_end itself is
        not visited, and indices are truncated, floating-point error included (20 (1 - 0.9) becomes 1).
        """
        return tuple(self.iteration_times(k, seed) for k in range(self.iterations))

    def evaluations(self, seed: int = 0, initialise: bool = True) -> Evaluations:
        """Count the network evaluations of a run, with or without the initialisation (which the paper counts)."""
        times = self.times(seed)
        inversion = sum(t.inversion for t in times)
        sampling = sum(t.sampling for t in times) + (self.discretization if initialise else 0)
        branches = 1 if self.guidance_scale in (0, 1) else 2
        per_view = inversion + branches * sampling
        return Evaluations(inversion, sampling, inversion + sampling, per_view, per_view * self.views)

    def iteration_times(self, k: int, seed: int) -> IterationTimes:
        """Compute t1 and t2 of iteration k, 0..K-1; see ``times``."""
        progress = self._progress(k, seed)
        t2 = self._leading_t2(progress) if self.spacing == "leading" else self._trailing_t2(progress)
        bare = IterationTimes(k, t2, self._t1(t2), 0, 0)
        return replace(bare, inversion=len(self.inversion_path(bare)) - 1, sampling=len(self.sampling_path(bare)))

    def _leading_t2(self, progress: float) -> int:
        """Index the grid from its end as the released code does."""
        n = self.discretization
        first, last = n * (1 - self.t2_start), n * (1 - self.t2_end)
        return self.grid()[n - 1 - min(int(progress * (last - first) + first), n - 1)]

    def _trailing_t2(self, progress: float) -> int:
        """Take the latest time of the grid that is not above t2: T - 1 would forget the renders."""
        share = self.t2_start + progress * (self.t2_end - self.t2_start)
        return self.grid()[max(int(share * self.discretization + 1e-9) - 1, 0)]

    def _progress(self, k: int, seed: int) -> float:
        """Return the position of t2 between start (0) and end (1)."""
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
        index = int(t2 / DIFFUSION_STEPS * self.discretization * ratio)
        if self.spacing == "leading":
            return self.grid()[index]
        return self.grid()[max(index - 1, 0)]  # not 0 on a coarse grid: hybrid would be pure inversion


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
