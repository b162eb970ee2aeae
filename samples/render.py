"""Renders this folder's pictures: held-out toys that the shipped checkpoint never saw, a little from above and from the side.

python samples/render.py

bird_rough.ply is what the initialisation alone makes of the bird, something to refine:
microdreamer image-to-3d samples/bird.png -o bird.glb --elevation 5 --iterations 0 --keep-splat
"""

from pathlib import Path

import numpy as np
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.embedded.raycast import render_toys
from microdreamer_core.diffusion.embedded.toys import HELD_OUT, make_toy, stack_toys
from microdreamer_core.io.pictures import write_picture

EXAMPLES = {"bird": 5007, "snowman": 5003, "rocket": 5003}
SIZE, ELEVATION, TURN = 384, 5.0, -20.0


def main() -> None:
    for name, number in EXAMPLES.items():
        rows, counts = stack_toys([make_toy(HELD_OUT + number, name)])
        camera = orbit_cameras(ELEVATION, TURN, 1.5)
        picture = render_toys(rows, counts, np.array([0]), camera.c2w.numpy(), SIZE, camera.fov_y, samples=4)
        write_picture(Path(__file__).with_name(f"{name}.png"), torch.from_numpy(picture[0]))


if __name__ == "__main__":
    main()
