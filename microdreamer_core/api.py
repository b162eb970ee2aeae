"""The whole job in one call: ``md.image_to_3d`` and ``md.text_to_3d`` of ``import microdreamer_core as md``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .fields.protocol import Field
from .io.mesh_files import write_mesh
from .job.outputs import plan_files, write_asset
from .job.run import Asset, Job, job_from_image, job_from_prompt, make_asset
from .mesh import Mesh
from .meshing.settings import MeshSettings
from .sir.hooks import Hooks
from .sir.iterations import Iteration

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike = Union[str, Path, "Image", np.ndarray, Tensor]
"""A file, a Pillow image, or [H,W,C]: 8 bits, or floats in [0,1]."""


@dataclass(frozen=True)
class Asset3D:
    """A finished 3D asset.

    Attributes:
        job: the settings; asset: the results, with stage records and seconds.
    """

    job: Job
    asset: Asset

    def __repr__(self) -> str:
        return f"Asset3D({self.job.source!r}, {self.field!r}, {len(self.mesh.faces)} triangles)"

    @property
    def field(self) -> Field:
        """The optimised representation: :class:`Gaussians` or :class:`NeRF`."""
        return self.asset.field

    @property
    def mesh(self) -> Mesh:
        """The textured mesh."""
        return self.asset.mesh

    def save(self, path: str | Path, *, splat: bool = False, turntable: bool = False, report: bool = False) -> dict[str, Path]:
        """Write the mesh and any files chosen beside it, each atomically.

        Args:
            path: ends in .glb, or in .obj or .ply for the mesh alone.
            splat: also write the Gaussians as .ply.
            turntable: also write a video and a contact sheet.
            report: also write a .json of stages, seconds, evaluations and versions.

        Returns:
            Paths of the written files by kind ("mesh", "splat", ...).

        Raises:
            InputError: the suffix is unknown, or another file than the mesh is chosen with .obj or .ply.
            OSError: a file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".glb":
            files = plan_files(path, splat=splat, film=turntable, report=report)
            del files["state"]
            return write_asset(self.asset, self.job, files)
        if splat or turntable or report:
            raise InputError(f"Splat, turntable and report are written beside a .glb, got {path.name!r}; change its suffix.")
        return {"mesh": write_mesh(path, self.mesh)}


def image_to_3d(
    image: ImageLike,
    *,
    mask: ImageLike | None = None,
    mesh: MeshSettings = MeshSettings(),  # noqa: B008 - immutable
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
    **choices: Any,
) -> Asset3D:
    """Make a textured 3D asset from an image of one object: SIR, mesh extraction, texture, texture refinement.

    >>> import microdreamer_core as md
    >>> asset = md.image_to_3d("samples/bird.png", seed=1)  # doctest: +SKIP
    >>> asset.save("bird.glb", splat=True)  # doctest: +SKIP

    Args:
        image: the object, with transparency, on a plain background, or with a mask.
        mask: coverage of the object.
        mesh: how the mesh is extracted and textured.
        hooks: progress and cancellation.
        on_iteration: called with every finished iteration.
        choices: ``model`` ("embedded", or a checkpoint's path or name), ``preset``, ``representation`` ("gaussians" or
            "nerf"), ``prompt``, ``negative``, ``elevation`` in degrees, ``matting``, ``seed``, ``device``, ``options``,
            ``nerf_size``, and any field of :class:`SIRPlan`, say ``iterations`` or ``t2_start``.

    Raises:
        InputError: image or choices cannot be used; the message says how to fix it.
        NumericalError: a value became NaN or infinite.
    """
    job = job_from_image(_to_image(image), None if mask is None else _to_mask(mask), **choices)
    return Asset3D(job, make_asset(job, mesh, hooks=hooks, on_iteration=on_iteration))


def text_to_3d(
    prompt: str,
    *,
    mesh: MeshSettings = MeshSettings(),  # noqa: B008 - immutable
    hooks: Hooks = Hooks(),  # noqa: B008 - immutable
    on_iteration: Callable[[Iteration], None] | None = None,
    **choices: Any,
) -> Asset3D:
    """Make a textured 3D asset from a prompt, with a model that takes one (MVDream).

    Args:
        prompt: what to make.
        mesh, hooks, on_iteration, choices: as for :func:`image_to_3d`; ``model`` must take a prompt.

    Raises:
        InputError: prompt or choices cannot be used; the message says how to fix it.
        NumericalError: a value became NaN or infinite.
    """
    job = job_from_prompt(prompt, **choices)
    return Asset3D(job, make_asset(job, mesh, hooks=hooks, on_iteration=on_iteration))


def _to_image(image: ImageLike) -> Path | Tensor:
    if isinstance(image, str | Path):
        return Path(image)
    if not isinstance(image, np.ndarray | Tensor) and not hasattr(image, "mode"):
        raise InputError(f"An image must be a path, a Pillow image or pixels [H,W,C], got {type(image).__name__}.")
    if not isinstance(image, np.ndarray | Tensor) and image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA")
    pixels = _to_floats(image)
    if pixels.dim() != 3 or pixels.shape[2] not in (3, 4):
        raise InputError(f"An image must be [H,W,3] or [H,W,4], got {list(pixels.shape)}; move its channels to the end.")
    return pixels


def _to_mask(mask: ImageLike) -> Path | Tensor:
    if isinstance(mask, str | Path):
        return Path(mask)
    pixels = _to_floats(mask if isinstance(mask, np.ndarray | Tensor) else mask.convert("L"))
    return pixels[..., 0] if pixels.dim() == 3 else pixels


def _to_floats(pixels: Image | np.ndarray | Tensor) -> Tensor:
    values = pixels.detach().cpu() if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    return values.float() / 255 if values.dtype == torch.uint8 else values.float()
