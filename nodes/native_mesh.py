"""Meshes of ComfyUI (MESH and 3D files) to this pack's, and back, in one place for all nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..microdreamer_core.errors import InputError
from ..microdreamer_core.io.appearance import Material, Part, merge_parts
from ..microdreamer_core.io.mesh_files import READABLE, read_mesh
from ..microdreamer_core.mesh import Mesh, Placement, SurfaceMaps
from ..microdreamer_core.render.projection import rotation_matrices
from ..microdreamer_core.util.colors import decode_srgb, encode_srgb
from ..microdreamer_core.util.images import resize
from .compat import file_3d_class, native_mesh


def to_native_mesh(mesh: Mesh) -> Any:
    """Convert a mesh to a native MESH for any node, with the colours, uvs, texture and maps that ComfyUI's class supports; the
    rest is kept for this pack's nodes."""
    native = native_mesh(**_native_values(mesh), **_native_maps(mesh))
    native.microdreamer = mesh
    return native


def from_native_mesh(native: Any) -> Mesh:
    """Convert a native MESH (of a batch, the first) or a FILE_3D of any node to a mesh.

    If other nodes have changed a mesh of this pack, their attributes are used; attributes that ComfyUI's class does not support
    are kept as long as the triangles are the same. Vertex colours that tint a texture are baked into it.

    Raises:
        InputError: it has no vertices and faces, or is a file that cannot be read as a mesh.
    """
    file_class = file_3d_class()
    if file_class is not None and isinstance(native, file_class):
        return _read_file_3d(native)
    kept = getattr(native, "microdreamer", None)
    if isinstance(kept, Mesh) and _unchanged(native, kept):
        return kept
    values = _without_padding(native)
    vertices, faces = values.pop("vertices", None), values.pop("faces", None)
    if vertices is None or faces is None:
        raise InputError(f"A MESH needs vertices and faces, got {type(native).__name__}; link a node that makes a mesh.")
    linear, mesh = values.pop("vertex_colors", None), Mesh(vertices, faces.long())
    if isinstance(kept, Mesh) and len(kept.vertices) == len(vertices) and torch.equal(kept.faces, faces.long()):
        unknown = [name for name, ours in _MESH_NAMES.items() if not hasattr(native, name) and ours != "normals"]
        values |= {_MESH_NAMES[name]: getattr(kept, _MESH_NAMES[name]) for name in unknown}
        mesh = replace(mesh, maps=None if hasattr(native, "normal_map") else kept.maps)
    if values.get("uvs") is None:
        values.pop("texture", None)
    return _dress(replace(mesh, **values), native, linear)


def _dress(mesh: Mesh, native: Any, linear: Tensor | None) -> Mesh:
    """The mesh with the colours of a native MESH: its material's factor times texture times linear vertex colours."""
    material = getattr(native, "material", None)
    material = material if isinstance(material, dict) else {}
    factor = torch.tensor([*(material.get("base_color_factor") or ()), 1.0, 1.0, 1.0, 1.0][:4], dtype=torch.float32).clamp(0, 1)
    maps = _maps_of(native, material) or mesh.maps
    if mesh.uvs is None or mesh.texture is None:
        colors = linear[:, :3] * factor[:3] if linear is not None else None
        if colors is None and mesh.colors is None and bool((factor[:3] != 1).any()):
            colors = factor[:3].expand(len(mesh.vertices), 3)
        return replace(mesh, texture=None, maps=maps, colors=mesh.colors if colors is None else encode_srgb(colors))
    if (linear is None or bool((linear[:, :3] == 1).all())) and bool((factor[:3] == 1).all()):
        return replace(mesh, maps=maps)
    opaque = torch.cat([mesh.texture, torch.ones_like(mesh.texture[..., :1])], -1)
    tint = None if linear is None else torch.cat([linear[:, :3], torch.ones_like(linear[:, :1])], 1)
    material = Material(factor, opaque, ("clamp", "clamp"), maps=maps)
    return merge_parts([Part(mesh.vertices, mesh.faces, material, mesh.uvs, mesh.normals, tint)])


def _read_file_3d(file: Any) -> Mesh:
    """The mesh in a FILE_3D, on disk or in memory."""
    suffix = f".{str(file.format).lower()}"
    if suffix not in READABLE:
        raise InputError(f"3D files are read as {', '.join(READABLE)}, got {suffix}; link a .glb.")
    if file.is_disk_backed:
        return read_mesh(file.get_source())
    with TemporaryDirectory() as folder:
        return read_mesh(file.save_to(str(Path(folder) / f"model{suffix}")))


_MESH_NAMES = {"uvs": "uvs", "vertex_colors": "colors", "texture": "texture", "normals": "normals"}
"""Optional attributes of a native MESH, with their names in ``Mesh``."""


def _native_values(mesh: Mesh) -> dict[str, Tensor]:
    """The attributes of a native MESH; its vertex colours are linear, as in glTF, and multiply the texture."""
    colors = None if mesh.colors is None or mesh.texture is not None else decode_srgb(mesh.colors)
    values = {"vertices": mesh.vertices, "faces": mesh.faces, "uvs": mesh.uvs, "vertex_colors": colors}
    values |= {"texture": mesh.texture, "normals": mesh.normals}
    return {name: value[None] for name, value in values.items() if value is not None}


def _native_maps(mesh: Mesh) -> dict[str, Any]:
    """The maps of a native MESH. It keeps occlusion in the red channel of metallic-roughness, and only there."""
    maps = mesh.maps
    if maps is None:
        return {}
    packed = maps.metallic_roughness
    if maps.occlusion is not None:
        packed = (
            torch.ones_like(maps.occlusion) if packed is None else resize(packed[None], *maps.occlusion.shape[:2])[0].clone()
        )
        packed[..., 0] = maps.occlusion[..., 0]
    images = {"metallic_roughness": packed, "normal_map": maps.normal, "emissive": maps.emissive}
    material = {"metallic_factor": maps.metallic, "roughness_factor": maps.roughness, "normal_scale": maps.normal_scale}
    material |= {"occlusion_strength": maps.occlusion_strength, "emissive_factor": list(maps.emission)}
    return {name: image[None] for name, image in images.items() if image is not None} | {
        "material": material,
        "occlusion_in_mr": maps.occlusion is not None,
    }


def _maps_of(native: Any, material: dict[str, Any]) -> SurfaceMaps | None:
    """What a native MESH's material holds beside its colour; None if nothing."""

    def image(name: str) -> Tensor | None:
        batch = getattr(native, name, None)
        return batch[0, ..., :3].detach().cpu().float().clone() if isinstance(batch, Tensor) and len(batch) else None

    packed, normal, emissive = image("metallic_roughness"), image("normal_map"), image("emissive")
    if packed is None and normal is None and emissive is None and not material:
        return None
    usual = (0.0, 1.0) if packed is None else (1.0, 1.0)  # as ComfyUI saves them
    metallic, roughness = (
        value if value >= 0 else default
        for value, default in zip(
            (material.get("metallic_factor", -1), material.get("roughness_factor", -1)), usual, strict=True
        )
    )
    bright = float(material.get("emissive_strength", 1.0))
    red, green, blue = (float(value) for value in material.get("emissive_factor") or (0, 0, 0))
    if emissive is not None and not any((red, green, blue)):
        red = green = blue = 1.0
    return SurfaceMaps(
        float(metallic),
        float(roughness),
        packed,
        normal,
        float(material.get("normal_scale", 1.0)),
        packed if getattr(native, "occlusion_in_mr", False) else None,
        float(material.get("occlusion_strength", 1.0)),
        emissive,
        (bright * red, bright * green, bright * blue),
    )


def texture_image(mesh: Mesh) -> Tensor:
    """Return a copy of a baked mesh's texture as a native IMAGE [1,T,T,3]."""
    return mesh.require_texture()[None].clone()


def _unchanged(native: Any, mesh: Mesh) -> bool:
    """Whether a native MESH is unchanged since ``to_native_mesh``."""
    handed = _native_values(mesh)
    for name in ("vertices", "faces", *_MESH_NAMES):
        if not hasattr(native, name):
            continue
        ours, theirs = handed.get(name), getattr(native, name)
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and (ours.shape != theirs.shape or not torch.equal(ours, theirs.to(ours))):
            return False
    return all(_same(value, getattr(native, name)) for name, value in _maps_told(mesh).items() if hasattr(native, name))


def _maps_told(mesh: Mesh) -> dict[str, Any]:
    """The maps of a native MESH, those that it lacks included."""
    lacking = {"metallic_roughness": None, "normal_map": None, "emissive": None, "material": None, "occlusion_in_mr": False}
    return lacking | _native_maps(mesh)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours))
    return not isinstance(ours, Tensor) and not isinstance(theirs, Tensor) and ours == theirs


def _without_padding(native: Any) -> dict[str, Tensor]:
    """The attributes of the one mesh in a batch, without padding.

    Raises:
        InputError: there are more.
    """
    counts = {"faces": "face_counts", "texture": None}
    values = {}
    for name in ("vertices", "faces", *_MESH_NAMES):
        batch = getattr(native, name, None)
        if batch is None or not len(batch):
            continue
        if name == "vertices" and len(batch) > 1:
            raise InputError(
                f"This MESH is a batch of {len(batch)} meshes, one is expected; make one at a time (batch size 1)."
            )
        count = getattr(native, counts.get(name, "vertex_counts") or "", None)
        value = batch[0] if count is None else batch[0, : int(count[0])]
        values[name] = value.detach().cpu().clone()
        if name != "faces":
            values[name] = values[name].float()
    if "texture" in values:  # an IMAGE of ComfyUI may have alpha, or be a mask
        height, width = values["texture"].shape[:2]
        values["texture"] = values["texture"][..., :3].expand(height, width, 3)
    return values


def placement_of(info: Any) -> Placement:
    """Convert a LOAD3D_MODEL_INFO (a list of position, quaternion and scale; the first counts) to a placement: from the file's
    frame to the viewer's. None and an empty list move nothing.

    Raises:
        InputError: it has other contents, or a scale of 0.
    """
    if not info:
        return Placement.identity()
    try:
        entry = info[0] if isinstance(info, list) else info
        position, scale = ([float(entry[key][axis]) for axis in "xyz"] for key in ("position", "scale"))
        x, y, z, w = (float(entry["quaternion"][axis]) for axis in "xyzw")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"A placement needs position, quaternion and scale, got {str(info)[:80]!r}; link model_3d_info of Load 3D."
        ) from error
    matrix = torch.eye(4, dtype=torch.float64)
    quat = torch.tensor([[w, x, y, z]], dtype=torch.float64)
    matrix[:3, :3] = rotation_matrices(quat)[0] * torch.tensor(scale, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(position, dtype=torch.float64)
    return Placement(matrix)
