"""The protocols of 3D representations and their optimisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from ..cameras import Cameras
from ..render.protocol import Render

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

WHITE = torch.ones(3)
"""The background [3] for display, video and meshing."""


@dataclass(frozen=True)
class StepRange:
    """The updates of one optimiser, as part of a run.

    Attributes:
        steps: in this iteration; after: in all later iterations.
    """

    steps: int
    after: int


class Field(Protocol):
    """θ: a differentiable 3D representation, immutable: optimisers work on a copy.

    Learning rates, density control and the optimiser's state are part of it, so that a saved field resumes exactly.

    Attributes:
        kind: its name in a plan's ``representation`` and in saved states.
        step: number of updates so far.
        device: of its tensors.
    """

    kind: ClassVar[str]

    @property
    def step(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Render the field from all cameras in one call.

        Args:
            background: [3] in [0,1]; None for the field's own: learned, or white. Pass ``WHITE`` for display, video and
                meshing.
        """
        ...

    def clone(self) -> Self:
        """Return a deep copy."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the field to another device."""
        ...

    def summary(self) -> str:
        """Describe the field in a few words, for progress and reports."""
        ...

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors by name, and all other values as JSON: the content of a saved state (``io/state.py``)."""
        ...

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> Self:
        """Restore a field from :meth:`to_state`.

        Raises:
            InputError: a value is missing or invalid.
        """
        ...

    def optimizer(self, stretch: StepRange | None = None) -> FieldOptimizer[Self]:
        """Create an optimiser on a private copy of this field; ``stretch`` is its place in the run, if known."""
        ...


FieldT = TypeVar("FieldT", bound=Field)
_FieldT_co = TypeVar("_FieldT_co", bound=Field, covariant=True)


class FieldOptimizer(Protocol[_FieldT_co]):
    """The optimiser of a field, on a working copy; the original field is unchanged."""

    def render(self, cameras: Cameras, background: Tensor | None = None, *, colors_only: bool = False) -> Render:
        """Render the current parameters differentiably; backgrounds as for :meth:`Field.render`.

        Args:
            colors_only: detach the geometry, so that only colours get gradients.

        Raises:
            InputError: ``colors_only`` is set, but colours and geometry share parameters.
        """
        ...

    def step(self, loss: Tensor, render: Render) -> None:
        """Backpropagate ``loss``, update the parameters, then run the representation's own steps, such as density control.

        Args:
            loss: scalar, computed from ``render``.
            render: from :meth:`render` of this optimiser.
        """
        ...

    def finish(self) -> _FieldT_co:
        """Return the optimised field, independent of this optimiser."""
        ...
