"""Volume rendering of a density field: camera rays, samples in occupied cells, and their composition.

The quadrature is NeRF's (Mildenhall et al. 2020, Eq. 3): with steps of constant length δ, α = 1 - exp(-σ δ), T = Π (1 - α) of
the samples before, w = T α; rgb = Σ w c + T_end background, alpha = 1 - T_end, depth = Σ w z. A ray ends at the first sample
with T <= T_MIN, in the forward and the backward pass: that sample and those behind it have weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..util.probe import works
from ..util.seeds import generator
from ..util.threads import run_all, split_range
from .protocol import Render

T_MIN = 1e-4
_MARKS_DIFFER = 0.005  # tolerated fraction of different bins: samples within rounding error of a cell's border

Density = Callable[[Tensor], tuple[Tensor, Tensor]]
"""World points [M,3] -> sigmas [M] per unit of length, and features [M,...] for :data:`Color`."""
Color = Callable[[Tensor], Tensor]
"""Features [K,...] of :data:`Density` -> colours [K,3] in [0,1]."""


@dataclass(frozen=True)
class Rays:
    """R rays, clipped to a ball around the origin.

    Attributes:
        origins, directions: [R,3] in the world; directions have length 1.
        near, far: [R] distances at which the ball is entered and left; near >= far for a ray that misses it.
        z_scale: [R] depth along the camera's axis per distance along the ray.
    """

    origins: Tensor
    directions: Tensor
    near: Tensor
    far: Tensor
    z_scale: Tensor

    def __len__(self) -> int:
        return len(self.near)

    def __getitem__(self, index: slice | Tensor) -> Rays:
        return Rays(*(getattr(self, name)[index] for name in ("origins", "directions", "near", "far", "z_scale")))


@dataclass(frozen=True)
class Samples:
    """M samples of R rays, ray by ray and front to back.

    Attributes:
        points: [M,3] in the world.
        distances: [M] along the ray.
        ray: [M] int64, index of the ray.
        counts: [R] int64, number of samples of each ray.
    """

    points: Tensor
    distances: Tensor
    ray: Tensor
    counts: Tensor


def camera_rays(cameras: Cameras, radius: float) -> Rays:
    """Compute the rays through all pixel centres, V * H * W in the order of a render's pixels, clipped to a ball.

    >>> rays = camera_rays(orbit_cameras(0.0, 0.0, radius=2.0, width=3), radius=1.0)
    >>> len(rays), rays.near[4], rays.far[4]  # the middle pixel
    (9, tensor(1.), tensor(3.))
    """
    c2w, height, width = cameras.c2w, cameras.height, cameras.width
    local = (cameras.rays() * c2w.new_tensor([1.0, -1.0, -1.0])).reshape(1, -1, 3)
    length = local.norm(dim=-1, keepdim=True)
    directions = ((local / length) @ c2w[:, :3, :3].transpose(1, 2)).reshape(-1, 3)
    origins = c2w[:, None, :3, 3].expand(-1, height * width, -1).reshape(-1, 3)
    z_scale = (1 / length).expand(len(cameras), -1, 1).reshape(-1)
    middle = -(origins * directions).sum(-1)
    half = radius**2 - (origins + middle[:, None] * directions).square().sum(-1)
    root = half.clamp_min(0).sqrt()
    return Rays(origins, directions, (middle - root).clamp_min(0), torch.where(half > 0, middle + root, 0), z_scale)


def march(rays: Rays, occupied: Tensor, radius: float, bins: int, offsets: Tensor | None = None) -> Samples:
    """Sample rays once per bin, dropping samples outside the ball or in empty cells.

    Args:
        occupied: [G,G,G] bool, cells along x, y and z of the cube [-radius, radius]³.
        bins: of a ray through the centre; their length is 2 radius / bins.
        offsets: [R] in [0,1): position of a ray's samples in their bins, the same for all bins of a ray; the middle when None.
    """
    step = 2 * radius / bins
    offsets = torch.full_like(rays.near, 0.5) if offsets is None else offsets
    mark = _mark_numba if rays.near.device.type == "cpu" and _numba_works() else _mark_torch
    kept = mark(rays, occupied, radius, step, bins, offsets)
    ray, place = kept.nonzero(as_tuple=True)
    distances = rays.near[ray] + (place + offsets[ray]) * step
    points = rays.origins[ray] + distances[:, None] * rays.directions[ray]
    return Samples(points, distances, ray, kept.sum(1))


def _mark_torch(rays: Rays, occupied: Tensor, radius: float, step: float, bins: int, offsets: Tensor) -> Tensor:
    """Mark the bins whose sample is kept, [R,bins] bool."""
    distances = rays.near[:, None] + (torch.arange(bins, device=offsets.device) + offsets[:, None]) * step
    hit, bin_ = (distances < rays.far[:, None]).nonzero(as_tuple=True)
    points = rays.origins[hit] + distances[hit, bin_][:, None] * rays.directions[hit]
    x, y, z = cells_of(points, radius, len(occupied)).unbind(-1)
    kept = torch.zeros(len(rays), bins, dtype=torch.bool, device=offsets.device)
    kept[hit, bin_] = occupied[x, y, z]
    return kept


def _mark_numba(rays: Rays, occupied: Tensor, radius: float, step: float, bins: int, offsets: Tensor) -> Tensor:
    """Like ``_mark_torch``, in one pass over memory on the CPU."""
    from ._numba_volume import mark_samples

    kept = np.empty((len(rays), bins), np.bool_)
    tensors = (rays.origins, rays.directions, rays.near, rays.far, offsets.contiguous(), occupied.contiguous())
    arrays = [tensor.detach().contiguous().numpy() for tensor in tensors]
    number = arrays[2].dtype.type
    mark_all = (partial(mark_samples, a, b, *arrays, number(radius), number(step), kept) for a, b in split_range(len(rays)))
    run_all(list(mark_all))
    return torch.from_numpy(kept)


@cache
def _numba_works() -> bool:
    """Return True if the kernel marks the same samples as torch; probed once per process."""

    def check() -> None:
        with torch.inference_mode(False):
            rays = camera_rays(orbit_cameras(20.0, [10.0, 200.0], 2.0, width=12), 1.0)
            rng = generator(0, -1, "march probe")
            occupied, offsets = torch.rand(8, 8, 8, generator=rng) < 0.5, torch.rand(len(rays), generator=rng)
            got, expected = (mark(rays, occupied, 1.0, 1 / 16, 32, offsets) for mark in (_mark_numba, _mark_torch))
        wrong = float((got != expected).float().mean())
        if wrong > _MARKS_DIFFER:
            raise ArithmeticError(
                f"it marks {100 * wrong:.1f} % of the bins unlike torch, expected {100 * _MARKS_DIFFER:.1f} %"
            )

    return works("The ray marching of numba", check)


def cells_of(points: Tensor, radius: float, resolution: int) -> Tensor:
    """Return the int64 cells [...,3] of points in a grid over [-radius, radius]³, clamped to its border.

    >>> cells_of(torch.tensor([0.0, -1.0, 2.0]), radius=1.0, resolution=8)
    tensor([4, 0, 7])
    """
    return ((points / (2 * radius) + 0.5) * resolution).long().clamp(0, resolution - 1)


def ray_weights(sigmas: Tensor, samples: Samples, step: float) -> tuple[Tensor, Tensor]:
    """Compute the weight of each sample in its ray, and the transmittance behind the last one.

    Args:
        sigmas: [M] densities, >= 0.
        step: δ, length of a bin.

    Returns:
        Weights [M]; T_end [R].
    """
    counts = samples.counts
    longest = int(counts.max()) if len(counts) else 0
    first = counts.cumsum(0) - counts
    place = torch.arange(len(sigmas), device=sigmas.device) - first[samples.ray]
    flat = samples.ray * longest + place
    thickness = sigmas.new_zeros(len(counts) * longest).index_copy(0, flat, sigmas * step).view(len(counts), longest)
    before = torch.exp(-(thickness.cumsum(1) - thickness))
    live = before.detach() > T_MIN
    thickness = torch.where(live, thickness, 0)
    weights = torch.where(live, before, 0) * -torch.expm1(-thickness)
    return weights.view(-1).index_select(0, flat), torch.exp(-thickness.sum(1))


def render_rays(
    rays: Rays, samples: Samples, step: float, density: Density, color: Color, background: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Render rgb [R,3], alpha [R] and depth [R] of rays on ``background`` [R,3]; ``color`` runs on visible samples only."""
    sigmas, features = density(samples.points)
    weights, rest = ray_weights(sigmas, samples, step)
    seen = (weights.detach() > 0).nonzero()[:, 0]
    ray, weights = samples.ray[seen], weights[seen]
    colors = weights[:, None] * color(features[seen])
    rgb = (rest[:, None] * background).index_add(0, ray, colors)
    depth = torch.zeros_like(rest).index_add(0, ray, weights * samples.distances[seen] * rays.z_scale[ray])
    return rgb, 1 - rest, depth


def as_render(cameras: Cameras, rgb: Tensor, alpha: Tensor, depth: Tensor) -> Render:
    """Reshape rays in pixel order to a render of V views."""
    shape = (len(cameras), cameras.height, cameras.width)
    return Render(rgb.view(*shape, 3), alpha.view(*shape, 1), depth.view(*shape, 1))
