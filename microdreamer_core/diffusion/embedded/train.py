"""Training of the shipped checkpoint: ``python -m microdreamer_core.diffusion.embedded.train --help``.

Toys are drawn and rendered on the way, each step from its own seed, so that a run that was stopped continues exactly where it
was and never sees a held-out object. The learning rate is constant until its final decay: a longer run continues a shorter one.
With ``--start`` a run begins with a checkpoint's weights and codec, whose training state is gone, rather than with random ones.
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...cameras import orbit_cameras
from ...io.atomic import replacing
from ..ddim import scaled_linear_alphas_cumprod
from .checkpoint import load_checkpoint, save_checkpoint, training_of
from .network import EmbeddedConfig, MultiViewDenoiser, PatchCodec, camera_vectors
from .raycast import on_white, render_toys
from .toys import HELD_OUT, make_toy, stack_toys

log = logging.getLogger("microdreamer.train")

_FIRST_WEIGHTS = 67280421310721
"""Seed of the first weights: the one that torch starts with by itself."""


@dataclass(frozen=True)
class TrainSettings:
    """How the denoiser and the decoder learn.

    Attributes:
        steps, decay_steps: denoiser updates, and how many of the last ones decay the learning rate to 2 %.
        batch: objects per step; decoder_steps, decoder_batch: updates of the decoder's correction, pictures per update.
        lr, decoder_lr: peak learning rates; min_snr: γ of min-SNR weighting (arXiv 2303.09556); drop: share of objects
            whose reference is dropped, for the unconditional branch; ema: decay of the averaged weights.
        elevations, reference_elevations: degrees; reference_turn: the reference looks from within ± these degrees of the front.
    """

    steps: int = 6000
    decay_steps: int = 1500
    batch: int = 16
    lr: float = 8e-4
    warmup: int = 200
    min_snr: float = 5.0
    drop: float = 0.1
    ema: float = 0.998
    decoder_steps: int = 1500
    decoder_batch: int = 32
    decoder_lr: float = 2e-3
    elevations: tuple[float, float] = (-10.0, 30.0)
    reference_elevations: tuple[float, float] = (-5.0, 25.0)
    reference_turn: float = 50.0
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Pictures [N,V+1,H,W,3] in [0,1], the reference first, and camera vectors [N,V+1,16]."""

    images: Tensor
    cameras: Tensor


def draw_batch(toy_seeds: np.ndarray, rng: np.random.Generator, config: EmbeddedConfig, settings: TrainSettings) -> Batch:
    """Render a reference and evenly spread views of each toy; azimuths count from the reference's."""
    n, frames = len(toy_seeds), config.views + 1
    rows, counts = stack_toys([make_toy(int(seed)) for seed in toy_seeds])
    azimuth, elevation = np.zeros((n, frames)), np.zeros((n, frames))
    azimuth[:, 1:] = rng.uniform(0, 360, (n, 1)) + np.arange(config.views) * 360.0 / config.views
    elevation[:, 0] = rng.uniform(*settings.reference_elevations, n)
    elevation[:, 1:] = rng.uniform(*settings.elevations, (n, config.views))
    turn = rng.uniform(-settings.reference_turn, settings.reference_turn, (n, 1))
    seen = orbit_cameras(elevation.ravel(), azimuth.ravel(), config.radius, config.fov_y, config.image_size)
    real = orbit_cameras(elevation.ravel(), (azimuth + turn).ravel(), config.radius, config.fov_y, config.image_size)
    index = np.repeat(np.arange(n), frames)
    images = on_white(render_toys(rows, counts, index, real.c2w.numpy(), config.image_size, config.fov_y))
    return Batch(torch.from_numpy(images).unflatten(0, (n, frames)), camera_vectors(seen).unflatten(0, (n, frames)))


def batches(first: int, last: int, size: int, stage: int, config: EmbeddedConfig, settings: TrainSettings) -> Iterator[Batch]:
    """Batches of steps first..last-1, rendered ahead in threads; a step's batch depends on its number alone."""

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([settings.seed, stage, step])
        return draw_batch(rng.integers(0, HELD_OUT, size), rng, config, settings)

    workers = max(1, (os.cpu_count() or 1) - 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for step in range(first, last):
            while len(ahead) < 2 * workers and step + len(ahead) < last:
                ahead.append(pool.submit(draw, step + len(ahead)))
            yield ahead.popleft().result()


def learning_rate(step: int, peak: float, warmup: int, steps: int, decay_steps: int) -> float:
    """Warm-up, constant, then a cosine decay to 2 % over the last ``decay_steps``."""
    rate = peak * min(1.0, (step + 1) / max(warmup, 1))
    left = steps - step
    if left >= decay_steps:
        return rate
    return rate * (0.02 + 0.98 * 0.5 * (1 - math.cos(math.pi * left / decay_steps)))


def v_loss(denoiser, codec: PatchCodec, batch: Batch, alphas_cumprod: Tensor, settings: TrainSettings, generator) -> Tensor:
    """min-SNR weighted v-prediction loss: v = α ε - σ x0 (arXiv 2202.00512), weight min(SNR, γ) / (SNR + 1)."""
    device = alphas_cumprod.device
    with torch.no_grad():
        latents = codec.encode(batch.images.to(device).flatten(0, 1)).unflatten(0, batch.images.shape[:2])
    reference, clean = latents[:, 0], latents[:, 1:]
    n = len(clean)
    t = torch.randint(0, len(alphas_cumprod), (n,), generator=generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    keep = (torch.rand(n, generator=generator) >= settings.drop).to(device)
    a_bar = alphas_cumprod[t].float()
    alpha, sigma = (value.sqrt().view(-1, 1, 1, 1, 1) for value in (a_bar, 1 - a_bar))
    predicted = denoiser(alpha * clean + sigma * noise, t, reference, batch.cameras.to(device), keep)
    snr = a_bar / (1 - a_bar)
    error = (predicted - (alpha * noise - sigma * clean)).square().mean((1, 2, 3, 4))
    return (error * snr.clamp(max=settings.min_snr) / (snr + 1)).mean()


def train_denoiser(
    folder: Path,
    codec: PatchCodec,
    config: EmbeddedConfig,
    settings: TrainSettings,
    device: str,
    save_every: int = 200,
    start: MultiViewDenoiser | None = None,
):
    """Train or continue; returns the averaged denoiser. State in ``folder/denoiser.pt``, progress in the log.

    Without a state the first weights are those of ``start``, or random.
    """
    alphas_cumprod = scaled_linear_alphas_cumprod().to(device)
    denoiser = (MultiViewDenoiser(config) if start is None else start).train().requires_grad_(True).to(device)
    average = copy.deepcopy(denoiser).requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    first = _resume(folder / "denoiser.pt", denoiser, average, optimizer)
    started, losses = time.monotonic(), deque(maxlen=200)
    for step, batch in enumerate(batches(first, settings.steps, settings.batch, 0, config, settings), first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.lr, settings.warmup, settings.steps, settings.decay_steps)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        loss = v_loss(denoiser, codec, batch, alphas_cumprod, settings, generator)
        _update(loss, denoiser, average, optimizer, min(settings.ema, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            _save_state(folder / "denoiser.pt", step + 1, denoiser, average, optimizer)
            speed = (step + 1 - first) * settings.batch * config.views / (time.monotonic() - started)
            psnr = validate(average, codec, config, settings, alphas_cumprod)
            log.info("denoiser step %d loss %.4f, %.0f views/s, x0-PSNR %s", step + 1, np.mean(losses), speed, psnr)
    return average


@torch.no_grad()
def validate(denoiser, codec, config, settings, alphas_cumprod, objects: int = 32) -> dict[int, float]:
    """PSNR in dB of one-step x0 predictions on held-out toys, linear decoding, at several times."""
    device = alphas_cumprod.device
    rng = np.random.default_rng(1)
    batch = draw_batch(HELD_OUT + np.arange(objects), rng, config, settings)
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
    """The linear codec from rendered toys; kept in ``folder/codec.pt``, since signs of components differ between machines."""
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
):
    """Train the decoder's correction on noised latents, so that it also cleans what the denoiser leaves."""
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


def decoder_loss(codec: PatchCodec, network, images: Tensor, generator) -> tuple[Tensor, float]:
    """L1 + gradient L1 + MSE of decoded noised latents, and the plain MSE in [-1,1]; noise of a level drawn per picture."""
    with torch.no_grad():
        latents = codec.encode(images)
        level = 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator) ** 2
        latents = latents + (level * torch.randn(latents.shape, generator=generator)).to(latents.device)
        linear = codec.decode_linear(latents)
    difference = linear + network(latents, linear) - (images.permute(0, 3, 1, 2) * 2 - 1)
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    mse = difference.square().mean()
    return difference.abs().mean() + 0.5 * edges + mse, float(mse.detach())


def _update(loss: Tensor, network, average, optimizer, ema: float) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - ema)


def _resume(path: Path, network, average, optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("continuing %s from step %d", path.name, state["step"])
    return state["step"]


def _save_state(path: Path, step: int, network, average, optimizer) -> None:
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    _save_atomically(path, state)


def _save_atomically(path: Path, content: dict) -> None:
    with replacing(path) as temporary:
        torch.save(content, temporary)


def main(argv: list[str] | None = None) -> None:
    defaults = TrainSettings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of the training state and the result")
    parser.add_argument("--start", type=Path, metavar="FILE", help="checkpoint whose weights come first (default: random ones)")
    parser.add_argument("--only", choices=("denoiser", "decoder", "export"), help="do one part; all three in turn otherwise")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="denoiser updates in all")
    parser.add_argument(
        "--decay-steps", type=int, default=defaults.decay_steps, help="the last updates, of falling learning rate"
    )
    parser.add_argument("--batch", type=int, default=defaults.batch, help="objects per update")
    parser.add_argument("--lr", type=float, default=defaults.lr)
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
        decoder_steps=args.decoder_steps,
        seed=args.seed,
    )
    config, denoiser = EmbeddedConfig(), None
    args.out.mkdir(parents=True, exist_ok=True)
    if args.start:
        config, codec, denoiser = load_checkpoint(args.start)
        _save_atomically(args.out / "codec.pt", codec.state_dict())
    with torch.random.fork_rng():  # modules draw their first weights from the global generator
        torch.random.default_generator.manual_seed(_FIRST_WEIGHTS + settings.seed)
        codec = fit_codec(args.out, config, settings).to(args.device)
        if args.only in (None, "denoiser"):
            train_denoiser(args.out, codec, config, settings, args.device, start=denoiser)
        if args.only in (None, "decoder"):
            train_decoder(args.out, codec, config, settings, args.device)
        if args.only in (None, "export"):
            export(args.out, codec, config, settings, args.start)


def export(folder: Path, codec: PatchCodec, config: EmbeddedConfig, settings: TrainSettings, start: Path | None = None) -> None:
    """Write ``folder/embedded.safetensors`` from the averaged weights of both parts; a decoder that was not trained further is
    that of ``start``, whose codec this is."""
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
