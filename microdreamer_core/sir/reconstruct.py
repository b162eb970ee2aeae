"""I reconstruction steps on fixed targets: the inner loop of Algorithm 1 (lines 7 to 10)."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from ..cameras import Cameras, concatenate
from ..errors import InputError, NumericalError
from ..fields.protocol import Field, FieldOptimizer, FieldT, StepRange
from ..reference import ReferenceView
from ..render.protocol import Render
from ..util import devices
from ..util.hooks import Hook
from ..util.threads import torch_threads
from ..util.vocabulary import Norm
from .hooks import Watch
from .losses import paint_loss, reconstruction_loss, reference_loss

_SMALL = 1 << 20
"""Numbers in images that one thread of torch compares as fast as several."""


@dataclass(frozen=True)
class Reconstruction(Generic[FieldT]):
    """The fitted field and the loss of each step."""

    field: FieldT
    losses: tuple[float, ...]


@dataclass(frozen=True)
class LatentTargets:
    """Targets in latent space, Eq. 11: latents [V,C,h,w] and the differentiable encoder of the renders."""

    latents: Tensor
    encode: Callable[[Tensor], Tensor]


def reconstruct(
    field: FieldT,
    cameras: Cameras,
    targets: Tensor | LatentTargets,
    steps: int,
    *,
    norm: Norm = "l1",
    reference: ReferenceView | None = None,
    background: Tensor | None = None,
    after: int | None = None,
    check: Hook | None = None,
    watch: Watch | None = None,
) -> Reconstruction[FieldT]:
    """Fit a field to images (Eq. 12) or latents (Eq. 11) at fixed cameras.

    Everything that does not depend on θ (cameras, targets, reference) is prepared once; all views and the reference view are
    rendered in one call. The given field is not changed. On an accelerator nothing is read back before the last step, so a
    non-finite loss is reported then.

    Args:
        cameras: V views, at the size of the targets.
        targets: [V,H,W,3] in [0,1], or latents with their encoder.
        steps: I.
        norm: of the loss.
        reference: one more view to fit, with its own weights.
        background: [3] behind the targets; the field's own when None (see ``Field.render``).
        after: number of later steps of the run, if known: density control then stays away from the end of iterations and of
            the run.
        check: called before each step.
        watch: called after each step with a function that returns the field so far; the result does not depend on it.

    Raises:
        InputError: shapes of targets and cameras disagree.
        NumericalError: the loss is not finite.
    """
    _check_targets(cameras, targets)
    views, all_cameras = len(cameras), cameras
    if reference is not None:
        all_cameras = concatenate([cameras, reference.cameras.resize(cameras.width, cameras.height)])
    # ComfyUI runs nodes in inference mode, whose tensors cannot be saved for backward and must be copied
    with torch.inference_mode(False), torch.enable_grad(), _suitable_threads(field, targets):
        targets = _usable(targets)
        device = (targets.latents if isinstance(targets, LatentTargets) else targets).device
        all_cameras = all_cameras.to(device)
        background = None if background is None else background.to(device)
        reference = None if reference is None else reference.to(device)
        optimizer = field.optimizer(None if after is None else StepRange(steps, after))
        losses = _Losses(steps)
        for _ in range(steps):
            if check is not None:
                check()
            render = optimizer.render(all_cameras, background)
            loss = _data_loss(render.rgb[:views], targets, norm)
            if reference is not None:
                loss = loss + reference_view_loss(reference, optimizer, render, all_cameras, background)
            losses.add(loss.detach())
            optimizer.step(loss, render)
            if watch is not None:
                watch(optimizer.finish)
        return Reconstruction(optimizer.finish(), losses.values())


def reference_view_loss(
    reference: ReferenceView, optimizer: FieldOptimizer[Field], render: Render, cameras: Cameras, background: Tensor | None
) -> Tensor:
    """Compute the loss of the reference, the last view of ``render``.

    A paint weight needs the view once more with its geometry detached, which some renderers give with the first render.
    """
    loss = reference_loss(reference, render.rgb[-1:], render.alpha[-1:])
    if not reference.paint_weight:
        return loss
    if render.painted is not None:
        return loss + paint_loss(reference, render.painted[-1:])
    return loss + paint_loss(reference, optimizer.render(cameras[slice(-1, None)], background, colors_only=True).rgb)


class _Losses:
    """The losses so far: checked one by one on the CPU; on asynchronous devices read and checked together at the end."""

    def __init__(self, steps: int):
        self._steps = steps
        self._values: list[float] = []
        self._unread: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Append a scalar.

        Raises:
            NumericalError: it is on the CPU and not finite.
        """
        if devices.is_async(loss.device):
            self._unread.append(loss)
        else:
            self._check(float(loss))

    def values(self) -> tuple[float, ...]:
        """Return all losses.

        Raises:
            NumericalError: a loss that was not checked before is not finite.
        """
        for value in torch.stack(self._unread).tolist() if self._unread else ():
            self._check(value)
        return tuple(self._values)

    def _check(self, value: float) -> None:
        if not math.isfinite(value):
            raise NumericalError(f"The reconstruction loss became {value} at step {len(self._values)} of {self._steps}.")
        self._values.append(value)


def _suitable_threads(field: Field, targets: Tensor | LatentTargets) -> AbstractContextManager[None]:
    """One thread of torch for Gaussians on a CPU and small images: renderers have their own, and the rest are operations of
    microseconds, for which waking threads takes longer."""
    small = isinstance(targets, Tensor) and targets.numel() <= _SMALL and field.kind == "gaussians"
    return torch_threads(1) if small and field.device.type == "cpu" else nullcontext()


def _data_loss(rgb: Tensor, targets: Tensor | LatentTargets, norm: Norm) -> Tensor:
    if isinstance(targets, LatentTargets):
        return reconstruction_loss(targets.encode(rgb), targets.latents, norm)
    return reconstruction_loss(rgb, targets, norm)


def _usable(targets: Tensor | LatentTargets) -> Tensor | LatentTargets:
    if isinstance(targets, LatentTargets):
        return LatentTargets(targets.latents.detach().clone(), targets.encode)
    return targets.detach().clone()


def _check_targets(cameras: Cameras, targets: Tensor | LatentTargets) -> None:
    got = list(targets.latents.shape if isinstance(targets, LatentTargets) else targets.shape)
    expected = [len(cameras)] if isinstance(targets, LatentTargets) else [len(cameras), cameras.height, cameras.width, 3]
    if got[: len(expected)] != expected:
        raise InputError(
            f"Reconstruction targets must have shape {expected} to match the cameras, got {got}; resize one of them."
        )
