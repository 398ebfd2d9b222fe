"""What local average pooling and Myrtle networks cost beside global average pooling, by turns on the same images.

    python benchmarks/beyond_rates.py [DEVICE] [PAIRS]

Blocks of PAIRS pairs of 32 x 32 x 3 images (by default 256 on a CPU and 65,536 on a GPU), every layer trained, float32.
A line a case: entry-layers a second, the median and the extremes of five rounds, and the time beside that of global
average pooling in the same round. A Myrtle network's work is counted as pixel pairs times ReLU layers at each of its
three resolutions; on a CPU their images' normalisers, which are kept, are in the first round alone. Then what an
image's normalisers take, and the image with itself in float64.
"""

import math
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from exact_ntk.kernels import Pass, cntk_pass, resolve_backend, self_pass
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.passes import BLOCKS

DEPTHS, SHAPE, ROUNDS = (3, 4, 6, 11, 21), (3, 32, 32), 5
WINDOWS = ("lap-4", "lap-8", "lap-12")


def pass_of(family: str, depths: tuple[int, ...], *poolings: str) -> Pass:
    """The NTK and the NNGP kernel, every layer trained."""
    readouts = tuple(pooling + kind for pooling in poolings for kind in ("", "-nngp"))
    return Pass(family, depths, readouts, train_first=True, train_last=True)


CASES = {
    "GAP": pass_of("gap", DEPTHS, "gap"),
    "GAP, LAP-4, -8 and -12": pass_of("gap", DEPTHS, "gap", *WINDOWS),
    **{pooling.upper(): pass_of("gap", DEPTHS, pooling) for pooling in WINDOWS},
    **{f"Myrtle-{depth}": pass_of("myrtle", (depth,), "myrtle") for depth in BLOCKS},
}


def seconds(compute: Callable[..., Tensor], *images: Tensor) -> float:
    start = time.perf_counter()
    compute(*images).sum().item()
    return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu")
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 1 << (16 if device.type == "cuda" else 8)
    side = math.isqrt(pairs)
    x = torch.randn(2 * side, *SHAPE, generator=torch.Generator().manual_seed(0)).to(device)
    how = {
        name: dict(
            backend=resolve_backend("auto", device, torch.float32, *SHAPE[1:], *job.readouts), dtype=torch.float32
        )
        for name, job in CASES.items()
    }
    blocks = {name: partial(cntk_pass, job=job, **how[name]) for name, job in CASES.items()}
    print(f"{side**2} pairs, {how['GAP']['backend']}, torch {torch.__version__}")
    for block in blocks.values():
        seconds(block, x[:1], x[1:2])  # compiled and loaded
    spent: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, block in blocks.items():
            spent[name].append(seconds(block, x[:side], x[side:]))
    print("| kernels | entry-layers/s | extremes | time beside GAP's | pairs/s |\n|---|---:|---|---:|---:|")
    for name, times in spent.items():
        work = CASES[name].entry_layers(side**2, *SHAPE[1:])
        beside = median(t / gap for t, gap in zip(times, spent["GAP"], strict=True))
        ends = f"{work / max(times):.2e} to {work / min(times):.2e}"
        print(f"| {name} | {work / median(times):.2e} | {ends} | {beside:.2f} | {side**2 / median(times):,.1f} |")
    for name, job in CASES.items():
        if job.family == "myrtle":
            normalisers = median(seconds(partial(self_deviations, blocks=job.blocks), x) for _ in range(ROUNDS))
            own = median(seconds(partial(self_pass, job=job, **how[name]), x) for _ in range(ROUNDS))
            each = f"normalisers {1e3 * normalisers / len(x):.2f} ms an image, itself {1e3 * own / len(x):.2f} ms"
            print(f"{name}: {each}")


if __name__ == "__main__":
    main()
