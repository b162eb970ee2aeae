"""CLIP similarity with a tiny random CLIP: pictures prepared as CLIP's own, embeddings equal to transformers' own, the node and
the command."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from helpers import host_stand_in as stand_in
from helpers import node_graphs
from helpers.tiny_clip import SIZE, write_clip
from microdreamer_core.cli import main as cli
from microdreamer_core.diffusion.encoders import clip_pixels
from microdreamer_core.errors import InputError
from microdreamer_core.evaluation.clip_similarity import clip_kind, default_clip, load_clip, similarity, views_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "tiny")


def pictures(*shape, seed=0):
    """Smooth enough that resizing has something to keep."""
    small = torch.rand(shape[0], 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(small, shape[1:3], mode="bilinear")
    return (large * 255).round().div(255).permute(0, 2, 3, 1)


@pytest.mark.parametrize("height, width", [(64, 64), (50, 80), (91, 40), (SIZE, SIZE), (20, 24)])
def test_pictures_are_prepared_as_pillow_does(height, width):
    images = pictures(2, height, width)
    theirs = []
    for image in images:
        pillow = Image.fromarray((image.numpy() * 255 + 0.5).astype(np.uint8))
        short = min(height, width)
        # CLIP's own: the shorter side to the size, whole pixels, the middle cut out
        shape = (SIZE, int(SIZE * height / short)) if width == short else (int(SIZE * width / short), SIZE)
        pillow = pillow.resize(shape, Image.Resampling.BICUBIC)
        left, top = (shape[0] - SIZE) // 2, (shape[1] - SIZE) // 2
        theirs.append(np.asarray(pillow.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255)
    ours = clip_pixels(images, SIZE, (0.0,) * 3, (1.0,) * 3).permute(0, 2, 3, 1)
    assert float((ours - torch.from_numpy(np.stack(theirs))).abs().max()) < 1.5 / 255


def test_pixels_are_normalised():
    white = clip_pixels(torch.ones(1, 8, 8, 4), 8)
    assert white.shape == (1, 3, 8, 8)
    expected = [(1 - m) / s for m, s in ((0.48145466, 0.26862954), (0.4578275, 0.26130258), (0.40821073, 0.27577711))]
    assert white[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_embeddings_are_those_of_transformers(folder):
    clip = load_clip(folder)
    assert (clip.size, clip.mean, clip.std) == (SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images, texts = pictures(3, 40, 40), ["a bird", "a red bird in a tree"]
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    assert tokens["input_ids"].shape[1] == 12, "the longer prompt is cut off"
    own = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = own(pixel_values=clip_pixels(images, SIZE, clip.mean, clip.std), **tokens)
    views, prompts = clip.embed_images(images), clip.embed_texts(texts)
    assert torch.allclose(views, out.image_embeds, atol=1e-6) and torch.allclose(prompts, out.text_embeds, atol=1e-6)
    assert not torch.allclose(prompts[0], prompts[1], atol=1e-3)
    cosines = out.logits_per_image / own.logit_scale.exp()
    assert torch.allclose(similarity(views, prompts[:1]), cosines[:, 0], atol=1e-5)
    assert torch.allclose(similarity(views, prompts), cosines.mean(1), atol=1e-5)


def test_a_picture_is_most_like_itself(folder):
    views = load_clip(folder).embed_images(torch.cat([pictures(1, 40, 40, seed=s) for s in range(4)]))
    scores = similarity(views, views[2:3])
    assert float(scores[2]) == pytest.approx(1, abs=1e-5) and int(scores.argmax()) == 2


def test_a_vision_model_without_text(folder, tmp_path):
    config = transformers.CLIPVisionConfig(**transformers.CLIPConfig.from_pretrained(folder).vision_config.to_dict())
    config.projection_dim = 24
    with torch.random.fork_rng():
        vision = transformers.CLIPVisionModelWithProjection(config).eval()
    vision.save_pretrained(tmp_path)
    images = pictures(2, 40, 40)
    clip = load_clip(tmp_path)
    expected = vision(pixel_values=clip_pixels(images, SIZE)).image_embeds
    assert torch.allclose(clip.embed_images(images), torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    with pytest.raises(InputError, match="has no text encoder"):
        clip.embed_texts(["a bird"])


def test_folders_that_hold_no_clip(folder, tmp_path):
    with pytest.raises(InputError, match="holds no CLIP"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert clip_kind(tmp_path) is None and clip_kind(folder) == "clip"
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (copied / name).unlink()
    with pytest.raises(InputError, match="copy has no tokenizer"):
        load_clip(copied).embed_texts(["a bird"])
    weights = safetensors.torch.load_file(copied / "model.safetensors")
    del weights["visual_projection.weight"]
    safetensors.torch.save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks weights, among them visual_projection.weight"):
        load_clip(copied)
    (copied / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_clip(copied)
    (copied / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model\.safetensors"):
        load_clip(copied)
    with pytest.raises(InputError, match="one model, got 4 and 5"):
        similarity(torch.ones(1, 4), torch.ones(1, 5))


# --- the node --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(host):
    """The node, a field and what it is asked."""
    write_clip(host.base / "models" / "clip_vision" / "tiny")
    graph = {
        "1": {"class_type": "MicroDreamerLoadModel", "inputs": {"checkpoint": "small.safetensors"}},
        "2": {"class_type": "MicroDreamerNewGaussians", "inputs": {"model": ["1", 0], "num_points": 200}},
    }
    field = node_graphs.kept(host, node_graphs.keep(graph, "2"))
    inputs = {"field": field, "clip": "clip_vision/tiny", "size": 48}

    def run(**changed):
        with torch.inference_mode():
            return host.nodes["MicroDreamerCLIPSimilarity"].execute(**inputs | changed)

    return run


def test_scores_of_picture_and_prompt(host, judged, folder):
    image = pictures(1, 40, 40)
    host.loads = 0
    output = judged(image=image, prompt=" a bird ")
    image_score, prompt_score, views, report = output.args
    clip = load_clip(folder)
    seen = clip.embed_images(views)
    assert views.shape == (8, 48, 48, 3) and host.loads == 1
    assert image_score == pytest.approx(float((seen @ clip.embed_images(image).T).mean()), abs=1e-6)
    assert prompt_score == pytest.approx(float((seen @ clip.embed_texts(["a bird"]).T).mean()), abs=1e-6)
    assert f"{image_score:.4f}" in report and f"{prompt_score:.4f}" in report and output.ui == {"text": [report]}
    only, none, *_ = judged(image=image, views=1).args
    assert math.isnan(none) and not math.isnan(only)


def test_a_mesh_and_the_hosts_own_model(host, judged):
    mesh = importlib.import_module(f"{stand_in.PACK}.microdreamer_core.mesh").Mesh(
        torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]])
    )
    native = importlib.import_module(f"{stand_in.PACK}.nodes.types").to_native_mesh(mesh)
    embeds = torch.tensor([[3.0, 4.0]])
    vision = type("Vision", (), {"encode_image": lambda self, x: {"image_embeds": embeds.expand(len(x), 2)}})()
    score, *_ = judged(
        field=None, mesh=native, image=pictures(1, 9, 9), clip="linked CLIP_VISION", clip_vision=vision, views=2
    ).args
    assert score == pytest.approx(1)
    with pytest.raises(ValueError, match="has no text encoder, got a prompt"):
        judged(prompt="a bird", clip="linked CLIP_VISION", clip_vision=vision)


def test_what_does_not_fit_together(host, judged):
    image = pictures(1, 9, 9)
    assert "clip_vision/tiny" in host.nodes["MicroDreamerCLIPSimilarity"].define_schema().inputs[4].options["options"]
    with pytest.raises(ValueError, match="CLIP Similarity: There is nothing to compare with"):
        judged(prompt="  ")
    with pytest.raises(ValueError, match="CLIP Similarity: Either a field or a mesh is rendered, got none"):
        judged(field=None, image=image)
    with pytest.raises(ValueError, match="a CLIP_VISION is not linked; link one, or choose a folder"):
        judged(image=image, clip="linked CLIP_VISION")
    with pytest.raises(ValueError, match="a CLIP_VISION is linked; choose 'linked CLIP_VISION'"):
        judged(image=image, clip_vision=object())
    with pytest.raises(ValueError, match="There is no CLIP 'bogus'"):
        judged(image=image, clip="bogus")


# --- the command -----------------------------------------------------------------------------------------------------

SPLAT = Path(__file__).resolve().parent.parent / "samples" / "bird_rough.ply"


@pytest.fixture
def models(folder, tmp_path, monkeypatch):
    """A models folder with one CLIP."""
    shutil.copytree(folder, tmp_path / "models" / "clip" / "tiny")
    monkeypatch.setenv("MICRODREAMER_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def run(capsys, *args):
    """(exit code, stdout, stderr) of the command."""
    code = cli.main(["clip-similarity", *map(str, args)])
    return code, *capsys.readouterr()


def box(path: Path) -> Path:
    """A thin slab off the origin: from the front it is another shape than from the side."""
    import trimesh

    trimesh.creation.box((1.0, 0.6, 0.1)).apply_translation((2.0, -1.0, 0.5)).export(path)
    return path


def test_the_command_scores_splats_and_meshes(models, folder, tmp_path, capsys):
    from microdreamer_core.cameras import orbit_cameras
    from microdreamer_core.io.mesh_files import read_mesh
    from microdreamer_core.render.mesh import render_mesh

    mesh = box(tmp_path / "slab.glb")
    code, out, _ = run(capsys, SPLAT, mesh, "--prompt", "a bird", "--size", 40, "--json", tmp_path / "new" / "scores.json")
    assert code == cli.DONE
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert (scores["clip"], scores["prompt"], scores["image"], scores["elevation"]) == ("tiny", "a bird", None, 0)
    assert [result["file"] for result in scores["results"]] == [str(SPLAT), str(mesh)]
    for result, line in zip(scores["results"], out.splitlines()[2:], strict=True):
        values = torch.tensor(result["views"], dtype=torch.float64)
        assert result["mean"] == pytest.approx(float(values.mean()), abs=1e-6)
        assert result["deviation"] == pytest.approx(float(values.std()), abs=1e-6)
        shown = [f"{value:.4f}" for value in (result["mean"], result["deviation"], *result["views"])]
        assert line.split() == [result["file"], *shown]
    # the same by hand, as the released scripts/cal_sim.py has kiui look: the box scaled to ±0.9, distance 3, 49 degrees
    cameras = orbit_cameras(0.0, torch.arange(8) * 45.0, 3.0, 49.0, 40)
    clip = load_clip(folder)
    slab = read_mesh(mesh)
    slab = replace(slab, vertices=(slab.vertices - torch.tensor([2.0, -1.0, 0.5])) * 1.8)
    seen = clip.embed_images(render_mesh(slab, cameras, supersample=2).rgb)
    expected = similarity(seen, clip.embed_texts(["a bird"]))
    assert torch.allclose(torch.tensor(scores["results"][1]["views"]), expected, atol=1e-5)


def test_the_released_framing_shows_the_whole_of_it_at_two_thirds(tmp_path):
    frames = views_of(box(tmp_path / "slab.glb"))
    assert frames.shape == (8, 512, 512, 3)
    covered = (frames.amin(-1) < 0.99).any(1)  # [V,W], columns that show something
    expected = 0.9 / ((3 - 0.09) * math.tan(math.radians(24.5)))  # the front face, half as wide as the picture times this
    assert float(covered[0].float().mean()) == pytest.approx(expected, abs=0.01)
    assert not bool(covered[:, [0, -1]].any())
    splat = views_of(SPLAT, 64)
    shown = (splat.amin(-1) < 0.95).any(1).float().mean(1)
    assert 0.3 < float(shown.max()) < 0.85


def test_a_transparent_picture_is_seen_on_white(models, tmp_path, capsys):
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[10:30, 10:30] = (200, 40, 40, 255)
    white = np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    Image.fromarray(white).save(tmp_path / "white.png")
    lines = [
        run(capsys, SPLAT, "--image", tmp_path / name, "--size", 40)[1].splitlines() for name in ("clear.png", "white.png")
    ]
    assert "'clear.png'" in lines[0][0] and lines[0][2] == lines[1][2]


def test_the_models_folder_has_the_clip(models, folder, tmp_path):
    place = models / "clip"
    assert default_clip(place) == place / "tiny" and default_clip(place / "tiny") == place / "tiny"
    with pytest.raises(InputError, match=r"There is no CLIP model in .*empty; put the paper's ViT-bigG-14 \(laion/"):
        default_clip(tmp_path / "empty")
    shutil.copytree(folder, place / "other")
    with pytest.raises(InputError, match="several CLIP models in .*, other, tiny; name"):
        default_clip(place)
    shutil.copytree(folder, place / "CLIP-ViT-bigG-14")
    assert default_clip(place) == place / "CLIP-ViT-bigG-14"


def test_weights_in_parts_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors").unlink()
    transformers.CLIPModel.from_pretrained(folder).save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    images = pictures(2, 40, 40)
    assert torch.equal(load_clip(tmp_path / "parts").embed_images(images), load_clip(folder).embed_images(images))
    min((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_clip(tmp_path / "parts")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--prompt", " "], "The prompt is empty"),
        (["--prompt", "x", "--size", "3"], "16..2048"),
        (["--prompt", "x", "--clip", "nowhere"], "nowhere holds no CLIP"),
        (["--prompt", "x", "--json", "x.glb"], "must end in .json"),
        (["--prompt", "x", "--device", "gpu"], "auto, cpu, cuda, mps"),
        (["--image", "missing.png"], "There is no picture at missing.png"),
        (["missing.glb", "--prompt", "x"], "There is no mesh at missing.glb"),
    ],
)
def test_the_command_refuses_in_one_sentence(models, capsys, args, sentence):
    code, out, err = run(capsys, SPLAT, *args)
    assert code == cli.UNUSABLE and out == "" and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("args", [[], ["--image", "a.png", "--prompt", "x"]])
def test_the_command_wants_one_reference(capsys, args):
    with pytest.raises(SystemExit) as stopped:
        run(capsys, SPLAT, *args)
    assert stopped.value.code == cli.UNUSABLE
