"""Settings of a NeRF: architecture, sampling, learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from ..errors import InputError
from ..util.settings import check_settings
from ..util.vocabulary import Background
from .encoders import ENCODERS
from .hashgrid import HashGrid

AUTO = "auto"
NERF_SIZES = (AUTO, "small", "full")
"""Sizes of a NeRF: "auto" is "full" (that of the published runs) on an accelerator and "small" on a CPU."""
BACKGROUNDS = get_args(Background)


@dataclass(frozen=True)
class NeRFSettings:
    """Settings of a NeRF; the defaults are the size ``small``, for CPUs; :meth:`of_size` also has threestudio's ``full``.

    They were tuned on runs with 64-pixel images that are not quite consistent: grids much finer than the images fit the
    inconsistency as wrinkles and cracks (the finest level has 48 cells), and so do higher learning rates; the entropy loss
    makes half-transparent regions opaque or empty. Larger images allow a finer grid. The occupancy grid decays faster than
    with the usual 0.95, which would keep the start blob occupied for a thousand updates; these runs have four hundred.

    Attributes:
        levels, features, log2_table, base_resolution, per_level_scale: see :class:`~.hashgrid.HashGrid`.
        hidden: width of the one hidden layer of the density and of the colour network.
        samples: bins of a ray through the centre; samples in empty cells are not evaluated.
        occupancy_resolution: cells along an axis of the occupancy grid.
        occupancy_every: updates between two updates of the occupancy grid.
        occupancy_decay: factor of a cell's maximum density before it is compared with the current one.
        occupancy_alpha: a cell is occupied if a sample in it would have a larger alpha; so are its neighbours.
        radius: of the ball that contains the object; space outside is empty.
        blob_scale, blob_radius: σ = density_scale softplus(network + blob_scale (1 - |p| / blob_radius)), the start shape of
            Magic3D in threestudio ("blob_magic3d").
        density_scale: factor of the softplus, in σ per unit of length.
        lr_grid, lr_networks, lr_background: Adam's learning rates.
        beta1, beta2: Adam's.
        opacity_entropy: weight of a loss against fog: the binary entropy of alpha, summed over pixels, mean over views; 0 is
            off.
        background: ``"white"``, or ``"learned"``: a small network of the viewing direction (Table I: MVDream).
        encoder: one of :data:`~.hashgrid.ENCODERS`.

    Raises:
        InputError: a value is out of range.
    """

    levels: int = 6
    features: int = 2
    log2_table: int = 15
    base_resolution: int = 8
    per_level_scale: float = 1.43
    hidden: int = 32
    samples: int = 48
    occupancy_resolution: int = 32
    occupancy_every: int = 16
    occupancy_decay: float = 0.7
    occupancy_alpha: float = 0.01
    radius: float = 1.0
    blob_scale: float = 10.0
    blob_radius: float = 0.5
    density_scale: float = 1.0
    lr_grid: float = 0.005
    lr_networks: float = 0.005
    lr_background: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    opacity_entropy: float = 0.3
    background: str = "white"
    encoder: str = "auto"

    def __post_init__(self):
        check_settings(self)
        _ = self.grid  # its levels are checked
        for name, most in (("hidden", 1024), ("samples", 8192), ("occupancy_every", 10**6)):
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"NeRFSettings.{name} must lie in 1..{most}, got {getattr(self, name)}.")
        if not 4 <= self.occupancy_resolution <= 512:
            raise InputError(
                f"The occupancy grid needs 4 to 512 cells per axis, got {self.occupancy_resolution}; 32 and 128 are usual."
            )
        for name in ("radius", "blob_radius", "density_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"NeRFSettings.{name} must be positive, got {getattr(self, name)}.")
        for name in ("blob_scale", "lr_grid", "lr_networks", "lr_background", "opacity_entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"NeRFSettings.{name} must not be negative, got {getattr(self, name)}.")
        for name in ("occupancy_decay", "occupancy_alpha", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"NeRFSettings.{name} must lie in [0,1), got {getattr(self, name)}.")
        for name, known in (("background", BACKGROUNDS), ("encoder", ENCODERS)):
            if getattr(self, name) not in known:
                raise InputError(f"NeRFSettings.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    @classmethod
    def of_size(cls, size: str, **overrides: Any) -> NeRFSettings:
        """Return the settings of a size, ``"small"`` or ``"full"``, with some of them changed.

        >>> NeRFSettings.of_size("full", samples=128).levels
        16

        Raises:
            InputError: size or setting is unknown, or a value is out of range.
        """
        if size not in SIZES:
            raise InputError(f"The size of a NeRF must be one of {', '.join(SIZES)}, got {size!r}; choose one of these.")
        unknown = sorted(set(overrides) - set(cls.__dataclass_fields__))
        if unknown:
            raise InputError(f"A NeRF has no setting {', '.join(unknown)}; it has {', '.join(cls.__dataclass_fields__)}.")
        return cls(**SIZES[size] | overrides)

    @property
    def grid(self) -> HashGrid:
        """The hash grid's levels."""
        return HashGrid(self.levels, self.features, self.log2_table, self.base_resolution, self.per_level_scale)

    @property
    def size(self) -> str:
        """``"small"``, ``"full"``, or ``"custom"`` for any other levels or width."""
        for size, values in SIZES.items():
            other = replace(self, **{name: values.get(name, getattr(NeRFSettings, name)) for name in _ARCHITECTURE})
            if other == self:
                return size
        return "custom"

    @property
    def step_length(self) -> float:
        """Length of a bin, δ."""
        return 2 * self.radius / self.samples

    @property
    def occupied_density(self) -> float:
        """The σ at which a sample has an alpha of ``occupancy_alpha``."""
        return -math.log1p(-self.occupancy_alpha) / self.step_length


_ARCHITECTURE = ("levels", "features", "log2_table", "base_resolution", "per_level_scale", "hidden")

SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    # threestudio's implicit-volume and nerf-volume-renderer; its 512 samples divide the diagonal of the cube around the ball,
    # ours the diameter, so that the same density of samples is 512 / sqrt(3)
    "full": {
        "levels": 16,
        "log2_table": 19,
        "base_resolution": 16,
        "per_level_scale": 1.447269237440378,
        "hidden": 64,
        "samples": 296,
        "occupancy_decay": 0.95,
        "lr_grid": 0.01,
        "lr_networks": 0.01,
        "opacity_entropy": 0.0,
    },
}
"""Size -> values that differ from the defaults."""


def nerf_settings(size: str = AUTO, background: Background = "white", device: torch.device | str = "cpu") -> NeRFSettings:
    """Return the settings of a size; ``"auto"`` depends on the device.

    >>> nerf_settings(device="cpu").size, nerf_settings(device="cuda").size
    ('small', 'full')

    Raises:
        InputError: size or background is unknown.
    """
    check_nerf_size(size)
    if size == AUTO:
        size = "small" if torch.device(device).type == "cpu" else "full"
    return NeRFSettings.of_size(size, background=background)


def check_nerf_size(size: str) -> None:
    """Check that a size is known, before any work is done.

    Raises:
        InputError: it is none of ``NERF_SIZES``.
    """
    if size not in NERF_SIZES:
        raise InputError(f"The size of a NeRF must be one of {', '.join(NERF_SIZES)}, got {size!r}; 'small' suits a CPU.")
