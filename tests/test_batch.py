"""Batches: what is made of folders and tables, that nothing is lost or made twice when workers die, and the page."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.small_batch import FakeServer, WorkerThread, logs, note
from helpers.small_model import small_load
from microdreamer_core.batch.comfy import read_workflow
from microdreamer_core.batch.items import Item, read_items
from microdreamer_core.batch.page import write_page
from microdreamer_core.batch.share import MOST_LOSSES, ThreadWorker, WorkerLost, share
from microdreamer_core.batch.tasks import Task, find_result, write_still
from microdreamer_core.cli import main as cli
from microdreamer_core.diffusion.embedded.model import EmbeddedModel
from microdreamer_core.errors import Cancelled, InputError
from microdreamer_core.fields.gaussians import Gaussians, GaussianSettings
from microdreamer_core.io.mesh_files import write_mesh
from microdreamer_core.io.splats import write_gaussians
from microdreamer_core.mesh import Mesh
from microdreamer_core.util import processes
from microdreamer_core.util.lock import lock_output

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--iterations", "1", "--set", "steps=2", "--set", "init_steps=4", "--faces", "300", "--texture-size", "64"]
TINY += ["--no-film", "--quiet", "--threads", "1"]


def draw(path, color=(200, 50, 50)):
    """A box on transparency."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[16:48, 20:40] = (*color, 255)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw(folder / "red.png")
    draw(folder / "blue.png", (50, 50, 200))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def small(monkeypatch):
    """Workers are threads of this process, with the small model; returns how often each asset's optimisation began."""
    from microdreamer_core.batch import make

    made = []

    def make_asset(job, *args, **keywords):
        made.append((job.source, job.first, job.seed))
        return original(job, *args, **keywords)

    original = make.make_asset
    monkeypatch.setattr(make, "make_asset", make_asset)
    monkeypatch.setattr(EmbeddedModel, "load", small_load())
    monkeypatch.setattr(processes, "WorkerProcess", WorkerThread)
    make._load.cache_clear()
    yield made
    make._load.cache_clear()


def batch(*args):
    return cli.main(["batch", *map(str, args)])


def refused(capsys, *args):
    assert batch(*args) == cli.UNUSABLE
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_becomes_assets_and_a_page_and_what_is_unchanged_is_kept(small, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    command = [pictures, "-o", out, *TINY, "--workers", "1"]
    assert batch(*command) == cli.FAILED
    assert capsys.readouterr().out.splitlines()[:2] == [
        "2 made, 0 kept from before, 1 failed",
        "failed     broken: broken.png cannot be read as a picture (it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF, AVIF, PPM, "
        "TGA); give a PNG, JPEG or WebP file.",
    ]
    assert small == [("blue.png", -1, 0), ("red.png", -1, 0)]
    names = ["batch.json", "object.jpg", "picture.jpg", "red.glb", "red.json", "red.state.safetensors"]
    assert sorted(path.name for path in (out / "red").iterdir()) == names
    results = json.loads((out / "results.json").read_text())["items"]
    assert [one["name"] for one in results] == ["blue", "broken", "red"] and results[0]["numbers"]["triangles"] == 300
    page = (out / "index.html").read_text()
    assert 'data-mesh="red/red.glb"' in page and '<img src="red/object.jpg"' in page
    assert "it is none of PNG" in page and "2 made, 1 failed" in page

    glb = (out / "red" / "red.glb").read_bytes()
    draw(pictures / "broken.png", (0, 200, 0))
    draw(pictures / "blue.png", (50, 50, 100))
    assert batch(*command) == cli.DONE
    assert "2 made, 1 kept from before, 0 failed" in capsys.readouterr().out
    assert small[2:] == [("blue.png", -1, 0), ("broken.png", -1, 0)]
    assert (out / "red" / "red.glb").read_bytes() == glb

    (out / "red" / "red.json").unlink()
    assert batch(*command, "--texture-size", "96") == cli.DONE
    assert [first for _, first, _ in small[4:]] == [1, 1, 1], "another mesh needs no new optimisation"
    assert (out / "red" / "red.json").is_file()


def test_stdout_is_for_what_the_batch_says(pictures, tmp_path, monkeypatch, capsys):
    """Ray prints there which nodes died."""
    from microdreamer_core.batch import run

    monkeypatch.setattr(
        run, "run_batch", lambda folder, items, *_, **__: sys.stdout.write("(raylet) noise") and run.Batch(folder, items)
    )
    assert batch(pictures, "-o", tmp_path / "out", *TINY) == cli.DONE
    out, err = capsys.readouterr()
    assert out.startswith("0 made, 0 kept") and "raylet" not in out and "(raylet) noise" in err


def test_a_table_gives_prompts_and_options(small, pictures, tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(
        "picture,name,seed,iterations,elevation\n"
        'pictures/red.png,"a/b: c",7,0,10\n'
        "pictures/red.png,,1,0,\n"
        "\n"
        "pictures/red.png,,2,,\n"
        "pictures/none.png,,,,\n"
        "pictures/blue.png,,,-3,\n"
    )
    assert batch(table, "-o", tmp_path / "out", *TINY, "--workers", "2") == cli.FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 made, 0 kept from before, 2 failed"
    assert lines[1] == f"failed     none: There is no picture at {pictures / 'none.png'}; check the path."
    assert "iterations (--iterations) of the plan must be" in lines[2]
    assert sorted(seed for _, _, seed in small) == [1, 2, 7]
    plan = json.loads((tmp_path / "out" / "a_b_ c" / "a_b_ c.json").read_text())["plan"]
    assert plan["iterations"] == 0
    assert json.loads((tmp_path / "out" / "red-2" / "red-2.json").read_text())["plan"]["iterations"] == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "needs a column 'picture' or 'prompt'"),
        ("picture\n", "has no rows"),
        ("picture,colour\na.png,red\n", "unknown column 'colour'"),
        ("picture,\na.png,red\n", "unknown column ''"),
        ("picture,seed\na.png\n", "Line 2 of table.csv has more or fewer cells"),
        ("picture,seed\na.png,1,2\n", "Line 2 of table.csv has more or fewer cells"),
        ("picture,seed\na.png,x\n", "Line 2 of table.csv cannot be used: invalid literal"),
        ("picture,t2_start\na.png,x\n", "Line 2 of table.csv cannot be used: 't2_start=x' cannot be read"),
        ("picture,seed\n,1\n", "Line 2 of table.csv has neither a picture nor a prompt"),
        ('picture\n"a.png\n', "cannot be read as a table"),
        ("picture\n\xff\n".encode("latin-1"), "cannot be read as a table"),
    ],
)
def test_an_unusable_table_is_refused(text, sentence, tmp_path, capsys):
    (tmp_path / "table.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sentence in refused(capsys, tmp_path / "table.csv", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "none"], "Unknown plan 'none'"),
        (["--faces", "-1"], "target_faces (--faces)"),
        (["--elevation", "100"], "elevation"),
        (["--workers", "-1"], "number of workers"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--workflow", "a.json"], "--comfy and --workflow belong together"),
        (["--comfy", "http://a", "--workflow", "a.json", "--ray", "auto"], "exclude each other"),
        (["--comfy", "http://a", "--workflow", "a.json"], "a.json cannot be read"),
    ],
)
def test_options_that_fit_no_picture_are_refused_before_the_work(options, sentence, pictures, tmp_path, capsys):
    assert sentence in refused(capsys, pictures, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_two_batches_of_one_folder_are_refused(pictures, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with lock_output(tmp_path / "out" / "index.html"):
        assert f"is being written by the process {os.getpid()}" in refused(capsys, pictures, "-o", tmp_path / "out")


def test_a_source_that_is_neither_folder_nor_table_is_refused(tmp_path, capsys):
    assert "a folder of pictures or a .csv" in refused(capsys, tmp_path / "none", "-o", tmp_path / "out")
    assert "holds no pictures" in refused(capsys, tmp_path, "-o", tmp_path / "out")


def test_names_are_safe_unique_and_keep_their_order(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "picture,name,prompt\nx/bird.png,,\nx/Bird.jpg,,\n,bird-2,a\n,../..,b\n,,\n,,A red  bird!\n" + f",{'é' * 99},c\n"
    )
    names = [item.name for item in read_items(table)]
    assert names == ["bird", "Bird-2", "bird-2-2", "_", "a-red-bird", "é" * 50]


def test_a_batch_that_is_stopped_continues_where_it_was(small, pictures, tmp_path, monkeypatch, capsys):
    """The stop comes after the second iteration of the second picture."""
    from microdreamer_core.batch import make
    from microdreamer_core.cli import interrupts

    (pictures / "broken.png").unlink()
    out = tmp_path / "out"
    saved = []

    def save_run(path, job, iteration):
        saved.append((path.name, iteration.k))
        written = original(path, job, iteration)
        if saved[-1] == ("red.state.safetensors", 0):
            monkeypatch.setattr(interrupts, "_noted", True)
            while not worker_stopped():
                time.sleep(0.01)
        return written

    def worker_stopped():
        return any(worker._stop.is_set() for worker in workers)

    workers, original, begin = [], make.save_run, WorkerThread.__init__

    def remember(self, *args):
        begin(self, *args)
        workers.append(self)

    monkeypatch.setattr(WorkerThread, "__init__", remember)
    monkeypatch.setattr(make, "save_run", save_run)
    command = [pictures, "-o", out, *TINY, "--iterations", "3", "--workers", "1"]
    assert batch(*command) == cli.STOPPED
    assert "1 made, 1 to do" in (out / "index.html").read_text()
    assert capsys.readouterr().err.splitlines()[-1] == "microdreamer: stopped"
    monkeypatch.setattr(interrupts, "_noted", False)
    assert batch(*command) == cli.DONE
    assert small == [("blue.png", -1, 0), ("red.png", -1, 0), ("red.png", 1, 0)]
    assert [k for name, k in saved if name.startswith("red")] == [-1, 0, 1, 2]


def test_a_state_of_other_settings_is_not_continued(small, pictures, tmp_path):
    command = [pictures, "-o", tmp_path / "out", *TINY]
    for name in ("broken.png", "blue.png"):
        (pictures / name).unlink()
    assert batch(*command) == cli.DONE
    assert batch(*command, "--seed", "5") == cli.DONE
    assert small == [("red.png", -1, 0), ("red.png", -1, 5)]


# --- the queue --------------------------------------------------------------------------------------------------------


def tasks_of(folder, *names):
    return [Task(Item(name), folder / name, "run", "key") for name in names]


class Fragile:
    """A worker that is lost with the tasks of some names; ``heirs`` can take its place."""

    def __init__(self, deadly, heirs=0):
        self.deadly, self.heirs, self.done, self.closed = deadly, heirs, [], False

    def submit(self, task):
        future = Future()
        if task.item.name in self.deadly:
            future.set_exception(WorkerLost("gone"))
        else:
            self.done.append(task.item.name)
            future.set_result({"files": {}})
        return future

    def renew(self):
        return Fragile(self.deadly, self.heirs - 1) if self.heirs else None

    def stop(self):
        pass

    def close(self):
        self.closed = True


def test_the_task_of_a_lost_worker_goes_to_another(tmp_path):
    workers = [Fragile({"a", "b"}), Fragile(set())]
    done = dict((task.item.name, result) for task, result in share(tasks_of(tmp_path, *"abc"), workers))
    assert done == {name: {"files": {}} for name in "abc"}
    assert sorted(workers[1].done) == ["a", "b", "c"] and workers[1].closed


def test_a_task_that_takes_every_worker_with_it_is_given_up(tmp_path):
    tasks = tasks_of(tmp_path, *"abc")
    for task in tasks:
        task.folder.mkdir()
    done = dict((task.item.name, result) for task, result in share(tasks, [Fragile({"b"}, heirs=9)]))
    assert "failed" not in done["a"] and "failed" not in done["c"]
    assert done["b"]["failed"].startswith(f"{MOST_LOSSES} workers died of it (gone)")


def test_without_a_worker_left_the_batch_ends_and_says_so(tmp_path):
    with pytest.raises(InputError, match=r"No worker is left \(gone\)"):
        list(share(tasks_of(tmp_path, *"abc"), [Fragile({"b"})]))


def test_a_stop_reaches_workers_that_are_busy(tmp_path):
    stopped = []

    def endless(task, check):
        try:
            while True:
                check()
                time.sleep(0.01)
        except Cancelled:
            stopped.append(task.item.name)
            raise

    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        list(share(tasks_of(tmp_path, *"abc"), [ThreadWorker(endless), ThreadWorker(endless)], stop))
    assert sorted(stopped) == ["a", "b"]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_process_is_replaced_and_nothing_is_done_twice(tmp_path):
    names = ["a", "fatal", "b", "deadly", "c", "d"]
    workers = [processes.WorkerProcess(note) for _ in range(2)]
    done = dict((task.item.name, result) for task, result in share(tasks_of(tmp_path, *names), workers))
    assert logs(tmp_path) == {"a": 1, "b": 1, "c": 1, "d": 1, "deadly": MOST_LOSSES, "fatal": 2}
    assert [name for name in names if "failed" in done[name]] == ["deadly"]
    assert [name for name in names if find_result(tasks_of(tmp_path, name)[0])] == ["a", "fatal", "b", "c", "d"]


def small_checkpoint(path):
    from microdreamer_core.diffusion.embedded.checkpoint import save_checkpoint

    model = small_load().__func__(EmbeddedModel)
    save_checkpoint(path, model.config, model.codec, model.denoiser, {})
    return path


def children_of(process):
    """Its worker processes (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[1] == str(process.pid) and "spawn_main" in command:
            found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_real_batch_survives_the_death_of_a_worker_and_of_itself(pictures, tmp_path):
    """A worker is killed in its work, then the whole batch; the command again ends as an undisturbed one."""
    model = small_checkpoint(tmp_path / "small.safetensors")
    draw(pictures / "broken.png", (0, 200, 0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(out, *more):
        words = ["batch", pictures, "-o", tmp_path / out, "--model", model, *TINY, "--iterations", "4", *more]
        command = [sys.executable, "-m", "microdreamer_core.cli", *map(str, words)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for(path, process):
        deadline = time.monotonic() + 240
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)

    calm = start("calm", "--workers", "1")
    out, err = calm.communicate(timeout=500)
    assert calm.returncode == 0, err

    disturbed = start("out", "--workers", "1")
    wait_for(tmp_path / "out" / "blue" / "blue.state.safetensors", disturbed)
    (worker,) = children_of(disturbed)
    os.kill(worker, signal.SIGKILL)
    wait_for(tmp_path / "out" / "broken" / "broken.state.safetensors", disturbed)
    (worker,) = children_of(disturbed)
    disturbed.kill()
    disturbed.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists(), "a worker outlives its batch"
    again = start("out", "--workers", "2")
    out, err = again.communicate(timeout=500)
    assert again.returncode == 0 and out.startswith("2 made, 1 kept from before, 0 failed"), out + err
    for path in (tmp_path / "calm").rglob("*.glb"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "calm")).read_bytes() == path.read_bytes()
    assert not [path for path in (tmp_path / "out").rglob(".*")]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_there_is_and_escapes_what_it_was_given():
    items = [Item("a", Path("a.png"), prompt="<b>&"), Item("b"), Item("c é", Path("c.png")), Item("d", Path("d.png"))]
    results = {
        "a": {"files": {"mesh": "a.glb", "film": "a.mp4", "sheet": "a.png"}, "numbers": {"seconds": 75, "triangles": 9}},
        "b": {"files": {"x.webp": "x.webp"}, "numbers": {"seconds": 1, "server": "<i>"}},
        "c é": {"failed": "No <object>."},
        "d": None,
    }
    page = write_page("<t>", items, results)
    assert "<title>&lt;t&gt;</title>" in page and "2 made, 1 failed, 1 to do" in page
    assert "<p>&lt;b&gt;&amp;</p>" in page and "No &lt;object&gt;." in page and "<i>" not in page
    assert '<video src="a/a.mp4"' in page and "<dd>1:15</dd>" in page and '<img src="b/x.webp"' in page
    assert '<a href="#c%20%C3%A9">c é</a>' in page and 'id="c é"' in page
    assert not re.search(r"<!-- \w+ -->", page)
    assert re.findall(r"https?://[^\"'<>\s]+", page) == re.findall(r"https://cdn\.jsdelivr\.net/[^\"]+", page)
    assert page.count("https://") == 1 and 'INTEGRITY = "sha384-' in page


def test_what_no_film_shows_is_rendered_once_for_the_page(tmp_path):
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) + 50
    red = torch.tensor([0.8, 0.1, 0.1]).expand(4, 3)
    write_mesh(tmp_path / "a.glb", Mesh(vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]), colors=red))
    write_gaussians(tmp_path / "a.ply", Gaussians.ball(GaussianSettings(num_points=50)))
    (tmp_path / "b.glb").write_bytes(b"no mesh")
    assert write_still(tmp_path, ["a.glb", "a_turntable.mp4"]) == write_still(tmp_path, ["b.glb", "a.ply"]) == {}
    assert write_still(tmp_path, ["a.json"]) == {} and not (tmp_path / "object.jpg").exists()
    assert write_still(tmp_path, ["a.ply"]) == {"still": "object.jpg"}
    assert np.asarray(Image.open(tmp_path / "object.jpg")).min() < 230
    assert write_still(tmp_path, ["a.ply", "a.glb"]) == {"still": "object.jpg"}
    pixels = np.asarray(Image.open(tmp_path / "object.jpg"), float)
    redder = pixels[..., 0] - pixels[..., 1]
    assert 0.05 < (redder > 60).mean() < 0.9 and (pixels[:5] > 250).all()


# --- ComfyUI servers --------------------------------------------------------------------------------------------------

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "Load"}},
    "2": {
        "class_type": "Make",
        "inputs": {"image": ["1", 0], "seed": 0, "prompt": "", "strength": 0.5, "fast": True},
        "_meta": {"title": "Make it"},
    },
    "5": {"class_type": "Save", "inputs": {"model": ["2", 0], "seed": 3}},
}


@pytest.fixture
def comfy(tmp_path):
    """Runs a table on servers."""

    def run(table, *servers, graph=GRAPH, out="out"):
        (tmp_path / "graph.json").write_text(json.dumps(graph))
        (tmp_path / "table.csv").write_text(table)
        urls = [word for server in servers for word in ("--comfy", getattr(server, "url", server))]
        return batch(tmp_path / "table.csv", "-o", tmp_path / out, *urls, "--workflow", tmp_path / "graph.json", "--quiet")

    return run


def test_servers_get_pictures_and_values_and_their_files_come_back(comfy, pictures, tmp_path, capsys):
    table = "picture,2.seed,prompt,strength,fast\npictures/red.png,7,a fox,0.25,false\npictures/blue.png,,,,\n"
    with FakeServer() as one, FakeServer() as two:
        assert comfy(table, one, two, two) == cli.DONE
        graphs = {graph["2"]["inputs"]["seed"]: graph for graph in one.graphs + two.graphs}
        assert len(one.graphs) == len(two.graphs) == 1 and set(graphs) == {0, 7}
        assert graphs[7]["2"]["inputs"] == {"image": ["1", 0], "seed": 7, "prompt": "a fox", "strength": 0.25, "fast": False}
        assert graphs[0]["2"] == GRAPH["2"] and graphs[7]["5"] == GRAPH["5"]
        uploads = {**one.uploads, **two.uploads}
        for seed, name in ((7, "red"), (0, "blue")):
            content = uploads[graphs[seed]["1"]["inputs"]["image"].removeprefix("microdreamer_batch/")]
            assert content == (pictures / f"{name}.png").read_bytes()
        shown = {"filename": "out.glb", "subfolder": "../a b", "type": "output"}
        assert json.loads((tmp_path / "out" / "red" / "out.glb").read_text()) == shown
        assert sorted(path.name for path in (tmp_path / "out" / "red").iterdir()) == [
            "b.ply",
            "batch.json",
            "out.glb",
            "picture.jpg",
        ]
        assert comfy(table, one) == cli.DONE
        assert "0 made, 2 kept from before" in capsys.readouterr().out and len(one.graphs) == 1


def test_the_mark_that_windows_editors_write_is_no_part_of_texts(comfy, pictures, tmp_path):
    (pictures / "red.txt").write_text("a fox\n", encoding="utf-8-sig")
    (tmp_path / "marked.json").write_text(json.dumps(GRAPH), encoding="utf-8-sig")
    assert read_workflow(tmp_path / "marked.json") == GRAPH
    with FakeServer() as server:
        assert comfy("picture\npictures/red.png\n", server) == cli.DONE
        assert server.graphs[0]["2"]["inputs"]["prompt"] == "a fox"


def test_servers_get_a_png_of_what_they_do_not_read(comfy, pictures, monkeypatch):
    """A phone's HEIC; the decoder is a stand-in, which shows what Pillow would of the red picture."""
    plugin = ModuleType("pillow_heif")
    plugin.register_heif_opener = lambda: monkeypatch.setitem(
        Image.OPEN, "HEIF", (lambda stream, _: Image.open(io.BytesIO(stream.read()[16:])), None)
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    (pictures / "phone.heic").write_bytes(b"\0\0\0\x10ftypheic\0\0\0\0" + (pictures / "red.png").read_bytes())
    with FakeServer() as server:
        assert comfy("picture\npictures/phone.heic\n", server) == cli.DONE
        [(name, content)] = server.uploads.items()
        assert name.endswith(".png") and server.graphs[0]["1"]["inputs"]["image"] == f"microdreamer_batch/{name}"
        sent, red = (Image.open(stream) for stream in (io.BytesIO(content), pictures / "red.png"))
        assert sent.format == "PNG" and sent.tobytes() == red.tobytes()


def test_a_server_that_dies_is_dropped_and_its_picture_goes_to_another(comfy, pictures, tmp_path, monkeypatch, capsys):
    from microdreamer_core.batch import comfy as module

    monkeypatch.setattr(module, "_POLL", 0.01)
    table = "picture,2.seed\n" + "".join(f"pictures/red.png,{seed}\n" for seed in range(6))
    with FakeServer(dies=1) as one, FakeServer() as two:
        assert comfy(table, one, two) == cli.DONE
        answered = [graph["2"]["inputs"]["seed"] for graph in two.graphs]
        assert len(answered) == len(set(answered)) and 4 <= len(answered) <= 5
        assert len(list((tmp_path / "out").glob("*/out.glb"))) == 6
    capsys.readouterr()
    with FakeServer(dies=1) as one:
        assert comfy(table, one, out="other") == cli.UNUSABLE
        assert "No worker is left" in capsys.readouterr().err
    with FakeServer() as one:
        assert comfy(table, one, out="other") == cli.DONE
        assert "1 kept from before" in capsys.readouterr().out
    assert comfy(table, one.url, out="third") == cli.UNUSABLE
    assert "No ComfyUI server answers" in capsys.readouterr().err


def test_a_graph_that_fails_on_the_server_is_its_pictures_failure(comfy, pictures, capsys):
    with FakeServer() as server:
        server.refuse = lambda graph: "no memory" if graph["2"]["inputs"]["seed"] == 1 else None
        assert comfy("picture,2.seed\npictures/red.png,1\npictures/red.png,2\n", server) == cli.FAILED
    out = capsys.readouterr().out
    assert out.startswith("1 made") and "failed     red: X: no memory" in out


@pytest.mark.parametrize(
    ("table", "graph", "sentence"),
    [
        ("picture,colour\na.png,1\n", GRAPH, "'colour' needs one unlinked input of that name in the workflow, and it has none"),
        ("picture,model\na.png,1\n", GRAPH, "it has none"),
        ("picture,seed\na.png,1\n", GRAPH, "it has several: 2.seed, 5.seed"),
        ("picture\na.png\n", {"5": GRAPH["5"]}, "has 0 Load Image nodes"),
        ("picture\na.png\n", {"1": GRAPH["1"], "3": GRAPH["1"]}, "has 2 Load Image nodes"),
        ("picture\na.png\n", {"nodes": []}, "not in the API format"),
        ("picture\na.png\n", [], "not in the API format"),
    ],
)
def test_a_workflow_without_a_place_for_the_table_is_refused(table, graph, sentence, comfy, capsys):
    assert comfy(table, "http://127.0.0.1:9", graph=graph) == cli.UNUSABLE
    assert sentence in capsys.readouterr().err


def test_values_of_another_type_fail_alone(comfy, pictures, capsys):
    with FakeServer() as server:
        assert comfy("picture,Make it.seed\npictures/red.png,x\npictures/red.png,2\n", server) == cli.FAILED
    out = capsys.readouterr().out
    assert "The workflow's input 'Make it.seed' is 0 and cannot become 'x'." in out and out.startswith("1 made")


@pytest.mark.parametrize("url", ["127.0.0.1:8188", "http://", "ftp://a", "http://[", "http://a?b"])
def test_addresses_that_are_none_are_refused(url, comfy, pictures, capsys):
    assert comfy("picture\npictures/red.png\n", url) == cli.UNUSABLE
    assert "A server's address looks like" in capsys.readouterr().err
