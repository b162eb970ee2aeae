"""What SIR asks of a 3D representation."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..cameras import Cameras
from ..render.protocol import Render


class Field(Protocol):
    """θ: a differentiable 3D representation. A value: nothing outside its own optimiser ever changes it.

    Learning rates, density control and the optimiser's state travel inside, so that a saved field resumes exactly.

    Attributes:
        step: number of updates behind this field.
    """

    step: int

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Pictures of the field; white background when none is given."""
        ...

    def clone(self) -> Field:
        """A deep copy."""
        ...

    def optimizer(self) -> FieldOptimizer:
        """Open a private working copy of this field for a run of updates."""
        ...


class FieldOptimizer(Protocol):
    """A working copy of a field while it learns; the field that opened it stays as it was."""

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Differentiable pictures of the current parameters."""
        ...

    def step(self, loss: Tensor, render: Render) -> None:
        """Backpropagate ``loss``, update the parameters, then do what the representation does between updates
        (density control); ``render`` is the picture set that ``loss`` was computed from."""
        ...

    def finish(self) -> Field:
        """The learned field as a value, detached from this working copy."""
        ...
