"""The public names of ``import microdreamer_core as md``, and the whole job in one call."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import microdreamer_core as md
from microdreamer_core.api import _to_image, _to_mask

SMALL = md.MeshSettings(resolution=32, target_faces=300, texture_size=64, view_size=64)


@pytest.fixture(scope="module")
def ball():
    image = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill=(200, 60, 40, 255))
    return image


@pytest.fixture(scope="module")
def asset(ball):
    seen = []
    numpys = {"seed": np.int64(3), "elevation": np.float32(5)}  # the files' JSON takes Python's numbers alone
    made = md.image_to_3d(ball, iterations=1, init_steps=20, **numpys, device="cpu", mesh=SMALL, on_iteration=seen.append)
    assert [iteration.k for iteration in seen] == [-1, 0]
    return made


@pytest.mark.parametrize("name", md.__all__)
def test_every_public_name_is_there(name):
    assert getattr(md, name).__doc__ and name in dir(md)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'image_to_4d'"):
        _ = md.image_to_4d


def test_one_call_makes_an_asset(asset):
    assert asset.job.plan == md.get_plan("embedded", iterations=1, init_steps=20) and asset.job.seed == 3
    assert isinstance(asset.field, md.Gaussians) and asset.mesh.texture.shape == (64, 64, 3)
    assert type(asset.job.seed) is int and type(asset.job.reference.elevation) is float
    assert len(repr(asset)) < 200, "no page of tensors in a notebook"


def test_an_asset_is_saved_in_all_formats(asset, tmp_path):
    assert set(asset.save(tmp_path / "a.glb", splat=True, report=True)) == {"mesh", "splat", "report"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.glb", "a.json", "a.ply"]
    assert len(md.read_splat(tmp_path / "a.ply")) == len(asset.field)
    assert len(md.read_mesh(tmp_path / "a.glb").faces) == len(asset.mesh.faces)
    assert asset.save(tmp_path / "b.obj")["mesh"].is_file()
    with pytest.raises(md.InputError, match=r"beside a \.glb, got 'c\.obj'"):
        asset.save(tmp_path / "c.obj", splat=True)


def test_images_come_as_files_pictures_arrays_and_tensors(ball, tmp_path):
    pixels = torch.from_numpy(np.array(ball)).float() / 255
    assert torch.equal(_to_image(ball), pixels) and torch.equal(_to_image(np.array(ball)), pixels)
    assert torch.equal(_to_image(pixels), pixels) and _to_image(str(tmp_path)) == tmp_path
    assert _to_image(ball.convert("L")).shape == (64, 64, 4)
    assert _to_mask(ball.getchannel("A")).shape == _to_mask(pixels[..., 3:]).shape == (64, 64)
    with pytest.raises(md.InputError, match=r"got \[3, 64, 64\]; move its channels to the end"):
        _to_image(pixels[..., :3].permute(2, 0, 1))


def test_wrong_choices_are_refused_before_any_work(ball):
    with pytest.raises(md.InputError, match="'speed'"):
        md.image_to_3d(ball, speed=3)
    with pytest.raises(md.InputError, match="seed must be a whole number, got '3'"):
        md.image_to_3d(ball, seed="3")
    with pytest.raises(md.InputError, match=r"pixels \[H,W,C\], got NoneType"):
        md.image_to_3d(None)
    with pytest.raises(md.InputError, match="takes no prompt"):
        md.text_to_3d("a blue bird")
