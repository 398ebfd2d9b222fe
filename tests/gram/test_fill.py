"""compute-gram: any tiling, order, interruption or number of processes gives the same values, and no tile twice."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from exact_ntk.draws import draw, load_images
from exact_ntk.errors import ConfigError, Incomplete, StoreError
from exact_ntk.gram import fill, plan
from exact_ntk.gram.plan import gram_jobs
from exact_ntk.kernels import Pass, cntk
from exact_ntk.provenance import read_provenance
from exact_ntk.settings import load_config

CPU = torch.device("cpu")


def computed(config_path: Path, folder: Path, *overrides: str, **options):
    config = load_config(str(config_path), list(overrides))
    images = load_images(config)
    fill.fill_stores(config, images, folder, CPU, **options)
    return config, images


def blocks(config, images, folder: Path, device: torch.device = CPU) -> dict[str, np.ndarray]:
    """Everything the columns read."""
    out = {}
    for job in gram_jobs(config, images, device):
        store = job.require(folder)
        for name, column in zip(config.column_names, config.columns, strict=True):
            if name in job.columns:
                for k in range(column.train.draws):
                    d = draw(images, column, name, k)
                    for depth in column.depths:
                        rows = np.concatenate([d.train, d.test])
                        out[f"{name}/{k}/{depth}"] = store.read(column.kernel, depth, rows, d.train)
    return out


def test_the_store_holds_the_kernel_of_the_images(config_path: Path, tmp_path: Path):
    config, images = computed(config_path, tmp_path / "run", "gram.dtype=float64")
    for key, k in blocks(config, images, tmp_path / "run").items():
        name, draw_number, depth = key.split("/")
        column = config.columns[config.column_names.index(name)]
        d = draw(images, column, name, int(draw_number))
        x = images.x[np.concatenate([d.train, d.test])]
        truth = cntk(x, images.x[d.train], depths=(int(depth),), readouts=(column.kernel,), dtype=torch.float64)
        np.testing.assert_allclose(k, truth[0, 0], rtol=1e-12)


@pytest.mark.parametrize("tile", [5, 16, 90])
def test_tile_size_does_not_matter(config_path: Path, tmp_path: Path, tile: int):
    one = blocks(*computed(config_path, tmp_path / "a", "gram.dtype=float64"), tmp_path / "a")
    other = blocks(*computed(config_path, tmp_path / "b", "gram.dtype=float64", f"gram.tile={tile}"), tmp_path / "b")
    for key in one:
        np.testing.assert_allclose(other[key], one[key], rtol=1e-13)


def test_one_store_a_family_and_the_nngp_rides_along(config_path: Path):
    config = load_config(str(config_path))
    jobs = gram_jobs(config, load_images(config), CPU)
    assert [(j.job.family, j.job.readouts, j.job.depths) for j in jobs] == [
        ("vanilla", ("vanilla",), (3, 4)),
        ("gap", ("gap", "gap-nngp"), (2, 3, 4)),
    ]


def test_a_second_run_computes_nothing(config_path: Path, tmp_path: Path, monkeypatch):
    computed(config_path, tmp_path / "run")
    monkeypatch.setattr(fill, "cntk_pass", None)
    computed(config_path, tmp_path / "run")


def test_only_missing_tiles_are_computed_again_with_the_same_bits(config_path: Path, tmp_path: Path):
    folder = tmp_path / "run"
    config, images = computed(config_path, folder)
    before = blocks(config, images, folder)
    chunks = sorted(folder.glob("gram-*/*/c/0/*/*"))
    kept = {p: p.stat().st_mtime_ns for p in chunks[::2]}
    for path in chunks[1::2]:
        path.unlink()
    with pytest.raises(Incomplete, match="tiles are missing"):
        blocks(config, images, folder)
    computed(config_path, folder)
    after = blocks(config, images, folder)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    # The pooled store's tiles hold two readouts each: one that lost either is computed anew.
    vanilla = {p: t for p, t in kept.items() if "vanilla" in p.parts}
    assert {p: p.stat().st_mtime_ns for p in vanilla} == vanilla


def test_shards_share_the_work_and_leave_the_rest(config_path: Path, tmp_path: Path):
    folder = tmp_path / "run"
    config, images = computed(config_path, folder, shard=(1, 2))
    left = [job.missing(folder) for job in gram_jobs(config, images, CPU)]
    assert all(0 < missing < needed for missing, needed in left)
    while any(missing for missing, _ in left):
        computed(config_path, folder, shard=(1, 2))
        computed(config_path, folder, shard=(2, 2))
        left = [job.missing(folder) for job in gram_jobs(config, images, CPU)]
    whole = blocks(*computed(config_path, tmp_path / "whole"), tmp_path / "whole")
    assert all(np.array_equal(whole[key], k) for key, k in blocks(config, images, folder).items())


def test_shards_that_start_at_different_times_leave_nothing_out(config_path: Path, tmp_path: Path):
    folder = tmp_path / "run"
    config, images = computed(config_path, folder, shard=(1, 3))
    for k in (2, 3):
        computed(config_path, folder, shard=(k, 3))
    assert all(job.missing(folder)[0] == 0 for job in gram_jobs(config, images, CPU))


def test_what_was_done_is_recorded_also_when_the_work_ends_early(config_path: Path, tmp_path: Path, monkeypatch):
    block, left = fill.TileComputer.block, [20]

    def failing(self, rows, columns):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the power went")
        return block(self, rows, columns)

    monkeypatch.setattr(fill.TileComputer, "pairs_per_second", lambda self: 100.0)
    monkeypatch.setattr(fill.TileComputer, "block", failing)
    with pytest.raises(RuntimeError, match="power"):
        computed(config_path, tmp_path / "run")
    found = read_provenance(tmp_path / "run").values()
    assert sum(facts["tiles_computed"] for facts in found) == 20
    assert all(facts["seconds"] >= 0 and facts["device_type"] == "cpu" for facts in found)


def test_a_kill_loses_little_of_the_record(config_path: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fill, "SECONDS_BETWEEN_RECORDS", -1.0)
    found: list[int] = []
    monkeypatch.setattr(fill, "add_provenance", lambda *_, **facts: found.append(facts["tiles_computed"]))
    config, images = computed(config_path, tmp_path / "run")
    assert found == [1] * sum(job.missing(tmp_path / "run")[1] for job in gram_jobs(config, images, CPU))


def test_the_store_of_another_device_is_found(config_path: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "run"
    auto = load_config(str(config_path), ["gram.backend=auto"])
    images = load_images(auto)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "resolve_backend", lambda *_: "reference-cuda")
        fill.fill_stores(auto, images, folder, CPU)
    jobs = plan.stored_jobs(auto, images, folder, CPU)
    assert {job.backend for job in jobs} == {"reference-cuda"}
    assert all(job.require(folder) for job in jobs)
    other = load_config(str(config_path), ["gram.backend=reference", "order.seed=1"])
    assert {job.backend for job in plan.stored_jobs(other, load_images(other), folder, CPU)} == {"reference-cpu"}


def test_a_changed_config_opens_a_new_store_and_names_the_old(config_path: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO, "ntk")
    folder = tmp_path / "run"
    computed(config_path, folder)
    before = {p: p.stat().st_mtime_ns for p in folder.glob("gram-*/*/c/0/*/*")}
    computed(config_path, folder, "order.seed=1")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "was computed with another images and is left as it is" in caplog.text


def test_a_cnns_learning_rate_recomputes_no_tile(config_path: Path, tmp_path: Path):
    import yaml

    tree = yaml.safe_load(config_path.read_text())
    tree["columns"].append({"model": "cnn", "readout": "gap", "depths": [3], "train": {"n": 20}})
    config_path.write_text(yaml.safe_dump(tree))
    jobs = []
    for lr in ("0.1", "0.2"):
        config = load_config(str(config_path), [f"columns.3.lr=[{lr}]"])
        jobs.append([job.fields for job in gram_jobs(config, load_images(config), CPU)])
    assert jobs[0] == jobs[1]


def test_a_damaged_tile_is_set_aside_and_computed_anew(config_path: Path, tmp_path: Path, caplog):
    folder = tmp_path / "run"
    config, images = computed(config_path, folder)
    before = blocks(config, images, folder)
    victim = next(iter(sorted(folder.glob("gram-*/vanilla/c/0/1/0"))))
    content = bytearray(victim.read_bytes())
    content[9] ^= 4
    victim.write_bytes(content)
    with pytest.raises(StoreError, match=r"tile \(1, 0\) of vanilla is damaged"):
        blocks(config, images, folder)
    computed(config_path, folder, repair=True)
    assert "tile (1, 0) is damaged" in caplog.text
    after = blocks(config, images, folder)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_an_unfit_backend_is_a_config_error(config_path: Path, monkeypatch):
    def unfit(*args):
        raise ValueError("needs a compiler")

    monkeypatch.setattr(plan, "resolve_backend", unfit)
    config = load_config(str(config_path))
    with pytest.raises(ConfigError, match=r"gram\.backend: needs a compiler"):
        gram_jobs(config, load_images(config), CPU)


def command(config_path: Path, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "exact_ntk.cli.main", "compute-gram", str(config_path), "--runs", str(folder), *more]


def tiles_on_disk(runs: Path) -> dict[Path, int]:
    """Finished chunks and when each was written."""
    chunks = [p for p in runs.glob("tiny/gram-*/*/c/0/*/*") if p.name.isdigit()]
    return {p: p.stat().st_mtime_ns for p in chunks}


def test_killed_anywhere_and_run_again_gives_the_same_bits(config_path: Path, tmp_path: Path):
    """kill -9 while tiles are being written, twice; two processes finish the rest together."""
    slow = ["--set", "gram.tile=4", "--set", "columns.*.depths=[3, 6]"]
    runs = tmp_path / "runs"
    for _ in range(2):
        process = subprocess.Popen(command(config_path, runs, *slow), stderr=subprocess.DEVNULL)
        enough, deadline = len(tiles_on_disk(runs)) + 3, time.monotonic() + 60
        while len(tiles_on_disk(runs)) < enough and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = tiles_on_disk(runs)
    assert len(done) >= 6
    both = [subprocess.Popen(command(config_path, runs, *slow), stderr=subprocess.PIPE) for _ in range(2)]
    assert [(p.wait(), p.stderr.read())[0] for p in both] == [0, 0]
    assert tiles_on_disk(runs).items() >= done.items()
    assert not list(runs.glob("tiny/gram-*/*/c/0/*/*.partial"))
    overrides = slow[1::2]
    fresh = blocks(*computed(config_path, tmp_path / "fresh", *overrides), tmp_path / "fresh")
    config = load_config(str(config_path), overrides)
    resumed = blocks(config, load_images(config), runs / "tiny")
    assert all(np.array_equal(fresh[key], resumed[key]) for key in fresh)


@pytest.mark.parametrize(
    ("images", "rate", "side"),
    [
        (2000, 100.0, 50),  # half a minute, and 2000 is whole tiles
        (2000, 0.1, 16),  # never so small that files are what there is most of
        (2000, 1e9, 500),  # never so large that a kill loses much
        (50_000, 1e9, 2500),  # nor more than 256 MiB
        (7, 1e9, 2),
    ],
)
def test_the_side_of_a_tile(images: int, rate: float, side: int):
    all_of = np.arange(images)
    made = Pass("gap", (3, 4, 6, 11, 21), ("gap",), False, False)
    job = plan.GramJob(made, "reference-cpu", "float32", {}, ((all_of, all_of),), ("CNTK-GAP",))
    assert fill.tile_side(job, rate) == side
