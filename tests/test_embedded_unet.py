"""The shipped model's own UNet against diffusers'."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from microdreamer_core.diffusion.embedded.checkpoint import load_checkpoint
from microdreamer_core.diffusion.embedded.unet import UNet


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
