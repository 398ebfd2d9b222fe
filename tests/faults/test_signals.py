"""SIGINT and SIGTERM end a command in seconds, with a line that says how to go on; SIGSTOP and SIGCONT cost nothing."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.machine import Fault, Machine, contents, finished, repeated, tile_files


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_a_signal_that_asks_is_obeyed_in_a_line(times: int, machine: Machine, whole: Whole, folder: Path):
    chance, slowest, ended = random.Random(times), 0.0, 0
    for _ in range(times):
        for number in (signal.SIGINT, signal.SIGTERM):
            run = machine.start(folder, "run", "tiny.yaml", "--set", f"order.seed={ended}")
            while run.stage == "start" and run.process.exitcode is None:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.2 * whole.seconds))
            before, asked = finished(folder), time.monotonic()
            run.signal(number)
            status = run.wait()
            slowest, ended = max(slowest, time.monotonic() - asked), ended + 1
            assert status in (128 + number, 0), run.said  # 0: it had ended by then
            assert "Traceback" not in run.said
            if status:
                assert run.said.splitlines()[-1] == "stopped; run the same command to go on"
            assert repeated(before, finished(folder)) == []
    assert slowest < 10
    assert machine.run(folder, "run", "tiny.yaml").process.exitcode == 0
    print(f"{ended} signals, the slowest to end took {slowest:.2f} s")


def test_stopped_in_the_middle_of_a_tile_it_loses_nothing(machine: Machine, whole: Whole, folder: Path):
    """Another process does all the rest, and waits for the tile."""
    stopped = machine.start(folder, "run", "tiny.yaml")
    stopped.until(folder, 3)
    stopped.signal(signal.SIGSTOP)
    before = finished(folder)
    other = machine.start(folder, "compute-gram", "tiny.yaml")
    other.process.join(3 * whole.seconds)
    stopped.signal(signal.SIGCONT)
    assert (stopped.wait(), other.wait()) == (0, 0), stopped.said + other.said
    assert repeated(before, finished(folder)) == []
    assert contents(folder) == contents(whole.folder)


@pytest.mark.faults
def test_stopped_in_the_middle_of_a_compilation(machine: Machine, folder: Path, tmp_path: Path):
    """The compiler too, as by a batch system that suspends a job; another process meanwhile compiles for itself."""
    words = ("compute-gram", "tiny.yaml", "--set", "gram.backend=fused")
    cold = Fault(environment=(("XDG_CACHE_HOME", str(tmp_path / "cache")),))
    stopped = machine.start(folder, *words, fault=cold)
    deadline = time.monotonic() + 60
    while not (children := descendants(stopped.process.pid)):
        assert time.monotonic() < deadline, stopped.said
        time.sleep(0.01)
    for pid in (stopped.process.pid, *children):
        os.kill(pid, signal.SIGSTOP)
    other = machine.run(folder, *words, fault=cold)
    assert other.process.exitcode == 0, other.said
    before = finished(folder)
    for pid in (*children, stopped.process.pid):
        os.kill(pid, signal.SIGCONT)
    assert stopped.wait() == 0, stopped.said
    assert repeated(before, finished(folder)) == []
    assert len(tile_files(folder)) == len(before)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(d for c in children for d in descendants(c))]
