"""The core must start fast: importing it loads torch and nothing heavier."""

import subprocess
import sys

HEAVY = ("comfy", "diffusers", "transformers", "numba", "gsplat", "scipy", "skimage", "trimesh", "matplotlib")
MODULES = (
    "microdreamer_core",
    "microdreamer_core.sir.plan",
    "microdreamer_core.cameras",
    "microdreamer_core.diffusion.ddim",
    "microdreamer_core.diffusion.samplers",
    "microdreamer_core.diffusion.unet",
    "microdreamer_core.diffusion.encoders",
    "microdreamer_core.diffusion.tokenizer",
    "microdreamer_core.evaluation.metrics",
    "microdreamer_core.evaluation.report",
)


def test_core_is_light():
    program = f"import sys, {', '.join(MODULES)}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
