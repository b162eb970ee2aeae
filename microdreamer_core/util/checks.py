"""Checks of settings that may come from a file as well as from a caller."""

from __future__ import annotations

import numbers
from dataclasses import fields
from typing import Any

from ..errors import InputError


def check_types(settings: Any) -> None:
    """Refuse a dataclass with a field of another type than its default, before a wrong one does harm far from here.

    Whole numbers stand for real ones, booleans for neither; NaN is no number, infinity is one.

    Raises:
        InputError: the first field that does not fit.
    """
    for field in fields(settings):
        value, expected = getattr(settings, field.name), _TYPES.get(type(field.default))
        if expected is None:
            continue
        kind, words = expected
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if not fits or value != value:
            raise InputError(f"{type(settings).__name__}.{field.name} must be {words}, got {value!r:.100}.")


_TYPES = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
}
