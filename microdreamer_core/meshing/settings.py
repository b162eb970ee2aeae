"""Settings of mesh extraction; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..util.settings import check_settings, setting

Extractor = Literal["density", "lgm"]
EXTRACTORS: tuple[str, ...] = get_args(Extractor)
"""How a surface is found: from the field's density, or the paper's way by LGM (``meshing.lgm``)."""
_PUBLISHED: dict[str, dict[str, Any]] = {
    "density": {},
    "lgm": {"resolution": 256, "target_faces": 50_000, "smoothing": 20, "fit_outlines": True},
}
BELT = 8
"""Images of the belt around the object, all at its own height."""


@dataclass(frozen=True)
class MeshSettings:
    """How a mesh is made from a field; ranges and meaning of the fields are their :class:`~..util.settings.Setting`.

    ``fit_outlines`` is for ``"lgm"``: the threshold of ``"density"`` already puts the vertices on the object's outlines, a
    little inside those of soft Gaussians.
    """

    resolution: int = setting(128, "density grid points along a side", 16, 1024)
    threshold: float | None = setting(
        None, "density of the surface; found automatically by default, and the paper's 5 with lgm", 0, optional=True
    )
    smallest_piece: float = setting(0.02, "pieces below this share of the largest one's area are dropped", 0, 1)
    smoothing: int = setting(5, "rounds of Taubin smoothing", 0, 1000)
    target_faces: int = setting(30_000, "most triangles of the mesh", 100, 1_000_000, flag="--faces")
    texture_size: int = setting(1024, "side of the square texture in pixels", 64, 8192, flag="--texture-size")
    views: int = setting(18, "images baked: a belt of 8, top and bottom, the others above and below the belt", BELT + 4, 1000)
    view_size: int = setting(512, "pixels a side of each baked image", 16, 4096)
    front_detail: float = setting(2.0, "texels per unit of length in front (+z) against behind; 1 is even", 0.01)
    fit_outlines: bool = False
    extractor: Extractor = setting(
        "density",
        "how the surface is found: by the field's own density, or lgm, the paper's way",
        choices=EXTRACTORS,
        flag="--extractor",
    )
    nerf_steps: int = setting(512, "views that the NeRF of lgm learns from", 1, 100_000, flag="--nerf-steps")
    nerf_size: int = setting(128, "pixels a side of each of them", 16, 1024, flag="--nerf-pixels")

    def __post_init__(self):
        check_settings(self, "the mesh")

    @classmethod
    def of_extractor(cls, extractor: str, **overrides: Any) -> MeshSettings:
        """Return the default settings of an extractor (for ``"lgm"`` the published grid and number of faces) with changes.

        >>> MeshSettings.of_extractor("lgm").target_faces
        50000
        """
        return cls(**{**_PUBLISHED.get(extractor, {}), "extractor": extractor, **overrides})
