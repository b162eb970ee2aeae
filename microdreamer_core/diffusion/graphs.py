"""CUDA graphs for repeated network calls: a UNet is a thousand small kernels, whose launches take longer than a fast GPU
needs to run them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

MOST = 6
"""Number of recordings kept: one or both branches, for the views of SIR, of texture refinement and of one more kind."""

_WARM_UPS = 2


class Recorder(Protocol):
    """Records a call and replays it."""

    def works(self, device: torch.device) -> bool:
        """Return True if calls on that device can be recorded."""
        ...

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record one call; returns (a function that replays it on the same memory, the tensor that it writes to).

        Raises:
            RuntimeError: the call cannot be recorded.
        """
        ...


class CudaRecorder:
    """CUDA graphs; all share one memory pool, because they never run at the same time."""

    def __init__(self):
        self._pool = None

    def works(self, device: torch.device) -> bool:
        """Return True for the current GPU only: streams belong to one, and calls for another would not be recorded."""
        return device.type == "cuda" and device.index in (None, torch.cuda.current_device())

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See :class:`Recorder`; warm-up calls run on a side stream first, so that libraries choose kernels and allocate memory
        before the recording (as torch.cuda.graphs requires)."""
        side, here = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                call()
        here.wait_stream(side)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = call()
        return graph.replay, output


@dataclass(frozen=True)
class _Recording:
    """A recorded call with its input and output memory."""

    inputs: dict[str, Any]
    play: Callable[[], None]
    output: Tensor

    def __call__(self, inputs: dict[str, Any]) -> Tensor:
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                self.inputs[name].copy_(value)
        self.play()
        return self.output.clone()


class CudaGraphed:
    """A function of tensors whose repeated calls are replayed as CUDA graphs.

    The first call of each kind (shapes, dtypes, other arguments) runs eagerly, so that single calls are not recorded; the
    second is recorded. If recording fails, a warning is logged once and all calls run eagerly. Calls with gradients always do.

    Args:
        function: takes keyword arguments, with tensors on one device, and returns one tensor; it must not synchronise with the
            device nor sample random numbers.
        weights: returns the tensors that the function also reads; when their memory changes, calls are recorded again.
        recorder: CUDA graphs when None.
    """

    def __init__(
        self, function: Callable[..., Tensor], weights: Callable[[], Iterable[Tensor]], recorder: Recorder | None = None
    ):
        self._function, self._weights = function, weights
        self._recorder: Recorder | None = recorder or CudaRecorder()
        self._place = 0
        self._seen: set[tuple] = set()
        self._recordings: dict[tuple, _Recording] = {}

    def __call__(self, **inputs: Any) -> Tensor:
        device = next(value.device for value in inputs.values() if isinstance(value, Tensor))
        if self._recorder is None or torch.is_grad_enabled() or not self._recorder.works(device):
            return self._function(**inputs)
        self._drop_moved()
        kind = (device, *((name, _kind(value)) for name, value in inputs.items()))
        if kind not in self._seen:
            self._seen.add(kind)
            return self._function(**inputs)
        recording = self._recordings.get(kind) or self._record(self._recorder, kind, inputs)
        return self._function(**inputs) if recording is None else recording(inputs)

    def _record(self, recorder: Recorder, kind: tuple, inputs: dict[str, Any]) -> _Recording | None:
        try:
            with torch.inference_mode(False), torch.no_grad():  # inference tensors cannot be written to outside that mode
                kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
                play, output = recorder.record(lambda: self._function(**kept))
        except RuntimeError as error:
            log.warning("The network's calls cannot be recorded as CUDA graphs and run one by one: %s", error)
            self._recorder = None
            self._recordings.clear()
            return None
        if len(self._recordings) >= MOST:
            del self._recordings[next(iter(self._recordings))]
        self._recordings[kind] = _Recording(kept, play, output)
        return self._recordings[kind]

    def _drop_moved(self) -> None:
        """Drop recordings if the weights have moved in memory."""
        place = hash(tuple(tensor.data_ptr() for tensor in self._weights()))
        if place != self._place:
            self._place = place
            self._recordings.clear()


def _kind(value: Any) -> Any:
    return (value.shape, value.stride(), value.dtype) if isinstance(value, Tensor) else value
