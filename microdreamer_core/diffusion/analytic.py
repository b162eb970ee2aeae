"""Analytic diffusion: the exact score of a finite set of objects, the oracle of tests and benchmarks.

The data distribution over images x at the given cameras is a mixture, p(x) = Σ_m π_m N(x; r_m(cameras), s² I), with r_m the
renders of object m; all views share m, as in an ideal multi-view model. Its posterior mean and hence its score have a closed
form, so that samplers, inversion and SIR can be checked against the truth. Latents are the images themselves in [-1,1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cameras import Cameras, orbit_cameras
from ..reference import Reference
from .ddim import guide
from .noise import STABLE_DIFFUSION, NoiseProcess
from .protocol import ViewCount

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

ObjectRenderer = Callable[[Cameras], Tensor]
"""Cameras of V views -> images [M,V,H,W,3] in [0,1] of the M objects on white."""


@dataclass(frozen=True)
class Imperfection:
    """Errors that make the oracle as inconsistent as a learned model.

    Attributes:
        camera_degrees: standard deviation of the error of camera angles.
        tint: standard deviation of a colour offset of each view, in [-1,1] units.
        seed: of both; the same camera always gets the same error.
    """

    camera_degrees: float = 0.0
    tint: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class _Mixture:
    """Means [M,V,3,H,W] in [-1,1] at the conditioned cameras."""

    means: Tensor


@dataclass
class AnalyticDiffusion:
    """Exact ``MultiViewDiffusion`` over a finite set of objects.

    Attributes:
        render: renders the objects.
        image_size: pixels of those images.
        spread: s, standard deviation of the data around each object, in [-1,1] units.
        reference: image of one of the objects; without it, all objects are equally likely in the conditional branch too.
        tolerance: standard deviation of each pixel of the reference around the object that it shows, in [-1,1] units.
        radius, fov_y: distance and field of view in degrees of the reference's camera.
        imperfection: simulated errors of a learned model.
        process: its noise levels.
    """

    render: ObjectRenderer
    image_size: int
    spread: float = 0.05
    reference: Reference | None = None
    tolerance: float = 0.2
    radius: float = 1.5
    fov_y: float = 49.1
    imperfection: Imperfection = Imperfection()
    view_count: ViewCount = ViewCount()
    process: NoiseProcess = STABLE_DIFFUSION
    evaluations: int = 0
    device: torch.device = torch.device("cpu")

    def __post_init__(self):
        self._log_prior = self._prior()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size, self.image_size)

    def _prior(self) -> Tensor | None:
        """Return the log probability [M] of each object given the reference, with independent Gaussian pixels."""
        if self.reference is None:
            return None
        camera = orbit_cameras(self.reference.elevation, 0.0, self.radius, self.fov_y, self.image_size)
        target = self.reference.at_size(self.image_size).image
        distance = (self.render(camera)[:, 0] * 2 - target * 2).square().double().sum((1, 2, 3))
        return torch.log_softmax(-distance / (2 * self.tolerance**2), 0)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] to latents [V,3,H,W] in [-1,1]."""
        return images.permute(0, 3, 1, 2) * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [V,3,H,W] to images [V,H,W,3] in [0,1]."""
        return (latents.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    def condition(self, cameras: Cameras) -> _Mixture:
        """Render every object at these cameras, with the angle errors of an imperfect oracle."""
        cameras = cameras.resize(self.image_size)
        tint = torch.zeros(len(cameras), 3, 1, 1)
        if self.imperfection.camera_degrees or self.imperfection.tint:
            errors = torch.stack([self._errors(matrix) for matrix in cameras.c2w])
            turn = errors[:, :2] * self.imperfection.camera_degrees
            elevation, azimuth, radius = cameras.orbit()
            elevation, azimuth = (elevation + 0.5 * turn[:, 0]).clamp(-85, 85), azimuth + turn[:, 1]
            cameras = orbit_cameras(elevation, azimuth, radius, cameras.fov_y, self.image_size)
            tint = errors[:, 2:, None, None] * self.imperfection.tint
        means = self.render(cameras).permute(0, 1, 4, 2, 3) * 2 - 1
        return _Mixture(torch.where(means < 0.98, means + tint, means).clamp(-1, 1))

    def _errors(self, c2w: Tensor) -> Tensor:
        """Sample standard normal numbers [5] that depend only on the camera and the seed."""
        text = f"{self.imperfection.seed}/{[round(float(v), 4) for v in c2w.flatten()]}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")
        return torch.randn(5, generator=torch.Generator().manual_seed(seed))

    def posterior_mean(self, x: Tensor, a: float, b: float, mixture: _Mixture, log_prior: Tensor | None) -> Tensor:
        """Compute E[x0 | x] of x = a x0 + b ε: responsibilities over the objects, then the Gaussian posterior of each.

        With v = a² s² + b²: w_m ∝ π_m exp(-|x - a r_m|² / 2v), E[x0|x,m] = r_m + (a s²/v)(x - a r_m).
        """
        variance = a**2 * self.spread**2 + b**2
        distance = (x[None] - a * mixture.means).square().flatten(1).double().sum(1)
        logits = -distance / (2 * variance)
        weights = torch.softmax(logits if log_prior is None else logits + log_prior, 0).to(x.dtype)
        mean = torch.einsum("m,mvchw->vchw", weights, mixture.means)
        return mean + a * self.spread**2 / variance * (x - a * mean)

    def denoised(self, latents: Tensor, t: int, conditioning: _Mixture, guidance_scale: float) -> Tensor:
        """Compute the exact clean estimate E[x0|x_t]; guidance as in ``MultiViewDiffusion``."""

        def branch(log_prior: Tensor | None) -> Tensor:
            self.evaluations += len(latents)
            return self.posterior_mean(latents, *self.process.alpha_sigma(t), conditioning, log_prior)

        if guidance_scale == 0:
            return branch(None)
        if guidance_scale == 1:
            return branch(self._log_prior)
        return guide(branch(None), branch(self._log_prior), guidance_scale)


def toy_renderer(toys: Sequence[np.ndarray], fov_y: float = 49.1) -> ObjectRenderer:
    """Return a renderer of procedural toys (``embedded.toys``) as the objects of an ``AnalyticDiffusion``."""
    import numpy as np

    from .embedded.raycast import on_white, render_toys
    from .embedded.toys import stack_toys

    rows, counts = stack_toys(list(toys))

    def render(cameras: Cameras) -> Tensor:
        m, v = len(toys), len(cameras)
        c2w = np.tile(cameras.c2w.numpy(), (m, 1, 1))
        images = render_toys(rows, counts, np.repeat(np.arange(m), v), c2w, cameras.height, cameras.fov_y)
        return torch.from_numpy(on_white(images)).unflatten(0, (m, v))

    return render
