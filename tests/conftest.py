"""Small real data sets on disk, the hypothesis profile of the whole suite, and one thread for each of its workers."""

import os
import signal
from pathlib import Path

# A shell has what it starts in the background ignore SIGINT, which tests send themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch reads them: workers that share cores wait for each other's threads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import yaml
from hypothesis import settings
from sklearn.datasets import load_digits

from exact_ntk.records import Results
from tests.made_up import made_up_table

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("suite")


def digit_arrays(n_train: int, n_test: int, side: int = 8) -> dict[str, np.ndarray]:
    """Real digits as uint8 images, cropped to side x side."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) * 15).astype(np.uint8)[:, :side, :side]
    return {
        "x_train": images[:n_train],
        "y_train": labels[:n_train],
        "x_test": images[n_train : n_train + n_test],
        "y_test": labels[n_train : n_train + n_test],
    }


@pytest.fixture(autouse=True)
def rates_at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are measured on the first pairs: what a table takes here is not what a test is to find out."""
    monkeypatch.setattr("exact_ntk.gram.compute.SECONDS_TO_TELL", 0.0)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """60 training and 30 test digits, 5 x 5 pixels."""
    path = tmp_path / "digits.npz"
    np.savez(path, **digit_arrays(60, 30, side=5))
    return path


KERNEL_COLUMNS = [
    {"model": "cntk", "readout": "vanilla", "depths": [3, 4], "train": {"n": 20, "draws": 2}, "test": "both"},
    {"model": "cntk", "readout": "gap", "depths": [3, 4], "train": {"n": 40}},
    {"model": "nngp", "readout": "gap", "depths": [2, 3], "train": {"n": 40}, "ridge": 0.001},
]


@pytest.fixture
def config_path(tmp_path: Path, npz: Path) -> Path:
    """A config with vanilla, pooled and NNGP columns on the npz, in small tiles, on the reference kernels."""
    path = tmp_path / "tiny.yaml"
    tree = {
        "name": "tiny",
        "data": {"dataset": "npz", "path": str(npz)},
        "gram": {"backend": "reference", "tile": 16},
        "columns": KERNEL_COLUMNS,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def results() -> Results:
    """A made-up table of two kernel columns: marks, a paired difference, a missing cell."""
    return made_up_table()
