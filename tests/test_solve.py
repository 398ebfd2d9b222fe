"""The solve stage: records that hold what a rerun must reproduce, and nothing solved twice or too early."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import gram, solve
from pipeline.config import load_config
from pipeline.draws import draw, load_images
from pipeline.errors import Incomplete, NtkError, StoreError
from pipeline.kernels import cntk
from pipeline.regression import targets
from pipeline.results import collect

CPU = torch.device("cpu")


def quiet(text: str) -> None:
    pass


def prepared(config_path: Path, folder: Path, *overrides: str):
    config = load_config(str(config_path), list(overrides))
    images = load_images(config)
    gram.compute(config, images, folder, CPU, say=quiet)
    return config, images


def test_a_cell_is_kernel_regression_on_its_draws(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    assert solve.solve_all(config, images, tmp_path, CPU, quiet) == 6
    found = collect(config, images, tmp_path, CPU)["results"]
    assert not found["missing"]
    record = next(r for r in found["records"] if r["column"] == "CNTK-V-20" and r["depth"] == 4)
    expected = []
    for k in range(2):
        d = draw(images, config.columns[0], "CNTK-V-20", k)
        x, options = images.x, dict(depths=(4,), readouts=("vanilla",), backend="reference")
        alpha = torch.linalg.solve(cntk(x[d.train], **options)[0, 0], targets(images.y[d.train], 10))
        outputs = cntk(x[d.test], x[d.train], **options)[0, 0] @ alpha
        expected.append(100 * float(np.mean(outputs.argmax(1).numpy() == images.y[d.test])))
    assert [r["accuracy"] for r in record["by_draw"]] == pytest.approx(expected)
    assert record["accuracy"] == pytest.approx(np.mean(expected))
    assert record["std"] == pytest.approx(np.std(expected, ddof=1))
    assert (record["n_train"], record["n_test"], record["draws"]) == (20, 70, 2)
    assert all(r["residual"] < 1e-9 and r["condition"] > 1 for r in record["by_draw"])


def test_predictions_are_saved_with_their_images(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    solve.solve_all(config, images, tmp_path, CPU, quiet)
    (path,) = (tmp_path / "solve").glob("CNTK-GAP-40-L3-*.npz")
    with np.load(path, allow_pickle=False) as saved:
        outputs, labels = saved["outputs_0"], saved["label_0"]
        assert outputs.shape == (30, 10)
        record = next(
            r
            for r in collect(config, images, tmp_path, CPU)["results"]["records"]
            if r["model"] == "cntk" and r["readout"] == "gap"
        )
        assert 100 * np.mean(outputs.argmax(1) == labels) == pytest.approx(record["accuracy"])
        assert saved["from_test_set_0"].all()


def test_nothing_is_solved_twice_and_a_new_ridge_only_what_it_changes(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    solve.solve_all(config, images, tmp_path, CPU, quiet)
    assert solve.solve_all(config, images, tmp_path, CPU, quiet) == 0
    ridge = load_config(str(config_path), ["columns.1.ridge=0.5"])
    assert solve.solve_all(ridge, images, tmp_path, CPU, quiet) == 2


def test_nothing_is_solved_before_every_tile_is_there(config_path: Path, tmp_path: Path):
    config = load_config(str(config_path))
    images = load_images(config)
    with pytest.raises(Incomplete, match="no Gram matrix yet: run `ntk compute-gram`"):
        solve.solve_all(config, images, tmp_path, CPU, quiet)
    prepared(config_path, tmp_path)
    next(tmp_path.glob("gram-*/vanilla/c/0/1/0")).unlink()
    with pytest.raises(Incomplete, match=r"1 of .* tiles are missing"):
        solve.solve_all(config, images, tmp_path, CPU, quiet)


def test_a_damaged_record_is_named(config_path: Path, tmp_path: Path):
    config, images = prepared(config_path, tmp_path)
    solve.solve_all(config, images, tmp_path, CPU, quiet)
    victim = next((tmp_path / "solve").glob("*.json"))
    victim.write_text("{")
    with pytest.raises(StoreError, match=f"{victim.name}.* delete it"):
        solve.solve_all(config, images, tmp_path, CPU, quiet)


def test_an_indefinite_matrix_is_marked_everywhere_or_stops_by_name(config_path: Path, tmp_path: Path, monkeypatch):
    """Numerically singular: one training image is another, times a hair."""
    config, images = prepared(config_path, tmp_path)
    real = gram.GramStore.read

    def indefinite(self, readout, depth, rows, columns):
        k = real(self, readout, depth, rows, columns)
        return k - 2 * k.max() * np.eye(*k.shape) if np.array_equal(rows, columns) else k

    monkeypatch.setattr(gram.GramStore, "read", indefinite)
    said: list[str] = []
    solve.solve_all(config, images, tmp_path, CPU, said.append)
    assert all(r["indefinite"] for r in collect(config, images, tmp_path, CPU)["results"]["records"])
    first = images.image_index[0]
    assert any(f"not positive definite at training image {first} (leading minor 1)" in line for line in said)
    stop = load_config(str(config_path), ["columns.*.on_indefinite=stop"])
    with pytest.raises(NtkError, match=r"column CNTK-V-20, depth 3: .* leading minor 1 is not positive"):
        solve.solve_all(stop, images, tmp_path, CPU, quiet)
