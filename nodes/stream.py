"""The field while it forms: packed splats for the viewer in the node, at most two a second and 1 MB each.

A message is an event of ComfyUI's websocket whose splat is base64. Layout of a packed splat of N Gaussians, little-endian::

    "MDS1", uint32 N, float32 low[3], span[3], log_low, log_span   positions and natural logarithms of scales
    uint16 [N,3] positions    low + span p / 65535
    uint8  [N,3] scales       exp(log_low + log_span s / 255)
    uint8  [N,4] colours and opacity, / 255
    uint8  [N,4] quaternions wxyz, (q - 128) / 127

The low-pass filter of fitting is part of the scales (``Gaussians.absorb_low_pass``): viewers render antialiased, at any size.
"""

from __future__ import annotations

import base64
import math
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..microdreamer_core.fields.gaussians import Gaussians
from ..microdreamer_core.fields.protocol import Field
from ..microdreamer_core.render.protocol import Splats
from ..microdreamer_core.sir.hooks import Watch
from ..microdreamer_core.sir.plan import SIRPlan
from .compat import Browser, browser

MAGIC = b"MDS1"
EVENT = "microdreamer.view"
PERIOD = 0.5
"""Seconds between two messages."""
MAX_BYTES = 1_000_000
"""Of a message."""

_HEADER = struct.Struct("<4sI8f")
_BYTES_EACH = 3 * 2 + 3 + 4 + 4
_OTHERS = 2_000  # bytes of a message beside its splat
MAX_SPLATS = ((MAX_BYTES - _OTHERS) // 4 * 3 - _HEADER.size) // _BYTES_EACH
_SMALLEST = 1e-4  # scales below this share the last code: nobody sees them, and they would coarsen the others


def pack_splats(splats: Splats, most: int = MAX_SPLATS) -> bytes:
    """Pack Gaussians for the viewer in 17 bytes each; beyond ``most``, those of the largest opacity times area are kept."""
    means, scales, opacities, colors = (
        tensor.detach().cpu().numpy().astype(np.float32)
        for tensor in (splats.means, splats.scales, splats.opacities, splats.colors)
    )
    quats = splats.quats.detach().cpu().numpy().astype(np.float32)
    if len(means) > most:
        area = np.sort(scales, axis=1)[:, 1:].prod(axis=1)
        chosen = np.sort(np.argpartition(-opacities * area, most)[:most])
        means, scales, opacities, colors, quats = (a[chosen] for a in (means, scales, opacities, colors, quats))
    logs = np.log(np.maximum(scales, _SMALLEST))
    low, span = means.min(axis=0), np.ptp(means, axis=0)
    log_low, log_span = float(logs.min()), float(np.ptp(logs))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    blocks = (
        _quantise((means - low) / np.maximum(span, 1e-12), "<u2"),
        _quantise((logs - log_low) / max(log_span, 1e-12), "u1"),
        _quantise(np.concatenate([colors, opacities[:, None]], axis=1), "u1"),
        np.rint(quats * 127 + 128).astype("u1"),
    )
    header = _HEADER.pack(MAGIC, len(means), *low, *span, log_low, log_span)
    return header + b"".join(block.tobytes() for block in blocks)


def _quantise(values: np.ndarray, kind: str) -> np.ndarray:
    """Round [0,1] to all codes of an unsigned integer type."""
    return np.rint(values.clip(0, 1) * np.iinfo(kind).max).astype(kind)


def pack_field(field: Field) -> bytes | None:
    """Pack Gaussians; None for other fields, which have no splats."""
    return pack_splats(field.absorb_low_pass().splats()) if isinstance(field, Gaussians) else None


class Stream:
    """Sends messages at most once in ``PERIOD``; one that comes too early waits and is replaced by a later one of its node.

    Args:
        clock: returns seconds.
        later: calls a function after some seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], Any] | None = None,
    ):
        self._clock, self._later = clock, later or _start_timer
        self._sent = -math.inf
        self._waiting: dict[tuple[str, str], tuple[Browser, dict]] = {}
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Return whether a message would be sent at once."""
        return not self._waiting and self._clock() >= self._sent + PERIOD

    def offer(self, target: Browser, message: dict) -> None:
        """Send a message now or as soon as the rate allows."""
        with self._lock:
            idle = not self._waiting
            self._waiting[target.client, target.node] = (target, message)
        if idle:
            self._send_when_due()

    def _send_when_due(self) -> None:
        pause = self._sent + PERIOD - self._clock()
        if pause > 0:
            self._later(pause, self._send_when_due)
            return
        with self._lock:
            target, message = self._waiting.pop(next(iter(self._waiting)))
            self._sent, more = self._clock(), bool(self._waiting)
        target.send(EVENT, message)
        if more:
            self._send_when_due()


def _start_timer(seconds: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


STREAM = Stream()
"""The stream of this process: ComfyUI runs one node at a time."""


@dataclass(frozen=True)
class LiveView:
    """The viewer in the node that runs; it does nothing if no browser shows the node.

    Attributes:
        camera: elevation, azimuth, radius and field of view with which the viewer starts: those of the reference.
        facts: more values of every message.
    """

    camera: tuple[float, float, float, float]
    facts: dict[str, Any] = field(default_factory=dict)
    target: Browser | None = field(default_factory=browser)

    @classmethod
    def of_plan(cls, plan: SIRPlan, elevation: float = 0.0, **facts: Any) -> LiveView:
        """Look as the reference's camera does, which is ``elevation`` degrees above the object."""
        return cls((elevation, 0.0, plan.radius, plan.fov_y), facts)

    def hook(self) -> Watch | None:
        """Return the hook for the core, None if nobody looks."""
        return None if self.target is None else self._watch

    def _watch(self, current: Callable[[], Field]) -> None:
        if not STREAM.is_due():
            return
        packed = pack_field(current())
        if packed is not None:
            self.show(packed)

    def show(self, packed: bytes | None, **facts: Any) -> None:
        """Show a packed field; with None only ``facts``."""
        if self.target is None:
            return
        splat = {} if packed is None else {"splat": base64.b64encode(packed).decode("ascii")}
        STREAM.offer(self.target, {"camera": self.camera, **self.facts, **facts, **splat})
