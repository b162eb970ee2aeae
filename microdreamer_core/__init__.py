"""MicroDreamer: images and prompts to 3D assets by score-based iterative reconstruction (SIR), in PyTorch.

>>> import microdreamer_core as md
>>> md.get_plan("embedded", iterations=5).iterations
5

The names of ``__all__`` are imported at first use; importing the package itself loads no other library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Asset3D, image_to_3d, text_to_3d
    from .cameras import Cameras, orbit_cameras
    from .checkpoints.registry import load_model
    from .errors import InputError
    from .fields.gaussians import Gaussians
    from .fields.nerf import NeRF
    from .fields.texture import TextureField, texture_field
    from .io.mesh_files import read_mesh, write_mesh
    from .io.ply import read_splat
    from .job.outputs import write_splat
    from .mesh import Mesh
    from .meshing.extract import extract_mesh
    from .meshing.pipeline import texture_mesh
    from .meshing.settings import MeshSettings
    from .sir.iterations import sir_iterations
    from .sir.plan import SIRPlan
    from .sir.presets import get_plan

__version__ = "0.1.0"
__all__ = [
    "Asset3D",
    "Cameras",
    "Gaussians",
    "InputError",
    "Mesh",
    "MeshSettings",
    "NeRF",
    "SIRPlan",
    "TextureField",
    "extract_mesh",
    "get_plan",
    "image_to_3d",
    "load_model",
    "orbit_cameras",
    "read_mesh",
    "read_splat",
    "sir_iterations",
    "text_to_3d",
    "texture_field",
    "texture_mesh",
    "write_mesh",
    "write_splat",
]
_PLACES = {
    "api": (
        "Asset3D",
        "image_to_3d",
        "text_to_3d",
    ),
    "cameras": (
        "Cameras",
        "orbit_cameras",
    ),
    "checkpoints.registry": ("load_model",),
    "errors": ("InputError",),
    "fields.gaussians": ("Gaussians",),
    "fields.nerf": ("NeRF",),
    "fields.texture": (
        "TextureField",
        "texture_field",
    ),
    "io.mesh_files": (
        "read_mesh",
        "write_mesh",
    ),
    "io.ply": ("read_splat",),
    "job.outputs": ("write_splat",),
    "mesh": ("Mesh",),
    "meshing.extract": ("extract_mesh",),
    "meshing.pipeline": ("texture_mesh",),
    "meshing.settings": ("MeshSettings",),
    "sir.iterations": ("sir_iterations",),
    "sir.plan": ("SIRPlan",),
    "sir.presets": ("get_plan",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
