"""Models that ComfyUI itself has loaded, behind the core's protocol.

ComfyUI owns the weights: every network call goes through its guider, so that its memory management, LoRA, hooks and patches
apply, and images and texts go through the methods of its VAE, CLIP and CLIP_VISION objects. All of them run under inference
mode, as in ComfyUI's nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.diffusion.mvdream import NEGATIVE
from ..microdreamer_core.diffusion.protocol import picture_alone
from ..microdreamer_core.diffusion.view_words import VIEW_WORDS, camera_words, view_words
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.reference import Reference
from ..microdreamer_core.sir.presets import get_plan
from . import types
from .compat import ADVANCED, interrupt_check, io, load_to_device, schema
from .native_condition import (
    Branches,
    FixedViews,
    Native,
    OrbitViews,
    PromptViews,
    TextViews,
    Zero123Views,
    angle_texts,
    grid_texts,
    orbit_order,
    text_encoder,
)
from .native_edit import edit_encoder
from .native_mvdream import VIEWS, is_mvdream, with_cameras
from .native_process import HostProcess
from .native_views import ALONE, COUPLINGS, GRID, SHARED, UNCOUPLED, Coupling, share_attention
from .types import LoadedModel, core_call

TITLE = "Model from ComfyUI"
ZERO123_KINDS = ("stable", "original")
_SIZE_STEP = 64
_UNET_PATCH = 8
"""Latent pixels that a UNet's three halvings need, for networks that do not say their patch size."""

_FOREIGN = {
    "it denoises the frames of a video together": "SVD_* SV3D_u LTX* MiniMaxH3 HunyuanVideo* GenmoMochi CosmosVideo WAN* "
    "CogVideoX Kandinsky5 SeedVR2",
    "it is one half of a cascade": "StableCascade_*",
    "it enlarges a picture that it is given": "SD_X4Upscaler HunyuanImage21Refiner PiD",
    "it makes shapes": "Hunyuan3D* Trellis2 TripoSplat",
    "it makes sound": "StableAudio* ACEStep* MiniMaxMusic3",
    "it reads pictures and makes none": "RT_DETR_v4 SAM3 DepthAnything3",
}
"""Why ComfyUI's model classes that are no image models are refused: reason -> patterns of their names."""


class NativeModel:
    """A native MODEL with its VAE and encoders, unconditioned; ``condition`` gives the diffusion model that SIR uses.

    Attributes:
        takes_prompt: conditioned on a prompt, without cameras; otherwise on an image.
        preset: name of the plan that suits it; radius, fov_y: that plan's; fill: share of the image that the object takes.
        coupling: which views see each other.

    Raises:
        InputError: the model is no image model that takes Gaussian noise away, the VAE belongs to another model, or the network
            cannot take the size or the coupling.
    """

    def __init__(
        self,
        patcher: Any,
        vae: Any,
        clip_vision: Any = None,
        clip: Any = None,
        image_size: int = 0,
        zero123: str = "stable",
        coupling: Coupling = UNCOUPLED,
    ):
        self.is_mvdream = is_mvdream(patcher.model)
        if self.is_mvdream and coupling.kind != ALONE:
            raise InputError(f"The views of MVDream see each other anyway; set coupling to {ALONE!r}, got {coupling.kind!r}.")
        self.patcher, self.vae, self.clip_vision, self.clip = patcher, vae, clip_vision, clip
        self.kind = type(patcher.model).__name__
        self.is_orbit = _is_orbit(patcher.model)
        self.takes_prompt = not (_is_zero123(patcher.model) or self.is_orbit)
        self.zero123 = zero123
        self.process = _process(patcher)
        self.latent_format = patcher.get_model_object("latent_format")
        _check_vae(self)
        self.name = f"ComfyUI: {self.kind}"
        family = "mvdream" if self.is_mvdream else "imagedream" if self.takes_prompt else "stable-zero123"
        self.negative = NEGATIVE if self.is_mvdream else ""
        self.preset, self.nerf_preset = f"{family}-gaussians", f"{family}-nerf"
        plan = get_plan(self.preset)
        self.radius, self.fov_y, self.fill = plan.radius, plan.fov_y, 0.8
        self.nerf_radius = get_plan(self.nerf_preset).radius
        self.coupling = Coupling(SHARED, VIEWS) if self.is_mvdream else coupling
        if coupling.kind == SHARED:
            self.patcher = share_attention(patcher, coupling.group)
        if coupling.kind != ALONE and self.is_orbit:
            raise InputError(
                f"The frames of {self.kind} see each other anyway; set coupling to {ALONE!r}, got {coupling.kind!r}."
            )
        if coupling.kind == GRID and not self.takes_prompt:
            raise InputError(f"{self.kind} takes one camera for a picture, got a grid of views; use {SHARED!r}.")
        self.image_size = image_size or _usual_size(patcher.model, self.process) // coupling.side
        step = vae.spacial_compression_encode() * _patch_size(patcher.model)
        if self.image_size % step or self.image_size < 0:
            raise InputError(
                f"The picture size of {self.kind} must be a multiple of {step}, got {image_size}; 0 takes its usual size."
            )

    @property
    def is_video(self) -> bool:
        """Whether latents have an axis of frames; pictures are then single frames."""
        return self.latent_format.latent_dimensions == 3

    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = True,
    ) -> NativeDiffusion:
        """Condition on a reference image (Zero123 models, SV3D) or on a prompt (all others).

        Args:
            negative: negative prompt, which replaces ``self.negative`` in the unconditional branch.
            view_words: append words for the camera's direction to the prompt of each view.

        Raises:
            InputError: the model takes the other kind, or its encoder is not linked.
        """
        if self.takes_prompt:
            given = self.negative if negative is None else negative
            return NativeDiffusion(self, self._prompt(prompt, given, view_words and not self.is_mvdream))
        return NativeDiffusion(self, self._picture(reference, prompt))

    def condition_as(self, positive: Native, negative: Native) -> NativeDiffusion:
        """Condition on native CONDITIONING, the same for all cameras (or with one row for each)."""
        return NativeDiffusion(self, FixedViews(Branches(positive, negative)))

    def condition_as_edit(self, reference: Reference, prompt: str, negative: str, *, angles: bool) -> NativeDiffusion:
        """Condition an edit model on the reference, which it is shown in both branches, and on words for each camera.

        Args:
            angles: use the words of camera-angle LoRAs; otherwise the prompt alone, the same for all cameras.

        Raises:
            InputError: the model takes no text, or its encoder is not linked.
        """
        if not self.takes_prompt or self.clip is None:
            why = "takes no text" if not self.takes_prompt else f"needs a text encoder; link its CLIP to {TITLE}"
            raise InputError(f"An edit model is told the camera in words, got {self.kind}, which {why}.")
        encode = edit_encoder(self.kind, self.clip, self.vae, reference.at_size(self.image_size).image[None])
        empty, side = encode(negative), self.coupling.side
        if not angles:
            return NativeDiffusion(self, FixedViews(Branches(encode(prompt), empty)))
        describe = partial(angle_texts, prompt) if side == 1 else partial(grid_texts, prompt, side, camera_words)
        return NativeDiffusion(self, TextViews(encode, describe, empty, self.coupling.kind == SHARED))

    def _picture(self, reference: Reference | None, prompt: str | None) -> Zero123Views | OrbitViews:
        reference = picture_alone(reference, prompt, self.kind, "use Condition on Image")
        if self.clip_vision is None:
            raise InputError(
                f"{self.kind} encodes the reference with CLIP_VISION, got none; link the one of "
                f"ImageOnlyCheckpointLoader to {TITLE}."
            )
        with torch.inference_mode():
            embeds = self.clip_vision.encode_image(reference.image[None]).image_embeds
            latent = self.vae.encode(reference.at_size(self.image_size).image[None])
        if self.is_orbit:
            return OrbitViews(embeds.float(), latent.float())
        return Zero123Views(embeds.float(), latent.float(), reference.elevation, self.zero123 == "stable")

    def _prompt(self, prompt: str | None, negative: str, with_words: bool) -> PromptViews | TextViews:
        if prompt is None:
            raise InputError(
                f"{self.kind} takes a prompt, got a picture alone; use Condition on Prompt, or Condition on Both to use the "
                "picture in the reconstruction."
            )
        if self.clip is None:
            raise InputError(f"A prompt needs a text encoder, got none; link the checkpoint's CLIP to {TITLE}.")
        encode, side = text_encoder(self.clip), self.coupling.side
        if side > 1 and with_words:
            return TextViews(encode, partial(grid_texts, prompt, side, view_words), encode(negative))
        words = VIEW_WORDS if with_words else ()
        return PromptViews.encode(encode, prompt, negative, words, self.coupling.kind == SHARED)


class NativeDiffusion:
    """``MultiViewDiffusion`` of a native model; views are denoised independently or coupled.

    Args:
        views: cameras -> the two branches of the guidance, by groups of views.
    """

    def __init__(self, model: NativeModel, views: Callable[[Cameras], tuple[Branches, ...]]):
        self.model, self.views = model, views
        self.image_size, self.process, self.view_count = model.image_size, model.process, model.coupling.view_count
        self.device = model.patcher.load_device
        side = model.image_size // model.vae.spacial_compression_encode()
        self.latent_shape = (model.latent_format.latent_channels, side, side)
        self.evaluations = 0

    def condition(self, cameras: Cameras) -> tuple[Branches, ...]:
        """Return the conditioning of both guidance branches for every view, by groups that share a call."""
        coupling = self.model.coupling
        if coupling.kind == ALONE and not self.model.is_orbit:
            return self.views(cameras)
        self.view_count.check(len(cameras))
        in_turn = self.model.is_orbit
        pictures = [(view,) for view in orbit_order(cameras)] if in_turn else coupling.pictures(len(cameras))
        ordered = cameras[[view for picture in pictures for view in picture]]
        found = self.views(ordered)
        if self.model.is_mvdream:
            found = tuple(branches.map(partial(with_cameras, cameras=ordered)) for branches in found)

        def views_of(branches: Branches) -> tuple[int, ...]:
            own = pictures if branches.rows is None else [pictures[row] for row in branches.rows]
            return tuple(view for picture in own for view in picture)

        return tuple(replace(branches, rows=views_of(branches)) for branches in found)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] as [V,C,h,w] scaled latents (the distribution's mode); differentiable."""
        model = self.model
        if images.requires_grad and torch.is_grad_enabled():
            latents = _differentiable_encode(model.vae, images, model.is_video)
        else:
            with torch.inference_mode():
                # a video VAE takes a batch for frames
                latents = (
                    torch.cat([model.vae.encode(view[None]) for view in images]) if model.is_video else model.vae.encode(images)
                )
            latents = latents.clone()
        latents = model.latent_format.process_in(latents.to(self.device).float())
        return latents[:, :, 0] if model.is_video else latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [V,C,h,w] scaled latents to images [V,H,W,3] in [0,1]."""
        latents = latents.unsqueeze(2) if self.model.is_video else latents
        with torch.inference_mode():
            images = self.model.vae.decode(self.model.latent_format.process_out(latents))
        images = images[:, 0] if images.ndim == 5 else images
        return images[..., :3].float().clone().to(self.device)

    @torch.no_grad()
    def denoised(self, latents: Tensor, t: int, conditioning: tuple[Branches, ...], guidance_scale: float) -> Tensor:
        """Estimate x0, which ComfyUI returns whatever its network predicts; guidance as in ``MultiViewDiffusion``."""
        x = latents.to(self.device).float() * float(self.process.scales[t])
        x = x.unsqueeze(2) if self.model.is_video else x
        level, clean, coupling = float(self.process.sigmas[t]), torch.empty_like(x), self.model.coupling
        for branches in conditioning:
            rows = slice(None) if branches.rows is None else list(branches.rows)
            patcher = branches.patch(self.model.patcher, level)
            pictures = _denoise(patcher, branches, coupling.join(x[rows]), level, float(guidance_scale))
            clean[rows] = coupling.split(pictures)
        self.evaluations += len(latents) * (1 if guidance_scale in (0, 1) else 2)
        return (clean[:, :, 0] if self.model.is_video else clean).to(latents)


def _denoise(patcher: Any, branches: Branches, x: Tensor, level: float, guidance_scale: float) -> Tensor:
    """One guided call of ComfyUI's model: (x, s) in its own scale -> x0.

    The sample is passed as the noise of an all-zero latent, which ComfyUI does not change, and x0 is returned through the
    session: passed as latents, both would be rescaled.
    """
    session = _Session()
    with torch.inference_mode():
        guider = _guider(patcher)
        guider.set_conds(branches.positive, branches.negative)
        guider.set_cfg(guidance_scale)
        guider.sample(x, torch.zeros_like(x), session, torch.tensor([level, 0.0]), disable_pbar=True, seed=0)
    return session.denoised.float()


class _Session:
    """A SAMPLER that calls the model once; this interface has been the same in all ComfyUI versions."""

    denoised: Tensor

    def sample(
        self, model: Callable[..., Tensor], sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        interrupt_check()
        self.denoised = model(noise, sigmas[:1].expand(len(noise)), **extra_args)
        return noise


def _guider(patcher: Any) -> Any:
    from comfy.samplers import CFGGuider, calc_cond_batch

    class Guider(CFGGuider):
        """ComfyUI's guidance, with only the unconditional branch at scale 0."""

        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict = {}, seed: int | None = None) -> Tensor:  # noqa: B006 - ComfyUI's signature
            if self.cfg == 0:
                return calc_cond_batch(self.inner_model, [None, self.conds["negative"]], x, timestep, model_options)[1]
            return super().predict_noise(x, timestep, model_options, seed)

    return Guider(patcher)


class _Encoder(nn.Module):
    """The encoding half of a VAE as a module's forward, for ``functional_call``."""

    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae: Any = vae

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vae.encode(pixels)


def _differentiable_encode(vae: Any, images: Tensor, is_video: bool) -> Tensor:
    """``vae.encode`` on copies of the weights, because weights loaded in inference mode have no backward pass.

    Raises:
        InputError: the VAE is not ComfyUI's own class.
    """
    if not all(hasattr(vae, name) for name in ("patcher", "first_stage_model", "process_input", "vae_dtype", "device")):
        raise InputError(f"A {type(vae).__name__} cannot pass gradients on; set the plan's loss_space to pixel.")
    with torch.inference_mode():
        load_to_device(vae.patcher)
    module = vae.first_stage_model
    weights = {f"vae.{name}": value.clone() for name, value in module.state_dict().items() if "decoder" not in name}
    pixels = vae.process_input(vae.vae_encode_crop_pixels(images).movedim(-1, 1)).to(vae.device, vae.vae_dtype)
    pixels = pixels.unsqueeze(2) if is_video else pixels
    return torch.func.functional_call(_Encoder(module), weights, (pixels,))


class ModelFromComfyUI(io.ComfyNode):
    """Use a model loaded by ComfyUI as a multi-view model."""

    TITLE = TITLE

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerModelFromComfyUI",
            aliases=("native model", "checkpoint", "stable zero123", "sdxl", "flux", "qwen image", "z-image", "lora"),
            display_name=cls.TITLE,
            category="MicroDreamer/Model",
            description="Uses a model that ComfyUI has loaded: Stable Zero123 or SV3D_p with a picture, any other image model "
            "(Stable Diffusion, SDXL, SD3, Flux, Qwen-Image, Z-Image ...) with a prompt; LoRA and other patches apply.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any image model, also of flow matching and of few steps; not of videos, shapes or sounds.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Encodes the reference picture; needed by Stable Zero123 and SV3D_p."
                ),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompt; needed by models that take one."),
                io.Int.Input(
                    "image_size",
                    default=0,
                    min=0,
                    max=2048,
                    step=_SIZE_STEP,
                    tooltip="Side of the square images in pixels, a multiple of 64; 0 takes 256 for Stable Zero123, 512 for "
                    "SD1 and SD2, 1024 for all others.",
                ),
                io.Combo.Input(
                    "zero123",
                    options=list(ZERO123_KINDS),
                    default=ZERO123_KINDS[0],
                    tooltip="Kind of a Zero123 checkpoint, which the file does not tell: stable, or original for Zero123 and "
                    "Zero123-XL, whose last camera number has another meaning. Other models ignore it.",
                ),
                io.Combo.Input(
                    "coupling",
                    options=list(COUPLINGS),
                    default=ALONE,
                    optional=True,
                    **ADVANCED,
                    tooltip="Which views see each other, so that they agree sooner: none, those of a group through shared "
                    "attention (UNets), or those of a group as one picture in a grid (any model with a prompt).",
                ),
                io.Int.Input(
                    "group",
                    default=4,
                    min=1,
                    max=16,
                    optional=True,
                    **ADVANCED,
                    tooltip="Views that see each other; the plan's views must be a multiple of it. A grid has 1, 4, 9 or 16.",
                ),
            ],
            outputs=[
                types.Model.Output(id="model_out", display_name="model", tooltip="The multi-view model, not yet conditioned.")
            ],
        )

    @classmethod
    @core_call
    def execute(
        cls,
        model: Any,
        vae: Any,
        clip_vision: Any = None,
        clip: Any = None,
        image_size: int = 0,
        zero123: str = ZERO123_KINDS[0],
        coupling: str = ALONE,
        group: int = 4,
    ) -> io.NodeOutput:
        if zero123 not in ZERO123_KINDS:
            raise InputError(f"zero123 must be one of {', '.join(ZERO123_KINDS)}, got {zero123!r}.")
        coupled = Coupling(coupling, 1 if coupling == ALONE else group)
        native = NativeModel(model, vae, clip_vision, clip, image_size, zero123, coupled)
        return io.NodeOutput(LoadedModel(native, None, native.name))


def _is_zero123(model: Any) -> bool:
    from comfy.model_base import Stable_Zero123

    return isinstance(model, Stable_Zero123)


def _is_orbit(model: Any) -> bool:
    """Whether a model makes the frames of a camera's way around an object, from any elevations and azimuths: SV3D_p."""
    from comfy.model_base import SV3D_p

    return isinstance(model, SV3D_p)


def _usual_size(model: Any, process: HostProcess) -> int:
    from comfy.model_base import SDXL, SDXLRefiner

    if _is_orbit(model):
        return 576
    if _is_zero123(model) or is_mvdream(model):
        return 256
    return 512 if process.is_stable_diffusion and not isinstance(model, SDXL | SDXLRefiner) else 1024


def _patch_size(model: Any) -> int:
    """Latent pixels a side of a token."""
    found = getattr(model.diffusion_model, "patch_size", _UNET_PATCH)
    return int(found[-1]) if isinstance(found, tuple | list) else int(found)


def _process(patcher: Any) -> HostProcess:
    """The model's noise process.

    Raises:
        InputError: it is no image model that takes Gaussian noise away.
    """
    kind = type(patcher.model).__name__
    reasons = [reason for reason, names in _FOREIGN.items() if any(fnmatch(kind, name) for name in names.split())]
    try:
        if not reasons:
            return HostProcess.of(patcher.get_model_object("model_sampling"))
    except ValueError as error:
        reasons = [str(error)]
    raise InputError(
        f"{TITLE} needs an image model that takes noise away step by step, got {kind}: {reasons[0]}; load another checkpoint."
    )


def _check_vae(model: NativeModel) -> None:
    """Compare the VAE with the latents of the network.

    Raises:
        InputError: another number of channels, axes or pixels a latent.
    """
    latents, vae = model.latent_format, model.vae
    side = vae.spacial_compression_encode()
    needed = latents.latent_channels, latents.latent_dimensions, getattr(latents, "spacial_downscale_ratio", side)
    found = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None), side
    if found != needed:
        words = ["{} channels, {} axes and {} pixels a side".format(*numbers) for numbers in (needed, found)]
        raise InputError(
            f"{model.kind} works on latents of {words[0]}, got a VAE of {words[1]}; link the VAE of the same checkpoint."
        )


NODES = (ModelFromComfyUI,)
