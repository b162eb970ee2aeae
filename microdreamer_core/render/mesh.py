"""Mesh rendering: a z-buffer for the geometry, torch for the colours, so that textures can be optimised.

While a texture is optimised its geometry is fixed, so fragments are rasterised once per set of cameras and each step only
samples the texture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import Cameras
from ..errors import InputError
from ..mesh import Mesh, vertex_normals
from ..util.colors import decode_srgb, encode_srgb
from ..util.threads import run_all
from .protocol import Render

NEAR = 0.01
_MAX_FRAGMENTS = 4_000_000
PLAIN_GREY = 0.8


@dataclass(frozen=True)
class Fragments:
    """The visible triangle of each pixel of V views.

    Attributes:
        face_ids: [V,H,W] int32, -1 where nothing is hit.
        barycentrics: [V,H,W,3] float32, perspective-correct weights of the face's vertices; 0 where nothing is hit.
        depth: [V,H,W] float32 distance along the viewing axis, infinite where nothing is hit.
    """

    face_ids: Tensor
    barycentrics: Tensor
    depth: Tensor

    @property
    def hit(self) -> Tensor:
        """[V,H,W] bool, True where a triangle is hit."""
        return self.face_ids >= 0


def rasterize(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Fragments:
    """Find the nearest triangle at every pixel centre; both sides of triangles are visible.

    Triangles that reach within ``NEAR`` of the camera plane are dropped, not clipped: orbit cameras are outside the object.

    Args:
        vertices: [N,3].
        faces: [M,3].
        cameras: V views.
    """
    view, intrinsics = cameras.viewmats.cpu().double(), cameras.Ks.cpu().double()
    seen = vertices.detach().cpu().double() @ view[:, :3, :3].transpose(1, 2) + view[:, None, :3, 3]
    depths = seen[..., 2]
    centre = intrinsics[:, None, :2, 2]
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], -1)[:, None]
    points = seen[..., :2] / torch.where(depths > NEAR, depths, torch.ones_like(depths))[..., None] * focal + centre
    return _fill(points, depths, faces, cameras.height, cameras.width)


def rasterize_uv(uvs: Tensor, faces: Tensor, size: int) -> Fragments:
    """Rasterise the texel map of a [size,size] texture as one view: triangle and barycentrics of each texel."""
    points = uvs.detach().double()[None] * size
    return _fill(points, torch.ones(points.shape[:2], dtype=torch.float64), faces, size, size)


def _fill(points: Tensor, depths: Tensor, faces: Tensor, height: int, width: int) -> Fragments:
    from .zbuffer_numba import fill

    views = len(points)
    face_ids = torch.full((views, height, width), -1, dtype=torch.int32)
    barycentrics = torch.zeros(views, height, width, 3)
    zbuffer = torch.full((views, height, width), float("inf"))
    triangles = faces.detach().cpu().long().contiguous().numpy()

    def one(i: int) -> None:
        arrays = (face_ids[i].numpy(), barycentrics[i].numpy(), zbuffer[i].numpy())
        fill(points[i].contiguous().numpy(), depths[i].contiguous().numpy(), triangles, NEAR, *arrays)

    run_all([partial(one, i) for i in range(views)])
    return Fragments(face_ids, barycentrics, zbuffer)


def interpolate(values: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """Interpolate vertex attributes [N,C] at the P hit pixels, in the order of ``fragments.hit.nonzero()``; returns [P,C]."""
    hit = fragments.hit
    corners = faces[fragments.face_ids[hit].long()]
    return torch.einsum("pk,pkc->pc", fragments.barycentrics[hit].to(values.dtype), values[corners])


@dataclass(frozen=True)
class TextureView:
    """The fixed part of renders whose texture is optimised: texture coordinates and coverage of each pixel.

    Attributes:
        uvs: [P,2] of the samples that hit the mesh.
        pixels: [P] index of each sample's pixel in the flattened [V,H,W].
        alpha: [V,H,W,1] fraction of each pixel's samples that hit.
        samples: number of samples per pixel.
    """

    uvs: Tensor
    pixels: Tensor
    alpha: Tensor
    samples: int = 1

    def render(self, texture: Tensor, background: Tensor) -> Tensor:
        """Render images [V,H,W,3], differentiable in the texture and the background ([3] or [V,3])."""
        pixels = self._add_samples(texture) if _is_fixed(texture, self.uvs) else self._add_differentiably(texture)
        behind = background.to(texture).expand(len(self.alpha), 3)[:, None, None]
        return pixels.reshape(*self.alpha.shape[:3], 3) + (1 - self.alpha).to(texture) * behind

    def _add_differentiably(self, texture: Tensor) -> Tensor:
        """Average the colours of each pixel's samples, [N,3]; samples beside the mesh are black."""
        colours = sample_texture(texture, self.uvs) / self.samples
        return colours.new_zeros(self.alpha.numel(), 3).index_add(0, self.pixels, colours)

    def _add_samples(self, texture: Tensor) -> Tensor:
        """Do the same without gradients, in one pass and in parallel over the views."""
        from ._numba_texture import add_texture_samples

        image = torch.zeros(self.alpha.numel(), 3)
        uvs, pixels, views = _array(self.uvs), self.pixels.numpy(), len(self.alpha)
        # samples are in the order of their views, so that a search for a view's first pixel finds its first sample
        ends = np.searchsorted(pixels, np.arange(views + 1) * (len(image) // views))
        given = _array(texture), uvs, pixels
        share = np.float32(1 / self.samples)
        run_all([partial(add_texture_samples, *given, a, b, share, image.numpy()) for a, b in pairwise(ends)])
        return image


def texture_view(mesh: Mesh, cameras: Cameras, supersample: int = 1) -> TextureView:
    """Rasterise a mesh once, to render its texture repeatedly from ``cameras``.

    Args:
        mesh: with uvs.
        supersample: samples along each side of a pixel; needed for textures much finer than the image, as otherwise gradients
            reach only the few texels at the pixel centres.

    Raises:
        InputError: the mesh has no uvs.
    """
    if mesh.uvs is None:
        raise InputError("A mesh needs uvs before its texture can be seen, got none; unwrap the mesh first.")
    fragments = rasterize(mesh.vertices, mesh.faces, supersample_cameras(cameras, supersample))
    return view_of_fragments(fragments, interpolate(mesh.uvs, mesh.faces, fragments), supersample)


def view_of_fragments(fragments: Fragments, uvs: Tensor, supersample: int) -> TextureView:
    """Make the texture view of supersampled fragments with texture coordinates ``uvs`` [P,2] at the hits."""
    view, row, column = fragments.hit.nonzero().unbind(1)
    height, width = (n // supersample for n in fragments.hit.shape[1:])
    pixels = (view * height + row // supersample) * width + column // supersample
    alpha = pool_pixels(fragments.hit[..., None].float(), supersample)
    return TextureView(uvs.contiguous(), pixels, alpha, supersample**2)


def sample_texture(texture: Tensor, uvs: Tensor) -> Tensor:
    """Sample a [T,T,3] texture bilinearly at uvs [P,2], clamped at its border; returns [P,3].

    >>> sample_texture(torch.full((4, 4, 3), 0.5), torch.rand(2, 2))
    tensor([[0.5000, 0.5000, 0.5000],
            [0.5000, 0.5000, 0.5000]])
    """
    grid = (uvs.to(texture) * 2 - 1)[None, None]
    image = texture.permute(2, 0, 1)[None]
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T


def pool_pixels(images: Tensor, size: int) -> Tensor:
    """Average squares of pixels: [V,H,W,C] to [V,H/size,W/size,C].

    >>> pool_pixels(torch.rand(2, 64, 64, 3), 4).shape
    torch.Size([2, 16, 16, 3])
    """
    if size == 1:
        return images
    return F.avg_pool2d(images.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


def render_mesh(mesh: Mesh, cameras: Cameras, background: Tensor | None = None, supersample: int = 1) -> Render:
    """Render a mesh by its texture, else its vertex colours (interpolated in linear light), else as grey clay lit from the
    camera.

    Args:
        background: [3] or [V,3], white when None.
        supersample: samples along each side of a pixel, averaged; 2 for videos.

    Returns:
        Render with the accumulated depth (alpha times the mean depth of the samples that hit).
    """
    background = torch.ones(3) if background is None else background
    background = background.to(torch.float32).expand(len(cameras), 3)
    batch = max(1, _MAX_FRAGMENTS // (cameras.width * cameras.height * supersample**2))
    parts = []
    for start in range(0, len(cameras), batch):
        index = slice(start, start + batch)
        parts.append(_render_batch(mesh, cameras[index], background[index], supersample))
    return Render(*(torch.cat([getattr(part, name) for part in parts]) for name in ("rgb", "alpha", "depth")))


def _render_batch(mesh: Mesh, cameras: Cameras, background: Tensor, supersample: int) -> Render:
    fragments = rasterize(mesh.vertices, mesh.faces, supersample_cameras(cameras, supersample))
    if mesh.texture is not None and _is_fixed(mesh.texture, mesh.texture_coordinates(), background):
        return _shade_textured(mesh, mesh.texture, fragments, background, supersample)
    hit = fragments.hit[..., None]
    colours = _shade(mesh, cameras, fragments)
    canvas = background[:, None, None].to(colours).expand(*fragments.hit.shape, 3)
    depth = torch.where(hit, fragments.depth[..., None], torch.zeros(()))
    images = (canvas.masked_scatter(hit, colours), hit.float(), depth)
    return Render(*(pool_pixels(image, supersample) for image in images))


def _shade_textured(mesh: Mesh, texture: Tensor, fragments: Fragments, background: Tensor, supersample: int) -> Render:
    """Shade and average the samples in one pass, without gradients."""
    from ._numba_texture import shade_textured

    views, height, width = len(background), *(n // supersample for n in fragments.hit.shape[1:])
    rgb, alpha, depth = (torch.empty(views, height, width, channels) for channels in (3, 1, 1))
    given = mesh.faces.contiguous().numpy(), _array(mesh.texture_coordinates()), _array(texture)

    def shade(v: int) -> None:
        found = (fragments.face_ids[v].numpy(), fragments.barycentrics[v].numpy(), fragments.depth[v].numpy())
        outputs = (rgb[v].numpy(), alpha[v, ..., 0].numpy(), depth[v, ..., 0].numpy())
        shade_textured(*found, *given, _array(background[v]), supersample, *outputs)

    run_all([partial(shade, v) for v in range(views)])
    return Render(rgb, alpha, depth)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _is_fixed(*tensors: Tensor) -> bool:
    """Whether the numba kernels can compute from these tensors: float32 on the CPU, without gradients."""
    return all(
        tensor.device.type == "cpu" and tensor.dtype == torch.float32 and not (tensor.requires_grad and torch.is_grad_enabled())
        for tensor in tensors
    )


def _shade(mesh: Mesh, cameras: Cameras, fragments: Fragments) -> Tensor:
    """Return the colours [P,3] of the hit pixels."""
    if mesh.texture is not None:
        return sample_texture(mesh.texture, interpolate(mesh.texture_coordinates(), mesh.faces, fragments))
    if mesh.colors is not None:
        return encode_srgb(interpolate(decode_srgb(mesh.colors), mesh.faces, fragments))
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    attributes = interpolate(torch.cat([mesh.vertices, normals], 1), mesh.faces, fragments)
    eyes = cameras.c2w[:, :3, 3][fragments.hit.nonzero()[:, 0]]
    towards = F.normalize(eyes - attributes[:, :3], dim=1)
    facing = (towards * F.normalize(attributes[:, 3:], dim=1)).sum(1, keepdim=True).abs()
    return (PLAIN_GREY * (0.25 + 0.75 * facing)).expand(-1, 3)


def supersample_cameras(cameras: Cameras, supersample: int) -> Cameras:
    """Return the same views with ``supersample`` samples along each side of a pixel.

    Raises:
        InputError: ``supersample`` is below 1.
    """
    if supersample < 1:
        raise InputError(f"supersample counts samples along a pixel's side, at least 1, got {supersample}; 2 is usual.")
    return replace(cameras, width=cameras.width * supersample, height=cameras.height * supersample)
