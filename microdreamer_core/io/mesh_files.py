"""Meshes in and out by file name: GLB, OBJ with its material and picture, PLY with vertex colours, STL."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..mesh import Mesh, vertex_normals
from ..render.mesh import sample_texture
from ..util.atomic import replace_file
from ..util.colors import decode_srgb
from ..util.image_files import eight_bit
from ..util.images import from_uint8, to_uint8
from .appearance import Material, Part, merge_parts
from .glb import GENERATOR, as_trimesh, check_writable, texture_image, write_glb
from .gltf import read_gltf
from .mesh_companions import UTF8_MARK, Companions

logger = logging.getLogger(__name__)

SUFFIXES = (".glb", ".obj", ".ply", ".stl")
GLTF_SUFFIXES = (".glb", ".gltf")
READABLE = (*SUFFIXES, ".gltf")


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
    if mesh.maps is not None and mesh.maps.named():
        logger.warning("%s cannot keep: %s; write a .glb for these.", Path(path).name, ", ".join(mesh.maps.named()))
    return {".obj": write_obj, ".ply": write_mesh_ply, ".stl": write_stl}[suffix](path, mesh)


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


def write_stl(path: str | Path, mesh: Mesh) -> Path:
    """Write a binary STL: triangles alone, no colours."""
    from trimesh.exchange.stl import export_stl

    check_writable(mesh)
    with replace_file(path) as temporary:
        temporary.write_bytes(export_stl(as_trimesh(mesh, {})))
    return Path(path)


def read_mesh(path: str | Path) -> Mesh:
    """Read a .glb, .gltf, .obj, .ply or .stl of triangles with its colours; several parts become one.

    A glTF looks as the specification says (``appearance``); an OBJ's colours are Kd times map_Kd, which repeats.

    Raises:
        InputError: the file is missing, unreadable or holds no triangles.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no mesh at {path}; check the path.")
    if path.suffix.lower() not in READABLE:
        raise InputError(f"Meshes are read from {', '.join(READABLE)}, got {path.name!r}; convert it first.")
    companions = Companions(path)
    try:
        mesh = merge_parts(_load_parts(path, companions))
    except Exception as error:  # every format of trimesh raises its own kinds
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} cannot be read as a mesh ({error}); export it again.") from error
    if companions.refused is not None:
        raise companions.refused
    if not len(mesh.faces):
        raise InputError(f"{path.name} holds no triangles; if it is a splat, extract a mesh from it first.")
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError(f"{path.name} has vertices that are not finite; export it again.")
    return mesh


def _load_parts(path: Path, companions: Companions) -> list[Part]:
    """The triangles of a file with their materials; whatever it names was read and checked before."""
    if path.suffix.lower() in GLTF_SUFFIXES:
        return read_gltf(path.read_bytes(), companions, path.name)
    import trimesh

    kind, content = path.suffix.lower()[1:], io.BytesIO(path.read_bytes().removeprefix(UTF8_MARK))
    resolver: Any = companions
    scene: Any = trimesh.load(content, file_type=kind, force="scene", process=False, resolver=resolver)
    shapes = [shape for shape in scene.dump() if len(getattr(shape, "faces", ()))]
    if kind == "stl":  # which repeats the corners of each triangle
        for shape in shapes:
            shape.merge_vertices()
    materials = {id(source): _material_of(source) for source in map(_material_source, shapes)}
    return [_part_of(shape, materials[id(_material_source(shape))]) for shape in shapes]


def _material_source(shape: Any) -> Any:
    return getattr(shape.visual, "material", None)


def _part_of(shape: Any, material: Material) -> Part:
    """A part as trimesh holds it: v upwards, colours sRGB."""
    vertices, faces = torch.from_numpy(np.array(shape.vertices, np.float32)), np.array(shape.faces, np.int64)
    if int(faces.min()) < 0 or int(faces.max()) >= len(vertices):
        raise ValueError("a face names a vertex that is not there")
    visual, colors, uvs = shape.visual, None, getattr(shape.visual, "uv", None)
    if getattr(visual, "kind", None) == "vertex":
        colors = decode_srgb(from_uint8(visual.vertex_colors))
        colors[:, 3] = 1
    if uvs is not None:
        uvs = torch.from_numpy(np.array(uvs, np.float32)[:, :2])
        uvs = torch.stack([uvs[:, 0], 1 - uvs[:, 1]], 1)
    return Part(vertices, torch.from_numpy(faces), material, uvs, colors=colors)


def _material_of(source: Any) -> Material:
    """An OBJ's material: Kd times map_Kd in sRGB; Kd 0, which many programs write beside a map, counts as white there."""
    image, factor = getattr(source, "image", None), torch.ones(4)
    if "kd" in map(str.lower, getattr(source, "kwargs", {})) and (image is None or any(source.diffuse[:3])):
        factor[:3] = decode_srgb(from_uint8(np.array(source.diffuse[:3])))
    return Material(factor, None if image is None else from_uint8(eight_bit(image).convert("RGBA")))
