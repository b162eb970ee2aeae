"""A neural radiance field: hash grid, a density and a colour network, occupancy grid, Adam.

The architecture is threestudio's "implicit-volume": features of a multi-resolution hash grid go into two perceptrons of one
hidden layer without biases; density is a softplus that starts as a blob, colour a sigmoid without view dependence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError, NumericalError
from ..render.inputs import background_per_view
from ..render.protocol import Render
from ..render.volume import Rays, as_render, camera_rays, cells_of, march, render_rays
from ..util.seeds import generator
from .encoders import get_encoder
from .hashgrid import Encoder
from .nerf_settings import NeRFSettings
from .perceptron import perceptron
from .protocol import StepRange

_ADAM_EPS = 1e-15
_TABLE_INIT = 1e-4  # Müller et al., section 4: small values, which do not disturb the networks at the start
_HARMONICS = 9  # of the viewing direction, degrees 0 to 2
_BACKGROUND_HIDDEN = 16
_CHUNK = 1 << 18  # points per batch without gradients
_GROUPS = ("parameters", "exp_avg", "exp_avg_sq")
_FILLED_IN: Any = None  # default of tensors that ``__post_init__`` creates

Weights = dict[str, Tensor]
"""One tensor per parameter: values, or their Adam moments."""


def parameter_shapes(settings: NeRFSettings) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters, in order: the hash table, then hidden and output layer of each network.

    >>> parameter_shapes(NeRFSettings())["density_hidden"]
    (32, 12)
    """
    grid, hidden = settings.grid, settings.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "table": (grid.entries, grid.features),
        "density_hidden": (hidden, grid.width),
        "density_out": (1, hidden),
        "color_hidden": (hidden, grid.width),
        "color_out": (3, hidden),
    }
    if settings.background == "learned":
        shapes |= {"background_hidden": (_BACKGROUND_HIDDEN, _HARMONICS), "background_out": (3, _BACKGROUND_HIDDEN)}
    return shapes


@dataclass(frozen=True, eq=False, repr=False)
class NeRF:
    """A :class:`~.protocol.Field` of density and colour, including the optimiser's state.

    >>> NeRF.start(NeRFSettings(encoder="torch", occupancy_resolution=4), seed=1)
    NeRF(small on cpu after 0 updates)

    Attributes:
        parameters: the optimised tensors, see :func:`parameter_shapes`.
        settings: sizes, learning rates, samples, background, encoder.
        seed: of sample offsets and occupancy updates.
        step: updates so far.
        exp_avg, exp_avg_sq: Adam's moments; zero when None is given.
        density_grid: [G,G,G] decaying maximum of each cell's density, cells along x, y and z of the cube around the ball;
            evaluated at the cells' centres when None is given.

    Raises:
        InputError: names or shapes do not match the settings.
    """

    kind: ClassVar[str] = "nerf"

    parameters: Weights
    settings: NeRFSettings = NeRFSettings()
    seed: int = 0
    step: int = 0
    exp_avg: Weights = _FILLED_IN
    exp_avg_sq: Weights = _FILLED_IN
    density_grid: Tensor = _FILLED_IN

    def __post_init__(self):
        shapes = parameter_shapes(self.settings)
        for group in _GROUPS:
            if getattr(self, group) is None:
                object.__setattr__(self, group, {name: torch.zeros_like(p) for name, p in self.parameters.items()})
            _check_shapes(group, getattr(self, group), shapes)
        resolution = self.settings.occupancy_resolution
        if self.density_grid is None:
            with torch.no_grad():
                centres = _cell_points(self.settings, torch.full((3, resolution**3), 0.5)).to(self.device)
                object.__setattr__(self, "density_grid", self._network().sigmas(centres).view([resolution] * 3))
        _check_shapes("state", {"density_grid": self.density_grid}, {"density_grid": (resolution,) * 3})

    @classmethod
    def start(cls, settings: NeRFSettings | None = None, seed: int = 0, device: torch.device | str = "cpu") -> NeRF:
        """Create the start of a run: a faint grey blob."""
        settings = settings or NeRFSettings()
        rng = generator(seed, -1, "nerf")
        parameters = {}
        for name, shape in parameter_shapes(settings).items():
            bound = _TABLE_INIT if name == "table" else 1 / math.sqrt(shape[1])
            parameters[name] = (torch.rand(shape, generator=rng) * 2 - 1) * bound
        return cls({name: p.to(device) for name, p in parameters.items()}, settings, seed)

    def __repr__(self) -> str:
        return f"NeRF({self.settings.size} on {self.device} after {self.step} updates)"

    def summary(self) -> str:
        """Return size, number of parameters and occupied fraction in words."""
        count = sum(p.numel() for p in self.parameters.values())
        share = float(self.occupied().float().mean())
        return f"{self.settings.size} NeRF, {count / 1e6:.1f} M parameters, {100 * share:.0f} % occupied"

    @property
    def device(self) -> torch.device:
        return self.parameters["table"].device

    def occupied(self) -> Tensor:
        """Return the cells [G,G,G] bool that may be non-empty; the others are skipped in rendering."""
        return occupied_cells(self.density_grid, self.settings)

    @torch.no_grad()
    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Render the field deterministically, with samples in the middle of their bins.

        Args:
            background: [3] or [V,3]; None for the field's own: learned if it has a background network, else white.
        """
        network, cameras, occupied = self._network(), cameras.to(self.device), self.occupied()
        rays = camera_rays(cameras, self.settings.radius)
        behind = network.behind(rays, cameras, background)
        size = max(_CHUNK // self.settings.samples, 1)
        spans = [slice(a, a + size) for a in range(0, len(rays), size)]
        parts = [network.render(rays[span], behind[span], occupied, None) for span in spans]
        return as_render(cameras, *(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """Return σ [N] at points [N,3] as in rendering: 0 outside the ball and in empty cells."""
        points = points.to(self.device)
        network, occupied, radius = self._network(), self.occupied(), self.settings.radius
        x, y, z = cells_of(points, radius, len(occupied)).unbind(-1)
        inside = (occupied[x, y, z] & (points.norm(dim=-1) < radius)).nonzero()[:, 0]
        return points.new_zeros(len(points)).index_copy(0, inside, network.sigmas(points[inside]))

    @torch.no_grad()
    def colors(self, points: Tensor) -> Tensor:
        """Return RGB [N,3] in [0,1] at points [N,3], whatever the density."""
        network = self._network()
        return torch.cat([network.color(network.encode(chunk)) for chunk in points.to(self.device).split(_CHUNK)])

    def clone(self) -> NeRF:
        """Return a deep copy."""
        return self._map(lambda tensor: tensor.detach().clone())

    def to(self, device: torch.device | str) -> NeRF:
        """Move the field to another device."""
        return self._map(lambda tensor: tensor.to(device))

    def optimizer(self, stretch: StepRange | None = None) -> NeRFOptimizer:
        """Create an optimiser on a private copy; ``stretch`` has no effect."""
        return NeRFOptimizer(self)

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors by name, and all other values as JSON: the content of a saved state (``io/state.py``)."""
        tensors = {f"{group}.{name}": t for group in _GROUPS for name, t in getattr(self, group).items()}
        tensors["density_grid"] = self.density_grid
        return tensors, {"settings": asdict(self.settings), "seed": self.seed, "step": self.step}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> NeRF:
        """Restore a field from :meth:`to_state`.

        Raises:
            InputError: a value is missing or invalid.
        """
        try:
            settings = NeRFSettings(**values["settings"])
            groups = {g: {name: tensors[f"{g}.{name}"] for name in parameter_shapes(settings)} for g in _GROUPS}
            return cls(
                settings=settings,
                seed=int(values["seed"]),
                step=int(values["step"]),
                density_grid=tensors["density_grid"],
                **groups,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The state of the NeRF is incomplete or of another version ({error!r}); save it again."
            ) from error

    def _network(self) -> _Network:
        return _Network(self.parameters, self.settings)

    def _map(self, function: Callable[[Tensor], Tensor]) -> NeRF:
        groups = {group: {name: function(t) for name, t in getattr(self, group).items()} for group in _GROUPS}
        return replace(self, **groups, density_grid=function(self.density_grid))


class NeRFOptimizer:
    """The optimiser of :class:`NeRF`, on a working copy (a :class:`~.protocol.FieldOptimizer`)."""

    def __init__(self, field: NeRF):
        self._settings, self._seed, self._step = field.settings, field.seed, field.step
        field = field.clone()
        self._parameters = {name: p.requires_grad_() for name, p in field.parameters.items()}
        self._density_grid, self._occupied = field.density_grid, field.occupied()
        self._network = _Network(self._parameters, self._settings)
        settings, fused = self._settings, field.device.type in ("cpu", "cuda")
        rates = {"table": settings.lr_grid, "background": settings.lr_background}
        groups = [
            {"params": [p], "lr": rates.get(name.partition("_")[0], settings.lr_networks)}
            for name, p in self._parameters.items()
        ]
        self._adam = torch.optim.Adam(groups, betas=(settings.beta1, settings.beta2), eps=_ADAM_EPS, fused=fused)
        for name, parameter in self._parameters.items():
            step = torch.tensor(float(self._step), device=field.device if fused else "cpu")
            self._adam.state[parameter] = {
                "step": step,
                "exp_avg": field.exp_avg[name],
                "exp_avg_sq": field.exp_avg_sq[name],
            }

    def render(self, cameras: Cameras, background: Tensor | None = None, *, colors_only: bool = False) -> Render:
        """Render the current parameters differentiably, with sample offsets of this update.

        Raises:
            InputError: ``colors_only`` is set: colours and density share the hash grid.
        """
        if colors_only:
            raise InputError("A NeRF cannot be painted without changing its shape; set ref_paint_weight to 0.")
        cameras = cameras.to(self._density_grid.device)
        rays = camera_rays(cameras, self._settings.radius)
        offsets = torch.rand(len(rays), generator=generator(self._seed, self._step, "nerf")).to(rays.near)
        behind = self._network.behind(rays, cameras, background)
        return as_render(cameras, *self._network.render(rays, behind, self._occupied, offsets))

    def step(self, loss: Tensor, render: Render) -> None:
        """Run backward, Adam, and an update of the occupancy grid when it is due.

        Raises:
            NumericalError: loss or gradients are not finite; the parameters are unchanged.
        """
        if self._settings.opacity_entropy > 0:
            loss = loss + self._settings.opacity_entropy * _entropy(render.alpha).sum() / len(render.alpha)
        if not math.isfinite(loss.detach()):
            raise NumericalError(f"The loss is {loss.detach().item()} at update {self._step + 1} of the NeRF.")
        loss.backward()
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise NumericalError(f"The gradient of {name} is not finite at update {self._step + 1} of the NeRF.")
        self._step += 1
        self._adam.step()
        self._adam.zero_grad()
        if self._step % self._settings.occupancy_every == 0:
            self._update_occupancy()

    def finish(self) -> NeRF:
        """Return the optimised field, independent of this optimiser, which may continue."""
        states = {name: self._adam.state[p] for name, p in self._parameters.items()}
        exp_avg, exp_avg_sq = ({name: s[moment] for name, s in states.items()} for moment in ("exp_avg", "exp_avg_sq"))
        parameters = {name: p.detach() for name, p in self._parameters.items()}
        settings, seed, step = self._settings, self._seed, self._step
        return NeRF(parameters, settings, seed, step, exp_avg, exp_avg_sq, self._density_grid).clone()

    @torch.no_grad()
    def _update_occupancy(self) -> None:
        """Update the decaying maximum of each cell's density by a random point in it (Müller et al., appendix E.2)."""
        settings, grid = self._settings, self._density_grid
        within = torch.rand(3, grid.numel(), generator=generator(self._seed, self._step, "occupancy"))
        current = self._network.sigmas(_cell_points(settings, within).to(grid.device)).view_as(grid)
        self._density_grid = torch.maximum(grid * settings.occupancy_decay, current)
        self._occupied = occupied_cells(self._density_grid, settings)


def occupied_cells(density_grid: Tensor, settings: NeRFSettings) -> Tensor:
    """Return the occupied cells [G,G,G] bool: those whose density is not negligible, and their neighbours, for growth.

    The limit never exceeds the mean density, so that a field that faded away is still rendered and can recover.
    """
    limit = density_grid.mean().clamp(max=settings.occupied_density)
    dense = (density_grid >= limit).to(density_grid)
    return F.max_pool3d(dense[None, None], 3, 1, 1)[0, 0] > 0


@dataclass(frozen=True)
class _Network:
    """The field as functions of its parameters; differentiable."""

    parameters: Weights
    settings: NeRFSettings
    _encoder: Encoder = field(init=False)

    def __post_init__(self):
        encoder = get_encoder(self.settings.encoder, self.settings.grid, self.parameters["table"].device)
        object.__setattr__(self, "_encoder", encoder)

    def encode(self, points: Tensor) -> Tensor:
        """Encode world points [M,3] to features [M,D]."""
        unit = points / (2 * self.settings.radius) + 0.5
        return self._encoder(unit.clamp(0, 1), self.parameters["table"], self.settings.grid)

    def sigma(self, points: Tensor, features: Tensor) -> Tensor:
        settings = self.settings
        blob = settings.blob_scale * (1 - points.norm(dim=-1) / settings.blob_radius)
        return settings.density_scale * F.softplus(self._perceptron("density", features)[:, 0] + blob)

    def sigmas(self, points: Tensor) -> Tensor:
        """Compute densities [M] at world points, in chunks."""
        return torch.cat([self.sigma(chunk, self.encode(chunk)) for chunk in points.split(_CHUNK)])

    def color(self, features: Tensor) -> Tensor:
        return self._perceptron("color", features).sigmoid()

    def behind(self, rays: Rays, cameras: Cameras, background: Tensor | None) -> Tensor:
        """Return the background colours [R,3] of rays."""
        if background is None and self.settings.background == "learned":
            return self._perceptron("background", _harmonics(rays.directions)).sigmoid()
        colors = rays.near.new_ones(3) if background is None else background.to(rays.near)
        return background_per_view(colors, cameras).repeat_interleave(cameras.height * cameras.width, 0)

    def render(self, rays: Rays, behind: Tensor, occupied: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Render rgb [R,3], alpha [R] and depth [R] of rays."""

        def density(points: Tensor) -> tuple[Tensor, Tensor]:
            features = self.encode(points)
            return self.sigma(points, features), features

        settings = self.settings
        samples = march(rays, occupied, settings.radius, settings.samples, offsets)
        return render_rays(rays, samples, settings.step_length, density, self.color, behind)

    def _perceptron(self, name: str, x: Tensor) -> Tensor:
        return perceptron(x, self.parameters[f"{name}_hidden"], self.parameters[f"{name}_out"])


def _cell_points(settings: NeRFSettings, within: Tensor) -> Tensor:
    """Return one world point per cell, [G³,3]; ``within`` [3,G³] in [0,1) is its position in the cell."""
    resolution = settings.occupancy_resolution
    axis = torch.arange(resolution)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    return ((cells + within.T) / resolution * 2 - 1) * settings.radius


def _harmonics(directions: Tensor) -> Tensor:
    """Compute real spherical harmonics [R,9] of degrees 0 to 2 of unit directions, without their constants."""
    x, y, z = directions.unbind(-1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, z * x, x * x - y * y, 3 * z * z - 1], -1)


def _entropy(alpha: Tensor) -> Tensor:
    """Compute the binary entropy in nats; alpha is clamped where the derivative would be infinite."""
    alpha = alpha.clamp(1e-3, 1 - 1e-3)
    return -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log())


def _check_shapes(group: str, tensors: Weights, shapes: dict[str, tuple[int, ...]]) -> None:
    if list(tensors) != list(shapes):
        raise InputError(f"A NeRF of these settings has {group} {', '.join(shapes)}, got {', '.join(tensors)}.")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(
                f"A NeRF of these settings needs {group}.{name} of shape {list(shape)}, got {list(tensors[name].shape)}; "
                "use the settings that it was made with."
            )
