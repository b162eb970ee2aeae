"""Reading checkpoints: layouts, averages, precisions, parts beside a file, memory, and refusals with their reasons."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers import tiny_checkpoints as tiny
from microdreamer_core.checkpoints import files as checkpoint_files
from microdreamer_core.checkpoints import load as checkpoints
from microdreamer_core.checkpoints.files import WeightFile, part_files
from microdreamer_core.checkpoints.load import ModelOptions, find, inspect, load
from microdreamer_core.errors import InputError

LAYOUTS = ("flat", "lightning", "safetensors", "folder")
INSIDE = {
    "mvdream": ("unet", "vae", "text"),
    "imagedream": ("unet", "vae", "text", "vision"),
    "zero123": ("unet", "vae", "vision", "camera"),
}


@pytest.fixture(scope="module")
def reference():
    """Every family's networks, read from the flat file."""
    return {}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_layout_gives_the_same_networks(family, layout, tmp_path, reference):
    path = tiny.write(tmp_path, family, layout)
    info = inspect(path)
    assert (info.family, info.inside, info.beside, info.missing) == (family, INSIDE[family], (), ())
    assert (info.ema, info.image_size, info.dtype) == (layout == "lightning", 64, "float32")
    assert info.layout == ("diffusers" if (family, layout) == ("zero123", "folder") else "original")
    weights = load(path, ModelOptions(ema=False)).networks().state_dict()
    expected = reference.setdefault(family, weights)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_averages_are_taken_where_there_are_any(tmp_path):
    path = tiny.write(tmp_path, "zero123", "lightning")
    plain, averaged = (load(path, ModelOptions(ema=ema)).networks().state_dict() for ema in (False, True))
    for name, value in plain.items():
        assert torch.equal(averaged[name], value * 0.5 if name.startswith("unet.") else value), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype, tmp_path):
    path = tiny.write(tmp_path, "imagedream", "safetensors")
    whole, half = (load(path, ModelOptions(dtype=d)).networks().state_dict() for d in ("auto", dtype))
    for name, value in half.items():
        assert value.dtype == getattr(torch, dtype) and whole[name].dtype == torch.float32
        assert torch.equal(value, whole[name].to(value.dtype)), name


@pytest.mark.parametrize(
    ("family", "name", "variant"),
    [
        ("zero123", "stable_zero123_c", "stable"),
        ("zero123", "zero123-xl", "xl"),
        ("zero123", "105000", "plain"),
        ("imagedream", "sd-v2.1-base-4view-ipmv", "pixel"),
        ("imagedream", "sd-v2.1-base-4view-ipmv-local", "local"),
        ("mvdream", "sd-v2.1-base-4view", ""),
    ],
)
def test_variants_go_by_name_unless_told(family, name, variant, tmp_path):
    path = tiny.write(tmp_path, family, "safetensors", name=name)
    assert inspect(path).variant == variant
    for other in checkpoints.VARIANTS[family]:
        assert inspect(path, ModelOptions(variant=other)).variant == other
    wrong = "local" if family == "zero123" else "stable"
    with pytest.raises(InputError, match=f"{family} has no variant '{wrong}'"):
        inspect(path, ModelOptions(variant=wrong))


@pytest.mark.parametrize("place", [".", "model"])
def test_parts_beside_a_file_are_found(place, tmp_path):
    """In the folder of the file, or in one named like it; as folders or as weight files."""
    folder = tiny.write(tmp_path, "imagedream", "folder", name="whole")
    path = tiny.write(tmp_path, "imagedream", "flat", name="model", without=("vae", "text", "vision"))
    lacking = inspect(path)
    assert lacking.inside == ("unet",) and len(lacking.missing) == 3
    with pytest.raises(InputError) as refusal:
        load(path)
    for words in ("kl-f8 (335 MB", "text tower of laion2b", "image tower of laion2b", str(tmp_path)):
        assert words in str(refusal.value)
    target = tmp_path / place
    target.mkdir(exist_ok=True)
    for part in ("text_encoder", "image_encoder"):
        shutil.copytree(folder / part, target / part)
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", target / "vae.safetensors")
    assert inspect(path).beside == ("vae", "text", "vision") and inspect(path).missing == ()
    expected = load(folder).networks().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load(path).networks().state_dict().items())


def test_a_tokenizer_folder_of_old_is_no_model_and_is_not_read(tmp_path):
    path = tiny.write(tmp_path, "mvdream", "safetensors")
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "tokenizer" / name).write_text("damaged")
    assert find(tmp_path) == [path]
    assert load(path).parts.text(["a bird"]).shape == (1, 77, 64)


def test_a_repository_may_come_in_shards_and_other_sets(tmp_path):
    whole = tiny.write(tmp_path, "mvdream", "folder", name="whole")
    sharded = tiny.write(tmp_path, "mvdream", "folder", name="sharded")
    stored = sharded / "unet" / "diffusion_pytorch_model.safetensors"
    file = WeightFile(stored)
    tensors = {name: file.read(name).clone() for name in file.shapes}
    file.close()
    stored.unlink()
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        save_file({n: tensors[n] for n in names}, stored.with_name(f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"))
    torch.save({"wrong": torch.zeros(1)}, stored.with_name("diffusion_pytorch_model.bin"))
    save_file({"wrong": torch.zeros(1)}, stored.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    assert len(part_files(stored.parent)) == 2
    expected = load(whole).networks().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load(sharded).networks().state_dict().items())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("layout", ["lightning", "safetensors"])
def test_loading_takes_little_more_memory_than_the_model(layout, tmp_path, monkeypatch):
    """A file of twice (with averages: four times) the model's size; ``benchmarks/loading.py`` measures larger ones."""
    monkeypatch.setattr(tiny, "WIDTH", 160)
    monkeypatch.setattr(checkpoint_files, "_MAPPED_AT_ONCE", 4 << 20)
    path = tiny.write(tmp_path, "zero123", layout)
    load(path)  # imports the libraries
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    model = load(path, ModelOptions(dtype="float16"))
    used = _memory("VmHWM") - before
    size = sum(t.numel() * t.element_size() for t in model.networks().state_dict().values()) / 2**20
    assert path.stat().st_size / 2**20 > 1.9 * size
    assert used < 1.1 * size + 24, (used, size)


def _memory(name):
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


# --- refusals ----------------------------------------------------------------------------------------------------------


class Forbidden:
    """Anything that a weight file has no business to hold."""

    def __reduce__(self):
        return (print, ("executed",))


def stable_diffusion():
    """SD 1.5's names: no cameras, four input channels."""
    tensors = {k: v for k, v in tiny.original("zero123").items() if not k.startswith("cc_projection")}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 4, 3, 3)
    return tensors


def _truncated(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


def _make_refused(kind, folder):
    """A file or folder of that kind."""
    path = folder / f"{kind}.ckpt"
    if kind == "stable diffusion":
        torch.save(stable_diffusion(), path)
    elif kind == "something else":
        path = path.with_suffix(".safetensors")
        save_file({"lora_up.weight": torch.zeros(2)}, path)
    elif kind == "cut safetensors":
        return _truncated(tiny.write(folder, "zero123", "safetensors"))
    elif kind == "cut torch":
        return _truncated(tiny.write(folder, "zero123", "lightning"))
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": Forbidden()}, protocol=2))
    elif kind == "foreign class":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Forbidden()}, path)
    elif kind == "empty folder":
        path = folder / "empty"
        path.mkdir()
    elif kind == "odd names":
        save_file({"a\nb\x1b[31m": torch.zeros(1), "c" * 3000: torch.zeros(1)}, path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "text":
        path = folder / "a.txt"
        path.write_text("x")
    elif kind == "html":
        path.write_text("<!doctype html><title>Not found</title>")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("stable diffusion", "a Stable Diffusion model without camera input"),
        ("something else", "no diffusion UNet .it begins with .lora_up.weight."),
        ("odd names", r"begins with 'a\\nb\\x1b\[31m', 'c{99}\)"),
        ("cut safetensors", "is not a whole safetensors file"),
        ("cut torch", "is cut off"),
        ("plain pickle", "is not a (whole )?torch checkpoint|foreign code"),
        ("foreign class", r"foreign code .*print.* which is refused"),
        ("empty folder", "no diffusion UNet in a subfolder unet"),
        ("list", "holds a list in place of named weights"),
        ("pointer", "only points to the file"),
        ("empty file", "is empty"),
        ("text", "A checkpoint ends in"),
        ("html", "html.ckpt is not a "),
        ("missing", "There is no model file"),
    ],
)
def test_what_is_no_checkpoint_of_ours_is_refused_with_the_reason(kind, reason, tmp_path, capsys):
    path = _make_refused(kind, tmp_path)
    for read in (inspect, load):
        with pytest.raises(InputError, match=reason) as refusal:
            read(path)
        assert str(refusal.value).endswith((".", ".)")) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
        assert "weights_only" not in str(refusal.value), "nobody is told how to run the file's code"
    assert "executed" not in capsys.readouterr().out


def test_incomplete_and_foreign_networks_are_refused(tmp_path):
    whole = tiny.original("zero123")
    name = "model.diffusion_model.middle_block.0.in_layers.0.weight"
    cases = {
        "lacks 1 of": {k: v for k, v in whole.items() if k != name},
        "of shape": {**whole, name: torch.ones(7)},
        "no place for": {**whole, "model.diffusion_model.middle_block.0.in_layers.9.weight": torch.ones(7)},
    }
    for i, (reason, tensors) in enumerate(cases.items()):
        save_file(tensors, tmp_path / f"{i}.safetensors")
        with pytest.raises(InputError, match=reason):
            load(tmp_path / f"{i}.safetensors")


def test_the_embedded_checkpoint_is_one_too():
    from microdreamer_core.diffusion.embedded.checkpoint import SHIPPED

    info = inspect(SHIPPED)
    assert (info.family, info.image_size, info.missing) == ("embedded", 64, ())
    assert load(SHIPPED).name == "embedded"


# --- files under other names, nested, wrapped and in float8 ------------------------------------------------------------


def networks(path):
    return load(path, ModelOptions(ema=False)).networks().state_dict()


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Names and tensors of a checkpoint, and its networks."""
    path = tmp_path_factory.mktemp("whole") / "zero123.safetensors"
    tensors = {name: value.clone() for name, value in tiny.original("zero123").items()}
    save_file(tensors, path)
    return tensors, networks(path)


def test_the_first_bytes_decide_not_the_ending(whole, tmp_path):
    tensors, expected = whole
    save_file(tensors, tmp_path / "a.ckpt")
    torch.save({"state_dict": tensors}, tmp_path / "b.safetensors")
    torch.save(tensors, tmp_path / "c.safetensors", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert inspect(path).family == "zero123" and equal(networks(path), expected), path.name
    (tmp_path / "d.safetensors").write_bytes(b"<!doctype html>")
    with pytest.raises(InputError, match=r"d.safetensors is not a whole safetensors file"):
        inspect(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": {"state_dict": tensors, "epoch": 3}},
        lambda tensors: {"model_state_dict": tensors, "optimizer": {"lr": torch.zeros(1)}},
        lambda tensors: {"model": {"module": tensors}},
        lambda tensors: {"state_dict": {f"module.{name}": value for name, value in tensors.items()}},
        lambda tensors: {f"_orig_mod.module.{name}": value for name, value in tensors.items()},
    ],
)
def test_nested_and_wrapped_weights_are_found(whole, tmp_path, wrap):
    tensors, expected = whole
    torch.save(wrap(tensors), tmp_path / "zero123.ckpt")
    assert equal(networks(tmp_path / "zero123.ckpt"), expected)


def test_wrapped_safetensors(whole, tmp_path):
    tensors, expected = whole
    save_file({f"module.{name}": value for name, value in tensors.items()}, tmp_path / "a.safetensors")
    assert equal(networks(tmp_path / "a.safetensors"), expected)


def test_weights_nowhere_to_be_found_are_told_by_their_place(tmp_path):
    torch.save({"generator": {"net": {"a": torch.zeros(1)}}, "step": 1}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="no weights by name but 'generator', 'step'; save the model's state_dict alone"):
        inspect(tmp_path / "a.ckpt")


FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize("ending", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_float8_with_scales(whole, tmp_path, ending, kind):
    """Linear and convolution weights in float8 with one scale each, as ComfyUI stores them."""
    tensors, _ = whole
    stored, rounded = {}, dict(tensors)
    for name, value in tensors.items():
        if not (name.startswith("model.diffusion_model") and name.endswith("weight") and value.ndim > 1):
            stored[name] = value
            continue
        scale = value.abs().amax() / 448
        stored[name] = (value / scale).to(FLOAT8)
        stem = name.removesuffix(".weight")
        stored |= {f"{stem}.{ending}": scale, f"{stem}.scale_input": torch.ones(())}
        rounded[name] = stored[name].float() * scale
    stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(FLOAT8)
    path = tmp_path / f"zero123.{kind}"
    save_file(stored, path) if kind == "safetensors" else torch.save(stored, path)
    save_file(rounded, tmp_path / "rounded.safetensors")
    info = inspect(path)
    assert (info.dtype, info.missing) == ("float8_e4m3fn", ())
    assert equal(networks(path), networks(tmp_path / "rounded.safetensors"))


def test_quantised_weights_are_refused_alike(whole, tmp_path):
    tensors = dict(whole[0])
    name = next(name for name in tensors if name.startswith("model.diffusion_model") and tensors[name].ndim == 2)
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, tmp_path / "a.safetensors")
    for read in (inspect, load):
        with pytest.raises(InputError, match="is quantised .*int8.*get it in float32"):
            read(tmp_path / "a.safetensors")


def test_a_scale_that_does_not_fit_is_refused(whole, tmp_path):
    tensors = dict(whole[0])
    name = next(name for name in tensors if name.startswith("model.diffusion_model") and tensors[name].ndim == 2)
    tensors[name.removesuffix("weight") + "scale_weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="a scale of another shape"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".sft"])
def test_further_endings_of_weight_files(tmp_path, suffix):
    written = tiny.write(tmp_path, "zero123", "safetensors" if suffix == ".sft" else "lightning", name="a")
    path = written.rename(tmp_path / f"stable_zero123{suffix}")
    assert inspect(path).variant == "stable" and inspect(path).family == "zero123"
