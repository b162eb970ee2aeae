"""Published multi-view checkpoints: detection of the model family, and loading.

Where the parts of a model are looked for: in the checkpoint itself (a file's prefixes, a folder's subfolders), then in a folder
beside the file that is named like it without its ending, then in the folder in which it lies; there as a subfolder or a weight
file named vae, text_encoder, image_encoder or cc_projection.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from ..diffusion import keys
from ..diffusion.embedded.checkpoint import read_config
from ..diffusion.encoders import ClipText, ClipVision, Shapes, Vae, build_clip_text, build_clip_vision, build_vae
from ..diffusion.imagedream import ImageDream
from ..diffusion.latent import LATENT_SIDE, LatentModel, Parts, require
from ..diffusion.mvdream import MVDream
from ..diffusion.protocol import Checkpoint
from ..diffusion.tokenizer import load_tokenizer
from ..diffusion.unet import UNetConfig, build_unet
from ..diffusion.zero123 import Zero123
from ..errors import InputError
from ..util.devices import to_channels_last
from ..util.settings import check_settings
from .files import FLOATS, SUFFIXES, WeightFile, Weights, part_files

Family = Literal["mvdream", "imagedream", "zero123", "embedded"]
Variant = Literal["auto", "pixel", "local", "plain", "xl", "stable"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]

VARIANTS: dict[str, tuple[str, ...]] = {"mvdream": (), "imagedream": ("pixel", "local"), "zero123": ("plain", "xl", "stable")}
"""Variants of each family. Tensors do not tell them apart: the published files of a family have the same names and shapes."""

MODELS: dict[str, type[LatentModel]] = {"mvdream": MVDream, "imagedream": ImageDream, "zero123": Zero123}
ModuleT = TypeVar("ModuleT", bound=nn.Module)
FOLDER_VARIABLE = "MICRODREAMER_MODELS"

_NEEDED: dict[str, tuple[keys.Component, ...]] = {
    "mvdream": ("unet", "vae", "text"),
    "imagedream": ("unet", "vae", "text", "vision"),
    "zero123": ("unet", "vae", "vision", "camera"),
}
_PLACES: dict[str, tuple[str, ...]] = {
    "unet": ("unet",),
    "vae": ("vae",),
    "text": ("text_encoder",),
    "vision": ("image_encoder",),
    "camera": ("clip_camera_projection", "cc_projection"),
}
PART_FOLDERS = frozenset(name for names in _PLACES.values() for name in names)
"""Names of the folders that hold parts of a model."""


@dataclass(frozen=True)
class ModelOptions:
    """How to load a checkpoint.

    Attributes:
        variant: "auto" goes by the file name ("stable", "xl", "local").
        ema: use the UNet's EMA weights if the file has them, as the original programs do.
        dtype: "auto" is what the family's released code uses on a GPU (float16 for Zero123, float32 for MVDream and
            ImageDream), and float32 on the CPU.
        low_memory: run one guidance branch and one view at a time, and CLIP, which runs once, on the CPU; slower.
        graphs: replay the network's calls as CUDA graphs, on CUDA with weights that stay in place; takes memory for a second
            set of activations, so not with ``low_memory``.

    Raises:
        InputError: an unknown value.
    """

    variant: Variant = "auto"
    ema: bool = True
    dtype: Dtype = "auto"
    low_memory: bool = False
    graphs: bool = True

    def __post_init__(self):
        check_settings(self)
        for name, allowed in (("variant", get_args(Variant)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in allowed:
                raise InputError(f"The model's {name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")

    def torch_dtype(self, device: torch.device, family: Family) -> torch.dtype:
        """Return the dtype of a family's networks on a device."""
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.float16 if family == "zero123" and device.type != "cpu" else torch.float32


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint is, known without loading it.

    Attributes:
        family, variant: which model; variant is empty if the family has only one.
        layout: naming of the UNet's tensors, "original" or "diffusers".
        image_size: side of its square images in pixels.
        size: bytes of the file, or of the files used in the folder.
        dtype: the one in which most of the UNet is stored.
        ema: whether it holds EMA weights.
        inside: parts found in it; beside: parts found next to it; missing: one message for each part not found.
    """

    path: Path
    family: Family
    variant: str
    layout: str
    image_size: int
    size: int
    dtype: str
    ema: bool
    inside: tuple[str, ...]
    beside: tuple[str, ...]
    missing: tuple[str, ...]


def models_folder() -> Path:
    """Return the folder in which checkpoints are found by name: $MICRODREAMER_MODELS, otherwise ./models."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "models")


def find(folder: Path) -> list[Path]:
    """List weight files and model folders in a folder, sorted; other programs' files may be among them."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if (path.is_dir() and part_files(path / "unet"))
        or (path.is_file() and path.suffix.lower() in SUFFIXES and path.stem not in PART_FOLDERS)
    )


def locate_checkpoint(model: str) -> Path:
    """Return the path of a checkpoint given by path, or by name (with or without suffix) in the models folder.

    Raises:
        InputError: no such checkpoint.
    """
    folder = models_folder()
    tried = [Path(model), folder / model, *(folder / (model + suffix) for suffix in SUFFIXES)]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise InputError(f"There is no model {model!r}, neither here nor in {folder}; give 'embedded' or a checkpoint's path.")
    return found.resolve()


def inspect(path: Path, options: ModelOptions = ModelOptions()) -> CheckpointInfo:  # noqa: B008 - immutable
    """Detect family, variant, layout and parts of a checkpoint from the names and shapes of its tensors.

    Raises:
        InputError: it cannot be read, or is not a multi-view model; the message gives the reason.
    """
    return _Checkpoint(path).info(options)


def load(
    path: Path,
    options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
    device: torch.device | str = "cpu",
) -> Checkpoint:
    """Load the model in a checkpoint onto a device; ``condition(...)`` makes it ready for SIR.

    Tensors are copied one by one from the file to the device, so that peak memory is little more than the model.

    Raises:
        InputError: it cannot be read, is not a multi-view model, or a part of it is missing.
    """
    device = torch.device(device)
    checkpoint = _Checkpoint(path)
    info = checkpoint.info(options)
    if info.family == "embedded":
        from ..diffusion.embedded.model import EmbeddedModel

        model = EmbeddedModel.load(path, device)
        if options.graphs:
            model.use_graphs()
        return model
    if info.missing:
        raise InputError(f"{path.name} lacks a part: {' '.join(info.missing)}")
    usual = options.torch_dtype(device, info.family), device
    clip = (torch.float32, torch.device("cpu")) if options.low_memory else usual

    def filled(
        which: keys.Component,
        build: Callable[[Shapes], ModuleT],
        mapping: Callable[[Shapes, ModuleT], keys.Map],
        exact: bool = False,
        place: tuple[torch.dtype, torch.device] = usual,
    ) -> ModuleT:
        weights = require(checkpoint.part(which, options.ema), which)
        try:
            module = build(weights.shapes)
            names = mapping(weights.shapes, module)
        except Exception as error:  # as in _family
            raise InputError(
                f"{path.name} holds another network as its {which} ({error!r:.200}); download it again."
            ) from error
        return _fill(module, names, weights, *place, exact=exact)

    unet = filled("unet", lambda shapes: build_unet(UNetConfig.from_shapes(shapes)), lambda n, _: keys.unet_map(n), True)
    if options.graphs and not options.low_memory:
        unet.use_graphs()
    vae = Vae(filled("vae", build_vae, lambda names, _: keys.vae_map(names)), options.low_memory)
    text = vision = camera = None
    if "text" in _NEEDED[info.family]:
        tower = filled("text", build_clip_text, lambda n, m: keys.clip_text_map(n, m.state_dict()), place=clip)
        text = ClipText(tower, load_tokenizer())
    if "vision" in _NEEDED[info.family]:
        activation = "quick_gelu" if info.family == "zero123" else "gelu"
        vision = ClipVision(
            filled(
                "vision",
                lambda shapes: build_clip_vision(shapes, activation=activation),
                lambda names, module: keys.clip_vision_map(names, module.state_dict()),
                place=clip,
            )
        )
    if "camera" in _NEEDED[info.family]:
        camera = filled("camera", _build_camera, lambda names, _: keys.camera_map(names), True)
    checkpoint.close()
    parts = Parts(unet, vae, text, vision, camera, options.low_memory)
    to_channels_last(parts.networks(), device)
    return MODELS[info.family](parts, str(path), info.variant)


class _Checkpoint:
    """A checkpoint's parts: their files and tensor names."""

    def __init__(self, path: Path):
        self.path = path
        self._files: dict[Path, WeightFile] = {}
        if path.is_dir():
            self.places, self._main = [path], None
        else:
            self._main = self._file(path)
            self.places = [path.with_suffix(""), path.parent]

    def part(self, which: keys.Component, ema: bool = True) -> Weights | None:
        """The tensors of a component by name without prefix; None if it is not found."""
        return self._find_inside(which, ema) or (None if self._main is None else self._find_beside(which))

    def info(self, options: ModelOptions) -> CheckpointInfo:
        if self._main is not None and self._main.metadata.get("kind", "").startswith("microdreamer-embedded"):
            dtype, parts = _main_dtype(Weights.of([self._main])), ("codec", "denoiser")
            side = read_config(self.path).image_size
            return CheckpointInfo(self.path, "embedded", "", "own", side, self._size(), dtype, False, parts, (), ())
        family = self._family()
        needed, unet = _NEEDED[family], require(self.part("unet", options.ema), "UNet")
        self._check_dtypes(unet)
        inside = tuple(which for which in needed if self._find_inside(which))
        beside = tuple(which for which in needed if which not in inside and self.part(which))
        return CheckpointInfo(
            self.path,
            family,
            _variant(family, self.path.name, options.variant),
            "diffusers" if "conv_in.weight" in unet.shapes else "original",
            self._image_size(),
            self._size(),
            _main_dtype(unet),
            self._main is not None and keys.has_ema(self._main.shapes),
            inside,
            beside,
            tuple(_absent(which, family, self.places[-1]) for which in needed if which not in inside + beside),
        )

    def _check_dtypes(self, unet: Weights) -> None:
        """Refuse weights that are not floating-point numbers, as those of quantised files.

        Raises:
            InputError: there are some.
        """
        other = next((name for name in unet.shapes if unet.dtype(name) not in FLOATS), None)
        if other is not None:
            raise InputError(
                f"{self.path.name} is quantised ({other!r:.100} is {unet.dtype(other)}), which is not read; get it in float32, "
                "float16, bfloat16 or float8."
            )

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _family(self) -> Family:
        """Detect the family from the UNet's shapes.

        Raises:
            InputError: another kind of model.
        """
        name = self.path.name
        unet = self.part("unet")
        if unet is None:
            raise InputError(f"{name} holds no diffusion UNet{self._describe_tensors()}; {_EXPECTED}.")
        try:
            config = UNetConfig.from_shapes(unet.shapes)
        except Exception as error:  # shapes may be anything: too few dimensions, none, zeros
            raise InputError(f"{name} holds a UNet of another kind ({str(error).rstrip('.'):.200}); {_EXPECTED}.") from error
        if config.camera_dim is not None:
            return "mvdream" if config.resampler is None else "imagedream"
        if config.in_channels == 8:
            return "zero123"
        raise InputError(
            f"{name} is a Stable Diffusion model without camera input ({config.in_channels} input channels, no camera_embed); "
            f"{_EXPECTED}. In ComfyUI, Model from ComfyUI uses such a model with view words."
        )

    def _describe_tensors(self) -> str:
        if self._main is None:
            return " in a subfolder unet"
        some = ", ".join(f"{name!r:.100}" for name in list(self._main.shapes)[:2])
        return f" (it begins with {some})" if some else " and no tensors at all"

    def _find_inside(self, which: keys.Component, ema: bool = True) -> Weights | None:
        if self._main is None:
            return self._find_beside(which)
        names = keys.component(self._main.shapes, which, ema)
        return Weights.of([self._main]).rename(names) if names else None

    def _find_beside(self, which: keys.Component) -> Weights | None:
        for place in (folder / name for folder in self.places for name in _PLACES[which]):
            found = Weights.of(self._file(path) for path in part_files(place))
            names = keys.component(found.shapes, which)
            if names:
                return found.rename(names)
        return None

    def _file(self, path: Path) -> WeightFile:
        if path not in self._files:
            self._files[path] = WeightFile(path)
        return self._files[path]

    def _image_size(self) -> int:
        """Side of the model's images: every level of the autoencoder but the first halves the resolution."""
        vae = self.part("vae")
        found = [] if vae is None else [re.match(r"encoder\.down(?:_blocks)?\.(\d)\.", name) for name in vae.shapes]
        return LATENT_SIDE * 2 ** max((int(level[1]) for level in found if level), default=3)

    def _size(self) -> int:
        files = self._files if self._main is None else [self.path]
        return sum(path.stat().st_size for path in files)


_EXPECTED = "expected MVDream, ImageDream, Zero123, Zero123-XL or Stable Zero123"
_ABSENT = {
    "unet": "the UNet",
    "vae": "Stable Diffusion's autoencoder kl-f8 (335 MB in float32, 167 MB in half)",
    "text": "CLIP ViT-H-14's text tower of laion2b_s32b_b79k (1.4 GB in float32, 0.7 GB in half)",
    "camera": "the projection of picture and camera (2.4 MB)",
}
_TOWERS = {
    "imagedream": "CLIP ViT-H-14's image tower of laion2b_s32b_b79k (2.5 GB in float32, 1.3 GB in half)",
    "zero123": "OpenAI's CLIP ViT-L-14 image tower (1.2 GB in float32, 0.6 GB in half)",
}


def _absent(part: str, family: Family, place: Path) -> str:
    """A sentence on a missing part: what it is, how large it usually is, where it goes."""
    what = _TOWERS[family] if part == "vision" else _ABSENT[part]
    return f"{what[0].upper()}{what[1:]} is missing: put it as a folder or weight file {_PLACES[part][-1]} into {place}."


def _variant(family: Family, name: str, wanted: str) -> str:
    """The requested variant, otherwise the one in the file name, otherwise the family's first.

    Raises:
        InputError: the family has no such variant.
    """
    known = VARIANTS[family]
    if wanted != "auto":
        if wanted not in known:
            choices = f"choose one of {', '.join(known)}" if known else "leave it at auto"
            raise InputError(f"{family} has no variant {wanted!r}; {choices}.")
        return wanted
    return next((variant for variant in known[::-1] if variant in name.lower()), known[0] if known else "")


def _build_camera(shapes: Shapes) -> nn.Linear:
    rows, columns = next(shape for name, shape in shapes.items() if name.endswith("weight"))
    with torch.device("meta"):
        return nn.Linear(columns, rows)


def _fill(
    module: ModuleT, mapping: keys.Map, weights: Weights, dtype: torch.dtype, device: torch.device, *, exact: bool
) -> ModuleT:
    """Fill a module on "meta" with its tensors, copied one by one to the device and dtype.

    Args:
        exact: refuse tensors that the module lacks: the file then holds another network.

    Raises:
        InputError: tensors are missing, left over or of other shapes.
    """
    file = weights.files[0].path.name
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    taken = {}
    for old, targets in mapping.items():
        known = [target for target in targets if target.name in wanted]
        if exact and len(known) < len(targets):
            raise InputError(f"{file} holds {old!r}, which this network has no place for; it is another model's.")
        for target in known:
            tensor = target.take(weights.read(old))
            if tuple(tensor.shape) != wanted[target.name]:
                raise InputError(
                    f"{file} holds {old!r} of shape {list(tensor.shape)}, expected {list(wanted[target.name])}; it is another "
                    "model's."
                )
            taken[target.name] = tensor.to(device=device, dtype=dtype, copy=True).contiguous()
    lacking = sorted(wanted.keys() - taken.keys())
    if lacking:
        raise InputError(f"{file} lacks {len(lacking)} of {len(wanted)} tensors, {lacking[0]!r} first; download it again.")
    module.requires_grad_(False)
    module.load_state_dict(taken, assign=True)
    return module.to(device).eval()


def _main_dtype(weights: Weights) -> str:
    """The dtype in which most numbers are stored."""
    counts: Counter[str] = Counter()
    for name, shape in weights.shapes.items():
        counts[weights.dtype(name)] += math.prod(shape)
    return counts.most_common(1)[0][0]
