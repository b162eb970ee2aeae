"""A batch on a Ray cluster: one task an asset, whose files come back as bytes, so that machines need share no folder."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import __version__
from ..errors import InputError
from ..util.atomic import write_bytes
from ..util.hooks import Hook
from ..util.optional import import_optional
from .make import make_item
from .share import ThreadWorker, Worker, WorkerLost
from .tasks import RECORD, Task, save_result

_AHEAD = 2
"""Tasks that wait for each place, so that machines that join find work."""
_RETRIES = 2
_POLL, _PATIENCE = 0.5, 10.0


def start_workers(address: str, tasks: int, threads: int, device: str) -> Sequence[Worker]:
    """Connect to a cluster; each task takes a GPU if it has GPUs and ``device`` is not the CPU, else ``threads`` CPUs.

    Raises:
        InputError: no cluster there, or none that can do a task.
    """
    ray = import_optional("ray", "--ray needs", "ray")
    _connect(ray, address)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    on_gpu = gpus > 0 and device in ("auto", "cuda")
    places = gpus if on_gpu else cpus // threads
    if not places or (device == "cuda" and not on_gpu):
        raise InputError(f"The Ray cluster has {cpus} CPUs and {gpus} GPUs, too few for --device {device} --threads {threads}.")
    needs = {"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": threads}
    remote = ray.remote(**needs, max_retries=_RETRIES)(_make_there)
    return [ThreadWorker(partial(_make_by_ray, ray=ray, remote=remote)) for _ in range(min(_AHEAD * places, tasks))]


def _connect(ray: Any, address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), _PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise _nobody_at(address, error) from error
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _nobody_at(address, error) from error
    finally:
        if here:  # Ray takes it, and the command line answers it itself
            signal.signal(signal.SIGTERM, handler)


def _nobody_at(address: str, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0]
    return InputError(f"There is no Ray cluster at {address!r} ({reason}); start one with `ray start --head`.")


def _make_by_ray(task: Task, check: Hook, ray: Any, remote: Any) -> dict:
    """Have a task done by the cluster and write its files here."""
    task.folder.mkdir(parents=True, exist_ok=True)
    contents = {str(path): path.read_bytes() for path in (task.item.picture, task.item.mask) if path}
    reference = remote.remote(task, contents, __version__)
    try:
        while not ray.wait([reference], timeout=_POLL)[0]:
            check()
        result, files = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        result, files = {"failed": f"Ray's worker could not do it: {error.cause!r}"}, {}
    except (ray.exceptions.RayError, ConnectionError) as error:
        if not ray.is_initialized() or isinstance(error, ConnectionError):
            raise WorkerLost(f"Ray is gone: {str(error).partition(chr(10))[0]}") from error
        result, files = {"failed": f"Its workers died {_RETRIES + 1} times; perhaps the memory is full."}, {}
    finally:
        with suppress(Exception):  # a finished one cannot be cancelled, and a cluster that is gone cannot be asked
            ray.cancel(reference, force=True)
    (task.folder / RECORD).unlink(missing_ok=True)  # it must never speak of another state than the one beside it
    for name, content in files.items():
        write_bytes(task.folder / Path(name).name, content)
    save_result(task, result)
    return result


def _make_there(task: Task, contents: Mapping[str, bytes], version: str) -> tuple[dict, dict[str, bytes]]:
    """Make an asset on another machine; returns its result and its files."""
    if version != __version__:
        return {"failed": f"Ray's worker has version {__version__} of microdreamer, not {version}; install the same."}, {}
    with TemporaryDirectory(prefix="microdreamer-") as name:
        folder = Path(name)
        paths: dict[str, Path | None] = {"picture": task.item.picture, "mask": task.item.mask}
        for kind, path in paths.items():
            if path is not None:
                paths[kind] = folder / kind / path.name
                (folder / kind).mkdir()
                (folder / kind / path.name).write_bytes(contents[str(path)])
        here = replace(task, item=replace(task.item, **paths), folder=folder / "asset")
        result = make_item(here)
        return result, {path.name: path.read_bytes() for path in here.folder.iterdir() if path.name != RECORD}
