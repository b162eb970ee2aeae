"""Match the tone of a texture to an image that is laid over a part of it, so that the image's edge is no seam."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..mesh import Mesh
from ..render.mesh import rasterize_uv

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SMOOTHING = 0.02
"""Length, as a share of the mesh's diagonal, below which differences are detail of the image, not of its tone."""
_FADING = 10.0
"""Length, likewise, over which the difference fades: beyond the object, so that only parts without trust keep their tone."""
_DARKEST = 0.05
"""Added to colours before their logarithm, so that black has one."""
_LARGEST_RATIO = 4.5


def match_tone(mesh: Mesh, size: int, colors: Tensor, shown: Tensor, trust: Tensor) -> Tensor:
    """Multiply a texture by the ratio to an image where both are known, continued over the surface as smoothly as possible.

    This is Poisson image editing (Pérez, Gangnet and Blake 2003, equation 3) on a surface: the logarithm r of the ratio
    minimises the integral of ``|grad r|² + trust (r - log(shown / colors))² / s²`` over the mesh, by linear elements with
    cotangent weights (Pinkall and Polthier 1993). Detail of the texture stays, and where the image is trusted it agrees
    with the image up to the length s.

    Args:
        mesh: with uvs.
        size: T of the texture.
        colors: [P,3] of the texels that the mesh covers (``texel_map``), in [0,1].
        shown: [P,3] what the image shows there; trust: [P] in 0..1.

    Returns:
        [P,3] in [0,1]; the given colours if nothing is trusted.
    """
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import splu

    if not bool((trust > 0).any()):
        return colors
    places, welded = torch.unique(mesh.vertices, dim=0, return_inverse=True)
    faces = welded[mesh.faces]
    stiffness, mass = _elements(places.double().numpy(), faces.numpy())
    weights = _texel_weights(mesh, size, faces, len(places))
    area = mass / np.maximum(weights.sum(0), 1e-12)  # of a texel at each vertex
    ratio = ((shown.clamp(0, 1) + _DARKEST) / (colors.clamp(0, 1) + _DARKEST)).clamp(1 / _LARGEST_RATIO, _LARGEST_RATIO).log()
    known = trust.double().numpy()[:, None]
    smoothing, fading = _SMOOTHING * mesh.diagonal, _FADING * mesh.diagonal
    pull = (weights.T @ known) * area[:, None] / smoothing**2
    target = (weights.T @ (known * ratio.double().numpy())) * area[:, None] / smoothing**2
    matrix = stiffness + diags_array(pull[:, 0] + mass / fading**2 + 1e-12)
    change = torch.from_numpy(weights @ splu(matrix.tocsc()).solve(target)).float()
    return ((colors + _DARKEST) * change.exp() - _DARKEST).clamp(0, 1)


def _elements(places: np.ndarray, faces: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Stiffness matrix [N,N] and lumped mass [N] of linear elements; slivers are bounded to weights in [0.001, 10]."""
    from scipy.sparse import coo_array, csr_array, diags_array

    corners, count = places[faces], len(places)
    edges = np.roll(corners, -2, 1) - np.roll(corners, -1, 1)  # opposite to each corner
    twice = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    mass = np.bincount(faces.ravel(), np.repeat(twice / 6, 3), count)
    dots = np.stack([(edges[:, (k + 1) % 3] * edges[:, (k + 2) % 3]).sum(1) for k in range(3)], 1)
    weights = np.clip(-dots / np.maximum(twice, 1e-12)[:, None] / 2, 1e-3, 10).ravel()
    ends = np.roll(faces, -1, 1).ravel(), np.roll(faces, -2, 1).ravel()
    off = coo_array((weights, ends), shape=(count, count))
    off = (off + off.T).tocsr()
    return csr_array(diags_array(np.asarray(off.sum(1)).ravel()) - off), mass


def _texel_weights(mesh: Mesh, size: int, faces: Tensor, count: int) -> csr_array:
    """[P,N] weights by which each texel is interpolated from the vertices."""
    from scipy.sparse import csr_array

    assert mesh.uvs is not None, "the texels of a texture were asked for"
    fragments = rasterize_uv(mesh.uvs, mesh.faces, size)
    columns = faces[fragments.face_ids[fragments.hit].long()].numpy()
    rows = 3 * np.arange(len(columns) + 1)
    return csr_array(
        (fragments.barycentrics[fragments.hit].double().numpy().ravel(), columns.ravel(), rows), (len(columns), count)
    )
