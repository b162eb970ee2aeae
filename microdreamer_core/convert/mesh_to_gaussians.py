"""Conversion of a mesh to Gaussians, so that SIR can refine it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..fields.gaussians import SH_C0, Gaussians, GaussianSettings, Parameters
from ..mesh import Fit, Mesh, Placement, face_normals, vertex_normals
from ..meshing.sample import SurfaceSamples, even_samples, relax_samples
from ..render.mesh import PLAIN_GREY, sample_texture
from ..util.colors import decode_srgb, encode_srgb
from ..util.seeds import generator

_OPACITY = 0.9
_DENSE, _MOST_RELAXED = 8, 200_000  # candidates a Gaussian; Gaussians above which gaps are too small to see
_WIDTH = 0.75  # standard deviation of a disc as a share of the discs' spacing: they overlap without gaps and stay sharp
_THICKNESS = 0.1  # of a disc as a share of its width
_LIGHT = (-0.4, 0.8, 0.6)  # from above, the left and the front
_CLOSE = 0.1  # distance of two boxes of one object, as a share of their side


def gaussians_on_mesh(
    mesh: Mesh, count: int, settings: GaussianSettings | None = None, seed: int = 0, device: torch.device | str = "cpu"
) -> Gaussians:
    """Place flat, nearly opaque Gaussians evenly on a mesh, in the colours of its texture, otherwise its vertices, or in
    shaded grey.

    Args:
        mesh: in world space, see ``normalise_mesh``.
        count: number of Gaussians, more than 3.
        settings, seed: of the new field, which starts at step 0; the seed also determines the Gaussians' positions.

    Raises:
        InputError: the mesh has no area, its vertices are not finite, or the count is too small.
    """
    if count <= 3:
        raise InputError(f"A mesh needs more than 3 Gaussians, got {count}; 10000 is usual.")
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError("The mesh's vertices hold NaN or infinite numbers; make it again.")
    dense = _DENSE if count <= _MOST_RELAXED else 1
    samples = even_samples(mesh.vertices, mesh.faces, count * dense, generator(seed, -1, "mesh to gaussians"))
    if dense > 1:  # gaps would show the far side, in its colours
        samples = relax_samples(samples, mesh.vertices, mesh.faces, dense)
    width = _WIDTH * math.sqrt(samples.area / count)
    log_scales = torch.tensor([width, width, width * _THICKNESS]).log().expand(count, 3)
    parameters = Parameters(
        samples.interpolate(mesh.vertices, mesh.faces),
        log_scales.contiguous(),
        quats_from_normals(face_normals(mesh.vertices, mesh.faces)[samples.faces]),
        torch.full((count,), math.log(_OPACITY / (1 - _OPACITY))),
        (_colors(mesh, samples) - 0.5) / SH_C0,
    )
    return Gaussians(parameters, settings or GaussianSettings(), seed).to(device)


def normalise_mesh(mesh: Mesh, fit: Fit = "auto") -> Mesh:
    """Move a mesh to where the cameras look, see ``fit_placement``."""
    return fit_placement(mesh, fit).apply(mesh)


def fit_placement(mesh: Mesh, fit: Fit = "auto") -> Placement:
    """Find the placement that centres a mesh's bounding box on the origin and scales its longest side to 1.

    Args:
        fit: "auto" moves only a mesh that is far from that, see ``Placement.of_box``.

    Raises:
        InputError: an unknown ``fit``, or a mesh without extent.
    """
    if fit == "never":
        return Placement.identity()
    low, high = used_box(mesh)
    if torch.equal(low, high):
        raise InputError("All vertices of the mesh lie in one point; make it again.")
    return Placement.of_box(low, high, fit)


def placement_on(mesh: Mesh, box: tuple[Tensor, Tensor]) -> Placement:
    """Find out whether a mesh lies on an object as it is or after being fitted, as Gaussians made of it were.

    Args:
        mesh: in the frame of the object, or in another one at which ``fit_placement`` looked.
        box: ([3], [3]) corners of the object's bounding box.
    """
    low, high = used_box(mesh)

    def distance(placement: Placement) -> float:
        corners = placement.move(torch.stack([low, high]))
        return float((corners - torch.stack(box).double()).abs().max())

    stays, fitted = Placement.identity(), fit_placement(mesh, "always")
    close = _CLOSE * float((box[1] - box[0]).max())
    return stays if distance(stays) <= 2 * distance(fitted) + close else fitted


def used_box(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Return the corners ([3], [3]) float64 of the box around all vertices that have faces.

    Raises:
        InputError: there are none, or they are not finite.
    """
    used = mesh.vertices[mesh.faces.unique()]
    if not len(used) or not bool(torch.isfinite(used).all()):
        raise InputError(f"A mesh with {len(mesh.faces)} faces and without a finite extent cannot be fitted; make it again.")
    return used.amin(0).double(), used.amax(0).double()


def quats_from_normals(normals: Tensor) -> Tensor:
    """Return [N,4] unit quaternions wxyz that rotate the z axis to ``normals`` [N,3] (nonzero) by the smallest angle.

    >>> quats_from_normals(torch.tensor([[0.0, 0.0, 2.0]]))
    tensor([[1., -0., 0., 0.]])
    """
    x, y, z = F.normalize(normals, dim=1).unbind(1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(z)], 1)
    # for -z the axis is undefined: rotate by 180 degrees about x
    down = (1 + z < 1e-6)[:, None]
    return F.normalize(torch.where(down, quats.new_tensor([0.0, 1.0, 0.0, 0.0]), quats), dim=1)


def _colors(mesh: Mesh, samples: SurfaceSamples) -> Tensor:
    """[P,3] unlit colours, as ``render_mesh`` shows them; without any, grey shaded by half Lambert (Mitchell et al. 2006), as a
    surface of one grey would be a silhouette."""
    if mesh.texture is not None:
        return sample_texture(mesh.texture, samples.interpolate(mesh.texture_coordinates(), mesh.faces)).clamp(0, 1)
    if mesh.colors is not None:
        return encode_srgb(samples.interpolate(decode_srgb(mesh.colors), mesh.faces))
    normals = vertex_normals(mesh.vertices, mesh.faces) if mesh.normals is None else mesh.normals
    towards = F.normalize(samples.interpolate(normals, mesh.faces), dim=1) @ F.normalize(torch.tensor(_LIGHT), dim=0)
    return (PLAIN_GREY * (0.25 + 0.75 * (0.5 + 0.5 * towards)))[:, None].expand(-1, 3)
