"""Files with the names, shapes and size of the published ones, all holes: what they are is told without reading them."""

import json
import math
import os
import struct

import pytest

from helpers.fixture_files import full_size
from microdreamer_core.checkpoints.load import inspect

PUBLISHED = {
    "mvdream_original": ("sd-v2.1-base-4view", "mvdream", "", 5.22e9, False),
    "imagedream_original": ("sd-v2.1-base-4view-ipmv-local", "imagedream", "local", 8.05e9, False),
    "zero123_original": ("stable_zero123", "zero123", "stable", 8.58e9, True),
}


def write_holes(path, listed):
    """A float32 safetensors file of these shapes that takes no room."""
    header, end = {}, 0
    for name, shape in listed.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.skipif(os.name == "nt", reason="would really take the room")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_recognised(name, tmp_path):
    stem, family, variant, size, ema = PUBLISHED[name]
    path = tmp_path / f"{stem}.safetensors"
    write_holes(path, full_size(name))
    info = inspect(path)
    assert (info.family, info.variant, info.ema, info.image_size) == (family, variant, ema, 256)
    assert info.layout == "original" and info.beside == ()
    assert {"unet", "vae"} <= set(info.inside) and not [part for part in info.missing if "vocabulary" not in part]
    assert abs(info.size / size - 1) < 0.01
