"""The core must start fast: importing it loads torch and nothing heavier."""

import importlib.metadata
import subprocess
import sys

import pytest

TORCH = tuple(map(int, importlib.metadata.version("torch").split(".")[:2]))
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


def test_help_loads_no_package():
    """Help is answered within 0.3 s: nothing of site-packages is loaded, numpy and torch included."""
    program = """if True:
        import sys
        sys.argv = ["microdreamer", "--help"]
        from microdreamer_core.cli.entry import main
        try:
            main()
        except SystemExit:
            print("loaded", *sorted({"numpy", "torch", "PIL", "numba", "scipy"} & set(sys.modules)))
        """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "usage: microdreamer" in done.stdout and done.stdout.splitlines()[-1] == "loaded"


@pytest.mark.skipif(TORCH < (2, 13), reason="torch 2.4 imports its compiler for Adam's function too")
def test_fitting_gaussians_loads_no_compiler_of_torch():
    """``torch.optim.Adam``, ``checkpoint`` and gradients of several outputs import it, which delays a run by a second."""
    program = """if True:
        import sys, torch
        from microdreamer_core import Gaussians, orbit_cameras
        from microdreamer_core.convert.image_to_gaussians import lay_image_over
        from microdreamer_core.sir.reconstruct import reconstruct
        cameras = orbit_cameras(0.0, [0.0, 90.0], width=16)
        result = reconstruct(Gaussians.ball(), cameras, torch.zeros(2, 16, 16, 3), 2)
        lay_image_over(result.field, cameras[:1], torch.zeros(1, 16, 16, 3), torch.ones(1, 16, 16, 1))
        print(len(result.losses), *sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
        """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"]
