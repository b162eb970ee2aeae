"""Probes of fast backends against plain torch before use: a broken compiler or driver does not show at import."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from torch import Tensor

from ..errors import InputError

T = TypeVar("T")
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


def choose_backend(
    kind: str, name: str, device_type: str, preference: Sequence[str], known: Collection[str], load: Callable[[str], T | None]
) -> T:
    """Choose the backend of a name, or with "auto" the best one that works.

    Args:
        kind: what the backends are, for the message: "splat renderer".
        preference: names for this device, best first; known: all names.
        load: returns a backend, or None if it does not work here.

    Raises:
        InputError: the name is unknown, or its backend does not work; the message lists those that do.
    """
    if name == "auto":
        return next(backend for candidate in preference if (backend := load(candidate)) is not None)
    backend = load(name) if name in known else None
    if backend is None:
        reason = f"does not work on {device_type}" if name in known else "is not known"
        available = ", ".join(("auto", *(candidate for candidate in preference if load(candidate) is not None)))
        raise InputError(f"The {kind} {name!r} {reason}; expected one of {available}: choose one of these.")
    return backend


def check_close(got: Sequence[Tensor], expected: Sequence[Tensor], names: Sequence[str], tolerance: float) -> None:
    """Compare tensors by relative error: the norm of the difference over the norm of ``expected``.

    Raises:
        ArithmeticError: a pair differs by more than the tolerance, or is not finite.
    """
    for name, a, b in zip(names, got, expected, strict=True):
        error = float((a - b).detach().norm() / b.detach().norm())
        if not error <= tolerance:
            raise ArithmeticError(f"its {name} differ from torch's by {error:.2e}, expected {tolerance:.0e}")
