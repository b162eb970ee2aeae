"""A stand-in for ComfyUI, for tests that need no host: the names the pack imports, and an executor for API-format graphs.

It follows the host's documented behaviour only as far as the pack relies on it: nodes run under inference mode, optional
inputs without link are left out, lazy inputs are asked for, expansions are spliced in, results are kept by node id. The real
host is the judge of everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACK = "microdreamer_pack_under_test"


class Interrupted(BaseException):
    """The host's interrupt, which no ``except Exception`` may swallow."""


class _Socket:
    def __init__(self, id, kind="", **options):
        self.id, self.kind = id, kind
        self.optional = bool(options.pop("optional", False))
        self.options = options

    def __repr__(self):
        return f"{self.kind} {self.id}"


def _io_type(kind):
    def make(id=None, advanced=None, **options):
        return _Socket(id, kind, **options, **({"advanced": True} if advanced else {}))

    return SimpleNamespace(Input=make, Output=make, io_type=kind)


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = ""
    description: str = ""
    search_aliases: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    hidden: list = field(default_factory=list)
    is_output_node: bool = False
    is_experimental: bool = False
    enable_expand: bool = False
    is_input_list: bool = False


class ComfyNode:
    hidden: Any = None


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None):
        self.args, self.ui, self.expand = args, ui, expand


_KINDS = {
    "AnyType": "*",
    **{name: name.upper() for name in ("Int", "Float", "String", "Boolean", "Combo", "Image", "Mask", "Latent", "Sampler")},
    **{name: name.upper() for name in ("Sigmas", "Mesh", "Model", "Vae", "Clip", "Conditioning", "Splat")},
    "ClipVision": "CLIP_VISION",
    "Load3DCamera": "LOAD3D_CAMERA",
    "Load3DModelInfo": "LOAD3D_MODEL_INFO",
    "File3DAny": "FILE_3D",
    **{f"File3D{name}": f"FILE_3D_{name}" for name in ("GLB", "GLTF", "OBJ", "PLY", "STL")},
    "ControlNet": "CONTROL_NET",
}


def _multi_type(id, types, **options):
    return _Socket(id, ",".join(kind.io_type for kind in types), **options)


io = SimpleNamespace(
    Schema=Schema,
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
    Custom=_io_type,
    MultiType=SimpleNamespace(Input=_multi_type),
    Hidden=SimpleNamespace(dynprompt="dynprompt", unique_id="unique_id"),
    **{name: _io_type(kind) for name, kind in _KINDS.items()},
)


class MESH:
    """The host's mesh, since the releases in which it carries colours."""

    def __init__(
        self,
        vertices,
        faces,
        uvs=None,
        vertex_colors=None,
        texture=None,
        metallic_roughness=None,
        vertex_counts=None,
        face_counts=None,
        normals=None,
        normal_map=None,
        occlusion_in_mr=False,
        material=None,
        emissive=None,
    ):
        self.vertices, self.faces, self.uvs, self.vertex_colors = vertices, faces, uvs, vertex_colors
        self.texture, self.vertex_counts, self.face_counts, self.normals = texture, vertex_counts, face_counts, normals
        self.metallic_roughness, self.normal_map, self.emissive = metallic_roughness, normal_map, emissive
        self.occlusion_in_mr, self.material = occlusion_in_mr, material


class OldMESH:
    """The host's mesh before."""

    def __init__(self, vertices, faces):
        self.vertices, self.faces = vertices, faces


@dataclass
class SPLAT:
    positions: torch.Tensor
    scales: torch.Tensor
    rotations: torch.Tensor
    opacities: torch.Tensor
    sh: torch.Tensor
    counts: torch.Tensor | None = None


class File3D:
    """The host's 3D file, on disk (a str) or in memory."""

    def __init__(self, source, file_format=""):
        self.source, self.format = source, file_format or Path(source).suffix[1:]

    @property
    def is_disk_backed(self):
        return isinstance(self.source, str)

    def get_source(self):
        return self.source

    def save_to(self, path):
        Path(path).write_bytes(Path(self.source).read_bytes() if self.is_disk_backed else self.source.getvalue())
        return path


def is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


class GraphBuilder:
    def __init__(self, prefix=""):
        self._prefix, self._nodes = prefix, {}

    def node(self, class_type, id, **inputs):
        name = self._prefix + id
        graph_node = SimpleNamespace(id=name, out=lambda index: [name, index], set_override_display_id=lambda _: None)
        graph_node.set_input = inputs.__setitem__
        self._nodes[name] = {"class_type": class_type, "inputs": inputs}
        return graph_node

    def finalize(self):
        return self._nodes


class Host:
    """What the fake modules share: folders, progress, interrupt."""

    def __init__(self, base: Path):
        self.base, self.nodes = base, {}
        self.progress, self.previews, self.loads = [], [], 0
        self.notices: list[str] = []
        self.interrupt_at: int | None = None
        for name in ("models/microdreamer", "output", "input"):
            (base / name).mkdir(parents=True)

    def modules(self) -> dict[str, ModuleType]:
        host = self

        class ProgressBar:
            def __init__(self, total):
                self.total, self.current = total, 0

            def update_absolute(self, value, total=None, preview=None):
                self.current, self.total = value, total or self.total
                host.progress.append((value, self.total))
                if preview is not None:
                    host.previews.append(preview)

            def update(self, value):
                self.update_absolute(self.current + value)

        class ModelPatcher:
            def __init__(self, model, load_device, offload_device):
                self.model = model
                model.device = offload_device

        class ModelSamplingDiscrete:
            def set_sigmas(self, sigmas):
                self.sigmas, self.sigma_max = sigmas, sigmas[-1]

            def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
                return noise * sigma.view(-1, 1, 1, 1) + latent_image

            def calculate_input(self, sigma, noise):
                return noise / (sigma**2 + 1) ** 0.5

            def calculate_denoised(self, sigma, model_output, model_input):
                return model_input - model_output * sigma

        def calculate_sigmas(sampling, scheduler, steps):
            """The host's "simple", whatever the name."""
            at = [len(sampling.sigmas) - 1 - int(x * len(sampling.sigmas) / steps) for x in range(steps)]
            return torch.cat([sampling.sigmas[at], torch.zeros(1)])

        def send(event, data, client):
            host.notices.append(data["text"])

        def check():
            if host.interrupt_at is not None and len(host.progress) >= host.interrupt_at:
                host.interrupt_at = None
                raise Interrupted

        def load(models, **_):
            host.loads += len(models)

        counter = itertools.count(1)

        def save_image_path(prefix, folder):
            target = Path(folder) / Path(prefix).parent
            target.mkdir(parents=True, exist_ok=True)
            return str(target), Path(prefix).name, next(counter), str(Path(prefix).parent), prefix

        models = self.base / "models"
        contents = {
            "comfy": {},
            "comfy.model_management": {
                "__file__": str(self.base / "comfy" / "model_management.py"),
                "InterruptProcessingException": Interrupted,
                "throw_exception_if_processing_interrupted": check,
                "get_torch_device": lambda: torch.device("cpu"),
                "unet_offload_device": lambda: torch.device("cpu"),
                "load_models_gpu": load,
            },
            "comfy.cli_args": {"args": SimpleNamespace(disable_metadata=False)},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
            "comfy.samplers": {"SCHEDULER_NAMES": ["simple", "sgm_uniform", "karras"], "calculate_sigmas": calculate_sigmas},
            "server": {"PromptServer": SimpleNamespace(instance=SimpleNamespace(client_id="", send_sync=send))},
            "comfy.model_sampling": {"ModelSamplingDiscrete": ModelSamplingDiscrete, "EPS": type("EPS", (), {})},
            "comfy_api": {},
            "comfy_api.latest": {
                "io": io,
                "ComfyExtension": type("ComfyExtension", (), {}),
                "Types": SimpleNamespace(SPLAT=SPLAT, MESH=MESH, File3D=File3D),
            },
            "comfy_api.latest._util": {"MESH": MESH},
            "comfy_execution": {},
            "comfy_execution.graph_utils": {"GraphBuilder": GraphBuilder, "is_link": is_link},
            "folder_paths": {
                "models_dir": str(self.base / "models"),
                "add_model_folder_path": lambda name, path: None,
                "get_folder_paths": lambda name: [str(models / name)],
                "get_filename_list": lambda name: sorted(path.name for path in (models / name).glob("*")),
                "get_full_path_or_raise": lambda name, file: str(models / name / file),
                "get_output_directory": lambda: str(self.base / "output"),
                "get_temp_directory": lambda: str(self.base / "temp"),
                "get_user_directory": lambda: str(self.base),
                "get_input_directory": lambda: str(self.base / "input"),
                "get_save_image_path": save_image_path,
            },
            "nodes": {"NODE_CLASS_MAPPINGS": self.nodes},
        }
        made = {}
        for name, content in contents.items():
            made[name] = ModuleType(name)
            vars(made[name]).update(content)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(made[parent], child, made[name])
        return made


def load_pack(host: Host):
    """Import the pack as a host does, from its root's ``__init__.py``, and register its nodes."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py")
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)
    extension = asyncio.run(pack.comfy_entrypoint())
    for node in asyncio.run(extension.get_node_list()):
        schema = node.define_schema()
        node.OUTPUT_NODE = schema.is_output_node
        node.OUTPUT_IS_LIST = tuple(socket.options.get("is_output_list", False) for socket in schema.outputs)
        host.nodes[schema.node_id] = node
    return pack


@contextlib.contextmanager
def install(base: Path):
    """A host in a folder, its modules and the pack imported; what it put into sys.modules is taken out again."""
    before, threads = dict(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    host = Host(base)
    sys.modules.update(host.modules())
    host.pack = load_pack(host)
    yield host
    torch.set_num_threads(threads)
    for name in set(sys.modules) - set(before):
        if name.startswith((PACK, "comfy")) or name in ("nodes", "folder_paths"):
            del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


@dataclass
class _Prompt:
    graph: dict

    def get_node(self, node):
        return self.graph[node]

    def all_node_ids(self):
        return set(self.graph)


class Executor:
    """Runs an API-format graph. As in the host every output is a list of values, mostly of one: a node runs once for each
    value of its longest input, unless it takes lists."""

    def __init__(self, host: Host):
        self._host = host
        self._lists: dict[str, tuple[list, ...]] = {}
        self.ui: dict[str, dict] = {}
        self.ran: list[str] = []

    def run(self, graph: dict) -> dict[str, tuple]:
        """The first value of each output of every node that ran, by id. Every prompt has an event loop of its own."""
        return asyncio.run(self._run(graph))

    async def _run(self, graph: dict) -> dict[str, tuple]:
        self._lists = {node: values for node, values in self._lists.items() if node in graph}  # what a cache may know again
        self.prompt = _Prompt(dict(graph))
        for node in graph:
            if self._host.nodes[graph[node]["class_type"]].OUTPUT_NODE:
                self._outputs(node)
        return {node: tuple(values[0] for values in outputs) for node, outputs in self._lists.items()}

    def _outputs(self, node: str) -> tuple[list, ...]:
        if node not in self._lists:
            self._lists[node] = self._execute(node)
        return self._lists[node]

    def _execute(self, node: str) -> tuple[list, ...]:
        entry = self.prompt.graph[node]
        cls, inputs = self._host.nodes[entry["class_type"]], entry["inputs"]
        schema = cls.define_schema() if issubclass(cls, ComfyNode) else Schema("")
        hidden = SimpleNamespace(unique_id=node, dynprompt=self.prompt, prompt=self.prompt.graph, extra_pnginfo=None)
        bound = type(cls.__name__, (cls,), {"hidden": hidden})
        lazy = {socket.id for socket in schema.inputs if socket.options.get("lazy")}
        values = {name: (None,) if name in lazy and is_link(v) else self._input(v) for name, v in inputs.items()}
        if lazy:
            (asked,) = _calls(values, schema.is_input_list)
            values |= {name: self._input(inputs[name]) for name in bound.check_lazy_status(**asked) if name in inputs}
        self.ran.append(node)
        with torch.inference_mode():
            made = [bound.execute(**call) for call in _calls(values, schema.is_input_list)]
        if made[-1].ui is not None:
            self.ui[node] = made[-1].ui
        if made[0].expand is None:
            joined = getattr(cls, "OUTPUT_IS_LIST", ())
            columns = zip(*(output.args for output in made), strict=True)
            return tuple(sum(map(list, c), []) if i < len(joined) and joined[i] else list(c) for i, c in enumerate(columns))
        (output,) = made  # the host fails too: "Attempt to add duplicate node"
        self.prompt.graph.update(output.expand)
        result = tuple(self._input(value) for value in output.args)
        for name, added in output.expand.items():
            if self._host.nodes[added["class_type"]].OUTPUT_NODE:
                self._outputs(name)
        return result

    def _input(self, value) -> list:
        return self._outputs(value[0])[value[1]] if is_link(value) else [value]


def _calls(values: dict[str, list], whole: bool) -> list[dict]:
    """The keyword arguments of each call; short lists repeat their last value."""
    if whole:
        return [values]
    count = max(map(len, values.values()), default=1)
    return [{name: value[min(i, len(value) - 1)] for name, value in values.items()} for i in range(count)]
