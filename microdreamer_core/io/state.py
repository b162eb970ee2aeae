"""Saved fields: everything needed to resume exactly, in one safetensors file.

The tensors are the field's; the metadata holds format, version, kind, the field's other values and the caller's extras as
JSON. Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..fields.protocol import Field
from ..util.atomic import replace_file
from ..util.readable import quote_error

FORMAT = "microdreamer-field"
VERSION = 1
KINDS = {
    "gaussians": ("..fields.gaussians", "Gaussians"),
    "nerf": ("..fields.nerf", "NeRF"),
    "texture": ("..fields.texture", "TextureField"),
}
"""Kind -> module and class, imported only when a file of that kind is read."""


@dataclass(frozen=True)
class SavedState:
    """A field and the caller's values saved with it (plan, iteration, seed ...)."""

    field: Field
    extra: dict[str, Any]


def save_state(path: str | Path, field: Field, extra: dict[str, Any] | None = None) -> Path:
    """Save a field atomically: an older file at ``path`` is replaced only by a complete new one.

    Args:
        extra: JSON values needed to resume.

    Raises:
        InputError: the folder does not exist, the kind is not registered, or ``extra`` is not JSON.
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if field.kind not in KINDS:
        raise InputError(f"Fields of kind {field.kind!r} cannot be saved, only {', '.join(KINDS)}; add it to io.state.KINDS.")
    tensors, values = field.to_state()
    try:
        texts = {"values": json.dumps(values), "extra": json.dumps(extra or {})}
    except TypeError as error:
        raise InputError(f"A saved state takes JSON values only ({error}); convert them first.") from error
    metadata = {"format": FORMAT, "version": str(VERSION), "kind": field.kind, **texts}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_file(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(None, str(error), str(path)) from error
    return Path(path)


def load_state(path: str | Path, device: torch.device | str = "cpu") -> SavedState:
    """Read a file written by :func:`save_state`.

    Raises:
        InputError: no such file, another kind of file, a truncated one, or an unknown version or kind.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path.name} is a safetensors file without a saved field; choose a state that this program wrote.")
    if metadata.get("version") != str(VERSION):
        raise InputError(
            f"{path.name} is a saved field of version {metadata.get('version')!s:.20}, expected {VERSION}; "
            "open it with the release that wrote it."
        )
    kind = metadata.get("kind")
    if kind not in KINDS:
        raise InputError(
            f"{path.name} holds a field of kind {kind!r:.50}, expected one of {', '.join(KINDS)}; update this program."
        )
    try:
        values, extra = json.loads(metadata["values"]), json.loads(metadata["extra"])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} has damaged metadata ({error}); use another copy.") from error
    if not isinstance(extra, dict):
        raise InputError(f"{path.name} says nothing about its run, but holds {extra!r:.40}; use another copy.")
    _check_tensors(tensors, path.name)
    module, name = KINDS[kind]
    field_class = getattr(import_module(module, __package__), name)
    return SavedState(field_class.from_state(tensors, values).to(device), extra)


def _check_tensors(tensors: dict[str, Tensor], file: str) -> None:
    """Refuse tensors that are not finite float32: they would cause a crash or NaN much later."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise InputError(f"{file} holds {name!r} as {tensor.dtype}, expected torch.float32; use another copy.")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{file} holds NaN or infinite numbers in {name!r}; use another copy.")


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    try:
        with safe_open(path, "pt") as file:
            # cloned, because memory-mapped tensors would keep the file open and change with it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not iterable
            return file.metadata() or {}, tensors
    except Exception as error:  # raised by safetensors, or by torch for an unknown dtype or shape
        raise InputError(f"{path.name} is not a whole safetensors file ({quote_error(error)}); use another copy.") from error
