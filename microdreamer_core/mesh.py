"""The triangle mesh that all stages from extraction to export exchange."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import InputError
from .util.images import resize

Fit = Literal["auto", "always", "never"]
"""Whether an object is moved to where the cameras look: "auto" only if it is far from that."""

_USUAL_SIDES, _USUAL_OFFSET = (0.5, 1.5), 0.25


@dataclass(frozen=True)
class SurfaceMaps:
    """What a material holds beside its colour: kept for files and other programs, never rendered here.

    Images are [H,W,3] in [0,1] and lie on the mesh's uvs; meaning and defaults are those of glTF 2.0.

    Attributes:
        metallic, roughness: factors in [0,1].
        metallic_roughness: green is roughness, blue is metallic.
        normal: tangent-space normal map; ``normal_scale`` scales its x and y.
        occlusion: red is the share of ambient light; ``occlusion_strength`` in [0,1].
        emissive: light that the surface gives off, times ``emission`` (linear RGB).
    """

    metallic: float = 0.0
    roughness: float = 1.0
    metallic_roughness: Tensor | None = None
    normal: Tensor | None = None
    normal_scale: float = 1.0
    occlusion: Tensor | None = None
    occlusion_strength: float = 1.0
    emissive: Tensor | None = None
    emission: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def named(self) -> list[str]:
        """Return the names of what an unlit colour cannot say, for messages."""
        images = {
            "metallic-roughness": self.metallic_roughness,
            "normal map": self.normal,
            "occlusion": self.occlusion,
            "emission": self.emissive if any(self.emission) else None,
        }
        return [name for name, image in images.items() if image is not None]


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in world space, counter-clockwise seen from outside; immutable: stages return new meshes.

    All tensors are on the CPU. Texture row 0 is the top of the image and v points down (glTF's convention): texel (row,
    column) is centred on uv = ((column + 0.5) / T, (row + 0.5) / T).

    >>> triangle = Mesh(vertices=torch.eye(3), faces=torch.tensor([[0, 1, 2]]))
    >>> round(triangle.diagonal, 4)
    1.7321

    Attributes:
        vertices: [N,3] float32.
        faces: [M,3] int64 vertex indices.
        uvs: [N,2] float32 in [0,1]; vertices on the seams of the texture are duplicated.
        normals: [N,3] float32 unit length.
        colors: [N,3] RGB in [0,1].
        texture: [T,T,3] RGB in [0,1], needs uvs; beyond its border it continues as its outermost texels.
        maps: the rest of its material, on the same uvs.

    Raises:
        InputError: shapes disagree, a face index is out of range, or a texture has no uvs.
    """

    vertices: Tensor
    faces: Tensor
    uvs: Tensor | None = None
    normals: Tensor | None = None
    colors: Tensor | None = None
    texture: Tensor | None = None
    maps: SurfaceMaps | None = None

    def __post_init__(self):
        count = self.vertices.shape[0]
        for name, width in (("vertices", 3), ("uvs", 2), ("normals", 3), ("colors", 3)):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (count, width):
                raise InputError(
                    f"Mesh.{name} must have shape [{count},{width}], got {list(value.shape)}; give one row a vertex."
                )
        if self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise InputError(f"Mesh.faces must have shape [M,3], got {list(self.faces.shape)}; split polygons into triangles.")
        if len(self.faces) and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < count:
            raise InputError(
                f"Mesh.faces must index its {count} vertices, got {int(self.faces.min())}..{int(self.faces.max())}; "
                "indices start at 0."
            )
        if self.texture is None:
            return
        if self.texture.ndim != 3 or self.texture.shape[2] != 3:
            raise InputError(f"Mesh.texture must have shape [T,T,3], got {list(self.texture.shape)}; convert it to RGB.")
        if self.uvs is None:
            raise InputError("A textured mesh needs uvs, got none; unwrap the mesh first.")

    def require_texture(self) -> Tensor:
        """Return ``texture``, or fail with a message for the user.

        Raises:
            InputError: the mesh has no texture.
        """
        if self.texture is None:
            raise InputError("The mesh has no texture; bake one first.")
        return self.texture

    def texture_coordinates(self) -> Tensor:
        """Return ``uvs``, or fail with a message for the user.

        Raises:
            InputError: the mesh has no uvs.
        """
        if self.uvs is None:
            raise InputError("The mesh has no texture coordinates; unwrap it first.")
        return self.uvs

    @property
    def diagonal(self) -> float:
        """Length of the bounding box's diagonal."""
        return float((self.vertices.amax(0) - self.vertices.amin(0)).norm())


@dataclass(frozen=True)
class Placement:
    """An affine map between the frame in which a mesh was made and the one in which the cameras look at it.

    >>> placement = Placement(torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)))
    >>> triangle = Mesh(vertices=torch.eye(3), faces=torch.tensor([[0, 1, 2]]))
    >>> placement.apply(triangle).vertices[0], placement.undo(placement.apply(triangle)).vertices[0]
    (tensor([2., 0., 0.]), tensor([1., 0., 0.]))

    Attributes:
        matrix: [4,4] float64, invertible.

    Raises:
        InputError: the matrix is not finite or not invertible.
    """

    matrix: Tensor

    def __post_init__(self):
        if not bool(self.matrix.isfinite().all()) or not float(torch.linalg.det(self.matrix[:3, :3])):
            raise InputError("A placement needs a finite scale other than 0 along every axis; check the transform.")

    @classmethod
    def identity(cls) -> Placement:
        """Return the placement that moves nothing."""
        return cls(torch.eye(4, dtype=torch.float64))

    @classmethod
    def of_box(cls, low: Tensor, high: Tensor, fit: Fit = "auto") -> Placement:
        """Return the placement that centres a box on the origin and scales its longest side to 1.

        Args:
            low, high: [3] float64 corners.
            fit: "auto" moves only a box that is far from that (longest side outside 0.5 to 1.5, or centre more than 0.25 off),
                so that what was made from a field stays aligned with that field.

        Raises:
            InputError: an unknown ``fit``.
        """
        if fit not in get_args(Fit):
            raise InputError(f"The fit must be one of {', '.join(get_args(Fit))}, got {fit!r}.")
        centre, side = (low + high) / 2, float((high - low).max())
        near = _USUAL_SIDES[0] <= side <= _USUAL_SIDES[1] and float(centre.abs().max()) <= _USUAL_OFFSET
        if fit == "never" or side == 0 or (fit == "auto" and near):
            return cls.identity()
        matrix = torch.eye(4, dtype=torch.float64) / side
        matrix[:3, 3], matrix[3, 3] = -centre / side, 1
        return cls(matrix)

    @property
    def is_identity(self) -> bool:
        """Whether it moves nothing."""
        return torch.equal(self.matrix, torch.eye(4, dtype=torch.float64))

    def then(self, other: Placement) -> Placement:
        """Return this placement followed by another."""
        return self if other.is_identity else Placement(other.matrix @ self.matrix)

    def inverse(self) -> Placement:
        """Return the placement that undoes this one."""
        return Placement(torch.linalg.inv(self.matrix))

    def move(self, points: Tensor) -> Tensor:
        """Move points [N,3]."""
        return (points.double() @ self.matrix[:3, :3].T + self.matrix[:3, 3]).to(points.dtype)

    def apply(self, mesh: Mesh) -> Mesh:
        """Return the moved mesh, the mesh itself if nothing moves; mirrored faces are turned, so that they face outwards."""
        if self.is_identity:
            return mesh
        a, b, c = self.matrix[:3, :3].unbind(1)
        cofactors = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
        mirrored = float(torch.linalg.det(self.matrix[:3, :3])) < 0
        normals = mesh.normals
        if normals is not None:
            turned = normals.double() @ (-cofactors if mirrored else cofactors).T
            normals = torch.nn.functional.normalize(turned, dim=1).to(normals.dtype)
        return replace(
            mesh, vertices=self.move(mesh.vertices), normals=normals, faces=mesh.faces.flip(1) if mirrored else mesh.faces
        )

    def undo(self, mesh: Mesh) -> Mesh:
        """Return a mesh that was moved by this placement to where it was."""
        return mesh if self.is_identity else self.inverse().apply(mesh)


def square_texture(mesh: Mesh) -> Mesh:
    """Return the mesh with its texture resampled to a square, as the stages that change textures need it.

    Raises:
        InputError: the mesh has no texture.
    """
    texture = mesh.require_texture()
    return replace(mesh, texture=resize(texture[None], max(texture.shape[:2]))[0])


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return face normals [M,3] whose length is twice the area of their triangle.

    >>> face_normals(torch.eye(3), torch.tensor([[0, 1, 2]]))
    tensor([[1., 1., 1.]])
    """
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit vertex normals [N,3], area-weighted over adjacent faces; (0,1,0) where no face has an area.

    >>> vertex_normals(torch.eye(3), torch.tensor([[0, 1, 2]]))[0]
    tensor([0.5774, 0.5774, 0.5774])
    """
    weighted = face_normals(vertices.double(), faces)
    total = torch.zeros_like(vertices, dtype=torch.float64)
    for corner in range(3):
        total.index_add_(0, faces[:, corner], weighted)
    length = total.norm(dim=1, keepdim=True)
    up = total.new_tensor([0.0, 1.0, 0.0])
    return torch.where(length > 0, total / length.clamp_min(1e-300), up).float()


def signed_volume(vertices: Tensor, faces: Tensor) -> float:
    """Return the enclosed volume of a closed mesh, positive if its faces point outwards.

    >>> corners = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    >>> round(signed_volume(corners, torch.tensor([[0, 2, 1], [0, 3, 2], [0, 1, 3], [1, 2, 3]])), 4)
    0.1667
    """
    a, b, c = vertices.double()[faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)
