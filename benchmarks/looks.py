"""Visible quality: the front of textured meshes against the photos they were made from, and the integrity of their surfaces.

    microdreamer image-to-3d photos/mug.png -o made/mug.glb    # for every photo
    python benchmarks/looks.py photos made --json FILE --sheet FILE

Meshes are matched to photos by name. The front is compared at 512 pixels with the photo at that size: over the pixels well
inside both silhouettes ("inside": texture), over those inside both ("common"), and as a whole ("psnr", the silhouettes' errors
in it). Sharpness is the mean length of the brightness gradient inside, as a share of the photo's. Roughness is the median angle
between neighbouring faces.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.checkpoints.registry import EMBEDDED, model_spec
from microdreamer_core.errors import InputError
from microdreamer_core.evaluation import metrics
from microdreamer_core.io.mesh_files import read_mesh
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.io.video import write_contact_sheet
from microdreamer_core.job.record import write_json
from microdreamer_core.mesh import Mesh, face_normals
from microdreamer_core.reference import Reference, prepare_reference
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.sir.presets import get_plan

SIZE, SHEET_SIZE = 512, 256
RIM = 3  # pixels along the silhouette that do not count as inside


def front_scores(mesh: Mesh, reference: Reference, radius: float, fov_y: float) -> dict[str, float]:
    """Compute PSNR in dB inside, in common and over all, silhouette IoU, sharpness."""
    photo = reference.at_size(SIZE)
    seen = render_mesh(mesh, orbit_cameras(photo.elevation, 0.0, radius, fov_y, SIZE), supersample=2)
    rgb, alpha = seen.rgb[0].clamp(0, 1), seen.alpha[0]
    common = (alpha[..., 0] > 0.5) & (photo.alpha[..., 0] > 0.5)
    inside = -F.max_pool2d(-common[None, None].float(), 2 * RIM + 1, 1, RIM)[0, 0] > 0.5
    return {
        "inside": metrics.psnr(rgb[inside], photo.image[inside]),
        "common": metrics.psnr(rgb[common], photo.image[common]),
        "psnr": metrics.psnr(rgb, photo.image),
        "iou": metrics.silhouette_iou(alpha, photo.alpha),
        "sharpness": float(_gradient(rgb)[inside].mean() / _gradient(photo.image)[inside].mean()),
    }


def _gradient(image: Tensor) -> Tensor:
    """[H,W] magnitude of the brightness gradient of [H,W,3]."""
    grey = F.pad(image.mean(-1)[None], (0, 1, 0, 1), mode="replicate")[0]
    return (grey.diff(dim=0)[:, :-1].square() + grey.diff(dim=1)[:-1].square()).sqrt()


def surface_scores(mesh: Mesh) -> dict[str, float]:
    """Compute components, genus, and roughness in degrees of the mesh with its seams closed."""
    import trimesh

    _, merged = torch.unique((mesh.vertices * 1e6).round().long(), dim=0, return_inverse=True)
    faces = merged[mesh.faces].numpy()
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique_edges = np.unique(edges, axis=0)
    components = len(trimesh.graph.connected_components(unique_edges))
    euler = len(np.unique(faces)) - len(unique_edges) + len(faces)
    pairs, _ = trimesh.graph.face_adjacency(faces, return_edges=True)
    normals = F.normalize(face_normals(mesh.vertices, mesh.faces), dim=1)
    angles = torch.rad2deg((normals[pairs[:, 0]] * normals[pairs[:, 1]]).sum(1).clamp(-1, 1).acos())
    return {"components": components, "genus": components - euler / 2, "roughness": float(angles.median())}


def views(mesh: Mesh, reference: Reference, radius: float, fov_y: float) -> Tensor:
    """Return [7,S,S,3]: the photo and six sides."""
    cameras = orbit_cameras([0.0] + [10.0] * 5, [0.0, 45.0, 90.0, 180.0, 270.0, 315.0], radius, fov_y, SHEET_SIZE)
    return torch.cat([reference.at_size(SHEET_SIZE).image[None], render_mesh(mesh, cameras, supersample=2).rgb])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder of photos, cut out")
    parser.add_argument("meshes", type=Path, help="folder of .glb files of the same names")
    parser.add_argument("--model", default=EMBEDDED, help="that made them: its framing is the photos'")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    framing = model_spec(args.model)
    plan = get_plan(framing.presets["gaussians"])
    rows, sheet = {}, []
    for path in sorted(args.meshes.glob("*.glb")):
        photos = [p for p in sorted(args.photos.iterdir()) if p.stem.removesuffix("_rgba") == path.stem]
        if not photos:
            continue
        mesh, reference = read_mesh(path), prepare_reference(read_picture(photos[0]), None, framing.fill)
        rows[path.stem] = {**front_scores(mesh, reference, plan.radius, plan.fov_y), **surface_scores(mesh)}
        sheet.append(views(mesh, reference, plan.radius, plan.fov_y))
        _report(path.stem, rows[path.stem])
    if not rows:
        raise InputError(f"No mesh in {args.meshes} has the name of a photo in {args.photos}.")
    _report("mean", {name: statistics.mean(row[name] for row in rows.values()) for name in next(iter(rows.values()))})
    if args.json:
        write_json(args.json, rows)
    if args.sheet:
        write_contact_sheet(args.sheet, torch.cat(sheet), columns=7)


def _report(name: str, row: dict[str, float]) -> None:
    numbers = "  ".join(f"{key} {value:.2f}" for key, value in row.items())
    sys.stdout.write(f"{name:28s}{numbers}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
