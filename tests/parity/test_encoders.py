"""The autoencoder and CLIP's towers against the originals, CLIP's preprocessing and its tokenizer."""

import hashlib

import pytest
import torch

from helpers.fixture_files import Fixture, close, filled, shapes
from microdreamer_core.diffusion import encoders, keys, tokenizer
from microdreamer_core.errors import InputError

MOMENTS, DECODE, CLIP = 1e-5, 3e-5, 1e-5


@pytest.fixture(scope="module")
def vae():
    fixture = Fixture("vae")
    weights = fixture.group("sd")
    model = filled(encoders.build_vae(shapes(weights)), keys.vae_map(weights), weights)
    assert fixture.json("scale_factor") == encoders.SCALE
    return fixture.group("inp"), fixture.group("out"), encoders.Vae(model)


def as_images(pixels):
    return pixels.permute(0, 2, 3, 1)


def test_vae_encode(vae):
    inp, out, ours = vae
    images = as_images(inp["image_pm1"]).add(1).div(2)
    close(ours.encode(images), out["scaled_mode"], MOMENTS)
    close(ours.encode(images, scaled=False), out["mean"], MOMENTS)
    with torch.no_grad():
        distribution = ours.model.encode(inp["image_pm1"]).latent_dist
    close(distribution.parameters, out["moments"], MOMENTS)
    close(distribution.logvar, out["logvar"], MOMENTS)


def test_vae_refuses_odd_sizes(vae):
    with pytest.raises(InputError, match="multiple of"):
        vae[2].encode(torch.zeros(1, 32, 31, 3))


def test_vae_decode(vae):
    _, out, ours = vae
    images = ours.decode(out["mean"] * encoders.SCALE)
    close(images, as_images(out["decode_mode"]).add(1).div(2).clamp(0, 1), DECODE)
    with torch.no_grad():
        close(ours.model.decode(out["mean"]).sample, out["decode_mode"], DECODE)
        close(ours.model.decode(out["scaled_mode"] / encoders.SCALE).sample, out["decode_scaled"], DECODE)


@pytest.fixture(scope="module")
def clip():
    return Fixture("clip")


def test_clip_text(clip):
    weights = clip.group("openclip_sd")
    weights = {name: value for name, value in weights.items() if not name.startswith("visual.")}
    model = encoders.build_clip_text(shapes(weights), heads=clip.json("text")["heads"])
    filled(model, keys.clip_text_map(weights, model.state_dict()), weights)
    ours = encoders.ClipText(model, None)
    close(ours.encode(clip.group("inp")["ids"]), clip.group("out")["text_penultimate_lnfinal"], CLIP)


def vision(clip, group, prefix, activation):
    stored = {name.removeprefix(prefix): v for name, v in clip.group(group).items() if name.startswith(prefix)}
    sizes = clip.json("vision")
    model = encoders.build_clip_vision(shapes(stored), activation=activation, heads=sizes["width"] // sizes["head_width"])
    return encoders.ClipVision(filled(model, keys.clip_vision_map(stored, model.state_dict()), stored))


def test_clip_vision_of_open_clip(clip):
    ours, pixels, out = vision(clip, "openclip_sd", "visual.", "gelu"), clip.group("inp")["pixels"], clip.group("out")
    close(ours.hidden_of(pixels), out["image_hidden_penultimate"], CLIP)
    close(ours.embed_pixels(pixels), out["image_embed_openclip"], CLIP)


def test_clip_vision_of_openai(clip):
    ours = vision(clip, "openai_sd", "cond_stage_model.model.visual.", "quick_gelu")
    pixels = clip.group("inp")["pixels"]
    close(ours.embed_pixels(pixels), clip.group("out")["image_embed_openai"], CLIP)
    assert ours.image_size == pixels.shape[-1]
    mean, std = (torch.tensor(values) for values in (encoders.CLIP_MEAN, encoders.CLIP_STD))
    images = as_images(pixels) * std + mean
    torch.testing.assert_close(ours.embed(images), clip.group("out")["image_embed_openai"], rtol=0, atol=1e-4)


def test_pixels_are_clips():
    """Against transformers' image processor, which rounds to bytes on the way."""
    from transformers import CLIPImageProcessor

    generator = torch.Generator().manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 24, 24, generator=generator), (256, 256), mode="bilinear")
    images = as_images((smooth * 255).round() / 255)
    expected = CLIPImageProcessor()([(image * 255).round().byte().numpy() for image in images], return_tensors="pt")
    got = encoders.clip_pixels(images)
    assert got.shape == (2, 3, 224, 224)
    torch.testing.assert_close(got, expected["pixel_values"], rtol=0, atol=0.02)  # a byte is 0.015 here


def test_build_refuses_another_models_weights():
    with pytest.raises(InputError, match="encoder.conv_in.weight"):
        encoders.build_vae({"some.weight": (3, 3)})
    with pytest.raises(InputError, match="token_embedding.weight"):
        encoders.build_clip_text({"some.weight": (3, 3)})
    with pytest.raises(InputError, match="conv1.weight"):
        encoders.build_clip_vision({"some.weight": (3, 3)}, activation="gelu")
    with pytest.raises(InputError, match="no projection"):
        encoders.ClipVision(torch.nn.Identity()).embed_pixels(torch.zeros(1, 3, 28, 28))


@pytest.fixture(scope="module")
def text():
    return encoders.ClipText(None, tokenizer.load_tokenizer())


def test_the_vocabulary_is_openais_whole(text):
    published = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert hashlib.sha256(tokenizer.VOCABULARY.read_bytes()).hexdigest() == published
    assert "Copyright (c) 2021 OpenAI" in tokenizer.VOCABULARY.with_name("LICENSE-CLIP").read_text()
    ids = text.tokenizer.get_vocab()
    assert sorted(ids.values()) == list(range(49408))
    expected = {"!": encoders.PAD_TOKEN, "!</w>": 256, "in": 512, "jekyll</w>": 49405, "<|startoftext|>": 49406}
    assert {word: ids[word] for word in expected} == expected


def test_tokenize(text):
    """Ids of the original; "!" is a word, though some repositories' settings make it a padding mark."""
    got = text.tokenize(["A photo  of a Cat!hat", ""])
    assert got.shape == (2, 77)
    assert got[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 256, 3801, 49407] + [0] * 68
    assert got[1].tolist() == [49406, 49407] + [0] * 75


def test_long_prompts_keep_their_end_mark(text, caplog):
    got = text.tokenize(["cat " * 75, "cat " * 76])
    assert torch.equal(got[0], got[1])
    assert got[0, 76] == text.tokenize([""])[0, 1]
    assert caplog.text.count("longer than") == 1
