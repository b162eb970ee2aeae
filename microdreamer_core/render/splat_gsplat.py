"""Splat renderer of the gsplat library (Ye et al. 2025, arXiv 2409.06765), if its compiled extension is installed.

gsplat's wheel on PyPI contains only sources, and compiling them at the first render takes minutes; this happens only if the
environment variable :data:`BUILD_VARIABLE` is 1. A prebuilt extension is the module ``gsplat.csrc``.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..cameras import Cameras
from .inputs import background_per_view, check_splats
from .protocol import Render, Splats
from .splat_torch import TorchSplatRenderer

BUILD_VARIABLE = "MICRODREAMER_BUILD_GSPLAT"


class GsplatSplatRenderer:
    """The :class:`~.protocol.SplatRenderer` that calls ``gsplat.rasterization`` in float32.

    Raises:
        ImportError: gsplat or its compiled extension is missing and building is not enabled; the message says what to do.
    """

    name = "gsplat"

    def __init__(self):
        if importlib.util.find_spec("gsplat") is None:
            raise ImportError("gsplat is not installed; get a wheel with its compiled extension from gsplat's own index")
        if not _is_compiled() and os.environ.get(BUILD_VARIABLE) != "1":
            raise ImportError(
                f"gsplat has no compiled extension; install a prebuilt wheel or set {BUILD_VARIABLE}=1 to build it"
            )

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

        Raises:
            InputError: a shape is wrong.
        """
        check_splats(splats)
        if not len(splats):  # gsplat's kernels need at least one
            return TorchSplatRenderer()(splats, cameras, background, antialiased=antialiased, track_means2d=track_means2d)
        source = splats.means
        background = background_per_view(background, cameras)
        probe = source.new_zeros(len(cameras), len(splats), 2).requires_grad_() if track_means2d else None
        tensors = (splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, background)
        tensors = (t.to(source.device, torch.float32) for t in tensors)
        rgb, alpha, depth, radii = _Rasterise.apply(*tensors, probe, cameras.to(source.device), antialiased)
        images = (t.to(source.dtype) for t in (rgb, alpha, depth))
        return Render(*images, radii=radii, means2d=probe)


def _is_compiled() -> bool:
    spec = importlib.util.find_spec("gsplat.csrc")
    return spec is not None and spec.origin is not None  # a folder of sources has no origin


class _Rasterise(torch.autograd.Function):
    """gsplat's graph as one autograd node, so that the gradient of its projected means reaches our zero leaf."""

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
        cameras: Cameras,
        antialiased: bool,
    ) -> tuple[Tensor, ...]:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports] - optional

        inputs = [t.detach() for t in (means, quats, scales, opacities, colors, background)]
        grad = any(ctx.needs_input_grad)
        with torch.set_grad_enabled(grad):
            leaves = [t.requires_grad_(grad) for t in inputs]
            image, alpha, meta = rasterization(
                *leaves[:5],
                cameras.viewmats.to(means),
                cameras.Ks.to(means).contiguous(),
                cameras.width,
                cameras.height,
                packed=False,
                backgrounds=leaves[5],
                render_mode="RGB+D",
                rasterize_mode="antialiased" if antialiased else "classic",
            )
        ctx.outputs, ctx.leaves = (image, alpha), [*leaves, meta["means2d"]]
        radii = meta["radii"].to(torch.int32)
        ctx.mark_non_differentiable(radii)
        return image[..., :3].detach(), alpha.detach(), image[..., 3:].detach(), radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_rgb: Tensor, v_alpha: Tensor, v_depth: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - torch declares any number
        cotangents = [torch.cat([v_rgb, v_depth], -1), v_alpha]
        # retained, because clean.isolated_share differentiates the same render twice; freed with ctx
        gradients = torch.autograd.grad(ctx.outputs, ctx.leaves, cotangents, allow_unused=True, retain_graph=True)
        return *(g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False)), None, None
