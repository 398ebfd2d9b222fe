"""Disks that are full, have no inodes, are over a quota, read-only or without locks; and a clock that is set back."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.machine import CREATES, LOCKS, WRITES, Fault, Machine, contents, finished, repeated, write_config

# What fails, how, and up to how many bytes or files are through by then.
REFUSED = {
    "full disk": (WRITES, errno.ENOSPC, 400_000),
    "quota": (WRITES, errno.EDQUOT, 400_000),
    "no inodes": (CREATES, errno.ENOSPC, 200),
    "read-only": (CREATES, errno.EROFS, 1),
}


@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.faults)])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_disk_that_refuses_is_a_line_and_costs_nothing_finished(
    kind: str, times: int, machine: Machine, whole: Whole, folder: Path
):
    what, number, most = REFUSED[kind]
    chance, refused, before = random.Random(times), 0, {}
    for _ in range(times):
        fault = Fault(what, number, chance.randrange(most))
        run = machine.run(folder, "run", "tiny.yaml", fault=fault)
        if run.process.exitcode:
            run.assert_one_line(number)
            refused += 1
        assert repeated(before, before := finished(folder)) == []
        assert not list(folder.rglob("*.partial"))
        if times > 1 and not run.process.exitcode:
            shutil.rmtree(folder / "runs")
            shutil.rmtree(folder / "results")
            before = {}
    assert machine.run(folder, "run", "tiny.yaml").process.exitcode == 0
    assert repeated(before, finished(folder)) == []
    assert contents(folder) == contents(whole.folder)
    assert refused
    print(f"{kind}: {refused} of {times} commands refused in one line, then all bits equal")


def test_without_locks_one_process_gets_the_same_bits(machine: Machine, whole: Whole, folder: Path):
    run = machine.run(folder, "run", "tiny.yaml", fault=Fault(LOCKS, errno.ENOLCK))
    assert run.process.exitcode == 0, run.said
    assert run.said.count("has no locks (No locks available)") == 1
    assert contents(folder) == contents(whole.folder)


@pytest.mark.parametrize("after", [0.0, pytest.param(0.3, marks=pytest.mark.faults)])
def test_a_clock_set_back_changes_nothing(after: float, machine: Machine, whole: Whole, folder: Path):
    """By a year, from the start or in the middle, in a folder of files that are then of the future."""
    machine.start(folder, "run", "tiny.yaml").kill_after(whole.seconds / 2)
    before = finished(folder)
    run = machine.run(folder, "run", "tiny.yaml", fault=Fault(seconds_back=365 * 86400, clock_after=after))
    assert run.process.exitcode == 0, run.said
    assert repeated(before, finished(folder)) == []
    assert contents(folder) == contents(whole.folder)


MOUNTED = """
set -e
mount -t tmpfs -o {small} none "$1"
mkdir "$1/runs"
cd "$2"
{python} -P -m exact_ntk.cli.main run tiny.yaml --runs "$1/runs" 2>"$2/said" && echo whole
mount -o remount,{large} "$1"
{python} -P -m exact_ntk.cli.main run tiny.yaml --runs "$1/runs" 2>>"$2/said"
cp -r "$1/runs" "$2/runs"
"""
SMALL = {
    "full disk": ("size=300k", "size=64m", "free"),
    "no inodes": ("nr_inodes=40", "nr_inodes=4000", "inodes free"),
    "read-only": ("size=64m", "size=64m,rw", "Read-only file system"),
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", SMALL)
def test_a_disk_as_it_is_mounted(kind: str, folder: Path, tmp_path_factory):
    """In a mount namespace of its own."""
    if os.getuid() or shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("mounting needs root and a namespace")
    small, large, words = SMALL[kind]
    script = MOUNTED.format(small=small, large=large, python=sys.executable)
    if kind == "read-only":
        script = script.replace('cd "$2"', 'mount -o remount,ro "$1"\ncd "$2"')
    script = script.replace("&& echo whole", "&& exit 9 || true")
    (folder / "disk").mkdir()
    done = subprocess.run(["unshare", "-m", "bash", "-c", script, "bash", folder / "disk", folder], check=False)
    said = (folder / "said").read_text()
    assert done.returncode == 0, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    print(f"{kind}: {errors[0]}")
    assert words in errors[0] or os.strerror(errno.ENOSPC) in errors[0]
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    write_config(undisturbed)
    command = [sys.executable, "-P", "-m", "exact_ntk.cli.main", "run", "tiny.yaml"]
    subprocess.run(command, cwd=undisturbed, check=True, capture_output=True)
    assert contents(folder) == contents(undisturbed)
