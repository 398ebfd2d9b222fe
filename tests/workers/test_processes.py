"""Two processes on the CPU fill stores and train networks between them, one of them killed: the bits of one process."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from exact_ntk.device import resolve_devices
from exact_ntk.errors import ConfigError
from exact_ntk.gram.fill import Filler
from exact_ntk.networks.stage import Only, train_cells
from exact_ntk.workers.crew import Crew
from exact_ntk.workers.processes import ProcessCrew
from tests.gram.filling import blocks, chunks, same
from tests.made_up import fill, table_of

CPU = torch.device("cpu")
NETWORKS = (
    "columns=[{model: cnn, readout: gap, depths: [3], train: {n: 30}, width: 4, epochs: 3, seeds: 3, lr: [0.25]}]"
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As each of the workers has."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killing(ProcessCrew):
    """One worker is killed at its first tiles, or its first run."""

    killed = 0

    def give(self, worker, task) -> None:
        super().give(worker, task)
        if worker == 1 and not self.killed and task.name.startswith(("tile", "CNN")):
            self.killed = self._members[worker][0].pid
            os.kill(self.killed, signal.SIGKILL)


def spread(config_path: Path, folder: Path, crew: Crew, *overrides: str):
    table = table_of(config_path, folder, *overrides)
    requests = table.requests()
    if requests:
        Filler(table.shelf, CPU, table.config.gram.tile, crew).fill(requests)
    assert train_cells(table.network_cells, CPU, Only(), crew) == sum(c.column.seeds for c in table.network_cells)
    return table


def records(folder: Path) -> dict[str, dict]:
    """What was trained, seconds aside."""
    found = {p.name: json.loads(p.read_text()) for p in (folder / "cnn").glob("*.json")}
    return {name: {k: v for k, v in tree.items() if k != "provenance"} for name, tree in found.items()}


def test_two_workers_one_of_them_killed(config_path: Path, tmp_path: Path, caplog):
    table, few = table_of(config_path, tmp_path / "alone"), ("columns.*.depths=[3]",)
    config = table_of(config_path, tmp_path / "alone", *few).config
    crew = Killing(config, tmp_path / "shared", [CPU, CPU])
    try:
        together = spread(config_path, tmp_path / "shared", crew, *few)
        alone = table_of(config_path, tmp_path / "alone", *few)
        fill(alone)
        assert same(blocks(together), blocks(alone))
        assert crew.killed
        assert "(on cpu, Killed): given to another" in caplog.text
        assert len(chunks(tmp_path / "shared")) == len(chunks(tmp_path / "alone"))
        assert not list((tmp_path / "shared").rglob("*.partial"))
        pids = [process.pid for process, _ in crew._members.values()]
    finally:
        crew.close()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert table.device == CPU


def test_training_runs_are_spread_and_are_the_same(config_path: Path, tmp_path: Path):
    alone = table_of(config_path, tmp_path / "alone", NETWORKS)
    train_cells(alone.network_cells, CPU)
    crew = Killing(alone.config, tmp_path / "shared", [CPU, CPU])
    try:
        spread(config_path, tmp_path / "shared", crew, NETWORKS)
        assert crew.killed
    finally:
        crew.close()
    assert records(tmp_path / "shared") == records(tmp_path / "alone")


def test_shards_of_runs_are_all_of_them(config_path: Path, tmp_path: Path):
    table = table_of(config_path, tmp_path, NETWORKS)
    trained = [train_cells(table.network_cells, CPU, Only(shard=(k, 2))) for k in (1, 2)]
    assert sum(trained) == 3
    assert train_cells(table.network_cells, CPU) == 0


def test_devices_are_named_once_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    names = {"cpu": ["cpu"], "cuda": ["cuda:0"], "cuda:0,2": ["cuda:0", "cuda:2"], "cpu,cpu": ["cpu", "cpu"]}
    names |= {"cuda:all": ["cuda:0", "cuda:1", "cuda:2"], "cuda:1,cuda:2": ["cuda:1", "cuda:2"]}
    for name, devices in names.items():
        assert list(map(str, resolve_devices(name))) == devices
    for name in ("cuda:0,0", "cuda,cuda:0", "cpu,cuda:0", "cuda:0,7", "cuda:0,"):
        with pytest.raises(ConfigError, match="--device "):
            resolve_devices(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="--device cuda:all: no such device here"):
        resolve_devices("cuda:all")
