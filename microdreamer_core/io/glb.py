"""Textured meshes as binary glTF 2.0, the file that every 3D program, browser and game engine opens.

glTF is right-handed, y up, front towards +z, uv origin at the top left: the conventions of this core, so nothing is converted
but vertex colours, which glTF wants linear.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError
from ..mesh import Mesh, SurfaceMaps, vertex_normals
from ..util.atomic import replace_file
from ..util.colors import decode_srgb
from ..util.images import to_uint8

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image
    from trimesh import Trimesh

GENERATOR = f"microdreamer-comfyui {__version__}"
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_BRIGHT = "KHR_materials_emissive_strength"
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


def write_glb(path: str | Path, mesh: Mesh, provenance: dict[str, Any] | None = None) -> Path:
    """Write one mesh with its texture (PNG inside), or its vertex colours, and a two-sided material: the mesh's maps, or a
    rough, non-metallic surface.

    Args:
        path: the .glb file; replaced only when writing succeeds.
        provenance: how the object was made; goes into ``asset.extras``, must be JSON.

    Raises:
        InputError: the mesh is empty or not finite, the folder is missing, or the provenance is not JSON.
    """
    data = glb_bytes(mesh, provenance)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def glb_bytes(mesh: Mesh, provenance: dict[str, Any] | None = None) -> bytes:
    """Encode a mesh as the file that ``write_glb`` writes; arguments and errors are the same."""
    from trimesh import Scene
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    check_writable(mesh)
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"The provenance of a GLB must be JSON ({error}); give strings, numbers, lists and dicts.") from error
    # trimesh would make colours 8-bit and turn v over, which rounds; what it does not know by name it writes as it is
    attributes = {"_NORMAL": vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else _unit(mesh.normals)}
    if mesh.uvs is not None:
        attributes["_TEXCOORD_0"] = mesh.uvs
    if mesh.texture is None and mesh.colors is not None:
        attributes["_COLOR_0"] = decode_srgb(mesh.colors)
    maps = mesh.maps or SurfaceMaps()
    strength = max(1.0, *maps.emission)
    surface = PBRMaterial(
        "surface",
        baseColorTexture=_picture(mesh.texture),
        metallicFactor=maps.metallic,
        roughnessFactor=maps.roughness,
        metallicRoughnessTexture=_picture(maps.metallic_roughness),
        normalTexture=_picture(maps.normal),
        occlusionTexture=_picture(maps.occlusion),
        emissiveTexture=_picture(maps.emissive),
        emissiveFactor=[value / strength for value in maps.emission] if any(maps.emission) else None,
        doubleSided=True,
    )
    shape = as_trimesh(mesh, attributes, TextureVisuals(material=surface))

    def finish(document: dict[str, Any]) -> None:
        document["asset"] |= {"generator": GENERATOR, "extras": provenance or {}}
        document |= {"scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0, "name": "object"}]}
        primitive = document["meshes"][0]["primitives"][0]
        primitive["attributes"] = {name.removeprefix("_"): index for name, index in primitive["attributes"].items()}
        for index, accessor in enumerate(document["accessors"]):
            target = _ELEMENT_ARRAY_BUFFER if index == primitive["indices"] else _ARRAY_BUFFER
            document["bufferViews"][accessor["bufferView"]]["target"] = target
            if index != primitive["attributes"]["POSITION"]:
                del accessor["min"], accessor["max"]  # not asked for, and not JSON where a colour is NaN
        material = document["materials"][0]
        for key, number, value in (
            ("normalTexture", "scale", maps.normal_scale),
            ("occlusionTexture", "strength", maps.occlusion_strength),
        ):
            if key in material and value != 1:
                material[key][number] = value
        if strength > 1:
            material["extensions"] = {_BRIGHT: {"emissiveStrength": strength}}
            document["extensionsUsed"] = [_BRIGHT]
        if mesh.texture is not None:
            document["images"][0]["name"] = "texture"
        if "textures" in document:
            document["textures"] = [{**texture, "sampler": 0} for texture in document["textures"]]
            document["samplers"] = [
                {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
            ]

    return export_glb(Scene({"object": shape}), include_normals=False, tree_postprocessor=finish)


def as_trimesh(mesh: Mesh, attributes: dict[str, Tensor], visual: Any = None) -> Trimesh:
    """Hand a mesh to trimesh as it is, with attributes of the vertices [N] or [N,C] beside its own."""
    from trimesh import Trimesh

    numbers: dict[str, ArrayLike] = {name: values.detach().cpu().numpy() for name, values in attributes.items()}
    vertices, faces = mesh.vertices.detach().cpu().numpy(), mesh.faces.cpu().numpy()
    return Trimesh(vertices, faces, vertex_attributes=numbers, visual=visual, process=False)


def check_writable(mesh: Mesh) -> None:
    """Raise InputError unless the mesh has faces and finite vertices."""
    if len(mesh.faces) == 0:
        raise InputError("A mesh file needs at least one face, got none; extract the mesh at a lower threshold.")
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError("The mesh's vertices hold NaN or infinite numbers; extract it again.")


def texture_image(texture: Tensor) -> Image.Image:
    """[T,T,3] in [0,1] -> Pillow image."""
    from PIL import Image

    return Image.fromarray(to_uint8(texture))


def _picture(image: Tensor | None) -> Image.Image | None:
    return None if image is None else texture_image(image)


def _unit(normals: Tensor) -> Tensor:
    """glTF demands unit length; what has no direction points up."""
    length = normals.norm(dim=1, keepdim=True)
    return torch.where(length > 0, normals / length.clamp_min(1e-20), normals.new_tensor([0.0, 1.0, 0.0]))
