"""One mesh with one look, made of parts whose materials say more than a ``Mesh`` can hold.

Colours are factor times texture times vertex colour, all in linear light, as in glTF 2.0. What a mesh cannot hold is turned
into what it can: textures that tile are laid out, several textures share one, cut-outs cut the triangles, and vertex colours
on a texture are baked into a new one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mesh import Mesh, SurfaceMaps, vertex_normals
from ..render.mesh import sample_texture
from ..util.colors import decode_srgb, encode_srgb
from ..util.images import resize

logger = logging.getLogger(__name__)

_FINEST = 4096
"""Largest side of a texture made here; pictures that do not fit are reduced."""
_BAKED = 2048  # side of a texture whose texels are made here
_LARGEST_CELL = 512
_MARGIN = 2  # texels around a picture in a shared texture
_PLAIN_SIDE = 4
_UV_TOLERANCE = 1e-4
_CLAMPED = 0.5  # how far a clamped picture is continued beyond its border in a shared texture
_MOST_PIECES = 64  # along an edge of a triangle with a cut-out
_TEXELS_A_PIECE = 2


@dataclass(frozen=True, eq=False)
class Material:
    """The look of a part, as glTF defines it.

    Attributes:
        factor: [4] linear RGB and alpha.
        image: [H,W,4] sRGB and alpha, None without a texture.
        wrap: what is beyond its left and right, and upper and lower border: "repeat", "mirror" or "clamp".
        cutoff: alpha below which there is no surface; None where alpha does not count.
        maps: what else it holds.
    """

    factor: Tensor
    image: Tensor | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")
    cutoff: float | None = None
    maps: SurfaceMaps | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Triangles of one material.

    Attributes:
        vertices: [N,3]. faces: [M,3].
        uvs: [N,2] of the material's image, v downwards. normals: [N,3]. colors: [N,4] linear RGB and alpha.
    """

    vertices: Tensor
    faces: Tensor
    material: Material
    uvs: Tensor | None = None
    normals: Tensor | None = None
    colors: Tensor | None = None

    @property
    def image(self) -> Tensor | None:
        """The image, where it can be seen."""
        return self.material.image if self.uvs is not None else None

    def at(self, corners: Tensor, weights: Tensor, faces: Tensor) -> Part:
        """Return a part of new vertices [P], each a mean of three old ``corners`` [P,3] with ``weights`` [P,3]."""

        def mean(values: Tensor | None) -> Tensor | None:
            return None if values is None else torch.einsum("pk,pkc->pc", weights.to(values), values[corners])

        return Part(
            torch.einsum("pk,pkc->pc", weights.to(self.vertices), self.vertices[corners]),
            faces,
            self.material,
            mean(self.uvs),
            mean(self.normals),
            mean(self.colors),
        )

    def take(self, index: Tensor, faces: Tensor) -> Part:
        """Return a part whose vertices are the old ones of ``index``."""
        values = (None if v is None else v[index] for v in (self.uvs, self.normals, self.colors))
        return Part(self.vertices[index], faces, self.material, *values)


def merge_parts(parts: Sequence[Part]) -> Mesh:
    """Join parts to one mesh that looks the same without light: with a texture, else with vertex colours, else with neither.

    Parts that say nothing of colour (white) give a mesh without colours. Maps are kept if one material covers the mesh and
    its texture is not laid out again; otherwise a warning names them.
    """
    parts = [_cut_out(part) if part.material.cutoff is not None else part for part in _join_by_material(parts)]
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        return Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
    if all(part.image is None for part in parts):
        return _with_normals_outwards(_plain_mesh(parts))
    tiles, laid = zip(*map(_tile, parts), strict=True)
    texture, uvs = (tiles[0], [laid[0].uvs]) if len(parts) == 1 else _pack(tiles, [part.uvs for part in laid])
    mesh = _with_normals_outwards(_concatenate(laid))
    image = parts[0].image
    kept = image is not None and _is_constant(parts[0]) and texture.shape[:2] == image.shape[:2]  # not continued, not baked
    return replace(mesh, uvs=torch.cat(uvs), texture=texture, maps=_kept_maps(parts, kept))


def _with_normals_outwards(mesh: Mesh) -> Mesh:
    """The mesh with its own normals, where they lie on the faces' outer side: others would hide it from all cameras."""
    if mesh.normals is None:
        return mesh
    usual = vertex_normals(mesh.vertices, mesh.faces)
    return replace(mesh, normals=torch.where((mesh.normals * usual).sum(1, keepdim=True) > 0, mesh.normals, usual))


def _join_by_material(parts: Sequence[Part]) -> list[Part]:
    """One part for every material and set of attributes, in the order of their first."""
    groups: dict[tuple, list[Part]] = {}
    for part in parts:
        key = (id(part.material), part.uvs is None, part.normals is None, part.colors is None)
        groups.setdefault(key, []).append(part)
    return [_concatenate_parts(group) if len(group) > 1 else group[0] for group in groups.values()]


def _concatenate_parts(parts: Sequence[Part]) -> Part:
    joined = _concatenate(parts)
    colors = None if parts[0].colors is None else torch.cat([part.colors for part in parts if part.colors is not None])
    uvs = None if parts[0].uvs is None else torch.cat([part.uvs for part in parts if part.uvs is not None])
    return Part(joined.vertices, joined.faces, parts[0].material, uvs, joined.normals, colors)


def _concatenate(parts: Sequence[Part]) -> Mesh:
    """Vertices, faces and, if all have them, normals."""
    faces, start = [], 0
    for part in parts:
        faces.append(part.faces + start)
        start += len(part.vertices)
    normals = [part.normals for part in parts if part.normals is not None]
    return Mesh(
        torch.cat([part.vertices for part in parts]),
        torch.cat(faces),
        normals=torch.cat(normals) if len(normals) == len(parts) else None,
    )


def _plain_mesh(parts: Sequence[Part]) -> Mesh:
    """Parts without images."""
    linear = [_tint(part).expand(len(part.vertices), 3) for part in parts]
    mesh = _concatenate(parts)
    untold = all(part.colors is None and bool((part.material.factor[:3] == 1).all()) for part in parts)
    uvs = parts[0].uvs if len(parts) == 1 else None
    maps = _kept_maps(parts, kept=len(parts) == 1)
    return replace(mesh, uvs=uvs, colors=None if untold else encode_srgb(torch.cat(linear)), maps=maps)


def _tint(part: Part) -> Tensor:
    """[3] or [N,3] linear: factor times vertex colours."""
    factor = part.material.factor[:3]
    if part.colors is None:
        return factor
    colors = part.colors[:, :3]
    return factor * (colors[0] if _is_constant(part) else colors)


def _is_constant(part: Part) -> bool:
    return part.colors is None or bool(((part.colors[:, :3] - part.colors[:1, :3]).abs() < 1 / 512).all())


def _kept_maps(parts: Sequence[Part], kept: bool) -> SurfaceMaps | None:
    maps = [part.material.maps for part in parts if part.material.maps is not None]
    if len(parts) == 1 and kept:
        return maps[0] if maps else None
    lost = sorted({name for value in maps for name in value.named()})
    if lost:
        logger.warning("The textures of the mesh were laid out again; dropped from its materials: %s.", ", ".join(lost))
    return None


# --- textures


def _tile(part: Part) -> tuple[Tensor, Part]:
    """A part's own texture [H,W,3], and the part with its uvs on it."""
    if not _is_constant(part):
        return _bake_cells(part)
    tint = _tint(part).reshape(3)
    if part.image is None:
        plain = encode_srgb(tint).expand(_PLAIN_SIDE, _PLAIN_SIDE, 3)
        return plain, replace(part, uvs=torch.full((len(part.vertices), 2), 0.5))
    image, laid = _lay_out(part)
    return (image if bool((tint == 1).all()) else encode_srgb(decode_srgb(image) * tint)), laid


def _lay_out(part: Part) -> tuple[Tensor, Part]:
    """A part's image [H,W,3] continued over the uvs that are used, and the part with its uvs on that."""
    assert part.image is not None and part.uvs is not None
    image, uvs = part.image[..., :3], torch.where(part.uvs.isfinite(), part.uvs, 0.0)
    if _within(uvs, part.faces):
        return image, replace(part, uvs=uvs)
    part, uvs = _shift_tiles(part, uvs)
    bounds = uvs[part.faces.reshape(-1)]
    for axis, wrap in enumerate(part.material.wrap):
        low, high = float(bounds[:, axis].min()), float(bounds[:, axis].max())
        if low > -_UV_TOLERANCE and high < 1 + _UV_TOLERANCE:
            continue
        if wrap == "clamp":
            low, high = max(low, -_CLAMPED), min(high, 1 + _CLAMPED)
        image, start, size = _continue_axis(image, 1 - axis, low, high, wrap)
        uvs[:, axis] = (uvs[:, axis] - start) / size
    return image, replace(part, uvs=uvs)


def _within(uvs: Tensor, faces: Tensor) -> bool:
    used = uvs[faces.reshape(-1)]
    return bool((used > -_UV_TOLERANCE).all()) and bool((used < 1 + _UV_TOLERANCE).all())


def _shift_tiles(part: Part, uvs: Tensor) -> tuple[Part, Tensor]:
    """Shift the uvs [N,2] of each triangle by whole periods towards 0, so that few repetitions are needed."""
    corners = uvs[part.faces]
    period = torch.tensor([{"repeat": 1.0, "mirror": 2.0, "clamp": math.inf}[wrap] for wrap in part.material.wrap])
    shift = ((corners.amin(1) + _UV_TOLERANCE) / period).floor()
    shift = torch.where(period.isinf(), 0.0, shift * period)  # [M,2]
    if bool((shift == shift[0]).all()):
        return part, uvs - shift[0]
    shifts, which = torch.unique(shift, dim=0, return_inverse=True)
    keys, faces = torch.unique((part.faces * len(shifts) + which[:, None]).reshape(-1), return_inverse=True)
    vertices = keys // len(shifts)
    return part.take(vertices, faces.reshape(-1, 3)), uvs[vertices] - shifts[keys % len(shifts)]


def _continue_axis(image: Tensor, axis: int, low: float, high: float, wrap: str) -> tuple[Tensor, float, float]:
    """An image continued along an axis from uv ``low`` to ``high`` with a texel to spare, and (uv of its start, its length)."""
    count, wanted = image.shape[axis], (high - low) * image.shape[axis] + 2
    largest = max(_BAKED, count)
    if wanted > largest:
        count = int(count * largest / wanted)
        image = resize(image[None], *((max(1, count), image.shape[1]) if axis == 0 else (image.shape[0], max(1, count))))[0]
    if not count:  # more periods than texels
        return image, low, high - low
    start, stop = math.floor(low * count) - 1, math.ceil(high * count) + 1
    index = torch.arange(start, stop)
    if wrap == "repeat":
        index = index % count
    elif wrap == "mirror":
        index = index % (2 * count)
        index = torch.minimum(index, 2 * count - 1 - index)
    else:
        index = index.clamp(0, count - 1)
    return image.index_select(axis, index), start / count, len(index) / count


def _pack(tiles: Sequence[Tensor], uvs: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
    """Shelves of pictures in one square texture, and the uvs on it; the pictures are reduced until they fit."""
    scale = 1.0
    while True:
        sizes = [(max(1, round(tile.shape[0] * scale)), max(1, round(tile.shape[1] * scale))) for tile in tiles]
        places, side = _shelves([(h + 2 * _MARGIN, w + 2 * _MARGIN) for h, w in sizes])
        if side <= _FINEST or max(max(size) for size in sizes) <= _PLAIN_SIDE:
            break
        scale *= 0.9 * min(1.0, _FINEST / side)
    texture, moved = torch.zeros(side, side, 3), []
    for tile, uv, (height, width), (top, left) in zip(tiles, uvs, sizes, places, strict=True):
        assert uv is not None
        picture = resize(tile[None], height, width)
        padded = F.pad(picture.permute(0, 3, 1, 2), [_MARGIN] * 4, mode="replicate")[0].permute(1, 2, 0)
        texture[top : top + padded.shape[0], left : left + padded.shape[1]] = padded
        inside = uv.clamp(0, 1) * torch.tensor([width, height]) + torch.tensor([left, top]) + _MARGIN
        moved.append(inside / side)
    return texture, moved


def _shelves(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """Places (top, left) of rectangles (height, width) in rows, tallest first, and the side of the square that holds them."""
    area = sum(height * width for height, width in sizes)
    limit = max(max(width for _, width in sizes), math.ceil(math.sqrt(area) * 1.05))
    places, top, left, row = [(0, 0)] * len(sizes), 0, 0, 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        height, width = sizes[i]
        if left + width > limit:
            top, left, row = top + row, 0, 0
        places[i], left, row = (top, left), left + width, max(row, height)
    return places, max(limit, top + row)


def _bake_cells(part: Part) -> tuple[Tensor, Part]:
    """A texture [T,T,3] in which every triangle has half a square of its own, and the part with its uvs there.

    For vertex colours on an image: no image on the old uvs could hold their product. Squares hold two triangles with two
    texels between them, whose colours continue the triangles', so that bilinear samples stay their own.
    """
    count = len(part.faces)
    row = math.ceil(math.sqrt(math.ceil(count / 2)))
    cell = max(_PLAIN_SIDE, min(_LARGEST_CELL, (_BAKED if count < 32_000 else _FINEST) // row))
    side, last = row * cell, cell - 3.0
    base = torch.arange(count) // 2
    origin = torch.stack([base % row, base // row], 1) * float(cell)
    first = torch.tensor([[1.0, 1.0], [last, 1.0], [1.0, last]])
    local = torch.stack([first, cell - first])[torch.arange(count) % 2]
    corners = part.faces.reshape(-1)
    split = part.take(corners, torch.arange(3 * count).reshape(-1, 3))
    image, laid = (None, part) if part.image is None else _lay_out(part)
    texture = torch.zeros(side, side, 3)
    centres = torch.arange(side) + 0.5
    for top in range(0, side, cell):
        y, x = torch.meshgrid(centres[top : top + cell] - top, centres, indexing="ij")
        inner = x % cell
        upper = inner + y < cell
        face = (2 * ((x // cell).long() + row * (top // cell)) + (~upper).long()).clamp(max=count - 1)
        along, down = (torch.where(upper, v, cell - v) - 1 for v in (inner, y))
        weights = torch.stack([along, down], -1) / max(last - 1, 1e-6)
        weights = torch.cat([1 - weights.sum(-1, keepdim=True), weights], -1).reshape(-1, 3)
        face = face.reshape(-1)
        linear = part.material.factor[:3].expand(len(face), 3)
        if image is not None and laid.uvs is not None:
            at = torch.einsum("pk,pkc->pc", weights, laid.uvs[laid.faces[face]])
            linear = linear * decode_srgb(sample_texture(image, at))
        if part.colors is not None:
            linear = linear * torch.einsum("pk,pkc->pc", weights, part.colors[part.faces[face], :3]).clamp(0, 1)
        texture[top : top + cell] = encode_srgb(linear).reshape(len(y), side, 3)
    return texture, replace(split, uvs=((origin[:, None] + local) / side).reshape(-1, 2))


# --- cut-outs


def _cut_out(part: Part) -> Part:
    """Remove the surface where alpha (factor times image times vertex colour) is below the material's cutoff.

    Triangles on the border are divided into pieces of about two texels, and these are cut where alpha, interpolated along
    their edges, is the cutoff.
    """
    cutoff = part.material.cutoff
    assert cutoff is not None
    alpha = _alpha_of(part)
    if alpha is None:
        return part if float(part.material.factor[3]) >= cutoff else replace(part, faces=part.faces[:0])
    pieces = _pieces(part)
    whole, cut = [], []
    for count in pieces.unique().tolist():
        chosen = (pieces == count).nonzero()[:, 0]
        weights, small = _subdivide(count)
        for some in chosen.split(max(1, 2_000_000 // len(weights))):
            above = alpha(part.faces[some], weights) - cutoff  # [F,P]
            full = (above >= 0).all(1)
            whole.append(some[full])
            border = ~full & (above >= 0).any(1)
            if bool(border.any()):
                cut.append(_clip(part.faces[some[border]], above[border], weights, small))
    kept = part.faces[torch.cat(whole)]
    if not cut:
        return replace(part, faces=kept)
    corners, weights = (torch.cat(values) for values in zip(*cut, strict=True))
    new = part.at(corners, weights, torch.arange(len(corners)).reshape(-1, 3))
    old = replace(part, faces=kept)
    return _concatenate_parts([old, new]) if len(kept) else new


def _alpha_of(part: Part) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A function (faces [F,3], weights [P,3]) -> alpha [F,P]; None if it is the factor's everywhere."""
    image, colors = part.image, part.colors
    if colors is not None and bool((colors[:, 3] == 1).all()):
        colors = None
    if image is not None and bool((image[..., 3] == 1).all()):
        image = None
    if image is None and colors is None:
        return None
    factor = part.material.factor[3]

    def alpha(faces: Tensor, weights: Tensor) -> Tensor:
        value = factor.expand(len(faces), len(weights))
        if image is not None and part.uvs is not None:
            uvs = torch.einsum("pk,fkc->fpc", weights, part.uvs[faces]).reshape(-1, 2)
            wrapped = torch.stack([_wrap(uvs[:, i], wrap) for i, wrap in enumerate(part.material.wrap)], 1)
            value = value * sample_texture(image[..., 3:], wrapped).reshape(value.shape)
        if colors is not None:
            value = value * torch.einsum("pk,fk->fp", weights, colors[faces, 3])
        return value

    return alpha


def _wrap(values: Tensor, wrap: str) -> Tensor:
    """Coordinates in [0,1] that show the same."""
    if wrap == "clamp":
        return values.clamp(0, 1)
    if wrap == "repeat":
        return values % 1.0 if not bool(((values >= 0) & (values <= 1)).all()) else values
    folded = values % 2.0
    return torch.minimum(folded, 2 - folded)


def _pieces(part: Part) -> Tensor:
    """[M] number of pieces along the edges of each triangle, a power of two."""
    if part.image is None or part.uvs is None:
        return torch.full((len(part.faces),), 8)
    height, width = part.image.shape[:2]
    corners = part.uvs[part.faces] * torch.tensor([width, height])
    longest = (corners - corners.roll(1, 1)).norm(dim=2).amax(1)
    return 2 ** (longest / _TEXELS_A_PIECE).clamp(1, _MOST_PIECES).log2().ceil().long()


def _subdivide(count: int) -> tuple[Tensor, Tensor]:
    """([P,3] weights of the corners, [count²,3] pieces) of a triangle whose edges are divided by ``count``."""
    points = [(i, j) for j in range(count + 1) for i in range(count + 1 - j)]
    number = {point: k for k, point in enumerate(points)}
    pieces = [(number[i, j], number[i + 1, j], number[i, j + 1]) for i, j in points if i + j < count]
    pieces += [(number[i + 1, j], number[i + 1, j + 1], number[i, j + 1]) for i, j in points if i + j < count - 1]
    weights = torch.tensor([[count - i - j, i, j] for i, j in points], dtype=torch.float32) / count
    return weights, torch.tensor(pieces)


def _clip(faces: Tensor, above: Tensor, weights: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """The pieces of F triangles where ``above`` [F,P] is at least 0: (corners [3·K,3], weights [3·K,3]) of their vertices."""
    values = above[:, pieces].reshape(-1, 3)
    owner = torch.arange(len(faces)).repeat_interleave(len(pieces))
    places = weights[pieces].repeat(len(faces), 1, 1)
    inside = values >= 0
    kept = inside.any(1)
    values, owner, places, inside = values[kept], owner[kept], places[kept], inside[kept]
    triangles = list(_clipped(values, places, inside.sum(1)))
    owners = torch.cat([owner[which] for which, _ in triangles])
    return faces[owners].repeat_interleave(3, 0), torch.cat([corners for _, corners in triangles]).reshape(-1, 3)


def _clipped(values: Tensor, places: Tensor, count: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """([K] pieces, [K,3,3] corners) of the triangles that remain."""
    whole = (count == 3).nonzero()[:, 0]
    yield whole, places[whole]
    for number, alone in ((1, values.argmax(1)), (2, values.argmin(1))):
        which = (count == number).nonzero()[:, 0]
        turn = (alone[which, None] + torch.arange(3)) % 3  # the corner on its own side first
        value = values[which].gather(1, turn)
        place = places[which].gather(1, turn[..., None].expand(-1, -1, 3))
        share = value[:, :1] / (value[:, :1] - value[:, 1:])  # from the first corner towards the others
        crossing = place[:, :1] + share[..., None] * (place[:, 1:] - place[:, :1])
        if number == 1:
            yield which, torch.cat([place[:, :1], crossing], 1)
        else:
            yield which, torch.stack([crossing[:, 0], place[:, 1], place[:, 2]], 1)
            yield which, torch.stack([crossing[:, 0], place[:, 2], crossing[:, 1]], 1)
