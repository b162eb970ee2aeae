"""GPU memory of the published models in float16, counted without a GPU: python benchmarks/memory.py [--json FILE]

Networks with the published names and shapes run on "meta", where tensors have no storage, and the tensors alive at one time
are added up in blocks of 512 bytes, as in CUDA's allocator. Attention counts as fused. Not counted: meshes and textures,
allocator fragmentation, the workspaces of NVIDIA's libraries and the CUDA context.

"Usual" includes the memory of the UNet's CUDA graphs; "low memory" is ``ModelOptions(low_memory=True)``.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from stand_ins import published_shapes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion import keys
from microdreamer_core.diffusion.encoders import ClipText, ClipVision, Vae, build_clip_text, build_clip_vision, build_vae
from microdreamer_core.diffusion.imagedream import ImageDreamDiffusion
from microdreamer_core.diffusion.latent import LatentDiffusion, Parts
from microdreamer_core.diffusion.mvdream import MVDreamDiffusion
from microdreamer_core.diffusion.unet import UNetConfig, build_unet
from microdreamer_core.diffusion.zero123 import Zero123Diffusion
from microdreamer_core.fields.density_control import DensitySettings
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.job.record import write_json
from microdreamer_core.meshing.refine import TextureRefinement
from microdreamer_core.render.splat_cuda import CudaSplatRenderer
from microdreamer_core.sir.losses import reconstruction_loss
from microdreamer_core.sir.presets import get_plan

META, HALF, BLOCK, MB = torch.device("meta"), torch.float16, 512, 1e6
PLANS = {"zero123": "stable-zero123-gaussians", "mvdream": "mvdream-gaussians", "imagedream": "imagedream-gaussians"}


class LiveBytes(TorchDispatchMode):
    """Counts the peak bytes of the tensors made within. Values read back are 1, so that every check passes."""

    def __init__(self):
        super().__init__()
        self.most = self._live = 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device == META:
            return 1
        for storage in _storages((args, kwargs)):
            self._known.setdefault(storage, None)  # made before
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._note(storage)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[storage] = weakref.finalize(storage, self._let_go, size)
        self._live += size
        self.most = max(self.most, self._live)

    def _let_go(self, size: int) -> None:
        self._live -= size


def _storages(values) -> list[torch.UntypedStorage]:
    tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
    return [tensor.untyped_storage() for tensor in tensors if tensor.device == META]


class FusedAttention(TorchFunctionMode):
    """Attention that allocates only its result; on "meta" it would be decomposed."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


def most_bytes(call: Callable[[], object]) -> float:
    """Return a call's peak memory in MB, including its result."""
    with FusedAttention(), LiveBytes() as counted:
        result = call()
    del result
    return counted.most / MB


def parts_of(family: str, low_memory: bool) -> Parts:
    """Build a family's networks in the published sizes on "meta"."""
    shapes = published_shapes(family)

    def shapes_of(which: keys.Component) -> dict:
        return {name: tuple(shapes[stored]) for name, stored in keys.component(shapes, which).items()}

    def halve(module: nn.Module) -> nn.Module:
        return nn.Module.to(module.requires_grad_(False), HALF)

    text = vision = camera = None
    if family == "zero123":
        camera = halve(nn.Linear(772, 768, device=META))
    else:
        text = ClipText(halve(build_clip_text(shapes_of("text"))), None)
    if family != "mvdream":
        vision = ClipVision(halve(build_clip_vision(shapes_of("vision"), activation="gelu")))
    unet = halve(build_unet(UNetConfig.from_shapes(shapes_of("unet"))))
    return Parts(unet, Vae(halve(build_vae(shapes_of("vae"))), low_memory), text, vision, camera, low_memory)


def diffusion_of(family: str, parts: Parts) -> LatentDiffusion:
    """Build the model conditioned on an image and a prompt."""
    latent = torch.empty(1, 4, 32, 32, device=META)
    if family == "zero123":
        return Zero123Diffusion(parts, torch.empty(1, 768, device=META), latent, 0.0, True)
    context = torch.empty(2, 77, parts.unet.config.context_dim, device=META)
    if family == "mvdream":
        return MVDreamDiffusion(parts, context)
    return ImageDreamDiffusion(parts, context, torch.empty(2, 16, parts.unet.config.context_dim, device=META), latent)


def count_memory(family: str, low_memory: bool) -> dict[str, float | str]:
    """Count the MB of weights, the peak of each call of a run, and the total."""
    parts = parts_of(family, low_memory)
    diffusion, plan = diffusion_of(family, parts), get_plan(PLANS[family])
    views = max(plan.views, TextureRefinement().views)
    conditioning = diffusion.condition(orbit_cameras(0.0, torch.arange(views) * 360.0 / views, plan.radius))
    latents = torch.empty(views, 4, 32, 32, device=META)
    pictures = torch.empty(views, 256, 256, 3, device=META)
    weights = sum(t.numel() * t.element_size() for t in parts.networks().state_dict().values()) / MB
    with torch.no_grad():
        noise = most_bytes(lambda: diffusion.denoised(latents, 500, conditioning, 2.0))
        others = {
            "encode": most_bytes(lambda: diffusion.encode(pictures)),
            "decode": most_bytes(lambda: diffusion.decode(latents)),
        }
    others["learn"] = most_bytes(lambda: one_update(plan.views + 1))
    most = max(noise, *others.values()) if low_memory else noise + max(others.values())
    mode = "low memory" if low_memory else "usual"
    return {"family": family, "mode": mode, "weights": weights, "noise": noise, **others, "whole": weights + most}


def one_update(views: int) -> None:
    """Run one update of the largest number of Gaussians with the CUDA renderer, on images of 256 pixels."""
    most = Gaussians.ball(GaussianSettings(num_points=DensitySettings().max_points)).to(META)
    splats = most.parameters.map(Tensor.requires_grad_).activate()
    renderer = CudaSplatRenderer(lambda *_: None, "meta")
    cameras = orbit_cameras(0.0, torch.arange(views) * 10.0, width=256)
    render = renderer(splats, cameras, torch.ones(3), track_means2d=True)
    reconstruction_loss(render.rgb, torch.empty_like(render.rgb)).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    rows = [count_memory(family, low_memory) for family in PLANS for low_memory in (False, True)]
    for row in rows:
        cells = [f"{name} {value:6.0f}" for name, value in row.items() if not isinstance(value, str)]
        sys.stdout.write(f"{row['family']:10s} {row['mode']:10s} " + "  ".join(cells) + "  MB\n")
    if args.json:
        write_json(args.json, {"mb": rows})


if __name__ == "__main__":
    main()
