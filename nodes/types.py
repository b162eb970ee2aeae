"""The pack's own socket types, and the immutable values that travel on them."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.checkpoints.load import ModelOptions
from ..microdreamer_core.checkpoints.registry import EMBEDDED, check_distance, own_radii
from ..microdreamer_core.diffusion.protocol import MultiViewDiffusion, MultiViewModel
from ..microdreamer_core.errors import InputError, NumericalError
from ..microdreamer_core.fields.gaussians import Gaussians
from ..microdreamer_core.fields.protocol import Field
from ..microdreamer_core.reference import Reference
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.step import Step
from .compat import compute_device, io, load_to_device
from .native_mesh import from_native_mesh as from_native_mesh
from .native_mesh import texture_image as texture_image
from .native_mesh import to_native_mesh as to_native_mesh

Model = io.Custom("MD_MODEL")
Condition = io.Custom("MD_CONDITION")
Rig = io.Custom("MD_CAMERAS")
"""A :class:`Step` of an iteration, mostly a :class:`ConditionedStep`, or plain :class:`Cameras` for rendering only."""
Plan = io.Custom("MD_PLAN")
FieldSocket = io.Custom("MD_FIELD")
Flow = io.Custom("MD_FLOW")
Transform = io.Custom("MD_TRANSFORM")
"""A :class:`~..microdreamer_core.mesh.Placement` of a mesh."""

EXAMPLES = Path(__file__).resolve().parent.parent / "samples"
"""Images and splats that come with the pack. The folder is not named "examples", because ComfyUI would then look for workflow
templates there instead of in ``workflows``."""


@dataclass(frozen=True)
class LoadedModel:
    """A multi-view model with its ComfyUI model patcher, None if the model manages its own memory. ``name`` (a path) and
    ``options`` (how to load it) are stored in saved runs."""

    model: MultiViewModel
    patcher: Any | None
    name: str
    options: ModelOptions | None = None


@dataclass(frozen=True)
class Conditioned:
    """A conditioned model. ``reference`` is None without an image, and there are then no reference losses; ``prompt`` and
    ``negative`` are its texts."""

    diffusion: MultiViewDiffusion
    reference: Reference | None
    source: LoadedModel
    prompt: str | None = None
    negative: str = ""

    def check_cameras(self, plan: SIRPlan) -> None:
        """Refuse a plan whose camera distance is not the model's.

        Raises:
            InputError: the distance differs; the message names the right preset.
        """
        if self.source.patcher is not None:  # native models, which ComfyUI moves, take any plan
            model = self.source.model
            preset = model.nerf_preset if plan.representation == "nerf" else model.preset
            check_distance(plan, own_radii(model), preset, Path(self.source.name).name)

    def ready(self) -> MultiViewDiffusion:
        """Return the diffusion model on its device, with its own evaluation counter: cached values are never changed."""
        load_to_device(self.source.patcher)
        fresh = copy.copy(self.diffusion)
        fresh.evaluations = 0
        return fresh


@dataclass(frozen=True)
class ConditionedStep(Step):
    """A step that carries the conditioned model to the stages; None if none was linked to the node that made its cameras."""

    condition: Conditioned | None = None


@dataclass(frozen=True)
class LastFit:
    """How Reconstruct Steps fitted a field.

    Attributes:
        plan: of the run.
        condition: of the run; a weak reference, so that no field keeps a model in memory.
        size: height in pixels of its targets if they were larger than the model's images, else 0. Renders of later passes are
            as large: at fewer pixels the renderer's low-pass filter would swell a field that was learned at more.
    """

    plan: SIRPlan
    condition: weakref.ref[Conditioned]
    size: int = 0


@dataclass(frozen=True)
class FieldState:
    """A field θ and the state of its run.

    Attributes:
        seed: determines all random numbers of the run.
        k: the last finished iteration; None before the initialisation, -1 after it.
        fit: how Reconstruct Steps made the field; None if something else did.
        run: names the run whose iterations are kept (``history``), "" without.
    """

    field: Field
    seed: int = 0
    k: int | None = None
    fit: LastFit | None = None
    run: str = ""

    @property
    def next_k(self) -> int:
        """The next iteration; -1 is the initialisation."""
        return -1 if self.k is None else self.k + 1

    def belongs_to(self, step: Step) -> bool:
        """Whether the field is the one that enters this iteration, or what the iteration has made of it."""
        return self.seed == step.seed and self.next_k - step.k in (0, 1)

    def describe(self) -> str:
        """Name the place of the field in its run, for error messages."""
        return f"seed {self.seed}, " + ("before the initialisation" if self.k is None else f"after iteration {self.k}")

    def let_go(self, kept: tuple[FieldState, ...]) -> None:
        """Free the memory of a NeRF that is not needed again, although ComfyUI keeps every node's outputs.

        The only mutation of a value in this pack; Gaussians, which are small, are kept.

        Args:
            kept: states whose fields are still needed; if this one's is among them, nothing happens.
        """
        if self.field.kind == "nerf" and all(self.field is not other.field for other in kept):
            object.__setattr__(self, "field", _LetGo())


class _LetGo:
    """Placeholder for a freed field: any attribute access raises an error that says so."""

    kind = "nothing"

    def __getattr__(self, name: str) -> Any:
        raise InputError(
            "This NeRF belongs to an earlier pass of a loop and was freed to save memory; take the field of SIR Loop End, or "
            "run the graph again."
        )


def expect_step(value: object) -> Step:
    """Return the step on a cameras socket, for the stages that need one.

    Raises:
        InputError: no cameras, or cameras that belong to no iteration.
    """
    if isinstance(value, Cameras):
        raise InputError(
            "These cameras belong to no iteration and are for rendering only; link field and plan to Camera Layout, or use "
            "Sample Cameras."
        )
    return expect(value, Step, "cameras")


@cache
def _shown(kind: type[Exception]) -> type[Exception]:
    """Make a subclass whose name users can read: ComfyUI shows the module too, which begins with the path of the pack."""
    return kind if kind.__module__ == "MicroDreamer" else type(kind.__name__, (kind,), {"__module__": "MicroDreamer"})


def expect_condition(condition: Conditioned | None, step: Step) -> Conditioned:
    """Return the linked condition; without a link, the one that the cameras carry.

    Raises:
        InputError: there is none.
    """
    if condition is None and isinstance(step, ConditionedStep):
        condition = step.condition
    if condition is None:
        raise InputError("There is no conditioned model; link 'condition' here, or to the node that made the cameras.")
    return expect(condition, Conditioned, "condition")


def condition_input(tooltip: str) -> io.Input:
    """Return a stage's input for the conditioned model, which cameras may carry."""
    return Condition.Input(
        "condition",
        optional=True,
        tooltip=f"{tooltip} Without a link, the one of the node that made the cameras; a link takes its place for this stage.",
    )


def check_count(images: Tensor, step: Step, mend: str) -> None:
    """Refuse images that are not one for each camera.

    Raises:
        InputError: their number differs; ``mend`` says what to link.
    """
    if images.ndim != 4 or len(images) != len(step.cameras):
        raise InputError(
            f"The pictures must have shape [{len(step.cameras)}, height, width], one for each camera, got "
            f"{list(images.shape[:-1])}; {mend}."
        )


@dataclass(frozen=True)
class Views:
    """Where images or latents come from. Nodes of this pack note it on the tensors they make; other nodes' have no note.

    Attributes:
        c2w: [V,4,4] of their cameras.
        stranger: names the field that was rendered if it is not the one of the cameras' iteration, else empty.
    """

    c2w: Tensor
    stranger: str = ""

    def note_on(self, views: Tensor) -> Tensor:
        """Note this on images or latents, and return them."""
        vars(views)["microdreamer"] = self
        return views


def check_views(views: Tensor, step: Step, name: str) -> None:
    """Refuse images or latents of which is known that they are not views of this iteration.

    Args:
        name: of the input.

    Raises:
        InputError: they come from other cameras, or show another field.
    """
    known = getattr(views, "microdreamer", None)
    if not isinstance(known, Views):
        return
    if not torch.equal(known.c2w, step.cameras.c2w):
        raise InputError(
            f"The {name} were made with other cameras than the ones linked here; link one Sample Cameras (or Camera Layout) to "
            "all stages of an iteration."
        )
    if known.stranger:
        raise InputError(
            f"The {name} show another field ({known.stranger}) than the one whose iteration this is (seed {step.seed}, "
            f"iteration {step.k}); link one field, in a loop that of SIR Loop Start, to Sample Cameras, Render Views and "
            "Reconstruct Steps."
        )


ExecuteT = TypeVar("ExecuteT", bound=Callable[..., io.NodeOutput])
ValueT = TypeVar("ValueT")


def core_call(execute: ExecuteT) -> ExecuteT:
    """Decorate ``execute``: leave ComfyUI's inference mode, which has no gradients, and name the node in errors.

    Inference tensors in the inputs are cloned, because they cannot take part in backward passes.
    """

    @wraps(execute)
    def run(cls: Any, *args: Any, **inputs: Any) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad(), _suitable_threads(inputs):
            inputs = {name: _ordinary(value) for name, value in inputs.items()}
            try:
                return execute(cls, *args, **inputs)
            except (InputError, NumericalError) as error:
                raise _shown(type(error))(f"{cls.TITLE}{_where(inputs)}: {error}") from error

    return cast(ExecuteT, run)  # it has the signature of ``execute``


@contextmanager
def _suitable_threads(inputs: dict) -> Iterator[None]:
    """On a CPU, leave one core to the browser except with large models: torch's threads wait by spinning, so that small
    operations take many times longer as soon as one thread shares its core."""
    before = torch.get_num_threads()
    values = [value.condition if isinstance(value, ConditionedStep) else value for value in inputs.values()]
    models = [value.source if isinstance(value, Conditioned) else value for value in values]
    large = any(isinstance(value, LoadedModel) and value.name != EMBEDDED for value in models)
    try:
        if not large and compute_device().type == "cpu":
            torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - 1)))
        yield
    finally:
        torch.set_num_threads(before)


def _ordinary(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_inference():
        return value.clone()
    if isinstance(value, dict):
        return {key: _ordinary(item) for key, item in value.items()}
    return value


def _where(inputs: dict) -> str:
    step = next((value for value in inputs.values() if isinstance(value, Step)), None)
    return "" if step is None else f" (iteration {step.k})"


def rig_of(cameras: Step | Cameras) -> Cameras:
    """Return the cameras on a cameras socket, which may carry a whole step.

    Raises:
        InputError: it is neither.
    """
    return cameras.cameras if isinstance(cameras, Step) else expect(cameras, Cameras, "cameras")


def expect(value: object, kind: type[ValueT], name: str) -> ValueT:
    """Return the value if it has the socket's type; links through untyped nodes may bring anything.

    Raises:
        InputError: it has another type.
    """
    if not isinstance(value, kind):
        raise InputError(
            f"The input {name!r} must be a {kind.__name__}, got {type(value).__name__}; check what is linked to it."
        )
    return value


def expect_gaussians(value: object, name: str) -> tuple[FieldState, Gaussians]:
    """Return the state of a field that must be Gaussians, and the Gaussians.

    Raises:
        InputError: not a field, or a NeRF.
    """
    state = expect(value, FieldState, name)
    if not isinstance(state.field, Gaussians):
        raise InputError(f"This works on Gaussians, got {state.field.summary()}; put NeRF to Gaussians before it.")
    return state, state.field
