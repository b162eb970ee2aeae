"""Numba kernels of a perceptron with one hidden layer and no biases: out = V relu(W x), with its derivatives.

Blocks of samples stay in the cache through both layers, while one matrix product per layer would go through memory each time.
Inner loops run over a constant number of samples, for SIMD. Samples of a span share partial sums of the weights' gradients, and
spans do not depend on the number of threads, so neither do the sums.
"""

from __future__ import annotations

import numpy as np

from ..util._numba_jit import inlined, kernel

BLOCK = 32
SPAN = 128 * BLOCK


@inlined
def _load(x, block, begin, end):
    """Transpose rows [begin,end) of x [M,D] into block [D,BLOCK], padded with zeros."""
    for d in range(block.shape[0]):
        for s in range(BLOCK):
            block[d, s] = 0
    for s in range(end - begin):
        for d in range(x.shape[1]):
            block[d, s] = x[begin + s, d]


@inlined
def _hidden(weights, block, hidden, zero):
    """Compute relu(W x) of a block; the width of x is even."""
    for h in range(hidden.shape[0]):
        for s in range(BLOCK):
            hidden[h, s] = zero
        for d in range(0, block.shape[0], 2):
            a, b = weights[h, d], weights[h, d + 1]
            for s in range(BLOCK):
                hidden[h, s] += a * block[d, s] + b * block[d + 1, s]
        for s in range(BLOCK):
            hidden[h, s] = max(hidden[h, s], zero)


@kernel
def perceptron_forward(begin, end, x, weights, last, out):
    """Write out [M,O] of samples [begin,end): x [M,D], W ``weights`` [H,D], V ``last`` [O,H]."""
    zero = x.dtype.type(0)
    block, hidden = np.empty((x.shape[1], BLOCK), x.dtype), np.empty((weights.shape[0], BLOCK), x.dtype)
    total = np.empty(BLOCK, x.dtype)
    for first in range(begin, end, BLOCK):
        until = min(first + BLOCK, end)
        _load(x, block, first, until)
        _hidden(weights, block, hidden, zero)
        for o in range(last.shape[0]):
            for s in range(BLOCK):
                total[s] = zero
            for h in range(hidden.shape[0]):
                v = last[o, h]
                for s in range(BLOCK):
                    total[s] += v * hidden[h, s]
            for s in range(until - first):
                out[first + s, o] = total[s]


@kernel
def perceptron_backward(begin, end, x, weights, last, v_out, v_x, v_weights, v_last):
    """Compute gradients of samples [begin,end): v_x [M,D] is written; v_weights [H,D] and v_last [O,H] are accumulated."""
    zero = x.dtype.type(0)
    block, hidden = np.empty((x.shape[1], BLOCK), x.dtype), np.empty((weights.shape[0], BLOCK), x.dtype)
    v_block, given = np.empty_like(block), np.empty((last.shape[0], BLOCK), x.dtype)
    v_hidden = np.empty(BLOCK, x.dtype)
    for first in range(begin, end, BLOCK):
        until = min(first + BLOCK, end)
        _load(v_out, given, first, until)
        arrives = False
        for o in range(given.shape[0]):
            for s in range(BLOCK):
                arrives = arrives or given[o, s] != zero
        if not arrives:
            v_x[first:until] = zero
            continue
        _load(x, block, first, until)
        _hidden(weights, block, hidden, zero)
        v_block[:] = zero
        for h in range(hidden.shape[0]):
            for s in range(BLOCK):
                v_hidden[s] = zero
            for o in range(last.shape[0]):
                v, total = last[o, h], zero
                for s in range(BLOCK):
                    v_hidden[s] += v * given[o, s]
                    total += given[o, s] * hidden[h, s]
                v_last[o, h] += total
            for s in range(BLOCK):
                v_hidden[s] = v_hidden[s] if hidden[h, s] > zero else zero
            for d in range(block.shape[0]):
                w, total = weights[h, d], zero
                for s in range(BLOCK):
                    v_block[d, s] += w * v_hidden[s]
                    total += block[d, s] * v_hidden[s]
                v_weights[h, d] += total
        for s in range(until - first):
            for d in range(block.shape[0]):
                v_x[first + s, d] = v_block[d, s]
