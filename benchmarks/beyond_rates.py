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
from statistics import median

import torch
from torch import Tensor

from exact_ntk.kernels import cntk, myrtle, resolve_backend
from exact_ntk.kernels.fused.self_planes import self_deviations
from exact_ntk.kernels.passes import BLOCKS

DEPTHS, PIXELS, ROUNDS = (3, 4, 6, 11, 21), 32 * 32, 5
WINDOWS = ("lap-4", "lap-8", "lap-12")
Compute = Callable[[Tensor, Tensor], Tensor]


def both(*readouts: str) -> tuple[str, ...]:
    return tuple(readout + kind for readout in readouts for kind in ("", "-nngp"))


def pooled(*readouts: str) -> tuple[Compute, float]:
    """The NTK and the NNGP kernel at five depths, and entry-layers a pair."""
    ends = dict(train_first=True, train_last=True)
    return lambda x, y: cntk(x, y, depths=DEPTHS, readouts=both(*readouts), **ends), PIXELS**2 * (DEPTHS[-1] - 1)


def myrtles(variant: int) -> tuple[Compute, float]:
    """The NTK and the NNGP kernel of a Myrtle network, and entry-layers a pair."""
    work = sum(layers * (PIXELS / 4**level) ** 2 for level, layers in enumerate(BLOCKS[variant]))
    return lambda x, y: myrtle(x, y, variant=variant, readouts=("ntk", "nngp")), work


CASES = {
    "GAP": pooled("gap"),
    "GAP, LAP-4, -8 and -12": pooled("gap", *WINDOWS),
    **{readout.upper(): pooled(readout) for readout in WINDOWS},
    **{f"Myrtle-{variant}": myrtles(variant) for variant in BLOCKS},
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
    x = torch.randn(2 * side, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    backend = resolve_backend("auto", device, torch.float32, 32, 32, "gap", "lap-4")
    print(f"{side**2} pairs, {backend}, torch {torch.__version__}")
    for compute, _ in CASES.values():
        seconds(compute, x[:1], x[1:2])  # compiled and loaded
    spent: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, (compute, _) in CASES.items():
            spent[name].append(seconds(compute, x[:side], x[side:]))
    print("| kernels | entry-layers/s | extremes | time beside GAP's | pairs/s |\n|---|---:|---|---:|---:|")
    for name, times in spent.items():
        work = CASES[name][1] * side**2
        beside = median(t / gap for t, gap in zip(times, spent["GAP"], strict=True))
        ends = f"{work / max(times):.2e} to {work / min(times):.2e}"
        print(f"| {name} | {work / median(times):.2e} | {ends} | {beside:.2f} | {side**2 / median(times):,.1f} |")
    for variant, blocks in BLOCKS.items():
        normalisers = median(seconds(lambda z, b=blocks: self_deviations(z, b), x) for _ in range(ROUNDS))
        own = median(seconds(lambda z, v=variant: myrtle(z, variant=v, diagonal=True), x) for _ in range(ROUNDS))
        each = f"normalisers {1e3 * normalisers / len(x):.2f} ms an image, itself {1e3 * own / len(x):.2f} ms"
        print(f"Myrtle-{variant}: {each}")


if __name__ == "__main__":
    main()
