"""How well the usual NeRF learns in the conditions of SIR: few views at a time, new ones every few steps."""

import numpy as np
import pytest
import torch

from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.diffusion.embedded.raycast import on_white, render_toys
from microdreamer_core.diffusion.embedded.toys import make_held_out_toy
from microdreamer_core.evaluation.objects import make_subject, score_field
from microdreamer_core.fields.nerf import NeRF
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.reconstruct import reconstruct
from microdreamer_core.sir.step import iteration_cameras

SIZE, BIRD = 32, 7


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_few_views_at_a_time_make_a_bird():
    """What SIR would learn from a perfect model, after six iterations of ten steps."""
    plan = get_plan("embedded-nerf", resolutions=())
    bird = make_subject(BIRD, plan.radius, plan.fov_y, SIZE)
    rows, counts = toys.stack_toys([make_held_out_toy(BIRD)])
    field = NeRF.start(NeRFSettings.of_size("small"))
    scores = [score_field(field, bird, geometry=False)]
    for k in range(6):
        cameras = iteration_cameras(plan, 0, k, SIZE)
        seen = render_toys(rows, counts, np.zeros(len(cameras), int), cameras.c2w.numpy(), SIZE, plan.fov_y)
        targets = torch.from_numpy(on_white(seen))
        field = reconstruct(field, cameras, targets, 10, background=WHITE).field
    scores.append(score_field(field, bird, geometry=False))
    assert scores[0]["psnr"] < 15, "a fresh field does not pass"
    assert scores[1]["psnr"] > 21.5 and scores[1]["iou"] > 0.88, scores[1]
