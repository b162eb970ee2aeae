"""Batches on a Ray cluster of this machine; `pip install ray` to run them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from helpers.small_batch import logs, note_there  # noqa: E402
from microdreamer_core import __version__  # noqa: E402
from microdreamer_core.batch import cluster  # noqa: E402
from microdreamer_core.batch.items import Item  # noqa: E402
from microdreamer_core.batch.share import share  # noqa: E402
from microdreamer_core.batch.tasks import Task, find_result  # noqa: E402
from microdreamer_core.cli import main as cli  # noqa: E402
from microdreamer_core.errors import Cancelled, InputError  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")]


@pytest.fixture(scope="module")
def address():
    """A cluster with two CPUs, as `ray start --head` makes it; its processes end with the one that started them."""
    folder = tempfile.mkdtemp(prefix="ray")  # a short path, for sockets lie in it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("ray")
    options = f"--head --block --port {port} --num-cpus 2 --include-dashboard false --disable-usage-stats --temp-dir {folder}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([program, "start", *options.split()], env=environment, cwd=folder, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while True:
        try:
            cluster._connect(ray, f"127.0.0.1:{port}")
            break
        except InputError:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
    yield f"127.0.0.1:{port}"
    ray.shutdown()
    process.terminate()
    process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def tasks_of(folder, *names):
    (folder / "x.png").write_bytes(b"pixels")
    return [Task(Item(name, folder / "x.png"), folder / name, "run", "key") for name in names]


def test_a_killed_worker_loses_nothing_and_nothing_is_done_twice(address, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_make_there", note_there)
    names = ["a", "fatal", "b", "deadly", "c", "d"]
    tasks = tasks_of(tmp_path, *names)
    workers = cluster.start_workers(address, len(tasks), 1, "auto")
    assert len(workers) == 4, "two for each CPU"
    done = {task.item.name: result for task, result in share(tasks, workers)}
    assert logs(tmp_path) == {"a": 1, "b": 1, "c": 1, "d": 1, "deadly": 3, "fatal": 2}
    assert [name for name in names if "failed" in done[name]] == ["deadly"]
    assert [task.item.name for task in tasks if find_result(task)] == ["a", "fatal", "b", "c", "d"]
    assert (tmp_path / "a" / "sent.glb").read_bytes() == b"pixels"
    assert (tmp_path / "a" / "version.txt").read_text() == __version__


def test_a_stop_takes_the_tasks_from_the_cluster(address, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_make_there", note_there)

    def stop():
        raise Cancelled

    tasks = tasks_of(tmp_path, *(f"a{i}" for i in range(40)))
    with pytest.raises(Cancelled):
        list(share(tasks, cluster.start_workers(address, len(tasks), 1, "auto"), stop))
    time.sleep(2)
    assert len(logs(tmp_path)) < 40


def test_a_cluster_without_a_place_for_a_task_is_refused(address):
    with pytest.raises(InputError, match="2 CPUs and 0 GPUs, too few for --device auto --threads 3"):
        cluster.start_workers(address, 1, 3, "auto")
    with pytest.raises(InputError, match="too few for --device cuda"):
        cluster.start_workers(address, 1, 1, "cuda")


def test_pictures_become_assets_on_other_machines(address, tmp_path):
    from test_batch import TINY, draw, small_checkpoint

    (tmp_path / "pictures").mkdir()
    draw(tmp_path / "pictures" / "red.png")
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / "pictures" / "white.png")
    model = small_checkpoint(tmp_path / "small.safetensors")
    words = ["batch", tmp_path / "pictures", "-o", tmp_path / "out", "--model", model, "--ray", address, *TINY]
    assert cli.main([*map(str, words)]) == cli.FAILED
    (red, white) = json.loads((tmp_path / "out" / "results.json").read_text())["items"]
    assert "failed" in white and all((tmp_path / "out" / "red" / name).is_file() for name in red["files"].values())
    assert (tmp_path / "out" / "red" / "picture.jpg").is_file()
    assert cli.main([*map(str, words)]) == cli.FAILED
    assert json.loads((tmp_path / "out" / "results.json").read_text())["items"][0] == red


def test_an_address_without_a_cluster_is_refused():
    ray.shutdown()
    with pytest.raises(InputError, match="There is no Ray cluster at '127.0.0.1:9'"):
        cluster.start_workers("127.0.0.1:9", 1, 1, "auto")
