"""The report's parts."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from microdreamer_core.job.record import peak_memory_mb, versions, write_json
from microdreamer_core.util.clock import Clock


def test_the_clock_adds_up_by_stage_even_when_a_stage_fails():
    clock = Clock()
    for _ in range(2):
        with clock.stage("work"):
            time.sleep(0.01)
    with pytest.raises(RuntimeError), clock.stage("broken"):
        raise RuntimeError
    assert list(clock.seconds) == ["work", "broken"]
    assert 0.02 <= clock.seconds["work"] <= clock.total


def test_memory_and_versions_are_plausible():
    assert peak_memory_mb() is None or 10 < peak_memory_mb() < 1e6
    assert {"microdreamer", "python", "torch", "numpy"} <= set(versions())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell less")
def test_a_new_process_does_not_inherit_a_peak_of_memory():
    code = "import sys; from microdreamer_core.job.record import peak_memory_mb; sys.stdout.write(str(peak_memory_mb()))"
    ballast = np.ones(125_000_000)  # 1 GB, well above what importing the child's packages takes on any machine
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ballast[0] == 1 and float(run.stdout) < 800 < peak_memory_mb()


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "report.json", {"a": 1})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "report.json", {"a": object()})
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
