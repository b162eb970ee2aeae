"""The choice of the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

from microdreamer_core.util import threads
from microdreamer_core.util.threads import ThreadTuner, count_cpus, limit_spinning, run_all, run_stages, torch_threads


@pytest.fixture
def pool():
    before = threads.get_threads()
    yield threads.set_threads
    threads.set_threads(before)


@pytest.mark.parametrize(
    ("files", "at_most"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "words\n"}, None),
        ({"cpu.max": ""}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        ({}, None),
    ],
)
def test_a_container_limits_the_cpus(tmp_path, files, at_most):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    everything = count_cpus(tmp_path / "nowhere")
    assert everything >= 1
    assert count_cpus(tmp_path) == (everything if at_most is None else at_most)


@pytest.mark.parametrize(
    ("value", "limit"), [("1", 1), ("1,2", 1), ("0", None), ("-3", None), ("many", None), ("9999", None), ("", None)]
)
def test_odd_thread_variables_give_sensible_numbers(monkeypatch, pool, value, limit):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    pool(None)
    assert threads.get_threads() == (count_cpus() if limit is None else limit)


@pytest.mark.parametrize(
    "own",
    [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "infinity"), ("GOMP_SPINCOUNT", "10k"), ("KMP_BLOCKTIME", "200ms")],
)
def test_the_users_variables_stay(own):
    given = dict([own])
    limit_spinning(given)
    assert given == dict([own])


@pytest.mark.parametrize("invalid", [{}, {"OMP_WAIT_POLICY": "nonsense"}, {"GOMP_SPINCOUNT": "words"}, {"KMP_BLOCKTIME": "-1"}])
def test_without_valid_variables_threads_spin_shortly(invalid):
    limit_spinning(invalid)
    assert invalid | {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"} == invalid


def test_the_command_sets_them_before_torch_is_there():
    code = (
        "import os, sys; import microdreamer_core.cli.main as m\n"
        "try: m.main(['--version'])\n"
        "except SystemExit: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in threads._WAITING}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert made.stdout.splitlines()[-1] == "10000 False"


def test_tasks_share_threads_and_the_first_error_is_raised(pool):
    pool(3)
    assert run_all([lambda i=i: i * i for i in range(20)]) == [i * i for i in range(20)]
    done = []

    def fail():
        raise ValueError("one")

    with pytest.raises(ValueError, match="one"):
        run_all([fail, *[lambda: done.append(1)] * 9])
    assert run_all([lambda: run_all([lambda: 1, lambda: 2])] * 5) == [[1, 2]] * 5


class _Machine:
    """A clock that runs as a machine would on which calls take the given seconds."""

    def __init__(self, seconds):
        self.seconds, self.now, self.used = seconds, 0.0, []

    def __call__(self):
        return self.now

    def work(self):
        count = torch.get_num_threads()
        self.used.append(count)
        self.now += self.seconds[count]


def test_the_fastest_number_of_threads_is_found_and_followed():
    machine = _Machine({1: 8.0, 2: 5.0, 4: 9.0})
    tune = ThreadTuner(machine)
    with torch_threads(4):
        for _ in range(20):
            tune("network", machine.work)
        assert set(machine.used[:7]) == {1, 2, 4}
        assert set(machine.used[7:]) == {2}
        machine.seconds = {1: 8.0, 2: 40.0, 4: 90.0}  # another program starts
        for _ in range(60):
            tune("network", machine.work)
        assert machine.used[-1] == 1
        assert machine.used.count(4) <= 7
        assert torch.get_num_threads() == 4
    tune("network", machine.work)  # one thread: nothing to choose
    assert machine.used[-1] == torch.get_num_threads()


def test_the_number_of_threads_is_put_back_after_an_error():
    def fail():
        raise ValueError("stop")

    with torch_threads(2):
        with pytest.raises(ValueError, match="stop"):
            ThreadTuner()("network", fail)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_stage_begins_when_the_one_before_is_done(pool, count):
    pool(count)
    done: list[int] = []

    def first(number):
        time.sleep(0.002 * (5 - number))
        done.append(number)
        return number

    def second(number):
        return number, len(done)

    numbers = range(5)
    found = run_stages([partial(first, n) for n in numbers], [], [partial(second, n) for n in numbers])
    assert found == [[*numbers], [], [(n, 5) for n in numbers]]
    assert run_stages() == []


@pytest.mark.parametrize("count", [1, 3])
def test_after_a_failure_no_later_stage_begins(pool, count):
    pool(count)
    begun = []

    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_stages([fail, lambda: time.sleep(0.01), lambda: time.sleep(0.01)], [partial(begun.append, n) for n in range(9)])
    assert not begun
    assert run_all([lambda: 1, lambda: 2]) == [1, 2], "the pool works on"
