"""Training of the shipped checkpoint: ``python -m microdreamer_core.training.train --help``.

Toys, classless shapes and, with ``--meshes``, variations of meshes are rendered during training, each step from its own seed,
so that an interrupted run resumes exactly and never sees a held-out object. The learning rate is constant until its final
decay: a longer run continues a shorter one. With ``--start`` a run begins with a checkpoint's weights and codec, without
optimiser state, instead of random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..cameras import orbit_cameras
from ..diffusion.embedded.checkpoint import load_checkpoint, save_checkpoint, training_of
from ..diffusion.embedded.network import (
    CorrectionNetwork,
    EmbeddedConfig,
    MultiViewDenoiser,
    PatchCodec,
    allow_copying,
    camera_vectors,
)
from ..diffusion.embedded.raycast import on_white, render_toys
from ..diffusion.embedded.toys import HELD_OUT, make_toy, stack_toys
from ..diffusion.noise import scaled_linear_alphas_cumprod
from ..errors import InputError
from ..util.atomic import replace_file
from .classless import make_shape
from .meshes import MeshPool, read_pool, sample_variation
from .surfaces import Surface, frame_surface, render_surface, sample_light

log = logging.getLogger("microdreamer.train")

_FIRST_WEIGHTS = 67280421310721
"""Seed of the initial weights: torch's default seed."""


@dataclass(frozen=True)
class TrainSettings:
    """Training settings of the denoiser and the decoder.

    Attributes:
        steps, decay_steps: denoiser updates, and the number of last ones over which the learning rate decays to 2 %.
        batch: objects per step; decoder_steps, decoder_batch: updates of the decoder's correction, images per update.
        lr, decoder_lr: peak learning rates; min_snr: γ of min-SNR weighting (arXiv 2303.09556); snr_floor: lower bound of the
            SNR in the weight (arXiv 2202.00512, truncated SNR); high_noise: share of objects whose time is among the noisiest
            300; drop: share of objects whose reference is dropped, for the unconditional branch; ema: decay of the averaged
            weights.
        elevations, reference_elevations: degrees; reference_turn: largest azimuth of the reference from the front, degrees.
        near: share of objects with one view within some degrees of the reference's.
        toys, shapes: shares of toys and of classless shapes; the rest are meshes if there are any, otherwise shapes.
        fills: share of the reference image that a shape or mesh takes.
    """

    steps: int = 6000
    decay_steps: int = 1500
    batch: int = 16
    lr: float = 8e-4
    warmup: int = 200
    min_snr: float = 5.0
    snr_floor: float = 0.3
    high_noise: float = 0.2
    drop: float = 0.1
    ema: float = 0.998
    decoder_steps: int = 1500
    decoder_batch: int = 32
    decoder_lr: float = 2e-3
    elevations: tuple[float, float] = (-10.0, 30.0)
    reference_elevations: tuple[float, float] = (-5.0, 25.0)
    reference_turn: float = 50.0
    near: float = 0.35
    toys: float = 0.3
    shapes: float = 0.35
    fills: tuple[float, float] = (0.55, 0.92)
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Images [N,V+1,H,W,3] in [0,1], the reference first, and camera vectors [N,V+1,16]."""

    images: Tensor
    cameras: Tensor


Subject = np.ndarray | Surface
"""A toy or a surface."""


def sample_subjects(n: int, rng: np.random.Generator, settings: TrainSettings, meshes: Sequence[Surface] = ()) -> list[Subject]:
    """Sample the objects of a training batch, never a held-out one."""
    subjects: list[Subject] = []
    for kind in rng.random(n):
        seed = int(rng.integers(0, HELD_OUT))
        if kind < settings.toys:
            subjects.append(make_toy(seed))
        elif kind < settings.toys + settings.shapes or not meshes:
            subjects.append(make_shape(seed))
        else:
            subjects.append(sample_variation(meshes, rng))
    return subjects


def sample_batch(
    subjects: Sequence[Subject],
    rng: np.random.Generator,
    config: EmbeddedConfig,
    settings: TrainSettings,
) -> Batch:
    """Render a reference and evenly spread views of each object; azimuths count from the reference's.

    Toys keep their own size and light; surfaces are framed as a job frames a photograph, with varied light and image noise.
    """
    n, frames, size = len(subjects), config.views + 1, config.image_size
    azimuth, elevation = np.zeros((n, frames)), np.zeros((n, frames))
    first = np.where(rng.random((n, 1)) < settings.near, rng.normal(0, 8, (n, 1)), rng.uniform(0, 360, (n, 1)))
    azimuth[:, 1:] = first + np.arange(config.views) * 360.0 / config.views
    elevation[:, 0] = rng.uniform(*settings.reference_elevations, n)
    elevation[:, 1:] = rng.uniform(*settings.elevations, (n, config.views))
    turn = rng.uniform(-settings.reference_turn, settings.reference_turn, (n, 1))
    seen = orbit_cameras(elevation.ravel(), azimuth.ravel(), config.radius, config.fov_y, size)
    real = orbit_cameras(elevation.ravel(), (azimuth + turn).ravel(), config.radius, config.fov_y, size)
    images = np.empty((n, frames, size, size, 3), np.float32)
    toys = {i: subject for i, subject in enumerate(subjects) if not isinstance(subject, Surface)}
    if toys:
        rows, counts = stack_toys(list(toys.values()))
        places = list(toys)
        c2w = real.c2w.numpy().reshape(n, frames, 4, 4)[places].reshape(-1, 4, 4)
        index = np.repeat(np.arange(len(toys)), frames)
        images[places] = on_white(render_toys(rows, counts, index, c2w, size, config.fov_y)).reshape(-1, frames, size, size, 3)
    for i, subject in enumerate(subjects):
        if not isinstance(subject, Surface):
            continue
        cameras = real[i * frames : (i + 1) * frames]
        surface = frame_surface(subject, cameras.c2w[0].numpy(), config.fov_y, rng.uniform(*settings.fills))
        rgba = render_surface(surface, cameras, sample_light(rng))
        if rng.random() < 0.3:  # camera noise
            rgba[0, ..., :3] += rng.normal(0, rng.uniform(0, 0.03), rgba[0, ..., :3].shape)
        images[i] = on_white(rgba.clip(0, 1))
    return Batch(torch.from_numpy(images), camera_vectors(seen).unflatten(0, (n, frames)))


def batches(
    first: int,
    last: int,
    size: int,
    stage: int,
    config: EmbeddedConfig,
    settings: TrainSettings,
    meshes: Sequence[Surface] = (),
) -> Iterator[Batch]:
    """Yield the batches of steps first..last-1, prefetched in threads; a batch depends only on its step and the meshes."""

    def render(step: int) -> Batch:
        rng = np.random.default_rng([settings.seed, stage, step])
        return sample_batch(sample_subjects(size, rng, settings, meshes), rng, config, settings)

    workers = max(1, (os.cpu_count() or 1) - 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for step in range(first, last):
            while len(ahead) < 2 * workers and step + len(ahead) < last:
                ahead.append(pool.submit(render, step + len(ahead)))
            yield ahead.popleft().result()


def learning_rate(step: int, peak: float, warmup: int, steps: int, decay_steps: int) -> float:
    """Return the learning rate of a step: warm-up, constant, then cosine decay to 2 % over the last ``decay_steps``.

    >>> learning_rate(50, 1e-3, warmup=10, steps=100, decay_steps=20)
    0.001
    """
    rate = peak * min(1.0, (step + 1) / max(warmup, 1))
    left = steps - step
    if left >= decay_steps:
        return rate
    return rate * (0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left / decay_steps)))


def v_loss(
    denoiser: nn.Module,
    codec: PatchCodec,
    batch: Batch,
    alphas_cumprod: Tensor,
    settings: TrainSettings,
    generator: torch.Generator,
) -> Tensor:
    """Compute the v-prediction loss: v = α ε - σ x0 (arXiv 2202.00512), weight clamp(SNR, floor, γ) / (SNR + 1).

    Without the floor, the noisiest times, whose one-step prediction starts a reconstruction, have almost no weight.
    """
    device = alphas_cumprod.device
    with torch.no_grad():
        latents = codec.encode(batch.images.to(device).flatten(0, 1)).unflatten(0, batch.images.shape[:2])
    reference, clean = latents[:, 0], latents[:, 1:]
    n = len(clean)
    times = len(alphas_cumprod)
    high = torch.rand(n, generator=generator) < settings.high_noise
    t = torch.randint(0, times, (n,), generator=generator)
    t = torch.where(high, times - 1 - t * 300 // times, t).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    keep = (torch.rand(n, generator=generator) >= settings.drop).to(device)
    a_bar = alphas_cumprod[t].float()
    alpha, sigma = (value.sqrt().view(-1, 1, 1, 1, 1) for value in (a_bar, 1 - a_bar))
    predicted = denoiser(alpha * clean + sigma * noise, t, reference, batch.cameras.to(device), keep)
    snr = a_bar / (1 - a_bar)
    error = (predicted - (alpha * noise - sigma * clean)).square().mean((1, 2, 3, 4))
    return (error * snr.clamp(settings.snr_floor, settings.min_snr) / (snr + 1)).mean()


def train_denoiser(
    folder: Path,
    codec: PatchCodec,
    config: EmbeddedConfig,
    settings: TrainSettings,
    device: str,
    save_every: int = 300,
    start: MultiViewDenoiser | None = None,
    pool: MeshPool | None = None,
) -> MultiViewDenoiser:
    """Train the denoiser, or resume; returns the averaged one. State in ``folder/denoiser.pt``, progress in the log.

    Without a state, the initial weights are those of ``start``, or random.
    """
    alphas_cumprod = scaled_linear_alphas_cumprod().to(device)
    denoiser = (MultiViewDenoiser(config) if start is None else start).train().requires_grad_(True).to(device)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    first = _resume(folder / "denoiser.pt", denoiser, average, optimizer)
    started, losses = time.monotonic(), deque(maxlen=200)
    held_out = validation_sets(config, settings, pool)
    meshes = () if pool is None else pool.training
    for step, batch in enumerate(batches(first, settings.steps, settings.batch, 0, config, settings, meshes), first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.lr, settings.warmup, settings.steps, settings.decay_steps)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        loss = v_loss(denoiser, codec, batch, alphas_cumprod, settings, generator)
        _update(loss, denoiser, average, optimizer, min(settings.ema, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            _save_state(folder / "denoiser.pt", step + 1, denoiser, average, optimizer)
            speed = (step + 1 - first) * settings.batch * config.views / (time.monotonic() - started)
            log.info("denoiser step %d loss %.4f, %.0f views/s", step + 1, np.mean(losses), speed)
            for name, batch in held_out.items():
                log.info("x0-PSNR of held-out %s %s", name, validate(average, codec, batch, alphas_cumprod))
    return average


def validation_sets(
    config: EmbeddedConfig, settings: TrainSettings, pool: MeshPool | None = None, objects: int = 24
) -> dict[str, Batch]:
    """Make batches of held-out toys, classless shapes and, if there are any, meshes."""
    seeds = [HELD_OUT + i for i in range(objects)]
    subjects: dict[str, list[Subject]] = {"toys": [make_toy(s) for s in seeds], "shapes": [make_shape(s) for s in seeds]}
    if pool is not None and pool.held_out:
        subjects["meshes"] = [sample_variation(pool.held_out, np.random.default_rng(s), free=False) for s in seeds]
    return {name: sample_batch(some, np.random.default_rng(1), config, settings) for name, some in subjects.items()}


@torch.no_grad()
def validate(denoiser: nn.Module, codec: PatchCodec, batch: Batch, alphas_cumprod: Tensor) -> dict[int, float]:
    """Compute the PSNR in dB of one-step x0 predictions of a batch, decoded linearly, at several times."""
    device, objects = alphas_cumprod.device, len(batch.images)
    latents = codec.encode(batch.images.to(device).flatten(0, 1)).unflatten(0, batch.images.shape[:2])
    truth = codec.decode_linear(latents[:, 1:].flatten(0, 1)).clamp(-1, 1)
    noise = torch.randn(latents[:, 1:].shape, generator=torch.Generator().manual_seed(1)).to(device)
    scores = {}
    for t in (200, 500, 800, 999):
        alpha, sigma = alphas_cumprod[t].sqrt().float(), (1 - alphas_cumprod[t]).sqrt().float()
        noisy = alpha * latents[:, 1:] + sigma * noise
        times = torch.full((objects,), t, device=device)
        v = denoiser(noisy, times, latents[:, 0], batch.cameras.to(device), torch.ones(objects, device=device))
        x0 = codec.decode_linear((alpha * noisy - sigma * v).flatten(0, 1)).clamp(-1, 1)
        scores[t] = round(float(-10 * ((x0 - truth) / 2).square().mean((1, 2, 3)).log10().mean()), 2)
    return scores


def fit_codec(folder: Path, config: EmbeddedConfig, settings: TrainSettings, objects: int = 600) -> PatchCodec:
    """Fit the linear codec to rendered toys; saved in ``folder/codec.pt``, because signs differ between machines."""
    codec, path = PatchCodec(config), folder / "codec.pt"
    if path.exists():
        codec.load_state_dict(torch.load(path, weights_only=True))
        return codec
    batch = next(batches(0, 1, objects, 1, config, settings))
    codec.fit(batch.images.flatten(0, 1))
    _save_atomically(path, codec.state_dict())
    return codec


def train_decoder(
    folder: Path, codec: PatchCodec, config: EmbeddedConfig, settings: TrainSettings, device: str, save_every: int = 250
) -> CorrectionNetwork:
    """Train the decoder's correction on noised latents, so that it also removes the denoiser's residual noise."""
    network = codec.correction.to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), settings.decoder_lr, betas=(0.9, 0.99))
    first = _resume(folder / "decoder.pt", network, average, optimizer)
    objects = max(1, settings.decoder_batch // (config.views + 1))
    errors = deque(maxlen=100)
    for step, batch in enumerate(batches(first, settings.decoder_steps, objects, 2, config, settings), first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.decoder_lr, 50, settings.decoder_steps, settings.decoder_steps)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        loss, mse = decoder_loss(codec, network, batch.images.flatten(0, 1).to(device), generator)
        _update(loss, network, average, optimizer, min(0.995, (step + 1) / (step + 10)))
        errors.append(mse)
        if (step + 1) % save_every == 0 or step + 1 == settings.decoder_steps:
            _save_state(folder / "decoder.pt", step + 1, network, average, optimizer)
            log.info("decoder step %d, PSNR of noised latents %.2f dB", step + 1, -10 * math.log10(np.mean(errors) / 4))
    return average


def decoder_loss(codec: PatchCodec, network: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
    """Compute L1 + gradient L1 + MSE of decoded noised latents, and the plain MSE in [-1,1]; a random noise level per image."""
    with torch.no_grad():
        latents = codec.encode(images)
        level = 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator) ** 2
        latents = latents + (level * torch.randn(latents.shape, generator=generator)).to(latents.device)
        linear = codec.decode_linear(latents)
    difference = linear + network(latents, linear) - (images.permute(0, 3, 1, 2) * 2 - 1)
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    mse = difference.square().mean()
    return difference.abs().mean() + 0.5 * edges + mse, float(mse.detach())


def _update(loss: Tensor, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, ema: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage] - torch's optimisers use it too
            list(average.parameters()), list(network.parameters()), 1 - ema
        )


def _resume(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
    except RuntimeError as error:
        raise InputError(f"The state {path} is of another network than this one; give another --out folder.") from error
    optimizer.load_state_dict(state["optimizer"])
    log.info("continuing %s from step %d", path.name, state["step"])
    return state["step"]


def _save_state(path: Path, step: int, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    _save_atomically(path, state)


def _save_atomically(path: Path, content: dict) -> None:
    with replace_file(path) as temporary:
        torch.save(content, temporary)


def main(argv: list[str] | None = None) -> None:
    """Train from the command line."""
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of the training state and the result")
    parser.add_argument("--start", type=Path, metavar="FILE", help="checkpoint whose weights come first (default: random ones)")
    parser.add_argument("--meshes", type=Path, metavar="FOLDER", help="GLB, glTF and OBJ files to learn from, besides")
    parser.add_argument("--held-out-pack", metavar="NAME", help="a folder in that of --meshes that is not learned from")
    parser.add_argument("--only", choices=("denoiser", "decoder", "export"), help="do one part; all three in turn otherwise")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="denoiser updates in all")
    parser.add_argument(
        "--decay-steps", type=int, default=defaults.decay_steps, help="the last updates, of falling learning rate"
    )
    parser.add_argument("--batch", type=int, default=defaults.batch, help="objects per update")
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--near", type=float, default=defaults.near, help="share of objects with a view beside the reference's")
    parser.add_argument("--decoder-steps", type=int, default=defaults.decoder_steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = TrainSettings(
        steps=args.steps,
        decay_steps=args.decay_steps,
        batch=args.batch,
        lr=args.lr,
        near=args.near,
        decoder_steps=args.decoder_steps,
        seed=args.seed,
    )
    config, denoiser = EmbeddedConfig(), None
    args.out.mkdir(parents=True, exist_ok=True)
    if args.start:
        config, codec, denoiser = load_checkpoint(args.start)
        config, denoiser = allow_copying(config, codec, denoiser)
        _save_atomically(args.out / "codec.pt", codec.state_dict())
    with torch.random.fork_rng():  # modules draw their first weights from the global generator
        torch.default_generator.manual_seed(_FIRST_WEIGHTS + settings.seed)
        codec = fit_codec(args.out, config, settings).to(args.device)
        if args.only in (None, "denoiser"):
            pool = None if args.meshes is None else read_pool(args.meshes, args.held_out_pack)
            train_denoiser(args.out, codec, config, settings, args.device, start=denoiser, pool=pool)
        if args.only in (None, "decoder"):
            train_decoder(args.out, codec, config, settings, args.device)
        if args.only in (None, "export"):
            export(args.out, codec, config, settings, args.start)


def export(folder: Path, codec: PatchCodec, config: EmbeddedConfig, settings: TrainSettings, start: Path | None = None) -> None:
    """Write ``folder/embedded.safetensors`` from the averaged weights of both parts; a decoder that was not trained further is
    taken from ``start``, together with its codec."""
    denoiser = MultiViewDenoiser(config)
    kept = start is not None and not (folder / "decoder.pt").exists()
    names = ("denoiser",) if kept else ("denoiser", "decoder")
    parts = {name: torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True) for name in names}
    denoiser.load_state_dict(parts["denoiser"]["average"])
    if not kept:
        codec.correction.load_state_dict(parts["decoder"]["average"])
    training = {f"{name}_steps": part["step"] for name, part in parts.items()}
    training |= {"batch": settings.batch, "seed": settings.seed} | ({} if start is None else {"start": training_of(start)})
    path = folder / "embedded.safetensors"
    save_checkpoint(path, config, codec.cpu(), denoiser, training)
    log.info("wrote %s, %.1f MB, %s", path.name, path.stat().st_size / 1e6, json.dumps(training))


if __name__ == "__main__":
    main()
