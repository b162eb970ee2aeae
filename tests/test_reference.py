"""Reference pictures: every file a user may bring, framed alike, or one clear sentence."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from microdreamer_core.errors import InputError
from microdreamer_core.io.pictures import read_mask, read_picture, write_picture
from microdreamer_core.reference import cut_out_plain_background, matte, prepare_reference


def disc(size=100, centre=(30, 60), radius=15, background=(1.0, 1.0, 1.0)):
    """(rgb, mask) of a red disc."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = (((y - centre[0]) ** 2 + (x - centre[1]) ** 2) <= radius**2).float()
    rgb = mask[..., None] * torch.tensor([0.8, 0.1, 0.1]) + (1 - mask[..., None]) * torch.tensor(background)
    return rgb, mask


def bounds(alpha):
    solid = alpha[..., 0] > 0.5
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@pytest.mark.parametrize("fill", [0.5, 0.8, 1.0])
def test_the_object_is_centred_and_fills_its_share(fill):
    rgb, mask = disc()
    reference = prepare_reference(rgb, mask, fill=fill, size=64)
    top, bottom, left, right = bounds(reference.alpha)
    assert abs((bottom - top) - fill * 64) <= 2 and abs((right - left) - fill * 64) <= 2
    assert abs((top + bottom) / 2 - 32) <= 1 and abs((left + right) / 2 - 32) <= 1
    assert torch.allclose(reference.image[32, 32], torch.tensor([0.8, 0.1, 0.1]), atol=0.02)
    if fill < 1:
        assert torch.equal(reference.image[0, 0], torch.ones(3))


def test_edges_carry_no_colour_of_the_old_background():
    rgb, mask = disc(background=(0.0, 1.0, 0.0))
    image = prepare_reference(rgb, mask, size=64).image
    assert float((image[..., 1] - image[..., 0]).max()) < 0.05  # white and red have no more green than red


@pytest.mark.parametrize("background", [(1.0, 1.0, 1.0), (0.2, 0.4, 0.9)])
def test_a_plain_background_is_cut_out(background):
    rgb, mask = disc(background=background)
    assert torch.equal(cut_out_plain_background(rgb), mask)


def test_how_plain_a_background_must_be():
    """A shade of up to 0.12 in any channel belongs to it, and more belongs to the object."""
    rgb = torch.full((40, 40, 3), 0.5)
    rgb[0:4, 5:35, 1] += 0.119
    rgb[20:30, 20:30, 2] += 0.121
    expected = torch.zeros(40, 40)
    expected[20:30, 20:30] = 1.0
    assert torch.equal(cut_out_plain_background(rgb), expected)
    rgb[0:4, 5:35, 1] += 0.02
    expected[0:4, 5:35] = 1.0
    assert torch.equal(cut_out_plain_background(rgb), expected)
    assert torch.equal(cut_out_plain_background(rgb, 0.2), torch.zeros(40, 40))


def test_how_much_of_the_border_may_be_of_another_colour():
    rgb = torch.ones(40, 40, 3)
    rgb[0] = 0.0  # of 160 border pixels, 40 and the two ends of the columns
    with pytest.raises(InputError, match="not of one colour"):
        cut_out_plain_background(rgb)
    rgb[0, :2] = 1.0  # now 38 and one end
    assert int(cut_out_plain_background(rgb).sum()) == 38


def test_a_hole_of_the_background_colour_stays_part_of_the_object():
    rgb, mask = disc(radius=25, centre=(50, 50))
    rgb[45:55, 45:55] = 1.0
    assert torch.equal(cut_out_plain_background(rgb), mask)


def test_a_busy_background_is_refused():
    rgb = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="background"):
        prepare_reference(rgb)


@pytest.mark.parametrize("value, word", [(0.0, "no object"), (1.0, "whole picture")])
def test_empty_and_full_masks_are_refused(value, word):
    with pytest.raises(InputError, match=word):
        prepare_reference(torch.rand(32, 32, 3), torch.full((32, 32), value))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match="as large"):
        prepare_reference(torch.rand(32, 32, 3), torch.zeros(16, 16))


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "L", "LA", "I;16", "CMYK", "1"])
def test_every_picture_mode_is_read(tmp_path, mode):
    rgb, mask = disc()
    pixels = (torch.cat([rgb, mask[..., None]], -1).numpy() * 255).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray((pixels[..., 1].astype(np.uint16)) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    image.save(path)
    picture = read_picture(path)
    assert picture.shape[:2] == (100, 100) and picture.shape[2] == (4 if mode in ("RGBA", "LA", "P") else 3)
    assert picture.dtype == torch.float32 and 0 <= float(picture.min()) and float(picture.max()) <= 1
    corner, middle = picture[0, 0, 1], picture[30, 60, 1]
    if mode != "1":
        assert corner > 0.9 and middle < 0.6


def test_a_mask_file_is_brightness_or_alpha(tmp_path):
    _, mask = disc()
    Image.fromarray((mask.numpy() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png"), mask)


@pytest.mark.parametrize("size", [(4, 4), (200, 8)])
def test_tiny_pictures_are_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "tiny.png")
    with pytest.raises(InputError, match="at least"):
        read_picture(tmp_path / "tiny.png")


def test_large_pictures_are_reduced(tmp_path):
    Image.new("RGB", (5000, 100)).save(tmp_path / "large.png")
    assert read_picture(tmp_path / "large.png").shape[1] == 2048


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n0000"])
def test_unreadable_files_are_refused(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="broken.png"):
        read_picture(path)


def test_a_truncated_picture_is_refused(tmp_path):
    write_picture(tmp_path / "whole.png", torch.rand(64, 64, 3))
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cut.png"):
        read_picture(tmp_path / "cut.png")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no picture"):
        read_picture(tmp_path / "nothing.png")


def test_matting_takes_rembgs_mask_or_says_how_to_get_it(monkeypatch):
    rgb, mask = disc(background=(0.2, 0.7, 0.4))
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(InputError, match="pip install"):
        matte(rgb)
    stand_in = types.ModuleType("rembg")
    stand_in.remove = lambda image, only_mask: Image.fromarray((mask.numpy() * 255).astype(np.uint8))
    monkeypatch.setitem(sys.modules, "rembg", stand_in)
    assert torch.equal(matte(rgb), mask)


def scene(size=96):
    """A disc that leaves the middle free, and its mask."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = (x - size * 0.45) ** 2 + (y - size * 0.55) ** 2 < (size * 0.25) ** 2
    return x / (size - 1) * 2 - 1, y / (size - 1) * 2 - 1, mask


@pytest.mark.parametrize("strength", [0.1, 0.25])
def test_a_gradient_of_the_background_is_followed(strength):
    x, y, mask = scene()
    for ground in (0.9 - strength * (x * x + y * y) / 2, 0.6 + strength * x / 2, 0.7 - strength * y + 0.02 * x * y):
        rgb = torch.where(mask[..., None], torch.tensor([0.2, 0.3, 0.6]), ground[..., None].expand(-1, -1, 3))
        assert torch.equal(cut_out_plain_background(rgb), mask.float())


def test_a_background_with_edges_is_refused():
    x, _, mask = scene()
    rgb = torch.where(mask, 0.5, torch.where(x < 0, 0.2, 0.9))[..., None].expand(-1, -1, 3)
    with pytest.raises(InputError, match="not of one colour"):
        cut_out_plain_background(rgb)


def test_white_on_white_asks_for_a_mask():
    x, y, mask = scene(256)
    white = torch.where(mask, 0.96, 1.0)[..., None].expand(-1, -1, 3)
    with pytest.raises(InputError, match="colour of its background.*or a mask"):
        prepare_reference(white)
    radius = ((x + 0.1) ** 2 + (y - 0.1) ** 2).sqrt()
    gap = (y > 0) | (x > 0)  # an outline that is not closed
    outlined = torch.where(((radius - 0.5).abs() < 0.006) & gap, 0.5, 0.98)[..., None].expand(-1, -1, 3)
    with pytest.raises(InputError, match="only outlines of it do.*a mask"):
        prepare_reference(outlined)
    closed = torch.where((radius - 0.5).abs() < 0.012, 0.5, 0.98)[..., None].expand(-1, -1, 3)
    assert prepare_reference(closed).alpha.mean() > 0.4, "a closed outline holds the object"


def test_stray_pixels_do_not_count_for_framing():
    _, _, mask = scene(128)
    rgb = torch.where(mask[..., None], torch.tensor([0.8, 0.2, 0.1]), 1.0)
    expected = prepare_reference(rgb, mask.float(), size=128)
    specks = mask.clone()
    specks[2, 3] = specks[125, 120] = True
    found = prepare_reference(rgb, specks.float(), size=128)
    assert torch.equal(found.alpha, expected.alpha) and torch.equal(found.image, expected.image)
    specks[1:5, 1:5] = True  # 0.5 percent of the disc: a part of the object
    assert prepare_reference(rgb, specks.float(), size=128).alpha.mean() < expected.alpha.mean() / 1.5
