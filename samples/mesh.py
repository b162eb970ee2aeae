"""Writes bird_clay.glb: the bird of bird.png as an untextured mesh, its front to the camera of that picture.

python samples/mesh.py
"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from render import EXAMPLES, TURN

from microdreamer_core.diffusion.embedded.toys import HELD_OUT, make_toy, true_surface
from microdreamer_core.io.glb import write_glb
from microdreamer_core.mesh import vertex_normals
from microdreamer_core.meshing.clean import decimate, smooth
from microdreamer_core.meshing.unwrap import unwrap

FACES, TEXTURE = 4000, 16


def main() -> None:
    surface = true_surface(make_toy(HELD_OUT + EXAMPLES["bird"], "bird"), 160)
    mesh = decimate(smooth(replace(surface, faces=surface.faces.flip(1)), 6), FACES)
    angle = math.radians(-TURN)
    cos, sin = math.cos(angle), math.sin(angle)
    mesh = unwrap(replace(mesh, vertices=mesh.vertices @ torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])), 1024)
    clay = torch.tensor([0.76, 0.7, 0.66]).expand(TEXTURE, TEXTURE, 3)
    mesh = replace(mesh, normals=vertex_normals(mesh.vertices, mesh.faces), colors=None, texture=clay.contiguous())
    write_glb(Path(__file__).with_name("bird_clay.glb"), mesh, {"source": "samples/mesh.py"})


if __name__ == "__main__":
    main()
