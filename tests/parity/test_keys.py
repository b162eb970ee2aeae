"""Every name of the full-size checkpoints has its place in our modules: nothing missing, nothing left over, shapes equal."""

import json

import pytest
import torch

from helpers.fixture_files import OWN, full_size
from microdreamer_core.diffusion import encoders, keys, unet

UNETS = (
    "mvdream_original",
    "mvdream_ashawkey_unet",
    "mvdream_sd15_original_unet",
    "imagedream_original",
    "imagedream_ashawkey_unet",
    "zero123_original",
    "zero123_diffusers_unet",
)
CHECKPOINTS = ("mvdream_original", "imagedream_original", "zero123_original")


def part(listed, component, ema=False):
    return {short: listed[full] for short, full in keys.component(listed, component, ema).items()}


def assert_fills(module, mapping, shapes):
    """On the meta device: what the map makes of tensors of these shapes is the module's state dict."""
    taken = {}
    for old, targets in mapping.items():
        for target in targets:
            assert target.name not in taken
            taken[target.name] = tuple(target.take(torch.empty(shapes[old], device="meta")).shape)
    assert taken == {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    shapes = part(full_size(name), "unet")
    assert_fills(unet.build_unet(unet.UNetConfig.from_shapes(shapes)), keys.unet_map(shapes), shapes)


def test_unet_settings():
    """Every setting of the published Zero123 UNet in diffusers' layout; it is the base of the other families' too."""
    published = json.loads((OWN / "keys" / "zero123_diffusers_unet_config_full.json").read_text())
    network = unet.build_unet(unet.UNetConfig.from_shapes(full_size("zero123_diffusers_unet")))
    wanted = {name: value for name, value in published.items() if not name.startswith("_") and name != "sample_size"}
    wanted["attention_head_dim"] = [8] * 4  # diffusers spreads the 8
    got = {name: network.unet.config[name] for name in wanted}
    assert json.loads(json.dumps(got)) == wanted


@pytest.mark.parametrize("name", ["mvdream_imagedream", "zero123"])
def test_unet_names(name):
    """The very names that diffusers' own converter gives."""
    expected = full_size(f"map_{name}_to_diffusers")
    got = keys.unet_map(expected)
    names = {old: targets[0].name.removeprefix("unet.").replace(".processor.", ".") for old, targets in got.items()}
    assert names == {old: new.replace(".processor.", ".") for old, new in expected.items()}


def test_unet_averages():
    """Running averages are read in place of the weights, one for each."""
    listed = full_size("zero123_original")
    assert keys.has_ema(listed) and not keys.has_ema(full_size("mvdream_original"))
    plain, averaged = (keys.component(listed, "unet", ema) for ema in (False, True))
    assert plain.keys() == averaged.keys()
    assert len(set(averaged.values())) == len(averaged) == 686
    assert all(full.startswith(keys.EMA_PREFIX) for full in averaged.values())
    assert all(listed[plain[short]] == listed[averaged[short]] for short in plain)
    assert keys.component(full_size("mvdream_original"), "unet", ema=True) == keys.component(
        full_size("mvdream_original"), "unet"
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_vae(name):
    shapes = part(full_size(name), "vae")
    assert_fills(encoders.build_vae(shapes), keys.vae_map(shapes), shapes)


def test_vae_of_diffusers():
    shapes = full_size("vae_diffusers")
    assert_fills(encoders.build_vae(shapes), keys.vae_map(shapes), shapes)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    aged = {}
    for name, shape in shapes.items():
        for new_part, old_part in old.items():
            name = name.replace(f"attentions.0.{new_part}.", f"attentions.0.{old_part}.")
        aged[name] = shape
    assert aged.keys() != shapes.keys()
    assert_fills(encoders.build_vae(aged), keys.vae_map(aged), aged)


@pytest.mark.parametrize("name", ["mvdream_original", "imagedream_original"])
def test_text(name):
    shapes = part(full_size(name), "text")
    model = encoders.build_clip_text(shapes)
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (23, 16)
    assert_fills(model, keys.clip_text_map(shapes, model.state_dict()), shapes)


@pytest.mark.parametrize(
    ("name", "activation", "layers"), [("imagedream_original", "gelu", 32), ("zero123_original", "quick_gelu", 24)]
)
def test_vision(name, activation, layers):
    shapes = part(full_size(name), "vision")
    model = encoders.build_clip_vision(shapes, activation=activation)
    assert (model.config.num_hidden_layers, model.config.num_attention_heads, model.config.image_size) == (layers, 16, 224)
    assert_fills(model, keys.clip_vision_map(shapes, model.state_dict()), shapes)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("extra", [0, 1])
def test_text_of_transformers(prefix, extra):
    """Folders saved by any transformers version, with the unread block (24 of them) and without."""
    original = part(full_size("mvdream_original"), "text")
    reference = {name.removeprefix("text_model."): shape for name, shape in meta_shapes(encoders.build_clip_text(original))}
    last = {name.replace(".22.", ".23."): shape for name, shape in reference.items() if ".22." in name} if extra else {}
    shapes = {prefix + name: shape for name, shape in (reference | last | {"embeddings.position_ids": (1, 77)}).items()}
    model = encoders.build_clip_text(shapes)
    assert_fills(model, keys.clip_text_map(shapes, model.state_dict()), shapes)


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_vision_of_transformers(prefix):
    """A tower without projection, as in ImageDream's folder."""
    original = part(full_size("imagedream_original"), "vision")
    original.pop("proj")
    reference = meta_shapes(encoders.build_clip_vision(original, activation="gelu"))
    shapes = {prefix + name.removeprefix("vision_model."): shape for name, shape in reference}
    model = encoders.build_clip_vision(shapes, activation="gelu")
    assert not hasattr(model, "visual_projection")
    assert_fills(model, keys.clip_vision_map(shapes, model.state_dict()), shapes)


@pytest.mark.parametrize("layout", ["cc_projection.", "proj.", "projection."])
def test_camera_projection(layout):
    shapes = {f"{layout}weight": (768, 772), f"{layout}bias": (768,)}
    shapes = part(shapes, "camera")
    with torch.device("meta"):
        module = torch.nn.Linear(772, 768)
    assert_fills(module, keys.camera_map(shapes), shapes)


def test_component_of_bare_files():
    """Files of a repository's folders and a whole CLIP in one file, in either layout, are found under their own names."""
    for name, which in (("mvdream_ashawkey_unet", "unet"), ("zero123_diffusers_unet", "unet"), ("vae_diffusers", "vae")):
        listed = full_size(name)
        assert keys.component(listed, which) == {short: short for short in listed}
        assert not any(keys.component(listed, other) for other in keys.PREFIXES if other != which)
    whole = {n.removeprefix("clip_model.model."): s for n, s in full_size("imagedream_original").items() if "clip_model" in n}
    for which in ("text", "vision"):
        assert part(whole, which) == part(full_size("imagedream_original"), which)
    assert not any(keys.component(whole, other) for other in ("unet", "vae", "camera"))
    saved = {"text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.bias", "logit_scale"}
    seen = {"vision_model.embeddings.class_embedding", "vision_model.encoder.layers.0.mlp.fc1.bias", "visual_projection.weight"}
    assert keys.component(saved | seen, "vision").keys() == seen
    assert keys.component(saved | seen, "text").keys() == saved


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_no_name_is_overlooked(name):
    """What belongs to no component is a schedule table or a running average, or Zero123's remains of a text tower."""
    listed = full_size(name)
    taken = {full for which in keys.PREFIXES for full in keys.component(listed, which).values()}
    rest = [n for n in listed if n not in taken and "." in n and not n.startswith(keys.EMA_PREFIX)]
    assert all(name == "zero123_original" and n.startswith("cond_stage_model.model.") for n in rest)


def meta_shapes(module):
    return [(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()]
