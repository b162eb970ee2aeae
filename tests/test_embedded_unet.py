"""The shipped model's own UNet against diffusers'."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from microdreamer_core.diffusion.embedded.checkpoint import load_checkpoint
from microdreamer_core.diffusion.embedded.packed import PackedDenoiser, pack
from microdreamer_core.diffusion.embedded.unet import UNet
from microdreamer_core.util.threads import torch_threads


def _theirs(channels, widths, head_dim, context, pose):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from microdreamer_core.diffusion.unet import TextAttention, attend_across_views

    levels = len(widths)
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=context,
        attention_head_dim=tuple(width // head_dim for width in widths),
        norm_num_groups=16,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=pose,
    )
    attend_across_views(unet, lambda _: TextAttention())
    return unet.eval()


def _inputs(channels, context, pose, side, frames=5, objects=2):
    rng = torch.Generator().manual_seed(3)
    rows = frames * objects
    x = torch.randn(rows, channels, side, side, generator=rng)
    t = torch.randint(0, 1000, (rows,), generator=rng)
    return x, t, torch.randn(objects, 4, context, generator=rng), torch.randn(rows, pose, generator=rng)


@pytest.mark.parametrize(
    ("widths", "head_dim", "side"), [((16,), 8, 4), ((32, 48), 16, 8), ((48, 80, 96), 24, 8), ((16, 32), 8, 7)]
)
def test_equals_diffusers_with_any_weights(widths, head_dim, side):
    sizes = (6, widths, head_dim, 12, 23)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        theirs = _theirs(*sizes)
        ours = UNet(*sizes).eval()
    ours.load_state_dict(theirs.state_dict())
    x, t, tokens, poses = _inputs(6, 12, 23, side)
    with torch.no_grad():
        expected = theirs(
            x, t, tokens.repeat_interleave(5, 0), class_labels=poses, cross_attention_kwargs={"num_frames": 5}
        ).sample
        got = ours(x, t, tokens, poses, 5)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_equals_diffusers_with_the_shipped_weights():
    config, _, denoiser = load_checkpoint()
    pose = denoiser.unet.class_embedding.linear_1.in_features
    channels = 3 * config.channels
    theirs = _theirs(channels, config.widths, config.head_dim, config.context, pose)
    theirs.load_state_dict(denoiser.unet.state_dict())
    x, t, tokens, poses = _inputs(channels, config.context, pose, config.image_size // config.patch)
    with torch.no_grad():
        expected = theirs(
            x, t, tokens.repeat_interleave(5, 0), class_labels=poses, cross_attention_kwargs={"num_frames": 5}
        ).sample
        got = denoiser.unet(x, t, tokens, poses, 5)
    assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_loading_the_shipped_model_imports_no_model_library():
    code = (
        "import sys; from microdreamer_core.checkpoints.registry import load_model; load_model('embedded', 'cpu'); "
        "print([name for name in ('diffusers', 'transformers', 'accelerate', 'scipy', 'numba') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def shipped():
    config, _, denoiser = load_checkpoint()
    rng = torch.Generator().manual_seed(5)
    shape = (config.channels, config.image_size // config.patch, config.image_size // config.patch)
    inputs = {
        "latents": torch.randn(2, config.views, *shape, generator=rng),
        "t": torch.tensor([700, 700]),
        "reference": torch.randn(1, *shape, generator=rng).expand(2, -1, -1, -1),
        "cameras": torch.randn(2, config.views + 1, 16, generator=rng),
        "keep": torch.tensor([0.0, 1.0]),
    }
    return denoiser, inputs


@pytest.fixture
def packed(shipped):
    denoiser, inputs = shipped
    with torch.no_grad():
        parts = pack(denoiser, inputs)
    if parts is None:
        pytest.skip("oneDNN's operations do not work here")
    return parts


@torch.no_grad()
def test_the_packed_network_equals_the_plain_one(shipped, packed):
    denoiser, inputs = shipped
    for seed in range(3):  # other tokens and poses than those it has folded before
        rng = torch.Generator().manual_seed(seed)
        given = {**inputs, "reference": torch.randn(inputs["reference"].shape, generator=rng)}
        given["cameras"] = torch.randn(inputs["cameras"].shape, generator=rng)
        expected = denoiser(**given)
        assert float((denoiser(**given, parts=packed) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
def test_the_packed_network_gives_the_same_bits_for_any_number_of_threads(shipped, packed, rows):
    denoiser, inputs = shipped
    given = {name: value[-rows:] for name, value in inputs.items()}
    made = []
    for count in (1, 2, 3, 5):
        with torch_threads(count):
            made.append(denoiser(**given, parts=packed))
    assert all(torch.equal(made[0], other) for other in made[1:])


def test_only_calls_without_gradients_are_packed_and_moved_weights_again(shipped, monkeypatch):
    from microdreamer_core.diffusion.embedded import packed as module

    denoiser, inputs = shipped
    calls = []
    monkeypatch.setattr(module, "pack", lambda *_: calls.append(1))
    call = PackedDenoiser(denoiser)
    with torch.enable_grad():
        call(**inputs)
    assert calls == []
    with torch.no_grad():
        first, second = call(**inputs), call(**inputs)
        assert calls == [1] and torch.equal(first, second)
        next(denoiser.parameters()).data = next(denoiser.parameters()).data.clone()
        call(**inputs)
    assert calls == [1, 1]


def test_a_machine_without_these_operations_runs_the_plain_network(shipped, monkeypatch):
    from microdreamer_core.diffusion.embedded import packed as module

    denoiser, inputs = shipped

    def missing(_):
        raise AttributeError("no such operation")

    monkeypatch.setattr(module, "_conv", missing)
    with torch.no_grad():
        assert torch.equal(PackedDenoiser(denoiser)(**inputs), denoiser(**inputs))
