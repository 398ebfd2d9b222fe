"""What is printed reaches any terminal, pipe or disk, or is dropped."""

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from exact_ntk.cli import console
from exact_ntk.cli.console import steady_streams
from exact_ntk.report.tables import text_table
from tests.cli.test_cli import ntk
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


def test_the_version_is_one_line(tmp_path):
    done = ntk(tmp_path, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ntk 0.")
    assert [part.split()[0] for part in done.stdout.split(", ")] == ["ntk", "torch", "Python"]
