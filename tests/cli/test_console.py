"""What is printed reaches any terminal, pipe or disk, or is dropped; a signal ends a command in one line."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exact_ntk.cli import console, stages
from exact_ntk.cli.console import steady_streams
from exact_ntk.cli.stop import Stopped, held_back, stoppable
from exact_ntk.report.tables import text_table
from tests.cli.test_cli import Done, ntk
from tests.made_up import made_up_table

PRINTING = """
import sys
from exact_ntk.cli.console import steady_streams
from exact_ntk.progress import progress
with steady_streams():
    with progress("§", 3, "±") as bar:
        for _ in range(3):
            print("± 1", "† ‡ § ¶ – \\udc80", flush=True)
            print("to stderr", file=sys.stderr)
            bar.update()
"""


def printed(redirected: str = "", **environment: str) -> subprocess.CompletedProcess:
    """A script that prints to both streams, with a progress bar, redirected as a shell would."""
    command = f"{sys.executable} -c {shlex.quote(PRINTING)} {redirected}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env={**os.environ, **environment}, capture_output=True
    )


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", b"+- 1 * ** # ## - ?"),
        ("latin-1", b"\xb1 1 * ** \xa7 \xb6 - ?"),
        ("utf-8", "± 1 † ‡ § ¶ – ?".encode()),
    ],
)
def test_signs_that_the_encoding_lacks_are_put_in_plain_ones(encoding: str, line: bytes):
    done = printed(PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout.splitlines()) == (0, [line] * 3)
    assert b"to stderr" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&- <&-", "| head -n 1", "2>&1 | true", "2>/dev/full"])
def test_a_stream_that_is_closed_or_full_ends_nothing(redirected: str):
    done = printed(redirected)
    assert (done.returncode, done.stderr.replace(b"to stderr\n", b"").count(b"rror")) == (0, 0)


def test_a_full_disk_is_said_where_it_can_be():
    done = printed("> /dev/full")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == b"stdout cannot be written: No space left on device"


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path):
    script = "import os, sys\nfrom exact_ntk.cli.console import steady_streams\n"
    script += "with steady_streams():\n file = open(sys.argv[1], 'w')\n os.write(1, b'stray')\n print('lost')"
    subprocess.run(["bash", "-c", 'exec "$@" <&- >&-', "bash", sys.executable, "-c", script, tmp_path / "file"])
    assert (tmp_path / "file").read_text() == ""


def test_every_sign_of_a_table_has_a_plain_one():
    plain = text_table(made_up_table()).encode("ascii", "ignore").decode()
    lost = set(text_table(made_up_table())) - set(plain)
    assert lost <= set(console.PLAIN)
    assert len(set(console.PLAIN.values())) == len(console.PLAIN)


def test_the_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with contextlib.suppress(ZeroDivisionError), steady_streams():
        assert sys.stdout is not before[0]
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before


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


WAITING = "from exact_ntk.cli import main; main.app = lambda: __import__('torch'); main.main()"


@pytest.mark.parametrize(
    ("said", "count"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_that_wait_sleep_soon_unless_the_user_has_said_how(said: dict[str, str], count: str):
    """As the OpenMP that torch brings says itself."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **said}
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr


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


def test_a_signal_waits_for_the_end_of_an_import():
    reached = []
    with pytest.raises(Stopped) as caught, stoppable():  # noqa: PT012
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the end")
        reached.append("what follows")
    assert (reached, caught.value.exit_status) == (["the end"], 143)


def test_a_second_signal_waits_for_nothing():
    script = (
        "import os, signal, time\nfrom exact_ntk.cli.stop import stoppable\n"
        "with stoppable():\n"
        " try: os.kill(os.getpid(), signal.SIGTERM)\n"
        " finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE).returncode == -signal.SIGINT


def test_the_version_is_one_line(tmp_path):
    done = ntk(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ntk 0.")
    assert [part.split()[0] for part in done.stdout.split(", ")] == ["ntk", "torch", "Python"]
