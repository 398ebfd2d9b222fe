"""Rates of the fused CPU kernels side by side: vanilla and pooled at 32 x 32, vanilla of larger images.

    python benchmarks/cpu_rates.py [ROUNDS]

Each round computes every block once, one after another, on torch's number of threads; printed are the medians over
rounds in entry-layers/s, at depth 21 and in float32, and of the rates over the same round's pooled one.
"""

import statistics
import sys
import time

import torch

from exact_ntk.kernel_names import trained_by_default
from exact_ntk.kernels.fused import cpu
from exact_ntk.kernels.passes import Pass

BLOCKS = [("gap", 32, 4), ("vanilla", 32, 1000), ("vanilla", 64, 250), ("vanilla", 96, 110), ("vanilla", 224, 24)]
DEPTH = 21


def rate(family: str, side: int, n: int) -> float:
    """Entry-layers/s of an n x n block of random images with three channels."""
    x, y = torch.randn(2, n, 3, side, side, generator=torch.Generator().manual_seed(0))
    job = Pass(family, (DEPTH,), (family,), trained_by_default(family), trained_by_default(family))
    start = time.perf_counter()
    cpu.cntk_pass(x, y, job)
    return job.entry_layers(n * n, side, side) / (time.perf_counter() - start)


def main() -> None:
    """Print one line a block."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for family, side, _ in BLOCKS:
        rate(family, side, 2)
    rates = [[rate(*block) for block in BLOCKS] for _ in range(rounds)]
    print(f"{torch.get_num_threads()} threads, {rounds} rounds")
    for k, (family, side, n) in enumerate(BLOCKS):
        shares = sorted(found[k] / found[0] for found in rates)
        median = statistics.median(found[k] for found in rates)
        print(
            f"{family:>8} {side} x {side}, {n} x {n} pairs: {median:.2e}, "
            f"of pooled {statistics.median(shares):.2f} ({shares[0]:.2f} to {shares[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
