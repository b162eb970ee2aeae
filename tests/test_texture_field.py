"""The texture of a mesh as a field: SIR on it, masks, uvs that will not do, states, and the final projection."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import label

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.fields import texture
from microdreamer_core.fields.protocol import StepRange
from microdreamer_core.fields.texture import TextureField, TextureSettings, texture_field
from microdreamer_core.fields.texture_faults import doubled_share, find_fault
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.mesh import Mesh, SurfaceMaps
from microdreamer_core.meshing.atlas import lay_out_texture
from microdreamer_core.meshing.masks import feather_mask, mask_from_box, mask_from_view
from microdreamer_core.meshing.retexture import final_projection, tile_cameras
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.render.mesh import render_mesh, sample_texture
from microdreamer_core.render.texels import texel_map

trimesh = pytest.importorskip("trimesh")

SIDES = orbit_cameras(0.0, [0.0, 90.0, 180.0, 270.0], 1.5, width=48)


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


def square(low: float, high: float, z: float = 0.0) -> Mesh:
    """A square in the xy plane that faces +z, with uvs over the whole texture."""
    corners = torch.tensor([[low, low, z], [high, low, z], [high, high, z], [low, high, z]])
    uvs = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), uvs)


def fit(field: TextureField, images: torch.Tensor, cameras, steps: int = 15, norm: int = 1) -> TextureField:
    optimizer = field.optimizer(StepRange(steps, 0))
    for _ in range(steps):
        render = optimizer.render(cameras)
        optimizer.step((render.rgb - images).abs().pow(norm).sum() / len(images), render)
    return optimizer.finish()


@pytest.fixture(scope="module")
def ball():
    """A ball in xatlas' charts."""
    shape = trimesh.creation.icosphere(3, 0.4)
    return unwrap(Mesh(torch.tensor(shape.vertices, dtype=torch.float32), torch.tensor(shape.faces)), 128)


@pytest.fixture
def bench(benchmark):
    return benchmark("texture_field")


# --- the table


def test_sir_makes_lone_views_agree_and_the_projection_makes_them_sharp(bench):
    """Facts 3.3: in every seed where one shot is a patchwork, SIR finds one object, and the projection adds 6 dB."""
    scene = bench.Scene.of_points(bench.bumpy_ball(), 128, 48)
    patchworks = 0
    for seed in range(3):
        model = scene.model()
        patchworks += scene.score(bench.run_one_shot(scene, model, seed).mesh)["share"] < 0.8
        field = bench.run_sir(scene, model, seed)
        agreed, projected = (
            scene.score(mesh) for mesh in (field.mesh, final_projection(field.mesh, model, radius=1.5, seed=seed))
        )
        assert agreed["share"] >= 0.95 and projected["share"] >= 0.99
        assert projected["whole"] >= agreed["whole"] + 6
    assert patchworks >= 2


def test_seams_are_no_steeper_than_the_texture(bench, ball):
    scene = bench.Scene.of_points(ball, 256, 48)
    model = scene.model(4)
    fitted = final_projection(bench.run_sir(scene, model, 0, 2), model, radius=1.5)
    assert scene.score(fitted.mesh)["whole"] > 28
    assert bench.seam_ratio(replace(ball, texture=scene.textures[0])) <= 1.2 and bench.seam_ratio(fitted.mesh) <= 1.2
    charts, count = label(fitted.texels.used.numpy(), np.ones((3, 3)))
    tints = torch.rand(count + 1, 3, generator=torch.Generator().manual_seed(0))[torch.from_numpy(charts).long()]
    assert bench.seam_ratio(replace(fitted.mesh, texture=fitted.texture + 0.2 * tints)) > 1.5


def test_the_benchmark_writes_table_and_sizes(bench, monkeypatch, tmp_path, capsys):
    small = {"one shot, 8 views": bench.METHODS["one shot, 8 views"]}
    monkeypatch.setattr(bench, "METHODS", small)
    scene = bench.Scene.of_points(bench.bumpy_ball(8, 16), 32, 16)
    (row,) = bench.measure_table(scene, [0], list(small))
    assert row["evaluations"] == 160 and 0 < row["share"] <= 1
    monkeypatch.setattr(bench, "_measure_apart", lambda size, path: bench.measure_size(size, 2, 16, 2))
    monkeypatch.setattr(sys, "argv", ["texture_field", "--json", str(tmp_path / "sizes.json"), "--sizes", "64"])
    bench.main()
    (row,) = json.loads((tmp_path / "sizes.json").read_text())["sizes"]
    assert row["size"] == 64 and all(value > 0 for value in row["seconds"].values()) and "64  start" in capsys.readouterr().out


# --- the field


@pytest.mark.parametrize("norm", [1, 2])
def test_a_texture_learns_images_and_keeps_the_rest_of_the_mesh(ball, norm):
    texels = texel_map(ball, 128)
    painted = torch.zeros(128, 128, 3)
    painted[texels.used] = texels.positions + 0.5
    truth, maps = replace(ball, texture=painted), SurfaceMaps(roughness=0.3, normal=torch.rand(8, 8, 3))
    start = texture_field(replace(ball, maps=maps), 128, "grey")
    images = render_mesh(truth, SIDES, supersample=4).rgb
    fitted = fit(start, images, SIDES, norm=norm)
    assert psnr(fitted.render(SIDES).rgb, images) > psnr(start.render(SIDES).rgb, images) + 10
    mesh = fitted.mesh
    assert mesh.vertices is ball.vertices and mesh.faces is ball.faces and mesh.uvs is ball.uvs and mesh.maps is maps
    assert fitted.step == 15 and start.step == 0 and bool((start.texture == 0.5).all())
    # the same as with the whole gradient and one step after another, whichever order renders and cameras come in
    again = fit(start, images.flip(0), SIDES[[3, 2, 1, 0]], norm=norm)
    assert torch.allclose(again.texture, fitted.texture, atol=1e-5)


def test_a_step_takes_off_its_share_of_the_squared_error():
    field = texture_field(square(-0.5, 0.5), 64, "grey", settings=TextureSettings(0.25, fading=False))
    camera = orbit_cameras(0.0, 0.0, 1.0, width=32)
    stepped = fit(field, torch.full((1, 32, 32, 3), 0.9), camera, steps=1, norm=2)
    assert stepped.texture[32, 32] == pytest.approx(0.5 + 0.25 * 0.4, abs=1e-5)
    assert stepped.seen[32, 32] == pytest.approx(1.0, abs=1e-3)


def test_texels_finer_than_pixels_do_not_alias():
    noise = torch.rand(2048, 2048, 3, generator=torch.Generator().manual_seed(0))
    field = texture_field(replace(square(-0.5, 0.5), texture=noise), 2048)
    camera = orbit_cameras(0.0, 0.0, 1.2, width=64)
    inner = (0, slice(16, 48), slice(16, 48))
    deviation = [float(render.rgb[inner].std()) for render in (field.render(camera), render_mesh(field.mesh, camera))]
    assert deviation[0] < 0.03 < 0.15 < deviation[1]  # a pixel shows 40 x 40 texels


def test_starts(ball):
    grey, noise, again = (texture_field(ball, 128, start) for start in ("grey", "noise", "noise"))
    assert torch.equal(noise.texture, again.texture) and noise.texture[noise.texels.used].std() > 0.1
    other = texture_field(ball, 128, "noise", torch.Generator().manual_seed(5))
    assert not torch.equal(noise.texture, other.texture)
    colors = replace(ball, colors=(ball.vertices + 0.5).clamp(0, 1))
    assert psnr(texture_field(colors, 256).render(SIDES).rgb, render_mesh(colors, SIDES, supersample=4).rgb) > 35
    own = replace(ball, texture=noise.texture)
    assert torch.equal(texture_field(own, 128).texture, noise.texture)
    assert texture_field(own, None).size == 128 and texture_field(own, 64).texture.shape == (64, 64, 3)
    bench_seam = [(a - b).abs().mean() for a, b in [_across_seams(ball, noise.texture)]][0]
    assert bench_seam < 0.05  # the noise lies in space, so no seam shows


def _across_seams(mesh, texture):
    """Colours at the two copies of vertices that a seam doubles."""
    _, same, count = torch.unique(mesh.vertices, dim=0, return_inverse=True, return_counts=True)
    doubled = (count[same] == 2).nonzero()[:, 0]
    order = doubled[same[doubled].argsort(stable=True)].reshape(-1, 2)
    return (sample_texture(texture, mesh.uvs[order[:, i]]) for i in (0, 1))


def test_a_field_saved_and_read_is_the_same(ball, tmp_path):
    mask = torch.zeros(128, 128)
    mask[:, :64] = 0.5
    maps = SurfaceMaps(metallic=0.5, occlusion=torch.rand(4, 4, 3), emission=(1.0, 0.5, 0.0))
    start = texture_field(replace(ball, maps=maps), 128, "noise", mask=mask, settings=TextureSettings(0.3))
    field = fit(start, torch.zeros(4, 48, 48, 3), SIDES, 3)
    read = load_state(save_state(tmp_path / "field.safetensors", field, {"k": 1})).field
    assert isinstance(read, TextureField) and (read.step, read.settings) == (3, field.settings)
    for name in ("texture", "mask", "seen"):
        assert torch.equal(getattr(read, name), getattr(field, name))
    assert torch.equal(read.mesh.texture, field.mesh.texture) and torch.equal(read.mesh.faces, ball.faces)
    assert read.mesh.maps.emission == maps.emission and torch.equal(read.mesh.maps.occlusion, maps.occlusion)
    ahead, behind = (fit(f, torch.zeros(4, 48, 48, 3), SIDES, 3) for f in (field, read))
    assert torch.equal(ahead.texture, behind.texture)
    with pytest.raises(InputError, match="incomplete"):
        TextureField.from_state({}, {})


def test_unseen_texels_take_colours_from_the_surface_not_across_seams():
    """Two squares, apart in space and side by side in the texture: the unseen end of one takes its own other end's colour."""
    left, right = square(-0.4, 0.4), square(-0.4, 0.4, -2.0)
    half = torch.tensor([0.5, 1.0])
    uvs = torch.cat([left.uvs * half, right.uvs * half + torch.tensor([0.5, 0.0])])
    mesh = Mesh(torch.cat([left.vertices, right.vertices]), torch.cat([left.faces, right.faces + 4]), uvs)
    field = texture_field(mesh, 64, "grey")
    colors, seen = field.texture.clone(), torch.zeros(64, 64, 1)
    colors[:, :24], colors[:, 24:32], colors[:, 32:] = 0.2, 0.9, 0.8
    seen[:, :24], seen[:, 32:] = 1.0, 1.0
    done = replace(field, texture=colors, seen=seen).complete()
    assert (done.texture[:, :32] - 0.2).abs().max() < 1e-5 and (done.texture[:, 32:] - 0.8).abs().max() < 1e-5


def test_a_field_grows_with_its_mask_and_what_was_before(ball):
    mask = torch.zeros(128, 128)
    mask[:64] = 1
    field = fit(texture_field(ball, 128, "noise", mask=mask), torch.zeros(4, 48, 48, 3), SIDES, 3)
    large = field.resize(256)
    assert large.texels.used.shape == (256, 256) and (large.size, large.step) == (256, 3)
    assert psnr(large.render(SIDES).rgb, field.render(SIDES).rgb) > 33
    further = fit(large, torch.ones(4, 48, 48, 3), SIDES, 3)
    assert torch.equal(further.mesh.texture[130:], large.mesh.texture[130:])
    with pytest.raises(InputError, match="16 to 8192"):
        field.resize(9000)


def test_what_cannot_be_optimised(ball):
    field = texture_field(ball, 64, "grey")
    optimizer = field.optimizer()
    render = optimizer.render(SIDES)
    with pytest.raises(NumericalError, match="gradient of the images is not finite"):
        optimizer.step((render.rgb * float("nan")).sum(), render)
    assert torch.equal(optimizer.finish().texture, field.texture)


# --- masks


@pytest.mark.parametrize("color", [(0.1, 0.2, 0.8), (1.0, 1.0, 1.0)])
def test_background_of_a_narrower_outline_does_not_get_onto_the_surface(ball, color):
    """A model's object is often a pixel narrower than the mesh; white may be its colour, too."""
    thin = replace(ball, vertices=0.93 * ball.vertices, texture=torch.tensor(color).expand(8, 8, 3))
    cameras = orbit_cameras([0.0, 20.0] * 4, torch.arange(8) * 45.0, 1.5, width=48)
    targets = render_mesh(thin, cameras, supersample=4).rgb
    field = texture_field(ball, 128, "grey")
    for _ in range(3):
        field = fit(field, targets, cameras, norm=2)
    texels = field.complete().texture[field.texels.used]
    off = (texels - torch.tensor(color)).abs().amax(1)
    assert off.median() < 0.02 and (off > 0.25).float().mean() < 0.02


def test_texels_outside_a_mask_stay_bit_for_bit(ball):
    noise = torch.rand(128, 128, 3, generator=torch.Generator().manual_seed(0))
    start = replace(ball, texture=noise)
    texels = texel_map(ball, 128)
    mask = mask_from_box(texels, [-1, 0, -1], [1, 1, 1])
    assert torch.equal(mask[texels.used][:, 0] > 0, texels.positions[:, 1] >= 0)
    field = texture_field(start, 128, "grey", mask=mask)
    fitted = fit(field, torch.zeros(4, 48, 48, 3), SIDES)
    outside = mask[..., 0] == 0
    for changed in (fitted, fitted.complete()):
        assert torch.equal(changed.mesh.texture[outside], noise[outside])
        inside = changed.mesh.texture[(mask[..., 0] > 0) & texels.used]
        assert inside.mean() < 0.1


def test_a_feathered_mask_rises_inwards(ball):
    texels = texel_map(ball, 128)
    mask = mask_from_box(texels, [-1, 0, -1], [1, 1, 1])
    soft = feather_mask(texels, mask, 0.1)
    height, value = texels.positions[:, 1], soft[texels.used][:, 0]
    assert bool((value[height < 0] == 0).all()) and bool((value[height > 0.12] == 1).all())
    near = (height > 0.02) & (height < 0.06)
    assert bool((value[near] > 0).all()) and bool((value[near] < 0.9).all())
    white = replace(ball, texture=torch.ones(128, 128, 3))
    fitted = fit(texture_field(white, 128, mask=soft), torch.zeros(4, 48, 48, 3), SIDES)
    shown = fitted.mesh.texture[texels.used].mean(1)
    assert shown[near].min() > 0.05 and shown[near].mean() == pytest.approx(1 - float(value[near].mean()), abs=0.1)


def test_a_mask_painted_in_a_view_marks_what_the_view_sees(ball):
    texels, front = texel_map(ball, 128), orbit_cameras(0.0, 0.0, 1.5)
    painted = torch.zeros(1, 96, 96)
    painted[:, :, 48:] = 1
    inside = mask_from_view(ball, texels, front, painted)[texels.used][:, 0] > 0.5
    x, _, z = texels.positions.unbind(1)
    assert bool((x[inside] > -0.02).all()) and bool((z[inside] > 0).all()) and inside.sum() > 0.12 * len(inside)


# --- uvs


def test_uvs_that_will_not_do_are_laid_out_again_with_their_colours(ball):
    painted = texture_field(ball, 128, "noise").texture
    whole = replace(ball, texture=painted, maps=SurfaceMaps(occlusion=painted, normal=painted))
    assert find_fault(whole, 128) is None and lay_out_texture(whole, 128) is whole and doubled_share(whole, 128) < 0.01
    mirrored = replace(whole, uvs=torch.stack([(whole.uvs[:, 0] * 2 - 1).abs(), whole.uvs[:, 1]], 1))
    nowhere = replace(whole, uvs=(whole.uvs * 8).floor() / 8 * 0 + 0.25)
    broken = replace(whole, uvs=whole.uvs.clone().index_fill(0, torch.tensor([5]), float("nan")))
    cases = ((mirrored, "several places"), (nowhere, "no area in the texture"), (broken, "NaN"))
    for mesh, words in cases:
        with pytest.raises(InputError, match=f"{words}.*unwrap the mesh again"):
            texture_field(mesh, 128)
        laid = lay_out_texture(mesh, 256)
        assert find_fault(laid, 256) is None and laid.maps.normal is None and laid.maps.occlusion.shape == (256, 256, 3)
        finite = replace(mesh, uvs=mesh.uvs.nan_to_num(0.5))
        similar = psnr(*(render_mesh(m, SIDES, supersample=4).rgb for m in (laid, finite)))
        assert similar > (25 if mesh is broken else 35)
    assert lay_out_texture(replace(ball, uvs=None), 128).uvs is not None


def test_gutters_follow_their_charts_by_two_texels():
    used = torch.zeros(16, 16, dtype=torch.bool)
    used[4:6, 4:6], used[12, 12] = True, True
    place, source = texture._with_gutter(used)
    ringed = torch.zeros(16 * 16, dtype=torch.bool)
    ringed[place] = True
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[2:8, 2:8], expected[10:15, 10:15] = True, True
    assert torch.equal(ringed.view(16, 16), expected) and len(place) == len(source)
    assert bool((source[place < 8 * 16 + 8] < 4).all()) and bool((source[place > 10 * 16] == 4).all())
    assert torch.equal(source[torch.isin(place, used.reshape(-1).nonzero()[:, 0])], torch.arange(5))


def test_a_texture_that_does_not_fit_into_memory_is_counted(ball, monkeypatch):
    monkeypatch.setattr(texture, "free_memory_mb", lambda: 100)
    with pytest.raises(InputError, match="1024x1024 texels takes about 200 MB .*100 MB are free; choose a smaller"):
        texture_field(ball, 1024)
    assert texture_field(ball, 512).size == 512


def test_meshes_and_settings_that_are_refused(ball):
    for mesh, words in (
        (replace(ball, faces=ball.faces[:0]), "mesh with faces, got none"),
        (replace(ball, uvs=None), "no texture coordinates; unwrap"),
        (replace(ball, uvs=ball.uvs * 2), "leave the texture"),
        (replace(ball, vertices=ball.vertices * float("nan")), "not finite"),
    ):
        with pytest.raises(InputError, match=words):
            texture_field(mesh, 128)
    for choices, words in (
        ({"size": 8}, "16 to 8192 texels"),
        ({"start": "blue"}, "one of mesh, grey, noise, got 'blue'"),
        ({"mask": torch.zeros(64, 64)}, r"128x128 texels must have that size, got \[64, 64\]"),
        ({"mask": torch.full((128, 128), float("nan"))}, "mask holds NaN"),
    ):
        with pytest.raises(InputError, match=words):
            texture_field(ball, **{"size": 128, **choices})
    with pytest.raises(InputError, match=r"Masks of 4 views have shape \[4,H,W\], got \[1, 8, 8\]"):
        mask_from_view(ball, texel_map(ball, 64), SIDES, torch.zeros(1, 8, 8))
    with pytest.raises(InputError, match="lower and an upper corner"):
        mask_from_box(texel_map(ball, 64), [1, 1, 1], [0, 0, 0])


# --- the final projection


def test_tiles_show_the_parts_of_a_view():
    field = texture_field(square(-0.5, 0.5), 256, "noise")
    front = orbit_cameras(0.0, 0.0, 1.2, fov_y=50.0, width=64)
    whole = render_mesh(field.mesh, front.resize(128), supersample=4).rgb[0]
    parts = tile_cameras(front, 2, 0.0)
    assert len(parts) == 4 and all(part.width == 64 and part.azimuth is not None for part in parts)
    corners = [whole[a : a + 64, b : b + 64] for a in (0, 64) for b in (0, 64)]
    for part, corner in zip(parts, corners, strict=True):
        shown = render_mesh(field.mesh, part, supersample=4).rgb[0]
        likeness = [psnr(shown, other) for other in corners]
        assert max(likeness) == psnr(shown, corner)
    with pytest.raises(InputError, match="at least 1 tile"):
        tile_cameras(front, 0)


def test_tiles_add_detail_and_masks_hold(bench):
    scene = bench.Scene.of_points(bench.bumpy_ball(), 128, 32)
    model = scene.model(8)
    blurred = torch.nn.functional.avg_pool2d(scene.textures[0].permute(2, 0, 1), 9, 1, 4).permute(1, 2, 0)
    mask = torch.zeros(128, 128)
    mask[:, 64:] = 1
    mesh = replace(scene.mesh, texture=blurred)
    whole, tiled = (final_projection(mesh, model, radius=1.5, zooms=zooms) for zooms in ((1,), (1, 3)))
    assert scene.score(tiled)["whole"] > scene.score(whole)["whole"] + 1.5 > scene.score(mesh)["whole"] + 1.5
    masked = final_projection(texture_field(mesh, 128, mask=mask), model, radius=1.5)
    assert torch.equal(masked.mesh.texture[:, :64], blurred[:, :64])
    assert not torch.equal(masked.mesh.texture[:, 64:], blurred[:, 64:])


def test_the_final_projection_wants_a_texture_and_whole_groups(ball, bench):
    scene = bench.Scene.of_points(bench.bumpy_ball(8, 16), 32, 16)
    with pytest.raises(InputError, match="no texture"):
        final_projection(ball, scene.model())
