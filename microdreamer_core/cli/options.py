"""Command-line options that are declared together with their settings."""

from __future__ import annotations

import argparse
from typing import Any

from ..util.settings import Setting, settings_of


def add_setting(command: argparse.ArgumentParser, declared: Setting, metavar: str | None = None, note: str = "") -> None:
    """Add a setting's option; it is None unless given, so that presets keep their values.

    Args:
        metavar: name of its value in the help text.
        note: text added to its help text and default.
    """
    assert declared.flag is not None, "only settings with a command-line option"
    default = "" if declared.default is None else f"default {declared.default}"
    remarks = "; ".join(text for text in (default, note) if text)
    number: dict[str, Any] = {"type": type(declared.default), "metavar": metavar}
    kind: dict[str, Any] = {"choices": declared.choices} if declared.choices else number
    command.add_argument(declared.flag, help=f"{declared.help} ({remarks})" if remarks else declared.help, **kind)


def collect_options(owner: type, args: argparse.Namespace) -> dict[str, Any]:
    """Return the values given on the command line for a dataclass's settings, by field name."""
    names = {
        name: declared.flag.lstrip("-").replace("-", "_") for name, declared in settings_of(owner).items() if declared.flag
    }
    values = {name: getattr(args, option, None) for name, option in names.items()}
    return {name: value for name, value in values.items() if value is not None}
