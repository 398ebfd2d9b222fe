"""A real Ray on this machine alone: two workers, one of them killed; what a cluster lacks, said before it starts."""

import logging
import os
import signal
from pathlib import Path

import pytest
import torch

from exact_ntk.errors import ConfigError, NtkError
from exact_ntk.workers.cluster import RayCrew
from tests.cli.test_cli import ntk
from tests.faults.machine import contents, write_config
from tests.made_up import table_of

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """No dashboard, no usage statistics, no address but the machine's own, little memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            object_store_memory=100_000_000,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


@pytest.mark.slow  # .ci/run runs it
def test_two_workers_one_of_them_killed(cluster, tmp_path: Path, monkeypatch, caplog):
    """By compute-gram, then train-cnn as well; the rest of the table is computed here."""
    for name in ("cluster", "alone"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name)
    give, killed = RayCrew.give, []

    def killing(self, worker, task) -> None:
        give(self, worker, task)
        if task.name.startswith("tile") and not killed:
            killed.append(self.places[worker][1])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(RayCrew, "give", killing)
    for name in ("drawings", "kept_drawings"):
        monkeypatch.setattr(f"exact_ntk.report.write.{name}", lambda found: [])
    words = ("tiny.yaml", "--cluster", "auto", "--worker-cores", "1")
    for command in ("compute-gram", "train-cnn"):
        done = ntk(tmp_path / "cluster", command, *words)
        assert done.returncode == 0, done.stderr
    assert killed
    assert f"process {killed[0]} on" in caplog.text
    assert "given to another" in caplog.text
    assert "on each of 2 workers" in caplog.text
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the workers has
    try:
        for name in ("cluster", "alone"):
            assert ntk(tmp_path / name, "run", "tiny.yaml").returncode == 0
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "alone")
    assert not list((tmp_path / "cluster").rglob("*.partial"))
    assert not list((tmp_path / "cluster" / "runs").rglob(".cluster-*"))
    assert "nothing" not in ntk(tmp_path / "cluster", "status", "tiny.yaml").stdout


def test_a_folder_that_a_machine_does_not_see_is_said_before_anything_is_computed(
    cluster, config_path: Path, tmp_path: Path
):
    table = table_of(config_path, tmp_path / "run")
    crew = RayCrew(table.config, tmp_path / "run", "auto", 1, "cpu")
    crew._token.write_text("of another file system")
    with pytest.raises(NtkError, match=r"does not see .*/run: a cluster needs --runs on a file system that all"):
        crew.recruit(), crew.wait(30)
    crew.close()


def test_a_cluster_that_does_not_answer_is_a_line(monkeypatch, config_path: Path, tmp_path: Path):
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379\nand more")

    config = table_of(config_path, tmp_path / "run").config
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"answers \(Failed to connect .*:6379\): start .* asks for a token") as said:
        RayCrew(config, tmp_path, "10.0.0.1:6379", 1, "cpu")
    assert "\n" not in str(said.value)


def test_a_device_that_the_cluster_lacks_is_refused(cluster, config_path: Path, tmp_path: Path):
    config = table_of(config_path, tmp_path / "run").config
    with pytest.raises(ConfigError, match="the cluster has no GPU"):
        RayCrew(config, tmp_path, "auto", 1, "cuda")
    with pytest.raises(ConfigError, match="--device cuda:1: on a cluster auto, cpu or cuda"):
        RayCrew(config, tmp_path, "auto", 1, "cuda:1")
