"""Choice of the density that a mesh is extracted from, for a field or splats."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from ..fields.gaussians import Gaussians
from ..fields.nerf import NeRF
from ..fields.place import fit_splats, move_splats
from ..fields.protocol import Field
from ..mesh import Placement
from ..render.protocol import SplatRenderer, Splats
from .density import DensitySource

Source = DensitySource | Field | Splats
"""Everything a mesh can be extracted from."""


def density_source(source: Source, renderer: SplatRenderer | None = None) -> DensitySource:
    """Return a field or splats as a density.

    Args:
        renderer: renders splats; the automatic choice for their device if None.

    Raises:
        InputError: no mesh can be made from this kind of field.
    """
    if isinstance(source, DensitySource):
        return source
    if isinstance(source, NeRF):
        from .nerf_density import NeRFDensity

        return NeRFDensity(source)
    if isinstance(source, Gaussians):
        source = source.absorb_low_pass().splats()
    if isinstance(source, Splats):
        from .splat_density import SplatDensity

        return SplatDensity(source, renderer)
    kind = getattr(source, "kind", type(source).__name__)
    raise InputError(f"A mesh is made from Gaussians or a NeRF, got {kind}; give one of them.")


def placed_source(source: Source, renderer: SplatRenderer | None = None) -> tuple[DensitySource, Placement]:
    """Return a source as a density at the origin and of usual size, and how it was moved there: nothing may depend on where an
    object lies or how large it is.

    Args, raises: as ``density_source``.
    """
    from .splat_density import SplatDensity

    solid = density_source(source, renderer)
    if not isinstance(solid, SplatDensity):
        return solid, Placement.identity()
    placement = fit_splats(solid.splats)
    return replace(solid, splats=move_splats(solid.splats, placement)), placement
