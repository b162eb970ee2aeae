"""Splat renderer in plain torch: any device, any float dtype, derivatives by autograd. Slow; the reference of the others.

Tiles of all views are blended in batches of similar list length; each batch processes its depth-sorted lists in chunks and
stops when all its pixels are finished. Batches are checkpointed; otherwise the graph of a step takes gigabytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..cameras import Cameras
from .inputs import background_per_view, check_splats
from .projection import ALPHA_MAX, ALPHA_MIN, T_MIN, Projection, project
from .protocol import Render, Splats

TILE = 16
CHUNK = 64
TILES_PER_BATCH = {"cpu": 16}  # keeps a chunk in the CPU's cache; accelerators need few large launches
TILES_PER_BATCH_ELSEWHERE = 256


class TorchSplatRenderer:
    """The :class:`~.protocol.SplatRenderer` that runs wherever torch does."""

    name = "torch"

    def __call__(
        self,
        splats: Splats,
        cameras: Cameras,
        background: Tensor,
        *,
        antialiased: bool = False,
        track_means2d: bool = False,
    ) -> Render:
        """Render all views; see :class:`~.protocol.SplatRenderer`.

        Half-precision splats are rendered in float32, and the images are cast back.

        Raises:
            InputError: a shape is wrong.
        """
        check_splats(splats)
        source = splats.means
        compute = source.new_empty(0, dtype=torch.promote_types(source.dtype, torch.float32))
        background = background_per_view(background, cameras).to(compute)
        given = Splats(*(t.to(compute) for t in (splats.means, splats.quats, splats.scales, splats.opacities, splats.colors)))
        probe = source.new_zeros(len(cameras), len(splats), 2).requires_grad_() if track_means2d else None

        pairs, radii = _visible_pairs(given, cameras, antialiased)
        projection = pairs.projection
        means2d = projection.means2d
        if probe is not None:
            means2d = means2d + probe.to(compute)[pairs.view, pairs.splat]
        colors = given.colors.index_select(0, pairs.splat)
        columns = [means2d, projection.conics, projection.opacities[:, None], colors, projection.depths[:, None]]
        rows = torch.cat(columns, -1)
        blended = _blend_tiles(rows, *_tile_lists(pairs, cameras), cameras)

        transmittance = blended[..., 4:]
        rgb = blended[..., :3] + transmittance * background[:, None, None]
        images = (t.to(source.dtype) for t in (rgb, 1 - transmittance, blended[..., 3:4]))
        return Render(*images, radii=radii, means2d=probe)


@dataclass(frozen=True)
class _Pairs:
    """The M visible pairs of view and Gaussian: only they are in the graph, so culled NaNs cannot reach a gradient."""

    view: Tensor  # [M]
    splat: Tensor  # [M]
    means2d: Tensor  # [M,2]; with extents and depths, constants that determine tiles and order
    extents: Tensor
    depths: Tensor
    projection: Projection  # [M], differentiable


def _visible_pairs(splats: Splats, cameras: Cameras, antialiased: bool) -> tuple[_Pairs, Tensor]:
    """Project all Gaussians; return the visible pairs and all radii [V,N,2]."""
    means, quats, scales, opacities = splats.means, splats.quats, splats.scales, splats.opacities
    viewmats, intrinsics = cameras.viewmats.to(means), cameras.Ks.to(means)
    size = cameras.width, cameras.height, antialiased
    with torch.no_grad():
        every = project(means, quats, scales, opacities, viewmats[:, None], intrinsics[:, None], *size)
        visible = every.visible & splats.colors.isfinite().all(-1)
        view, splat = visible.nonzero(as_tuple=True)
        constants = (every.means2d[visible], every.extents[visible], every.depths[visible])
        radii = every.radii * visible[..., None]
    means, quats, scales, opacities = (t.index_select(0, splat) for t in (means, quats, scales, opacities))
    projection = project(means, quats, scales, opacities, viewmats[view], intrinsics[view], *size)
    return _Pairs(view, splat, *constants, projection), radii


def _tile_lists(pairs: _Pairs, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """List the pairs of every tile of every view, front to back: all lists in one [L] tensor, and their lengths [V * tiles]."""
    columns, rows = math.ceil(cameras.width / TILE), math.ceil(cameras.height / TILE)
    limit = pairs.means2d.new_tensor([columns, rows])
    first = ((pairs.means2d - pairs.extents) / TILE).floor().clamp_min(0).minimum(limit).long()
    last = (((pairs.means2d + pairs.extents) / TILE).floor() + 1).clamp_min(0).minimum(limit).long()
    width, height = (last - first).clamp_min(0).unbind(-1)
    hits = width * height

    pair = torch.repeat_interleave(torch.arange(len(hits), device=hits.device), hits)
    nth = torch.arange(len(pair), device=hits.device) - torch.repeat_interleave(hits.cumsum(0) - hits, hits)
    row = first[pair, 1] + torch.div(nth, width[pair], rounding_mode="floor")
    tile = (pairs.view[pair] * rows + row) * columns + first[pair, 0] + nth % width[pair]

    rank = torch.empty_like(hits)
    rank[torch.argsort(pairs.depths, stable=True)] = torch.arange(len(hits), device=hits.device)
    order = torch.argsort(tile * len(hits) + rank[pair])
    return pair[order], torch.bincount(tile, minlength=len(cameras) * rows * columns)


def _blend_tiles(rows: Tensor, lists: Tensor, counts: Tensor, cameras: Cameras) -> Tensor:
    """Blend all tiles to [V,H,W,5]: accumulated colour and depth, and the final transmittance."""
    views, height, width = len(cameras), cameras.height, cameras.width
    tiles_x, tiles_y = math.ceil(width / TILE), math.ceil(height / TILE)
    starts = counts.cumsum(0) - counts
    image = rows.new_tensor([0.0, 0.0, 0.0, 0.0, 1.0]).expand(views * tiles_y * tiles_x, TILE * TILE, 5)
    image = image + rows[:0].sum()  # an empty sum, so that an empty image is differentiable too
    busy = torch.argsort(counts, descending=True, stable=True)[: int((counts > 0).sum())]

    blended = []
    batches = busy.split(TILES_PER_BATCH.get(rows.device.type, TILES_PER_BATCH_ELSEWHERE)) if len(busy) else ()
    # one batch alone has no memory to save, and the first checkpoint of a process imports torch's compiler for a second
    blend = _blend if len(batches) == 1 else partial(checkpoint, _blend, use_reentrant=False, preserve_rng_state=False)
    for tiles in batches:
        place = torch.arange(int(counts[tiles[0]]), device=rows.device)
        valid = place < counts[tiles][:, None]
        members = lists[torch.where(valid, starts[tiles][:, None] + place, 0)]
        corner = torch.stack([tiles % tiles_x, torch.div(tiles, tiles_x, rounding_mode="floor") % tiles_y], -1) * TILE
        blended.append(blend(rows, members, valid, corner))
    if blended:
        image = image.index_copy(0, busy, torch.cat(blended))
    image = image.unflatten(1, (TILE, TILE)).unflatten(0, (views, tiles_y, tiles_x))
    return image.permute(0, 1, 3, 2, 4, 5).reshape(views, tiles_y * TILE, tiles_x * TILE, 5)[:, :height, :width]


def _blend(rows: Tensor, members: Tensor, valid: Tensor, corner: Tensor) -> Tensor:
    """Composite front to back (Kerbl et al. 2023, Eq. 2 and 3) B tiles with P pixels and lists of length K.

    alpha = min(0.999, o exp(-sigma)), skipped below 1/255; a pixel stops before its transmittance falls to 1e-4.

    Args:
        rows: [M,10] mean2d, conic, opacity, colour, depth of the visible pairs.
        members, valid: [B,K] indices into ``rows``, front to back, and False for padding.
        corner: [B,2] pixel of each tile's upper left corner.

    Returns:
        [B,P,5] accumulated colour and depth, and the final transmittance.
    """
    along = torch.arange(TILE, device=rows.device, dtype=rows.dtype) + 0.5
    pixel_x = corner[:, :1] + along.repeat(TILE)
    pixel_y = corner[:, 1:] + along.repeat_interleave(TILE)
    listed = rows.index_select(0, members.flatten()).unflatten(0, members.shape)

    transmittance = torch.ones_like(pixel_x)
    alive = torch.ones_like(pixel_x, dtype=torch.bool)
    total = rows.new_zeros(*pixel_x.shape, 4)
    for start in range(0, members.shape[1], CHUNK):
        part = listed[:, start : start + CHUNK]
        mx, my, a, b, c, opacity = part[:, None, :, :6].unbind(-1)
        dx, dy = pixel_x[..., None] - mx, pixel_y[..., None] - my
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacity * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
        with torch.no_grad():
            seen = (alpha >= ALPHA_MIN) & valid[:, None, start : start + CHUNK]
            after = transmittance[..., None] * torch.cumprod(1 - alpha * seen, -1)
            live = (after > T_MIN) & alive[..., None]
            alive = live[..., -1]
        alpha = alpha * (seen & live)
        passed = torch.log1p(-alpha)
        before = torch.cumsum(passed, -1)
        weight = alpha * transmittance[..., None] * torch.exp(before - passed)
        total = total + weight @ part[..., 6:]
        transmittance = transmittance * torch.exp(before[..., -1])
        if not bool(alive.any()):
            break
    return torch.cat([total, transmittance[..., None]], -1)
