"""Makes docs/example_sheet.png, the picture of the README: samples, and their meshes from four sides.

    python scripts/readme_picture.py FOLDER

FOLDER has NAME.glb for each sample, as `microdreamer image-to-3d samples/NAME.png --elevation DEGREES -o FOLDER/NAME.glb`
makes it with the degrees below.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.io.mesh_files import read_mesh
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.io.video import write_contact_sheet
from microdreamer_core.reference import prepare_reference
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.util.vocabulary import DEFAULT_FOV_Y

ROOT = Path(__file__).resolve().parent.parent
ELEVATIONS = {"bird": 5.0, "rocket": 5.0, "snowman": 5.0, "pumpkin": 10.0}
AZIMUTHS = 0.0, 60.0, 180.0, 300.0
SIZE, RADIUS = 220, 1.3


def main(folder: Path) -> None:
    frames, captions = [], []
    for name, elevation in ELEVATIONS.items():
        reference = prepare_reference(read_picture(ROOT / "samples" / f"{name}.png"), elevation=elevation)
        cameras = orbit_cameras(elevation, torch.tensor(AZIMUTHS), RADIUS, DEFAULT_FOV_Y, SIZE)
        frames += [
            reference.at_size(SIZE).image[None],
            render_mesh(read_mesh(folder / f"{name}.glb"), cameras, supersample=2).rgb,
        ]
        captions += [name, *(f"{azimuth:.0f} degrees" for azimuth in AZIMUTHS)]
    write_contact_sheet(ROOT / "docs" / "example_sheet.png", torch.cat(frames), columns=1 + len(AZIMUTHS), captions=captions)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
