"""A signal ends a command in one line, wherever it comes."""

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exact_ntk.cli import stages
from exact_ntk.cli.stop import Stopped, stoppable
from tests.cli.test_cli import Done, ntk


def stopped_by(number: int, monkeypatch: pytest.MonkeyPatch, folder: Path, *command: str, swallow=()) -> Done:
    def begin(*_: object, **__: object) -> None:
        with contextlib.suppress(*swallow):
            os.kill(os.getpid(), number)
        if swallow:
            raise AttributeError("module 'numpy' has no attribute 'minimum'")

    monkeypatch.setattr(stages, "begin", begin)
    monkeypatch.setattr(stages, "measure_speed", begin)
    return ntk(folder, *command)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("command", "way"), [("run", "go on"), ("train-cnn", "go on"), ("bench", "start anew")])
def test_a_signal_ends_a_command_in_one_line(number: int, status: int, command: str, way: str, tmp_path, monkeypatch):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    done = stopped_by(number, monkeypatch, tmp_path, command)
    assert done == Done(status, "", f"stopped; run the same command to {way}\n")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_was_to_be_ignored_still_is(tmp_path, monkeypatch):
    """As of a job that a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = stopped_by(signal.SIGINT, monkeypatch, tmp_path, "bench")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == Done(0, "", "")


def test_a_signal_that_an_import_swallows_is_one_all_the_same(tmp_path, monkeypatch):
    """Of which the module that was being imported comes out half done, and fails later."""
    done = stopped_by(signal.SIGTERM, monkeypatch, tmp_path, "run", swallow=(BaseException,))
    assert done == Done(143, "", "stopped; run the same command to go on\n")


AWAITING = """
import os, signal
from exact_ntk.cli import main, stages

async def written():
    pass

def begin(*_, **__):
    writing = written()
    os.kill(os.getpid(), signal.SIGTERM)

stages.begin = begin
main.main()
"""


def test_what_a_library_was_in_the_middle_of_is_no_news():
    """As of the coroutines in which Zarr writes: Python warns of one that was never awaited."""
    done = subprocess.run([sys.executable, "-c", AWAITING, "run"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "stopped; run the same command to go on\n")


def test_a_signal_within_a_destructor_is_heard_once_that_is_left(capfd):
    """Python prints an exception there, and goes on."""

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped), stoppable():  # noqa: PT012
        dying = Dying()
        del dying
        time.sleep(5)
        pytest.fail("nothing was heard")
    assert "Traceback" not in capfd.readouterr().err


def test_a_signal_waits_for_the_end_of_an_import(tmp_path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nreached = ['the end']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_to_import", raising=False)
    with pytest.raises(Stopped) as caught, stoppable():  # noqa: PT012
        importlib.import_module("slow_to_import")
        time.sleep(5)
        sys.modules["slow_to_import"].reached.append("what follows")
    assert (sys.modules.pop("slow_to_import").reached, caught.value.exit_status) == (["the end"], 143)


HALF_MADE = """
import os, signal
from exact_ntk.cli import main

class Made:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.name = "made"
    def __del__(self):
        print(self.name)

main.app = lambda: FORM
main.main()
"""


@pytest.mark.parametrize("form", ["Made()", "globals().update(kept=Made.__new__(Made)) or Made()"])
def test_what_a_signal_leaves_half_made_is_no_news(form: str):
    """Its destructor fails: as the command ends, or as Python does."""
    script = HALF_MADE.replace("FORM", form)
    done = subprocess.run([sys.executable, "-c", script, "run"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "stopped; run the same command to go on\n")


def test_a_destructor_that_fails_with_no_signal_is_told_of():
    script = "from exact_ntk.cli import main\nclass Made:\n def __del__(self): self.name\nmain.app = Made\nmain.main()"
    done = subprocess.run([sys.executable, "-c", script, "run"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "AttributeError: 'Made' object has no attribute 'name'"


def test_a_signal_at_each_line_of_zarrs_start_ends_the_command():
    """Where Zarr makes the thread that reads and writes, it holds a lock that its end waits for."""
    script = Path(__file__).with_name("zarrs_start.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    *wrong, said = done.stdout.splitlines()
    assert wrong == []
    assert int(re.fullmatch(r"tried (\d+) lines", said)[1]) > 20


def test_a_second_signal_waits_for_nothing():
    script = (
        "import os, signal, time\nfrom exact_ntk.cli.stop import stoppable\n"
        "with stoppable():\n"
        " try: os.kill(os.getpid(), signal.SIGTERM)\n"
        " finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE).returncode == -signal.SIGINT
