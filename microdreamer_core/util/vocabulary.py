"""Names and constants shared by several packages; imports nothing heavy, so that the command line starts fast."""

from __future__ import annotations

from typing import Literal, get_args

Representation = Literal["gaussians", "nerf"]
Background = Literal["white", "learned"]
Norm = Literal["l1", "l2"]
"""Norm of a loss: ℓ1, the paper's, or squared ℓ2."""

Change = Literal["everything", "appearance", "colours"]
"""What fitting may change of Gaussians; their appearance is colours and opacity."""
CHANGE_HELP = (
    "what may change of the Gaussians: everything, appearance (colours and opacity), or colours alone; without everything, "
    "places, sizes and their number stay"
)
Up = Literal["-y", "+y", "-z", "+z"]
"""The up axis of a file: -y in 3D Gaussian splatting scenes, +y in this core, +z in Blender and many scanners."""
UPS: tuple[Up, ...] = get_args(Up)
SPLAT_FORMATS = ("ply", "compressed.ply", "spz", "splat", "glb")
"""Formats in which splats are written, by the ending of their files, the usual one first."""

SAMPLERS = ("ddim", "euler", "dpmpp_2m", "unipc", "lcm")
DEFAULT_FOV_Y = 49.1
"""Vertical field of view in degrees, the same for all supported models."""
