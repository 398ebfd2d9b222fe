"""Machines of a cluster that join, that are cut off, that come back and that die, as network namespaces under Ray."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import digit_arrays
from tests.faults.machine import finished, repeated, tile_files

NETWORK = "10.231.7"  # in namespaces alone, whose only way out is to one another
PORT = 6399
SECONDS_AT_MOST = 180.0
# One thread for everyone, so that bits are equal; no token, which Ray would look for in the user's home folder.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
NTK = (sys.executable, "-P", "-m", "exact_ntk.cli.main")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """A network namespace with an address of its own, and a name of its own for each process that is begun there."""

    name: str
    number: int
    folder: Path

    @property
    def space(self) -> str:
        return f"ntk-{os.getpid()}-{self.name}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    def begin(self, *words: str, log: Path, **options) -> subprocess.Popen:
        inner = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *words)
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | ENVIRONMENT
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.space, *inner],
                **{"stdout": file, "stderr": file, "stdin": subprocess.DEVNULL, "env": environment, **options},
            )

    def ray(self, *words: str, cores: int) -> None:
        """Start Ray there, with so many cores for others to use."""
        here = ("--node-ip-address", self.address, "--num-cpus", str(cores), "--num-gpus", "0")
        small = ("--object-store-memory", "100000000", "--disable-usage-stats", "--temp-dir", str(self.folder))
        log = self.folder.with_suffix(".log")
        starting = self.begin(str(Path(sys.executable).with_name("ray")), "start", *words, *here, *small, log=log)
        assert starting.wait(90) == 0, log.read_text()

    def cable(self, state: str) -> None:
        ip("-n", self.space, "link", "set", "eth0", state)

    @property
    def processes(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True)
        return [int(process) for process in found.stdout.split()]

    def at_work(self) -> bool:
        """Whether a worker there is at a task: Ray names its processes by what they do."""
        for process in self.processes:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::_Actor.do"):
                    return True
        return False

    def kill(self) -> None:
        """Every process there, at once."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def connect(head: Host, *others: Host) -> None:
    """A network of their own, with a switch at the head."""
    for host in (head, *others):
        ip("-n", host.space, "link", "set", "lo", "up")
    ip("-n", head.space, "addr", "add", f"{head.address}/24", "dev", "switch")
    ip("-n", head.space, "link", "set", "switch", "up")
    for host in others:
        port = f"to-{host.name}"
        ip("-n", head.space, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.space)
        ip("-n", head.space, "link", "set", port, "master", "switch", "up")
        ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.cable("up")


@pytest.fixture
def hosts(tmp_path_factory) -> Iterator[list[Host]]:
    """A head, on which nothing computes, and two machines that do."""
    pytest.importorskip("ray")
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        pytest.skip("not root, or no ip and unshare to make network namespaces with")
    base = tmp_path_factory.mktemp("r")  # a short path: Ray's sockets lie in it
    found = [Host(name, k + 1, base / name) for k, name in enumerate(("head", "left", "right"))]
    try:
        try:  # what a kernel or a container may not have; all else must do
            for host in found:
                ip("netns", "add", host.space)
            ip("-n", found[0].space, "link", "add", "switch", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here, or no bridge between them: {error.stderr!r}")
        connect(*found)
        yield found
    finally:
        for host in found:
            host.kill()
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True)


def wait_for(what: Callable[[], bool], command: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_AT_MOST
    while not what():
        assert command.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.faults
def test_machines_join_are_cut_off_come_back_and_die(hosts: list[Host], tmp_path: Path):
    head, left, right = hosts
    for name in ("cluster", "alone"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "digits.npz", **digit_arrays(40, 20, side=8))
        columns = [{"model": "cntk", "readout": "gap", "depths": [100]}]
        gram = {"backend": "reference", "dtype": "float64", "tile": 10}
        tree = {"name": "tiny", "data": {"dataset": "npz", "path": "digits.npz"}, "gram": gram, "columns": columns}
        (tmp_path / name / "tiny.yaml").write_text(yaml.safe_dump(tree))
    head.ray("--head", "--port", str(PORT), "--include-dashboard", "false", cores=0)
    join = ("--address", f"{head.address}:{PORT}")
    folder, log = tmp_path / "cluster", tmp_path / "cluster.log"
    words = ("compute-gram", "tiny.yaml", "--cluster", join[1], "--worker-cores", "1")
    command = head.begin(*NTK, *words, log=log, cwd=folder)

    left.ray(*join, cores=1)  # joins a command that waits for machines
    wait_for(left.at_work, command, log)
    right.ray(*join, cores=1)
    wait_for(right.at_work, command, log)
    right.kill()
    wait_for(lambda: "on right: " in log.read_text(), command, log)
    right.ray(*join, cores=1)  # comes back
    wait_for(right.at_work, command, log)
    before = finished(folder)
    left.cable("down")  # and finishes alone what it was at
    wait_for(lambda: "on left: " in log.read_text(), command, log)
    assert command.wait(SECONDS_AT_MOST) == 0, log.read_text()
    said = log.read_text()
    assert said.count("given to another") == 2, said
    assert repeated(before, finished(folder)) == []
    alone = subprocess.run(
        [*NTK, "compute-gram", "tiny.yaml"], cwd=tmp_path / "alone", env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert alone.returncode == 0
    tiles = {p.relative_to(folder): p.read_bytes() for p in tile_files(folder)}
    assert tiles == {p.relative_to(tmp_path / "alone"): p.read_bytes() for p in tile_files(tmp_path / "alone")}
    print(
        f"{len(tiles)} tile files by two machines, one killed and back, one cut off after {len(before)}: all bits equal"
    )
