"""A perceptron of one hidden layer without biases, for millions of NeRF samples: in torch, and faster in numba on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..util.probe import check_close, works
from ..util.seeds import generator
from ..util.threads import run_all, split_range

_MIN_SAMPLES = 256  # for the kernels; torch is faster on fewer
_PROBE_SAMPLES = 4200  # two spans of the kernels, the second not full
_PROBE_TOLERANCE = 1e-4  # relative


def perceptron(x: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    """Compute V relu(W x), [M,O], differentiable in all three.

    >>> perceptron(torch.ones(1, 2), torch.eye(2), torch.ones(1, 2))
    tensor([[2.]])

    Args:
        x: [M,D]. hidden: W [H,D]. out: V [O,H].
    """
    even = x.shape[1] % 2 == 0  # the kernels take inputs in pairs
    if x.device.type == "cpu" and len(x) >= _MIN_SAMPLES and even and _numba_works():
        return _Perceptron.apply(x.contiguous(), hidden, out)
    return _plain(x, hidden, out)


def _plain(x: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, hidden)), out)


@cache
def _numba_works() -> bool:
    """Return True if the kernels agree with torch, derivatives included; probed once per process."""

    def check() -> None:
        names = ("outputs", "gradients of x", "gradients of W", "gradients of V")
        check_close(_probe(_Perceptron.apply), _probe(_plain), names, _PROBE_TOLERANCE)

    return works("The perceptron of numba", check)


def _probe(function: Callable[..., Tensor]) -> list[Tensor]:
    """Compute outputs for random samples, and all gradients."""
    rng = generator(0, -1, "perceptron probe")
    with torch.inference_mode(False), torch.enable_grad():
        shapes = (_PROBE_SAMPLES, 6), (8, 6), (3, 8)
        inputs = [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]
        result = function(*inputs)
        return [result.detach(), *torch.autograd.grad(result, inputs, torch.randn(result.shape, generator=rng))]


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
        from ._numba_perceptron import perceptron_forward

        ctx.save_for_backward(x, hidden, out)
        arrays = [t.detach().numpy() for t in (x, hidden, out)]
        result = np.empty((len(x), len(out)), arrays[0].dtype)
        run_all([partial(perceptron_forward, a, b, *arrays, result) for a, b in split_range(len(x))])
        return torch.from_numpy(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_out: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - torch declares any number
        from ._numba_perceptron import SPAN, perceptron_backward

        x, hidden, out = (t.detach().numpy() for t in ctx.saved_tensors)
        spans = -(-len(x) // SPAN)
        v_x = np.empty_like(x)
        v_hidden, v_last = np.zeros((spans, *hidden.shape), x.dtype), np.zeros((spans, *out.shape), x.dtype)
        arrays = x, hidden, out, v_out.contiguous().numpy(), v_x

        def some(first: int, last: int) -> None:
            for i in range(first, last):
                perceptron_backward(i * SPAN, min((i + 1) * SPAN, len(x)), *arrays, v_hidden[i], v_last[i])

        run_all([partial(some, a, b) for a, b in split_range(spans)])
        return torch.from_numpy(v_x), torch.from_numpy(v_hidden.sum(0)), torch.from_numpy(v_last.sum(0))
