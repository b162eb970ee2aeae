"""From a field or splats to the density that a mesh is extracted from."""

from __future__ import annotations

from ..errors import InputError
from ..fields.protocol import Field
from ..render.protocol import SplatRenderer, Splats
from .density import DensitySource

Source = DensitySource | Field | Splats
"""Whatever a mesh can be made from."""


def density_source(source: Source, renderer: SplatRenderer | None = None) -> DensitySource:
    """A field or splats as a solid.

    Args:
        renderer: draws splats; the automatic choice for their device when None.

    Raises:
        InputError: no mesh can be made from it.
    """
    if hasattr(source, "thresholds"):
        return source
    kind = "splats" if isinstance(source, Splats) else getattr(source, "kind", type(source).__name__)
    if kind == "nerf":
        from .nerf_density import NeRFDensity

        return NeRFDensity(source)
    if kind in ("gaussians", "splats"):
        from .splat_density import SplatDensity

        return SplatDensity(source if kind == "splats" else source.absorb_low_pass().splats(), renderer)
    raise InputError(f"A mesh is made from Gaussians or a NeRF, got {kind}; give one of them.")
