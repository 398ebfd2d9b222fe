"""The fused CPU kernels compiled in several ways, by turns: whether a flag, a macro or an edit of theirs pays here.

    python benchmarks/cpu_variants.py [FLAGS ...]

Each argument is a variant, the flags that are added to the usual ones ("" for none); by default the two ways to take
an entry's square roots, of which `build.flags_here` chooses by the processor. Each round computes a block of each
readout with each variant; printed are the medians over rounds in entry-layers/s, at 32 x 32 x 3, depth 21, float32, and
of the rates over the first variant's in the same round, on torch's number of threads.
"""

import ctypes
import shlex
import statistics
import sys
import time

import torch

from exact_ntk.device import cpu_model
from exact_ntk.kernel_names import trained_by_default
from exact_ntk.kernels.fused import build, cpu
from exact_ntk.kernels.passes import Pass

BLOCKS = {"gap": 12, "vanilla": 500}  # images a side
ROOTS = ("", "-DNTK_DEAR_ROOTS")
DEPTH, ROUNDS = 21, 7


def compiled(more: str) -> ctypes.CDLL:
    return cpu.load(build.build_library(build.cache_folder(), (*build.FLAGS, *shlex.split(more))))


def rate(library: ctypes.CDLL, family: str, n: int) -> float:
    """Entry-layers/s of an n x n block of random images."""
    x, y = torch.randn(2, n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    job = Pass(family, (DEPTH,), (family,), trained_by_default(family), trained_by_default(family))
    start = time.perf_counter()
    cpu.cntk_pass(x, y, job, library)
    return job.entry_layers(n * n, 32, 32) / (time.perf_counter() - start)


def main() -> None:
    """Print one line a variant and readout."""
    variants = sys.argv[1:] or ROOTS
    libraries = {variant: compiled(variant) for variant in variants}
    usual = " ".join(build.flags_here()[len(build.FLAGS) :])
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, {ROUNDS} rounds; chosen here: {usual!r}")
    for family, n in BLOCKS.items():
        rates = [{name: rate(library, family, n) for name, library in libraries.items()} for _ in range(ROUNDS)]
        for name in variants:
            median = statistics.median(found[name] for found in rates)
            over = sorted(found[name] / found[variants[0]] for found in rates)
            spread = f"{statistics.median(over):.2f} ({over[0]:.2f} to {over[-1]:.2f})"
            print(f"{family:>8} {name!r}: {median:.2e}, over the first {spread}")


if __name__ == "__main__":
    main()
