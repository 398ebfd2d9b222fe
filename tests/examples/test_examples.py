"""Every example runs, on small settings, and shows what it says."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs one with arguments; returns what it prints."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_tested():
    tested = re.findall(r'example\(\s*"(\w+)"', Path(__file__).read_text())
    assert {path.stem for path in FOLDER.glob("*.py")} == set(tested)


def test_the_kernel_by_hand_is_the_kernel(example):
    lines = example("kernel_by_hand", "--depth", "3").splitlines()
    assert len(lines) == 4
    assert all(float(line.split()[-1]) < 1e-12 for line in lines)


def test_labels_for_a_folder_of_images(example, tmp_path: Path):
    digits = load_digits()
    for i in range(80):
        place = tmp_path / (f"labelled/{digits.target[i]}" if i < 60 else "new")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype(np.uint8)).save(place / f"{i}.png")
    rows = [line.split(",") for line in example("own_images", f"{tmp_path}/labelled", f"{tmp_path}/new").splitlines()]
    assert [name for name, _, _ in rows] == [f"{i}.png" for i in range(60, 80)]
    assert sum(int(label) == digits.target[60 + i] for i, (_, label, _) in enumerate(rows)) >= 14
    assert all(0 < float(chance) <= 1 for _, _, chance in rows)


def test_stopping_early_pays_where_labels_are_wrong(example):
    last = example("early_stopping", "--n", "100").splitlines()[-2:]
    stopped, never = (float(re.search(r"([\d.]+) %", line)[1]) for line in last)
    assert stopped > never


def test_inducing_points_lower_their_loss_and_are_drawn(example, tmp_path: Path):
    said = example("inducing_points", "--steps", "5", "--out", str(tmp_path / "points.png"))
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < losses[0]
    with Image.open(tmp_path / "points.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_the_kernel_in_gpytorch(example, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("gpytorch", reason="needs the extra `examples`")
    from examples.gpytorch_kernel import CNTKKernel

    x = torch.from_numpy(load_digits().data[:6])
    kernel = CNTKKernel(x, (1, 8, 8), depth=3)
    torch.testing.assert_close(kernel(x, diag=True), kernel(x).to_dense().diagonal(), rtol=1e-12, atol=0)
    across = kernel(x[:3], x[3:])
    torch.testing.assert_close(kernel(x[:3], x[3:], diag=True), across.to_dense().diagonal(), rtol=1e-12, atol=0)
    monkeypatch.setattr("examples.gpytorch_kernel.cntk", None)  # of the training images it is not computed again
    assert kernel(x).to_dense().diagonal().mean() == pytest.approx(1.0)
    said = example("gpytorch_kernel", "--n", "60", "--test", "60", "--steps", "3")
    evidence = [float(found) for found in re.findall(r"/ n = ([-\d.]+)", said)]
    assert evidence[-1] < evidence[0]
    assert float(re.search(r"([\d.]+) % of 60", said)[1]) > 70


def test_coverage_grows_with_what_is_promised(example):
    rows = example("coverage", "--n", "60", "--test", "60").splitlines()[1:]
    assert len(rows) == 4
    for row in rows:
        found = [float(value) for value in re.findall(r"([\d.]+) %", row)]
        assert len(found) == 3
        assert 0 < found[0] <= found[1] <= found[2] <= 100
