"""A NeRF as a value that learns."""

from dataclasses import replace

import pytest
import torch

from microdreamer_core.cameras import orbit_cameras
from microdreamer_core.errors import InputError, NumericalError
from microdreamer_core.fields.encoders import get_encoder
from microdreamer_core.fields.hashgrid import HashGrid, encode_torch
from microdreamer_core.fields.nerf import NeRF, parameter_shapes
from microdreamer_core.fields.nerf_settings import NeRFSettings
from microdreamer_core.io.state import load_state, save_state
from microdreamer_core.sir.losses import reconstruction_loss
from microdreamer_core.sir.reconstruct import reconstruct

TINY = NeRFSettings(levels=4, log2_table=10, hidden=8, samples=24, occupancy_resolution=12, occupancy_every=3)
LEARNED = replace(TINY, background="learned")


def views(count=3, size=16):
    return orbit_cameras(10.0, torch.arange(count) * (360.0 / count), 2.0, width=size)


def same(a, b):
    a, b = a.to_state()[0], b.to_state()[0]
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def targets():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    disc = (rows**2 + columns**2 < 0.3)[None, :, :, None]
    return torch.where(disc, torch.tensor([0.8, 0.2, 0.1]), torch.ones(3)).expand(3, -1, -1, -1)


def learn(field, targets, steps):
    return reconstruct(field, views(), targets, steps).field


def test_sizes():
    small, full = NeRFSettings.of_size("small"), NeRFSettings.of_size("full")
    assert small.grid.resolutions[0] == 8 and small.grid.resolutions[-1] == 48 and small.size == "small"
    assert full.grid.resolutions[-1] == 4096 and full.grid.levels == 16 and full.hidden == 64 and full.size == "full"
    assert full.step_length == pytest.approx(1.732 * 2 * full.radius / 512, rel=2e-3)  # threestudio's nerf-volume-renderer
    assert (full.occupancy_resolution, full.occupancy_decay, full.grid.log2_table, full.grid.features) == (32, 0.95, 19, 2)
    assert NeRFSettings.of_size("full", samples=64).size == "full"
    assert NeRFSettings.of_size("small", hidden=16).size == "custom"


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 0},
        {"features": 3},
        {"levels": 24, "per_level_scale": 2.0},
        {"log2_table": 30},
        {"encoder": "cuda"},
        {"background": "black"},
        {"radius": 0.0},
        {"beta1": 1.0},
        {"samples": 0},
        {"occupancy_resolution": 1},
        {"lr_grid": float("nan")},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        NeRFSettings(**wrong)


def test_unknown_sizes_and_settings():
    with pytest.raises(InputError, match="small, full"):
        NeRFSettings.of_size("medium")
    with pytest.raises(InputError, match="no setting layers"):
        NeRFSettings.of_size("small", layers=3)


def test_an_encoder_that_does_not_work_here_is_named():
    with pytest.raises(InputError, match="'tinycudann' does not work on cpu"):
        get_encoder("tinycudann", HashGrid())


def test_the_start_depends_on_its_seed_alone():
    torch.rand(7)
    again = NeRF.start(TINY, seed=1)
    assert same(NeRF.start(TINY, seed=1), again) and not same(NeRF.start(TINY, seed=2), again)


def test_the_start_is_a_blob():
    field = NeRF.start()
    inside, at_radius = field.density(torch.tensor([[0.0, 0, 0], [0.5, 0, 0]]))
    assert float(inside) == pytest.approx(10.0, rel=1e-3)  # softplus(10)
    assert float(at_radius) == pytest.approx(0.693, rel=1e-2)  # softplus(0)
    assert float(field.density(torch.tensor([[0.99, 0, 0], [2.0, 0, 0]])).sum()) == 0  # empty cells, outside
    assert "0.2 M parameters" in field.summary() and field.summary().startswith("small NeRF")


def test_a_dense_level_interpolates_linearly():
    """Tables that hold a corner's own position give back the position (scale s, offset 1/2)."""
    grid = HashGrid(levels=1, features=1, log2_table=12, base_resolution=8)
    resolution = grid.resolutions[0]
    index = torch.arange(resolution**3)
    for axis, place in enumerate((index % resolution, index // resolution % resolution, index // resolution**2)):
        table = torch.zeros(grid.entries, 1, dtype=torch.float64)
        table[: resolution**3, 0] = place.double()
        points = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(axis)) * 0.9
        expected = points[:, axis] * grid.scales[0] + 0.5
        assert torch.allclose(encode_torch(points, table, grid)[:, 0], expected)


def test_hashed_entries_stay_in_their_level():
    grid = HashGrid(levels=3, features=2, log2_table=6, base_resolution=9, per_level_scale=2.0)
    assert not grid.is_dense(0) and grid.entries == 3 * 64
    for level in range(3):
        table = torch.zeros(grid.entries, 2)
        table[grid.offsets[level] : grid.offsets[level] + 64] = 1.0
        got = encode_torch(torch.rand(100, 3, generator=torch.Generator().manual_seed(1)), table, grid)
        expected = torch.zeros(6).index_fill_(0, torch.tensor([2 * level, 2 * level + 1]), 1.0)
        assert torch.allclose(got, expected.expand(100, 6), atol=1e-5)


def test_rendering_is_deterministic_and_training_is_not(targets):
    field = NeRF.start(TINY)
    a, b = field.render(views()), field.render(views())
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.depth, b.depth)
    optimizer = field.optimizer()
    first = optimizer.render(views())
    assert not torch.equal(first.rgb, a.rgb) and float((first.rgb.detach() - a.rgb).abs().max()) < 0.2
    optimizer.step(reconstruction_loss(first.rgb, targets), first)
    with torch.no_grad():
        assert not torch.equal(optimizer.render(views()).rgb, first.rgb)


def test_chunks_do_not_show(monkeypatch):
    field = NeRF.start(TINY)
    whole = field.render(views())
    monkeypatch.setattr("microdreamer_core.fields.nerf._CHUNK", 24 * 100)
    parts = field.render(views())
    assert torch.allclose(whole.rgb, parts.rgb, atol=1e-6) and torch.allclose(whole.depth, parts.depth, atol=1e-6)


def test_backgrounds():
    field, red = NeRF.start(TINY), torch.tensor([1.0, 0, 0])
    assert torch.equal(field.render(views()).rgb[:, 0, 0], torch.ones(3, 3))
    assert torch.equal(field.render(views(), red).rgb[0, 0, 0], red)
    assert torch.equal(field.render(views(), torch.eye(3)).rgb[:, 0, 0], torch.eye(3))
    learned = NeRF.start(LEARNED)
    corner = learned.render(views()).rgb[:, 0, 0]
    assert float(corner.min()) > 0.1 and float(corner.max()) < 0.9 and len(corner.unique()) > 3
    assert torch.equal(learned.render(views(), red).rgb[0, 0, 0], red)
    with pytest.raises(InputError, match="background"):
        field.render(views(), torch.ones(2, 3))


def test_a_learned_background_learns():
    field, blue = NeRF.start(LEARNED), torch.tensor([0.1, 0.1, 0.9])
    learned = learn(field, blue.expand(3, 16, 16, 3), 40)
    assert float((learned.render(views()).rgb[:, 0, 0] - blue).abs().max()) < 0.1


def test_learning_never_changes_the_given_field(targets):
    field = NeRF.start(TINY)
    before = field.clone()
    learned = learn(field, targets, 7)
    assert same(field, before) and field.step == 0 and learned.step == 7 and not same(learned, field)
    again = learned.clone()
    learn(learned, targets, 2)
    assert same(learned, again)
    assert not any(t.requires_grad for t in learned.to_state()[0].values())


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_saving_and_loading_continues_bit_for_bit(targets, tmp_path, stop):
    whole = learn(NeRF.start(LEARNED, seed=4), targets, 8)
    half = learn(NeRF.start(LEARNED, seed=4), targets, stop)
    loaded = load_state(save_state(tmp_path / "half.safetensors", half)).field
    assert same(loaded, half) and (loaded.step, loaded.seed, loaded.settings) == (stop, 4, LEARNED)
    assert same(learn(loaded, targets, 8 - stop), whole)


def test_a_field_made_in_inference_mode_learns(targets):
    with torch.inference_mode():
        field = NeRF.start(TINY)
        learned = learn(field, targets, 4)
    assert learned.step == 4


def test_wrong_states():
    field = NeRF.start(TINY)
    tensors, values = field.to_state()
    with pytest.raises(InputError, match="incomplete"):
        NeRF.from_state({k: v for k, v in tensors.items() if k != "density_grid"}, values)
    with pytest.raises(InputError, match="incomplete"):
        NeRF.from_state({"parameters.means": torch.zeros(3, 3)}, {"settings": {"num_points": 3}})
    with pytest.raises(InputError, match="table of shape"):
        NeRF.from_state(tensors, values | {"settings": values["settings"] | {"log2_table": 9}})
    with pytest.raises(InputError, match="density_grid"):
        replace(field, density_grid=torch.zeros(3, 3, 3))
    assert list(parameter_shapes(TINY)) == list(field.parameters)


def test_a_loss_that_is_not_finite_is_named():
    optimizer = NeRF.start(TINY).optimizer()
    render = optimizer.render(views())
    with pytest.raises(NumericalError, match="loss is nan at update 1"):
        optimizer.step(render.rgb.sum() * float("nan"), render)


def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing():
    field = NeRF.start(TINY)
    optimizer = field.optimizer()
    render = optimizer.render(views())
    tiny = (render.alpha.sum() * 0).sqrt()  # finite, its derivative is not
    with pytest.raises(NumericalError, match="gradient of table is not finite at update 1"):
        optimizer.step(tiny, render)
    assert same(optimizer.finish(), field)


def test_an_empty_view_has_no_gradient_and_no_error():
    field = NeRF.start(TINY)
    away = orbit_cameras(0.0, [0.0], 2.0, width=8)
    away.c2w[:, :3, 3] *= 100  # beyond, and still looking at it with one pixel's worth
    away.c2w[:, :3, 0:3:2] *= -1  # turned round
    optimizer = field.optimizer()
    render = optimizer.render(away)
    assert float(render.alpha.detach().max()) == 0 and torch.equal(render.rgb, torch.ones_like(render.rgb))
    optimizer.step(render.rgb.sum(), render)
    assert optimizer.finish().step == 1


def test_half_a_usual_run_stops_looking_where_the_start_blob_was():
    """What faded costs no samples any more, and what is there is still drawn."""
    small = NeRFSettings.of_size("small", occupancy_resolution=16)
    shrunk = NeRF.start(replace(small, blob_radius=0.2, density_scale=30.0))  # opaque, as objects are
    before = replace(shrunk, density_grid=NeRF.start(small).density_grid)
    optimizer = before.optimizer()
    for _ in range(200 // small.occupancy_every):
        optimizer._update_occupancy()
    after = optimizer.finish()
    shares = [float(field.occupied().float().mean()) for field in (before, after, shrunk)]
    assert shares[1] <= 1.5 * shares[2] < 0.5 * shares[0], shares
    assert torch.allclose(after.render(views()).rgb, shrunk.render(views()).rgb, atol=1e-2)


def test_entropy_makes_pictures_crisper(targets):
    plain = learn(NeRF.start(TINY), targets, 30)
    crisp = learn(NeRF.start(replace(TINY, opacity_entropy=1.0)), targets, 30)

    def fog(field):
        alpha = field.render(views()).alpha
        return float((alpha * (1 - alpha)).mean())

    assert fog(crisp) < fog(plain)
