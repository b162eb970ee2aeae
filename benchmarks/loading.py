"""Time and memory of loading a checkpoint of random weights: python benchmarks/loading.py [--full] [--json FILE]

Writes a Zero123 file into a temporary folder and loads it in a new process, in each precision: a small training checkpoint
(weights, EMA weights and optimizer state), and one of weights alone; with --full one of the published names and shapes with EMA
weights (8.6 GB on disk, and as much memory while it is written).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sections import ROOT
from stand_ins import published_shapes

_MEASURED = """
import json, resource, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from microdreamer_core.diffusion import checkpoints
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionModelWithProjection

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

torch.set_num_threads(1)
before, start = resident(), time.perf_counter()
model = checkpoints.load(Path(sys.argv[2]), checkpoints.ModelOptions(dtype=sys.argv[3]))
seconds = time.perf_counter() - start
size = sum(t.numel() * t.element_size() for t in model.networks().state_dict().values()) / 2**20
print(json.dumps({"model_mb": size, "peak_mb": resident() - before, "seconds": seconds}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=96, help="width of the small UNet's first level, a multiple of 32")
    parser.add_argument("--full", action="store_true", help="the published names and shapes")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for layout in ("full",) if args.full else ("lightning", "safetensors"):
            path = write_full(Path(folder)) if args.full else write(Path(folder), layout, args.channels)
            for dtype in ("float32", "float16"):
                command = [sys.executable, "-c", _MEASURED, str(ROOT), str(path), dtype]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row = {"layout": layout, "dtype": dtype, "file_mb": path.stat().st_size / 2**20, **json.loads(done.stdout)}
                rows.append(row)
                sys.stdout.write(
                    "  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()) + "\n"
                )
            path.unlink()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write(folder: Path, layout: str, channels: int) -> Path:
    """Write a random checkpoint with a UNet of that width, by the tests' writer with wider levels."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers import tiny_checkpoints

    tiny_checkpoints.WIDTH = channels
    return tiny_checkpoints.write(folder, "zero123", layout)


def write_full(folder: Path) -> Path:
    """Write a checkpoint of random weights with the published names and shapes."""
    shapes = published_shapes("zero123")
    draw = torch.Generator().manual_seed(0)
    path = folder / "zero123-full.ckpt"
    torch.save({"state_dict": {name: 0.02 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}}, path)
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
