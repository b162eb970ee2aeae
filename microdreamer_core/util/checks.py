"""Type checks of settings, which may come from a file or from a caller."""

from __future__ import annotations

import numbers
from dataclasses import fields
from typing import Any

from ..errors import InputError


def check_types(settings: Any) -> None:
    """Check that each field of a dataclass has the type of its default, so that errors appear early.

    Integers are accepted as floats, booleans as neither; NaN is refused, infinity allowed.

    Raises:
        InputError: the first field of a wrong type.
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
