"""exp(-x) for kernels, as a polynomial without a library call, so that LLVM can vectorise the loops around it."""

from __future__ import annotations

import numpy as np

from ._numba_jit import inlined

_CHEBYSHEV = np.polynomial.chebyshev.Chebyshev.interpolate(lambda y: np.exp(-y), 5, domain=[0, 0.7])
_POWERS = _CHEBYSHEV.convert(kind=np.polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef
E0, E1, E2, E3, E4, E5 = (np.float32(_POWERS[i] / 8.0**i) for i in range(6))


@inlined
def exp_neg(x):
    """Return exp(-x) = p(x/8)^8 of a float32 in [0, 5.6], relative error 2.3e-6; kernels skip larger x: exp(-5.6) < 1/255."""
    p = E0 + x * (E1 + x * (E2 + x * (E3 + x * (E4 + x * E5))))
    p = p * p
    p = p * p
    return p * p
