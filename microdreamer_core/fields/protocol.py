"""What SIR asks of a 3D representation."""

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
"""The background of everything that is shown."""


@dataclass(frozen=True)
class StepRange:
    """The updates that a working copy of a field is opened for, as part of a run.

    Attributes:
        steps: of this iteration; after: of all iterations that follow it.
    """

    steps: int
    after: int


class Field(Protocol):
    """θ: a differentiable 3D representation. A value: nothing outside its own optimiser ever changes it.

    Learning rates, density control and the optimiser's state travel inside, so that a saved field resumes exactly.

    Attributes:
        kind: which representation it is, a plan's ``representation`` and the key of saved states.
        step: number of updates behind this field.
        device: where its tensors lie.
    """

    kind: ClassVar[str]

    @property
    def step(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Render:
        """Pictures of the field.

        Args:
            background: [3] in [0,1]; None is the field's own: what it has learned for itself, or white. Whoever shows, films or
                meshes a field gives ``WHITE``.
        """
        ...

    def clone(self) -> Self:
        """A deep copy."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same field on another device."""
        ...

    def summary(self) -> str:
        """What it is made of, in a few words for progress and reports."""
        ...

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and all other values as JSON: the content of a saved state (``io/state.py``)."""
        ...

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> Self:
        """The field that :meth:`to_state` took apart.

        Raises:
            InputError: something is missing or does not fit.
        """
        ...

    def optimizer(self, stretch: StepRange | None = None) -> FieldOptimizer[Self]:
        """Open a private working copy of this field for some updates; ``stretch`` says which of a run, where that is known."""
        ...


FieldT = TypeVar("FieldT", bound=Field)
_FieldT_co = TypeVar("_FieldT_co", bound=Field, covariant=True)


class FieldOptimizer(Protocol[_FieldT_co]):
    """A working copy of a field while it learns; the field that opened it stays as it was."""

    def render(self, cameras: Cameras, background: Tensor | None = None, *, colors_only: bool = False) -> Render:
        """Differentiable pictures of the current parameters; backgrounds as for :meth:`Field.render`.

        Args:
            colors_only: gradients reach colours and leave the geometry alone.

        Raises:
            InputError: ``colors_only`` of a field whose colours and geometry share parameters.
        """
        ...

    def step(self, loss: Tensor, render: Render) -> None:
        """Backpropagate ``loss``, update the parameters, then do what the representation does between updates
        (density control); ``render`` is the picture set that ``loss`` was computed from."""
        ...

    def finish(self) -> _FieldT_co:
        """The learned field as a value, detached from this working copy."""
        ...
