"""Making one asset of a batch in a worker, which keeps the model loaded from one asset to the next."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from pathlib import Path

import torch

from ..checkpoints.load import ModelOptions
from ..checkpoints.registry import EMBEDDED, load_model, model_spec
from ..diffusion.protocol import Checkpoint
from ..errors import Cancelled, InputError, NumericalError, out_of_memory
from ..job.outputs import plan_files, write_asset
from ..job.run import Job, job_from_image, job_from_prompt, make_asset, resume_job, save_run
from ..sir.hooks import Hooks
from ..sir.iterations import Iteration
from ..util.atomic import remove_leftovers
from ..util.hooks import Hook
from ..util.lock import lock_output
from ..util.threads import set_threads
from .items import Item
from .tasks import Recipe, Task, read_record, save_begin, save_result, write_still, write_thumbnail

log = logging.getLogger(__name__)

_FOR_IMAGES = ("elevation", "matting")


def make_item(task: Task, check: Hook | None = None) -> dict:
    """Make an asset with its files, and save its result; a failure is a result too, ``{"failed": why}``.

    Args:
        check: called before every step; raises to stop. What was iterated until then is continued next time.

    Raises:
        OSError: the result cannot be written.
    """
    set_threads(task.recipe.threads)
    torch.set_num_threads(task.recipe.threads)
    task.folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    try:
        result = _make(task, check)
        result["numbers"] = {"seconds": round(time.perf_counter() - begin, 1), **result["numbers"]}
    except Cancelled:
        raise
    except Exception as error:  # whatever it is, the others are made
        log.debug("%s failed", task.item.name, exc_info=True)
        result = {"failed": _explain(error)}
    save_result(task, result)
    return result


def plan_item(item: Item, recipe: Recipe) -> Job:
    """Plan an item's job: of its prompt alone if it has no image or its model takes none.

    Raises:
        InputError: image, prompt or options cannot be used.
    """
    choices = {**recipe.choices, **item.options}
    spec = model_spec(choices.get("model", EMBEDDED), choices.get("options", ModelOptions()))
    if item.picture is None or not spec.takes_picture:
        for name in _FOR_IMAGES:
            choices.pop(name, None)
        return job_from_prompt(item.prompt or "", **choices)
    return job_from_image(item.picture, item.mask, prompt=item.prompt, **choices)


def _make(task: Task, check: Hook | None) -> dict:
    name, recipe = task.item.name, task.recipe
    files = plan_files(task.folder / f"{name}.glb", splat=recipe.splat, film=recipe.film, report=True)
    with lock_output(files["mesh"]):
        for path in files.values():
            remove_leftovers(path)
        write_thumbnail(task)
        job = _continue(task, files["state"])
        if job is None:
            files["state"].unlink(missing_ok=True)
            save_begin(task)
            job = plan_item(task.item, recipe)

        def save(iteration: Iteration) -> None:
            save_run(files["state"], job, iteration)

        asset = make_asset(
            job,
            recipe.mesh,
            model=_load(job.model, job.device, job.options),
            hooks=Hooks(check=check),
            on_iteration=save,
        )
        written = {kind: path.name for kind, path in write_asset(asset, job, files).items()}
        written |= write_still(task.folder, list(written.values()))
    numbers = {"triangles": len(asset.mesh.faces), "evaluations": asset.evaluations, "seed": job.seed}
    return {
        "files": written,
        "numbers": {**numbers, "field": asset.field.summary(), "plan": job.plan.name, "model": Path(job.model).name},
    }


def _continue(task: Task, state: Path) -> Job | None:
    """Continue the task's own run from its saved state, if there is one."""
    if read_record(task.folder).get("run") != task.run or not state.is_file():
        return None
    try:
        return resume_job(state, task.recipe.choices.get("device", "auto"))
    except InputError:
        return None


@lru_cache(maxsize=1)
def _load(model: str, device: str, options: ModelOptions) -> Checkpoint:
    return load_model(model, device, options)


def _explain(error: Exception) -> str:
    if out_of_memory(error):
        return "The memory is full; use fewer --workers, smaller textures, fewer faces, or another --device."
    if isinstance(error, InputError | NumericalError | OSError):
        return str(error)
    return f"An error of the program ({type(error).__name__}: {error}); please report it."
