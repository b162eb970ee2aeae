"""The inputs of a report: its sizes, and its diffusion model (the exact oracle, the shipped network or any checkpoint)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..checkpoints.registry import EMBEDDED, ModelSpec, load_model, model_spec
from ..diffusion.analytic import AnalyticDiffusion, Imperfection, toy_renderer
from ..diffusion.embedded import toys
from ..diffusion.protocol import Checkpoint, MultiViewDiffusion, ViewCount
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.sds import SDS_PRESETS, SDSSettings
from ..util.devices import choose_device
from ..util.files import list_files, stamp_files
from ..util.vocabulary import Representation
from .subjects import Subject

ANALYTIC = "analytic"
"""The oracle: the exact score of 12 objects, with deliberate errors of camera position (8 degrees) and tint (0.15), as a
learned model has; the reference image tells it which object is meant."""

IMPERFECTION = {"camera_degrees": 8.0, "tint": 0.15}

_BLOCK, _MIXTURE = 8, 12
_LIKE_THE_PAPER = {"embedded": "embedded-high"}
"""The plan with the paper's K, I and N in place of one that saves evaluations."""


@dataclass(frozen=True)
class Shape:
    """A file of another system, and what it should look like; without a plan it is only scored."""

    path: Path
    picture: Path | None
    prompt: str | None
    plan: SIRPlan | None


@dataclass(frozen=True)
class Refinement:
    """What a report refines: the files that can be read, and the model that does it."""

    shapes: tuple[Shape, ...]
    model: str


@dataclass(frozen=True)
class Setup:
    """The settings of a report.

    Attributes:
        folder: output folder.
        model: "analytic", "embedded" or a checkpoint; stamp: hash of its weights.
        objects: number of procedural objects; seeds: seeds of every method.
        iterations: K; sds_steps: updates of SDS.
        representations: the fields optimised.
        device: torch device.
        pictures, methods, clip, elevation: for Table III's protocol, see ``pictures``.
        refinement: for the protocol ``refine``, see ``refinement``.
    """

    folder: Path
    model: str
    stamp: str
    objects: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: int = 20
    sds_steps: int = 400
    representations: tuple[Representation, ...] = ("gaussians",)
    device: str = "auto"
    pictures: tuple[Path, ...] = ()
    methods: tuple = ()
    clip: Path | None = None
    elevation: float = 0.0
    refinement: Refinement | None = None

    @property
    def oracle(self) -> bool:
        """Whether the model is the exact oracle, whose times mean nothing and whose latents are pixels."""
        return self.model == ANALYTIC


def get_spec(model: str) -> ModelSpec:
    """Look up a model's specification; the oracle has that of the shipped network."""
    return model_spec(EMBEDDED if model == ANALYTIC else model)


def get_view_count(model: str) -> ViewCount:
    """Look up how many views a model denoises together."""
    return ViewCount() if model == ANALYTIC else model_spec(model).view_count


def get_base_plan(model: str, representation: Representation = "gaussians", **changes: Any) -> SIRPlan:
    """Look up the plan that the protocols vary: the model's own; exact conditional distributions need no guidance."""
    usual = {"guidance_scale": 1.0} if model == ANALYTIC else {}
    name = get_spec(model).suited_to(representation)
    return get_plan(_LIKE_THE_PAPER.get(name, name), **usual, **changes)


def get_baseline(model: str) -> SDSSettings:
    """Look up the SDS that a model's own authors or threestudio use; plain SDS for the oracle and the shipped network."""
    own = get_spec(model).suited_to("gaussians").removesuffix("-gaussians")
    return SDS_PRESETS.get(own, SDS_PRESETS["sds"])


def describe_model(model: str) -> str:
    """Describe a model for the report's readers."""
    if model != ANALYTIC:
        return f"{Path(model).name} ({stamp_model(model)})"
    angle, tint = IMPERFECTION["camera_degrees"], IMPERFECTION["tint"]
    return (
        f"{model}: no network, but the exact score of {_MIXTURE} objects; the reference picture tells it which is meant, "
        f"and it errs on purpose in where each camera stands ({angle:g} degrees) and in tint ({tint:g})"
    )


def stamp_model(model: str) -> str:
    """Return a stamp that distinguishes a model's weights from others of the same name."""
    from ..diffusion.embedded.checkpoint import SHIPPED

    return ANALYTIC if model == ANALYTIC else stamp_files(SHIPPED if model == EMBEDDED else Path(model))


def measure_weights(model: str) -> int:
    """Return the MB of a checkpoint's files; 0 for the oracle and the shipped network, which a worker's memory includes."""
    if model in (ANALYTIC, EMBEDDED):
        return 0
    return sum(file.stat().st_size for file in list_files(Path(model))) // 1_000_000


def condition_model(model: str, index: int, subject: Subject, seed: int, plan: SIRPlan, device: str) -> MultiViewDiffusion:
    """Condition a model on an object.

    Args:
        index, subject: the object. seed: of the oracle's errors.
    """
    if model != ANALYTIC:
        return load_source(model, device).condition(subject.reference)
    first = index // _BLOCK * _BLOCK  # the oracle has the eight subjects of this one's block, and four other toys
    others = [toys.make_toy(toys.HELD_OUT + 1000 + i, list(toys.CATEGORIES)[i]) for i in range(_MIXTURE - _BLOCK)]
    objects = toy_renderer([toys.make_held_out_toy(first + i) for i in range(_BLOCK)] + others)
    return AnalyticDiffusion(
        objects,
        subject.images.shape[1],
        reference=subject.reference,
        radius=plan.radius,
        fov_y=plan.fov_y,
        imperfection=Imperfection(**IMPERFECTION, seed=seed),
    )


@lru_cache(maxsize=1)
def load_source(model: str, device: str) -> Checkpoint:
    """Load a network, once per process."""
    return load_model(model, choose_device(device))
