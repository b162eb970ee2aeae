"""The only file that depends on the ComfyUI version: devices, progress, folders and types that differ between releases.

Everything here works from ComfyUI 0.3.64 on.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph_utils import GraphBuilder, is_link

from ..microdreamer_core.checkpoints.files import SUFFIXES
from ..microdreamer_core.checkpoints.load import find

__all__ = ["ComfyExtension", "GraphBuilder", "InterruptProcessingException", "ProgressBar", "io", "is_link"]

log = logging.getLogger(__name__)

FOLDER = "microdreamer"
"""Name of the model folder, and of the pack's folder in ComfyUI's output folder."""

_OURS = ("mvdream", "imagedream", "zero123", "ipmv", "4view")
"""Words in the names of the published multi-view checkpoints."""

InterruptProcessingException = mm.InterruptProcessingException

ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input).parameters else {}
"""Options of a widget that ComfyUI versions which can do so fold away."""


Latent = dict[str, torch.Tensor]
"""A native LATENT: its tensor is called "samples"."""


def schema(*, aliases: tuple[str, ...], **values: Any) -> io.Schema:
    """Make a node's schema; ``aliases`` are more search words, in ComfyUI versions that support them."""
    if any(field.name == "search_aliases" for field in fields(io.Schema)):
        values["search_aliases"] = list(aliases)
    return io.Schema(**values)


def register_folders() -> None:
    """Register the pack's model folder with ComfyUI; ``extra_model_paths.yaml`` may add others."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def checkpoint_paths() -> dict[str, Path]:
    """Return the models in the pack's folders by name, and likely ones among ComfyUI's checkpoints by names like
    "checkpoints/NAME"."""
    try:
        places = folder_paths.get_folder_paths(FOLDER)
        shared = folder_paths.get_filename_list("checkpoints")
    except KeyError:  # the folder is not registered yet
        return {}
    found = {path.name: path for place in reversed(places) for path in find(Path(place))}
    ours = [name for name in shared if any(word in name.lower() for word in _OURS) and name.endswith(SUFFIXES)]
    return found | {f"checkpoints/{name}": Path(folder_paths.get_full_path_or_raise("checkpoints", name)) for name in ours}


def model_folders(with_file: str) -> dict[str, Path]:
    """Return the folders that hold a file of that name, directly below the folders of the pack's models and of ComfyUI's text
    and image encoders, by names like "clip_vision/NAME"."""
    found = {}
    for kind in ("clip_vision", "text_encoders", FOLDER):
        try:
            places = folder_paths.get_folder_paths(kind)
        except KeyError:  # the folder is not registered yet
            continue
        for place in places:
            for path in sorted(Path(place).glob(f"*/{with_file}")):
                found.setdefault(f"{kind}/{path.parent.name}", path.parent)
    return found


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def save_path(prefix: str, suffix: str) -> tuple[Path, str]:
    """Return the next free file of that prefix in the output folder, numbered as by ComfyUI: (path, subfolder)."""
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(output_folder()))
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def graph_record(hidden: Any) -> dict[str, str]:
    """Return the running graph as ComfyUI's nodes save it in files: dropping such a file on the editor opens the graph.

    Args:
        hidden: an output node's ``cls.hidden``.

    Returns:
        Metadata by name; empty with ``--disable-metadata``.
    """
    from comfy.cli_args import args

    if hidden is None or args.disable_metadata:
        return {}
    known = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in known.items() if value is not None}


def interrupt_check() -> None:
    """Raise ComfyUI's interrupt exception if the user has cancelled."""
    mm.throw_exception_if_processing_interrupted()


_waiting: set[asyncio.Task] = set()


def host_sampling(levels: torch.Tensor) -> Any:
    """Return ComfyUI's ``model_sampling`` of an ε-predicting model with these noise levels σ / α [T], ascending."""
    from comfy.model_sampling import EPS, ModelSamplingDiscrete

    class Sampling(ModelSamplingDiscrete, EPS):
        pass

    sampling = Sampling()
    sampling.set_sigmas(levels.float())
    return sampling


def scheduler_names() -> list[str]:
    """Return the names of ComfyUI's schedulers."""
    return list(importlib.import_module("comfy.samplers").SCHEDULER_NAMES)


def scheduled_sigmas(sampling: Any, scheduler: str, steps: int) -> torch.Tensor:
    """Return [steps + 1] levels of a ``model_sampling`` by a scheduler of ComfyUI, as BasicScheduler does; the last is 0."""
    return importlib.import_module("comfy.samplers").calculate_sigmas(sampling, scheduler, steps).cpu()


def at_prompt_end(action: Callable[[], None]) -> None:
    """Call ``action`` when the running prompt ends: finished, failed or interrupted, in whichever node.

    ComfyUI runs every prompt in an event loop of its own, which cancels at its end what still waits in it. Nothing happens in a
    version that does otherwise.
    """
    try:
        waiting = asyncio.get_running_loop().create_task(asyncio.Event().wait())
    except RuntimeError:
        return
    _waiting.add(waiting)  # the event loop holds its tasks weakly

    def end(_: asyncio.Task) -> None:
        _waiting.discard(waiting)
        action()

    waiting.add_done_callback(end)


def notify(text: str, severity: str = "info") -> None:
    """Tell the user something that is no error of a node: in the log, and as a message over the graph (web/notices.js).

    Args:
        severity: "info", "warn" or "error".
    """
    log.log(logging.INFO if severity == "info" else logging.WARNING, "%s", text)
    server = getattr(importlib.import_module("server").PromptServer, "instance", None)
    if server is not None:
        server.send_sync("microdreamer.notice", {"text": text, "severity": severity}, server.client_id)


def compute_device() -> torch.device:
    """Return the device that ComfyUI computes on."""
    return mm.get_torch_device()


def offload_device() -> torch.device:
    """Return the device on which ComfyUI keeps models that are not in use."""
    return mm.unet_offload_device()


def manage(module: torch.nn.Module) -> Any:
    """Register a module with ComfyUI's memory management; returns the object for ``load_to_device``."""
    from comfy.model_patcher import ModelPatcher

    return ModelPatcher(module, load_device=compute_device(), offload_device=offload_device())


def load_to_device(patcher: Any) -> None:
    """Load a managed module to its device as a whole (its layers cannot be streamed); ComfyUI frees memory as needed. None
    stands for a model that ComfyUI loads whenever it is called."""
    if patcher is None:
        return
    mm.load_models_gpu([patcher], force_full_load=True)


def host_nodes() -> dict:
    """Return ComfyUI's node classes by id."""
    return importlib.import_module("nodes").NODE_CLASS_MAPPINGS


def loop_marks(original: dict, copies: dict[str, str]) -> dict:
    """Return the marks that ComfyUI's own loop nodes leave on the start of a loop, for a copy of the whole loop.

    Args:
        original: a node of the prompt; copies: ids of the copies by ids of the originals.
    """
    body, end = original.get("_loop_body", ()), original.get("_loop_end")
    if end not in copies or not all(node in copies for node in body):
        return {}
    return {"_loop_body": [copies[node] for node in body], "_loop_end": copies[end]}


def native_mesh(vertices: torch.Tensor, faces: torch.Tensor, **attributes: torch.Tensor) -> Any:
    """Make a native MESH of [1,N,3] vertices and [1,M,3] faces, with the attributes that its class takes: it has moved between
    releases and gained uvs, vertex colours, normals and textures."""
    mesh_class = _mesh_class()
    known = inspect.signature(mesh_class).parameters
    return mesh_class(vertices, faces, **{name: value for name, value in attributes.items() if name in known})


def _mesh_class() -> type:
    for module in ("comfy_api.latest._util", "comfy_extras.nodes_hunyuan3d"):
        try:
            return importlib.import_module(module).MESH
        except (ImportError, AttributeError):
            continue
    log.debug("This ComfyUI has no MESH class; a plain one is used.")
    return _PlainMesh


class _PlainMesh:
    """The minimum of a native MESH: vertices and faces with a batch dimension."""

    def __init__(self, vertices: torch.Tensor, faces: torch.Tensor):
        self.vertices, self.faces = vertices, faces


def splat_class() -> type | None:
    """Return ComfyUI's class of native splats; None if this version has none."""
    kinds = getattr(importlib.import_module("comfy_api.latest"), "Types", None)
    return getattr(kinds, "SPLAT", None) if hasattr(io, "Splat") else None
