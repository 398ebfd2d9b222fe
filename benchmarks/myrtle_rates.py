"""Rates of the fused Myrtle kernels beside GAP's, at 32 x 32 and in float32, on a CPU or a GPU.

    python benchmarks/myrtle_rates.py [DEVICE] [IMAGES] [ROUNDS]

Each round computes every block of IMAGES x IMAGES random images (16, on a GPU 400) once, one after another; printed are
the medians over rounds: pairs/s, and entry-layers/s, of which a pair of a Myrtle network has
(H W)^2 (b1 + b2 / 16 + b3 / 256), GAP at depth 21; then what an image with itself, in float64, and its normalisers
take.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from exact_ntk.kernels import cntk, myrtle
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.myrtle import BLOCKS

SIDE, DEPTH = 32, 21
PIXEL_PAIRS = SIDE**4


def seconds(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Of one call, the device's work included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print one line a kernel."""
    given = dict(enumerate(sys.argv[1:]))
    device = torch.device(given.get(0, "cuda" if torch.cuda.is_available() else "cpu"))
    n, rounds = int(given.get(1, 400 if device.type == "cuda" else 16)), int(given.get(2, 3))
    x, y = torch.randn(2, n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    layers = {f"myrtle-{v}": b[0] + b[1] / 16 + b[2] / 256 for v, b in BLOCKS.items()} | {"gap, L = 21": DEPTH - 1}
    work: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        f"myrtle-{v}": lambda a, b, v=v: myrtle(a, b, variant=v, readouts=("ntk", "nngp"), backend="fused")
        for v in BLOCKS
    }
    work["gap, L = 21"] = lambda a, b: cntk(a, b, depths=(DEPTH,), readouts=("gap",), backend="fused")
    for compute in work.values():
        compute(x[:1], y[:1])
    found = [{name: seconds(lambda f=f: f(x, y), device) for name, f in work.items()} for _ in range(rounds)]
    print(f"{device}, {torch.get_num_threads()} threads, {n} x {n} pairs, {rounds} rounds")
    gap = statistics.median(times["gap, L = 21"] for times in found)
    for name in work:
        median = statistics.median(times[name] for times in found)
        rate, share = n * n / median, gap / median * layers[name] / (DEPTH - 1)
        of_layers = rate * PIXEL_PAIRS * layers[name]
        print(f"{name:>12}: {rate:.3e} pairs/s, {of_layers:.2e} entry-layers/s, {share:.2f} of GAP's")
    for variant, blocks in BLOCKS.items():
        for what, compute in [
            ("normalisers", lambda b=blocks: self_deviations(x, b)),
            ("diagonal", lambda v=variant: myrtle(x, variant=v, readouts=("ntk",), diagonal=True, backend="fused")),
        ]:
            median = statistics.median(seconds(compute, device) for _ in range(rounds))
            print(f"myrtle-{variant}, {what} of {n}: {1000 * median / n:.2f} ms an image")


if __name__ == "__main__":
    main()
