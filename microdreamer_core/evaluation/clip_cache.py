"""CLIP models for the report: Hugging Face's layout, or open_clip's where that is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.load import models_folder
from ..diffusion.encoders import clip_pixels
from ..errors import InputError
from .clip_similarity import CLIP_FOLDER, Clip, check_clip, clip_kind, default_clip, load_clip
from .sources import file_stamp

_OPEN_CLIP = "open_clip_config.json"


@dataclass(frozen=True)
class OpenClip:
    """An open_clip model in place of a ``Clip``."""

    model: Any
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """[V,H,W,3] in [0,1] -> [V,D] unit length."""
        pixels = clip_pixels(images.to(self.device), self.size, self.mean, self.std)
        return F.normalize(self.model.encode_image(pixels).float(), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Refused: open_clip's tokenizers are not read here.

        Raises:
            InputError: always.
        """
        raise InputError("A model that takes words alone is judged by a CLIP in Hugging Face's layout; choose one with --clip.")


def clip_stamp(folder: Path) -> str:
    return f"{folder.resolve().name}/{file_stamp(folder)}"


def chosen_clip(folder: Path | None) -> tuple[Path | None, str | None]:
    """(the CLIP to use, None) or (None, why there is none).

    Args:
        folder: of a CLIP; None looks for one in the models folder.

    Raises:
        InputError: the given folder holds no CLIP, or one of open_clip's while that is not installed.
    """
    if folder is not None:
        _check(folder)
        return folder, None
    try:
        return default_clip(models_folder() / CLIP_FOLDER), None
    except InputError as error:
        return None, f"CLIP similarity was not measured. {error}"


def _check(folder: Path) -> None:
    if (folder / _OPEN_CLIP).is_file():
        _open_clip()
    elif clip_kind(folder) is None:
        raise InputError(
            f"{folder} holds no CLIP: neither a config.json of model_type clip nor open_clip's {_OPEN_CLIP}; choose another."
        )
    else:
        check_clip(folder)


def load_any_clip(folder: Path, device: torch.device) -> Clip | OpenClip:
    """The CLIP of a folder.

    Raises:
        InputError: it holds none, or one that cannot be read.
    """
    _check(folder)
    if not (folder / _OPEN_CLIP).is_file():
        return load_clip(folder, device)
    library = _open_clip()
    try:
        config = json.loads((folder / _OPEN_CLIP).read_text(encoding="utf-8"))
        pictures = config["preprocess_cfg"]
        size = config["model_cfg"]["vision_cfg"]["image_size"]
        model = library.create_model(f"local-dir:{folder.resolve()}", device=device).float().eval().requires_grad_(False)
        return OpenClip(model, size, tuple(pictures["mean"]), tuple(pictures["std"]), device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"open_clip cannot read the model in {folder} ({error}); copy it again.") from error


def _open_clip():
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"A folder with {_OPEN_CLIP} needs open_clip, which does not load here ({error}); run pip install open_clip_torch, "
            "or choose a CLIP in Hugging Face's layout."
        ) from error
    return open_clip
