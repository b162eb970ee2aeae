"""What the pictures of the help pages are made of: one run on the example, and how fields and meshes are shown."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.fields.clean import clean
from microdreamer_core.fields.gaussians import Gaussians
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.protocol import WHITE, Field
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.mesh import Mesh
from microdreamer_core.meshing.pipeline import bake_pictures, surface_mesh
from microdreamer_core.meshing.project import project_reference
from microdreamer_core.reference import Reference, prepare_reference
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.sir.iterations import Iteration, sir_iterations
from microdreamer_core.sir.plan import SIRPlan
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.stages import reference_view
from microdreamer_core.sir.start import gaussian_settings, start_field

EXAMPLES = Path(__file__).resolve().parent.parent / "samples"
SEED, ELEVATION = 0, 5.0


class Material:
    """One run on the example with all that its stages leave, each made when a picture first asks for it."""

    @cached_property
    def model(self) -> EmbeddedModel:
        return EmbeddedModel.load()

    @cached_property
    def reference(self) -> Reference:
        return self.reference_of("bird")

    def reference_of(self, name: str, elevation: float = ELEVATION) -> Reference:
        rgba = read_picture(EXAMPLES / f"{name}.png")
        return prepare_reference(rgba[..., :3], rgba[..., 3], self.model.fill, elevation=elevation)

    @cached_property
    def diffusion(self):
        return self.model.condition(self.reference)

    @cached_property
    def plan(self) -> SIRPlan:
        return get_plan("embedded")

    @cached_property
    def iterations(self) -> tuple[Iteration, ...]:
        start = Gaussians.ball(gaussian_settings(self.model.image_size), SEED)
        return tuple(sir_iterations(start, self.diffusion, self.plan, SEED, reference=self.reference))

    def after(self, k: int) -> Iteration:
        """Iteration k; -1 is the initialisation."""
        return self.iterations[k + 1]

    @cached_property
    def field(self) -> Gaussians:
        return self.iterations[-1].field

    @cached_property
    def nerfs(self) -> tuple[NeRF, ...]:
        """A fresh NeRF, the same after the initialisation, and after the whole run."""
        plan = get_plan("embedded-nerf")
        start = start_field("nerf", self.model.image_size, SEED)
        fields = [i.field for i in sir_iterations(start, self.diffusion, plan, SEED, reference=self.reference)]
        return start, fields[0], fields[-1]

    @cached_property
    def splats(self):
        return clean(self.field).splats()

    @cached_property
    def surface(self):
        return surface_mesh(self.splats).mesh

    @cached_property
    def textured(self):
        return bake_pictures(self.surface, self.splats).mesh

    @cached_property
    def finished(self):
        """The textured mesh with the reference laid over it."""
        return project_reference(self.textured, reference_view(self.reference, self.plan))


def ring(count: int, size: int = 256, elevation: float = 10.0, radius: float = 1.5) -> Cameras:
    """Evenly spread cameras from the front on."""
    return orbit_cameras(elevation, torch.arange(count) * (360.0 / count), radius, width=size)


def shown(field: Field, cameras: Cameras, background: Tensor = WHITE) -> list[Tensor]:
    return list(field.render(cameras, background).rgb)


def clay(mesh, azimuth: float) -> Tensor:
    camera = orbit_cameras(10.0, azimuth, 1.5, width=256)
    return render_mesh(Mesh(mesh.vertices, mesh.faces), camera, supersample=2).rgb[0]


def film(mesh, cameras: Cameras) -> list[Tensor]:
    return list(render_mesh(mesh, cameras, supersample=2).rgb)
