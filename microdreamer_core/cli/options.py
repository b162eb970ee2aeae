"""Command-line options that are declared together with their settings."""

from __future__ import annotations

import argparse
from typing import Any

from ..meshing.settings import MeshSettings
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


def add_mesh_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the mesh; read by ``mesh_settings``."""
    declared = settings_of(MeshSettings)
    add_setting(command, declared["target_faces"], "N", note="with lgm 50000")
    add_setting(command, declared["texture_size"], "PIXELS")
    add_setting(
        command,
        declared["extractor"],
        note="lgm: a NeRF of the Gaussians, its density 5 on 256 points a side, at most 50000 triangles, fitted to renders, a "
        "minute more on a CPU",
    )
    add_setting(command, declared["nerf_steps"], "N")
    add_setting(command, declared["nerf_size"], "PIXELS", note="512 steps take 30 to 40 s of a CPU core, 12 s with 64 pixels")


def mesh_settings(args: argparse.Namespace) -> MeshSettings:
    """Return the mesh settings from the command line."""
    return MeshSettings.of_extractor(**{"extractor": "density"} | collect_options(MeshSettings, args))
