"""The cost of a run beforehand: FLOPs against torch's own count, memory against what autograd keeps."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from exact_ntk.networks import cost, lr
from exact_ntk.networks.cnn import CNN
from exact_ntk.networks.lr import largest_stable_lr
from exact_ntk.networks.precision import arithmetic
from exact_ntk.networks.setting import Setting
from exact_ntk.networks.training import TrainingData, TrainingRun, build_network
from exact_ntk.settings import bundled, load_config
from tests.networks.test_training import SETTING

ENDS = [(first, last) for first in (False, True) for last in (False, True)]


def setting_of(readout: str, ends: tuple[bool, bool]) -> Setting:
    return replace(SETTING, readout=readout, depth=4, width=6, train_first=ends[0], train_last=ends[1])


def some_images() -> TrainingData:
    x = torch.randn(5, 3, 4, 7, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(5, dtype=torch.int64)
    return TrainingData(x, torch.zeros(5, 10), y, x[:2], y[:2])


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
@pytest.mark.parametrize("ends", ENDS)
def test_flops_are_those_that_torch_counts(readout: str, ends: tuple[bool, bool]):
    images = some_images()
    net = build_network(setting_of(readout, ends), images)
    with FlopCounterMode(display=False) as counter:
        net(images.x).square().sum().backward()
    counted = counter.get_total_flops() / len(images.x)
    # Global average pooling's readout touches pixels in its mean, which is no matrix product.
    assert cost.training_flops(net, 4, 7) == counted


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
@pytest.mark.parametrize("ends", ENDS)
def test_flops_of_the_search_for_a_rate_are_those_that_torch_counts(readout: str, ends: tuple[bool, bool]):
    images, setting = some_images(), setting_of(readout, ends)
    net = build_network(setting, images)
    weights = [w for w in net.parameters() if w.requires_grad]
    with FlopCounterMode(display=False) as counter:
        lr.gram_times(net, images.x, weights, torch.ones(sum(w.numel() for w in weights)))
    found = cost.count_cost(setting, images)
    assert found.search_flops == counter.get_total_flops() / len(images.x)
    assert found.flops == cost.training_flops(net, 4, 7)
    assert found.memory == cost.training_bytes(net, setting, images)


def test_the_papers_table_says_what_its_networks_cost():
    total = 0
    for column in (c for c in load_config("cifar10").columns if c.model == "cnn"):
        images = (3 + len(column.lr)) * 50_000 - len(column.lr) * round(column.holdout * 50_000)
        for depth in column.depths:
            ends = dict(train_first=column.trains_first, train_last=column.trains_last)
            with FakeTensorMode():
                net = CNN((3, 32, 32), 10, depth=depth, width=column.width, readout=column.readout, **ends)
                total += cost.training_flops(net, 32, 32) * images * column.epochs_at(depth)
    assert f"at most {total:.1e} FLOP".replace("e+", "e") in (bundled()["cifar10"]).read_text()


@pytest.mark.parametrize("readout", ["vanilla", "gap"])
def test_memory_is_what_autograd_keeps(readout: str):
    images = some_images()
    net = build_network(setting_of(readout, (True, True)), images)
    kept: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = net(images.x)
    for known in (images.x, *net.parameters()):
        kept.pop(known.untyped_storage().data_ptr(), None)
    small = 4 * 5 * (6 + 10)  # pooled features and outputs
    assert cost.saved_bytes(net, 5, 4, 7) <= sum(kept.values()) <= cost.saved_bytes(net, 5, 4, 7) + small
    assert outputs.shape == (5, 10)


def test_a_run_is_measured_without_touching_it():
    images, setting = some_images(), setting_of("gap", (False, False))
    found = cost.measure_cost(setting, images)
    assert found.parameters == sum(w.numel() for w in build_network(setting, images).parameters())
    assert found.train_seconds > 0
    assert found.test_seconds > 0
    expected = 5 * found.train_seconds + 2 * found.test_seconds
    assert found.epoch_seconds(images) == pytest.approx(expected)
    assert found.memory > cost.saved_bytes(build_network(setting, images), 5, 4, 7)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_memory_on_a_gpu_is_near_the_estimate(precision: str):
    x = torch.randn(256, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.zeros(256, dtype=torch.int64, device="cuda")
    images = TrainingData(x, torch.zeros(256, 10, device="cuda"), y, x, y)
    setting = replace(
        SETTING, depth=6, width=256, batch_size=128, train_first=False, train_last=False, precision=precision
    )
    torch.cuda.reset_peak_memory_stats()
    found = cost.measure_cost(setting, images)
    # cuDNN's workspace comes on top: in float32, on an H100, of 4.9 GB. It takes less where there is less.
    peak = torch.cuda.max_memory_allocated()
    most = 8.0 if precision == "float32" else 2.0
    assert 0.8 < peak / found.memory < most, f"{peak} allocated, {found.memory} estimated"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_papers_width_and_depth_train_on_a_gpu(precision: str):
    # Few images: in the search for the rate, in float32, a step takes seconds for 64.
    x = torch.randn(8, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.arange(8, device="cuda")
    targets = torch.nn.functional.one_hot(y, 10).float() - 0.1
    images = TrainingData(x, targets, y, x[:4], y[:4])
    ends = dict(train_first=False, train_last=False)
    setting = replace(SETTING, depth=21, width=1024, batch_size=4, kappa=0.05, epochs=2, precision=precision, **ends)
    found = cost.measure_cost(setting, images)
    assert found.parameters == sum(w.numel() for w in cost.make_network(setting, images).parameters()) > 1.7e8
    rate = largest_stable_lr(build_network(setting, images), images.x)
    run = TrainingRun(replace(setting, lr=0.25 * rate, momentum=0.0), images, {})
    with arithmetic(precision, x.device) as autocast:
        run.begin(autocast)
        for _ in range(2):
            run.train_epoch(autocast)
    assert run.diverged is None
    assert run.history["loss"][1] < run.history["loss"][0]
