"""3D Gaussians as a field: raw parameters, their activations, Adam and density control.

The parameterisation is that of 3D Gaussian splatting (Kerbl et al. 2023): logarithms of scales, logits of opacities and
degree-0 spherical harmonics for colour, so that its PLY files contain the same numbers (``io/ply.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor
from torch.optim.adam import adam

from ..cameras import Cameras
from ..errors import InputError, NumericalError
from ..render.projection import BLUR
from ..render.protocol import Render, SplatRenderer, Splats
from ..util import devices
from ..util.seeds import generator
from ..util.settings import check_settings, setting
from ..util.vocabulary import CHANGE_HELP, Change
from .density_control import (
    FIRST_CHILD,
    SPLIT_INTO,
    SPLIT_SHRINK,
    DensitySettings,
    plan_growth,
    screen_gradients,
    split_offsets,
)
from .protocol import StepRange

SH_C0 = 0.28209479177387814  # the constant of the degree-0 spherical harmonic: rgb = 0.5 + SH_C0 dc
_DC_LIMIT = 0.5 / SH_C0 * (1 - 1e-6)  # just inside [0,1]: clamping must not stop the gradient of a saturated colour
_ADAM_EPS = 1e-15
_ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "amsgrad": False, "maximize": False}
_NEIGHBOURS = 3
_MOST_EXTENT = 1e12  # largest position and size in a saved state: its square still fits into float32
_TENSOR_GROUPS = ("parameters", "exp_avg", "exp_avg_sq")
_FILLED_IN: Any = None  # default of tensors that ``__post_init__`` creates


@dataclass(frozen=True)
class GaussianSettings:
    """Initialisation and learning rates of Gaussians; the defaults are the published ones (section V, DreamGaussian).

    Attributes:
        num_points, radius, opacity: of the start ball.
        lr_means, lr_means_end, lr_max_steps: learning rate of the means, which decays exponentially for ``lr_max_steps``
            updates and is then constant; both ends are multiplied by ``spatial_lr_scale``. (The published delay factor has no
            effect, as its delay is zero steps, so there is none here.)
        lr_features, lr_opacity, lr_scales, lr_quats: constant learning rates of the other parameters.
        density: density control.
        antialiased: whether renders compensate for the screen's low-pass filter (Mip-Splatting).
        renderer: name for ``render.backends.get_renderer``.
        change: what fitting may change; without "everything" there is no density control, and what stays is kept bit for bit.

    Raises:
        InputError: a value is out of range.
    """

    num_points: int = 5000
    radius: float = 0.5
    opacity: float = 0.1
    lr_means: float = 1e-3
    lr_means_end: float = 2e-5
    lr_max_steps: int = 500
    spatial_lr_scale: float = 10.0
    lr_features: float = 0.01
    lr_opacity: float = 0.05
    lr_scales: float = 0.005
    lr_quats: float = 0.0005
    density: DensitySettings = DensitySettings()
    antialiased: bool = False
    renderer: str = "auto"
    change: Change = setting("everything", CHANGE_HELP, choices=get_args(Change))

    def __post_init__(self):
        check_settings(self)
        if self.num_points <= _NEIGHBOURS:
            raise InputError(f"Gaussians start from more than {_NEIGHBOURS} points, got {self.num_points}; 5000 is usual.")
        if not 0 < self.opacity < 1:
            raise InputError(f"The start opacity must lie between 0 and 1, got {self.opacity}; 0.1 is usual.")
        for name in ("radius", "lr_means", "lr_means_end", "lr_max_steps", "spatial_lr_scale"):
            if not getattr(self, name) > 0:
                raise InputError(f"GaussianSettings.{name} must be positive, got {getattr(self, name)}.")

    def means_learning_rate(self, step: int) -> float:
        """Return the learning rate of the means at update ``step`` (1, 2, ...): log-linear, as in Plenoxels and Kerbl et al.

        >>> round(GaussianSettings().means_learning_rate(500), 6)
        0.0002
        """
        t = min(step / self.lr_max_steps, 1.0)
        return self.spatial_lr_scale * math.exp((1 - t) * math.log(self.lr_means) + t * math.log(self.lr_means_end))


class Parameters(NamedTuple):
    """One tensor per parameter, before activation: values, or their Adam moments.

    Attributes:
        means: [N,3] world positions.
        log_scales: [N,3].
        quats: [N,4] wxyz, any norm but 0.
        opacity_logits: [N].
        dc: [N,3] degree-0 spherical harmonics of red, green and blue.
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    opacity_logits: Tensor
    dc: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Parameters:
        """Apply a function to every tensor."""
        return Parameters(*map(function, self))

    def activate(self) -> Splats:
        """Apply the activations, giving the input of a renderer; differentiable."""
        colors = (0.5 + SH_C0 * self.dc).clamp(0, 1)
        return Splats(self.means, self.quats, self.log_scales.exp(), self.opacity_logits.sigmoid(), colors)


_CHANGED: dict[Change, tuple[str, ...]] = {
    "everything": Parameters._fields,
    "appearance": ("opacity_logits", "dc"),
    "colours": ("dc",),
}
_SHAPES: tuple[tuple[int, ...], ...] = ((3,), (3,), (4,), (), (3,))


@dataclass(frozen=True, eq=False, repr=False)
class Gaussians:
    """A :class:`~.protocol.Field` of N 3D Gaussians, including the optimiser's state.

    >>> Gaussians.ball(GaussianSettings(num_points=1000), seed=1)
    Gaussians(1000 on cpu after 0 updates)

    Attributes:
        parameters: the optimised tensors.
        settings: learning rates, density control, renderer.
        seed: of density control.
        step: updates so far; it determines learning rate, Adam's bias correction and when density control acts.
        pixel: world width of a pixel of the images that the field was last fitted to, a number or a [] tensor that is not read
            back yet; 0 if it was never fitted.
        exp_avg, exp_avg_sq: Adam's moments; zero when None is given.
        grad_sum, views_seen: [N] statistics since the last density control; zero when None is given.

    Raises:
        InputError: shapes do not agree.
    """

    kind: ClassVar[str] = "gaussians"

    parameters: Parameters
    settings: GaussianSettings = GaussianSettings()
    seed: int = 0
    step: int = 0
    exp_avg: Parameters = _FILLED_IN
    exp_avg_sq: Parameters = _FILLED_IN
    grad_sum: Tensor = _FILLED_IN
    views_seen: Tensor = _FILLED_IN
    pixel: float | Tensor = 0.0

    def __post_init__(self):
        fresh = {
            "exp_avg": lambda: self.parameters.map(torch.zeros_like),
            "exp_avg_sq": lambda: self.parameters.map(torch.zeros_like),
            "grad_sum": lambda: torch.zeros_like(self.parameters.opacity_logits),
            "views_seen": lambda: torch.zeros_like(self.parameters.opacity_logits),
        }
        for name, make in fresh.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, make())
        for group in _TENSOR_GROUPS:
            for name, tensor, shape in zip(Parameters._fields, getattr(self, group), _SHAPES, strict=True):
                _check_shape(f"{group}.{name}", tensor, (len(self), *shape))
        for name in ("grad_sum", "views_seen"):
            _check_shape(name, getattr(self, name), (len(self),))

    @classmethod
    def ball(cls, settings: GaussianSettings | None = None, seed: int = 0, device: torch.device | str = "cpu") -> Gaussians:
        """Create the start of a run (section V, after DreamGaussian): grey, faint Gaussians, uniform in a ball."""
        settings = settings or GaussianSettings()
        rng = generator(seed, -1, "gaussians")
        directions = torch.nn.functional.normalize(torch.randn(settings.num_points, 3, generator=rng), dim=-1)
        radii = settings.radius * torch.rand(settings.num_points, 1, generator=rng) ** (1 / 3)
        return cls.from_points(directions * radii, None, settings, seed).to(device)

    @classmethod
    def from_points(
        cls, points: Tensor, colors: Tensor | None = None, settings: GaussianSettings | None = None, seed: int = 0
    ) -> Gaussians:
        """Create isotropic Gaussians at given points, each with the distance to its neighbours as its scale.

        Args:
            points: [N,3] world positions, N > 3.
            colors: [N,3] RGB in [0,1]; grey when None.

        Raises:
            InputError: shapes are wrong or there are too few points.
        """
        settings = settings or GaussianSettings()
        if points.ndim != 2 or points.shape[1] != 3 or len(points) <= _NEIGHBOURS:
            raise InputError(f"Gaussians start from [N,3] points with N > {_NEIGHBOURS}, got {list(points.shape)}; add points.")
        points = points.detach().clone().float()
        count = len(points)
        log_scales = _neighbour_distance(points).log()[:, None].repeat(1, 3)
        quats = points.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
        opacity_logits = points.new_full((count,), math.log(settings.opacity / (1 - settings.opacity)))
        dc = torch.zeros_like(points) if colors is None else (colors.to(points) - 0.5) / SH_C0
        return cls(Parameters(points, log_scales, quats, opacity_logits, dc), settings, seed)

    def __len__(self) -> int:
        return len(self.parameters.means)

    def __repr__(self) -> str:
        return f"Gaussians({len(self)} on {self.device} after {self.step} updates)"

    @property
    def device(self) -> torch.device:
        return self.parameters.means.device

    def summary(self) -> str:
        """Return the number of Gaussians in words."""
        return f"{len(self)} Gaussians"

    def renderer(self) -> SplatRenderer:
        """Return the renderer of the settings, for this field's device."""
        from ..render.backends import get_renderer

        return get_renderer(self.settings.renderer, self.device)

    def splats(self) -> Splats:
        """Return the Gaussians after activation."""
        return self.parameters.activate()

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Render the field on ``background`` ([3] or [V,3]), white when None."""
        return _render(self.renderer(), self.parameters, self.settings, cameras, background, track_means2d=False)

    def clone(self) -> Gaussians:
        """Return a deep copy."""
        return self._map(lambda tensor: tensor.detach().clone())

    def to(self, device: torch.device | str) -> Gaussians:
        """Move the field to another device."""
        return self._map(lambda tensor: tensor.to(device))

    def subset(self, kept: Tensor | slice) -> Gaussians:
        """Select Gaussians by ``kept`` ([N] bool, indices or a slice), with their moments and statistics."""
        return self._map(lambda tensor: tensor[kept])

    def absorb_low_pass(self) -> Gaussians:
        """Add the screen's low-pass filter of fitting to the scales, and render antialiased from now on.

        Splatting widens every Gaussian by 0.3 square pixels (Kerbl et al. 2023). At the image size of fitting, this blur is
        part of the object; on larger images it vanishes, and the object falls apart into smaller, harder Gaussians. So it is
        added to the variances: s² + 0.3 p², p the world width of a pixel (the 3D filter of Mip-Splatting, arXiv 2311.16493,
        Eq. 9, without its change of opacity, which fitting did not have either). Fields that were never fitted and
        antialiased ones are returned unchanged.
        """
        pixel = float(self.pixel)
        if self.settings.antialiased or not pixel:
            return self
        variances = self.parameters.log_scales.exp().square() + BLUR * pixel**2
        parameters = self.parameters._replace(log_scales=0.5 * variances.log())
        return replace(self, parameters=parameters, settings=replace(self.settings, antialiased=True))

    def limit_to(self, change: Change) -> Gaussians:
        """Limit what fitting may change, say to the colours of a splat whose shape is right.

        Unless everything may change, the field renders antialiased: the screen's low-pass filter of small training images,
        which the scales could otherwise absorb, would be fitted by the colours and be missing at larger sizes.

        Raises:
            InputError: unknown ``change``.
        """
        antialiased = self.settings.antialiased or change != "everything"
        return replace(self, settings=replace(self.settings, change=change, antialiased=antialiased))

    def optimizer(self, stretch: StepRange | None = None) -> GaussianOptimizer:
        """Create an optimiser on a private copy; ``stretch`` determines after which updates density control acts."""
        return GaussianOptimizer(self, stretch)

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors by name, and all other values as JSON: the content of a saved state (``io/state.py``)."""
        tensors = {
            f"{group}.{name}": t
            for group in _TENSOR_GROUPS
            for name, t in zip(Parameters._fields, getattr(self, group), strict=True)
        }
        tensors |= {"grad_sum": self.grad_sum, "views_seen": self.views_seen}
        return tensors, {"settings": asdict(self.settings), "seed": self.seed, "step": self.step, "pixel": float(self.pixel)}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> Gaussians:
        """Restore a field from :meth:`to_state`.

        Raises:
            InputError: a value is missing or invalid.
        """
        try:
            density = DensitySettings(**values["settings"]["density"])
            groups = {g: Parameters(*(tensors[f"{g}.{name}"] for name in Parameters._fields)) for g in _TENSOR_GROUPS}
            field = cls(
                settings=GaussianSettings(**{**values["settings"], "density": density}),
                seed=int(values["seed"]),
                step=int(values["step"]),
                pixel=float(values.get("pixel", 0.0)),
                grad_sum=tensors["grad_sum"],
                views_seen=tensors["views_seen"],
                **groups,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The state of the Gaussians is incomplete or of another version ({error!r}); save it again."
            ) from error
        field._check_values()
        return field

    def _check_values(self) -> None:
        """Refuse values that no run produces: no Gaussians, sizes beyond float32, zero quaternions, negative moments."""
        splats, pixel = self.splats(), float(self.pixel)
        shown = len(self) and all(bool((abs(group) < _MOST_EXTENT).all()) for group in (splats.means, splats.scales))
        turned = bool(splats.quats.norm(dim=1).gt(0).all())
        counted = all(bool((group >= 0).all()) for group in (*self.exp_avg_sq, self.grad_sum, self.views_seen))
        if not (shown and turned and counted and self.step >= 0 and 0 <= pixel < _MOST_EXTENT):
            raise InputError("The saved Gaussians have values that no run leaves; use another copy of the file.")

    def _map(self, function: Callable[[Tensor], Tensor]) -> Gaussians:
        groups = {group: getattr(self, group).map(function) for group in _TENSOR_GROUPS}
        return replace(self, **groups, grad_sum=function(self.grad_sum), views_seen=function(self.views_seen))


class GaussianOptimizer:
    """The optimiser of :class:`Gaussians`, on a working copy (a :class:`~.protocol.FieldOptimizer`)."""

    def __init__(self, field: Gaussians, stretch: StepRange | None = None):
        self._settings, self._seed, self._step, self._pixel = field.settings, field.seed, field.step, field.pixel
        self._fitted_to: Cameras | None = None
        self._changed, density = _CHANGED[field.settings.change], field.settings.density
        self._density = density if field.settings.change == "everything" else replace(density, until=0)
        self._rounds = None if stretch is None else self._density.rounds(field.step, stretch.steps, stretch.after)
        self._renderer = field.renderer()
        self._unread: list[tuple[int, Tensor]] = []  # updates, and [6] for each: NaN where loss or gradient is not finite
        self._white = field.parameters.means.new_ones(3)
        self._valid_count: devices.AsyncScalar | None = None  # of the Gaussians, as long as the rest is padding
        self._adopt(field.clone())

    def _adopt(self, field: Gaussians) -> None:
        """Take over the tensors of a field that is not shared."""
        for name, tensor in zip(Parameters._fields, field.parameters, strict=True):
            tensor.requires_grad_(name in self._changed)
        self._parameters = field.parameters
        self._grad_sum, self._views_seen = field.grad_sum, field.views_seen
        self._exp_avg, self._exp_avg_sq, self._fused = field.exp_avg, field.exp_avg_sq, field.device.type in ("cpu", "cuda")
        counter_device = field.device if self._fused else "cpu"
        self._counters = [torch.full((), float(self._step), device=counter_device) for _ in self._parameters]

    def render(self, cameras: Cameras, background: Tensor | None = None, *, colors_only: bool = False) -> Render:
        """Render the current parameters differentiably on ``background``, white when None."""
        background = self._white if background is None else background
        self._fitted_to, parameters = cameras, self._parameters
        if colors_only:
            parameters = parameters.map(Tensor.detach)._replace(dc=parameters.dc)
        track = not colors_only and self._density.observes(self._step + 1)
        return _render(self._renderer, parameters, self._settings, cameras, background, track_means2d=track)

    def step(self, loss: Tensor, render: Render) -> None:
        """Run backward, the learning rate schedule, Adam, and density control when it is due.

        On an accelerator loss and gradients are checked only by :meth:`finish`, because every check would synchronise.

        Raises:
            NumericalError: loss or gradients are not finite, and the parameters are unchanged; or density control would leave
                no Gaussians.
            InputError: ``loss`` was not computed from ``render``.
        """
        ahead = devices.is_async(self._white.device)
        if not ahead and not math.isfinite(loss.detach()):
            raise NumericalError(f"The loss is {loss.detach().item()} at update {self._step + 1} of the Gaussians.")
        loss.backward()
        gradients = [parameter.grad for parameter in self._parameters]
        if ahead:
            self._unread.append((self._step + 1, _traces([loss.detach(), *gradients])))
        else:
            _check_gradients(gradients, self._step + 1)
        if self._density.observes(self._step + 1):
            self._observe(render)
        self._step += 1
        self._descend()
        if self._density.acts(self._step) if self._rounds is None else self._step in self._rounds:
            self._drop_padding()
            self._control_density()
        if self._valid_count is not None and self._valid_count.is_ready():
            self._drop_padding()

    def finish(self) -> Gaussians:
        """Return the optimised field, independent of this optimiser, which may continue.

        Raises:
            NumericalError: on an accelerator, if loss or gradients of an update since the last call were not finite, or
                density control has left no Gaussians.
        """
        self._check_updates()
        self._drop_padding()
        if self._fitted_to is not None:
            self._pixel, self._fitted_to = self._fitted_to.pixel_size(), None
        return self._field().clone()

    def _check_updates(self) -> None:
        """Check the updates that :meth:`step` did not check: one synchronisation for all."""
        if not self._unread:
            return
        updates, traces = zip(*self._unread, strict=True)
        self._unread = []
        for update, found in zip(updates, torch.stack(traces).tolist(), strict=True):
            names = [name for name, value in zip(_TRACED, found, strict=True) if math.isnan(value)]
            if names:
                raise NumericalError(f"{names[0]} is not finite at update {update} of the Gaussians.")

    @torch.no_grad()
    def _descend(self) -> None:
        """Run Adam; by its function, because ``torch.optim.Adam`` imports torch's compiler, which takes a second."""
        settings = self._settings
        rates = settings.lr_scales, settings.lr_quats, settings.lr_opacity, settings.lr_features
        states = zip(self._parameters, self._exp_avg, self._exp_avg_sq, self._counters, strict=True)
        for rate, (parameter, mean, square, counter) in zip(
            (settings.means_learning_rate(self._step), *rates), states, strict=True
        ):
            if parameter.grad is None:
                continue
            tensors = [parameter], [parameter.grad], [mean], [square], [], [counter]
            adam(*tensors, fused=self._fused, lr=rate, eps=_ADAM_EPS, **_ADAM)
            parameter.grad = None
        self._parameters.dc.clamp_(-_DC_LIMIT, _DC_LIMIT)

    @torch.no_grad()
    def _observe(self, render: Render) -> None:
        lengths, views = screen_gradients(render)
        self._grad_sum += lengths
        self._views_seen += views

    @torch.no_grad()
    def _control_density(self) -> None:
        field, density = self._field(), self._settings.density
        before = field.splats()
        mean_gradients = self._grad_sum / self._views_seen.clamp_min(1)
        growth = plan_growth(mean_gradients, before.opacities, before.scales, density)
        grown = field.subset(growth.source)
        means, log_scales, quats, opacity_logits, _ = grown.parameters
        normal = torch.randn(SPLIT_INTO * len(field), 3, generator=generator(self._seed, self._step, "densify"))
        rounds = (growth.round - FIRST_CHILD).clamp_min(0)
        normal = devices.to_device_async(normal, means)[rounds * len(field) + growth.source]
        child = (growth.round >= FIRST_CHILD)[:, None]
        means += torch.where(child, split_offsets(before.scales[growth.source], quats, normal), 0.0)
        log_scales -= child * math.log(SPLIT_SHRINK)
        new = growth.round > 0
        for moment in (*grown.exp_avg, *grown.exp_avg_sq):
            moment.masked_fill_(new[:, None] if moment.ndim > 1 else new, 0.0)
        places = torch.arange(len(grown), device=means.device)
        opacity_logits.masked_fill_(places >= growth.count, -math.inf)  # padding: never rendered, no gradients
        self._adopt(replace(grown, grad_sum=torch.zeros_like(grown.grad_sum), views_seen=torch.zeros_like(grown.views_seen)))
        self._valid_count = devices.AsyncScalar(growth.count)

    @torch.no_grad()
    def _drop_padding(self) -> None:
        """Drop the padding that density control left; blocks until the number of valid Gaussians has arrived."""
        if self._valid_count is None:
            return
        count, self._valid_count = self._valid_count.value(), None
        if not count:
            density = self._settings.density
            self._check_updates()
            raise NumericalError(
                f"All Gaussians became fainter than {density.min_opacity} or larger than {density.max_scale} by update "
                f"{self._step}; check that the images show an object."
            )
        if count < len(self._grad_sum):
            self._adopt(self._field().subset(slice(count)))

    def _field(self) -> Gaussians:
        """Return the working tensors as a field, without copying and without gradients."""
        exp_avg, exp_avg_sq = self._exp_avg, self._exp_avg_sq
        parameters, grad_sum, views_seen = self._parameters.map(torch.Tensor.detach), self._grad_sum, self._views_seen
        settings, seed, step = self._settings, self._seed, self._step
        return Gaussians(parameters, settings, seed, step, exp_avg, exp_avg_sq, grad_sum, views_seen, self._pixel)


def _render(
    renderer: SplatRenderer,
    parameters: Parameters,
    settings: GaussianSettings,
    cameras: Cameras,
    background: Tensor | None,
    track_means2d: bool,
) -> Render:
    means = parameters.means
    background = means.new_ones(3) if background is None else background.to(means)
    splats = parameters.activate()
    return renderer(splats, cameras.to(means.device), background, antialiased=settings.antialiased, track_means2d=track_means2d)


_TRACED = ("The loss", *(f"The gradient of {name}" for name in Parameters._fields))


def _traces(tensors: list[Tensor | None]) -> Tensor:
    """Return one number per tensor, 0 or, if it has infinite or NaN values, NaN; stays on the device."""
    device = next(tensor.device for tensor in tensors if tensor is not None)
    return torch.stack([torch.zeros((), device=device) if tensor is None else (tensor * 0).sum().float() for tensor in tensors])


def _check_gradients(gradients: list[Tensor | None], update: int) -> None:
    for name, gradient in zip(Parameters._fields, gradients, strict=True):
        # a sum costs a tenth of a test of all numbers, and is finite only if they are
        if gradient is not None and not math.isfinite(gradient.sum()) and not bool(gradient.isfinite().all()):
            raise NumericalError(f"The gradient of {name} is not finite at update {update} of the Gaussians.")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"Gaussians need {name} of shape {list(shape)}, got {list(tensor.shape)}; reshape that tensor.")


def _neighbour_distance(points: Tensor) -> Tensor:
    """Return the root mean square distance [N] to the three nearest neighbours, the start scale of Kerbl et al."""
    from scipy.spatial import KDTree

    array = points.cpu().double().numpy()
    distances = torch.from_numpy(KDTree(array, leafsize=16).query(array, k=_NEIGHBOURS + 1)[0]).to(points)
    return distances[:, 1:].square().mean(1).clamp_min(1e-7).sqrt()
