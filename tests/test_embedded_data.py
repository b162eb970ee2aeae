"""The shipped model's data beside the toys: classless shapes, meshes of a folder, their pictures; and its evaluation."""

import numpy as np
import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.diffusion.embedded.network import EmbeddedConfig, MultiViewDenoiser, PatchCodec
from microdreamer_core.errors import InputError
from microdreamer_core.training import classless, evaluate, meshes, surfaces, train

SMALL = EmbeddedConfig(image_size=32, channels=8, widths=(16, 32), head_dim=8, context=16)


def cube(side: float = 1.0) -> surfaces.Surface:
    import trimesh

    box = trimesh.creation.box((side,) * 3)
    corners = box.vertices[box.faces]
    normals = np.repeat(box.face_normals[:, None], 3, 1)
    return surfaces.Surface.plain(corners, normals, np.full_like(corners, 0.5))


@pytest.fixture
def folder(tmp_path):
    """Two packs of small meshes, one file that is no mesh and one that is too large."""
    import trimesh

    for pack, names in (("a", ("ball", "box_blue", "box_red", "cone")), ("b", ("ring", "can"))):
        (tmp_path / pack).mkdir()
        for name in names:
            trimesh.creation.icosphere(1).export(tmp_path / pack / f"{name}.glb")
    (tmp_path / "a" / "torn.gltf").write_text("{")
    return tmp_path


def test_shapes_repeat_fit_their_ball_and_differ_from_held_out_ones():
    for seed in range(25):
        shape = classless.make_shape(seed)
        assert np.linalg.norm(shape.corners, axis=-1).max() <= 1 + 1e-5
        assert np.isfinite(shape.normals).all() and 0 <= shape.colors.min() and shape.colors.max() <= 1
        assert shape.paint.max() < len(shape.paints)
    again = classless.make_shape(seed)
    assert np.array_equal(shape.corners, again.corners) and np.array_equal(shape.paints, again.paints)
    held_out = classless.make_shape(toys.HELD_OUT + seed)
    assert held_out.corners.shape != shape.corners.shape or not np.array_equal(held_out.corners, shape.corners)


def test_shapes_are_of_many_kinds():
    """Thin and full, whole and cut, many parts and one."""
    rows = [classless._sample_parts(np.random.default_rng(i)) for i in range(200)]
    assert {int(k) for r in rows for k in r[:, classless.KIND]} == set(range(7))
    assert 0.1 < np.mean([(r[:, classless.OPERATION] == classless.CUT).any() for r in rows]) < 0.4
    counts = [len(r) for r in rows]
    assert min(counts) == 1 and max(counts) > 8 and max(counts) <= classless.MAX_PARTS


def test_pictures_of_a_surface_agree_with_the_ray_caster():
    """A cube as a toy and as triangles, in the same light."""
    from microdreamer_core.diffusion.embedded.raycast import render_toys

    builder = toys.Builder(np.random.default_rng(0))
    builder.add(toys.BOX, (0, 0, 0), 1.0, toys.Paint.flat(builder.rng, (0.5, 0.5, 0.5)))
    toy = builder.pack()
    side = 2 * float(toy[0, toys.AFFINE][0]) ** -1
    cameras = orbit_cameras([10, -20], [30, 200], 1.5, width=48)
    rows, counts = toys.stack_toys([toy])
    truth = render_toys(rows, counts, np.zeros(2, int), cameras.c2w.numpy(), 48, cameras.fov_y)
    seen = surfaces.render_surface(cube(side), cameras)
    assert np.abs(seen - truth).mean() < 2e-3


@pytest.mark.parametrize("share", [0.4, 0.73])
def test_framing_centres_the_reference_and_keeps_all_views_whole(share):
    cameras = orbit_cameras([5, 20, 20, -10], [0, 90, 180, 270], 1.5, width=64)
    for seed in range(6):
        surface = surfaces.frame_surface(classless.make_shape(seed), cameras.c2w[0].numpy(), cameras.fov_y, share)
        alpha = surfaces.render_surface(surface, cameras)[..., 3] > 0.5
        rows, columns = (np.flatnonzero(alpha[0].any(axis)) for axis in (1, 0))
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert extent <= share * 64 + 2
        assert abs(rows.mean() - 31.5) < 3 and abs(columns.mean() - 31.5) < 3
        assert not (alpha[:, 0].any() or alpha[:, -1].any() or alpha[..., 0].any() or alpha[..., -1].any())


def test_meshes_are_read_split_and_counted(folder):
    pool = meshes.read_pool(folder, "b")
    held_out = {path.stem for path in meshes.held_out_files(folder, "b")}
    assert pool.skipped == 1 and held_out >= {"ring", "can"} and len(pool.held_out) == len(held_out)
    assert len(pool.training) + len(pool.held_out) == 6
    assert meshes.is_held_out("box_blue.glb") == meshes.is_held_out("box_red.glb")  # variants stay together
    drawn = [meshes.sample_variation(pool.training, np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(drawn[0].corners, drawn[1].corners)
    for seed in range(20):
        shape = meshes.sample_variation(pool.training, np.random.default_rng(seed))
        assert np.linalg.norm(shape.corners, axis=-1).max() <= 1 + 1e-5
        assert 0 <= shape.colors.min() and shape.colors.max() <= 1


def test_about_a_tenth_of_the_names_is_held_out():
    words = [a + b + c for a in "abcdefghij" for b in "aeiou" for c in "klmnprst"]
    assert 0.06 < np.mean([meshes.is_held_out(word) for word in words]) < 0.14


def test_folders_without_meshes_and_enormous_ones_are_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(InputError, match="There is no mesh"):
            meshes.read_pool(place)
    with pytest.raises(InputError, match="not a folder"):
        meshes.read_pool(folder, "c")
    monkeypatch.setattr(meshes, "MAX_FACES", 10)
    with pytest.raises(InputError, match="None of the 7 meshes"):
        meshes.read_pool(folder)


def test_batches_mix_all_kinds_and_depend_on_their_step_alone(folder):
    pool = meshes.read_pool(folder, "b")
    settings = train.TrainSettings()
    draws = [train.sample_subjects(40, np.random.default_rng(i), settings, pool.training) for i in (5, 5)]
    assert all(type(a) is type(b) for a, b in zip(*draws, strict=True))
    kinds = [isinstance(subject, surfaces.Surface) for subject in draws[0]]
    assert 20 < sum(kinds) < 40
    first = next(train.batches(3, 4, 4, 0, SMALL, settings, pool.training))
    later = list(train.batches(2, 4, 4, 0, SMALL, settings, pool.training))[1]
    assert torch.equal(first.images, later.images) and torch.equal(first.cameras, later.cameras)
    assert 0 <= float(first.images.min()) and float(first.images.max()) <= 1


def test_evaluation_scores_all_sets_and_guesses(folder, tmp_path):
    from microdreamer_core.diffusion.embedded.checkpoint import save_checkpoint

    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        save_checkpoint(tmp_path / "tiny.safetensors", SMALL, PatchCodec(SMALL), MultiViewDenoiser(SMALL), {})
    sets = evaluate.held_out_sets(2, folder, "b", folder / "b")
    scores = evaluate.evaluate({"tiny": tmp_path / "tiny.safetensors"}, sets, tmp_path / "out")
    assert set(scores) == {"toys", "classless", "meshes", "objects"}
    for rows in scores.values():
        assert set(rows) == {"copied", "mean", "tiny x0", "tiny sample"}
        assert all(len(row) == 2 for row in rows.values())
    copied = next(iter(scores["classless"]["copied"].values()))
    assert copied["near"] > copied["side"]
    assert (tmp_path / "out" / "scores.md").read_text().count("\n") == 2 + 4 * 4
    assert (tmp_path / "out" / "toys_tiny.png").exists()
