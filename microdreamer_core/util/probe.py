"""Fast code must agree with plain torch before it is used: a compiler or a driver may be broken in ways no import shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

logger = logging.getLogger(__name__)


def works(what: str, check: Callable[[], None]) -> bool:
    """Whether ``check`` passes. A missing package is logged as information, any other failure as a warning."""
    try:
        check()
    except ImportError as error:
        logger.info("%s is not there: %s", what, error)
        return False
    except Exception as error:  # whatever a compiler or a driver raises, something else can still work
        logger.warning("%s is skipped: %s: %s", what, type(error).__name__, error)
        return False
    return True


def failure(check: Callable[[], object]) -> str:
    """Run ``check`` and say in one line why it failed; empty if it passed."""
    try:
        check()
    except Exception as error:  # whatever a compiler or a driver raises is what the user must read
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def check_close(got: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], tolerance: float) -> None:
    """Compare by relative error, the norm of the difference over the norm.

    Raises:
        ArithmeticError: one pair differs by more than the tolerance, or is not finite.
    """
    for name, a, b in zip(names, got, expected, strict=True):
        error = float((a - b).norm() / b.norm())
        if not error <= tolerance:
            raise ArithmeticError(f"its {name} differ from torch's by {error:.2e}, expected {tolerance:.0e}")
