"""Widgets whose range, default and help are those of a setting of the core."""

from __future__ import annotations

from typing import Any

from ..microdreamer_core.util.settings import settings_of
from .compat import ADVANCED, io

SEED_MAX = 0xFFFFFFFFFFFFFFFF
_LARGEST = 100  # of a widget whose number has no bound
_LEFT_OPEN = (None, -1, "preset")
"""Values that mean "from the preset": graphs of earlier versions hold -1 or "preset" for these; so do widgets if the frontend
cannot know the preset, because its input is linked."""


def setting_input(
    owner: type,
    name: str,
    field: str = "",
    *,
    default: Any = None,
    step: float = 1,
    optional: bool = False,
    advanced: bool = False,
) -> io.Input:
    """Make the widget of a dataclass's setting.

    Args:
        owner: the dataclass.
        name: of the input; field: of the setting, where it is called otherwise.
        default: in place of the dataclass's.
        optional: whether the input may be left out.
        advanced: hidden until the user asks for more widgets, in ComfyUI versions that do so.
    """
    declared = settings_of(owner)[field or name]
    default = declared.default if default is None else default
    tooltip = f"{declared.help[0].upper()}{declared.help[1:]}."
    extra = ADVANCED if advanced else {}
    if declared.choices:
        choices = list(declared.choices)
        return io.Combo.Input(name, optional=optional, options=choices, default=default, tooltip=tooltip, **extra)
    kind, socket = (int, io.Int) if isinstance(default, int) else (float, io.Float)
    low, high = kind(declared.low or 0), kind(_LARGEST if declared.high is None else declared.high)
    return socket.Input(name, optional=optional, default=default, min=low, max=high, step=step, tooltip=tooltip, **extra)


def seed_input(
    tooltip: str = "Another seed gives another result; it travels with the field through the whole run.",
) -> io.Input:
    """Make the widget of a seed, which the frontend can change after every run."""
    return io.Int.Input("seed", default=0, min=0, max=SEED_MAX, control_after_generate=True, tooltip=tooltip)


def drop_open(**options: Any) -> dict[str, Any]:
    """Return the options that have a value; the others are the preset's."""
    return {name: value for name, value in options.items() if value not in _LEFT_OPEN}
