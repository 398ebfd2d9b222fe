"""Training runs: the loss and the stop rule, divergence, and resume to the bit."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from exact_ntk.errors import StoreError
from exact_ntk.networks import precision, training
from exact_ntk.networks.cnn import CNN
from exact_ntk.networks.setting import Setting
from exact_ntk.networks.training import TrainingData, TrainingRun, train

SETTING = Setting(
    readout="gap",
    depth=3,
    width=8,
    kappa=0.5,
    train_first=True,
    train_last=True,
    seed=0,
    lr=0.5,
    momentum=0.9,
    batch_size=8,
    epochs=12,
    settle=3,
    zero_output=False,
    precision="float32",
)
FIELDS = {"name": "test", "lr": 0.5}


def made(n: int = 24, seed: int = 0) -> TrainingData:
    """Two classes told apart by brightness."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 5, 5, generator=generator) + (2.0 * y - 1)[:, None, None, None]
    targets = torch.nn.functional.one_hot(y, 2).float() - 0.5
    return TrainingData(x, targets, y, x[:10] + 0.1, y[:10])


def quiet(run: TrainingRun) -> None:
    pass


def weights(run: TrainingRun) -> torch.Tensor:
    return torch.cat([w.detach().flatten() for w in run.net.parameters()])


def test_one_full_batch_step_is_gradient_descent_on_half_the_squared_error(tmp_path: Path):
    images, setting = made(), replace(SETTING, batch_size=1000, epochs=1, momentum=0.0)
    run = train(setting, images, FIELDS, tmp_path / "c.pt", quiet)
    net = CNN((1, 5, 5), 2, depth=3, width=8, readout="gap", train_first=True, train_last=True, kappa=0.5, seed=0)
    loss = 0.5 * ((net(images.x) - images.targets) ** 2).sum() / len(images.x)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    expected = torch.cat([(w - 0.5 * g).flatten() for w, g in zip(net.parameters(), gradients, strict=True)])
    torch.testing.assert_close(weights(run), expected, rtol=1e-4, atol=1e-6)
    assert run.history["loss"][0] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_fixed_ends_stay_put(tmp_path: Path):
    run = train(replace(SETTING, train_first=False, train_last=False), made(), FIELDS, tmp_path / "c.pt", quiet)
    fresh = training.build_network(SETTING, made())
    assert torch.equal(run.net.convolutions[0], fresh.convolutions[0])
    assert torch.equal(run.net.last, fresh.last)
    assert not torch.equal(run.net.convolutions[1], fresh.convolutions[1])


def test_training_stops_after_it_has_settled_and_accuracy_is_the_mean_since(tmp_path: Path):
    run = train(replace(SETTING, epochs=100), made(), FIELDS, tmp_path / "c.pt", quiet)
    result = run.result()
    assert result["fitted_at"] is not None
    assert result["epochs"] == result["fitted_at"] + 3 < 100
    assert result["accuracy"] == pytest.approx(sum(result["history"]["test_accuracy"][-3:]) / 3)
    assert result["train_accuracy"] == 100.0


def test_the_epoch_limit_holds(tmp_path: Path):
    run = train(replace(SETTING, lr=1e-6, epochs=4), made(), FIELDS, tmp_path / "c.pt", quiet)
    assert (run.epoch, run.fitted_at, run.diverged) == (4, None, None)


def test_every_seed_and_epoch_has_an_order_of_its_own():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = training._batches(24, 8, seed, epoch, torch.device("cpu"))
        assert [len(batch) for batch in batches] == [8, 8, 8]
        return tuple(torch.cat(batches).tolist())

    orders = {(seed, epoch): order(seed, epoch) for seed in range(5) for epoch in range(5)}
    assert all(sorted(found) == list(range(24)) for found in orders.values())
    assert len(set(orders.values())) == 25
    assert order(3, 4) == orders[3, 4]


@pytest.mark.parametrize("lr", [1e3, 1e30])
def test_a_diverging_rate_ends_at_once_without_an_accuracy(tmp_path: Path, lr: float):
    run = train(replace(SETTING, lr=lr, epochs=50), made(), FIELDS, tmp_path / "c.pt", quiet)
    assert run.diverged.startswith("the loss passed")
    assert run.epoch < 5
    assert run.result()["accuracy"] is None


def test_divergence_ends_an_epoch_in_its_middle(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "STEPS_BETWEEN_CHECKS", 1)
    run = TrainingRun(replace(SETTING, lr=1e6, batch_size=1), made(), FIELDS)
    steps = []
    run.optimiser.register_step_post_hook(lambda *_: steps.append(1))
    with training.arithmetic("float32", torch.device("cpu")) as autocast:
        run.begin(autocast)
        run.train_epoch(autocast)
    assert run.finished
    assert len(steps) < 24


def test_a_net_whose_relus_have_died_is_no_result(tmp_path: Path):
    run = TrainingRun(SETTING, made(), FIELDS)
    with torch.no_grad():
        run.net.convolutions[-1].zero_()
    with training.arithmetic("float32", torch.device("cpu")) as autocast:
        run.begin(autocast)
        run.train_epoch(autocast)
    assert "died" in run.diverged
    assert run.result()["accuracy"] is None


def test_the_last_epochs_training_accuracy_is_measured(tmp_path: Path):
    run = train(replace(SETTING, lr=0.02, momentum=0.0, epochs=3), made(), FIELDS, tmp_path / "c.pt", quiet)
    with torch.no_grad():
        right = (run.net(run.data.x).argmax(1) == run.data.y).double().mean()
    assert run.result()["train_accuracy"] == pytest.approx(100 * float(right))


def test_zero_output_starts_at_zero(tmp_path: Path):
    """With rate ~0 the function stays 0: the loss is half the squared norm of the targets."""
    images = made()
    run = train(replace(SETTING, lr=1e-12, epochs=1, zero_output=True), images, FIELDS, tmp_path / "c.pt", quiet)
    assert run.history["loss"][0] == pytest.approx(0.5 * float(images.targets.square().sum(1).mean()), rel=1e-5)


def test_resume_gives_the_same_bits(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    setting, images = replace(SETTING, epochs=8, settle=50), made()
    whole = train(setting, images, FIELDS, tmp_path / "whole.pt", quiet)

    class Stop(Exception):
        pass

    def stop_at_five(run: TrainingRun) -> None:
        if run.epoch == 5:
            raise Stop

    with pytest.raises(Stop):
        train(setting, images, FIELDS, tmp_path / "cut.pt", stop_at_five)
    epochs = []
    resumed = train(setting, images, FIELDS, tmp_path / "cut.pt", lambda run: epochs.append(run.epoch))
    assert epochs == [5, 6, 7, 8]
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history == resumed.history


SCRIPT = """
import sys, time
from dataclasses import replace
from pathlib import Path
from exact_ntk.networks import training
from tests.networks.test_training import FIELDS, SETTING, made
training.SECONDS_BETWEEN_CHECKPOINTS = 0.0
training.train(replace(SETTING, epochs=40, settle=50), made(), FIELDS, Path(sys.argv[1]), lambda run: time.sleep(0.05))
"""


def test_kill_9_and_resume_give_the_same_bits(tmp_path: Path):
    setting, images, path = replace(SETTING, epochs=40, settle=50), made(), tmp_path / "killed.pt"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=root)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    epochs = []
    resumed = train(setting, images, FIELDS, path, lambda run: epochs.append(run.epoch))
    assert 1 < epochs[0] <= 40
    whole = train(setting, images, FIELDS, tmp_path / "whole.pt", quiet)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history == resumed.history


def test_a_checkpoint_of_another_run_is_refused_by_field(tmp_path: Path):
    run = TrainingRun(SETTING, made(), FIELDS)
    run.save(tmp_path / "c.pt")
    with pytest.raises(StoreError, match=r"c\.pt: delete it .* another lr"):
        train(SETTING, made(), {**FIELDS, "lr": 0.1}, tmp_path / "c.pt", quiet)


@pytest.mark.parametrize("content", [b"", b"nonsense", None, [1, 2]])
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, content: bytes | list | None, caplog):
    path = tmp_path / "c.pt"
    TrainingRun(SETTING, made(), FIELDS).save(path)
    if isinstance(content, list):
        torch.save(content, path)
    else:
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    run = train(SETTING, made(), FIELDS, path, quiet)
    assert f"{path} is damaged: set aside as c.pt.damaged" in caplog.text
    assert run.history == train(SETTING, made(), FIELDS, tmp_path / "fresh.pt", quiet).history


def test_a_device_out_of_memory_is_not_a_damaged_checkpoint(tmp_path: Path, monkeypatch):
    path = tmp_path / "c.pt"
    TrainingRun(SETTING, made(), FIELDS).save(path)

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(torch.OutOfMemoryError):
        train(SETTING, made(), FIELDS, path, quiet)
    assert path.exists()


def test_the_callers_precision_comes_back():
    switches, on, off = precision._tf32_switches()
    for asked, during in [("float32", off), ("tf32", on), ("bf16", off)]:
        before = [getattr(*switch) for switch in switches]
        with precision.arithmetic(asked, torch.device("cpu")):
            assert [getattr(*switch) for switch in switches] == [during, during]
        assert [getattr(*switch) for switch in switches] == before


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_in_bfloat16_the_readout_is_in_float32(readout: str):
    images, setting = made(), replace(SETTING, readout=readout, width=64)
    net = training.build_network(setting, images)
    seen = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            result = function(*arguments, **(options or {}))
            if function in (torch.conv2d, torch.Tensor.matmul, torch.Tensor.__matmul__):
                seen.append(result.dtype)
            return result

    with precision.arithmetic("bf16", torch.device("cpu")) as autocast, autocast(), Products():
        outputs = net(images.x)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    torch.testing.assert_close(outputs, net(images.x), rtol=0.05, atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_gpu_run_agrees_with_the_cpu(tmp_path: Path, precision: str):
    setting = replace(SETTING, precision=precision, epochs=3)
    images = made()
    on_gpu = TrainingData(*(t.cuda() for t in (images.x, images.targets, images.y, images.x_test, images.y_test)))
    cpu = train(replace(setting, precision="float32"), images, FIELDS, tmp_path / "cpu.pt", quiet)
    gpu = train(setting, on_gpu, FIELDS, tmp_path / "gpu.pt", quiet)
    tolerance = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}[precision]
    assert gpu.history["loss"] == pytest.approx(cpu.history["loss"], rel=tolerance)
    again = train(setting, on_gpu, FIELDS, tmp_path / "again.pt", quiet)
    assert again.history == gpu.history


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_gpu_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch, precision: str):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    setting, images = replace(SETTING, precision=precision, epochs=6, settle=50), made()
    images = TrainingData(*(t.cuda() for t in (images.x, images.targets, images.y, images.x_test, images.y_test)))
    whole = train(setting, images, FIELDS, tmp_path / "whole.pt", quiet)

    def stop_in_the_fourth(run: TrainingRun) -> None:
        if run.epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(setting, images, FIELDS, tmp_path / "cut.pt", stop_in_the_fourth)
    resumed = train(setting, images, FIELDS, tmp_path / "cut.pt", quiet)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.history == resumed.history
