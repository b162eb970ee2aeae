"""`microdreamer doctor`: tests what works on this machine, and tells how to fix what does not.

Heavy packages are imported inside the checks: a broken package is a finding, it does not end the examination.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ..errors import InputError
from ..util.readable import readable_size

HEALTHY, BROKEN = 0, 2

_DISTRIBUTION = "microdreamer-comfyui"
_REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
"""Used if the pack lies in ComfyUI's folder without being installed; lists no torch, which ComfyUI provides."""
_MODULES = {"scikit-image": "skimage", "pillow": "PIL"}
_OPTIONAL = {
    "matplotlib": "plots of `microdreamer report`: pip install matplotlib",
    "rembg": "cut-outs with --matting: pip install 'rembg[cpu]'",
}
_OLDEST_PYTHON = (3, 10)
_SMALLEST_DISK = 200_000_000
_CHECKPOINT_DISK = 16_000_000_000
_MARKS = {"works": "✓", "absent": "–", "broken": "✗"}
_PLAIN_MARKS = {"works": "ok", "absent": "--", "broken": "!!"}
_NAME_WIDTH = 20


@dataclass(frozen=True)
class Finding:
    """One line of the output.

    Attributes:
        name: what was checked.
        state: "absent" for something optional, "broken" for something required.
        text: what was found, or the error and how to fix it.
    """

    name: str
    state: Literal["works", "absent", "broken"]
    text: str


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`microdreamer doctor`."""
    command = commands.add_parser(
        "doctor",
        help="check what works on this machine",
        description="Check the packages, devices, renderers, hash-grid encoders, models, caches and disk space of this machine "
        "and say how to fix what is broken. Nothing is downloaded. Exit code 0: everything needed works; 2: something does "
        "not. Please add the output to a bug report.",
    )
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.set_defaults(run=_doctor)


def examine() -> Iterator[Finding]:
    """Yield the findings, quick checks first; a check that raises gives a broken finding with its message."""
    checks = {
        "system": _check_system,
        "packages": _check_packages,
        "devices": _check_devices,
        "renderers": _check_renderers,
        "hash-grid encoders": _check_encoders,
        "films": _check_films,
        "model embedded": _check_shipped_model,
        "models": _check_models,
        "caches": _check_caches,
        "disk": _check_disk,
    }
    for name, check in checks.items():
        yield from _guarded(name, check)


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # the user needs to read whatever a broken package raises
        yield Finding(name, "broken", _one_line(f"{type(error).__name__}: {error}"))


def _check_system() -> Iterator[Finding]:
    from .. import __version__

    found = (
        f"MicroDreamer {__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}, {platform.machine()}"
    )
    if sys.version_info[:2] < _OLDEST_PYTHON:
        yield Finding("system", "broken", f"{found}: Python 3.10 or newer is needed")
    else:
        yield Finding("system", "works", found)


def _check_packages() -> Iterator[Finding]:
    found = []
    for name, lowest in _requirements().items():
        mend = f"{_home_free(sys.executable)} -m pip install '{name}>={lowest}'"
        try:
            version = metadata.version(name)
            importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
        except metadata.PackageNotFoundError:
            yield Finding(f"package {name}", "broken", f"missing: {mend}")
        except Exception as error:  # such as a wheel for another system or another numpy version
            yield Finding(f"package {name}", "broken", f"{_one_line(f'{type(error).__name__}: {error}')}; try {mend}")
        else:
            found.append(f"{name} {version}")
            if _numbers(version) < _numbers(lowest):
                yield Finding(f"package {name}", "broken", f"{version} is too old: {mend}")
    yield Finding("packages", "works", ", ".join(found))
    for name, use in _OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Finding(f"package {name}", "absent", use)


def _requirements() -> dict[str, str]:
    """Required packages and their lowest versions, from the installed metadata, otherwise from the requirements file."""
    try:
        lines = [line for line in metadata.requires(_DISTRIBUTION) or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        lines = ["torch>=2.4", *_REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    parsed = (re.match(r"([\w-]+)>=([\d.]+)", line) for line in lines)
    return {match[1]: match[2] for match in parsed if match}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _devices() -> list[str]:
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, is_there in there.items() if is_there]


def _check_devices() -> Iterator[Finding]:
    import torch

    devices = _devices()
    yield Finding("device cpu", "works", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch")
    if "cuda" not in devices:
        built = torch.version.cuda or torch.version.hip
        mend = "is its driver running?" if built else "with an NVIDIA GPU, install a CUDA build of torch"
        yield Finding("device cuda", "absent", f"torch {torch.__version__} finds no GPU; {mend}")
    else:
        yield from _guarded("device cuda", _check_cuda)
    if "mps" in devices:
        torch.ones(2, device="mps").sum().item()
        yield Finding("device mps", "works", "Apple GPU")


def _check_cuda() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        torch.ones(2, device=f"cuda:{index}").sum().item()
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{readable_size(free)} free of {readable_size(total)}"
        kind = (
            f"ROCm {torch.version.hip}"
            if torch.version.hip
            else f"CUDA {torch.version.cuda}, capability {gpu.major}.{gpu.minor}"
        )
        yield Finding(f"device cuda:{index}", "works", f"{gpu.name}, {memory}, {kind}")


def _check_renderers() -> Iterator[Finding]:
    from ..render.backends import probe_renderers

    yield from _probed("renderer", probe_renderers)


def _check_encoders() -> Iterator[Finding]:
    from ..fields.encoders import probe_encoders

    yield from _probed("encoder", probe_encoders)


def _probed(kind: str, probe: Callable[[str], dict[str, str]]) -> Iterator[Finding]:
    """A line for each backend and device; torch everywhere and numba on the CPU are required, the others only faster."""
    for device in _devices():
        for name, failure in probe(device).items():
            needed = name == "torch" or (name, device) == ("numba", "cpu")
            state = "works" if not failure else "broken" if needed else "absent"
            fine = "runs" if name == "torch" else "agrees with torch"
            yield Finding(f"{kind} {name}", state, f"on {device}: {failure or fine}")


def _check_films() -> Iterator[Finding]:
    import imageio_ffmpeg

    program = Path(imageio_ffmpeg.get_ffmpeg_exe())
    yield Finding("films", "works", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}, {_home_free(program)}")


def _check_shipped_model() -> Iterator[Finding]:
    from ..diffusion.embedded.checkpoint import SHIPPED
    from ..diffusion.embedded.model import EmbeddedModel

    if not SHIPPED.is_file():
        yield Finding("model embedded", "broken", f"{_home_free(SHIPPED)} is missing: install the package again")
        return
    model = EmbeddedModel.load()
    yield Finding("model embedded", "works", f"{readable_size(SHIPPED.stat().st_size)}, {model.image_size} pixels, loads")


def _check_models() -> Iterator[Finding]:
    from ..checkpoints.load import FOLDER_VARIABLE, find, inspect, models_folder

    folder = models_folder()
    paths = find(folder)
    if not paths:
        how = f"`microdreamer fetch` lists published ones, ${FOLDER_VARIABLE} names another folder"
        yield Finding("models", "absent", f"no checkpoints in {_home_free(folder.resolve())}; {how}")
    for path in paths:
        name = f"model {path.name}"
        try:
            info = inspect(path)
        except InputError as error:
            yield Finding(name, "absent", f"not usable: {_one_line(str(error))}")
            continue
        kind = " ".join(part for part in (info.family, info.variant) if part)
        text = f"{kind}, {readable_size(info.size)}, {_home_free(path.resolve())}"
        lacks = "; ".join(info.missing)
        yield Finding(name, "absent" if lacks else "works", f"{text}; lacks a part: {lacks}" if lacks else text)


def _check_caches() -> Iterator[Finding]:
    from ..render._cuda_program import CACHE_VARIABLE, cache_folder

    numba = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parents[1])
    places = {"numba": (numba, "NUMBA_CACHE_DIR"), "cuda": (cache_folder(), CACHE_VARIABLE)}
    for name, (folder, variable) in places.items():
        refusal = _refusal(folder)
        mend = (
            f"cannot be written ({refusal}): kernels are compiled again by every process; set {variable} to a writable folder"
        )
        found = f"{_home_free(folder)} {mend if refusal else 'can be written'}"
        yield Finding(f"cache of {name}", "absent" if refusal else "works", found)


def _refusal(folder: Path) -> str:
    """Why no file can be created in a folder, or in its nearest existing parent; empty if one can."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _check_disk() -> Iterator[Finding]:
    from ..checkpoints.load import models_folder

    folders = {"disk of this folder": Path.cwd(), "disk of the models": models_folder().resolve()}
    for name, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(existing).free
        text = f"{readable_size(free)} free at {_home_free(folder)}"
        if free < _SMALLEST_DISK:
            yield Finding(name, "broken", f"{text}: a run and its files need {readable_size(_SMALLEST_DISK)}; free some")
        elif name == "disk of the models" and free < _CHECKPOINT_DISK:
            yield Finding(name, "absent", f"{text}: published checkpoints take up to {readable_size(_CHECKPOINT_DISK)}")
        else:
            yield Finding(name, "works", text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _home_free(path: Path | str) -> str:
    """A path without the home folder, because findings are pasted into public reports."""
    home = str(Path.home())
    return "~" + str(path)[len(home) :] if len(home) > 1 and str(path).startswith(home + os.sep) else str(path)


def _doctor(args: argparse.Namespace) -> int:
    findings = []
    marks = _MARKS if _shows(sys.stdout.encoding) else _PLAIN_MARKS
    for finding in examine():
        findings.append(finding)
        if not args.json:
            sys.stdout.write(f"{marks[finding.state]} {finding.name:{_NAME_WIDTH}s} {finding.text}\n")
            sys.stdout.flush()
    broken = [finding.name for finding in findings if finding.state == "broken"]
    if args.json:
        content = {"healthy": not broken, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        end = f"broken: {', '.join(broken)}" if broken else "everything needed works"
        sys.stdout.write(f"{marks['broken' if broken else 'works']} {end}\n")
    return BROKEN if broken else HEALTHY


def _shows(encoding: str | None) -> bool:
    """Whether an output can encode the marks; consoles of older Windows cannot."""
    try:
        "".join(_MARKS.values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
