"""Options of the command line that are declared where their settings are."""

from __future__ import annotations

import argparse
from typing import Any

from ..util.settings import Setting, settings_of


def add_setting(command: argparse.ArgumentParser, declared: Setting, metavar: str | None = None, note: str = "") -> None:
    """Add a setting's option; it stays None where nobody chose, so that presets keep their own values.

    Args:
        metavar: what its value is called in the help text.
        note: what else to say beside its help text and default.
    """
    assert declared.flag is not None, "only settings with an option of their own"
    default = "" if declared.default is None else f"default {declared.default}"
    remarks = "; ".join(text for text in (default, note) if text)
    number: dict[str, Any] = {"type": type(declared.default), "metavar": metavar}
    kind: dict[str, Any] = {"choices": declared.choices} if declared.choices else number
    command.add_argument(declared.flag, help=f"{declared.help} ({remarks})" if remarks else declared.help, **kind)


def chosen(owner: type, args: argparse.Namespace) -> dict[str, Any]:
    """The values of a dataclass's settings that the command line was given, by field name."""
    names = {
        name: declared.flag.lstrip("-").replace("-", "_") for name, declared in settings_of(owner).items() if declared.flag
    }
    values = {name: getattr(args, option, None) for name, option in names.items()}
    return {name: value for name, value in values.items() if value is not None}
