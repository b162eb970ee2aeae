"""Seconds of a UNet call against diffusers' own network of the same sizes: python benchmarks/unet.py [--json FILE]

Both alternate in one process, with random weights, on one object's views at 32 x 32 latents; 320 channels are the published
size. diffusers' network gets the same text and no cameras, and its views are independent; so are ours in the ratio, and "joint"
is the time with attention over all views.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from microdreamer_core.diffusion.unet import UNetConfig, build_unet  # noqa: E402

VIEWS, SIDE = 4, 32
FAMILIES = {
    "zero123": {"in_channels": 8, "context_dim": 768, "num_heads": 8, "linear_projection": False, "camera_dim": None},
    "mvdream": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=320, help="width of the UNet's first level, a multiple of 64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    rows = [measure(family, args.channels, args.repeats) for family in FAMILIES]
    for row in rows:
        sys.stdout.write("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()) + "\n")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measure(family: str, channels: int, repeats: int) -> dict:
    """Return the median seconds of ours, of diffusers' and of ours with joint views, and the ratio of the first two."""
    ours = build_unet(UNetConfig(model_channels=channels, **FAMILIES[family]), "cpu").requires_grad_(False)
    plain = plain_unet(ours)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(VIEWS, ours.config.in_channels, SIDE, SIDE, generator=draw)
    context = torch.randn(VIEWS, 77, ours.config.context_dim, generator=draw)
    camera = None if ours.config.camera_dim is None else torch.randn(VIEWS, 16, generator=draw)
    calls = {
        "ours": lambda: ours(x, 500, context, camera=camera),
        "diffusers": lambda: plain(x, 500, encoder_hidden_states=context, return_dict=False),
    }
    if camera is not None:
        calls["joint"] = lambda: ours(x, 500, context, camera=camera, num_frames=VIEWS)
    seconds = {name: statistics.median(times) for name, times in in_turns(calls, repeats).items()}
    return {"family": family, "channels": channels, **seconds, "ratio": seconds["ours"] / seconds["diffusers"]}


def plain_unet(ours) -> torch.nn.Module:
    """Build diffusers' network of the same sizes, without cameras and with its own attention."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config({**ours.unet.config, "class_embed_type": None})
    return unet.eval().requires_grad_(False)


@torch.no_grad()
def in_turns(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every call, the calls alternating, after one of each to warm up."""
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - begin)
    return times


if __name__ == "__main__":
    main()
