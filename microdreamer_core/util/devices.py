"""Devices: choice, and transfers without needless synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """Return the torch device of a name; ``auto`` is CUDA if available, else the CPU.

    >>> choose_device("cpu")
    device(type='cpu')

    Raises:
        InputError: the device is unknown or not available on this machine.
    """
    if name not in DEVICES:
        raise InputError(f"Unknown device {name!r}; choose one of {', '.join(DEVICES)}.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("The device 'cuda' is not available: torch finds no CUDA GPU here; use --device cpu.")
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("The device 'mps' is not available: torch finds no Apple GPU here; use --device cpu.")
    return torch.device(name)


def is_async(device: torch.device | str) -> bool:
    """Return True if ``device`` executes asynchronously, so that reading a value back synchronises with it.

    There, finiteness checks stay on the device and are read together at the end of a stage; on the CPU they are immediate.

    >>> is_async("cpu"), is_async("cuda")
    (False, True)
    """
    return torch.device(device).type != "cpu"


def to_device_async(tensor: Tensor, like: Tensor | torch.device | str) -> Tensor:
    """Copy a CPU tensor to ``like``'s device (and dtype, if it is a tensor) without synchronising.

    CUDA copies asynchronously only from pinned memory, so the tensor is first copied there and may change afterwards; copies
    to other devices are synchronous.
    """
    target = like.device if isinstance(like, Tensor) else torch.device(like)
    tensor = tensor.to(like.dtype) if isinstance(like, Tensor) else tensor
    if target.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(target)
    return tensor.pin_memory().to(target, non_blocking=True)


class AsyncScalar:
    """An integer that is copied from a device asynchronously and read once it has arrived."""

    def __init__(self, number: Tensor):
        """Start the copy of ``number``, a [] tensor."""
        self._number = number.detach()
        self._event: torch.cuda.Event | None = None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def is_ready(self) -> bool:
        """Return True if :meth:`value` would not block; False on devices that cannot tell."""
        return not is_async(self._number.device) if self._event is None else self._event.query()

    def value(self) -> int:
        """Return the number, blocking until it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._number)


def to_channels_last(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Convert convolution weights to the channels-last layout on CUDA, where its kernels are faster; unchanged elsewhere.

    The layout persists when the weights move between devices; results differ only by the order of sums.
    """
    if torch.device(device).type == "cuda":
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - torch documents it, untyped
    return module
