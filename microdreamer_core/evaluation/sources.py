"""The inputs of a report: its sizes, and its diffusion model (the exact oracle, the shipped network or any checkpoint)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints.registry import EMBEDDED, ModelSpec, load_model, model_spec
from ..diffusion.protocol import ViewCount
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.sds import SDS_PRESETS, SDSSettings
from ..util.files import stamp_files
from ..util.vocabulary import Representation

if TYPE_CHECKING:
    from .pictures import Method
    from .refinement import Refinement

ANALYTIC = "analytic"
"""The oracle: the exact score of 12 objects, with deliberate errors of camera position (8 degrees) and tint (0.15), as a
learned model has; the reference image tells it which object is meant."""

IMPERFECTION, MIXTURE = {"camera_degrees": 8.0, "tint": 0.15}, 12
_LIKE_THE_PAPER = {"embedded": "embedded-high"}
"""The plan with the paper's K, I and N in place of one that saves evaluations."""


@dataclass(frozen=True)
class Setup:
    """The settings of a report.

    Attributes:
        folder: output folder.
        model: "analytic", "embedded" or a checkpoint; stamp: hash of its weights.
        objects: number of procedural objects; seeds: seeds of every method.
        iterations: K; sds_steps: updates of SDS.
        representations: the fields optimised.
        pictures, methods, clip, elevation: for Table III's protocol, see ``pictures``.
        refinement: for the protocol ``refine``.
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
    methods: tuple[Method, ...] = ()
    clip: Path | None = None
    elevation: float = 0.0
    refinement: Refinement | None = None

    @property
    def runs(self) -> Path:
        """The folder of finished runs."""
        return self.folder / "runs"

    @property
    def oracle(self) -> bool:
        """Whether the model is the exact oracle, whose times mean nothing and whose latents are pixels."""
        return self.model == ANALYTIC

    @property
    def spec(self) -> ModelSpec:
        """The model's specification."""
        return get_spec(self.model)

    def plan(self, representation: Representation = "gaussians", **changes: Any) -> SIRPlan:
        """Look up the report's plan, the model's own, with these changes; exact conditional distributions need no guidance."""
        usual: dict[str, Any] = {"iterations": self.iterations, **({"guidance_scale": 1.0} if self.oracle else {})}
        name = self.spec.suited_to(representation)
        return get_plan(_LIKE_THE_PAPER.get(name, name), **{**usual, **changes})

    def baseline(self, preset: str = "own") -> SDSSettings:
        """Look up an SDS with the report's updates; "own" is that of the model's authors or threestudio, or plain SDS."""
        own = self.spec.suited_to("gaussians").removesuffix("-gaussians")
        settings = SDS_PRESETS.get(own, SDS_PRESETS["sds"]) if preset == "own" else SDS_PRESETS[preset]
        guidance = {"guidance_scale": 1.0} if self.oracle else {}  # as in its plan
        return replace(settings, steps=self.sds_steps, **guidance)


def get_spec(model: str) -> ModelSpec:
    """Look up a model's specification; the oracle has that of the shipped network, but for any number of views."""
    return model_spec(model) if model != ANALYTIC else replace(model_spec(EMBEDDED), view_count=ViewCount())


def stamp_model(model: str) -> str:
    """Return a stamp that distinguishes a model's weights from others of the same name."""
    from ..diffusion.embedded.checkpoint import SHIPPED

    return ANALYTIC if model == ANALYTIC else stamp_files(SHIPPED if model == EMBEDDED else Path(model))


load_source = lru_cache(maxsize=1)(load_model)
"""Load a network, once per process."""
