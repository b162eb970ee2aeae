"""The shipped model's parts: toys, ray caster, codec, denoiser, file, training."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from microdreamer_core.cameras import orbit_cameras, turntable
from microdreamer_core.diffusion.embedded import toys
from microdreamer_core.diffusion.embedded.raycast import on_white, render_toys
from microdreamer_core.errors import InputError

NAMES = list(toys.CATEGORIES)


def render(toy_list, cameras, samples=1):
    rows, counts = toys.stack_toys(toy_list)
    v = len(cameras)
    index = np.repeat(np.arange(len(toy_list)), v)
    return render_toys(
        rows, counts, index, np.tile(cameras.c2w.numpy(), (len(toy_list), 1, 1)), cameras.height, cameras.fov_y, samples
    )


@pytest.mark.parametrize("category", NAMES)
def test_every_category_fits_its_ball_and_repeats(category):
    for seed in range(20):
        toy = toys.make_toy(seed, category)
        assert np.array_equal(toy, toys.make_toy(seed, category))
        assert len(toy) <= toys.MAX_PRIMITIVES
    points = np.random.default_rng(0).uniform(-1, 1, (20000, 3))
    inside = points[toys.occupancy(toy, points)]
    assert len(inside) > 50
    assert np.linalg.norm(inside, axis=1).max() < toys.BOUND * 1.15


def test_training_seeds_and_held_out_seeds_differ():
    assert not np.array_equal(toys.make_toy(5, "car"), toys.make_toy(toys.HELD_OUT + 5, "car"))


@pytest.mark.parametrize("kind", range(5))
def test_silhouettes_agree_with_the_exact_inside_test(kind):
    """A pixel's ray hits exactly when some point along it is inside the primitive."""
    builder = toys.Builder(np.random.default_rng(kind))
    shape = {toys.TORUS: 0.3, toys.CAP: -0.2, toys.FRUSTUM: 0.4}.get(kind, 1.0)
    builder.add(kind, (0.1, 0.2, 0), (0.5, 0.7, 0.4) if kind != toys.TORUS else 0.5, builder.paint(), (0.4, 0.3, 0.2), shape)
    toy = builder.pack()
    cameras = orbit_cameras([10, -30], [20, 200], 1.5, width=40)
    alpha = render([toy], cameras)[..., 3] > 0
    grid = (torch.arange(40) + 0.5) / 40 * 2 - 1
    tan_half = float(torch.tan(torch.deg2rad(torch.tensor(cameras.fov_y / 2))))
    depths = torch.linspace(0.8, 2.2, 1401)
    for v in range(2):
        y, x = torch.meshgrid(-grid * tan_half, grid * tan_half, indexing="ij")
        directions = torch.stack([x, y, -torch.ones_like(x)], -1) @ cameras.c2w[v, :3, :3].T
        points = cameras.c2w[v, :3, 3] + directions[:, :, None] * depths[:, None]
        inside = toys.occupancy(toy, points.reshape(-1, 3).numpy()).reshape(40, 40, -1).any(-1)
        assert (inside != alpha[v]).mean() < 0.005


def test_front_of_the_toys_faces_plus_z():
    """The robot's eyes and the car's lamps are seen from the front and not from behind."""
    toy = toys.make_toy(3, "snowman")
    front, back = on_white(render([toy], orbit_cameras(0, [0, 180], 1.5, width=96)))
    dark = [(picture[20:60].max(-1) < 0.12).sum() for picture in (front, back)]
    assert dark[0] > 4 * max(dark[1], 1)


@pytest.fixture(scope="module")
def small():
    """(config, codec, denoiser) of a few thousand parameters."""
    from microdreamer_core.diffusion.embedded.network import EmbeddedConfig, MultiViewDenoiser, PatchCodec

    config = EmbeddedConfig(image_size=32, channels=8, widths=(16, 32), head_dim=8, context=16)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return config, PatchCodec(config), MultiViewDenoiser(config).eval()


def test_the_codec_is_linear_and_keeps_its_subspace(small):
    from microdreamer_core.diffusion.embedded.network import PatchCodec

    config = dataclasses.replace(small[0], channels=3 * small[0].patch ** 2)
    codec = PatchCodec(config)
    images = torch.from_numpy(on_white(render([toys.make_toy(i) for i in range(40)], turntable(4, radius=1.5, size=32), 2)))
    codec.fit(images)
    latents = codec.encode(images)
    # with all components nothing is lost, and the untrained correction is zero
    assert torch.allclose(codec.decode(latents), images, atol=2e-3)
    codec = PatchCodec(small[0])
    codec.fit(images)
    latents = codec.encode(images)
    assert float(latents.square().mean()) == pytest.approx(1.0, rel=0.05)
    assert torch.allclose(codec.encode((codec.decode_linear(latents) / 2 + 0.5).permute(0, 2, 3, 1)), latents, atol=1e-3)


def test_the_unconditional_branch_ignores_the_reference_and_views_attend_to_each_other(small):
    config, _, denoiser = small
    draw = torch.Generator().manual_seed(1)
    shape = (1, 4, config.channels, 4, 4)
    latents = torch.randn(shape, generator=draw)
    references = torch.randn(2, config.channels, 4, 4, generator=draw)
    cameras = torch.randn(1, 5, 16, generator=draw)
    t = torch.tensor([500])

    def run(x, reference, keep):
        with torch.no_grad():
            return denoiser(x, t, reference, cameras, torch.tensor([keep]))

    assert torch.equal(run(latents, references[:1], 0.0), run(latents, references[1:], 0.0))
    assert not torch.allclose(run(latents, references[:1], 1.0), run(latents, references[1:], 1.0))
    changed = latents.clone()
    changed[:, 3] += 1
    assert not torch.allclose(run(latents, references[:1], 1.0)[:, 0], run(changed, references[:1], 1.0)[:, 0])


def test_the_checkpoint_file_round_trips_and_foreign_files_are_refused(small, tmp_path):
    from safetensors.torch import save_file

    from microdreamer_core.diffusion.embedded.checkpoint import load_checkpoint, save_checkpoint

    path = tmp_path / "small.safetensors"
    save_checkpoint(path, *small, {"steps": 0})
    config, _, denoiser = load_checkpoint(path)
    assert config == small[0]
    for name, value in small[2].state_dict().items():
        assert torch.equal(denoiser.state_dict()[name], value.half().float()), name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a whole"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(InputError, match="not an embedded"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="not at"):
        load_checkpoint(tmp_path / "nothing.safetensors")


def test_guidance_branches_and_their_count(small):
    from microdreamer_core.diffusion.embedded.model import EmbeddedModel
    from microdreamer_core.reference import Reference

    model = EmbeddedModel(*small)
    reference = Reference(torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)), torch.ones(32, 32, 1))
    diffusion = model.condition(reference)
    latents = torch.randn(8, *diffusion.latent_shape, generator=torch.Generator().manual_seed(1))
    conditioning = diffusion.condition(turntable(8, radius=1.5))
    u, c, g = (diffusion.denoised(latents, 300, conditioning, guidance) for guidance in (0.0, 1.0, 2.5))
    assert torch.allclose(g, u + 2.5 * (c - u), atol=1e-5)
    assert diffusion.evaluations == 8 * (1 + 1 + 2)
    # each group of four evenly spread views is denoised on its own
    alone = diffusion.denoised(latents[::2], 300, diffusion.condition(turntable(8, radius=1.5)[::2]), 1.0)
    assert torch.allclose(alone, c[::2], atol=1e-5)
    with pytest.raises(InputError, match="multiple of 4"):
        diffusion.condition(turntable(6))
    with pytest.raises(InputError, match="picture"):
        model.condition(None)


def test_training_learns_resumes_and_exports(small, tmp_path):
    from microdreamer_core.diffusion.embedded.checkpoint import load_checkpoint
    from microdreamer_core.training import train

    config = small[0]
    settings = train.TrainSettings(steps=40, decay_steps=5, batch=4, warmup=5, decoder_steps=4, decoder_batch=5)
    held_out = train.validation_sets(config, settings, objects=4)["toys"]
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        codec = train.fit_codec(tmp_path, config, settings, objects=20)
        half = dataclasses.replace(settings, steps=20, decay_steps=0)
        train.train_denoiser(tmp_path, codec, config, half, "cpu", save_every=20)
        before = train.validate(_averaged(tmp_path, config), codec, held_out, _alphas())
        train.train_denoiser(tmp_path, codec, config, settings, "cpu", save_every=20)
        after = train.validate(_averaged(tmp_path, config), codec, held_out, _alphas())
        train.train_decoder(tmp_path, codec, config, settings, "cpu")
    assert after[500] > before[500] + 0.5
    train.export(tmp_path, codec, config, settings)
    assert load_checkpoint(tmp_path / "embedded.safetensors")[0] == config


def test_a_run_that_was_stopped_ends_where_one_that_was_not_ends(small, tmp_path):
    from microdreamer_core.training import train

    config, codec, denoiser = small
    settings = train.TrainSettings(steps=4, decay_steps=2, batch=2, warmup=2)
    ends = []
    for folder, stops in (("whole", (4,)), ("stopped", (2, 4))):
        (tmp_path / folder).mkdir()
        for steps in stops:  # the rate of a step depends on the planned end alone
            part = dataclasses.replace(settings, steps=steps, decay_steps=settings.decay_steps - (settings.steps - steps))
            start = copy.deepcopy(denoiser)
            ends.append(train.train_denoiser(tmp_path / folder, codec, config, part, "cpu", start=start))
    for (name, a), b in zip(ends[0].state_dict().items(), ends[-1].state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_training_goes_on_from_a_checkpoint_that_could_not_copy(tmp_path):
    from microdreamer_core.diffusion.embedded import network
    from microdreamer_core.diffusion.embedded.checkpoint import load_checkpoint, save_checkpoint, training_of
    from microdreamer_core.training import train

    config = network.EmbeddedConfig(image_size=32, channels=8, widths=(16, 32), head_dim=8, context=16, copies=False)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        codec, denoiser = network.PatchCodec(config), network.MultiViewDenoiser(config).eval()
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, config, codec, denoiser, {"denoiser_steps": 7})
    command = ["--start", str(start), "--out", str(tmp_path), "--steps", "1", "--batch", "1", "--device", "cpu", "--lr", "1e-6"]
    for part in ("denoiser", "export"):
        train.main([*command, "--only", part])
    made = tmp_path / "embedded.safetensors"
    assert training_of(made) == {"denoiser_steps": 1, "batch": 1, "seed": 0, "start": {"denoiser_steps": 7}}
    config, _, after = load_checkpoint(made)
    _, wider = network.allow_copying(*load_checkpoint(start))
    assert config.copies
    for name, weights in after.state_dict().items():
        assert torch.allclose(weights, wider.state_dict()[name], atol=1e-3), name
    state = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    torch.save({**state, "network": denoiser.state_dict()}, tmp_path / "denoiser.pt")
    with pytest.raises(InputError, match="another network"):
        train.main([*command, "--only", "denoiser"])


def test_the_inputs_for_copying_change_nothing_until_they_are_trained():
    from microdreamer_core.diffusion.embedded import network

    config = network.EmbeddedConfig(image_size=32, channels=8, widths=(16, 32), head_dim=8, context=16, copies=False)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        before = network.MultiViewDenoiser(config).eval()
    wider, after = network.allow_copying(config, network.PatchCodec(config), before)
    draw = torch.Generator().manual_seed(1)
    inputs = (torch.randn(2, 4, 8, 4, 4, generator=draw), torch.tensor([999, 20]), torch.randn(2, 8, 4, 4, generator=draw))
    cameras, keep = torch.randn(2, 5, 16, generator=draw), torch.tensor([1.0, 0.0])
    with torch.no_grad():
        assert torch.equal(before(*inputs, cameras, keep), after(*inputs, cameras, keep))
    assert network.allow_copying(wider, None, after)[1] is after
    values = config.to_dict()
    del values["copies"]  # as in the files of versions 1 to 3
    assert network.EmbeddedConfig.from_dict(values) == config


def _alphas():
    from microdreamer_core.diffusion.noise import scaled_linear_alphas_cumprod

    return scaled_linear_alphas_cumprod()


def _averaged(folder, config):
    from microdreamer_core.diffusion.embedded.network import MultiViewDenoiser

    denoiser = MultiViewDenoiser(config)
    denoiser.load_state_dict(torch.load(folder / "denoiser.pt", weights_only=True)["average"])
    return denoiser.eval()
