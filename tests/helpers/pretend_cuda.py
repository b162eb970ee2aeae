"""A CUDA GPU that is this CPU: tensors on it are ordinary ones with a label, and what a GPU refuses is refused.

Operations on tensors of both places, reading a GPU's tensor as an array, and, while a CUDA graph is recorded, reading numbers
back or copying between the places. Labels belong to storages, so that views share them.
"""

from __future__ import annotations

import contextlib
import types

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MAY_MIX = ("copy_", "_to_copy", "index", "_index_put", "set_", "lift_fresh")
WANTS_ALL = ("cat", "stack")  # refuse even single numbers of the CPU, which other operations take
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "unique", "repeat_interleave.Tensor")

_device = Tensor.device
_labels: dict[int, StorageWeakRef] = {}  # a weak reference keeps the address from being given to another storage
_recording: list[bool] = []
_quiet: list[bool] = []


def on_gpu(tensor: Tensor) -> bool:
    """Whether it is labelled."""
    with torch._C.DisableTorchFunction():
        return _device.__get__(tensor).type == "cpu" and tensor.untyped_storage()._cdata in _labels


def _place(tensor: Tensor) -> torch.device:
    if on_gpu(tensor):
        return CUDA
    with torch._C.DisableTorchFunction():
        return _device.__get__(tensor)


def _put(tensor: Tensor, gpu: bool) -> Tensor:
    if isinstance(tensor, Tensor) and on_gpu(tensor) != gpu and _place(tensor).type in ("cpu", "cuda"):
        storage = tensor.untyped_storage()
        if gpu:
            _labels[storage._cdata] = StorageWeakRef(storage)
        else:
            del _labels[storage._cdata]
    return tensor


@contextlib.contextmanager
def recording():
    """What a CUDA graph forbids is refused within."""
    _recording.append(True)
    try:
        yield
    finally:
        _recording.pop()


class _Move(torch.autograd.Function):
    """A copy to the other place, and of the gradient back."""

    @staticmethod
    def forward(ctx, tensor, dtype, gpu):
        ctx.source = on_gpu(tensor), tensor.dtype
        return _copy(tensor, dtype, gpu)

    @staticmethod
    def backward(ctx, gradient):
        gpu, dtype = ctx.source
        return _copy(gradient, dtype, gpu), None, None


def _copy(tensor: Tensor, dtype: torch.dtype, gpu: bool) -> Tensor:
    _quiet.append(True)
    try:
        return _put(tensor.detach().to(dtype=dtype, copy=True), gpu)
    finally:
        _quiet.pop()


class _Calls(TorchFunctionMode):
    """What a call says of devices: "cuda" is taken out of it and becomes a label."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._to(func, *args, **kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.tolist and on_gpu(args[0]) and _recording:
            raise RuntimeError("tolist is not permitted when stream is capturing")
        if func is Tensor.pin_memory:
            return args[0].clone()
        kwargs.pop("pin_memory", None)
        named = kwargs.get("device")
        place = None if named is None else torch.device(named).type
        if place == "cuda":
            kwargs["device"] = CPU
        elif func in (Tensor.new_tensor, Tensor.__deepcopy__):
            place = _place(args[0]).type
        result = func(*args, **kwargs)
        return _put(result, place == "cuda") if place in ("cuda", "cpu") and isinstance(result, Tensor) else result

    def _to(self, func, tensor, *args, **kwargs):
        device = {Tensor.cuda: CUDA, Tensor.cpu: CPU}.get(func, kwargs.pop("device", None))
        dtype = kwargs.pop("dtype", None)
        for value in args:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.device | str):
                device = torch.device(value)
        known = {name: kwargs[name] for name in ("copy", "memory_format") if name in kwargs}
        known |= {} if dtype is None else {"dtype": dtype}
        gpu = None if device is None else {"cuda": True, "cpu": False}.get(torch.device(device).type)
        if gpu is None or gpu == on_gpu(tensor):
            known |= {} if device is None or gpu is not None else {"device": device}
            return Tensor.to(tensor, **known) if known else tensor
        if _recording:
            raise RuntimeError("a copy between devices is not permitted when stream is capturing")
        return _Move.apply(tensor, dtype or tensor.dtype, gpu)


class _Operations(TorchDispatchMode):
    """Results lie where their operands lie; those of both places are refused."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _quiet:
            return func(*args, **kwargs)
        name = str(func).removeprefix("aten.")
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        places = [on_gpu(tensor) for tensor in tensors]
        if any(places) and not name.startswith(MAY_MIX):
            strangers = [t for t, gpu in zip(tensors, places, strict=True) if not gpu]
            if any(stranger.dim() or name.startswith(WANTS_ALL) for stranger in strangers):
                shapes = [(tuple(t.shape), "cuda" if gpu else "cpu") for t, gpu in zip(tensors, places, strict=True)]
                raise RuntimeError(f"Expected all tensors to be on the same device, {name} got {shapes}")
        if name.startswith("index") and any(places) and not places[0]:
            raise RuntimeError(f"{name}: a tensor of the CPU cannot be indexed by one of the GPU")
        by_mask = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        if _recording and any(places) and (by_mask or name.startswith(READS)):
            raise RuntimeError(f"{name} is not permitted when stream is capturing")
        result = func(*args, **kwargs)
        first = name.startswith(("copy_", "index", "_index_put"))
        for value in tree_flatten(result)[0]:
            if (places[:1] == [True]) if first else any(places):
                _put(value, True)
        return result


class LateEvent:
    """Has come when it is asked for the third time; waiting for it is counted."""

    waits = 0

    def __init__(self):
        self._asked = 0

    def record(self):
        self._asked = 0

    def query(self):
        self._asked += 1
        return self._asked > 2

    def synchronize(self):
        LateEvent.waits += self._asked <= 2


class _NoContext:
    def __init__(self, device):
        pass

    def __enter__(self):
        pass

    def __exit__(self, *_):
        return False


@contextlib.contextmanager
def pretend_cuda(patch):
    """Within, there is a GPU of compute capability 9.0; ``patch`` is a MonkeyPatch."""
    engine = torch.autograd._engine_run_backward

    def run_backward(*args, **kwargs):
        with _Calls():  # torch has left the mode to call this
            return engine(*args, **kwargs)

    patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
    patch.setattr(Tensor, "device", property(_place), raising=False)
    patch.setattr(Tensor, "is_cuda", property(on_gpu), raising=False)
    answers = {"is_available": True, "current_device": 0, "get_device_capability": (9, 0), "get_device_name": "pretended"}
    answers |= {"synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None, "max_memory_allocated": 0}
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    patch.setattr(torch.cuda, "device", _NoContext)
    # torch 2.15 asks the driver whether a graph is recorded
    patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None, raising=False)
    patch.setattr(torch.cuda, "Event", LateEvent)
    patch.setattr(LateEvent, "waits", 0)
    with _Calls(), _Operations():
        yield types.SimpleNamespace(on_gpu=on_gpu, recording=recording, waits=lambda: LateEvent.waits)
    _labels.clear()
