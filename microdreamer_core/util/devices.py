"""Devices: choosing one, and moving data and work to it without synchronising where nothing depends on the answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` prefers CUDA, then the CPU.

    Raises:
        InputError: an unknown device, or one that this machine lacks.
    """
    if name not in DEVICES:
        raise InputError(f"Unknown device {name!r}; choose one of {', '.join(DEVICES)}.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("The device 'cuda' was asked for, but torch finds no CUDA GPU here; use --device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("The device 'mps' was asked for, but torch finds no Apple GPU here; use --device cpu.")
    return torch.device(name)


def is_async(device: torch.device | str) -> bool:
    """Whether the host runs ahead of a device, so that reading a number back makes it wait for all work handed over.

    There, checks of finiteness are kept on the device and read together at the end of a stage; on the CPU they are immediate.
    """
    return torch.device(device).type != "cpu"


def to_device_async(tensor: Tensor, like: Tensor | torch.device | str) -> Tensor:
    """A tensor of the host on a device (and in the precision of a tensor), without waiting until the copy has arrived.

    CUDA copies behind the host's back from page-locked memory alone, so the content goes there first, and the tensor may
    change afterwards; other devices promise less and are waited for.
    """
    target = like.device if isinstance(like, Tensor) else torch.device(like)
    tensor = tensor.to(like.dtype) if isinstance(like, Tensor) else tensor
    if target.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(target)
    return tensor.pin_memory().to(target, non_blocking=True)


class AsyncScalar:
    """A whole number on its way from a device: asked for now, looked at when it has come."""

    def __init__(self, number: Tensor):
        """``number``: a tensor without axes."""
        self._number = number.detach()
        self._event: torch.cuda.Event | None = None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def came(self) -> bool:
        """Whether :meth:`value` answers at once; no where a device cannot tell."""
        return not is_async(self._number.device) if self._event is None else self._event.query()

    def value(self) -> int:
        """The number; waits for it."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._number)


def to_channels_last(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Lay the weights of convolutions out as the kernels of a device read them: channels last on CUDA, as they are elsewhere.

    The layout stays with the weights when they move between devices, and changes no numbers but the order of sums.
    """
    if torch.device(device).type == "cuda":
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch documents it, untyped
    return module
