"""Up axes of splat and mesh files, and rotations between them and this core's world (y up, the front towards +z).

Every conversion turns about x, so that the front stays in front: of z-up files it faces -y, as in Blender.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..fields.gaussians import Parameters
from ..mesh import Placement
from ..util.vocabulary import UPS, Up

_HALF = math.sqrt(0.5)
_QUARTERS: dict[str, int] = {"+y": 0, "+z": 1, "-z": -1, "-y": 2}  # quarter turns about x from this core to a file
_TURNS = {0: (1.0, 0.0), 1: (_HALF, _HALF), -1: (_HALF, -_HALF), 2: (0.0, 1.0), -2: (0.0, -1.0)}  # w and x of their quaternions


def check_up(up: str) -> None:
    """Refuse an unknown up axis.

    Raises:
        InputError: it is none of ``UPS``.
    """
    if up not in UPS:
        raise InputError(f"up must be one of {', '.join(UPS)}, got {up!r}.")


def to_file_axes(parameters: Parameters, up: Up) -> Parameters:
    """Rotate Gaussians from this core's world to a file whose up axis is ``up``.

    Raises:
        InputError: an unknown up axis.
    """
    check_up(up)
    return _turn(parameters, _QUARTERS[up])


def from_file_axes(parameters: Parameters, up: Up) -> Parameters:
    """Invert ``to_file_axes`` exactly."""
    check_up(up)
    return _turn(parameters, -_QUARTERS[up])


def mesh_placement(up: Up) -> Placement:
    """Return the rotation of a mesh from a file whose up axis is ``up`` to this core's world."""
    check_up(up)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = _turn_points(matrix[:3, :3], -_QUARTERS[up]).T
    return Placement(matrix)


def _turn(parameters: Parameters, quarters: int) -> Parameters:
    """Turn by quarters of a circle about x; quaternions are multiplied from the left."""
    if quarters == 0:
        return parameters
    (c, s), (w, x, y, z) = _TURNS[quarters], parameters.quats.unbind(1)
    quats = torch.stack([c * w - s * x, c * x + s * w, c * y - s * z, c * z + s * y], 1)
    return parameters._replace(means=_turn_points(parameters.means, quarters), quats=quats)


def _turn_points(points: Tensor, quarters: int) -> Tensor:
    x, y, z = points.unbind(1)
    turned = {0: (x, y, z), 1: (x, -z, y), -1: (x, z, -y)}.get(quarters, (x, -y, -z))
    return torch.stack(turned, 1)
