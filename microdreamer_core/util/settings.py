"""Settings whose range and help text are declared once, for dataclasses, the command line and the nodes."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
_KEY = "setting"
_KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    str: (str, "a text"),
    int: (numbers.Integral, "a whole number"),
}
_NUMBER = numbers.Real, "a number"


@dataclass(frozen=True)
class Setting:
    """Allowed values and help text of a dataclass field.

    Attributes:
        help: what it does, one sentence without a full stop, for command lines and tooltips.
        low, high: inclusive bounds of a number; None where it is unbounded.
        choices: allowed values of a string.
        optional: whether None is allowed too.
        flag: its command line option, if it has one.
        default: of the dataclass; its type is the setting's.
        finite: whether infinity is refused; NaN always is.
    """

    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    flag: str | None = None
    default: Any = None
    finite: bool = True

    def describe(self) -> str:
        """Describe the allowed values in words.

        >>> Setting("views", low=1, high=256, default=4).describe()
        'a whole number in 1..256'
        """
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        _, kind = _KINDS.get(type(self.default), _NUMBER)
        if self.high is not None:
            kind += f" in {self.low:.10g}..{self.high:.10g}" if self.low is not None else f" of at most {self.high:.10g}"
        elif self.low is not None:
            kind += f" of at least {self.low:g}"
        return kind + (", or None" if self.optional else "")

    def allows(self, value: Any) -> bool:
        """Return True if a value has the right type and lies within the bounds.

        >>> setting = Setting("views", low=1, high=256, default=4)
        >>> setting.allows(8), setting.allows(8.5)
        (True, False)
        """
        if value is None:
            return self.optional
        if self.choices:
            return value in self.choices
        kind, _ = _KINDS.get(type(self.default), _NUMBER)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            return False
        if kind in (bool, str):
            return True
        if math.isnan(value) or (self.finite and math.isinf(value)):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def setting(
    default: Any,
    help: str,  # noqa: A002 - the name that argparse gives it
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[str, ...] = (),
    optional: bool = False,
    flag: str | None = None,
) -> Any:
    """Declare a dataclass field with its range and help text; arguments as for :class:`Setting`."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, low, high, choices, optional, flag, default)})


def settings_of(owner: type) -> dict[str, Setting]:
    """Return the settings that a dataclass declares, by field name."""
    return {field.name: field.metadata[_KEY] for field in dataclasses.fields(owner) if _KEY in field.metadata}


def check_settings(values: DataclassInstance, owner: str = "") -> None:
    """Check all settings of a dataclass; call it in ``__post_init__``, for values may come from a file or from a caller.

    A field that declares no :class:`Setting` must have the type of its default, if that is a number, a text or a truth value:
    integers are accepted as floats, booleans are no numbers, infinity is allowed.

    Args:
        owner: what the settings belong to, for the message: "the plan"; without it, the message names the class.

    Raises:
        InputError: a value is not allowed; the message names the setting and the allowed values.
    """
    for field in dataclasses.fields(values):
        declared, value = field.metadata.get(_KEY), getattr(values, field.name)
        if declared is None and isinstance(field.default, bool | str | int | float):
            declared = Setting("", default=field.default, finite=False)
        if declared is None or declared.allows(value):
            continue
        named = f"{field.name} ({declared.flag})" if declared.flag else field.name
        place = f"The setting {named} of {owner}" if owner else f"{type(values).__name__}.{named}"
        raise InputError(f"{place} must be {declared.describe()}, got {value!r:.100}.")


def parse_assignments(owner: type, assignments: list[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` strings as fields of a dataclass, by the type of their defaults.

    >>> from microdreamer_core.sir.plan import SIRPlan
    >>> parse_assignments(SIRPlan, ["t2_start=0.9", "elevation_range=-10,30"])
    {'t2_start': 0.9, 'elevation_range': (-10.0, 30.0)}

    Raises:
        InputError: the field does not exist, or the value has another type.
    """
    fields = {field.name: field for field in dataclasses.fields(owner) if field.default is not dataclasses.MISSING}
    values = {}
    for text in assignments:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in fields:
            raise InputError(f"{text!r} sets nothing; write NAME=VALUE with a name of {', '.join(fields)}.")
        try:
            values[name] = _parser(fields[name])(value)
        except ValueError as error:
            raise InputError(f"{text!r} cannot be read ({error}); the default is {fields[name].default!r}.") from error
    return values


def _parser(field: dataclasses.Field) -> Callable[[str], Any]:
    default = field.default
    if isinstance(default, tuple):
        number = int if default == () else float
        return lambda text: tuple(number(part) for part in text.split(",") if part.strip())
    if default is None:
        return lambda text: None if text.lower() == "none" else float(text)
    return type(default)


def choose_preset(presets: Mapping[str, T], name: str, kind: str, changes: Mapping[str, Any]) -> T:
    """Look up a preset dataclass by name and change some of its fields.

    Args:
        kind: what the presets are, for the messages: "plan".

    Raises:
        InputError: no such preset, no such field, or a value outside its range.
    """
    if name not in presets:
        raise InputError(f"Unknown {kind} {name!r}; choose one of {', '.join(presets)}.")
    known = [field.name for field in dataclasses.fields(presets[name])]
    if unknown := [key for key in changes if key not in known]:
        raise InputError(f"The {kind} has no {', '.join(map(repr, unknown))}; its fields are {', '.join(known)}.")
    return dataclasses.replace(presets[name], **changes)
