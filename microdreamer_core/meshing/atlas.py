"""Texture coordinates that give every part of a mesh texels of its own, whatever the mesh came with."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ..fields.texture_faults import find_fault
from ..mesh import Mesh
from ..render.mesh import pool_pixels, sample_texture
from ..render.texels import fill_nearest, texel_map
from ..util.images import resize
from .unwrap import unwrap

logger = logging.getLogger(__name__)

_BAKED_MAPS = ("metallic_roughness", "occlusion", "emissive")
"""Maps whose values do not depend on the directions of the uvs, as those of a normal map do."""
_FINITE = 0.999
_SUPERSAMPLED = 2048
"""Largest texture that is baked with four samples a texel."""


def lay_out_texture(mesh: Mesh, size: int = 1024) -> Mesh:
    """Return a mesh whose texels each belong to one place of its surface, as a new texture needs them.

    A mesh with such uvs is returned as it is. Without uvs, or where uvs overlap (mirrored or repeated), collapse, leave the
    texture or are not finite, it is unwrapped, and its texture and maps are baked over; a normal map is dropped, with a
    warning. Vertex colours are kept.

    Args:
        size: T, texels a side of the texture to be made, and of the one that is baked over.

    Raises:
        InputError: the mesh has no faces with an area, or vertices that are not finite.
    """
    fault = find_fault(mesh, size)
    if mesh.uvs is not None and fault is None:
        return mesh
    maps = mesh.maps
    kept = None if maps is None else replace(maps, **dict.fromkeys(_BAKED_MAPS))
    if mesh.uvs is None or mesh.texture is None:
        return unwrap(replace(mesh, maps=kept), size)
    logger.warning("%s; it is unwrapped again and its texture is baked over.", fault)
    # unwrapping carries the colours of vertices along: here the old texture coordinates, and whether they are numbers
    finite = mesh.uvs.isfinite().all(1, keepdim=True)
    old = torch.cat([torch.where(finite, mesh.uvs, 0.0), finite.float()], 1)
    laid = unwrap(replace(mesh, colors=old, texture=None, maps=kept), size)
    samples = 2 if size <= _SUPERSAMPLED else 1
    texels = texel_map(laid, samples * size)
    assert texels.colors is not None
    uvs, used = texels.colors[:, :2], texels.used
    known = used.clone()
    known[used] = texels.colors[:, 2] > _FINITE

    def bake(image: Tensor) -> Tensor:
        """[T,T,3] of an image on the old uvs."""
        image = image if max(image.shape[:2]) <= samples * size else resize(image[None], samples * size)[0]
        fine = torch.zeros(*used.shape, 3)
        fine[used] = sample_texture(image, uvs)
        return pool_pixels(fill_nearest(fine, known)[None], samples)[0]

    laid = replace(laid, colors=None, texture=bake(mesh.texture))
    if maps is None:
        return laid
    images = {name: getattr(maps, name) for name in _BAKED_MAPS}
    baked = {name: None if image is None else bake(image) for name, image in images.items()}
    return replace(laid, maps=replace(maps, normal=None, **baked))
