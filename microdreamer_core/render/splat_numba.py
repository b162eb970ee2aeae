"""Splat renderer for the CPU: SIMD numba kernels with analytic derivatives on a thread pool, deterministic.

Importing this module imports numba; its first use on a machine compiles for about ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cameras import Cameras
from ..util.threads import get_threads, run_stages, split_range
from ._numba_project import MOMENTS, PARAMS, project_backward, project_view
from ._numba_raster import KEPT, TILE_H, TILE_W, bin_view, raster_backward, raster_forward
from .inputs import background_per_view, check_splats
from .protocol import Render, Splats

_TASKS_PER_THREAD = 4


class NumbaSplatRenderer:
    """The :class:`~.protocol.SplatRenderer` of the CPU; tensors of other devices or dtypes are moved once per call."""

    name = "numba"

    def __call__(
        self,
        splats: Splats,
        cameras: Cameras,
        background: Tensor,
        *,
        antialiased: bool = False,
        track_means2d: bool = False,
    ) -> Render:
        """Render all views in float32; see :class:`~.protocol.SplatRenderer`.

        Results are bit-identical for any number of threads (:func:`~..util.threads.set_threads`).

        Raises:
            InputError: a shape is wrong.
        """
        check_splats(splats)
        source = splats.means
        background = background_per_view(background, cameras)
        probe = source.new_zeros(len(cameras), len(splats), 2).requires_grad_() if track_means2d else None
        tensors = (splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, background)
        tensors = tuple(_to_cpu(t) for t in tensors)
        view = _View(cameras.width, cameras.height, antialiased, _array(cameras.viewmats), _array(cameras.Ks))
        *images, radii = _Rasterise.apply(*tensors, None if probe is None else _to_cpu(probe), view)
        rgb, alpha, depth, painted = (t.to(source) for t in images)
        return Render(rgb, alpha, depth, radii.to(source.device), probe, painted)


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float32).contiguous()


def _array(tensor: Tensor) -> np.ndarray:
    return _to_cpu(tensor.detach()).numpy()


class _View(NamedTuple):
    width: int
    height: int
    antialiased: bool
    viewmats: np.ndarray  # [V,4,4]
    Ks: np.ndarray  # [V,3,3]

    @property
    def tiles(self) -> tuple[int, int]:
        return -(-self.width // TILE_W), -(-self.height // TILE_H)


class _Lists(NamedTuple):
    """The result of ``bin_view`` for one view."""

    tile_start: np.ndarray
    splat: np.ndarray
    slot: np.ndarray
    rows: np.ndarray
    slot_start: np.ndarray


@dataclass(frozen=True)
class _Trace:
    """Intermediate results of the forward pass for the backward pass."""

    params: np.ndarray  # [V,N,PARAMS]
    lists: list[_Lists]
    stop: np.ndarray  # [V,tiles]
    kept: np.ndarray  # [V,tiles,KEPT]


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        background: Tensor,
        probe: Tensor | None,
        view: _View,
    ) -> tuple[Tensor, ...]:
        inputs = (means, quats, scales, opacities, colors, background)
        images, radii, ctx.trace = _forward(view, *(t.detach().numpy() for t in inputs))
        rgb, alpha, depth, painted, radii = (torch.from_numpy(a) for a in (*images, images[0], radii))
        ctx.view = view
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(radii)
        ctx.save_for_backward(*inputs)  # not on ctx: autograd then detects in-place changes
        return rgb, alpha, depth, painted, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - torch names its argument
        inputs = [t.detach().numpy() for t in ctx.saved_tensors]
        shape = len(ctx.view.viewmats), ctx.view.height, ctx.view.width
        cotangents = [_cotangent(v, (*shape, channels)) for v, channels in zip(given, (3, 1, 1, 3), strict=False)]
        gradients = _backward(ctx.view, ctx.trace, inputs, cotangents)
        return *(torch.from_numpy(g) if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False)), None


def _cotangent(gradient: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32) if gradient is None else gradient.contiguous().numpy()


def _forward(
    view: _View,
    means: np.ndarray,
    quats: np.ndarray,
    scales: np.ndarray,
    opacities: np.ndarray,
    colors: np.ndarray,
    background: np.ndarray,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, _Trace]:
    """Render all views: (rgb, alpha, depth), radii and the trace."""
    views, n = len(view.viewmats), len(means)
    tiles_x, tiles_y = view.tiles
    params = np.empty((views, n, PARAMS), np.float32)
    radii = np.empty((views, n, 2), np.int32)
    rgb = np.empty((views, view.height, view.width, 3), np.float32)
    alpha = np.empty((views, view.height, view.width, 1), np.float32)
    depth = np.empty_like(alpha)
    stop = np.empty((views, tiles_x * tiles_y), np.int64)
    kept = np.empty((views, tiles_x * tiles_y, KEPT), np.float32)
    lists: dict[int, _Lists] = {}

    def prepare(v: int) -> None:
        extents = np.empty((n, 2), np.float32)
        camera = view.viewmats[v], view.Ks[v], view.width, view.height, view.antialiased
        project_view(means, quats, scales, opacities, colors, *camera, params[v], extents, radii[v])
        lists[v] = _Lists(*bin_view(params[v], extents, tiles_x, tiles_y))

    def blend(v: int, part: int, parts: int) -> None:
        tile_start, splat, _, rows, _ = lists[v]
        tiles = _share_of_tiles(lists[v], part, parts)
        where = background[v], view.width, view.height, tiles_x, tiles
        outputs = rgb[v], alpha[v, ..., 0], depth[v, ..., 0], stop[v], kept[v]
        raster_forward(params[v], tile_start, splat, rows, *where, *outputs)

    run_stages([partial(prepare, v) for v in range(views)], [partial(blend, *task) for task in _split_views(views)])
    return (rgb, alpha, depth), radii, _Trace(params, [lists[v] for v in range(views)], stop, kept)


def _backward(view: _View, trace: _Trace, inputs: list[np.ndarray], cotangents: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Compute gradients of means, quats, scales, opacities, colours, background and projected means."""
    means, quats, scales, opacities, _, background = inputs
    views, n = len(view.viewmats), len(means)
    tiles_x, tiles_y = view.tiles
    ends = np.cumsum([0] + [lists.slot_start[-1] for lists in trace.lists])
    slots = np.zeros((ends[-1], MOMENTS), np.float32)
    slot_start = np.stack([lists.slot_start + end for lists, end in zip(trace.lists, ends, strict=False)])
    v_background = np.empty((views, tiles_x * tiles_y, 3), np.float32)

    def blend_backward(v: int, part: int, parts: int) -> None:
        tile_start, splat, slot, rows, _ = trace.lists[v]
        tiles = _share_of_tiles(trace.lists[v], part, parts)
        v_rgb, v_alpha, v_depth, v_painted = cotangents
        given = v_rgb[v], v_alpha[v, ..., 0], v_depth[v, ..., 0], v_painted[v]
        where = background[v], view.width, view.height, tiles_x, tiles, trace.stop[v], trace.kept[v]
        outputs = slots[ends[v] : ends[v + 1]], v_background[v]
        raster_backward(trace.params[v], tile_start, splat, slot, rows, *where, *given, *outputs)

    gradients = tuple(np.zeros_like(a) for a in inputs[:5])
    v_means2d = np.empty((views, n, 2), np.float32)
    known = means, quats, scales, opacities, view.viewmats, view.Ks, view.width, view.height, view.antialiased
    known += trace.params, slot_start, slots
    run_stages(
        [partial(blend_backward, *task) for task in _split_views(views)],
        [partial(project_backward, first, last, *known, *gradients, v_means2d) for first, last in split_range(n)],
    )
    return *gradients, v_background.sum(1), v_means2d


def _split_views(views: int) -> list[tuple[int, int, int]]:
    """Return tasks (view, part, parts), about four per thread, so that none waits long for the last."""
    threads = get_threads()
    parts = 1 if threads == 1 else -(-_TASKS_PER_THREAD * threads // max(1, views))
    return [(v, part, parts) for v in range(views) for part in range(parts)]


def _share_of_tiles(lists: _Lists, part: int, parts: int) -> np.ndarray:
    """Return one part of a view's tiles; the parts take turns in the order of decreasing list length."""
    return np.ascontiguousarray(np.argsort(-np.diff(lists.tile_start), kind="stable")[part::parts])
