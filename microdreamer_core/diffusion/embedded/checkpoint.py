"""The file format of the shipped checkpoint: one safetensors file with codec, denoiser and their sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...util.atomic import replace_file
from ...util.readable import quote_error
from .network import EmbeddedConfig, MultiViewDenoiser, PatchCodec

SHIPPED = Path(__file__).parent / "embedded.safetensors"
KIND = "microdreamer-embedded"
VERSION = 2
"""Version of the file format: 2 adds ``EmbeddedConfig.copies``."""


def save_checkpoint(path: Path, config: EmbeddedConfig, codec: PatchCodec, denoiser: MultiViewDenoiser, training: dict) -> None:
    """Write codec and denoiser in half precision, atomically; ``training`` describes how they were trained."""
    from safetensors.torch import save_file

    tensors = {f"codec.{k}": v.half() for k, v in codec.state_dict().items()}
    tensors |= {f"denoiser.{k}": v.half() for k, v in denoiser.state_dict().items()}
    metadata = {
        "kind": KIND,
        "version": str(VERSION),
        "config": json.dumps(config.to_dict()),
        "training": json.dumps(training),
    }
    with replace_file(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(temporary), metadata)


def training_of(path: Path) -> dict:
    """Read the training record of a checkpoint: steps of its parts, batch, seed, and the checkpoint that it started from."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["training"])


def read_config(path: Path = SHIPPED) -> EmbeddedConfig:
    """Read the sizes of a checkpoint's model from the file header and check them against the shapes of its tensors.

    Raises:
        InputError: the file is missing, truncated, of another kind or of a newer version, or sizes and tensors disagree.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        kind = metadata.get("kind")
        if kind != KIND:
            raise InputError(f"{path.name} is not an embedded MicroDreamer checkpoint (kind {kind!r:.40}, expected {KIND!r}).")
        if int(metadata["version"]) > VERSION:
            raise InputError(
                f"{path.name} has version {metadata['version']:.20}, this package reads up to {VERSION}; update the package."
            )
        config = EmbeddedConfig.from_dict(json.loads(metadata["config"]))
        names = set(file.keys())
        for name, shape in config.main_shapes().items():
            found = tuple(file.get_slice(name).get_shape()) if name in names else None
            if found != shape:
                raise ValueError(f"{name} has shape {found}, expected {shape}")
    return config


def load_checkpoint(path: Path = SHIPPED) -> tuple[EmbeddedConfig, PatchCodec, MultiViewDenoiser]:
    """Read a checkpoint in float32, ready for inference.

    Raises:
        InputError: as for ``read_config``.
    """
    config = read_config(path)
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a dict
        codec, denoiser = PatchCodec(config), MultiViewDenoiser(config)
        for name, module in (("codec.", codec), ("denoiser.", denoiser)):
            module.load_state_dict({k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)})
    for module in (codec, denoiser):
        module.eval().requires_grad_(False)
    return config, codec, denoiser


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; any error while it is read becomes an InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"The checkpoint {path.name} is not at {path}; reinstall the package or give the right path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except InputError:
        raise
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path.name} is not a whole safetensors file ({quote_error(error)}); copy or download it again."
        ) from error
    except Exception as error:  # from json, from torch for weights of another model, from libraries for wrong sizes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path.name} does not hold the model that it announces ({reason}); download it again.") from error
