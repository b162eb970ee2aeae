"""A perceptron of one hidden layer without biases, as NeRFs use for millions of samples: torch, and faster on the CPU numba."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..render.threads import run_all, shares

_WORTH_IT = 256  # samples


def perceptron(x: Tensor, hidden: Tensor, out: Tensor) -> Tensor:
    """[M,O] = V relu(W x), differentiable in all three.

    Args:
        x: [M,D]. hidden: W [H,D]. out: V [O,H].
    """
    even = x.shape[1] % 2 == 0  # the kernels take inputs in pairs
    if x.device.type == "cpu" and len(x) >= _WORTH_IT and even and find_spec("numba") is not None:
        return _Perceptron.apply(x.contiguous(), hidden, out)
    return F.linear(F.relu(F.linear(x, hidden)), out)


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, hidden, out):
        from ..render._numba_perceptron import perceptron_forward

        ctx.save_for_backward(x, hidden, out)
        arrays = [t.detach().numpy() for t in (x, hidden, out)]
        result = np.empty((len(x), len(out)), arrays[0].dtype)
        run_all([partial(perceptron_forward, a, b, *arrays, result) for a, b in shares(len(x))])
        return torch.from_numpy(result)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_out):
        from ..render._numba_perceptron import SPAN, perceptron_backward

        x, hidden, out = (t.detach().numpy() for t in ctx.saved_tensors)
        spans = -(-len(x) // SPAN)
        v_x = np.empty_like(x)
        v_hidden, v_last = np.zeros((spans, *hidden.shape), x.dtype), np.zeros((spans, *out.shape), x.dtype)
        arrays = x, hidden, out, v_out.contiguous().numpy(), v_x

        def some(first: int, last: int) -> None:
            for i in range(first, last):
                perceptron_backward(i * SPAN, min((i + 1) * SPAN, len(x)), *arrays, v_hidden[i], v_last[i])

        run_all([partial(some, a, b) for a, b in shares(spans)])
        return torch.from_numpy(v_x), torch.from_numpy(v_hidden.sum(0)), torch.from_numpy(v_last.sum(0))
