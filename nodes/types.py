"""The pack's own socket types, and the immutable values that travel on them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
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
from ..microdreamer_core.mesh import Mesh
from ..microdreamer_core.reference import Reference
from ..microdreamer_core.sir.plan import SIRPlan
from ..microdreamer_core.sir.step import Step
from ..microdreamer_core.util.colors import decode_srgb, encode_srgb
from .compat import compute_device, io, load_to_device, native_mesh

Model = io.Custom("MD_MODEL")
Condition = io.Custom("MD_CONDITION")
Rig = io.Custom("MD_CAMERAS")
"""A :class:`Step` of an iteration, or plain :class:`Cameras` that are for looking only."""
Plan = io.Custom("MD_PLAN")
FieldSocket = io.Custom("MD_FIELD")
Flow = io.Custom("MD_FLOW")

EXAMPLES = Path(__file__).resolve().parent.parent / "samples"
"""Pictures and splats that come with the pack. The folder is not called "examples": the host would serve it in place of
``workflows`` when it is asked for a template."""


@dataclass(frozen=True)
class LoadedModel:
    """A multi-view model and the object through which the host moves it, None when the model sees to that itself.
    ``name`` and ``options`` are what a saved run remembers: a path, and how to load it."""

    model: MultiViewModel
    patcher: Any | None
    name: str
    options: ModelOptions | None = None


@dataclass(frozen=True)
class Conditioned:
    """A model that knows what to make. Without a picture (``reference`` None) nothing is compared to one; ``prompt`` and
    ``negative`` are what it was told in words."""

    diffusion: MultiViewDiffusion
    reference: Reference | None
    source: LoadedModel
    prompt: str | None = None
    negative: str = ""

    def check_cameras(self, plan: SIRPlan) -> None:
        """Refuse a plan whose cameras stand elsewhere than those that the model was made for.

        Raises:
            InputError: they do; the sentence names the right preset.
        """
        if self.source.patcher is not None:  # native models, which the host moves, take any plan
            model = self.source.model
            preset = model.nerf_preset if plan.representation == "nerf" else model.preset
            check_distance(plan, own_radii(model), preset, Path(self.source.name).name)

    def ready(self) -> MultiViewDiffusion:
        """The diffusion model on its device, with its own count of evaluations: a cached value is never changed."""
        load_to_device(self.source.patcher)
        fresh = copy.copy(self.diffusion)
        fresh.evaluations = 0
        return fresh


@dataclass(frozen=True)
class FieldState:
    """θ and where its run stands.

    Attributes:
        seed: all draws of the run derive from it.
        k: the last finished iteration; None before the initialisation, -1 after it.
    """

    field: Field
    seed: int = 0
    k: int | None = None

    @property
    def next_k(self) -> int:
        """The iteration that comes next; -1 is the initialisation."""
        return -1 if self.k is None else self.k + 1

    def let_go(self, kept: tuple[FieldState, ...]) -> None:
        """Free the memory of a NeRF that nothing will ask for again, although hosts keep every value that a node returned.

        The one change of a value in this pack; Gaussians, which are small, stay.

        Args:
            kept: states whose fields are still needed; where this one's is among them, nothing happens.
        """
        if self.field.kind == "nerf" and all(self.field is not other.field for other in kept):
            object.__setattr__(self, "field", _LetGo())


class _LetGo:
    """In place of a field that was let go: whatever is asked of it says so."""

    kind = "nothing"

    def __getattr__(self, name: str) -> Any:
        raise InputError(
            "This NeRF belongs to an earlier pass of a loop and was let go to save memory; take the field of SIR Loop End, or "
            "run the graph again."
        )


def expect_step(value: object) -> Step:
    """The step on a cameras socket, for the stages that need one.

    Raises:
        InputError: there are no cameras, or cameras that belong to no iteration.
    """
    if isinstance(value, Cameras):
        raise InputError(
            "These cameras belong to no iteration and are for rendering only; link field and plan to Camera Layout, or use "
            "Sample Cameras."
        )
    return expect(value, Step, "cameras")


ExecuteT = TypeVar("ExecuteT", bound=Callable[..., io.NodeOutput])
ValueT = TypeVar("ValueT")


def core_call(execute: ExecuteT) -> ExecuteT:
    """For every ``execute``: leave the host's inference mode, in which nothing can learn, and name the node in errors.

    Tensors that come in are made ordinary ones by copying them, because those made in inference mode cannot take part in
    backward passes.
    """

    @wraps(execute)
    def run(cls: Any, *args: Any, **inputs: Any) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad(), _suitable_threads(inputs):
            inputs = {name: _ordinary(value) for name, value in inputs.items()}
            try:
                return execute(cls, *args, **inputs)
            except (InputError, NumericalError) as error:
                raise type(error)(f"{cls.TITLE}{_where(inputs)}: {error}") from error

    return cast(ExecuteT, run)  # which takes what ``execute`` takes


@contextmanager
def _suitable_threads(inputs: dict) -> Iterator[None]:
    """On a CPU, leave a core to the browser unless a large model works: threads of torch wait for each other by spinning, so
    that small work takes many times longer as soon as one of them has to share its core."""
    before = torch.get_num_threads()
    models = [value.source if isinstance(value, Conditioned) else value for value in inputs.values()]
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


def expect(value: object, kind: type[ValueT], name: str) -> ValueT:
    """The value if it is what the socket promises: links through untyped nodes may bring anything.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, kind):
        raise InputError(
            f"The input {name!r} must be a {kind.__name__}, got {type(value).__name__}; check what is linked to it."
        )
    return value


def expect_gaussians(value: object, name: str) -> tuple[FieldState, Gaussians]:
    """The state of a field that must be Gaussians, and these.

    Raises:
        InputError: it is no field, or a NeRF.
    """
    state = expect(value, FieldState, name)
    if not isinstance(state.field, Gaussians):
        raise InputError(f"This works on Gaussians, got {state.field.summary()}; put NeRF to Gaussians before it.")
    return state, state.field


def to_native_mesh(mesh: Mesh) -> Any:
    """A native MESH that other packs' nodes can read, with the colours, uvs and texture that the host's class has room for;
    whatever it has not stays for our own nodes."""
    native = native_mesh(**_native_values(mesh))
    native.microdreamer = mesh
    return native


def from_native_mesh(native: Any) -> Mesh:
    """The mesh of a MESH socket, ours or a foreign one; of a batch, the first.

    Where other nodes have changed one of ours, what they say counts; what their host's class has no room for stays as long as
    the triangles are the same. Vertex colours that tint a texture are left out.

    Raises:
        InputError: there are no vertices and faces in it.
    """
    kept = getattr(native, "microdreamer", None)
    if isinstance(kept, Mesh) and _unchanged(native, kept):
        return kept
    values = _first_of_batch(native)
    vertices, faces = values.pop("vertices", None), values.pop("faces", None)
    if vertices is None or faces is None:
        raise InputError(f"A MESH needs vertices and faces, got {type(native).__name__}; link a node that makes a mesh.")
    colors = values.pop("vertex_colors", None)
    if colors is not None:
        values["colors"] = encode_srgb(colors[:, :3])
    if isinstance(kept, Mesh) and len(kept.vertices) == len(vertices) and torch.equal(kept.faces, faces.long()):
        unknown = [name for name, ours in _MESH_NAMES.items() if not hasattr(native, name) and ours != "normals"]
        values |= {_MESH_NAMES[name]: getattr(kept, _MESH_NAMES[name]) for name in unknown}
    if values.get("uvs") is None:
        values.pop("texture", None)
    return Mesh(vertices, faces.long(), **values)


_MESH_NAMES = {"uvs": "uvs", "vertex_colors": "colors", "texture": "texture", "normals": "normals"}
"""Optional attributes of a native MESH, and what they are called in ours."""


def _native_values(mesh: Mesh) -> dict[str, Tensor]:
    """What a native MESH holds of ours; vertex colours are linear there, as in glTF, and multiply a texture."""
    colors = None if mesh.colors is None or mesh.texture is not None else decode_srgb(mesh.colors)
    values = {"vertices": mesh.vertices, "faces": mesh.faces, "uvs": mesh.uvs, "vertex_colors": colors}
    values |= {"texture": mesh.texture, "normals": mesh.normals}
    return {name: value[None] for name, value in values.items() if value is not None}


def texture_image(mesh: Mesh) -> Tensor:
    """[1,T,T,3] the texture of a baked mesh as a native IMAGE, a copy of its own."""
    return mesh.textured()[None].clone()


def _unchanged(native: Any, mesh: Mesh) -> bool:
    """Whether a native MESH still holds what we put into it."""
    handed = _native_values(mesh)
    for name in ("vertices", "faces", *_MESH_NAMES):
        if not hasattr(native, name):
            continue
        ours, theirs = handed.get(name), getattr(native, name)
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and (ours.shape != theirs.shape or not torch.equal(ours, theirs.to(ours))):
            return False
    return True


def _first_of_batch(native: Any) -> dict[str, Tensor]:
    """The attributes of the first mesh of a batch, without its padding."""
    counts = {"faces": "face_counts", "texture": None}
    values = {}
    for name in ("vertices", "faces", *_MESH_NAMES):
        batch = getattr(native, name, None)
        if batch is None or not len(batch):
            continue
        count = getattr(native, counts.get(name, "vertex_counts") or "", None)
        value = batch[0] if count is None else batch[0, : int(count[0])]
        values[name] = value.detach().cpu().clone()
        if name != "faces":
            values[name] = values[name].float()
    return values
