"""Meshes in and out by file name: GLB, OBJ with its material and picture, PLY with vertex colours."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..mesh import Mesh, vertex_normals
from ..render.mesh import sample_texture
from ..util.atomic import replace_file
from ..util.images import from_uint8, to_uint8
from .glb import GENERATOR, as_trimesh, check_writable, texture_image, write_glb
from .mesh_companions import Companions, standalone_gltf

SUFFIXES = (".glb", ".obj", ".ply")


def write_mesh(path: str | Path, mesh: Mesh, provenance: dict[str, Any] | None = None) -> Path:
    """Write a mesh in the format of the path's suffix; only GLB keeps the provenance.

    Raises:
        InputError: an unknown suffix, an empty mesh or a missing folder.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"Meshes are written as {', '.join(SUFFIXES)}, got {Path(path).name!r}; change the suffix.")
    if suffix == ".glb":
        return write_glb(path, mesh, provenance)
    return write_obj(path, mesh) if suffix == ".obj" else write_mesh_ply(path, mesh)


def write_obj(path: str | Path, mesh: Mesh) -> Path:
    """Write an OBJ and, when the mesh is textured, its .mtl and _texture.png beside it (spaces in names become underscores).

    OBJ's texture coordinates start at the bottom, so v is flipped. Without a texture, colours follow the vertices' positions.
    """
    check_writable(mesh)
    path = Path(path)
    library, texture = name_companions(path)
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    positions = mesh.vertices
    if mesh.texture is None and mesh.colors is not None:
        positions = torch.cat([positions, mesh.colors], 1)
    lines = [f"# {GENERATOR}", "o object"]
    if mesh.texture is not None:
        lines.append(f"mtllib {library.name}")
    lines += _rows("v", positions)
    if mesh.uvs is not None:
        lines += _rows("vt", torch.stack([mesh.uvs[:, 0], 1 - mesh.uvs[:, 1]], 1))
    lines += _rows("vn", normals)
    if mesh.texture is not None:
        lines.append("usemtl surface")
    corner = "{0}//{0}" if mesh.uvs is None else "{0}/{0}/{0}"
    lines += ["f " + " ".join(corner.format(i) for i in face) for face in (mesh.faces + 1).tolist()]
    if mesh.texture is not None:
        with replace_file(texture) as temporary:
            texture_image(mesh.texture).save(temporary, format="PNG")
        material = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"map_Kd {texture.name}"]
        with replace_file(library) as temporary:
            temporary.write_text("\n".join(material) + "\n", encoding="utf-8")
    with replace_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def name_companions(path: Path) -> tuple[Path, Path]:
    """Return the material and the texture that are written with the .obj ``path``; spaces become underscores."""
    stem = path.stem.replace(" ", "_")
    return path.with_name(f"{stem}.mtl"), path.with_name(f"{stem}_texture.png")


def _rows(keyword: str, values: torch.Tensor) -> list[str]:
    return [f"{keyword} " + " ".join(f"{v:.6g}" for v in row) for row in values.tolist()]


def write_mesh_ply(path: str | Path, mesh: Mesh) -> Path:
    """Write a binary PLY with normals and 8-bit vertex colours; a texture is sampled at the vertices."""
    from trimesh.exchange.ply import export_ply

    check_writable(mesh)
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    colors = mesh.colors if mesh.texture is None else sample_texture(mesh.texture, mesh.texture_coordinates())
    # as attributes, which are written as they are: trimesh's own colours have an alpha
    attributes = {f"n{axis}": values for axis, values in zip("xyz", normals.T, strict=True)}
    if colors is not None:
        attributes |= dict(zip(("red", "green", "blue"), torch.from_numpy(to_uint8(colors)).T, strict=True))
    data = export_ply(as_trimesh(mesh, attributes), vertex_normal=False)
    with replace_file(path) as temporary:
        temporary.write_bytes(data.replace(b"comment https://github.com/mikedh/trimesh", f"comment {GENERATOR}".encode(), 1))
    return Path(path)


def read_mesh(path: str | Path) -> Mesh:
    """Read a .glb, .gltf, .obj or .ply of triangles with its texture or vertex colours; several parts become one.

    Raises:
        InputError: the file is missing, unreadable or holds no triangles.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no mesh at {path}; check the path.")
    if path.suffix.lower() not in (*SUFFIXES, ".gltf"):
        raise InputError(f"Meshes are read from {', '.join(SUFFIXES)}, .gltf, got {path.name!r}; convert it first.")
    companions = Companions(path)
    try:
        shape = _load_shape(path, companions)
        faces = np.array(getattr(shape, "faces", ()), np.int64)
        mesh = _with_appearance(shape, faces) if len(faces) else None
    except Exception as error:  # every format of trimesh raises its own kinds
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} cannot be read as a mesh ({error}); export it again.") from error
    if companions.refused is not None:
        raise companions.refused
    if mesh is None:
        raise InputError(f"{path.name} holds no triangles; if it is a splat, extract a mesh from it first.")
    if int(faces.min()) < 0 or int(faces.max()) >= len(mesh.vertices) or not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError(f"{path.name} has vertices that are not finite or not there; export it again.")
    return mesh


def _load_shape(path: Path, companions: Companions) -> Any:
    """The file as trimesh's one mesh; whatever it names was read and checked before."""
    import trimesh

    kind = path.suffix.lower()[1:]
    named: dict[str, Any] = {"resolver": companions}
    content = path.read_bytes()
    if kind in ("glb", "gltf"):
        kind = "gltf"
        content, named["resolver"] = standalone_gltf(content, companions, path.name)
    return trimesh.load(io.BytesIO(content), file_type=kind, force="mesh", process=False, **named)


def _with_appearance(shape: Any, faces: np.ndarray) -> Mesh:
    """The mesh with colours as trimesh holds them: v upwards, textures as Pillow images."""
    mesh, visual = Mesh(torch.from_numpy(np.array(shape.vertices, np.float32)), torch.from_numpy(faces)), shape.visual
    image = getattr(getattr(visual, "material", None), "baseColorTexture", None)
    image = getattr(getattr(visual, "material", None), "image", None) if image is None else image
    if image is not None and getattr(visual, "uv", None) is not None:
        uvs = torch.from_numpy(np.array(visual.uv, np.float32))
        texture = from_uint8(image.convert("RGB"))
        return replace(mesh, uvs=torch.stack([uvs[:, 0], 1 - uvs[:, 1]], 1), texture=texture)
    if getattr(visual, "kind", None) == "vertex":
        return replace(mesh, colors=from_uint8(visual.vertex_colors[:, :3]))
    return mesh
