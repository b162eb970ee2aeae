"""Splat files of all formats that are read and written, by first bytes and by file name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from ..fields.gaussians import Gaussians, GaussianSettings, Parameters
from ..util.atomic import replace_file
from ..util.vocabulary import SPLAT_FORMATS, Up
from .gltf_splats import decode_gltf, encode_gltf, holds_gltf_splats
from .ply import HEADER_LIMIT, decode_ply, encode_ply, holds_gaussians
from .ply_compressed import encode_compressed_ply
from .splat_axes import check_up, from_file_axes, to_file_axes
from .splat_records import decode_ksplat, decode_splat, encode_splat
from .spz import GZIP, MAGIC, decode_spz, encode_spz

logger = logging.getLogger(__name__)

_OPAQUE_LOGIT = 16.0  # replaces an infinite logit: opacity 1 - 1e-7, the largest float32 below 1
_LARGEST = 1e12  # positions, sizes and quaternions whose squares still fit into float32
_USUAL_UP: Up = "-y"


@dataclass(frozen=True)
class _Format:
    """How splats are written.

    Attributes:
        encode: (parameters in the file's axes, its up axis) -> content.
        up: the only up axis that the format has, None if any.
    """

    encode: Callable[[Parameters, Up], bytes]
    up: Up | None = None


_WRITERS = {
    "ply": _Format(encode_ply),
    "compressed.ply": _Format(encode_compressed_ply),
    "spz": _Format(lambda parameters, _: encode_spz(parameters)),
    "splat": _Format(lambda parameters, _: encode_splat(parameters)),
    "glb": _Format(lambda parameters, _: encode_gltf(parameters), "+y"),
}
ONLY_SPLATS = (".spz", ".splat", ".ksplat")
"""Suffixes of files that can hold nothing else."""
READABLE = (".ply", *ONLY_SPLATS, ".glb", ".gltf")


def write_gaussians(path: str | Path, field: Gaussians, up: Up = _USUAL_UP) -> Path:
    """Write Gaussians in the format of the file's name, without optimiser state and settings (``io/state.py`` keeps them).

    A .ply keeps every number exactly and says its up axis, as a .compressed.ply does; .spz and .splat have eight bits for most
    values; a .glb (KHR_gaussian_splatting) is always +y.

    Raises:
        InputError: an unknown suffix or up axis, no Gaussians, or a missing folder.
    """
    path = Path(path)
    check_up(up)
    kind = max((kind for kind in SPLAT_FORMATS if path.name.lower().endswith(f".{kind}")), key=len, default=None)
    if kind is None:
        raise InputError(f"Splats are written as {', '.join(SPLAT_FORMATS)}, got {path.name!r}; change the suffix.")
    if not len(field):
        raise InputError("A splat file needs at least one Gaussian, got none; make the field again.")
    with replace_file(path) as temporary:
        temporary.write_bytes(_encode(field, kind, up))
    return path


def ply_bytes(field: Gaussians, up: Up = _USUAL_UP) -> bytes:
    """Return what ``write_gaussians`` writes as .ply."""
    return _encode(field, "ply", up)


def _encode(field: Gaussians, kind: str, up: Up) -> bytes:
    writer = _WRITERS[kind]
    up = writer.up or up
    return writer.encode(to_file_axes(field.parameters.map(lambda tensor: tensor.detach().cpu().float()), up), up)


def read_splat(path: str | Path, settings: GaussianSettings | None = None, seed: int = 0, up: Up | None = None) -> Gaussians:
    """Read a splat: .ply (3DGS, compressed, 2D Gaussians, coloured points), .spz, .splat, .ksplat, .glb or .gltf.

    The first bytes decide the format, for .splat, which has none of its own, the name. Spherical harmonics above degree 0 are
    ignored. Gaussians with numbers that are not finite, without size or with a zero quaternion are dropped with a warning;
    infinite opacity logits, which some converters write, are taken as opaque or empty; quaternions whose squares float32 does
    not hold are scaled.

    Args:
        settings, seed: of the new field, which starts at step 0.
        up: up axis of the file; None takes that of a .ply's comment ("up +y", "Vertical Axis: z") or of glTF, otherwise -y.

    Raises:
        InputError: an unknown up axis, another or a damaged file, or no usable Gaussian in it.
    """
    if up is not None:
        check_up(up)
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    try:
        parameters, stated = _decode(data, path)
    except InputError:
        raise
    except Exception as error:  # damaged files raise anything that struct, zlib, numpy and json raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path.name} is damaged ({reason}); copy or export it again.") from error
    parameters = from_file_axes(_drop_unusable(parameters, path.name), up or stated or _USUAL_UP)
    return Gaussians(parameters, settings or GaussianSettings(), seed)


def holds_splat(path: Path) -> bool:
    """Return whether a file is read as a splat rather than as a mesh; True for a .ply or glTF only if it says so."""
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        return holds_gltf_splats(path)
    if suffix != ".ply":
        return suffix in ONLY_SPLATS
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_LIMIT)
    except OSError:
        return True  # the reader of splats says why it cannot be read
    return holds_gaussians(start) or not start.startswith(b"ply")


def _decode(data: bytes, path: Path) -> tuple[Parameters, Up | None]:
    name, suffix = path.name, path.suffix.lower()
    if data.startswith(b"ply"):
        return decode_ply(data, name)
    if data.startswith((GZIP, MAGIC)):
        return decode_spz(data, name), None
    if data.startswith(b"glTF") or suffix == ".gltf":
        return decode_gltf(data, name, path), "+y"
    if suffix == ".ksplat":
        return decode_ksplat(data, name), None
    if suffix == ".splat":
        return decode_splat(data, name), None
    if suffix == ".ply":
        return decode_ply(data, name)  # which says that it is none
    raise InputError(f"{name} is not a splat in a format that is read ({', '.join(READABLE)}); export it as one of these.")


def _drop_unusable(parameters: Parameters, name: str) -> Parameters:
    """Drop Gaussians that cannot be shown, with a warning.

    Raises:
        InputError: none is left.
    """
    means, log_scales, quats, logits, dc = parameters
    logits = torch.where(logits.isinf(), logits.sign() * _OPAQUE_LOGIT, logits)
    longest = quats.abs().amax(1, keepdim=True)
    quats = torch.where((longest < 1 / _LARGEST) | (longest > _LARGEST), quats / longest, quats)
    parameters = parameters._replace(opacity_logits=logits, quats=quats)
    finite = torch.cat([means, log_scales, quats, logits[:, None], dc], 1).isfinite().all(1)
    shown = (means.abs() < _LARGEST).all(1) & (log_scales.exp() < _LARGEST).all(1)
    usable = finite & shown & (quats != 0).any(1)
    if not bool(usable.any()):
        what = f"none of them with finite numbers below {_LARGEST:g} and a rotation"
        raise InputError(f"{name} holds {len(usable)} Gaussians, {what}; export it again.")
    if not bool(usable.all()):
        dropped = int((~usable).sum())
        logger.warning("%s: dropped %d of %d Gaussians, not finite or not rotated", name, dropped, len(usable))
    return parameters.map(lambda tensor: tensor[usable])
