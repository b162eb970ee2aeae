"""The discrete times of the noise process, inversion and sampling; imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from ..errors import InputError

DIFFUSION_STEPS = 1000
END = -1
"""The time after the last sampling step."""

Spacing = Literal["leading", "trailing"]


def timestep_grid(steps: int, spacing: Spacing = "leading") -> tuple[int, ...]:
    """Return the discretisation of N steps, ascending.

    "leading" is t_k = k (1000 // N) + 1, k = 0..N-1, as in the released code. "trailing" is t_k = round(1000 k / N) - 1,
    k = 1..N, whose last time is T - 1: few-step models get pure noise at the time at which they were trained on it
    (arXiv 2305.08891, section 3.3).

    >>> timestep_grid(5), timestep_grid(4, "trailing")
    ((1, 201, 401, 601, 801), (249, 499, 749, 999))

    Raises:
        InputError: fewer than 1 or more than 999 steps.
    """
    if not 1 <= steps < DIFFUSION_STEPS:
        raise InputError(
            f"The number of discretisation steps must lie in 1..{DIFFUSION_STEPS - 1}, got {steps}; 10 to 50 is usual."
        )
    if spacing == "trailing":
        return tuple(round(k * DIFFUSION_STEPS / steps) - 1 for k in range(1, steps + 1))
    stride = DIFFUSION_STEPS // steps
    return tuple(k * stride + 1 for k in range(steps))


def inversion_path(t1: int, t2: int, steps: int, spacing: Spacing = "leading") -> tuple[int, ...]:
    """Return the times of inversion from t1 to t2: both ends and the grid between them; the network is not evaluated at t2.

    >>> inversion_path(300, 700, 5)
    (300, 401, 601, 700)

    Raises:
        InputError: times out of order or out of range.
    """
    if not 0 <= t1 <= t2 < DIFFUSION_STEPS:
        raise InputError(f"Inversion needs 0 <= t1 <= t2 < {DIFFUSION_STEPS}, got t1 = {t1}, t2 = {t2}.")
    if t1 == t2:
        return (t2,)
    return (t1, *(t for t in timestep_grid(steps, spacing) if t1 < t < t2), t2)


def sampling_path(t2: int, steps: int, spacing: Spacing = "leading") -> tuple[int, ...]:
    """Return the times at which sampling from t2 evaluates the network, descending: t2 and the grid below it.

    >>> sampling_path(700, 5)
    (700, 601, 401, 201, 1)

    Raises:
        InputError: t2 is out of range.
    """
    if not 0 <= t2 < DIFFUSION_STEPS:
        raise InputError(f"Sampling must start at a time in 0..{DIFFUSION_STEPS - 1}, got t2 = {t2}.")
    return (t2, *(t for t in reversed(timestep_grid(steps, spacing)) if t < t2))
