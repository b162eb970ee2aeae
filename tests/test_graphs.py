"""Replaying a network's calls, with a recorder in place of CUDA's; and the other ways to spare time or memory on a GPU."""

from __future__ import annotations

import copy
import dataclasses
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import tiny_checkpoints as tiny
from microdreamer_core.cameras import turntable
from microdreamer_core.checkpoints.load import ModelOptions, load
from microdreamer_core.checkpoints.registry import load_model
from microdreamer_core.diffusion.ddim import sample
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.diffusion.graphs import MOST, CudaGraphed, CudaRecorder
from microdreamer_core.diffusion.timesteps import sampling_path
from microdreamer_core.reference import Reference
from microdreamer_core.util import devices


class FakeRecorder:
    """Plays as a CUDA graph does: the same call on the same memory, whose result lies in the same place."""

    def __init__(self, fails=False):
        self.records = self.plays = 0
        self.fails = fails

    def works(self, device):
        return True

    def record(self, call):
        self.records += 1
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        output = torch.full_like(call(), float("nan"))  # a recording computes nothing

        def play():
            self.plays += 1
            output.copy_(call())

        return play, output


@pytest.fixture
def network():
    weight = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
    calls = []

    def function(x, shift=0.0, extra=None):
        calls.append(x)
        return x * weight + shift + (0 if extra is None else extra)

    function.weight, function.calls = weight, calls
    return function


def replayed(network, recorder=None):
    return CudaGraphed(network, lambda: [network.weight], recorder or FakeRecorder())


@torch.no_grad()
def test_the_second_call_is_recorded_and_later_ones_replayed(network):
    recorder = FakeRecorder()
    run = replayed(network, recorder)
    inputs = [torch.full((3,), float(i)) for i in range(5)]
    results = [run(x=x, shift=1.0) for x in inputs]
    assert all(torch.equal(result, 2 * x + 1) for result, x in zip(results, inputs, strict=True)), "results share no memory"
    assert (recorder.records, recorder.plays) == (1, 4)
    static = network.calls[1]
    assert all(call is static for call in network.calls[2:]) and not any(static is x for x in inputs)


@torch.no_grad()
def test_every_kind_of_call_has_its_own_recording(network):
    recorder = FakeRecorder()
    run = replayed(network, recorder)
    kinds = [
        {"x": torch.ones(2)},
        {"x": torch.ones(4)},
        {"x": torch.ones(2, dtype=torch.float64)},
        {"x": torch.ones(2), "shift": 3.0},
        {"x": torch.ones(2), "extra": torch.ones(2)},
        {"x": torch.ones(2, 2)},
        {"x": torch.ones(4, 2).T[:, :2]},
    ]
    for _ in range(3):
        for inputs in kinds:
            expected = inputs["x"] * 2 + inputs.get("shift", 0.0) + inputs.get("extra", 0)
            assert torch.equal(run(**inputs), expected)
    assert recorder.records >= len(kinds) and len(run._recordings) == MOST


@torch.no_grad()
def test_moved_weights_are_recorded_anew(network):
    recorder = FakeRecorder()
    run = replayed(network, recorder)
    x = torch.ones(2)
    for _ in range(3):
        run(x=x)
    network.weight.data = torch.tensor(5.0)
    assert torch.equal(run(x=x), torch.full((2,), 5.0)) and recorder.records == 2


@torch.no_grad()
def test_what_cannot_be_recorded_runs_as_it_is_and_is_said_once(network, caplog):
    recorder = FakeRecorder(fails=True)
    run = replayed(network, recorder)
    for i in range(5):
        assert torch.equal(run(x=torch.full((2,), float(i))), torch.full((2,), 2.0 * i))
    assert recorder.records == 1
    assert [r.getMessage() for r in caplog.records if "cannot be recorded" in r.getMessage()] == [
        "The network's calls cannot be recorded as CUDA graphs and run one by one: operation not permitted when stream is "
        "capturing"
    ]


def test_calls_that_learn_are_not_recorded(network):
    recorder = FakeRecorder()
    run = replayed(network, recorder)
    for _ in range(3):
        x = torch.ones(2, requires_grad=True)
        run(x=x).sum().backward()
        assert torch.equal(x.grad, torch.full((2,), 2.0))
    assert recorder.records == 0


def test_what_is_recorded_in_inference_mode_is_replayed_outside(network):
    run = replayed(network)
    with torch.inference_mode():
        x = torch.ones(2)
        run(x=x), run(x=x)
    with torch.no_grad():
        assert torch.equal(run(x=torch.full((2,), 4.0)), torch.full((2,), 8.0))


def test_cuda_graphs_are_for_the_current_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    devices = "cuda", "cuda:1", "cuda:0", "cpu", "mps", "meta"
    assert [CudaRecorder().works(torch.device(d)) for d in devices] == [True, True, False, False, False, False]


# --- models ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for family in tiny.FAMILIES:
        tiny.write(folder, family, "safetensors")
    return folder


@pytest.fixture(scope="module")
def reference():
    image = torch.ones(64, 64, 3)
    image[20:50, 15:45] = torch.tensor([0.8, 0.2, 0.1])
    return Reference(image, (image[..., 1:2] < 0.9).float(), 10.0)


def condition_model(model, reference):
    words = {"prompt": "a red box"} if model.takes_prompt else {}
    return model.condition(reference if model.takes_picture else None, **words)


def noise(diffusion, views=4, seed=0):
    return torch.randn(views, *diffusion.latent_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["mvdream", "zero123", "embedded"])
def test_models_replay_their_calls_to_the_same_numbers(folder, reference, family):
    if family == "embedded":
        model, recorder = EmbeddedModel.load(), FakeRecorder()
        model.use_graphs(recorder)
    else:
        model, recorder = load(folder / f"{family}.safetensors"), FakeRecorder()
        model.parts.unet.use_graphs(recorder)
    plain = EmbeddedModel.load() if family == "embedded" else load(folder / f"{family}.safetensors")
    diffusion, known = condition_model(model, reference), condition_model(plain, reference)
    conditioning, other = diffusion.condition(turntable(4)), diffusion.condition(turntable(4, elevation=20))
    for t, condition, guidance in [(301, conditioning, 0.0), (501, conditioning, 2.0), (301, other, 0.0), (21, other, 3.0)] * 2:
        x = noise(diffusion, seed=t)
        assert torch.equal(diffusion.denoised(x, t, condition, guidance), known.denoised(x, t, condition, guidance))
    assert (recorder.records, recorder.plays) == (2, 6)


class Attention(TorchDispatchMode):
    """Counts fused attention and softmaxes of attention written out."""

    def __init__(self):
        super().__init__()
        self.fused = self.written_out = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fused += "scaled_dot_product" in str(func)
        self.written_out += "softmax" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["mvdream", "imagedream", "zero123", "embedded"])
def test_all_attention_is_fused(folder, reference, family):
    model = EmbeddedModel.load() if family == "embedded" else load(folder / f"{family}.safetensors")
    if isinstance(model, EmbeddedModel):
        model.denoise = model.denoiser  # as on a GPU: on a CPU cross-attention is folded into two matrices
    with Attention() as found:
        diffusion = condition_model(model, reference)
        x = noise(diffusion)
        diffusion.denoised(x, 301, diffusion.condition(turntable(4)), 2.0)
        diffusion.decode(x[:1])
    assert found.fused > 0 and found.written_out == 0


def test_options_say_who_replays(folder):
    path = folder / "zero123.safetensors"
    recorded, plain, small = (
        load(path, ModelOptions(**options)).parts for options in ({}, {"graphs": False}, {"low_memory": True})
    )
    assert isinstance(recorded.unet._predict, CudaGraphed)
    assert not isinstance(plain.unet._predict, CudaGraphed) and not isinstance(small.unet._predict, CudaGraphed)
    assert isinstance(load_model("embedded", torch.device("cpu")).denoise, CudaGraphed)
    plain = load_model("embedded", torch.device("cpu"), ModelOptions(graphs=False))
    assert not isinstance(plain.denoise, CudaGraphed)
    assert small.low_memory and small.vae.low_memory and not recorded.low_memory and not recorded.vae.low_memory


@pytest.mark.parametrize("family", ["imagedream", "zero123"])
def test_low_memory_gives_the_same_numbers_from_smaller_calls(folder, reference, family):
    whole, small = (
        condition_model(load(folder / f"{family}.safetensors", ModelOptions(low_memory=low)), reference)
        for low in (False, True)
    )
    rows = []
    small._parts.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    x = noise(whole)
    for guidance in (0.0, 1.0, 3.0):
        expected = whole.denoised(x, 401, whole.condition(turntable(4)), guidance)
        torch.testing.assert_close(small.denoised(x, 401, small.condition(turntable(4)), guidance), expected, rtol=0, atol=3e-5)
    assert len(rows) == 4 and len(set(rows)) == 1 and whole.evaluations == small.evaluations == 16
    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(small.encode(images), whole.encode(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(small.decode(x), whole.decode(x), rtol=0, atol=1e-5)


@pytest.fixture
def half(folder):
    vae = load(folder / "zero123.safetensors", ModelOptions(dtype="float16")).parts.vae
    assert vae.model.dtype == torch.float16
    return vae


@torch.no_grad()
def test_an_autoencoder_that_overflows_goes_over_to_float32(half, folder, caplog):
    exact = load(folder / "zero123.safetensors").parts.vae
    for vae in (half, exact):
        vae.model.decoder.conv_in.weight.mul_(3e4)  # inner numbers beyond 65504; the norm that follows undoes it
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.WARNING):
        pictures = half.decode(latents), half.decode(latents)
    assert half.model.dtype == torch.float32 and len(caplog.records) == 1
    assert "overflows in torch.float16" in caplog.text
    assert torch.equal(*pictures)
    torch.testing.assert_close(pictures[0], exact.decode(latents), rtol=0, atol=0.05)


def test_half_precision_stays_where_it_will_do(half):
    with torch.no_grad():
        assert half.encode(torch.rand(1, 16, 16, 3)).dtype == torch.float32
        half.decode(torch.full((1, 4, 8, 8), float("nan")))  # not the autoencoder's fault
    half.encode(torch.rand(1, 16, 16, 3, requires_grad=True)).sum().backward()
    assert half.model.dtype == torch.float16


@torch.no_grad()
def test_a_unet_that_overflows_goes_over_at_the_call_and_says_so_once(folder, reference, caplog):
    half, exact = (
        condition_model(load(folder / "mvdream.safetensors", ModelOptions(dtype=d)), reference) for d in ("float16", "float32")
    )
    calls = []

    def swell(network, inputs, output):
        """Too large for float16 and back again, from the third call on: in the middle of sampling."""
        calls.append(output.dtype)
        return output * 1e7 * 1e-7 if len(calls) > 2 else output

    half._parts.unet.unet.conv_norm_out.register_forward_hook(swell)
    x, conditioning = noise(half), half.condition(turntable(4))

    def sampled(diffusion):
        return sample(x, sampling_path(801, 5), lambda x, t: diffusion.denoised(x, t, conditioning, 2.0), diffusion.process)

    with caplog.at_level(logging.WARNING):
        first, again = sampled(half), sampled(half)
    said = [record.message for record in caplog.records if record.name.endswith("diffusion.latent")]
    assert said == ["The UNet overflows in float16 at t = 401; from now on it works in float32."]
    assert calls == [torch.float16] * 3 + [torch.float32] * (3 + 5)
    assert half.evaluations == 2 * 5 * 8, "the call made again counts once"
    assert bool(first.isfinite().all())
    torch.testing.assert_close(first, sampled(exact), rtol=0, atol=0.05)
    torch.testing.assert_close(first, again, rtol=0, atol=0.05)


@torch.no_grad()
def test_a_unet_is_not_blamed_for_what_it_is_given(folder, reference):
    half = condition_model(load(folder / "mvdream.safetensors", ModelOptions(dtype="float16")), reference)
    half.denoised(noise(half) * float("nan"), 401, half.condition(turntable(4)), 1.0)
    assert half._parts.unet.dtype == torch.float16


def test_channels_last_on_cuda_alone():
    conv = torch.nn.Conv2d(4, 8, 3)
    before = conv.weight.clone()
    for device in ("cpu", "mps"):
        assert devices.to_channels_last(conv, device).weight.is_contiguous()
    weight = devices.to_channels_last(conv, "cuda").weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert torch.equal(weight, before) and copy.deepcopy(conv).weight.stride() == weight.stride()


def test_the_command_line_says_it(monkeypatch):
    import argparse

    from microdreamer_core.cli.models import add_run_options, run_choices

    parser = argparse.ArgumentParser()
    add_run_options(parser)
    assert run_choices(parser.parse_args([]))["options"] == ModelOptions()
    given = run_choices(parser.parse_args(["--low-memory", "--no-graphs"]))["options"]
    assert given == dataclasses.replace(ModelOptions(), low_memory=True, graphs=False)
