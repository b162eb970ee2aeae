"""Meshes from a folder as training data, with augmentation: repainted, turned, stretched, deformed and combined.

The checkpoint contains no mesh data, only trained weights; the folder is not part of the project.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..io.mesh_files import read_mesh
from ..mesh import face_normals
from ..render.mesh import sample_texture
from .classless import rotation
from .surfaces import (
    PAINT,
    Surface,
    centre_surface,
    deform_surface,
    join_surfaces,
    sample_paint,
    sample_palette,
    transform_surface,
)

log = logging.getLogger("microdreamer.train")

SUFFIXES = (".glb", ".gltf", ".obj")
MAX_FACES = 60_000
MAX_BYTES = 64 * 2**20
_VARIANTS = {"blue", "green", "red", "yellow", "brown", "white", "black", "gold", "grey", "orange", "purple", "color", "small"}


@dataclass(frozen=True)
class MeshPool:
    """Meshes of a folder, each within the unit ball.

    Attributes:
        training, held_out: surfaces to train on, and those of ``held_out_files``.
        skipped: files that could not be read or are enormous.
    """

    training: list[Surface]
    held_out: list[Surface]
    skipped: int


def read_pool(folder: Path, held_out_pack: str | None = None) -> MeshPool:
    """Read all GLB, glTF and OBJ files below a folder; unreadable and enormous ones are skipped and counted.

    Args:
        held_out_pack: name of a folder directly below ``folder`` that is excluded from training.

    Raises:
        InputError: the folder is missing, holds no readable mesh to train on, or has no folder of that pack.
    """
    held_out = set(held_out_files(folder, held_out_pack))
    found, skipped = read_surfaces(folder)
    training = [surface for path, surface in found if path not in held_out]
    if not training:
        raise InputError(f"All {len(found)} meshes below {folder} are held out; give a folder with more of them.")
    log.info("%d meshes to train on, %d held out, %d skipped", len(training), len(found) - len(training), skipped)
    return MeshPool(training, [surface for path, surface in found if path in held_out], skipped)


def mesh_files(folder: Path) -> list[Path]:
    """List the GLB, glTF and OBJ files below a folder, sorted by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []


def held_out_files(folder: Path, pack: str | None = None) -> list[Path]:
    """List the files that are never trained on: a tenth of all, chosen by name, and those of a pack.

    Args:
        pack: name of a folder directly below ``folder``.

    Raises:
        InputError: there is no such folder.
    """
    if pack is not None and not (folder / pack).is_dir():
        raise InputError(f"The pack {pack!r} to hold out is not a folder in {folder}; check its name.")
    return [p for p in mesh_files(folder) if p.relative_to(folder).parts[0] == pack or is_held_out(p.name)]


def read_surfaces(folder: Path, paths: Sequence[Path] | None = None) -> tuple[list[tuple[Path, Surface]], int]:
    """Read the meshes below a folder; returns them with the number skipped as unreadable or enormous.

    Args:
        paths: a subset of ``mesh_files(folder)`` to read.

    Raises:
        InputError: the folder is missing or holds no readable mesh.
    """
    paths = mesh_files(folder) if paths is None else paths
    if not paths:
        raise InputError(f"There is no mesh ({', '.join(SUFFIXES)}) below {folder}; give a folder with meshes.")
    found, skipped = [], 0
    for path in paths:
        try:
            found.append((path, read_surface(path)))
        except InputError as error:
            skipped += 1
            log.warning("skipped: %s", error)
    if not found:
        raise InputError(f"None of the {skipped} meshes below {folder} can be read; export them again.")
    return found, skipped


def is_held_out(name: str) -> bool:
    """Return whether a file is in the held-out tenth, by its name without the colours and letters of variants."""
    words = [w for w in re.split(r"[^a-z]+", name.split(".")[0].lower()) if len(w) > 1 and w not in _VARIANTS]
    return zlib.crc32(" ".join(words).encode()) % 10 == 0


def read_surface(path: Path) -> Surface:
    """Read one mesh file into the unit ball, its texture sampled at the corners.

    Raises:
        InputError: the file is unreadable or larger than ``MAX_BYTES`` or ``MAX_FACES``.
    """
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path.name} has {path.stat().st_size >> 20} MiB, the limit is {MAX_BYTES >> 20}; simplify it.")
    mesh = read_mesh(path)
    if len(mesh.faces) > MAX_FACES:
        raise InputError(f"{path.name} has {len(mesh.faces)} triangles, the limit is {MAX_FACES}; simplify it.")
    if not bool(mesh.vertices.isfinite().all()):
        raise InputError(f"{path.name} has vertices that are not finite; export it again.")
    normals = face_normals(mesh.vertices, mesh.faces)
    keep = normals.norm(dim=1) > 1e-12
    if not bool(keep.any()):
        raise InputError(f"{path.name} has no triangle with an area; export it again.")
    faces, normals = mesh.faces[keep], normals[keep]
    if mesh.texture is not None:
        uvs = mesh.texture_coordinates()[faces]
        middle = uvs.mean(1, keepdim=True)  # sampled towards the centre: in atlases, neighbouring texels have other colours
        colors = sample_texture(mesh.texture, (0.9 * uvs + 0.1 * middle).flatten(0, 1) % 1.0).unflatten(0, (-1, 3))
    elif mesh.colors is not None:
        colors = mesh.colors[faces]
    else:
        colors = torch.full((len(faces), 3, 3), 0.7)
    normals = _corner_normals(mesh.vertices, faces, normals)
    return centre_surface(Surface.plain(mesh.vertices[faces].numpy(), normals.numpy(), colors.numpy()))


def _corner_normals(vertices: torch.Tensor, faces: torch.Tensor, normals: torch.Tensor, crease: float = 50.0) -> torch.Tensor:
    """[M,3,3] smooth corner normals; a corner whose normal would bend by more than ``crease`` degrees keeps the flat one."""
    step = float((vertices.amax(0) - vertices.amin(0)).max()) * 1e-5
    _, welded = torch.unique(torch.round(vertices / max(step, 1e-12)).long(), dim=0, return_inverse=True)
    corners = welded[faces]
    total = torch.zeros(int(welded.max()) + 1, 3).index_add_(0, corners.flatten(), normals.repeat_interleave(3, 0))
    smooth, flat = (torch.nn.functional.normalize(x, dim=-1) for x in (total[corners], normals[:, None].expand(-1, 3, -1)))
    return torch.where((smooth * flat).sum(-1, keepdim=True) > math.cos(math.radians(crease)), smooth, flat)


def sample_variation(pool: Sequence[Surface], rng: np.random.Generator, free: bool = True) -> Surface:
    """Sample a variation of a mesh in the pool, within the unit ball: repainted, turned, mirrored, stretched, deformed.

    Args:
        free: False only turns it around the vertical axis, for evaluation.
    """
    surface = pool[int(rng.integers(len(pool)))]
    if not free:
        return centre_surface(transform_surface(surface, rotation(0, rng.uniform(-math.pi, math.pi), 0)))
    surface = _vary(surface, rng)
    if rng.random() < 0.15:
        other = transform_surface(_vary(pool[int(rng.integers(len(pool)))], rng), np.eye(3) * rng.uniform(0.3, 1))
        way = np.eye(3)[rng.choice([0, 1, 1, 2])] * rng.choice([-1, 1])
        gap = (surface.corners @ way).max() - (other.corners @ way).min()
        other = replace(other, corners=(other.corners + way * gap * rng.uniform(0.6, 1.0)).astype(np.float32))
        surface = centre_surface(join_surfaces([surface, other]))
    return surface


def _vary(surface: Surface, rng: np.random.Generator) -> Surface:
    surface = replace(surface, colors=_recolor(surface.colors, rng))
    if rng.random() < 0.25:
        paints = np.concatenate([np.zeros((1, PAINT), np.float32), [sample_paint(rng, sample_palette(rng, 1)[0])]])
        surface = replace(surface, paint=np.ones(len(surface), np.int64), paints=paints.astype(np.float32))
    matrix = rotation(0, rng.uniform(-math.pi, math.pi), 0)
    if rng.random() < 0.1:
        matrix = rotation(*rng.normal(0, 0.4, 3)) @ matrix
    elif rng.random() < 0.05:
        matrix = rotation(*rng.uniform(-math.pi, math.pi, 3)) @ matrix
    if rng.random() < 0.6:
        matrix = matrix @ np.diag(np.exp(rng.normal(0, 0.2, 3)))
    if rng.random() < 0.5:
        matrix = matrix @ np.diag([-1.0, 1, 1])
    surface = centre_surface(transform_surface(surface, matrix))
    return centre_surface(deform_surface(surface, rng)) if rng.random() < 0.25 else surface


def _recolor(colors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep the colours, shift their hue and contrast, or replace every colour by another with the same shading."""
    choice = rng.random()
    if choice < 0.3:
        return colors
    if choice < 0.65:
        angle, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.5)
        grey = colors.mean(-1, keepdims=True)
        c, s = math.cos(angle) * stretch, math.sin(angle) * stretch / math.sqrt(3)
        turn = c * np.eye(3) + s * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        mixed = np.clip(grey + (colors - grey) @ turn.T, 0, 1) ** rng.uniform(0.6, 1.6)
        return mixed.astype(np.float32)
    cells = (colors.mean(1) * 3.999).astype(np.int64) @ np.array([16, 4, 1])
    _, label = np.unique(cells, return_inverse=True)
    palette = sample_palette(rng, int(label.max()) + 1)
    shade = colors.mean(-1, keepdims=True)
    mean = np.bincount(label, shade.mean((1, 2))) / np.bincount(label)
    return np.clip(palette[label][:, None] * (shade / np.maximum(mean[label], 0.05)[:, None, None]), 0, 1).astype(np.float32)
