"""Fit a mesh's vertices to the outlines, and optionally the depths, of images from many sides.

The paper's mesh stage (LGM's ``convert.py``: 2,048 steps of Adam through a differentiable rasteriser whose only gradient to the
vertices is the antialiased outline) descends on pixels. Here every round measures, in pixels, how far each silhouette edge is
from the outline of the image, and solves one sparse linear system for all vertices (Gauss-Newton on point-to-line distances,
as in iterative closest points; Chen and Medioni 1992).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..mesh import Mesh, face_normals, vertex_normals
from ..render.mesh import NEAR, pool_pixels, rasterize, supersample_cameras
from ..util.hooks import Hook
from .clean import smooth

_HALF = 0.5
"""Coverage of a pixel whose centre lies on a straight outline."""
_SAMPLES = 2  # along each side of a pixel, for the mesh's own coverage
_AT_ONCE = 4  # views per batch; supersampled ones take memory
_STEP = 0.5  # pixels between two samples along a ray across the outline
_OUTSIDE = 1.5  # pixels from an edge within which the mesh must end for the edge to lie on its outline
_NORMAL_ROUNDS = 16  # rounds of averaging normals over their neighbours
_HALF_TRUST = 3.0  # pixels at which an outline counts half: farther ones more often belong to another part
_COVERED = 0.95
_TINY = 1e-6


@dataclass(frozen=True)
class FitSettings:
    """Settings of ``fit_to_views``.

    Attributes:
        rounds: linear systems solved, each with newly measured residuals.
        reach: search distance for outlines, as a share of the image's height.
        stiffness: weight of the displacement difference between neighbours, relative to one edge on an outline.
        anchor: weight of the displacements themselves, which keeps unobserved vertices in place.
        depth_weight: weight of one pixel's depth, relative to one edge on an outline.
        smoothing: Taubin rounds between two measurements, for rough surfaces.
    """

    rounds: int = 6
    reach: float = 0.1
    stiffness: float = 16.0
    anchor: float = 1e-3
    depth_weight: float = 0.05
    smoothing: int = 0

    def __post_init__(self):
        if self.rounds < 0 or self.smoothing < 0:
            raise InputError(
                f"Rounds and smoothing must not be negative, got {self.rounds} and {self.smoothing}; 6 and 0 are usual."
            )
        for name in ("reach", "stiffness", "anchor"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"FitSettings.{name} must be positive, got {getattr(self, name)}.")
        if not 0 <= self.depth_weight < math.inf:
            raise InputError(f"FitSettings.depth_weight must not be negative, got {self.depth_weight}.")


@dataclass(frozen=True)
class _Rows:
    """P equations Σ_k coefficients_k t[corners_k] = right_side, each with its weight; t are shifts along vertex normals."""

    corners: Tensor
    coefficients: Tensor
    right_side: Tensor
    weights: Tensor


@torch.no_grad()
def fit_to_views(
    mesh: Mesh,
    cameras: Cameras,
    alpha: Tensor,
    depth: Tensor | None = None,
    settings: FitSettings = FitSettings(),  # noqa: B008 - immutable
    *,
    check: Hook | None = None,
) -> Mesh:
    """Move a mesh's vertices along their normals until it matches the images; faces stay as they are.

    Args:
        mesh: closed or open; vertices at the same position move together, so that texture seams do not open.
        cameras: V views from all sides, at the size of the images.
        alpha: [V,H,W,1] antialiased coverage. Outlines are at coverage one half.
        depth: [V,H,W,1] distance along the viewing axis, used where coverage is nearly full. The expected depth of Gaussians
            lies behind their surface and is not suitable.
        check: called before each round; raises to stop.

    Raises:
        InputError: images and cameras do not match, an image is not finite, or the mesh has no faces.
    """
    _check_input(mesh, cameras, alpha, depth)
    cameras, alpha = cameras.to("cpu"), alpha.detach().cpu().float()
    places, welded = torch.unique(mesh.vertices, dim=0, return_inverse=True)
    faces = welded[mesh.faces]
    edges, sides = _edges(faces)
    for number in range(settings.rounds):
        if check is not None:
            check()
        if number:
            places = smooth(Mesh(places, faces), settings.smoothing).vertices
        normals = _average_normals(places, faces, edges)
        rows = list(_outline_rows(places, normals, faces, edges, sides, cameras, alpha, settings))
        if depth is not None:
            rows += list(_depth_rows(places, normals, faces, cameras, alpha, depth, settings))
        shift = _solve(rows, edges, len(places), settings)
        places = _undo_folds(places, normals * shift[:, None], faces)
    return replace(mesh, vertices=places[welded], normals=None)


def _edges(faces: Tensor) -> tuple[Tensor, Tensor]:
    """([E,2] vertices, [E,2] adjacent faces) of every edge; a border edge has its one face twice."""
    corners = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(1).values
    face = torch.arange(len(faces)).repeat(3)
    edges, index = torch.unique(corners, dim=0, return_inverse=True)
    order = index.argsort(stable=True)
    first = torch.searchsorted(index[order], torch.arange(len(edges)))
    last = torch.searchsorted(index[order], torch.arange(len(edges)), right=True) - 1
    return edges, torch.stack([face[order[first]], face[order[last]]], 1)


def _average_normals(places: Tensor, faces: Tensor, edges: Tensor) -> Tensor:
    """[N,3] unit normals, averaged over neighbours: moved along its raw normals, a rough surface would fold over."""
    normals = vertex_normals(places, faces)
    for _ in range(_NORMAL_ROUNDS):
        around = normals.clone()
        around.index_add_(0, edges[:, 0], normals[edges[:, 1]]).index_add_(0, edges[:, 1], normals[edges[:, 0]])
        normals = F.normalize(around, dim=1)
    return normals


def _outline_rows(
    places: Tensor,
    normals: Tensor,
    faces: Tensor,
    edges: Tensor,
    sides: Tensor,
    cameras: Cameras,
    alpha: Tensor,
    settings: FitSettings,
) -> Iterator[_Rows]:
    """For every view, how far the edges on the mesh's outline must move to the image's outline.

    An edge lies on the outline if exactly one of its faces looks towards the camera and the mesh ends beside it. Distances
    are measured from the mesh's outline, not from the edge: the many silhouette edges of a flat, rough side lie a little
    inside it and would all be pushed outwards.
    """
    coverage = _coverage(places, faces, cameras)
    across = face_normals(places, faces)
    centres = places[faces].mean(1)
    length = (places[edges[:, 0]] - places[edges[:, 1]]).norm(dim=1)
    for i, (view, eye) in enumerate(zip(cameras.viewmats, cameras.c2w[:, :3, 3], strict=True)):
        facing = ((eye - centres) * across).sum(1) > 0
        front = facing[sides]
        lonely = sides[:, 0] == sides[:, 1]
        chosen = ((front[:, 0] != front[:, 1]) | lonely).nonzero()[:, 0]
        corners = edges[chosen]
        seen = places[corners] @ view[:3, :3].T + view[:3, 3]
        focal, middle = cameras.Ks[i, 0, 0], cameras.Ks[i, :2, 2]
        inverse = 1 / seen[..., 2:].clamp_min(NEAR)
        pixel = (seen[..., :2] * inverse * focal + middle).mean(1)
        towards = normals[corners] @ view[:3, :3].T
        # movement of each end in the image for a shift of 1 along its normal, in world units at its depth
        moved = towards[..., :2] - seen[..., :2] * inverse * towards[..., 2:]
        outward = F.normalize(moved.mean(1), dim=1)
        found, distance = _crossings(alpha[i, ..., 0], pixel, outward, settings.reach * cameras.height)
        outer, own = _crossings(coverage[i], pixel, outward, _OUTSIDE)
        distance = distance - own
        keep = outer & found & (seen[..., 2] > NEAR).all(1)
        yield _Rows(
            corners[keep],
            ((moved * outward[:, None]).sum(-1) / 2)[keep],
            (distance * seen[..., 2].mean(1) / focal)[keep],
            (length[chosen] / length.mean() / (1 + (distance / _HALF_TRUST) ** 2))[keep],
        )


def _coverage(places: Tensor, faces: Tensor, cameras: Cameras) -> Tensor:
    """[V,H,W] share of each pixel that the mesh covers."""
    views = [supersample_cameras(cameras[i : i + _AT_ONCE], _SAMPLES) for i in range(0, len(cameras), _AT_ONCE)]
    return torch.cat([pool_pixels(rasterize(places, faces, v).hit[..., None].float(), _SAMPLES)[..., 0] for v in views])


def _crossings(alpha: Tensor, pixels: Tensor, outward: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """([P] bool, [P] signed pixels) from ``pixels`` [P,2] to the nearest place along ``outward`` where ``alpha`` [H,W] falls
    through one half."""
    steps = torch.arange(-math.ceil(reach / _STEP), math.ceil(reach / _STEP) + 1) * _STEP
    values = _sample(alpha, pixels[:, None] + steps[:, None] * outward[:, None])
    inner, outer = values[:, :-1], values[:, 1:]
    falls = (inner > _HALF) & (outer <= _HALF)
    place = steps[:-1] + _STEP * (inner - _HALF) / (inner - outer).clamp_min(_TINY)
    away = torch.where(falls, place.abs(), torch.inf)
    nearest = away.argmin(1, keepdim=True)
    return falls.any(1), place.gather(1, nearest)[:, 0]


def _sample(picture: Tensor, pixels: Tensor) -> Tensor:
    """[...] bilinear samples of [H,W] at [...,2] pixel coordinates, with the border replicated."""
    height, width = picture.shape
    grid = pixels / torch.tensor([width, height]) * 2 - 1
    samples = F.grid_sample(picture[None, None], grid.reshape(1, 1, -1, 2), padding_mode="border", align_corners=False)
    return samples.view(pixels.shape[:-1])


def _depth_rows(
    places: Tensor,
    normals: Tensor,
    faces: Tensor,
    cameras: Cameras,
    alpha: Tensor,
    depth: Tensor,
    settings: FitSettings,
) -> Iterator[_Rows]:
    """For every view, the distance along the normal between the surface at each pixel and the depth image's point."""
    across, fragments = F.normalize(face_normals(places, faces), dim=1), rasterize(places, faces, cameras)
    for i, (view, intrinsics) in enumerate(zip(cameras.viewmats, cameras.Ks, strict=True)):
        wanted = depth[i, ..., 0].detach().cpu().float()
        missing = wanted - fragments.depth[i]
        row, column = (fragments.hit[i] & (alpha[i, ..., 0] > _COVERED)).nonzero().unbind(1)
        missing = missing[row, column]
        near = missing.abs() < settings.reach * cameras.height * wanted[row, column] / intrinsics[0, 0]
        row, column, missing = row[near], column[near], missing[near]
        pixels = torch.stack([column, row], 1) + 0.5
        ray = torch.cat([(pixels - intrinsics[:2, 2]) / intrinsics[0, 0], torch.ones(len(pixels), 1)], 1) @ view[:3, :3]
        face = fragments.face_ids[i, row, column].long()
        coefficients = fragments.barycentrics[i, row, column] * (normals[faces[face]] * across[face][:, None]).sum(-1)
        right_side = missing * (ray * across[face]).sum(1)
        yield _Rows(faces[face], coefficients, right_side, torch.full((len(face),), settings.depth_weight))


def _solve(rows: list[_Rows], edges: Tensor, count: int, settings: FitSettings) -> Tensor:
    """[N] least-squares shifts: the equations, stiffness between neighbours, anchor everywhere; by conjugate gradients."""
    from scipy.sparse import coo_matrix, diags_array
    from scipy.sparse.linalg import cg

    number = np.cumsum([0] + [len(r.weights) for r in rows])
    index = np.concatenate(
        [np.repeat(np.arange(a, a + len(r.weights)), r.corners.shape[1]) for a, r in zip(number, rows, strict=False)]
    )
    columns = np.concatenate([r.corners.numpy().ravel() for r in rows])
    values = np.concatenate([r.coefficients.double().numpy().ravel() for r in rows])
    weights = np.concatenate([r.weights.double().numpy() for r in rows])
    wanted = np.concatenate([r.right_side.double().numpy() for r in rows])
    seen = coo_matrix((values, (index, columns)), shape=(number[-1], count)).tocsr()
    ends = np.arange(len(edges))
    difference = coo_matrix(
        (np.repeat([1.0, -1.0], len(edges)), (np.tile(ends, 2), edges.T.numpy().ravel())), shape=(len(edges), count)
    ).tocsr()
    weighted = seen.T @ diags_array(weights)
    matrix = (weighted @ seen + settings.stiffness * difference.T @ difference).tocsr()
    matrix = matrix + diags_array(np.full(count, settings.anchor))
    shift, _ = cg(matrix, weighted @ wanted, rtol=1e-4, maxiter=1000, M=diags_array(1 / matrix.diagonal()))
    return torch.from_numpy(shift).float()


def _undo_folds(places: Tensor, shift: Tensor, faces: Tensor) -> Tensor:
    """The shifted vertices; those of a face that would flip stay."""
    before = face_normals(places, faces)
    for _ in range(3):
        turned = (face_normals(places + shift, faces) * before).sum(1) < 0
        if not bool(turned.any()):
            break
        shift = shift.index_fill(0, faces[turned].reshape(-1).unique(), 0.0)
    return places + shift


def _check_input(mesh: Mesh, cameras: Cameras, alpha: Tensor, depth: Tensor | None) -> None:
    if len(mesh.faces) == 0:
        raise InputError("A mesh needs faces before it can be fitted, got none; extract it at a lower threshold.")
    expected = [len(cameras), cameras.height, cameras.width, 1]
    for name, picture in (("alpha", alpha), ("depth", depth)):
        if picture is None:
            continue
        if list(picture.shape) != expected:
            raise InputError(f"The {name} to fit to must have shape {expected}, got {list(picture.shape)}; resize the cameras.")
        if name == "alpha" and not bool(picture.isfinite().all()):
            raise InputError("The alpha to fit to must be finite, got NaN or infinite numbers; render it again.")
