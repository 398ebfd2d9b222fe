"""`ntk predict` and `ntk export`: outputs of solved draws for new images, arrays as they are, refusals of one line."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.cli.test_cli import ntk
from tests.conftest import digit_arrays

GAP = ("--column", "CNTK-GAP", "--depth", "3")
DRAWS = ("--column", "CNTK-V-20", "--depth", "3")
ARRAYS = digit_arrays(40, 20, side=4)


@pytest.fixture(scope="module")
def solved(tmp_path_factory) -> Path:
    """A folder in which a config of two kernel columns and one of networks is solved."""
    folder = tmp_path_factory.mktemp("solved")
    np.savez(folder / "digits.npz", **ARRAYS)
    np.savez(folder / "new.npz", x=ARRAYS["x_test"])
    columns = [
        {"model": "cntk", "readout": "vanilla", "depths": [3], "train": {"n": 20, "draws": 2}},
        {"model": "cntk", "readout": "gap", "depths": [3, 4]},
        {
            **{"model": "cntk", "readout": "gap", "depths": [3], "name": "extras"},
            **{"preprocess": "zca", "flips": True, "unit_diagonal": True, "ridge": 0.001},
        },
        {
            "model": "nngp",
            "readout": "myrtle",
            "depths": [5],
            "unit_diagonal": "projected",
            "flips": True,
            "ridge": 0.001,
        },
        {"model": "cnn", "readout": "gap", "depths": [3], "width": 4, "name": "nets"},
    ]
    gram = {"backend": "reference", "tile": 10}
    tree = {"name": "tiny", "data": {"dataset": "npz", "path": "digits.npz"}, "gram": gram, "columns": columns}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    for command in ("compute-gram", "solve"):
        done = ntk(folder, command, "tiny.yaml")
        assert done.returncode == 0, done.stderr
    return folder


def exported(folder: Path, what: str, *options: str) -> dict[str, np.ndarray]:
    done = ntk(folder, "export", "tiny.yaml", f"out-{what}", "--what", what, *options)
    assert done.returncode == 0, done.stderr
    return {path.stem: np.load(path) for path in (folder / f"out-{what}").iterdir()}


def predicted(folder: Path, *options: str) -> tuple[list[str], np.ndarray]:
    done = ntk(folder, "predict", "tiny.yaml", "new.npz", *options)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    return [row.pop("label") for row in rows], np.array([[float(v) for v in row.values()] for row in rows])[:, 1:]


@pytest.mark.parametrize("column, depth", [("CNTK-GAP", "3"), ("extras", "3"), ("NNGP-Myrtle", "5")])
def test_predictions_for_test_images_as_new_ones_are_those_of_the_solve(solved: Path, column: str, depth: str):
    """extras: whitened, with mirror images, on a unit diagonal."""
    labels, outputs = predicted(solved, "--column", column, "--depth", depth)
    known = exported(solved, "predictions", "--column", column, "--depth", depth)
    order = known["test_index"]
    assert known["from_test_set"].all()
    np.testing.assert_allclose(outputs[order], known["outputs"], atol=1e-5)
    assert [labels[i] for i in order] == known["classes"][known["predicted"]].tolist()


def test_draws_are_averaged_unless_one_is_named(solved: Path):
    first, second = (predicted(solved, *DRAWS, "--draw", str(k))[1] for k in range(2))
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(predicted(solved, *DRAWS)[1], (first + second) / 2, atol=1e-5)


def test_exported_matrices_labels_and_eigenvalues_belong_together(solved: Path):
    gram, labels, spectrum = (exported(solved, what, *GAP) for what in ("gram", "labels", "spectrum"))
    k = gram["gram_train"]
    assert (k.shape, gram["gram_test"].shape) == ((40, 40), (20, 40))
    np.testing.assert_allclose(spectrum["eigenvalues"], np.linalg.eigvalsh(k), rtol=1e-9, atol=1e-12)
    assert np.array_equal(labels["classes"][labels["label_train"]], ARRAYS["y_train"][gram["train_index"]].astype(str))
    targets = np.eye(len(labels["classes"]))[labels["label_train"]] - 1 / len(labels["classes"])
    outputs = gram["gram_test"] @ np.linalg.solve(k, targets)
    np.testing.assert_allclose(outputs, exported(solved, "predictions", *GAP)["outputs"], atol=1e-6)


BAD = {
    "an unknown column": (
        (*GAP[:1], "CNTK", *GAP[2:]),
        "--column CNTK: there are CNTK-V-20, CNTK-GAP, extras, NNGP-Myrtle, nets",
        2,
    ),
    "networks": (("--column", "nets", "--depth", "3"), "its networks keep no weights: kernel columns are CNTK-V-20", 2),
    "an unknown depth": ((*GAP[:3], "5"), "--depth 5: CNTK-GAP has depths 3, 4", 2),
    "an unknown draw": ((*DRAWS, "--draw", "2"), "--draw 2: CNTK-V-20 has draws 0 to 1", 2),
    "another order": (
        (*GAP, "--set", "order.seed=1"),
        "not solved for this config's images: run `ntk run tiny.yaml",
        3,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_predicted_is_one_line(solved: Path, case: str):
    options, words, status = BAD[case]
    done = ntk(solved, "predict", "tiny.yaml", "new.npz", *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert words in done.stderr


FILES = {
    "no file": (None, "IMAGES.npz: no file"),
    "other arrays": (dict(z=ARRAYS["x_test"]), r"no array x or images; it holds z (20, 4, 4, 1) uint8"),
    "another size": (
        dict(images=np.zeros((2, 5, 4), np.uint8)),
        "images of H x W x C (5, 4, 1), and the data set's are (4, 4, 1)",
    ),
    "another scale": (dict(x=ARRAYS["x_test"] * 1.0), "should lie in [0, 1]"),
}


@pytest.mark.parametrize("case", FILES)
def test_images_that_cannot_be_meant_are_one_line(solved: Path, tmp_path: Path, case: str):
    arrays, words = FILES[case]
    if arrays is not None:
        np.savez(tmp_path / "new.npz", **arrays)
    done = ntk(solved, "predict", "tiny.yaml", str(tmp_path / "new.npz"), *GAP)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_an_image_without_a_unit_diagonal_is_refused(solved: Path, tmp_path: Path):
    """A constant image, whose contrast is 0: not outputs that are no numbers."""
    x = ARRAYS["x_test"][:3].copy()
    x[1] = 99
    np.savez(tmp_path / "new.npz", x=x)
    done = ntk(solved, "predict", "tiny.yaml", str(tmp_path / "new.npz"), "--column", "extras", "--depth", "3")
    assert (done.returncode, done.stdout) == (1, "")
    words = "error: column extras: new image 1 is zero once preprocessed, so its kernel has no unit diagonal"
    assert done.stderr.splitlines()[-1].startswith(words)


def test_a_missing_gram_matrix_and_too_little_memory_are_said(solved: Path):
    done = ntk(solved, "export", "tiny.yaml", "none", "--what", "gram", *GAP, "--runs", "elsewhere")
    assert done.returncode == 3
    assert "no Gram matrix yet" in done.stderr
    done = ntk(solved, "export", "tiny.yaml", "none", "--what", "spectrum", *GAP, "--memory", "10KB")
    assert done.returncode == 1
    assert "the spectrum of 40 images takes" in done.stderr
    assert not (solved / "none").exists()
