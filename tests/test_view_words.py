"""Words for where a camera stands, and runs without a reference."""

from __future__ import annotations

import pytest
import torch

from microdreamer_core.cameras import Cameras, orbit_cameras
from microdreamer_core.diffusion.view_words import AZIMUTHS, DISTANCES, ELEVATIONS, camera_words, view_words
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.stages import reference_view
from microdreamer_core.sir.step import iteration_cameras

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


@pytest.mark.parametrize(
    "elevation, azimuth, radius, words",
    [
        (0.0, 0.0, 2.0, "front view eye-level shot medium shot"),
        (-25.0, 50.0, 1.3, "front-right quarter view low-angle shot close-up"),
        (20.0, 90.0, 2.0, "right side view elevated shot medium shot"),
        (80.0, 180.0, 5.0, "back view high-angle shot wide shot"),
        (0.0, -90.0, 2.0, "left side view eye-level shot medium shot"),
        (0.0, 340.0, 2.0, "front view eye-level shot medium shot"),
    ],
)
def test_cameras_in_the_words_of_camera_angle_loras(elevation, azimuth, radius, words):
    assert camera_words(orbit_cameras(elevation, azimuth, radius)) == (words,)


def test_the_vocabulary_has_its_96_words():
    every = {(a, e, d) for a in AZIMUTHS.values() for e in ELEVATIONS.values() for d in DISTANCES.values()}
    assert len(every) == 8 * 4 * 3


def test_a_plan_can_keep_to_poses_that_words_can_say():
    for seed in range(5):
        free, said = (iteration_cameras(get_plan("few-step", poses=poses), seed, 3, 64) for poses in ("any", "words"))
        assert set(said.azimuth.tolist()) <= set(map(float, AZIMUTHS)) and len(set(said.azimuth.tolist())) == 4
        assert set(said.elevation.tolist()) <= {-30.0, 0.0, 30.0}
        assert float((said.elevation - free.elevation).abs().max()) <= 15
        assert float(((said.azimuth - free.azimuth + 180) % 360 - 180).abs().max()) <= 22.5
        assert (said.width, said.fov_y) == (free.width, free.fov_y) and torch.equal(said.radius, free.radius)
        assert camera_words(said) == camera_words(free)
