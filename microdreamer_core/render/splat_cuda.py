"""Splat renderer for NVIDIA GPUs: CUDA kernels, compiled at first use without toolkit or compiler, all views per launch.

Projection and blending and their derivatives are kernels (:mod:`._cuda_program`); torch sorts in between. Nothing synchronises
with the GPU, as no size depends on visibility. Sums over pixels use atomics, so the last bits of gradients may differ between
runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cameras import Cameras
from ..errors import InputError
from . import _cuda_program
from ._cuda_program import Launch, arguments
from .inputs import background_per_view, check_splats
from .protocol import Render, Splats

TILE = 16
ROW, MOMENTS = 12, 10
THREADS = 256
THREADS_PER_GAUSSIAN = 64  # small blocks, so that few Gaussians still use all multiprocessors
MAX_BLOCKS = 2**16 - 1  # along the second and third axis of a launch; columns of tiles are counted in 16 bits as well
INT_MAX = 2**31 - 1


class CudaSplatRenderer:
    """The :class:`~.protocol.SplatRenderer` of NVIDIA GPUs; tensors of other devices or dtypes are moved once per call."""

    name = "cuda"

    def __init__(self, launch: Launch = _cuda_program.launch, device_type: str = "cuda"):
        """Create the renderer; the arguments are for tests that run the same kernels without a GPU."""
        self._launch = launch
        self._device_type = device_type

    def __call__(
        self,
        splats: Splats,
        cameras: Cameras,
        background: Tensor,
        *,
        antialiased: bool = False,
        track_means2d: bool = False,
    ) -> Render:
        """Render all views in float32 on the tensors' GPU and torch's current stream; see :class:`~.protocol.SplatRenderer`.

        Raises:
            InputError: a shape is wrong, or there are too many Gaussians, views or pixels for the kernels.
            CudaUnavailable: the kernels cannot be compiled or loaded.
        """
        check_splats(splats)
        source = splats.means
        device = source.device if source.device.type == self._device_type else torch.device(self._device_type)
        background = background_per_view(background, cameras)
        probe = source.new_zeros(len(cameras), len(splats), 2).requires_grad_() if track_means2d else None

        def prepared(tensor: Tensor) -> Tensor:
            return tensor.to(device, torch.float32).contiguous()

        tensors = (splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, background)
        view = _View(cameras.width, cameras.height, antialiased, prepared(cameras.viewmats), prepared(cameras.Ks), self._launch)
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            moved = (prepared(t) for t in tensors)
            rgb, alpha, depth, radii = _Rasterise.apply(*moved, None if probe is None else prepared(probe), view)
        images = (t.to(source) for t in (rgb, alpha, depth))
        return Render(*images, radii=radii.to(source.device), means2d=probe)


@dataclass(frozen=True)
class _View:
    width: int
    height: int
    antialiased: bool
    viewmats: Tensor  # [V,4,4]
    Ks: Tensor  # [V,3,3]
    launch: Launch

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Blocks of a raster kernel: columns, rows, views."""
        return -(-self.width // TILE), -(-self.height // TILE), len(self.viewmats)

    def run_each(self, name: str, count: int, threads: int, *given: int | Tensor) -> None:
        """Launch with one thread per item, if there are any: CUDA refuses empty launches."""
        if count:
            self.launch(name, (-(-count // threads), 1, 1), threads, *arguments(count, *given))

    def run_tiles(self, name: str, *given: int | Tensor) -> None:
        self.launch(name, self.tiles, THREADS, *arguments(self.width, self.height, *given))


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
        inputs = (means, quats, scales, opacities, colors)
        rows, radii, touched, keys = _project(view, *inputs)
        order = keys.flatten().sort(stable=True).indices  # stable: equal depths keep the Gaussians' order
        seen = rows, order, touched.flatten()[order]
        shape = len(view.viewmats), view.height, view.width
        rgb, alpha, depth, remaining = (means.new_empty(*shape, n) for n in (3, 1, 1, 1))
        last = radii.new_empty(shape)
        view.run_tiles("raster_forward", len(means), *seen, background, rgb, alpha, depth, last, remaining)
        ctx.view = view
        ctx.mark_non_differentiable(radii)
        ctx.save_for_backward(*inputs, background, touched, *seen, last, remaining)
        return rgb, alpha, depth, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_rgb: Tensor, v_alpha: Tensor, v_depth: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - torch declares any number
        view = ctx.view
        means, quats, scales, opacities, colors, background, touched, *seen, last, remaining = ctx.saved_tensors
        cotangents = [v.contiguous() for v in (v_rgb, v_alpha, v_depth)]
        views, n = len(view.viewmats), len(means)
        moments = means.new_zeros(views, n, MOMENTS)
        gradients = [torch.empty_like(t) for t in (means, quats, scales, opacities, colors)]
        v_means2d = means.new_empty(views, n, 2)
        with torch.cuda.device(means.device) if means.device.type == "cuda" else contextlib.nullcontext():
            view.run_tiles("raster_backward", n, *seen, background, last, remaining, *cotangents, moments)
            known = means, quats, scales, opacities, view.viewmats, view.Ks, seen[0], touched, moments
            size = view.width, view.height, view.antialiased
            view.run_each("project_backward", n, THREADS_PER_GAUSSIAN, views, *size, *known, *gradients, v_means2d)
        v_background = (remaining * cotangents[0]).sum((1, 2)) if ctx.needs_input_grad[5] else None
        needs = ctx.needs_input_grad
        return *(g if need else None for g, need in zip((*gradients, v_background, v_means2d), needs, strict=False)), None


def _project(
    view: _View, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows [V,N,ROW], radii [V,N,2], covered tiles [V,N] (four 16-bit numbers each) and sort keys [V,N]."""
    views, n = len(view.viewmats), len(means)
    if views * n * 2 > INT_MAX:
        raise InputError(f"The CUDA renderer takes at most {INT_MAX // 2} Gaussians times views, got {n} x {views}; use fewer.")
    if max(view.tiles) > MAX_BLOCKS:
        most = f"{MAX_BLOCKS} views of at most {MAX_BLOCKS * TILE} pixels each way"
        raise InputError(
            f"The CUDA renderer takes at most {most}, got {views} of {view.width} x {view.height}; render fewer at once."
        )
    rows = means.new_empty(views, n, ROW)
    radii = torch.empty(views, n, 2, dtype=torch.int32, device=means.device)
    touched, keys = (torch.empty(views, n, dtype=torch.int64, device=means.device) for _ in range(2))
    size = n, view.width, view.height, view.antialiased
    given = means, quats, scales, opacities, colors, view.viewmats, view.Ks
    view.run_each("project", views * n, THREADS, *size, *given, rows, radii, touched, keys)
    return rows, radii, touched, keys
