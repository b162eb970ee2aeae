"""One asset of a batch as a task: where it goes, how it is made, and what is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import __version__
from ..checkpoints.registry import EMBEDDED, check_model
from ..errors import InputError, NumericalError
from ..io.pictures import on_white, read_picture
from ..job.outputs import FILM_ELEVATION, film_cameras, film_renderer
from ..job.record import hash_values, read_json, write_json
from ..job.run import choose_prompt
from ..meshing.settings import MeshSettings
from ..util.atomic import replace_file
from ..util.files import stamp_files
from ..util.images import to_uint8
from .items import Item

REVISION = 1
"""Incremented when the same settings give different assets than before, which makes them again."""
RECORD = "batch.json"
THUMBNAIL = "picture.jpg"
_THUMBNAIL_SIZE = 320
STILL = "object.jpg"
_STILL_SIZE, _STILL_OF_TURN = 384, 12
FILMS, IMAGES = (".mp4", ".webm"), (".gif", ".webp", ".png", ".jpg", ".jpeg")
"""Endings of files that show the object on the page."""
_SHAPES = (".glb", ".obj", ".stl", ".ply", ".spz", ".splat", ".ksplat")


@dataclass(frozen=True)
class Recipe:
    """How the assets of a batch are made; an item's own options go before ``choices``.

    Attributes:
        choices: keywords of ``job.run.job_from_image``.
        splat, film: which files beside the mesh are written.
        threads: of each worker on a CPU.
    """

    choices: Mapping[str, Any]
    mesh: MeshSettings = MeshSettings()  # noqa: RUF009 - immutable
    splat: bool = False
    film: bool = True
    threads: int = 1


@dataclass(frozen=True)
class Task:
    """One asset to make.

    Attributes:
        folder: where its files go.
        run: hash of what its optimisation depends on; key: of everything that its files depend on.
        recipe: for an asset made here or by Ray; graph: the ComfyUI graph of one made by a server.
    """

    item: Item
    folder: Path
    run: str
    key: str
    recipe: Recipe = Recipe({})  # noqa: RUF009 - immutable
    graph: dict = field(default_factory=dict)


def plan_task(item: Item, output: Path, recipe: Recipe) -> Task:
    """Plan an item's task; the prompt in the .txt beside an image is used if its model takes one.

    Raises:
        InputError: there is no such image, mask or model.
        UnicodeDecodeError: the .txt is no text in UTF-8.
    """
    check_files(item)
    choices = {**recipe.choices, **item.options}
    model = choices.get("model", EMBEDDED)
    if item.picture is not None and item.prompt is None:
        item = replace(item, prompt=choose_prompt(item.picture, model))
    settings = {name: value for name, value in choices.items() if name not in ("device", "model")}
    known = [REVISION, __version__, *map(stamp_content, (item.picture, item.mask)), item.prompt, _stamp_model(model), settings]
    run = hash_values(known)
    return Task(item, output / item.name, run, hash_values([run, recipe.mesh, recipe.splat, recipe.film]), recipe)


def check_files(item: Item) -> None:
    """Check that an item's image and mask are there.

    Raises:
        InputError: one is not.
    """
    for path in (item.picture, item.mask):
        if path is not None and not path.is_file():
            raise InputError(f"There is no picture at {path}; check the path.")


def stamp_content(path: Path | None) -> str | None:
    """Hash a file's content; None of no file."""
    return None if path is None else hashlib.blake2b(path.read_bytes(), digest_size=10).hexdigest()


@lru_cache
def _stamp_model(model: str) -> str:
    path = check_model(model)
    return path if path == EMBEDDED else f"{Path(path).name}/{stamp_files(Path(path))}"


def read_record(folder: Path) -> dict:
    """Read what is known of an asset: ``run``, and when finished ``key`` and ``result``; empty if there is nothing."""
    return read_json(folder / RECORD)


def find_result(task: Task) -> dict | None:
    """Return the result of a finished task whose files are all there; None for others and for one that failed."""
    record = read_record(task.folder)
    result = record.get("result")
    if record.get("key") != task.key or not isinstance(result, dict) or "failed" in result:
        return None
    names = result.get("files")
    return result if isinstance(names, dict) and all((task.folder / str(name)).is_file() for name in names.values()) else None


def save_begin(task: Task) -> None:
    """Note which run the saved state beside it belongs to."""
    write_json(task.folder / RECORD, {"run": task.run})


def save_result(task: Task, result: dict) -> None:
    """Write a finished task's result, atomically and last: without it, the task is done once more."""
    write_json(task.folder / RECORD, {"run": task.run, "key": task.key, "result": result})


def write_thumbnail(task: Task) -> None:
    """Write a small copy of the image for the page, on white; an unreadable one has none."""
    if task.item.picture is None:
        return
    with suppress(InputError, OSError):
        _write_jpeg(task.folder / THUMBNAIL, on_white(read_picture(task.item.picture)), _THUMBNAIL_SIZE)


def write_still(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Render the object from its front's side for the page, unless a file shows it already.

    Args:
        names: files of the asset in ``folder``; the first mesh is rendered, or else the first splat.

    Returns:
        {"still": its name}; empty if a film or an image is among the files, or none of them can be rendered.
    """
    shape = find_ending(names, _SHAPES)
    if shape is None or find_ending(names, FILMS + IMAGES):
        return {}
    with suppress(InputError, NumericalError, OSError):
        render, extent = film_renderer(folder / shape)
        view = film_cameras(extent, _STILL_OF_TURN, _STILL_SIZE, FILM_ELEVATION)[1:2]
        _write_jpeg(folder / STILL, render(view)[0], _STILL_SIZE)
        return {"still": STILL}
    return {}


def find_ending(names: Iterable[str], endings: Sequence[str]) -> str | None:
    """Return the first name with the first of the endings that any has."""
    names = list(names)
    return next((name for ending in endings for name in names if name.lower().endswith(ending)), None)


def _write_jpeg(path: Path, pixels: Tensor, size: int) -> None:
    """Write an image [H,W,3] of at most ``size`` pixels a side."""
    from PIL import Image

    image = Image.fromarray(to_uint8(pixels))
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    with replace_file(path) as temporary:
        image.save(temporary, format="JPEG", quality=85)
