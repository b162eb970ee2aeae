"""Texture refinement by SIR (paper section V): one iteration on a mesh whose geometry stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import DEFAULT_FOV_Y, Cameras, orbit_cameras
from ..diffusion.ddim import Check, noise_forward, sampling_path
from ..diffusion.protocol import MultiViewDiffusion, ViewCount
from ..diffusion.samplers import Sampler, get_sampler
from ..errors import InputError, NumericalError
from ..losses import Norm, ReferenceView
from ..render.mesh import TextureView, interpolate, pool_pixels, rasterize, supersampled, view_of_fragments
from ..seeds import generator
from .types import Mesh, vertex_normals

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total); stage is "refine" (network calls) or "texture" (optimisation steps)."""

_LARGEST_PICTURE = 1024
_LAST_RATE = 0.1


@dataclass(frozen=True)
class TextureRefinement:
    """Settings of texture refinement.

    Attributes:
        views: V cameras of one elevation, azimuths evenly spread from the front; a multiple of the model's group.
        strength: t / T that the pictures are noised to, in (0,1): how much the model may change.
        discretization: N, steps that DDIM would take over the whole of T.
        guidance: classifier-free guidance scale.
        steps: Adam steps on the texture.
        learning_rate: of Adam, in colour units; falls linearly to a tenth.
        norm: ``"l2"`` or ``"l1"`` between renders and refined pictures.
        elevation, radius, fov_y: of the cameras; degrees, world units, degrees.
    """

    views: int = 8
    strength: float = 0.25
    discretization: int = 50
    guidance: float = 2.0
    steps: int = 30
    learning_rate: float = 0.02
    norm: Norm = "l2"
    elevation: float = 0.0
    radius: float = 2.0
    fov_y: float = DEFAULT_FOV_Y

    def __post_init__(self):
        if not 0 < self.strength < 1:
            raise InputError(f"The strength of texture refinement lies between 0 and 1, got {self.strength}; 0.25 is usual.")
        if self.steps < 1 or self.discretization < 1:
            raise InputError(
                f"Texture refinement needs at least 1 step, got {self.steps} of Adam and {self.discretization} of DDIM."
            )
        if self.norm not in ("l1", "l2"):
            raise InputError(f"The norm of texture refinement must be 'l1' or 'l2', got {self.norm!r}.")

    def start(self, total: int) -> int:
        """The time in 1..T-1 that the pictures are noised to."""
        return min(total - 1, max(1, round(self.strength * total)))


def refine_texture(
    mesh: Mesh,
    diffusion: MultiViewDiffusion,
    settings: TextureRefinement = TextureRefinement(),  # noqa: B008 - immutable
    seed: int = 0,
    *,
    reference: ReferenceView | None = None,
    background: Tensor | None = None,
    sampler: Sampler | None = None,
    progress: Progress | None = None,
    check: Check | None = None,
) -> Mesh:
    """One SIR iteration on the texture: render, add noise, sample back by DDIM with η = 0, optimise (paper section V).

    The mesh is rasterised once. It is rendered finer than the model sees and averaged down, so that each refined pixel moves
    every texel under it alike and detail finer than the model knows stays. Pixels count by the cosine of the viewing angle;
    those that the silhouette cuts do not count, because the model's silhouette is never quite the mesh's.

    Args:
        mesh: with uvs and a texture.
        seed: the noise derives from it.
        reference: the reference picture as one more target, weighted by its colour weight.
        background: [3], white when None.
        sampler: in place of DDIM with η = 0.
        check: called before each network call and step; raises (usually ``errors.Cancelled``) to stop.

    Returns:
        The mesh with its refined texture; the given one is not changed.

    Raises:
        InputError: the mesh has no texture, or the model does not allow that many views.
        NumericalError: the model's pictures are not finite.
    """
    if mesh.texture is None:
        raise InputError("Texture refinement needs a textured mesh, got one without; bake a texture first.")
    groups = refinement_groups(diffusion.view_count, settings, diffusion.image_size)
    # the host of the nodes runs them in inference mode, where nothing can learn; tensors made there must be copied
    with torch.inference_mode(False):
        texture = mesh.texture.detach().float().clone()
        background = torch.ones(3) if background is None else background.detach().cpu().clone()
        targets = []
        with torch.no_grad():
            draw = generator(seed, 0, "texture")
            calls = len(groups) * len(sampling_path(settings.start(len(diffusion.alphas_cumprod)), settings.discretization))
            hook = _counted(progress, check, "refine", calls)
            for cameras in groups:
                view, weights = _look(mesh, cameras)
                pictures = view.render(texture, background)
                refined = refine_pictures(pictures, cameras, diffusion, settings, draw, sampler=sampler, check=hook)
                targets.append(_Target(view, refined, weights / weights.sum().clamp_min(1e-9) / len(groups)))
            if reference is not None and reference.color_weight:
                targets.append(_reference_target(mesh, reference))
        hook = _counted(progress, check, "texture", settings.steps)
        return replace(mesh, texture=_optimise(texture, targets, background, settings, hook))


def refinement_groups(count: ViewCount, settings: TextureRefinement, size: int) -> list[Cameras]:
    """The V cameras as the groups that the model denoises together, each evenly spread around the object, interleaved.

    Raises:
        InputError: V is not what the model allows.
    """
    count.check(settings.views)
    groups = 1 if count.group is None else settings.views // count.group
    azimuths = torch.arange(settings.views) * (360.0 / settings.views)
    return [
        orbit_cameras(settings.elevation, azimuths[i::groups], settings.radius, settings.fov_y, size) for i in range(groups)
    ]


@torch.no_grad()
def refine_pictures(
    pictures: Tensor,
    cameras: Cameras,
    diffusion: MultiViewDiffusion,
    settings: TextureRefinement,
    draw: torch.Generator,
    *,
    sampler: Sampler | None = None,
    check: Check | None = None,
) -> Tensor:
    """Noise one group of views to ``strength`` and sample them back (Eq. 10 after noise only, η = 0). [V,H,W,3] both ways."""
    conditioning = diffusion.condition(cameras)
    schedule = diffusion.alphas_cumprod
    start = settings.start(len(schedule))

    def guided(x: Tensor, t: int) -> Tensor:
        return diffusion.eps(x, t, conditioning, settings.guidance)

    sampler = sampler or get_sampler("ddim", 0.0)
    noisy = noise_forward(diffusion.encode(pictures.to(diffusion.device)), start, schedule, generator=draw)
    images = diffusion.decode(sampler(guided, noisy, start, settings.discretization, schedule, draw, check)).cpu().float()
    if not bool(torch.isfinite(images).all()):
        raise NumericalError("Texture refinement gave pictures that are not finite; try float32 or a lower strength.")
    return images


@dataclass(frozen=True)
class _Target:
    """Pictures [V,S,S,3] that renders of ``view`` shall become, and the weight of each pixel [V,S,S,1]."""

    view: TextureView
    pictures: Tensor
    weights: Tensor

    def loss(self, texture: Tensor, background: Tensor, norm: Norm) -> Tensor:
        difference = self.view.render(texture, background) - self.pictures
        return (self.weights * (difference.abs() if norm == "l1" else difference.square())).sum()


def _look(mesh: Mesh, cameras: Cameras) -> tuple[TextureView, Tensor]:
    """What never changes while the texture learns: the view, and the cosine of each fully covered pixel [V,S,S,1]."""
    # the visible half of the surface takes about a quarter of the texture: pictures half its size reach nearly every texel
    finest = min(_LARGEST_PICTURE, max(mesh.texture.shape[:2]) / 2)
    pool = max(1, math.ceil(finest / max(cameras.width, cameras.height)))
    fragments = rasterize(mesh.vertices, mesh.faces, supersampled(cameras, pool))
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    rows = interpolate(torch.cat([mesh.uvs, mesh.vertices, normals], 1), mesh.faces, fragments)
    view = view_of_fragments(fragments, rows[:, :2], pool)
    eyes = cameras.c2w[:, :3, 3].cpu()[fragments.hit.nonzero()[:, 0]]
    facing = (F.normalize(eyes - rows[:, 2:5], dim=1) * F.normalize(rows[:, 5:], dim=1)).sum(1).clamp_min(0)
    cosine = torch.zeros(fragments.hit.shape)
    cosine[fragments.hit] = facing
    return view, pool_pixels(cosine[..., None], pool) * (view.alpha > 0.999)


def _reference_target(mesh: Mesh, reference: ReferenceView) -> _Target:
    view, weights = _look(mesh, reference.cameras)
    weights = weights * (reference.alpha.detach().cpu() > 0.999)
    weights = reference.color_weight * weights / weights.sum().clamp_min(1e-9)
    return _Target(view, reference.image.detach().cpu().clone(), weights)


def _optimise(
    texture: Tensor,
    targets: list[_Target],
    background: Tensor,
    settings: TextureRefinement,
    hook: Check,
) -> Tensor:
    """Adam on the texels."""
    texture = texture.requires_grad_()
    optimizer = torch.optim.Adam([texture], lr=settings.learning_rate)
    with torch.enable_grad():
        for step in range(settings.steps):
            hook()
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - (1 - _LAST_RATE) * step / settings.steps)
            optimizer.zero_grad(set_to_none=True)
            for target in targets:
                target.loss(texture, background, settings.norm).backward()
            optimizer.step()
            with torch.no_grad():
                texture.clamp_(0, 1)
    return texture.detach()


def _counted(progress: Progress | None, check: Check | None, stage: str, total: int) -> Check:
    """A hook to call before each piece of work: reports how many are done, then checks."""
    done = 0

    def hook() -> None:
        nonlocal done
        if progress is not None:
            progress(stage, done, total)
        if check is not None:
            check()
        done += 1

    return hook
