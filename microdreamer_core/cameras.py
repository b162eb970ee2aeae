"""Pinhole cameras: the one convention of the core, orbits, turntables and SIR's camera sampler.

World: right-handed, y up, object centred at the origin, its front facing +z.
Orbit cameras look at the origin: elevation in degrees, positive above; azimuth in degrees, 0 in front (+z), positive
towards +x (counter-clockwise seen from above). ``c2w`` has OpenGL axes (x right, y up, looking along -z);
``viewmats`` and ``Ks`` are the OpenCV (x right, y down, z forward) matrices that rasterisers take, pixel centres at +0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import InputError
from .util.vocabulary import DEFAULT_FOV_Y

if TYPE_CHECKING:
    import numpy as np


_OPENGL_TO_OPENCV = (1.0, -1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras that share field of view and image size.

    >>> cameras = orbit_cameras(20.0, [0.0, 90.0, 180.0, 270.0], radius=2.0)
    >>> len(cameras), list(cameras.viewmats.shape), list(cameras.Ks.shape)
    (4, [4, 4, 4], [4, 3, 3])

    Attributes:
        c2w: [V,4,4] float32 camera-to-world, OpenGL axes.
        fov_y: vertical field of view in degrees.
        width, height: pixels.
        elevation, azimuth: [V] degrees when the cameras lie on an orbit, else None.
        radius: [V] distance to the origin when the cameras lie on an orbit, else None.
    """

    c2w: Tensor
    fov_y: float = DEFAULT_FOV_Y
    width: int = 256
    height: int = 256
    elevation: Tensor | None = None
    azimuth: Tensor | None = None
    radius: Tensor | None = None

    def __post_init__(self):
        if self.c2w.ndim != 3 or self.c2w.shape[1:] != (4, 4):
            raise InputError(f"Cameras need c2w of shape [V,4,4], got {list(self.c2w.shape)}; stack the matrices of the views.")
        if not 0 < self.fov_y < 180:
            raise InputError(f"The field of view must lie between 0 and 180 degrees, got {self.fov_y}; 49.1 is usual.")
        if self.width < 1 or self.height < 1:
            raise InputError(f"Images need at least one pixel, got {self.width}x{self.height}.")

    def __len__(self) -> int:
        return self.c2w.shape[0]

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Cameras:
        """Select cameras by a slice, a list of indices, or a boolean or integer tensor."""
        orbit = {k: None if getattr(self, k) is None else getattr(self, k)[index] for k in _ORBIT}
        return replace(self, c2w=self.c2w[index], **orbit)

    @cached_property  # on an accelerator, copying its constants would synchronise at every call
    def viewmats(self) -> Tensor:
        """[V,4,4] world-to-camera, OpenCV axes."""
        with torch.inference_mode(False):  # the cached tensor may later be used where gradients flow
            flip = self.c2w.new_tensor(_OPENGL_TO_OPENCV)
            rotation, centre = self.c2w[:, :3, :3] * flip[:3], self.c2w[:, :3, 3:]
            view = torch.zeros_like(self.c2w)
            view[:, :3, :3] = rotation.transpose(1, 2)
            view[:, :3, 3:] = -rotation.transpose(1, 2) @ centre
            view[:, 3, 3] = 1
            return view

    @cached_property
    def Ks(self) -> Tensor:  # noqa: N802 - the field's name for intrinsics
        """[V,3,3] intrinsics in pixels: square pixels, principal point at the image centre."""
        matrix = [[self.focal, 0.0, self.width / 2], [0.0, self.focal, self.height / 2], [0.0, 0.0, 1.0]]
        with torch.inference_mode(False):
            return self.c2w.new_tensor(matrix).expand(len(self), 3, 3)

    def orbit(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return elevation and azimuth in degrees and radius, each [V].

        Raises:
            InputError: the cameras do not lie on an orbit.
        """
        if self.elevation is None or self.azimuth is None or self.radius is None:
            raise InputError("Expected cameras on an orbit, got poses without elevation and azimuth; use orbit_cameras.")
        return self.elevation, self.azimuth, self.radius

    @property
    def focal(self) -> float:
        """Focal length in pixels."""
        return 0.5 * self.height / math.tan(math.radians(self.fov_y) / 2)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points into every view.

        >>> orbit_cameras(0.0, 0.0, radius=2.0, width=256).project(torch.zeros(1, 3))
        (tensor([[[128., 128.]]]), tensor([[2.]]))

        Args:
            points: [P,3].

        Returns:
            ([V,P,2] pixel coordinates (x, y), [V,P] depth along the viewing direction; negative behind the camera).
        """
        seen = points @ self.viewmats[:, :3, :3].transpose(1, 2) + self.viewmats[:, None, :3, 3]
        middle = seen.new_tensor([self.width / 2, self.height / 2])
        return seen[..., :2] / seen[..., 2:] * self.focal + middle, seen[..., 2]

    def rays(self) -> Tensor:
        """Return the rays [H,W,3] through all pixel centres in the cameras' own axes (x right, y down, z forward), with z = 1.

        >>> orbit_cameras(0.0, 0.0, fov_y=90.0, width=2).rays()[0]
        tensor([[-0.5000, -0.5000,  1.0000],
                [ 0.5000, -0.5000,  1.0000]])
        """
        x, y = (torch.arange(size).to(self.c2w) + 0.5 - size / 2 for size in (self.width, self.height))
        plane = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) / self.focal
        return torch.cat([plane, torch.ones_like(plane[..., :1])], -1)

    def unproject(self, depth: Tensor) -> Tensor:
        """Lift every pixel to the world point [V,H,W,3] that it shows, by its depth [V,H,W] along the viewing direction.

        >>> cameras = orbit_cameras([0.0, 20.0], [0.0, 90.0], width=4)
        >>> points = cameras.unproject(torch.full((2, 4, 4), 1.5))
        >>> torch.allclose(cameras.project(points[1].reshape(-1, 3))[0][1, 0], torch.tensor([0.5, 0.5]), atol=1e-4)
        True
        """
        local = self.rays() * depth[..., None] * self.c2w.new_tensor(_OPENGL_TO_OPENCV[:3])
        return (local.flatten(1, 2) @ self.c2w[:, :3, :3].transpose(1, 2)).view_as(local) + self.c2w[:, None, None, :3, 3]

    def pixel_size(self) -> Tensor:
        """Return the world width of a pixel at the origin, mean over the views: a [] tensor, so that nothing synchronises."""
        distance = self.c2w[:, :3, 3].norm(dim=1).mean()
        return distance * 2 * math.tan(math.radians(self.fov_y) / 2) / self.height

    def to(self, device: torch.device | str) -> Cameras:
        """Move the tensors to ``device``; returns ``self`` if they are there already."""
        if self.c2w.device == torch.device(device):
            return self
        orbit = {k: None if getattr(self, k) is None else getattr(self, k).to(device) for k in _ORBIT}
        return replace(self, c2w=self.c2w.to(device), **orbit)

    def resize(self, width: int, height: int | None = None) -> Cameras:
        """Return the same views at another image size in pixels; square when no height is given."""
        return replace(self, width=width, height=width if height is None else height)


_ORBIT = ("elevation", "azimuth", "radius")


def distance_to_hold(extent: float, fov_y: float = DEFAULT_FOV_Y) -> float:
    """Return the distance at which a ball of radius ``extent`` at the origin fits the field of view, with a margin of 5 %.

    >>> round(distance_to_hold(0.5, fov_y=60.0), 6)
    1.05
    """
    return 1.05 * extent / math.sin(math.radians(fov_y / 2))


def concatenate(cameras: Sequence[Cameras]) -> Cameras:
    """Concatenate cameras into one batch, so that one call renders them all.

    Raises:
        InputError: image sizes or fields of view differ.
    """
    first = cameras[0]
    for other in cameras[1:]:
        if (other.fov_y, other.width, other.height) != (first.fov_y, first.width, first.height):
            raise InputError(
                f"Cameras of one batch must share field of view and size, got {first.fov_y}/{first.width}x{first.height} "
                f"and {other.fov_y}/{other.width}x{other.height}; resize one of them."
            )
    orbit = {
        k: None if any(getattr(c, k) is None for c in cameras) else torch.cat([getattr(c, k) for c in cameras]) for k in _ORBIT
    }
    return replace(first, c2w=torch.cat([c.c2w for c in cameras]), **orbit)


def orbit_cameras(
    elevation: float | Sequence[float] | np.ndarray | Tensor,
    azimuth: float | Sequence[float] | np.ndarray | Tensor,
    radius: float | Sequence[float] | np.ndarray | Tensor = 2.0,
    fov_y: float = DEFAULT_FOV_Y,
    width: int = 256,
    height: int | None = None,
    device: torch.device | str = "cpu",
) -> Cameras:
    """Place cameras on a sphere around the object, looking at the origin, +y up.

    >>> orbit_cameras([0.0, 20.0], 90.0, radius=2.0).c2w[0, :3, 3]  # seen from +x
    tensor([2.0000e+00, 0.0000e+00, 1.2246e-16])

    Args:
        elevation, azimuth: degrees, numbers or [V] sequences that broadcast with each other; |elevation| < 90.
        radius: distance from the origin, a number or [V].
        width, height: pixels; square when no height is given.

    Raises:
        InputError: an elevation or a radius is out of range.
    """
    # on the CPU first, whatever the device: not every device has float64, and the checks would synchronise
    as_tensor = [torch.as_tensor(v, dtype=torch.float32, device="cpu").reshape(-1) for v in (elevation, azimuth, radius)]
    elevations, azimuths, radii = (v.clone() for v in torch.broadcast_tensors(*as_tensor))
    if bool((elevations.abs() >= 90).any()):
        raise InputError(f"Orbit elevations must lie strictly between -90 and 90 degrees, got {elevations.tolist()}.")
    if bool((radii <= 0).any()):
        raise InputError(f"Orbit radii must be positive, got {radii.tolist()}.")
    e, a = torch.deg2rad(elevations.double()), torch.deg2rad(azimuths.double())
    zero = torch.zeros_like(e)
    backward = torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], -1)  # from the origin to the camera
    right = torch.stack([a.cos(), zero, -a.sin()], -1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(e), 1, 1)
    c2w[:, :3, :] = torch.stack([right, up, backward, backward * radii.double()[:, None]], -1)
    cameras = Cameras(c2w.float(), fov_y, width, width if height is None else height, elevations, azimuths, radii)
    return cameras.to(device)


def sample_orbit(
    views: int,
    elevation_range: tuple[float, float],
    radius: float,
    generator: torch.Generator,
    fov_y: float = DEFAULT_FOV_Y,
    size: int = 256,
) -> Cameras:
    """Sample cameras as the paper does (section V): evenly spread azimuths from a random start, uniform elevations.

    >>> sample_orbit(4, (-30.0, 30.0), 2.0, torch.Generator().manual_seed(0)).azimuth.diff()
    tensor([90., 90., 90.])

    Args:
        views: number of cameras.
        elevation_range: (lowest, highest) degrees, positive above.
        generator: CPU generator of the start azimuth and the elevations.
        size: pixels a side of the square images.

    Raises:
        InputError: the range is reversed.
    """
    low, high = elevation_range
    if low > high:
        raise InputError(f"The elevation range must be (lowest, highest), got ({low}, {high}); swap the two.")
    start = torch.rand((), generator=generator) * 360.0 / views
    azimuth = start + torch.arange(views) * (360.0 / views) - 180.0
    elevation = low + (high - low) * torch.rand(views, generator=generator)
    return orbit_cameras(elevation, azimuth, radius, fov_y, size)


def turntable(
    frames: int, elevation: float = 0.0, radius: float = 2.0, fov_y: float = DEFAULT_FOV_Y, size: int = 256
) -> Cameras:
    """Spread cameras evenly over a full turn at one elevation, the first in front: for videos, contact sheets and evaluation.

    >>> turntable(4).azimuth
    tensor([  0.,  90., 180., 270.])
    """
    return orbit_cameras(elevation, torch.arange(frames) * (360.0 / frames), radius, fov_y, size)


def spread_cameras(
    views: int,
    elevation: float = 0.0,
    azimuth: float = 0.0,
    spread: float = 360.0,
    radius: float = 2.0,
    fov_y: float = DEFAULT_FOV_Y,
    size: int = 256,
) -> Cameras:
    """Spread cameras evenly over an arc at one elevation.

    >>> spread_cameras(3, azimuth=-45.0, spread=90.0).azimuth
    tensor([-45.,   0.,  45.])

    Args:
        azimuth: degrees of the first camera.
        spread: degrees from first to last camera, signed; for 360 or more the last is left out, as it equals the first.
    """
    gaps = views if abs(spread) >= 360 else max(views - 1, 1)
    return orbit_cameras(elevation, azimuth + torch.arange(views) * (spread / gaps), radius, fov_y, size)


def parse_poses(text: str) -> list[tuple[float, float]]:
    """Parse lines like "20, -45" into (elevation, azimuth) in degrees; blank lines and # comments are skipped.

    >>> parse_poses("20, -45  # left")
    [(20.0, -45.0)]

    Raises:
        InputError: a line that is not two numbers; the message names it.
    """
    poses = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        try:
            elevation, azimuth = map(float, line.replace(",", " ").split())
        except ValueError:
            raise InputError(f"Line {number} of the poses must be 'elevation, azimuth' in degrees, got {line!r}.") from None
        if not (math.isfinite(elevation) and math.isfinite(azimuth)):
            raise InputError(f"Line {number} of the poses must hold finite numbers, got {line!r}.")
        poses.append((elevation, azimuth))
    return poses
