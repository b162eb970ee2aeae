"""The only file that depends on the ComfyUI version: devices, progress, folders and types that differ between releases.

Everything here works from ComfyUI 0.3.64 on.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from io import BytesIO
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


def schema(*, aliases: tuple[str, ...], essentials: str = "", **values: Any) -> io.Schema:
    """Make a node's schema; ``aliases`` are more search words and ``essentials`` the section of the list of the most used
    nodes, in ComfyUI versions that support them."""
    known = {field.name for field in fields(io.Schema)}
    if "search_aliases" in known:
        values["search_aliases"] = list(aliases)
    if essentials and "essentials_category" in known:
        values["essentials_category"] = essentials
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


def embedding_folders() -> list[str]:
    """Return ComfyUI's folders of textual inversions."""
    return folder_paths.get_folder_paths("embeddings")


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


def temp_folder() -> Path:
    """Return the folder of files that ComfyUI removes when it starts and ends."""
    return Path(folder_paths.get_temp_directory())


def user_folder() -> Path:
    """Return the folder of settings, which ComfyUI keeps."""
    return Path(folder_paths.get_user_directory())


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


@dataclass(frozen=True)
class Browser:
    """The open ComfyUI page that queued the running prompt, and the node that it shows as running."""

    server: Any
    client: str
    node: str

    def send(self, event: str, data: dict) -> None:
        """Send an event about the node to the page's extensions."""
        self.server.send_sync(event, {"node": self.node, **data}, self.client)


def browser() -> Browser | None:
    """Return the page that shows the running node; None without a server, or if a client of the API queued the prompt.

    Only pages announce that they take previews with metadata; clients of the API that do so are treated like pages.
    """
    server: Any = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    client = getattr(server, "client_id", None)
    flags = sys.modules.get("comfy_api.feature_flags")  # the server has loaded it
    if client is None or flags is None:
        return None
    context = importlib.import_module("comfy_execution.utils").get_executing_context()
    if context is None or not flags.supports_feature(server.sockets_metadata, client, "supports_preview_metadata"):
        return None
    prompt = importlib.import_module("comfy_execution.progress").get_progress_state().dynprompt
    return Browser(server, client, prompt.get_display_node_id(context.node_id))


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


_MESH_FILES = ("File3DAny", "File3DGLB", "File3DGLTF", "File3DOBJ", "File3DPLY", "File3DSTL")
"""ComfyUI's types of 3D files in formats that this pack reads as meshes."""


def mesh_input(name: str, **options: Any) -> io.Input:
    """Make an input that takes a native MESH and, in ComfyUI versions that have them, 3D files."""
    files = [getattr(io, kind) for kind in _MESH_FILES if hasattr(io, kind)]
    return io.MultiType.Input(name, types=[io.Mesh, *files], **options) if files else io.Mesh.Input(name, **options)


def file_3d_class() -> type | None:
    """Return ComfyUI's class of 3D files; None if this version has none."""
    kinds = getattr(importlib.import_module("comfy_api.latest"), "Types", None)
    return getattr(kinds, "File3D", None) if hasattr(io, "File3DGLB") and hasattr(io, "File3DPLY") else None


def file_3d_output(kind: str, tooltip: str) -> list[io.Output]:
    """Return the output of a 3D file of that type (``File3DGLB``, ``File3DPLY``); none if this ComfyUI has no such type."""
    if file_3d_class() is None:
        return []
    return [getattr(io, kind).Output(id="model_3d_out", display_name="model_3d", tooltip=tooltip)]


def file_3d(source: Path | bytes, suffix: str) -> list[Any]:
    """Return a file, or the content of one, as the value of ``file_3d_output``."""
    kind = file_3d_class()
    if kind is None:
        return []
    return [kind(str(source) if isinstance(source, Path) else BytesIO(source), suffix.lstrip("."))]


def model_info_input() -> list[io.Input]:
    """Return the input of a placement from ComfyUI's 3D viewers; none if this ComfyUI has no such type."""
    if not hasattr(io, "Load3DModelInfo"):
        return []
    return [
        io.Load3DModelInfo.Input(
            "model_3d_info",
            optional=True,
            tooltip="How the model is placed in the viewer of Load 3D; turned the same way here.",
        )
    ]


def has_3d_cameras() -> bool:
    """Return whether this ComfyUI has the cameras of 3D viewers as a type."""
    return hasattr(io, "Load3DCamera")
