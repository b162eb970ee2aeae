"""Models that ComfyUI itself has loaded, behind the core's protocol.

ComfyUI owns the weights: every network call goes through its guider, so that its memory management, LoRA, hooks and patches
apply, and images and texts go through the methods of its VAE, CLIP and CLIP_VISION objects. All of them run under inference
mode, as in ComfyUI's nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..microdreamer_core.cameras import Cameras
from ..microdreamer_core.diffusion.protocol import ViewCount
from ..microdreamer_core.diffusion.view_words import VIEW_WORDS
from ..microdreamer_core.errors import InputError
from ..microdreamer_core.reference import Reference
from ..microdreamer_core.sir.presets import get_plan
from . import types
from .compat import interrupt_check, io, load_to_device, schema
from .native_condition import Branches, FixedViews, Native, PromptViews, Zero123Views
from .types import LoadedModel, core_call

TITLE = "Model from ComfyUI"
ZERO123_KINDS = ("stable", "original")
_SIZE_STEP = 64
_TIMES = 1000


class NativeModel:
    """A native MODEL with its VAE and encoders, unconditioned; ``condition`` gives the diffusion model that SIR uses.

    Attributes:
        takes_prompt: conditioned on a prompt, without cameras; otherwise on an image.
        preset: name of the plan that suits it; radius, fov_y: that plan's; fill: share of the image that the object takes.

    Raises:
        InputError: the model does not work on 1000 variance-preserving steps, the VAE belongs to another model, or the size is
            not a multiple of 64.
    """

    def __init__(
        self,
        patcher: Any,
        vae: Any,
        clip_vision: Any = None,
        clip: Any = None,
        image_size: int = 0,
        zero123: str = "stable",
    ):
        self.patcher, self.vae, self.clip_vision, self.clip = patcher, vae, clip_vision, clip
        self.kind = type(patcher.model).__name__
        self.takes_prompt = not _is_zero123(patcher.model)
        self.zero123 = zero123
        self.alphas_cumprod = _alphas_cumprod(patcher)
        self.latent_format = patcher.get_model_object("latent_format")
        _check_vae(self)
        self.name = f"ComfyUI: {self.kind}"
        family = "imagedream" if self.takes_prompt else "stable-zero123"
        self.preset, self.nerf_preset = f"{family}-gaussians", f"{family}-nerf"
        plan = get_plan(self.preset)
        self.radius, self.fov_y, self.fill = plan.radius, plan.fov_y, 0.8
        self.nerf_radius = get_plan(self.nerf_preset).radius
        self.image_size = image_size or _usual_size(patcher.model)
        if self.image_size % _SIZE_STEP or self.image_size < 0:
            raise InputError(
                f"The picture size must be a multiple of {_SIZE_STEP}, got {image_size}; 0 takes the model's usual size."
            )

    negative = ""

    def condition(
        self,
        reference: Reference | None = None,
        prompt: str | None = None,
        *,
        negative: str | None = None,
        view_words: bool = True,
    ) -> NativeDiffusion:
        """Condition on a reference image (Zero123 models) or on a prompt (all others).

        Args:
            negative: negative prompt, which replaces the empty one in the unconditional branch.
            view_words: append words for the camera's direction to the prompt of each view.

        Raises:
            InputError: the model takes the other kind, or its encoder is not linked.
        """
        if self.takes_prompt:
            return NativeDiffusion(self, self._prompt(prompt, negative or "", VIEW_WORDS if view_words else ()))
        return NativeDiffusion(self, self._picture(reference, prompt))

    def condition_as(self, positive: Native, negative: Native) -> NativeDiffusion:
        """Condition on native CONDITIONING, the same for all cameras (or with one row for each)."""
        return NativeDiffusion(self, FixedViews(Branches(positive, negative)))

    def _picture(self, reference: Reference | None, prompt: str | None) -> Zero123Views:
        if reference is None or prompt:
            got = "a prompt" if prompt else "none"
            raise InputError(f"{self.kind} needs a reference picture and takes no prompt, got {got}; use Condition on Image.")
        if self.clip_vision is None:
            raise InputError(
                f"{self.kind} encodes the reference with CLIP_VISION, got none; link the one of "
                f"ImageOnlyCheckpointLoader to {TITLE}."
            )
        with torch.inference_mode():
            embeds = self.clip_vision.encode_image(reference.image[None]).image_embeds
            latent = self.vae.encode(reference.at_size(self.image_size).image[None])
        return Zero123Views(embeds.float(), latent.float(), reference.elevation, self.zero123 == "stable")

    def _prompt(self, prompt: str | None, negative: str, words: tuple[str, ...]) -> PromptViews:
        if prompt is None:
            raise InputError(
                f"{self.kind} takes a prompt, got a picture alone; use Condition on Prompt, or Condition on Both to use the "
                "picture in the reconstruction."
            )
        if self.clip is None:
            raise InputError(f"A prompt needs a text encoder, got none; link the checkpoint's CLIP to {TITLE}.")
        return PromptViews.encode(self.clip, prompt, negative, words)


class NativeDiffusion:
    """``MultiViewDiffusion`` of a native model; views are denoised independently.

    Args:
        views: cameras -> the two branches of the guidance.
    """

    view_count = ViewCount()

    def __init__(self, model: NativeModel, views: Callable[[Cameras], Branches]):
        self._model, self._views = model, views
        self.image_size, self.alphas_cumprod = model.image_size, model.alphas_cumprod
        self.device = model.patcher.load_device
        side = model.image_size // model.vae.spacial_compression_encode()
        self.latent_shape = (model.latent_format.latent_channels, side, side)
        self.evaluations = 0

    def condition(self, cameras: Cameras) -> Branches:
        """Return the conditioning of both guidance branches for every view."""
        return self._views(cameras)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images [V,H,W,3] in [0,1] as [V,C,h,w] scaled latents (the distribution's mode); differentiable."""
        if images.requires_grad and torch.is_grad_enabled():
            latents = _differentiable_encode(self._model.vae, images)
        else:
            with torch.inference_mode():
                latents = self._model.vae.encode(images)
            latents = latents.clone()
        return self._model.latent_format.process_in(latents.to(self.device).float())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [V,C,h,w] scaled latents to images [V,H,W,3] in [0,1]."""
        with torch.inference_mode():
            images = self._model.vae.decode(self._model.latent_format.process_out(latents))
        return images[..., :3].float().clone().to(self.device)

    @torch.no_grad()
    def eps(self, latents: Tensor, t: int, conditioning: Branches, guidance_scale: float) -> Tensor:
        """Predicted noise; guidance as in ``MultiViewDiffusion``.

        ComfyUI works on x / α with noise levels σ / α and returns the clean estimate x0, whatever its network predicts:
        ε = (x / α - x0) / (σ / α) (Eq. 2).
        """
        a_bar = float(self.alphas_cumprod[t])
        level = ((1 - a_bar) / a_bar) ** 0.5
        x = latents.to(self.device).float() / a_bar**0.5
        clean = _denoise(self._model.patcher, conditioning, x, level, float(guidance_scale))
        self.evaluations += len(latents) * (1 if guidance_scale in (0, 1) else 2)
        return ((x - clean) / level).to(latents)


def _denoise(patcher: Any, branches: Branches, x: Tensor, level: float, guidance_scale: float) -> Tensor:
    """One guided call of ComfyUI's model: (x / α, σ / α) -> x0.

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


def _differentiable_encode(vae: Any, images: Tensor) -> Tensor:
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
    return torch.func.functional_call(_Encoder(module), weights, (pixels,))


class ModelFromComfyUI(io.ComfyNode):
    """Use a model loaded by ComfyUI as a multi-view model."""

    TITLE = TITLE

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MicroDreamerModelFromComfyUI",
            aliases=("native model", "checkpoint", "stable zero123", "stable diffusion", "sdxl", "lora"),
            display_name=cls.TITLE,
            category="MicroDreamer/Model",
            description="Uses a model that ComfyUI has loaded: Stable Zero123 with a picture, Stable Diffusion or SDXL with a "
            "prompt; LoRA and other patches apply.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any model with 1000 variance-preserving steps: SD1, SD2, SDXL, Stable Zero123."
                ),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="Encodes the reference picture; needed by Stable Zero123."
                ),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompt; needed by models that take one."),
                io.Int.Input(
                    "image_size",
                    default=0,
                    min=0,
                    max=2048,
                    step=_SIZE_STEP,
                    tooltip="Side of the square images in pixels, a multiple of 64; 0 takes 256 for Stable Zero123, 512 for "
                    "SD1 and SD2, 1024 for SDXL.",
                ),
                io.Combo.Input(
                    "zero123",
                    options=list(ZERO123_KINDS),
                    default=ZERO123_KINDS[0],
                    tooltip="Kind of a Zero123 checkpoint, which the file does not tell: stable, or original for Zero123 and "
                    "Zero123-XL, whose last camera number has another meaning. Other models ignore it.",
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
    ) -> io.NodeOutput:
        if zero123 not in ZERO123_KINDS:
            raise InputError(f"zero123 must be one of {', '.join(ZERO123_KINDS)}, got {zero123!r}.")
        native = NativeModel(model, vae, clip_vision, clip, image_size, zero123)
        return io.NodeOutput(LoadedModel(native, None, native.name))


def _is_zero123(model: Any) -> bool:
    from comfy.model_base import Stable_Zero123

    return isinstance(model, Stable_Zero123)


def _usual_size(model: Any) -> int:
    from comfy.model_base import SDXL, SDXLRefiner

    if _is_zero123(model):
        return 256
    return 1024 if isinstance(model, SDXL | SDXLRefiner) else 512


def _alphas_cumprod(patcher: Any) -> Tensor:
    """[1000] float64 of a model's own noise levels σ / α.

    Raises:
        InputError: the model does not work on 1000 steps of a variance-preserving process.
    """
    sampling = patcher.get_model_object("model_sampling")
    if not _is_variance_preserving(sampling):
        raise InputError(
            f"{TITLE} needs a model that is trained on {_TIMES} variance-preserving steps (Stable Diffusion 1 and 2, SDXL, "
            f"Stable Zero123), got {type(patcher.model).__name__} with another process (flow, EDM, cascade or distilled "
            "steps); load another checkpoint."
        )
    return 1 / (1 + sampling.sigmas.detach().cpu().double().clone() ** 2)


def _is_variance_preserving(sampling: Any) -> bool:
    """Whether a network is called on α x at the index of its noise level; tested by behaviour, not by ComfyUI's classes."""
    sigmas = getattr(sampling, "sigmas", None)
    if sigmas is None or len(sigmas) != _TIMES:
        return False
    times = torch.tensor([1, _TIMES // 2, _TIMES - 1])
    with torch.inference_mode():
        levels = sigmas.cpu()[times]
        found = sampling.timestep(levels).float()
        scaled = sampling.calculate_input(levels, torch.ones(len(times), 1, 1, 1)).flatten()
    return torch.equal(found, times.float()) and torch.allclose(scaled, (1 + levels**2).rsqrt(), rtol=1e-4)


def _check_vae(model: NativeModel) -> None:
    channels, found = model.latent_format.latent_channels, getattr(model.vae, "latent_channels", None)
    if found != channels or getattr(model.vae, "latent_dim", None) != 2:
        raise InputError(
            f"{model.kind} works on pictures' latents of {channels} channels, got a VAE of {found}; link the VAE of the same "
            "checkpoint."
        )


NODES = (ModelFromComfyUI,)
