"""What a training run costs, before it starts: FLOPs, memory, and time from a few measured steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from exact_ntk.networks import lr
from exact_ntk.networks.cnn import CNN
from exact_ntk.networks.precision import arithmetic
from exact_ntk.networks.setting import Setting
from exact_ntk.networks.training import (
    EVALUATE_AT_ONCE,
    TrainingData,
    build_network,
    half_squared_error,
    make_network,
    outputs_of,
)

# A step this long is long enough to extrapolate from; larger batches are then not tried.
LONG_STEP = 0.5
NARROW = 16


@dataclass(frozen=True)
class Cost:
    """flops: of one training step, an image.  memory: bytes at once, on the device, by formula (data included).
    train_seconds, test_seconds: an image, measured."""

    parameters: int
    flops: int
    memory: int
    train_seconds: float
    test_seconds: float

    def epoch_seconds(self, data: TrainingData) -> float:
        """One epoch with its evaluation on the test images."""
        return self.train_seconds * len(data.x) + self.test_seconds * len(data.x_test)


def training_flops(net: CNN, height: int, width: int) -> int:
    """Floating-point operations of forward and backward on one image; a multiply-add is 2.

    Each layer: 2 for its output, 2 for its weights' gradient if it is trained, 2 for its input's if an earlier layer
    is. Only convolutions and the readout's matrix product count; taps on the padding count as work.
    """
    layers = [(w.numel() * height * width, w.requires_grad) for w in net.convolutions]
    layers.append((net.last.numel(), net.last.requires_grad))
    flops, trained_before = 0, False
    for multiply_adds, trained in layers:
        flops += 2 * multiply_adds * (1 + trained + trained_before)
        trained_before = trained_before or trained
    return flops


def saved_bytes(net: CNN, batch: int, height: int, width: int, itemsize: int = 4) -> int:
    """Bytes that a batch's backward pass needs of its forward pass: each ReLU's output and the scaled weights.

    In bfloat16 the vanilla readout, which is in float32, keeps a copy of the last output of its own.
    """
    a_map = batch * net.convolutions[0].shape[0] * height * width
    for_readout = 4 * a_map if itemsize == 2 and net.last.ndim == 4 else 0
    weights = sum(w.numel() for w in list(net.convolutions)[1:])
    return itemsize * (len(net.convolutions) * a_map + weights) + for_readout


def training_bytes(net: CNN, setting: Setting, data: TrainingData) -> int:
    """Memory of a run: data, weights, gradients, momentum, and the larger of a training step and an evaluation."""
    height, width = data.x.shape[2:]
    itemsize = 2 if setting.precision == "bf16" else 4
    a_map = itemsize * setting.width * height * width
    batch = min(setting.batch_size, len(data.x))
    step = saved_bytes(net, batch, height, width, itemsize) + 2 * batch * a_map
    evaluation = 2 * min(EVALUATE_AT_ONCE, max(len(data.x), len(data.x_test))) * a_map
    pixels = 4 * (data.x.numel() + data.x_test.numel())
    weights = sum(w.numel() * (1 + w.requires_grad * (1 + (setting.momentum > 0))) for w in net.parameters())
    return pixels + 4 * weights + max(step, evaluation)


@dataclass(frozen=True)
class Count:
    """What a run takes by formula. flops: of a training step, an image; search_flops: of a step of the search for the
    largest stable learning rate, an image; memory: bytes at once, on the device."""

    flops: int
    search_flops: int
    memory: int


def count_cost(setting: Setting, data: TrainingData) -> Count:
    """Counted on a network without weights."""
    with torch.device("meta"):
        net = make_network(setting, data)
    height, width = data.x.shape[2:]
    flops = training_flops(net, height, width)
    return Count(flops, _search_flops(setting, data, flops), training_bytes(net, setting, data))


def _search_flops(setting: Setting, data: TrainingData, flops: int) -> int:
    """As torch counts them on one image: which products a backward pass of a backward pass takes is autograd's choice.

    Of a wide network in the proportion of a narrow one.
    """
    net = make_network(replace(setting, width=min(setting.width, NARROW)), data)
    weights = [w for w in net.parameters() if w.requires_grad]
    x = torch.zeros(1, *data.x.shape[1:])
    with FlopCounterMode(display=False) as counter:
        lr.gram_times(net, x, weights, torch.zeros(sum(w.numel() for w in weights)))
    return round(flops * counter.get_total_flops() / training_flops(net, *x.shape[2:]))


def measure_cost(setting: Setting, data: TrainingData) -> Cost:
    """The cost of a run, from a few steps of a network of its own at learning rate 0."""
    net = build_network(setting, data)
    height, width = data.x.shape[2:]
    weights = [w for w in net.parameters() if w.requires_grad]
    with arithmetic(setting.precision, data.x.device) as autocast:

        def step(x: Tensor) -> None:
            with autocast():
                outputs = net(x)
            half_squared_error(outputs, data.targets[: len(x)]).mean().backward()
            torch.optim.SGD(weights, lr=0.0).step()
            net.zero_grad(set_to_none=True)

        train = _seconds_per_image(step, data.x[: setting.batch_size])
        test = _seconds_per_image(lambda x: outputs_of(net, x, autocast), data.x_test[:EVALUATE_AT_ONCE])
    return Cost(
        parameters=sum(w.numel() for w in net.parameters()),
        flops=training_flops(net, height, width),
        memory=training_bytes(net, setting, data),
        train_seconds=train,
        test_seconds=test,
    )


def measure_rate_search(setting: Setting, data: TrainingData) -> float:
    """Seconds that `lr.largest_stable_lr` takes at most: its steps are in float32 whatever the run's precision is."""
    net = build_network(setting, data)
    weights = [w for w in net.parameters() if w.requires_grad]
    v = torch.ones(sum(w.numel() for w in weights), device=data.x.device)
    with arithmetic("float32", data.x.device):
        each = _seconds_per_image(lambda x: lr.gram_times(net, x, weights, v), data.x[: lr.IMAGES_AT_ONCE])
    return each * min(len(data.x), lr.MOST_IMAGES) * lr.MOST_STEPS


def largest_batch(setting: Setting, data: TrainingData, memory: int) -> int | None:
    """The largest power of two below the batch size with which a run takes at most `memory` bytes, or None."""
    with torch.device("meta"):
        net = make_network(setting, data)
    sizes = (1 << k for k in reversed(range((min(setting.batch_size, len(data.x)) - 1).bit_length())))
    return next((b for b in sizes if training_bytes(net, replace(setting, batch_size=b), data) <= memory), None)


def _seconds_per_image(work: Callable[[Tensor], object], x: Tensor) -> float:
    """Time of `work` on ever larger parts of the batch x, up to all of it or until a call is long."""
    size = 1
    while True:
        work(x[:size])
        seconds = _seconds(work, x[:size])
        if seconds <= LONG_STEP:  # shorter ones are what others on the machine disturb
            seconds = min(seconds, *(_seconds(work, x[:size]) for _ in range(2)))
        if size >= len(x) or seconds > LONG_STEP:
            return seconds / min(size, len(x))
        size *= 4


def _seconds(work: Callable[[Tensor], object], x: Tensor) -> float:
    _wait(x)
    start = time.perf_counter()
    work(x)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
