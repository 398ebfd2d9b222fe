"""Many processes on one store, and hosts that see none of each other's locks: no tile twice, the same bits."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.conftest import Whole
from tests.faults.machine import Fault, Machine, Run, contents, finished, tile_files, write_config


def assert_each_once(runs: Sequence[Run], folder: Path) -> None:
    """That the processes have ended well, and have together computed every tile of every array once."""
    assert [run.wait() for run in runs] == [0] * len(runs), "\n".join(run.said for run in runs)
    computed = [tile for run in runs for tile in run.tiles]
    assert len(computed) == len(set(computed)) == len(tile_files(folder))


@pytest.mark.parametrize("processes", [3, pytest.param(8, marks=pytest.mark.faults)])
def test_processes_share_one_store(processes: int, machine: Machine, whole: Whole, folder: Path):
    assert_each_once([machine.start(folder, "run", "tiny.yaml") for _ in range(processes)], folder)
    assert contents(folder) == contents(whole.folder)
    print(f"{processes} processes: {len(tile_files(folder))} tile files, each computed once, all bits equal")


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.faults)])
def test_hosts_share_a_folder_by_shards(times: int, machine: Machine, whole: Whole, tmp_path: Path):
    """Each with locks of its own, as on file systems whose locks are local."""
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_config(folder)
        shard = ("compute-gram", "tiny.yaml", "--shard")
        hosts = [machine.start(folder, *shard, f"{k}/2", fault=Fault(host=f"host{k}")) for k in (1, 2)]
        assert_each_once(hosts, folder)
        before = finished(folder)
        assert machine.run(folder, "run", "tiny.yaml").process.exitcode == 0
        assert before.items() <= finished(folder).items()
        assert contents(folder) == contents(whole.folder)
        assert not list(folder.rglob("*.partial"))
    print(f"{times} times two hosts by shards: {len(before)} tile files, each computed once, all bits equal")
