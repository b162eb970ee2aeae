"""Probes of fast backends against plain torch before use: a broken compiler or driver does not show at import."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import Tensor

logger = logging.getLogger(__name__)


def works(what: str, check: Callable[[], None]) -> bool:
    """Return True if ``check`` passes; log a missing package as information, any other failure as a warning."""
    try:
        check()
    except ImportError as error:
        logger.info("%s is not there: %s", what, error)
        return False
    except Exception as error:  # compilers and drivers raise anything; another backend can still work
        logger.warning("%s is skipped: %s: %s", what, type(error).__name__, error)
        return False
    return True


def failure(check: Callable[[], object]) -> str:
    """Run ``check`` and return in one line why it failed, or an empty string if it passed.

    >>> failure(lambda: 1 / 0)
    'ZeroDivisionError: division by zero'
    """
    try:
        check()
    except Exception as error:  # compilers and drivers raise anything, and the user needs to read it
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def check_close(got: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], tolerance: float) -> None:
    """Compare tensors by relative error: the norm of the difference over the norm of ``expected``.

    Raises:
        ArithmeticError: a pair differs by more than the tolerance, or is not finite.
    """
    for name, a, b in zip(names, got, expected, strict=True):
        error = float((a - b).norm() / b.norm())
        if not error <= tolerance:
            raise ArithmeticError(f"its {name} differ from torch's by {error:.2e}, expected {tolerance:.0e}")
