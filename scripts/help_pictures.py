"""Makes the pictures of the help pages from real runs of the core on the shipped checkpoint and examples.

    python scripts/help_pictures.py [NodeId ...]

Takes two minutes for all. Look at the pictures afterwards: one that does not show its point is a bug.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from help_drawing import CURVES, Curve, Row, encoded, plot, sheet
from help_graphs import GRAPHS
from help_material import ELEVATION, EXAMPLES, SEED, Material, clay, film, ring, shown
from PIL import ImageDraw
from torch import Tensor

from microdreamer_core.cameras import Cameras, orbit_cameras, spread_cameras
from microdreamer_core.convert.mesh_to_gaussians import gaussians_on_mesh, normalise_mesh
from microdreamer_core.convert.nerf_to_gaussians import gaussians_from_nerf
from microdreamer_core.diffusion.view_words import AZIMUTHS, ELEVATIONS
from microdreamer_core.fields.clean import clean
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings, Parameters
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.fields.texture import TextureField, texture_field
from microdreamer_core.io.mesh_files import read_mesh
from microdreamer_core.io.pictures import read_picture
from microdreamer_core.io.rig_picture import rig_picture
from microdreamer_core.io.splats import read_splat
from microdreamer_core.job.outputs import film_cameras
from microdreamer_core.job.refine import job_to_retexture
from microdreamer_core.job.run import run_sir, with_reference
from microdreamer_core.meshing.pipeline import surface_mesh
from microdreamer_core.meshing.project import project_images, project_reference
from microdreamer_core.meshing.refine import TextureRefinement, refine_texture
from microdreamer_core.meshing.retexture import final_projection
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.reference import cut_out_plain_background, prepare_reference
from microdreamer_core.render.hints import HINTS, normal_hint
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.sir.iterations import sir_iterations
from microdreamer_core.sir.presets import get_plan
from microdreamer_core.sir.sds import SDSSettings, sds_steps
from microdreamer_core.sir.stages import denoise_views, forward_views, reference_view
from microdreamer_core.sir.start import gaussian_settings
from microdreamer_core.sir.step import INITIALISATION, Step, iteration_cameras
from microdreamer_core.util.atomic import replace_file
from microdreamer_core.util.seeds import generator
from microdreamer_core.util.vocabulary import DEFAULT_FOV_Y

log = logging.getLogger("help_pictures")

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "web" / "docs"
VIEW = 3
PICTURES: dict[str, tuple[Callable, bool]] = {}
"""What draws the picture of a node, and whether it is a drawing."""


def picture(node: str, drawn: bool = False) -> Callable:
    """Names the node whose picture a function of ``Material`` gives."""

    def register(function: Callable) -> Callable:
        PICTURES[f"MicroDreamer{node}"] = (function, drawn)
        return function

    return register


# --- input -----------------------------------------------------------------------------------------------------------


@picture("LoadModel")
def load_model(m: Material):
    cameras = ring(4, m.model.image_size)
    plan = replace(m.plan, discretization=25)
    step = Step(cameras, plan, SEED, INITIALISATION, diffusion=m.diffusion)
    _, views = denoise_views(step, forward_views(step, None))
    reference = m.reference.at_size(64).image
    captions = ("reference", *(f"{int(a)}°" for a in cameras.azimuth))
    return sheet(Row([reference, *views], captions, "One picture in, four views out, from noise"))


@picture("ExamplePicture")
def example_picture(m: Material):
    names = ("bird", "rocket", "snowman")
    rgba = [read_picture(EXAMPLES / f"{name}.png") for name in names]
    masks = [picture[..., 3] for picture in rgba]
    return sheet(Row([picture[..., :3] for picture in rgba], names, "image"), Row(masks, (), "mask"))


@picture("PrepareReference")
def prepare(m: Material):
    rgba = F.interpolate(read_picture(EXAMPLES / "bird.png").permute(2, 0, 1)[None], scale_factor=0.5)[0].permute(1, 2, 0)
    photo = torch.tensor([0.62, 0.74, 0.82]).expand(300, 300, 3).clone()
    spot = photo[100:292, 100:292]
    spot.copy_(rgba[..., :3] * rgba[..., 3:] + spot * (1 - rgba[..., 3:]))
    mask = cut_out_plain_background(photo)
    reference = prepare_reference(photo, mask, m.model.fill, 2 * m.model.image_size)
    return sheet(Row([photo, mask, reference.image], ("image", "mask found", "reference")))


@picture("ConditionOnImage")
def condition(m: Material):
    rows = []
    for elevation, verdict in ((ELEVATION, "as it was taken"), (60.0, "wrong")):
        reference = m.reference_of("bird", elevation)
        start = Gaussians.ball(gaussian_settings(m.model.image_size), SEED)
        plan = replace(m.plan, iterations=8)
        *_, last = sir_iterations(start, m.model.condition(reference), plan, SEED, reference=reference)
        rows.append(Row(shown(last.field, ring(4)), (), f"elevation {elevation:g}: {verdict}"))
    rows[-1] = replace(rows[-1], captions=("0°", "90°", "180°", "270°"))
    return sheet(*rows)


@picture("NewGaussians")
def new_gaussians(m: Material):
    counts = (300, gaussian_settings(m.model.image_size).num_points, 5000)
    fields = [Gaussians.ball(GaussianSettings(num_points=count), SEED) for count in counts]
    views = [shown(field, ring(1))[0] for field in fields]
    return sheet(Row(views, [str(count) for count in counts], "num_points"))


@picture("NewNeRF")
def new_nerf(m: Material):
    views = [shown(field, orbit_cameras(10.0, 40.0, 1.5, width=256))[0] for field in m.nerfs]
    return sheet(Row(views, ("fresh", "after the initialisation", "after the run")))


@picture("NeRFToGaussians")
def nerf_to_gaussians(m: Material):
    nerf, counts = m.nerfs[-1], (1000, 10000)
    fields = [nerf, *(gaussians_from_nerf(nerf, count, seed=SEED) for count in counts)]
    views = [shown(field, orbit_cameras(10.0, 40.0, 1.5, width=256))[0] for field in fields]
    return sheet(Row(views, ("the NeRF", *map(str, counts)), "num_points"))


@picture("FieldFromSplat")
def field_from_splat(m: Material):
    rough = read_splat(EXAMPLES / "bird_rough.ply", gaussian_settings(m.model.image_size), SEED)
    plan = replace(m.plan, iterations=8)
    *_, last = sir_iterations(rough, m.diffusion, plan, SEED, reference=m.reference, first=0)
    return sheet(
        Row(shown(rough, ring(4)), (), "samples/bird_rough.ply"),
        Row(shown(last.field, ring(4)), (), f"after {plan.iterations} iterations"),
    )


@picture("FieldFromMesh")
def field_from_mesh(m: Material):
    counts = (1000, 10000)
    fields = [gaussians_on_mesh(m.textured, count, seed=SEED) for count in counts]
    camera = orbit_cameras(10.0, 40.0, 1.5, width=384)
    views = [*film(m.textured, camera), *(shown(field, camera)[0] for field in fields)]
    return sheet(Row(views, ("the mesh", *map(str, counts)), "num_points"))


@picture("NewTexture")
def new_texture(m: Material):
    job = job_to_retexture(EXAMPLES / "bird_clay.glb", EXAMPLES / "bird.png", elevation=ELEVATION, seed=SEED)
    assert isinstance(job.start, TextureField)
    diffusion = m.model.condition(job.reference)
    field, _, _ = run_sir(job, diffusion)
    assert isinstance(field, TextureField)
    final = final_projection(field, diffusion, seed=SEED, radius=job.plan.radius, fov_y=job.plan.fov_y)
    final = project_reference(final.mesh, reference_view(job.reference, job.plan))
    camera = orbit_cameras(10.0, 60.0, 1.6, width=384)
    views = [film(mesh, camera)[0] for mesh in (job.start.mesh, field.mesh, final)]
    return sheet(Row(views, ("before", "8 iterations", "projected")))


@picture("ProjectViews")
def project_views(m: Material):
    mesh = normalise_mesh(read_mesh(EXAMPLES / "bird_clay.glb"), "always")
    mesh = texture_field(mesh, 512).mesh
    cameras = orbit_cameras(10.0, [0.0, 90.0], 1.6, width=384)
    shape = render_mesh(mesh, cameras, supersample=2)
    down = torch.linspace(0, 1, 384)[None, :, None, None]
    bands = torch.where((down * 24).floor() % 2 == 0, torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.95, 0.9, 0.75]))
    bands = torch.cat([bands, bands.flip(-1)]).expand(2, 384, 384, 3)
    painted = bands * shape.alpha + 1 - shape.alpha
    done = project_images(mesh, cameras, painted, shape.alpha)
    views = [*painted, *film(done, orbit_cameras(10.0, [0.0, 45.0, 180.0], 1.6, width=384))]
    return sheet(Row(views, ("front", "side", "0", "45", "180 degrees")))


# --- plan ------------------------------------------------------------------------------------------------------------


@picture("SIRPlan", drawn=True)
def plan_curves(m: Material):
    plans = {name: get_plan(name) for name in ("embedded", "stable-zero123-gaussians")}
    plans["embedded-high, t2_start 0.5, t2_end 0.2"] = get_plan("embedded-high", t2_start=0.5, t2_end=0.2)
    curves = []
    for (name, plan), color in zip(plans.items(), CURVES, strict=False):
        times = plan.times(SEED)
        curves.append(Curve(name, [(t.k, t.t2) for t in times], color))
        curves.append(Curve("", [(t.k, t.t1) for t in times], color, thin=True))
    return plot(curves, "iteration k", "t2 (thick) and t1 (thin)", 20, 1000, 200)


@picture("SIRPlanOptions", drawn=True)
def plan_options(m: Material):
    base = replace(get_plan("stable-zero123-gaussians"), discretization=50)
    curves = [
        Curve(f"t2_curve {name}", [(t.k, t.t2) for t in replace(base, t2_curve=name).times(SEED)], color)
        for name, color in zip(("linear", "square", "cosine", "random"), CURVES, strict=False)
    ]
    return plot(curves, "iteration k", "t2", 20, 1000, 200)


@picture("PlanSigmas", drawn=True)
def plan_sigmas(m: Material):
    levels = m.diffusion.process.levels
    share = torch.arange(20) / 20
    low, high = levels[0], levels[-1]
    schedules = {
        "sgm_uniform, simple, normal: even in time": levels[(999 * (1 - share)).round().long()],
        "exponential: even in log sigma": torch.lerp(high.log().double(), low.log().double(), share.double() * 20 / 19).exp(),
        "karras: even in sigma^(1/7)": torch.lerp(high.double() ** (1 / 7), low.double() ** (1 / 7), share.double() * 20 / 19)
        ** 7,
    }
    curves = [
        Curve(name, [*enumerate(sigmas.tolist()), (20, 0.0)], color)
        for (name, sigmas), color in zip(schedules.items(), CURVES, strict=False)
    ]
    return plot(curves, "step", "sigma", 20, 15, 3)


# --- stages ----------------------------------------------------------------------------------------------------------


@picture("SampleCameras")
def sample_cameras(m: Material):
    observer = orbit_cameras(24.0, 25.0, 3.7, width=640, height=380)
    canvas = sheet(Row(shown(m.field, observer)))
    draw = ImageDraw.Draw(canvas)
    for k, color in zip((0, 1, 2), CURVES, strict=False):
        for lines in _frusta(iteration_cameras(m.plan, SEED, k, 64)):
            for a, b in lines:
                draw.line((*_project(a, observer), *_project(b, observer)), color, 3)
    return sheet(Row([torch.from_numpy(_array(canvas))], ("k = 0 (blue), 1 (orange), 2 (green)",)))


def _array(image):
    import numpy as np

    return np.asarray(image, np.float32) / 255


def _frusta(cameras: Cameras, depth: float = 0.3) -> list[list[tuple[Tensor, Tensor]]]:
    """Lines of each camera's pyramid, in world space."""
    half = depth * torch.deg2rad(torch.tensor(cameras.fov_y / 2)).tan()
    corners = torch.stack([torch.stack([x * half, y * half, half.new_tensor(-depth)]) for x, y in _CORNERS])
    found = []
    for c2w in cameras.c2w:
        far = corners @ c2w[:3, :3].T + c2w[:3, 3]
        found.append([(c2w[:3, 3], corner) for corner in far] + list(zip(far, far.roll(-1, 0), strict=True)))
    return found


_CORNERS = ((-1, -1), (1, -1), (1, 1), (-1, 1))


def _project(point: Tensor, camera: Cameras) -> tuple[float, float]:
    x, y, z = camera.viewmats[0, :3, :3] @ point + camera.viewmats[0, :3, 3]
    u, v, w = camera.Ks[0] @ torch.stack([x, y, z])
    return float(u / w), float(v / w)


@picture("CameraLayout", drawn=True)
def camera_layout(m: Material):
    layouts = {
        "views 6, elevation 20": spread_cameras(6, 20.0, 0.0, 360.0, 2.0, DEFAULT_FOV_Y, 64),
        "views 5, azimuth -60, spread 120": spread_cameras(5, 0.0, -60.0, 120.0, 2.0, DEFAULT_FOV_Y, 64),
        "poses 60, 0 / 0, 90 / -30, 180": orbit_cameras([60.0, 0.0, -30.0], [0.0, 90.0, 180.0]),
    }
    return sheet(*(Row([rig_picture(cameras)], (), title) for title, cameras in layouts.items()))


@picture("RenderViews")
def render_views(m: Material):
    cameras = iteration_cameras(m.plan, SEED, 0, 256)
    render = m.field.render(cameras)
    covered = render.alpha > 0.5
    depth = render.depth / render.alpha.clamp_min(1e-6)
    near, far = depth[covered].min(), depth[covered].max()
    grey = (((far - depth) / (far - near)).clamp(0, 1) * covered)[..., 0]
    normal = normal_hint(render, cameras)
    return sheet(*(Row(shown, (), name) for name, shown in (("images", render.rgb), ("depth", grey), ("normal", normal))))


@picture("ConditionForEditing")
def condition_for_editing(m: Material):
    azimuths = (0, 45, 90, 180, 315)
    cameras = orbit_cameras(0.0, [float(a) for a in azimuths], 1.5, DEFAULT_FOV_Y, 160)
    captions = tuple(AZIMUTHS[a].removesuffix(" view").replace(" quarter", "") for a in azimuths)
    return sheet(Row(m.field.render(cameras, WHITE).rgb, captions, ELEVATIONS[0]))


@picture("ControlFromRenders")
def control_from_renders(m: Material):
    cameras = ring(5, 128)
    render = m.field.render(cameras, WHITE)
    return sheet(*(Row(HINTS[name](render, cameras), (), name) for name in ("depth", "normal")))


@picture("HybridForward")
def hybrid_forward(m: Material):
    last = m.plan.iterations - 1
    step = Step.of_plan(m.plan, SEED, 0, m.model.image_size, diffusion=m.diffusion)
    renders = m.after(-1).field.render(step.cameras).rgb
    noised, back = [renders[VIEW]], [m.reference.at_size(m.model.image_size).image]
    for forward in ("noise", "hybrid", "invert"):
        plan = replace(m.plan, forward=forward, eta=0.0)
        times = plan.iteration_times(last, SEED)
        late = replace(step, plan=plan, times=times)
        latents = forward_views(late, renders)
        noised.append(m.diffusion.decode(latents)[VIEW])
        back.append(denoise_views(late, latents)[1][VIEW])
    return sheet(
        Row(noised, ("render", "noise", "hybrid", "invert"), f"A rough render, taken to t2 = {times.t2}"),
        Row(back, ("(reference)", "noise", "hybrid", "invert"), "the same after DDIM Refine"),
    )


@picture("DDIMRefine")
def ddim_refine(m: Material):
    step = Step.of_plan(m.plan, SEED, 0, m.model.image_size, diffusion=m.diffusion)
    renders = m.after(-1).field.render(step.cameras).rgb
    latents = forward_views(step, renders)
    _, refined = denoise_views(step, latents)
    return sheet(
        Row(renders, (), "renders of the initialisation"),
        Row(m.diffusion.decode(latents), (), f"latent: noised to t2 = {step.times.t2}"),
        Row(refined, (), "images: refined"),
    )


@picture("ReconstructSteps")
def reconstruct_steps(m: Material):
    iteration = m.after(0)
    before = m.after(-1).field.render(iteration.step.cameras).rgb
    after = iteration.field.render(iteration.step.cameras).rgb
    first, last = iteration.losses[0], iteration.losses[-1]
    return sheet(
        Row(before, (), f"renders before: loss {first:.0f}"),
        Row(iteration.targets, (), "images to learn from"),
        Row(after, (), f"renders after {len(iteration.losses)} steps: loss {last:.0f}"),
    )


@picture("Generate")
def generate(m: Material):
    rows = []
    for k in (-1, 0, 4, m.plan.iterations - 1):
        iteration = m.after(k)
        name = "start" if k < 0 else f"k = {k}, t2 = {iteration.times.t2}"
        rows.append(Row(shown(iteration.field, ring(5)), (), f"{name}: loss {iteration.losses[-1]:.0f}"))
    return sheet(*rows)


@picture("SDSSteps")
def sds(m: Material):
    rows, steps = [], m.plan.discretization + sum(times.calls for times in m.plan.times(SEED))
    view = reference_view(m.reference, m.plan, m.model.image_size)
    for form in ("noise", "pixels"):
        start = Gaussians.ball(gaussian_settings(m.model.image_size), SEED)
        settings = SDSSettings(steps=steps, form=form, report_every=steps)
        *_, last = sds_steps(start, m.diffusion, m.plan, settings, SEED, reference=view)
        rows.append(Row(shown(last.field, ring(4)), (), f"form {form}: {steps} calls"))
    rows.append(Row(shown(m.field, ring(4)), (), f"SIR, {m.plan.iterations} iterations: {steps} calls"))
    return sheet(*rows)


@picture("CLIPSimilarity")
def clip_similarity(m: Material):
    extent = float(m.finished.vertices.norm(dim=1).max())
    frames = film(m.finished, film_cameras(extent, 8, 192, 0.0))
    pictures = [m.reference.image, *frames]
    captions = ["image", *(f"{45 * i}°" for i in range(8))]
    return sheet(*(Row(pictures[i : i + 3], captions[i : i + 3]) for i in (0, 3, 6)))


# --- mesh ------------------------------------------------------------------------------------------------------------


@picture("CleanGaussians")
def clean_gaussians(m: Material):
    field = with_floaters(m.field, 150)
    cleaned = clean(field)
    displayed = with_reference(cleaned, m.reference, m.plan)
    grey = torch.full((3,), 0.3)
    return sheet(
        Row(shown(field, ring(4))[:2] + shown(field, ring(4), grey)[2:], (), f"before: {len(field)}, on white and on grey"),
        Row(shown(cleaned, ring(4), grey), (), f"after: {len(cleaned)}"),
        Row(shown(displayed, ring(4)), (), f"with condition and plan: {len(displayed)}, on white"),
    )


def with_floaters(field: Gaussians, count: int) -> Gaussians:
    """The field with white Gaussians around it."""
    draw = generator(SEED, 0, "floaters")
    directions = F.normalize(torch.randn(count, 3, generator=draw), dim=1)
    means = directions * (0.42 + 0.1 * torch.rand(count, 1, generator=draw))
    white = Gaussians.from_points(means, torch.ones(count, 3), replace(field.settings, opacity=0.6)).parameters
    white = white._replace(log_scales=torch.full((count, 3), 0.02).log())
    both = [torch.cat(pair) for pair in zip(field.parameters, white, strict=True)]
    return Gaussians(Parameters(*both), field.settings)


@picture("ExtractMesh")
def extract_mesh(m: Material):
    found = surface_mesh(m.splats)
    settings = {"0.1": MeshSettings(threshold=0.1), f"0: {found.threshold:.2f} found": None, "4": MeshSettings(threshold=4.0)}
    meshes = {name: found.mesh if s is None else surface_mesh(m.splats, s).mesh for name, s in settings.items()}
    rows = [Row([clay(mesh, 40.0) for mesh in meshes.values()], list(meshes), "threshold")]
    coarse = surface_mesh(m.splats, MeshSettings(resolution=32)).mesh
    light = surface_mesh(m.splats, MeshSettings(target_faces=600)).mesh
    rough = surface_mesh(m.splats, MeshSettings(smoothing=0)).mesh
    rows.append(Row([clay(x, 40.0) for x in (coarse, light, rough)], ("resolution 32", "600 faces", "smoothing 0")))
    return sheet(*rows)


@picture("BakeTexture")
def bake_texture(m: Material):
    camera = orbit_cameras(10.0, 40.0, 1.5, width=384)
    pictures = [*film(m.surface, camera), *film(m.textured, camera), m.textured.texture]
    return sheet(Row(pictures, ("vertex colours", "baked", "the texture")))


@picture("RefineTexture")
def refine(m: Material):
    camera = orbit_cameras(5.0, 0.0, 1.3, width=384)
    view = reference_view(m.reference, m.plan, 2 * m.model.image_size)
    meshes = {"before": m.textured}
    for strength in (0.181, 0.7):
        settings = TextureRefinement.suited_to(m.model.image_size, m.plan.radius, m.plan.fov_y, strength=strength)
        meshes[f"strength {strength:g}"] = refine_texture(m.textured, m.diffusion, settings, SEED, reference=view)
    return sheet(Row([film(mesh, camera)[0][20:276, 64:320] for mesh in meshes.values()], list(meshes)))


@picture("Turntable")
def turntable(m: Material):
    extent = float(m.finished.vertices.norm(dim=1).max())
    frames = film(m.finished, film_cameras(extent, 8, 192, 10.0))
    return sheet(Row(frames[:4], ("0", "1", "2", "3")), Row(frames[4:], ("4", "5", "6", "7")))


@picture("ImageTo3D")
def image_to_3d(m: Material):
    extent = float(m.finished.vertices.norm(dim=1).max())
    frames = film(m.finished, film_cameras(extent, 8, 192, 10.0))
    picture = m.reference.at_size(192).image
    return sheet(Row([picture, *(frames[i] for i in (0, 1, 3, 6))], ("picture", "0°", "45°", "135°", "270°")))


for _node, _graph in GRAPHS.items():
    picture(_node, drawn=True)(lambda m, graph=_graph: graph())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_grad_enabled(False)
    write(Material(), sys.argv[1:] or list(PICTURES))


def write(material: Material, nodes: list[str]) -> None:
    """Make the pictures of these nodes."""
    for node in nodes:
        draw, drawn = PICTURES[node]
        ending, content = encoded(draw(material), drawn)
        with replace_file(PAGES / f"{node}{ending}") as temporary:
            temporary.write_bytes(content)
        log.info("%s%s %d bytes", node, ending, len(content))


if __name__ == "__main__":
    main()
