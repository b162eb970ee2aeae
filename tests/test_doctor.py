"""`microdreamer doctor`: what works is said to work, what does not is shown with its message and its mend."""

import io
import json
import shutil
import socket
import sys
from collections import namedtuple
from importlib import metadata

import pytest
import torch

from microdreamer_core.cli import doctor
from microdreamer_core.cli import main as cli
from microdreamer_core.diffusion.embedded.checkpoint import SHIPPED
from microdreamer_core.fields import encoders
from microdreamer_core.render import backends


def findings(check):
    return {finding.name: finding for finding in doctor._guarded("check", check)}


@pytest.fixture(scope="module")
def examined():
    """(exit code, findings) of a whole examination during which nothing can reach a network."""

    def refuse(*_):
        raise AssertionError("a network was asked for")

    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(sys, "stdout", out)
        code = cli.main(["doctor", "--json"])
    return code, json.loads(out.getvalue())


def test_everything_needed_works_here(examined):
    code, content = examined
    states = {finding["name"]: finding["state"] for finding in content["findings"]}
    assert code == doctor.HEALTHY and content["healthy"]
    needed = "system", "packages", "device cpu", "renderer numba", "renderer torch", "encoder numba", "films", "model embedded"
    assert {states[name] for name in needed} == {"works"}
    assert "broken" not in states.values() and all(finding["text"] for finding in content["findings"])


def test_the_packages_are_those_that_the_project_requires():
    required = doctor._requirements()
    assert {"torch", "numpy", "scikit-image", "fast-simplification"} <= set(required)
    assert "matplotlib" not in required, "extras are not required"


def test_without_an_installation_the_requirements_of_the_pack_are_read(monkeypatch):
    monkeypatch.setattr(doctor, "_DISTRIBUTION", "not-installed-anywhere")
    required = doctor._requirements()
    assert {"torch", "numpy", "scikit-image", "tqdm"} <= set(required) and required["scikit-image"] == "0.22"


def test_a_missing_an_old_and_a_damaged_package_are_broken(monkeypatch):
    versions = {"numpy": "1.20.3", "einops": "9.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def import_module(name):
        if name == "einops":
            raise OSError("wrong\n ELF class")

    monkeypatch.setattr(doctor, "_requirements", lambda: {"numpy": "1.26", "xatlas": "0.0.9", "einops": "0.7"})
    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    found = findings(doctor._check_packages)
    assert [found[f"package {name}"].state for name in ("numpy", "xatlas", "einops")] == ["broken"] * 3
    assert "1.20.3 is too old" in found["package numpy"].text and "'numpy>=1.26'" in found["package numpy"].text
    assert "missing" in found["package xatlas"].text and "OSError: wrong ELF class" in found["package einops"].text


@pytest.mark.parametrize(("version", "older"), [("0.10.0", False), ("0.9", True), ("0.10.0rc1", False), ("0.10.0+cpu", False)])
def test_versions_are_compared_by_numbers(version, older):
    assert (doctor._numbers(version) < doctor._numbers("0.10")) is older


def fail(*_):
    raise RuntimeError("no such\ninstruction")


@pytest.mark.parametrize(("name", "state"), [("numba", "broken"), ("torch", "broken"), ("gsplat", "absent")])
def test_a_renderer_that_fails_is_shown_with_its_message(monkeypatch, name, state):
    monkeypatch.setattr(doctor, "_devices", lambda: ["cpu"])
    monkeypatch.setitem(backends._PREFERENCE, "cpu", (name,))
    monkeypatch.setitem(backends._BACKENDS, name, fail)
    found = findings(doctor._check_renderers)[f"renderer {name}"]
    assert found.state == state and "RuntimeError: no such instruction" in found.text


def test_a_gpu_is_tried_and_described(monkeypatch):
    properties = namedtuple("properties", "name major minor")("Some GPU", 9, 0)
    monkeypatch.setattr(doctor, "_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (70 * 10**9, 80 * 10**9))
    if not torch.cuda.is_available():
        assert findings(doctor._check_devices)["device cuda"].state == "broken", "what torch says when it cannot compute"
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    found = findings(doctor._check_devices)["device cuda:0"]
    assert found.state == "works" and "Some GPU, 70.00 GB free of 80.00 GB" in found.text and "capability 9.0" in found.text


def test_an_encoder_that_fails_is_shown_with_its_message(monkeypatch):
    monkeypatch.setattr(doctor, "_devices", lambda: ["cpu"])
    monkeypatch.setitem(
        encoders._ENCODERS, "numba", lambda grid: lambda points, table, grid: 1.1 * encoders.encode_torch(points, table, grid)
    )
    found = findings(doctor._check_encoders)
    assert found["encoder numba"].state == "broken" and "differ from torch's by 1.00e-01" in found["encoder numba"].text
    assert found["encoder torch"].state == "works"


def test_a_check_that_raises_is_a_broken_finding():
    assert findings(fail)["check"] == doctor.Finding("check", "broken", "RuntimeError: no such instruction")


def test_a_broken_finding_ends_with_2_and_is_named_last(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "examine", lambda: iter([doctor.Finding("films", "broken", "gone"), doctor.Finding("a", "works", "b")])
    )
    assert cli.main(["doctor"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["✗", "films", "gone"] and lines[-1] == "✗ broken: films"


def test_a_console_without_the_marks_gets_plain_ones():
    assert doctor._shows("utf-8") and not doctor._shows("cp1252") and not doctor._shows(None)


def test_models_are_listed_and_unusable_ones_say_why(monkeypatch, tmp_path):
    monkeypatch.setenv("MICRODREAMER_MODELS", str(tmp_path))
    assert "no checkpoints" in findings(doctor._check_models)["models"].text
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    shutil.copy(SHIPPED, tmp_path / "own.safetensors")
    found = findings(doctor._check_models)
    assert found["model cut.safetensors"].state == "absent" and "not usable" in found["model cut.safetensors"].text
    assert found["model own.safetensors"].state == "works" and "embedded" in found["model own.safetensors"].text


def test_a_full_disk_is_broken_and_a_small_one_is_told(monkeypatch):
    usage = namedtuple("usage", "free")
    for free, states in ((10**6, {"broken"}), (10**9, {"works", "absent"}), (10**12, {"works"})):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: usage(free))
        assert {finding.state for finding in findings(doctor._check_disk).values()} == states


def test_a_cache_that_cannot_be_written_names_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("MICRODREAMER_CACHE", str(tmp_path / "new" / "cache"))
    assert findings(doctor._check_caches)["cache of cuda"].state == "works"
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = findings(doctor._check_caches)["cache of cuda"]
    assert found.state == "absent" and "Permission denied" in found.text and "set MICRODREAMER_CACHE" in found.text


def test_a_users_name_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.Path, "home", lambda: tmp_path)
    assert doctor._home_free(tmp_path / "a") == f"~{doctor.os.sep}a"
    assert doctor._home_free(f"{tmp_path}-other") == f"{tmp_path}-other"
