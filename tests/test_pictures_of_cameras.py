"""Pictures as cameras and phones make them: colour profiles, HEIC."""

import logging
import struct
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageCms

from microdreamer_core.errors import InputError
from microdreamer_core.io.pictures import list_picture_files, read_picture

HEIC = struct.pack(">I4s4sI4s", 24, b"ftyp", b"heic", 0, b"mif1") + b"heic" + bytes(64)


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(primaries, gamma, name=b"wide"):
    """A display profile (ICC version 2) of three primaries, as XYZ columns under D50, and one gamma."""
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256)) + bytes(2)
    text = struct.pack(">4sII", b"desc", 0, len(name) + 1) + name + bytes(1 + 4 + 4 + 2 + 1 + 67)
    tags = {b"desc": text, b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    for channel, column in zip("rgb", primaries, strict=True):
        tags[f"{channel}XYZ".encode()] = b"XYZ " + bytes(4) + fixed(*column)
        tags[f"{channel}TRC".encode()] = curve
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, content in tags.items():
        content += bytes(-len(content) % 4)
        table += key + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
SWAPPED = profile((SRGB[1], SRGB[0], SRGB[2]), 2.2)  # its red is sRGB's green


@pytest.fixture
def pixels():
    colors = np.random.default_rng(0).integers(40, 216, (4, 4, 3), np.uint8)
    return colors.repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_converted(tmp_path, pixels, kind):
    path = tmp_path / f"a.{kind.lower()}"
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(pixels).save(path, kind, icc_profile=SWAPPED, **options)
    expected = pixels[..., [1, 0, 2]] / 255.0
    assert abs(read_picture(path).numpy() - expected).mean() < 0.02


def test_transparency_stays_with_a_profile(tmp_path, pixels):
    alpha = np.arange(32, dtype=np.uint8)[None].repeat(32, 0) * 8
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.png", icc_profile=SWAPPED)
    read = read_picture(tmp_path / "a.png").numpy()
    assert abs(read[..., :3] - pixels[..., [1, 0, 2]] / 255.0).mean() < 0.02 and np.array_equal(read[..., 3] * 255, alpha)


def test_srgb_and_useless_profiles_change_nothing(tmp_path, pixels, caplog):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = read_picture(tmp_path / "a.png")
    for content in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"no profile", SWAPPED[:200]):
        Image.fromarray(pixels).save(tmp_path / "b.png", icc_profile=content)
        with caplog.at_level(logging.WARNING):
            assert bool((read_picture(tmp_path / "b.png") == expected).all())
    assert "profile is ignored" in caplog.text


def test_heic_names_the_package_that_reads_it(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match="a HEIC picture and needs pillow_heif.*pip install pillow-heif, or save it as JPEG"):
        read_picture(tmp_path / "a.heic")


@pytest.mark.skipif(".avif" not in Image.registered_extensions(), reason="this Pillow reads no AVIF")
def test_avif_that_begins_with_the_brand_of_its_container_is_no_heic(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.avif", quality=100)
    expected = read_picture(tmp_path / "a.avif")
    content = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "b.avif").write_bytes(content[:8] + b"mif1" + content[12:])  # avif stays among the compatible brands
    assert content[8:12] == b"avif" and bool((read_picture(tmp_path / "b.avif") == expected).all())


def test_a_folder_of_photos_lists_what_phones_and_cameras_write(tmp_path):
    for name in ("b.HEIC", "a.jpg", "c.avif", "d.tiff", "film.gif", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_picture_files(tmp_path)] == ["a.jpg", "b.HEIC", "c.avif", "d.tiff"]


def test_a_phones_photo_is_read_by_the_real_package(tmp_path, pixels):
    """HEIC, turned by EXIF, in a profile of its own: all three at once, where pillow-heif is installed."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    large = np.kron(pixels, np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(large[..., [1, 0, 2]]).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.heic", quality=100, chroma=444, exif=exif.tobytes(), icc_profile=SWAPPED)
    read = read_picture(tmp_path / "a.heic").numpy()
    assert read.shape == large.shape and abs(read - large / 255.0).mean() < 0.03


def test_heic_is_read_with_the_package(tmp_path, monkeypatch):
    """The package's opener is asked, whatever the name of the file."""
    plugin = ModuleType("pillow_heif")

    def opener(stream, _):
        assert stream.read(len(HEIC)) == HEIC
        return Image.new("RGB", (20, 20), (255, 0, 51))

    def register():
        monkeypatch.setitem(Image.OPEN, "HEIF", (opener, lambda start: start[4:8] == b"ftyp"))

    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    (tmp_path / "a.jpg").write_bytes(HEIC)
    assert read_picture(tmp_path / "a.jpg")[0, 0].tolist() == pytest.approx([1, 0, 0.2])
