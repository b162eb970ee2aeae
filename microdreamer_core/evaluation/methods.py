"""The columns of Table III: methods as given on the command line, and checks of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.registry import EMBEDDED, check_model, check_plan, model_spec
from ..errors import InputError
from ..io.mesh_files import SUFFIXES, read_mesh
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.sds import SDS_PRESETS, SDSSettings, get_sds
from .sources import ANALYTIC

_KEYS = ("preset", "iterations", "representation", "model", "sds", "steps")


@dataclass(frozen=True)
class Method:
    """A column of the table.

    Attributes:
        name: heading of the column.
        meshes: folder of another system's meshes, named like the images; None for this program.
        model, plan: of this program; plan is None for another system. sds: baseline that replaces SIR's iterations.
    """

    name: str
    meshes: Path | None = None
    model: str = EMBEDDED
    plan: SIRPlan | None = None
    sds: SDSSettings | None = None

    @property
    def text_only(self) -> bool:
        """Whether it makes meshes from a prompt alone."""
        return self.meshes is None and not model_spec(self.model).takes_picture

    def find_mesh(self, picture: Path) -> Path | None:
        """Find the file of another system's mesh of a picture."""
        places = (self.meshes / f"{picture.stem}{suffix}" for suffix in SUFFIXES) if self.meshes else ()
        return next((place for place in places if place.is_file()), None)

    def describe(self) -> str:
        """Describe how the meshes are made."""
        if self.plan is None:
            return f"meshes of another system in {self.meshes and self.meshes.name}"
        work = f"SDS {self.sds.name}, {self.sds.steps} updates" if self.sds else f"K = {self.plan.iterations}"
        return f"{Path(self.model).name}, plan {self.plan.name}, {work}"


def parse_method(text: str, model: str, iterations: int | None = None) -> Method:
    """Parse a method: NAME=FOLDER, or NAME=KEY=VALUE,... with the keys preset, iterations, representation, model, sds, steps.

    Args:
        model, iterations: defaults if the text names none.

    Raises:
        InputError: no such form, folder, key or value.
    """
    name, _, rest = text.partition("=")
    if not (name and rest):
        raise InputError(f"A method is NAME=FOLDER or NAME=KEY=VALUE,..., got {text!r}.")
    if Path(rest).is_dir():
        return Method(name, Path(rest))
    if "=" not in rest:
        raise InputError(f"The method {name!r} names the folder {rest}, which does not exist; its keys are {', '.join(_KEYS)}.")
    values = {key: value for key, _, value in (item.partition("=") for item in rest.split(","))}
    for key, value in values.items():
        if key not in _KEYS or not value:
            raise InputError(f"The method {name!r} has {key!r}; write KEY=VALUE with one of {', '.join(_KEYS)}.")
        if key in ("iterations", "steps") and not value.isdecimal():
            raise InputError(f"The method {name!r} needs a whole number, got {value!r}.")
    return make_method(name, values.pop("model", model), iterations, **values)


def make_method(name: str, model: str, usual: int | None = None, **values: str) -> Method:
    """Make a method of this program.

    Args:
        usual: iterations if the values name none; None for the preset's.

    Raises:
        InputError: the plan does not suit the model, or a value cannot be used.
    """
    model = check_model(EMBEDDED if model == ANALYTIC else model)
    spec, iterations = model_spec(model), values.get("iterations", usual)
    changes = {} if iterations is None else {"iterations": int(iterations)}
    plan = get_plan(values.get("preset") or spec.suited_to(values.get("representation")), **changes)
    if values.get("representation", plan.representation) != plan.representation:
        raise InputError(f"The method {name!r} asks for {values['representation']}, and its preset for {plan.representation}.")
    check_plan(plan, spec, model)
    if "steps" in values and "sds" not in values:
        raise InputError(f"The method {name!r} has steps without sds; choose one of {', '.join(SDS_PRESETS)}.")
    steps = {"steps": int(values["steps"])} if "steps" in values else {}
    return Method(name, model=model, plan=plan, sds=get_sds(values["sds"], **steps) if "sds" in values else None)


def check_methods(methods: Sequence[Method], pictures: Sequence[Path]) -> list[str]:
    """Read all meshes before the work begins, and return a message for each method that lacks some.

    Raises:
        InputError: names are not unique, a mesh does not load, or a folder has no mesh of any picture.
    """
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise InputError(f"Methods need different names, got {', '.join(names)}.")
    missing = []
    for method in methods:
        found = {path.stem: method.find_mesh(path) for path in pictures} if method.meshes else {}
        for mesh in filter(None, found.values()):
            read_mesh(mesh)
        lacking = [stem for stem, mesh in found.items() if mesh is None]
        if lacking and len(lacking) == len(found):
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"{method.meshes} holds no mesh ({kinds}) named like a picture, say {lacking[0]}.glb.")
        if lacking:
            missing.append(f"{method.name} has no mesh of {', '.join(lacking)}; its numbers are of the others.")
    return missing
