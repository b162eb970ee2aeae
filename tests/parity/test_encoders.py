"""The autoencoder and CLIP's towers against the originals, CLIP's preprocessing and its tokenizer."""

import gzip
import json

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


MERGES = ["c a", "ca t</w>", "h a", "ha t</w>"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A tokenizer folder with a few merges, whose settings call "!" a padding mark as some published ones do."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "tokenizer").mkdir()
    tokenizer._write_files(folder / "tokenizer", MERGES)
    mark = {"content": "!", "special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "!", "added_tokens_decoder": {"0": mark}}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_tokenize(vocabulary):
    ids = json.loads((vocabulary / "tokenizer" / "vocab.json").read_text())
    assert ids["!"] == encoders.PAD_TOKEN and len(ids) == 512 + len(MERGES) + 2
    ours = encoders.ClipText(None, tokenizer.load_tokenizer(["nowhere", vocabulary]))
    start, end = ids["<|startoftext|>"], ids["<|endoftext|>"]
    words = [ids["cat</w>"], ids["!</w>"], ids["hat</w>"]]
    got = ours.tokenize(["A  Cat!hat", ""])
    assert got.shape == (2, 77)
    assert got[0].tolist() == [start, ids["a</w>"], *words, end] + [0] * 71
    assert got[1].tolist() == [start, end] + [0] * 75


def test_long_prompts_keep_their_end_mark(vocabulary, caplog):
    ours = encoders.ClipText(None, tokenizer.load_tokenizer([vocabulary]))
    got = ours.tokenize(["cat " * 75, "cat " * 76])
    assert torch.equal(got[0], got[1])
    assert got[0, 76] == ours.tokenize([""])[0, 1]
    assert caplog.text.count("longer than") == 1


def test_vocabulary_of_open_clip(vocabulary, tmp_path, monkeypatch):
    """open_clip's compressed list gives the very tokenizer that the two files give."""
    with gzip.open(tmp_path / "bpe_simple_vocab_16e6.txt.gz", "wt") as file:
        file.write("\n".join(['"a header', *MERGES]))
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").rename(tmp_path / "open_clip" / "bpe_simple_vocab_16e6.txt.gz")
    (tmp_path / "open_clip" / "__init__.py").write_text("raise ImportError('needs torchvision')")
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["a cat in a hat!", "ü 12"]
    packaged, filed = (encoders.ClipText(None, tokenizer.load_tokenizer(places)) for places in ([], [vocabulary]))
    assert torch.equal(packaged.tokenize(texts), filed.tokenize(texts))


def test_missing_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "_open_clip_merges", lambda: None)
    with pytest.raises(InputError, match=r"vocab.json and merges.txt.*tokenizer"):
        tokenizer.load_tokenizer([tmp_path])
