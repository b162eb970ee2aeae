"""Where a run's diffusion model, plan and start field come from: the exact oracle, the shipped network or any checkpoint."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from ..checkpoints.load import ModelOptions
from ..checkpoints.registry import EMBEDDED, check_model, load_model, model_spec
from ..diffusion.analytic import AnalyticDiffusion, Imperfection, toy_renderer
from ..diffusion.embedded import toys
from ..diffusion.protocol import MultiViewDiffusion, ViewCount
from ..sir.plan import SIRPlan
from ..sir.presets import get_plan
from ..sir.sds import SDS_PRESETS, SDSSettings
from ..util.devices import choose_device
from ..util.vocabulary import Representation
from .subjects import Subject, make_subject, toy_of

ANALYTIC = "analytic"
"""The model that knows 12 objects exactly but errs on purpose in where each camera stands (8 degrees) and in tint (0.15), as a
learned model does; the reference picture tells it which object is meant."""

IMPERFECTION = {"camera_degrees": 8.0, "tint": 0.15}

_ANALYTIC_SIZE = 64
_BLOCK, _MIXTURE = 8, 12
_EDGE = 1 << 20


def check_source(model: str) -> str:
    """A model's full name.

    Raises:
        InputError: there is no such model.
    """
    return model if model == ANALYTIC else check_model(model)


def takes_picture(model: str) -> bool:
    """Whether a model is told by a picture what to make; one that takes words alone knows no procedural object."""
    return model == ANALYTIC or model_spec(model).takes_picture


def describe_model(model: str) -> str:
    """A model in words, for whoever reads its numbers."""
    if model == ANALYTIC:
        angle, tint = IMPERFECTION["camera_degrees"], IMPERFECTION["tint"]
        return (
            f"{model}: no network, but the exact score of {_MIXTURE} objects; the reference picture tells it which is meant, "
            f"and it errs on purpose in where each camera stands ({angle:g} degrees) and in tint ({tint:g})"
        )
    return f"{Path(model).name} ({stamp(model)})"


def stamp(model: str) -> str:
    """What tells a model's weights from others of its name: sizes and names of its files, ends of the largest."""
    if model == ANALYTIC:
        return ANALYTIC
    if model == EMBEDDED:
        from ..diffusion.embedded.checkpoint import SHIPPED

        return file_stamp(SHIPPED)
    return file_stamp(Path(model))


def weights_mb(model: str) -> int:
    """MB of a checkpoint's files; 0 for the oracle and the shipped network, whose little is counted with a worker."""
    if model in (ANALYTIC, EMBEDDED):
        return 0
    path = Path(model)
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file()) // 1_000_000


def file_stamp(path: Path) -> str:
    """Hash of a file's or folder's sizes and names, and of the first and last megabyte of its largest file."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}/{file.stat().st_size}/".encode())
    if not files:
        return digest.hexdigest()
    largest = max(files, key=lambda file: file.stat().st_size)
    with largest.open("rb") as content:
        digest.update(content.read(_EDGE))
        content.seek(max(0, largest.stat().st_size - _EDGE))
        digest.update(content.read())
    return digest.hexdigest()


def view_count(model: str) -> ViewCount:
    """How many views a model denoises together."""
    return ViewCount() if model == ANALYTIC else model_spec(model).view_count


def picture_size(model: str) -> int:
    return _ANALYTIC_SIZE if model == ANALYTIC else model_spec(model).size


def base_plan(model: str, representation: Representation = "gaussians", **changes) -> SIRPlan:
    """The plan that the protocols vary: the model's own for the representation.

    The exact conditional distribution needs no guidance; learned ones do.
    """
    usual = {"guidance_scale": 1.0} if model == ANALYTIC else {}
    framing = model_spec(EMBEDDED if model == ANALYTIC else model)
    return get_plan(framing.suited_to(representation), **usual, **changes)


@lru_cache(maxsize=8)
def subject_for(index: int, radius: float, fov_y: float, size: int) -> Subject:
    """``make_subject``, which takes a second, once a process."""
    return make_subject(index, radius, fov_y, size)


def diffusion_for(model: str, index: int, subject: Subject, seed: int, plan: SIRPlan, device: str) -> MultiViewDiffusion:
    """A model that was told which object is meant.

    Args:
        index, subject: the object. seed: of the oracle's errors.
    """
    if model == ANALYTIC:
        shown = {"radius": plan.radius, "fov_y": plan.fov_y}
        errors = Imperfection(**IMPERFECTION, seed=seed)
        size = subject.pictures.shape[1]
        return AnalyticDiffusion(mixture(index), size, reference=subject.reference, imperfection=errors, **shown)
    return load_source(model, device).condition(subject.reference)


@lru_cache(maxsize=1)
def load_source(model: str, device: str, options: ModelOptions = ModelOptions()):  # noqa: B008 - immutable
    """A network, loaded once a process."""
    return load_model(model, choose_device(device), options)


def mixture(index: int):
    """The oracle's objects: the block of eight subjects that holds this one, and four others."""
    first = index // _BLOCK * _BLOCK
    names = list(toys.CATEGORIES)
    others = [toys.make_toy(toys.HELD_OUT + 1000 + i, names[i]) for i in range(_MIXTURE - _BLOCK)]
    return toy_renderer([toy_of(first + i)[1] for i in range(_BLOCK)] + others)


def baseline(model: str) -> SDSSettings:
    """The SDS that a model's own authors or threestudio use; plain SDS for the oracle and the shipped network."""
    own = "" if model == ANALYTIC else model_spec(model).suited_to("gaussians").removesuffix("-gaussians")
    return SDS_PRESETS.get(own, SDS_PRESETS["sds"])
