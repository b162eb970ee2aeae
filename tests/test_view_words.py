"""Words for where a camera stands, and runs without a reference."""

from __future__ import annotations

import pytest
import torch

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.view_words import view_words
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.stages import reference_view

WORDS = {
    "front view": [(0, 0), (0, 44), (30, -44), (0, 359), (59, 0)],
    "side view": [(0, 46), (0, 90), (0, -90), (-80, 270), (0, 134)],
    "back view": [(0, 136), (0, 180), (0, -180), (20, 220), (0, 540)],
    "overhead view": [(61, 0), (89, 180)],
}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("known", [True, False], ids=["orbit", "matrices"])
def test_words_follow_azimuth_and_elevation(word, known):
    elevations, azimuths = (torch.tensor(angles, dtype=torch.float32) for angles in zip(*WORDS[word], strict=True))
    cameras = orbit_cameras(elevations, azimuths, 2.0)
    assert set(view_words(cameras if known else Cameras(cameras.c2w))) == {word}


def test_without_a_reference_there_is_no_view_to_compare():
    plan = get_plan("embedded")
    assert plan.weighs_reference and reference_view(None, plan, 64) is None
