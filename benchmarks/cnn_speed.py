"""Training images/s of the finite networks beside a plain torch.nn model of the same layers, rounds interleaved.

python benchmarks/cnn_speed.py                                      # small networks, minutes on two cores
python benchmarks/cnn_speed.py --image 3 32 32 --width 1024 --depths 21 --batch-size 128 --precision bf16
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from exact_ntk.device import describe, resolve_device
from exact_ntk.networks.cost import training_bytes, training_flops
from exact_ntk.networks.precision import Autocast, arithmetic
from exact_ntk.networks.setting import Setting
from exact_ntk.networks.training import TrainingData, TrainingRun


def plain(shape: tuple[int, int, int], classes: int, setting: Setting) -> nn.Sequential:
    """The same layers out of torch.nn, without the parametrisation's factors."""
    layers: list[nn.Module] = []
    into = shape[0]
    for _ in range(setting.depth - 1):
        layers += [nn.Conv2d(into, setting.width, 3, padding=1, bias=False), nn.ReLU()]
        into = setting.width
    if setting.readout == "gap":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, classes, bias=False)]
    else:
        layers += [nn.Flatten(), nn.Linear(into * shape[1] * shape[2], classes, bias=False)]
    layers[0].requires_grad_(setting.train_first)
    layers[-1].requires_grad_(setting.train_last)
    return nn.Sequential(*layers)


def plain_epoch(setting: Setting, data: TrainingData, autocast: Autocast) -> Callable[[], None]:
    """The loop that one would write: shuffled batches, half the squared error, SGD."""
    x = data.x
    net = plain(tuple(x.shape[1:]), data.targets.shape[1], setting)
    net = net.to(x.device).to(memory_format=torch.channels_last)
    weights = [w for w in net.parameters() if w.requires_grad]
    optimiser = torch.optim.SGD(weights, lr=setting.lr, momentum=setting.momentum)

    def epoch() -> None:
        for batch in torch.randperm(len(x), device=x.device).split(setting.batch_size):
            with autocast():
                outputs = net(x[batch])
            loss = 0.5 * (outputs.float() - data.targets[batch]).square().sum(1).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    return epoch


def random_images(shape: tuple[int, int, int], n: int, device: torch.device) -> TrainingData:
    """Standard normal images with random labels of 10 classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((n, *shape), generator=generator).to(device, memory_format=torch.channels_last)
    y = torch.randint(10, (n,), generator=generator).to(device)
    return TrainingData(x, nn.functional.one_hot(y, 10).float() - 0.1, y, x[:1], y[:1])


def compare(setting: Setting, data: TrainingData, rounds: int) -> dict[str, float]:
    """Medians over interleaved rounds of one epoch each, after one of each that is thrown away."""
    device = data.x.device
    with arithmetic(setting.precision, device) as autocast:
        run = TrainingRun(setting, data, {})
        run.train_epoch(autocast)
        # Ours alone: the plain model is not there yet.
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        theirs = plain_epoch(setting, data, autocast)
        theirs()
        ours: list[float] = []
        plains: list[float] = []
        for _ in range(rounds):
            before = run.train_seconds
            run.train_epoch(autocast)
            ours.append(run.train_seconds - before)
            start = time.perf_counter()
            theirs()
            plains.append(time.perf_counter() - start)
    n = len(data.x)
    pace, plain_pace = (n / statistics.median(seconds) for seconds in (ours, plains))
    flops = training_flops(run.net, *data.x.shape[2:])
    figures = {
        "images_per_second": round(pace, 1),
        "plain_images_per_second": round(plain_pace, 1),
        "ratio": round(pace / plain_pace, 3),
        "tflops": round(flops * pace / 1e12, 4),
        "memory_estimate_mib": round(training_bytes(run.net, setting, data) / 2**20, 1),
    }
    if memory is not None:
        figures["memory_peak_mib"] = round(memory / 2**20, 1)
    return figures


def matmul_peak(device: torch.device, precision: str) -> float:
    """The most FLOP/s that this device shows on a large square matrix product in the same arithmetic."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = []
    with arithmetic(precision, device):
        for _ in range(8):
            start = time.perf_counter()
            float((a @ a)[0, 0])
            seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--image", type=int, nargs=3, default=[1, 8, 8], metavar=("C", "H", "W"))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--precision", choices=["float32", "tf32", "bf16"], default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = resolve_device(options.device)
    data = random_images(tuple(options.image), options.images, device)
    peak = matmul_peak(device, options.precision)
    print(json.dumps({**vars(options), **describe(device), "matmul_tflops": round(peak / 1e12, 4)}))
    for readout in ("vanilla", "gap"):
        for depth in options.depths:
            trained = readout == "vanilla"
            setting = Setting(
                readout=readout,
                depth=depth,
                width=options.width,
                kappa=0.05,
                train_first=trained,
                train_last=trained,
                seed=0,
                lr=1e-6,
                momentum=0.0,
                batch_size=options.batch_size,
                epochs=10**6,
                settle=10,
                zero_output=False,
                precision=options.precision,
            )
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            figures = compare(setting, data, options.rounds)
            share = round(figures["tflops"] * 1e12 / peak, 3)
            print(json.dumps({"readout": readout, "depth": depth, **figures, "share_of_matmul": share}), flush=True)


if __name__ == "__main__":
    main()
