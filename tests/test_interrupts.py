"""A process of the command line: it can be stopped at any moment, and its files and streams may be in any state."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from microdreamer_core.cli import interrupts
from microdreamer_core.cli import main as cli
from microdreamer_core.errors import InputError
from microdreamer_core.io.state import load_state
from microdreamer_core.mesh import Mesh
from microdreamer_core.meshing import unwrap as unwrapping
from microdreamer_core.meshing.unwrap import unwrap
from microdreamer_core.util.atomic import remove_leftovers, replace_file
from microdreamer_core.util.lock import lock_output

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "microdreamer_core.cli"]
LONG = ["image-to-3d", str(ROOT / "samples" / "bird.png"), "--iterations", "500", "--quiet", "-o"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors of POSIX")


def start(*args, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, *args], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment, **options)


def stop(process, number):
    """Send the signal; returns what the process still wrote to stderr."""
    process.send_signal(number)
    try:
        return process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()  # or it would run on after the test, for all its iterations
        raise


def test_the_second_to_stop_waits_for_the_words_of_the_first(monkeypatch):
    """The thread that ends the process must not do so while the main thread says why."""
    said = []

    class Slow(io.StringIO):
        def write(self, text):
            time.sleep(0.2)
            said.append(text)

    monkeypatch.setattr(interrupts, "_noted", True)
    monkeypatch.setattr(interrupts, "_written", False)
    monkeypatch.setattr(sys, "stderr", Slow())
    first = threading.Thread(target=interrupts.report, args=("stopped", "continue"))
    first.start()
    time.sleep(0.05)
    interrupts.report("stopped")
    assert said == ["microdreamer: stopped\nmicrodreamer: continue\n"]
    first.join()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.2, 0.5, 1.0, 2.0])
def test_a_process_that_still_loads_is_stopped(delay, number, tmp_path):
    process = start(*LONG, str(tmp_path / "a.glb"))
    time.sleep(delay)
    err = stop(process, number)
    assert process.returncode == cli.STOPPED, err
    assert err.splitlines()[0] == "microdreamer: stopped" and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir() if path.name != "a.state.safetensors"] == []


@posix
def test_a_run_that_is_stopped_says_how_to_continue(tmp_path):
    state = tmp_path / "a.state.safetensors"
    process = start(*LONG, str(tmp_path / "a.glb"))
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    err = stop(process, signal.SIGTERM)
    assert process.returncode == cli.STOPPED
    assert "Traceback" not in err
    first, second = err.splitlines()[-2:]  # the oldest torch warns of itself before
    assert first == "microdreamer: stopped" and f"microdreamer resume {state}" in second
    assert [path.name for path in tmp_path.iterdir()] == [state.name]
    assert load_state(state).extra["k"] >= -1


@posix
def test_a_program_that_computes_outside_python_is_stopped_too(tmp_path):
    """Neither the signal's Python handler nor any check runs here."""
    code = (
        "import hashlib, os, sys\n"
        "from microdreamer_core.cli import interrupts\n"
        "from microdreamer_core.util.atomic import replace_file\n"
        "interrupts.handle_signals()\n"
        "with interrupts.cancellable(lambda: 'go on with x'), replace_file(sys.argv[1]) as temporary:\n"
        "    os.write(1, b'x')\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.read(1) == "x"
    err = stop(process, signal.SIGINT)
    assert process.returncode == cli.STOPPED
    assert err.splitlines() == ["microdreamer: stopped", "microdreamer: go on with x"]
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams_lose_nothing(closed, tmp_path):
    command = [*COMMAND, "models"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: os.close(closed))
    assert done.returncode == cli.DONE and "Traceback" not in done.stderr
    assert ("Models" in done.stdout) == (closed == 2)


@posix
def test_a_reader_of_stderr_that_went_away_does_not_end_the_work(tmp_path):
    with start("models", str(tmp_path / "none.ckpt")) as process:
        process.stderr.close()
        assert process.wait(60) == cli.UNUSABLE


def test_names_that_cannot_be_printed_are_escaped(tmp_path, capsys):
    assert cli.main(["turntable", str(tmp_path / "a\x1b[2J\nb.glb")]) == cli.UNUSABLE
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and r"a\x1b[2J\nb.glb" in err
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "turntable", "ä.glb"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == cli.UNUSABLE and r"\xe4.glb" in done.stderr


def test_names_are_shortened_or_refused_before_the_work(tmp_path, capsys):
    from microdreamer_core.cli.claim import check_name, with_suffix

    name = with_suffix(Path("\U0001f426" * 58 + ".png"), ".glb").name
    assert len(name.encode()) == 184 and name.startswith("\U0001f426") and name.endswith(".glb")
    assert with_suffix(Path("a.b.png"), ".glb").name == "a.b.glb"
    check_name(Path("x" * 200))
    with pytest.raises(InputError, match="too long by"):
        check_name(Path("x" * 250 + ".state.safetensors"))


def test_one_process_writes_a_name_and_the_others_are_told_which(tmp_path, capsys):
    output = tmp_path / "a.gif"
    with lock_output(output):
        with pytest.raises(InputError, match=f"written by the process {os.getpid()}; "), lock_output(tmp_path / "a.mp4"):
            pass
        with lock_output(tmp_path / "b.gif"):
            pass
    with lock_output(output):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    output = tmp_path / "a.state.safetensors"
    mine = [tmp_path / name for name in (".a.state.x.tmp.safetensors", ".a.b.12.tmp.glb", "a.glb", ".a.state.12.tmp.glb")]
    for path in [*mine, tmp_path / ".a.state.99999999.tmp.safetensors"]:
        path.touch()
    with replace_file(output) as temporary:
        remove_leftovers(output)
        temporary.write_bytes(b"1")
    assert sorted(tmp_path.iterdir()) == sorted([*mine, output])


def test_a_damaged_cache_of_compiled_kernels_is_compiled_again(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from microdreamer_core.util._numba_jit import kernel\n"
        "@kernel\n"
        "def double(x):\n"
        "    return 2 * x\n"
        "print(double(21), sum(double.stats.cache_hits.values()))\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def run():
        done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
        return done.stdout.split() or done.stderr

    assert [run(), run()] == [["42", "0"], ["42", "1"]]
    for ending in ("nbi", "nbc"):
        (path,) = (tmp_path / "cache").rglob(f"*.{ending}")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        for damaged in (content, content[: len(content) // 2], b""):
            path.write_bytes(damaged)
            assert [run(), run()] == [["42", "0"], ["42", "1"]], ending


def test_faces_without_an_area_never_reach_xatlas():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [1, 1, 2]])  # the second lies on a line
    for scale in (1e-6, 1.0, 1e6):
        flat = unwrap(Mesh(vertices * scale, faces), 64)
        assert len(flat.faces) == 1 and bool(flat.uvs.isfinite().all())
    with pytest.raises(InputError, match="None of the mesh's 2 faces has an area"):
        unwrap(Mesh(vertices, faces[1:]), 64)
    with pytest.raises(InputError, match="not finite"):
        unwrap(Mesh(vertices / 0, faces), 64)


def test_a_crash_or_a_hang_of_xatlas_is_one_sentence(monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    monkeypatch.setattr(unwrapping, "_PROGRAM", program)
    mesh = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    program.write_text("import os; os.abort()")
    with pytest.raises(InputError, match="xatlas cannot unwrap this mesh of 1 faces"):
        unwrap(mesh, 64)
    program.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(unwrapping, "_SECONDS", 0.5)
    with pytest.raises(InputError, match="did not unwrap 1 faces"):
        unwrap(mesh, 64)
