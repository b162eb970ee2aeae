"""Models by name or path: what they need (image size, views, inputs), which plans suit them, and loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..diffusion.latent import LatentModel
from ..diffusion.protocol import Checkpoint, MultiViewModel, ViewCount
from ..errors import InputError
from ..sir.plan import SIRPlan
from ..sir.presets import PRESETS
from ..util.devices import choose_device
from . import load as checkpoints
from .load import ModelOptions

EMBEDDED = "embedded"

_EMBEDDED_PRESETS = {"gaussians": EMBEDDED, "nerf": "embedded-nerf"}
_DISTANCE = 1.25
"""Largest ratio between a plan's camera distance and the model's own: a model's object fills as much of the image as in
training, wherever the plan places the camera."""


@dataclass(frozen=True)
class ModelSpec:
    """What a model needs: images, views, plans and conditioning.

    Attributes:
        size: side of its square images in pixels; fill: share of it that the object fills.
        view_count: views denoised at once.
        presets: names of the plans that suit it, by representation; radii: their camera distances.
        takes_prompt, takes_picture: whether it is conditioned on a prompt, on a reference image.
        negative: its default negative prompt.
    """

    size: int
    fill: float
    view_count: ViewCount
    presets: dict[str, str]
    radii: dict[str, float]
    takes_prompt: bool
    takes_picture: bool
    negative: str = ""

    def suited_to(self, representation: str | None = None) -> str:
        """Return the preset's name for a representation, Gaussians by default.

        Raises:
            InputError: an unknown representation.
        """
        representation = representation or "gaussians"
        if representation not in self.presets:
            raise InputError(f"The representation must be one of {', '.join(self.presets)}, got {representation!r}.")
        return self.presets[representation]


def check_model(model: str) -> str:
    """Return a model's full name: "embedded", or the absolute path of a checkpoint given by path or name in the models folder.

    Raises:
        InputError: no such model.

    >>> check_model("embedded")
    'embedded'
    """
    return model if model == EMBEDDED else str(checkpoints.locate_checkpoint(model))


def model_spec(model: str, options: ModelOptions = ModelOptions()) -> ModelSpec:  # noqa: B008 - immutable
    """Return the specification of a model by name or path, without loading it.

    Raises:
        InputError: no such model, or not a supported one.

    >>> model_spec("embedded").takes_picture
    True
    """
    if check_model(model) == EMBEDDED:
        return _embedded_spec()
    info = checkpoints.inspect(Path(check_model(model)), options)
    if info.family == EMBEDDED:
        return _embedded_spec(info.path)
    kind = checkpoints.MODELS[info.family]
    takes = kind.takes_prompt, kind.takes_picture
    return ModelSpec(info.image_size, kind.fill, kind.view_count, _presets(kind), own_radii(kind), *takes, kind.negative)


def _presets(kind: type[LatentModel]) -> dict[str, str]:
    return {"gaussians": kind.preset, "nerf": kind.nerf_preset}


def own_radii(kind: MultiViewModel | type[LatentModel]) -> dict[str, float]:
    """Return the camera distances that a model or family is made for, by representation."""
    return {"gaussians": kind.radius, "nerf": kind.nerf_radius}


def fits(plan: SIRPlan, framing: ModelSpec) -> bool:
    """Return whether the plan can run with a model of that specification."""
    group = framing.view_count.group or 1
    return plan.views % group == 0 and right_distance(plan, framing.radii)


def right_distance(plan: SIRPlan, radii: dict[str, float]) -> bool:
    """Return whether the plan's camera distance is close to one of the model's own."""
    return any(1 / _DISTANCE <= plan.radius / radius <= _DISTANCE for radius in radii.values())


def check_plan(plan: SIRPlan, framing: ModelSpec, model: str) -> None:
    """Refuse a plan that cannot run, before any work is done.

    Raises:
        InputError: the plan's number of views is not one that the model denoises at once, or its camera distance differs.
    """
    if fits(plan, framing):
        return
    others = ", ".join(
        name for name, preset in PRESETS.items() if preset.representation == plan.representation and fits(preset, framing)
    )
    if plan.views % (framing.view_count.group or 1):
        raise InputError(
            f"The preset {plan.name!r} has {plan.views} views and the model {model!r} needs a multiple of "
            f"{framing.view_count.group}; choose {others}."
        )
    check_distance(plan, framing.radii, framing.presets[plan.representation], model)


def check_distance(plan: SIRPlan, radii: dict[str, float], preset: str, model: str) -> None:
    """Refuse a plan whose camera distance is not the model's.

    Args:
        radii, preset: the model's own; model: its name.

    Raises:
        InputError: the distance differs; the message names the right preset.
    """
    if not right_distance(plan, radii):
        radius = radii[plan.representation]
        raise InputError(
            f"The plan {plan.name!r} looks from a distance of {plan.radius:g} and the model {model!r} was made for {radius:g}; "
            f"choose the preset {preset!r}."
        )


def load_model(
    model: str = EMBEDDED,
    device: torch.device | str = "auto",
    options: ModelOptions = ModelOptions(),  # noqa: B008 - immutable
) -> Checkpoint:
    """Load a diffusion model by name or path; its ``condition(reference, prompt)`` makes it ready for SIR.

    Args:
        device: of torch, or one of ``util.devices.DEVICES``.

    Raises:
        InputError: no such model, or it cannot be loaded; the message gives the reason.
    """
    device = choose_device(device) if isinstance(device, str) else device
    if check_model(model) == EMBEDDED:
        from ..diffusion.embedded.model import EmbeddedModel

        embedded = EmbeddedModel.load(device=device)
        if options.graphs:
            embedded.use_graphs()
        return embedded
    return checkpoints.load(Path(check_model(model)), options, device)


def model_dtype(model: str, options: ModelOptions, device: torch.device) -> torch.dtype:
    """Return the dtype in which a model by name or path is loaded on a device."""
    path = check_model(model)
    return options.torch_dtype(device, EMBEDDED if path == EMBEDDED else checkpoints.inspect(Path(path), options).family)


def _embedded_spec(path: Path | None = None) -> ModelSpec:
    from ..diffusion.embedded.checkpoint import read_config
    from ..diffusion.embedded.network import EmbeddedConfig

    config = EmbeddedConfig() if path is None else read_config(path)
    radii = dict.fromkeys(_EMBEDDED_PRESETS, config.radius)
    return ModelSpec(config.image_size, config.fill, ViewCount(config.views), _EMBEDDED_PRESETS, radii, False, True)
