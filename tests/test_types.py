"""What the type checker is told: who satisfies which protocol (``make types`` reads that part, nothing of it runs), that the
package is typed, and that no error is silenced without a reason."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import microdreamer_core

if TYPE_CHECKING:
    from microdreamer_core.diffusion.analytic import AnalyticDiffusion
    from microdreamer_core.diffusion.embedded.model import EmbeddedDiffusion, EmbeddedModel
    from microdreamer_core.diffusion.imagedream import ImageDream, ImageDreamDiffusion
    from microdreamer_core.diffusion.mvdream import MVDream, MVDreamDiffusion
    from microdreamer_core.diffusion.protocol import Checkpoint, MultiViewDiffusion, MultiViewModel
    from microdreamer_core.diffusion.samplers import DDIM, Sampler, SchedulerSampler
    from microdreamer_core.diffusion.zero123 import Zero123, Zero123Diffusion
    from microdreamer_core.fields.gaussians import GaussianOptimizer, Gaussians
    from microdreamer_core.fields.nerf import NeRF, NeRFOptimizer
    from microdreamer_core.fields.protocol import Field, FieldOptimizer
    from microdreamer_core.meshing.density import DensitySource
    from microdreamer_core.meshing.nerf_density import NeRFDensity
    from microdreamer_core.meshing.splat_density import SplatDensity
    from microdreamer_core.render.protocol import SplatRenderer
    from microdreamer_core.render.splat_cuda import CudaSplatRenderer
    from microdreamer_core.render.splat_gsplat import GsplatSplatRenderer
    from microdreamer_core.render.splat_numba import NumbaSplatRenderer
    from microdreamer_core.render.splat_torch import TorchSplatRenderer
    from nodes.native import NativeSampler
    from nodes.native_model import NativeDiffusion, NativeModel

    def fields(gaussians: Gaussians, nerf: NeRF) -> tuple[Field, ...]:
        return gaussians, nerf

    def kinds_survive(gaussians: Gaussians, nerf: NeRF) -> tuple[Gaussians, NeRF]:
        return gaussians.clone().to("cpu").optimizer().finish(), nerf.clone().to("cpu").optimizer().finish()

    def working_copies(
        gaussians: GaussianOptimizer, nerf: NeRFOptimizer
    ) -> tuple[FieldOptimizer[Gaussians], FieldOptimizer[NeRF]]:
        return gaussians, nerf

    def renderers(
        a: CudaSplatRenderer, b: GsplatSplatRenderer, c: NumbaSplatRenderer, d: TorchSplatRenderer
    ) -> tuple[SplatRenderer, ...]:
        return a, b, c, d

    def solids(splats: SplatDensity, nerf: NeRFDensity) -> tuple[DensitySource, ...]:
        return splats, nerf

    def models(a: EmbeddedModel, b: MVDream, c: ImageDream, d: Zero123) -> tuple[Checkpoint, ...]:
        return a, b, c, d

    def native_model(model: NativeModel) -> MultiViewModel:
        return model

    def diffusions(
        a: AnalyticDiffusion,
        b: EmbeddedDiffusion,
        c: MVDreamDiffusion,
        d: ImageDreamDiffusion,
        e: Zero123Diffusion,
        f: NativeDiffusion,
    ) -> tuple[MultiViewDiffusion, ...]:
        return a, b, c, d, e, f

    def samplers(a: DDIM, b: SchedulerSampler, c: NativeSampler) -> tuple[Sampler, ...]:
        return a, b, c


ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("microdreamer_core", "nodes") for path in (ROOT / folder).rglob("*.py"))


def test_the_package_says_that_it_is_typed():
    assert files(microdreamer_core).joinpath("py.typed").is_file()
    assert '"microdreamer_core" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_no_error_is_silenced_without_its_rule_and_a_reason():
    lines = [line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines()]
    silenced = [line for line in lines if re.search(r"#\s*(type|pyright):\s*ignore", line)]
    assert silenced, "the search finds nothing"
    assert [line for line in silenced if not re.search(r"# pyright: ignore\[\w+\] - \w+", line)] == []
