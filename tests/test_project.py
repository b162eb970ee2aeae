"""Images laid over a texture, and the reference that paints without bending."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.convert.image_to_gaussians import DiscSettings, lay_image_over
from microdreamer_core.errors import InputError
from microdreamer_core.fields.clean import clean
from microdreamer_core.fields.gaussians import Gaussians
from microdreamer_core.fields.protocol import WHITE
from microdreamer_core.job.run import with_reference
from microdreamer_core.mesh import Mesh
from microdreamer_core.meshing.pipeline import surface_mesh
from microdreamer_core.meshing.project import Projection, project_images, project_reference, remove_stains
from microdreamer_core.meshing.refine import TextureRefinement
from microdreamer_core.meshing.settings import MeshSettings
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.reference import OWN_SIZES, Reference, ReferenceView, prepare_reference
from microdreamer_core.render.mesh import render_mesh
from microdreamer_core.render.texels import Texels, continue_on_surface, fill_from_surface, texel_map
from microdreamer_core.sir.presets import PRESETS, get_plan
from microdreamer_core.sir.reconstruct import reconstruct
from microdreamer_core.sir.stages import reference_view

trimesh = pytest.importorskip("trimesh")

FRONT = orbit_cameras(0.0, 0.0, 1.5, width=192)


def textured(shape, size: int = 512) -> Mesh:
    """A trimesh shape, unwrapped and grey."""
    mesh = Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces))
    mesh = unwrap(mesh, size)
    return replace(mesh, texture=torch.full((size, size, 3), 0.5))


def stripes(size: int) -> torch.Tensor:
    """[1,S,S,3] smooth stripes across the image."""
    x = torch.arange(size) / size
    wave = 0.5 + 0.4 * torch.sin(x * 60)
    return torch.stack([wave, 1 - wave, x], -1).expand(1, size, size, 3).contiguous()


def photo_of(mesh: Mesh, cameras=FRONT) -> tuple[torch.Tensor, torch.Tensor]:
    """Stripes where the mesh is, on white, and its coverage."""
    alpha = render_mesh(mesh, cameras, supersample=2).alpha
    return stripes(cameras.width) * alpha + 1 - alpha, alpha


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


@pytest.fixture(scope="module")
def ball():
    return textured(trimesh.creation.icosphere(4, 0.4))


def test_the_front_shows_the_photo_and_the_back_stays(ball):
    image, alpha = photo_of(ball)
    mesh = project_images(ball, FRONT, image, alpha)
    seen = render_mesh(mesh, FRONT, supersample=2)
    assert psnr(seen.rgb, image) > 27  # the plain grey ball: 14
    back = render_mesh(mesh, orbit_cameras(0.0, 180.0, 1.5, width=192), supersample=2)
    inner = back.alpha[0, 40:150, 40:150] > 0.99
    assert (back.rgb[0, 60:130, 60:130] - 0.5).abs().max() < 1e-3 and inner.any()
    assert torch.equal(mesh.vertices, ball.vertices) and torch.equal(ball.texture, torch.full_like(ball.texture, 0.5))


def test_trust_falls_from_the_middle_to_the_rim(ball):
    """Between the photo in front and the texture behind there is no edge."""
    white = torch.ones(1, 192, 192, 3)
    mesh = project_images(ball, FRONT, white, photo_of(ball)[1], Projection(reach=0.0))
    texels = texel_map(ball, 512)
    shown = mesh.texture[texels.used].mean(1)
    eye = FRONT.c2w[0, :3, 3]
    cosine = (torch.nn.functional.normalize(eye - texels.positions, dim=1) * texels.normals).sum(1)
    assert shown[cosine > 0.6].min() > 0.99
    assert (shown[cosine < 0.1] - 0.5).abs().max() < 1e-3
    between = shown[(cosine > 0.28) & (cosine < 0.32)]
    assert 0.65 < between.min() and between.max() < 0.85


def test_relief_casts_no_shadow_into_the_texture():
    """A ledge hides a strip of the wall from a high camera; the strip takes the colours around it."""
    wall = trimesh.creation.box((0.8, 0.8, 0.1))
    ledge = trimesh.creation.box((0.5, 0.03, 0.12))
    ledge.apply_translation((0.0, 0.1, 0.1))
    mesh = textured(trimesh.util.concatenate([wall, ledge]))
    camera = orbit_cameras(35.0, 0.0, 1.6, width=192)
    alpha = render_mesh(mesh, camera, supersample=2).alpha
    red = torch.tensor([0.9, 0.1, 0.1]).expand(1, 192, 192, 3) * alpha + 1 - alpha

    def under_the_ledge(reach):
        made = project_images(mesh, camera, red, alpha, Projection(reach=reach))
        texels = texel_map(mesh, 512)
        x, y, z = texels.positions.unbind(1)
        hidden = (texels.normals[:, 2] > 0.9) & (z < 0.06) & (x.abs() < 0.15) & (y > 0.045) & (y < 0.075)
        assert hidden.any()
        return made.texture[texels.used][hidden]

    assert (under_the_ledge(0.0)[:, 0] - 0.5).abs().max() < 0.05
    assert under_the_ledge(0.1)[:, 0].min() > 0.55


def test_views_blend_where_both_look(ball):
    cameras = orbit_cameras(0.0, [-25.0, 25.0], 1.5, width=192)
    alpha = render_mesh(ball, cameras, supersample=2).alpha
    images = torch.stack([torch.zeros(192, 192, 3), torch.ones(192, 192, 3)])
    seen = render_mesh(project_images(ball, cameras, images, alpha), FRONT).rgb[0, 96]
    assert seen[60].mean() < seen[96].mean() < seen[132].mean()
    assert 0.4 < seen[96].mean() < 0.6


def test_a_photo_finer_than_the_texture_does_not_alias(ball):
    fine = orbit_cameras(0.0, 0.0, 1.5, width=2048)
    image, alpha = photo_of(ball, fine)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    mesh = project_images(ball, fine, noise * alpha + 1 - alpha, alpha)
    texels = texel_map(ball, 512)
    front = texels.normals[:, 2] > 0.8
    assert mesh.texture[texels.used][front].std() < 0.13  # of the noise itself: 0.29


def test_a_texture_that_is_not_square_is_resampled(ball):
    image, alpha = photo_of(ball)
    wide = replace(ball, texture=ball.texture[::2])
    assert wide.texture.shape[0] * 2 == wide.texture.shape[1]
    mesh = project_images(wide, FRONT, image, alpha)
    assert mesh.texture.shape == ball.texture.shape
    ours, usual = (render_mesh(m, FRONT, supersample=2).rgb for m in (mesh, project_images(ball, FRONT, image, alpha)))
    assert float((ours - usual).abs().mean()) < 0.02


def test_what_cannot_be_projected(ball):
    image, alpha = photo_of(ball)
    with pytest.raises(InputError, match="no texture; bake one"):
        project_images(replace(ball, texture=None), FRONT, image, alpha)
    with pytest.raises(InputError, match=r"shape \[1, 192, 192, 3\].*got \[1, 96, 96, 3\]"):
        project_images(ball, FRONT, image[:, ::2, ::2], alpha)
    with pytest.raises(InputError, match="grazing < facing"):
        Projection(grazing=0.6)
    assert project_reference(ball, None) is ball


def test_a_plan_that_weighs_no_reference_lays_none_over_the_texture():
    reference = Reference(torch.ones(256, 256, 3), torch.ones(256, 256, 1))
    assert reference_view(reference, get_plan("imagedream-gaussians")) is None
    assert len(reference_view(reference, get_plan("embedded")).image[0]) == 256


@pytest.mark.parametrize(("side", "size"), [(40, OWN_SIZES[0]), (365, 500), (2000, OWN_SIZES[1])])
def test_a_reference_keeps_its_own_resolution(side, size):
    image = torch.ones(side + 20, side + 20, 4)
    image[..., 3] = 0
    image[10:-10, 10:-10] = torch.tensor([0.2, 0.4, 0.6, 1.0])
    reference = prepare_reference(image, fill=0.73)
    assert reference.image.shape == (size, size, 3)
    restored = Reference.from_json(reference.to_json())
    assert torch.equal(restored.image, reference.image) and torch.equal(restored.alpha, reference.alpha)


def test_the_front_gets_more_texels():
    shape = trimesh.creation.icosphere(4, 0.4)
    mesh = Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces))
    toward = torch.tensor(shape.face_normals[:, 2], dtype=torch.float32).clamp_min(0)
    texels = texel_map(unwrap(mesh, 512, faces_per_part=500, detail=1 + toward), 512)
    front, back = ((texels.normals[:, 2] * sign > 0.5).sum() for sign in (1, -1))
    assert front > 1.8 * back


# --- what was learned is what is shown


def fitted(size: int = 32) -> Gaussians:
    """Gaussians fitted to coarse images of a red ball."""
    points = torch.nn.functional.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(1)), dim=1) * 0.4
    field = Gaussians.from_points(points, torch.full((300, 3), 0.5))
    azimuths = [0.0, 120.0, 240.0, 60.0, 60.0, 180.0, 0.0, 0.0]
    cameras = orbit_cameras([0.0, 0.0, 40.0, -40.0, 0.0, 0.0, 80.0, -80.0], azimuths, 1.5, width=size)
    alpha = render_mesh(Mesh(*ball_arrays()), cameras, supersample=4).alpha
    red = alpha * torch.tensor([0.9, 0.2, 0.1]) + 1 - alpha
    return reconstruct(field, cameras, red, 150, background=WHITE).field


@pytest.fixture(scope="module")
def coarse():
    return fitted()


def test_a_field_knows_the_pixels_that_it_was_fitted_to(coarse):
    expected = 2 * 1.5 * math.tan(math.radians(49.1 / 2)) / 32
    assert float(coarse.pixel) == pytest.approx(expected, rel=1e-5)
    tensors, values = coarse.to_state()
    assert Gaussians.from_state(tensors, values).pixel == float(coarse.pixel)
    del values["pixel"]  # a state of an earlier version
    assert Gaussians.from_state(tensors, values).pixel == 0


def test_absorbed_low_pass_keeps_the_object_at_finer_sizes(coarse):
    """The silhouette at eight times the size is the ball's; without the low-pass it is a thinner one's."""
    fine = orbit_cameras(0.0, 0.0, 1.5, width=256)
    truth = render_mesh(Mesh(*ball_arrays()), fine).alpha > 0.5
    before, after = (
        float(((f.render(fine, WHITE).alpha > 0.5) != truth).float().mean()) for f in (coarse, coarse.absorb_low_pass())
    )
    assert after < 0.006 and after < 0.3 * before


def ball_arrays():
    shape = trimesh.creation.icosphere(4, 0.4)
    return torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)


def test_the_low_pass_is_absorbed_once(coarse):
    shown = coarse.absorb_low_pass()
    variances = coarse.splats().scales.square() + 0.3 * coarse.pixel**2
    assert torch.allclose(shown.splats().scales.square(), variances, rtol=1e-5)
    assert shown.settings.antialiased and shown.absorb_low_pass() is shown
    imported = replace(coarse, pixel=0.0)
    assert imported.absorb_low_pass() is imported
    assert clean(coarse).settings.antialiased


def test_a_mesh_of_a_coarse_fit_lies_where_the_object_is(coarse):
    """Radius 0.4; with the screen's blur in far silhouettes it came out 4 percent too large, without any blur too small."""
    vertices = surface_mesh(coarse, MeshSettings(resolution=64)).mesh.vertices
    assert vertices.norm(dim=1).median() == pytest.approx(0.4, rel=0.025)


# --- the reference paints without bending


def learned_with(reference: ReferenceView, field: Gaussians) -> Gaussians:
    cameras = orbit_cameras(0.0, [90.0, 180.0], 1.5, width=32)
    with torch.no_grad():
        targets = field.render(cameras, WHITE).rgb
    return reconstruct(field, cameras, targets, 1, reference=reference, background=WHITE).field


def test_paint_changes_colours_alone(coarse):
    field = replace(coarse, exp_avg=None, exp_avg_sq=None)
    camera = orbit_cameras(0.0, 0.0, 1.5, width=32)
    blue = torch.tensor([0.1, 0.1, 0.9]).expand(1, 32, 32, 3)
    view = ReferenceView(camera, blue, torch.ones(1, 32, 32, 1), 0.0, 0.0)
    plain, painted, bent = (
        learned_with(v, field).parameters for v in (view, replace(view, paint_weight=1.0), replace(view, color_weight=1.0))
    )
    assert not torch.allclose(painted.dc, plain.dc, atol=1e-3)
    assert torch.equal(painted.means, plain.means) and torch.equal(painted.opacity_logits, plain.opacity_logits)
    assert not torch.allclose(bent.means, plain.means, atol=1e-4)


def test_only_gaussians_can_be_painted():
    with pytest.raises(InputError, match="ref_paint_weight of the plan must be 0 for a NeRF"):
        get_plan("embedded-nerf", ref_paint_weight=1.0)
    assert all(plan.representation == "gaussians" or not plan.ref_paint_weight for plan in PRESETS.values())


# --- the reference over finished Gaussians


def striped(size: int = 128) -> tuple:
    """(camera, image, alpha) of a striped ball from the front."""
    camera = orbit_cameras(0.0, 0.0, 1.5, width=size)
    alpha = render_mesh(Mesh(*ball_arrays()), camera, supersample=2).alpha
    return camera, stripes(size) * alpha + 1 - alpha, alpha


def test_discs_bring_the_front_and_leave_the_other_sides(coarse):
    field = clean(coarse)
    before = field.clone()
    camera, image, alpha = striped()
    made = lay_image_over(field, camera, image, alpha)
    middle = slice(48, 80), slice(48, 80)
    blurred, sharp = (f.render(camera, WHITE).rgb[0][middle] for f in (field, made))
    assert psnr(sharp, image[0][middle]) > psnr(blurred, image[0][middle]) + 8 and psnr(sharp, image[0][middle]) > 20
    behind = orbit_cameras([0.0, 40.0], [180.0, 160.0], 1.5, width=128)
    assert psnr(made.render(behind, WHITE).rgb, field.render(behind, WHITE).rgb) > 45
    outline, own = (f.render(camera, WHITE).alpha > 0.5 for f in (made, field))
    assert float((outline != own).float().mean()) < 0.003, "the discs end within the silhouette"
    for old, same, new in zip(before.parameters, field.parameters, made.parameters, strict=True):
        assert torch.equal(old, same) and torch.equal(new[: len(field)], old), "the Gaussians stay as they are"
    assert len(made) > len(field) + 1000 and not any(bool(m.any()) for m in made.exp_avg)
    discs = made.subset(slice(len(field), None)).splats()
    radius = discs.means.norm(dim=1)
    assert bool((discs.means[:, 2] > 0.05).all())
    assert radius.median() == pytest.approx(0.38, abs=0.03), "in the haze of the surface"
    assert torch.equal(lay_image_over(field, camera, image, alpha).parameters.dc, made.parameters.dc)


def test_discs_take_colours_that_show_the_image_through_the_haze(coarse):
    field = clean(coarse)
    camera, image, alpha = striped()
    plain = lay_image_over(field, camera, image, alpha, DiscSettings(steps=0))
    middle = slice(48, 80), slice(48, 80)
    errors = [
        psnr(f.render(camera, WHITE).rgb[0][middle], image[0][middle]) for f in (plain, lay_image_over(field, *striped()))
    ]
    assert errors[1] > errors[0] + 1
    colors = lay_image_over(field, camera, image, alpha, DiscSettings(correction=0.0)).splats().colors
    assert torch.allclose(colors, plain.splats().colors, atol=1e-6)


def test_discs_stay_within_the_outlines_from_other_sides(coarse):
    """Haze before an object makes its surface seem nearer; discs there would float."""
    camera, image, alpha = striped()
    assert lay_image_over(coarse, camera, image, alpha, DiscSettings(lift=0.3)) is coarse
    turned = orbit_cameras(10.0, 130.0, 1.5, width=128)
    assert lay_image_over(coarse, turned, image, alpha, DiscSettings(lift=0.3)) is coarse
    discs = len(lay_image_over(clean(coarse), turned, image, alpha)) - len(clean(coarse))
    assert discs > 0.9 * (len(lay_image_over(clean(coarse), camera, image, alpha)) - len(clean(coarse)))


def test_an_image_of_nothing_adds_no_discs(coarse):
    camera, image, alpha = striped(64)
    assert lay_image_over(coarse, camera, image, torch.zeros_like(alpha)) is coarse
    with pytest.raises(InputError, match="of one camera is laid over Gaussians, got 2 cameras; "):
        lay_image_over(coarse, orbit_cameras(0.0, [0.0, 90.0], 1.5, width=64), image, alpha)
    with pytest.raises(InputError, match="got 8, 3 and 4; 192, 3 and 4 are usual"):
        DiscSettings(size=8)
    with pytest.raises(InputError, match="0 <= grazing < facing <= 1"):
        DiscSettings(grazing=0.6)


def test_only_plans_that_let_the_reference_paint_lay_it_over(coarse):
    _, image, alpha = striped(256)
    reference = Reference(image[0], alpha[0])
    field, plan = clean(coarse), get_plan("embedded")
    assert with_reference(field, None, plan) is field
    assert with_reference(field, reference, replace(plan, ref_paint_weight=0.0)) is field
    assert with_reference(SimpleNamespace(kind="nerf"), reference, plan).kind == "nerf"
    assert len(with_reference(field, reference, plan)) > len(field)


# --- stains of the background


def test_white_that_the_photo_does_not_show_is_painted_over(ball):
    """A white patch on the back of a red ball goes; on a ball whose photo is white there, it stays."""
    texels = texel_map(ball, 512)
    patch = texels.normals @ torch.tensor([0.0, 0.0, -1.0]) > 0.8
    colors = torch.where(patch[:, None], torch.tensor([0.97, 0.97, 0.97]), torch.tensor([0.8, 0.1, 0.1]))
    texture = ball.texture.clone()
    texture[texels.used] = colors
    stained = replace(ball, texture=texture)
    alpha = render_mesh(ball, FRONT, supersample=2).alpha

    def cleaned_by(photo):
        image = torch.tensor(photo).expand(1, 192, 192, 3) * alpha + 1 - alpha
        return remove_stains(stained, FRONT, image, alpha).texture[texels.used][patch]

    assert (cleaned_by([0.8, 0.1, 0.1]) - torch.tensor([0.8, 0.1, 0.1])).abs().max() < 0.05
    assert torch.allclose(cleaned_by([0.95, 0.95, 0.95]), torch.full((int(patch.sum()), 3), 0.97))
    unstained = replace(ball, texture=torch.full_like(texture, 0.4))
    assert remove_stains(unstained, FRONT, alpha.expand(-1, -1, -1, 3) * 0.4, alpha) is unstained


def test_changes_reach_creases_that_no_view_sees(ball):
    texels = texel_map(ball, 512)
    trust = (texels.positions[:, 0].abs() > 0.02).float()  # a strip around the middle is unseen
    values = texels.positions.sign()[:, :1].abs().expand(-1, 3).contiguous() * 0.3
    values[trust == 0] = 0.0
    filled, after = continue_on_surface(texels, values, trust, reach=0.08)
    assert (filled[trust == 0] - 0.3).abs().max() < 1e-4 and after[trust == 0].min() > 0.4
    assert torch.equal(filled[trust == 1], values[trust == 1])
    untouched, same = continue_on_surface(texels, values, trust, reach=0.08, openness=torch.zeros_like(trust))
    assert untouched is values and same is trust


def test_small_models_change_the_texture_gently():
    small, large = (TextureRefinement.suited_to(size, 1.5, 40.0) for size in (64, 256))
    assert large == TextureRefinement(radius=1.5, fov_y=40.0)
    assert small == replace(large, step_size=large.step_size / 4, discretization=5)
    assert (len(small.path()), len(large.path())) == (2, 10)


@pytest.mark.parametrize("known", [1, 8])
def test_a_single_texel_can_be_the_only_one_known_or_unknown(known):
    """As on meshes of few faces and small textures."""
    rng = torch.Generator().manual_seed(0)
    positions, colors = torch.rand(9, 3, generator=rng), torch.rand(9, 3, generator=rng)
    texels = Texels(torch.ones(3, 3, dtype=torch.bool), positions, torch.tensor([0.0, 0.0, 1.0]).expand(9, 3), None)
    trust = (torch.arange(9) < known).float()
    filled, trusted = continue_on_surface(texels, colors, trust, 4.0)
    everywhere = fill_from_surface(texels, colors, trust, 1.0)
    assert torch.equal(filled[:known], colors[:known]) and torch.equal(everywhere[:known], colors[:known])
    assert bool((trusted > 0).all())
    if known == 1:
        assert torch.allclose(filled, colors[:1].expand(9, 3)) and torch.allclose(everywhere, colors[:1].expand(9, 3))
