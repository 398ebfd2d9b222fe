"""Speed of every kernel backend on this machine in entry-layers a second, beside the machine's own limit."""

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exact_ntk.device import describe
from exact_ntk.grids import Grid, aligned
from exact_ntk.kernel_names import trained_by_default
from exact_ntk.kernels import Pass, cntk_pass, reference, resolve_backend
from exact_ntk.kernels.fused import cpu as fused_cpu
from exact_ntk.kernels.fused import gpu_launch

IMAGES = ((1, 8, 8), (3, 32, 32))
DEPTHS = (3, 21)
# What takes a multiply-add's place in an entry-layer of the fused loops (NTK, any layer but the first). On a CPU only
# multiplies and multiply-adds: 30 for two vectors of 16 entries (objdump of the AVX-512 build by GCC 12); its 16
# additions, comparisons, shuffles and square roots can run beside them on other units. On a GPU every instruction takes
# an issue slot: 947 for the 32 entries of a lane (nvdisasm of the 32 x 32 kernel for sm_90 by NVRTC 13.0). No kernel of
# this arithmetic passes that limit. Where a multiply-add keeps its unit busy for two slots, the rest fits between the
# 736 multiplies and multiply-adds.
MULTIPLY_ADDS = {"cpu": 15.0, "cuda": 947 / 32, "cuda, two slots": 736 / 32}
TWO_SLOTS = (7, 5), (8, 0)  # compute capabilities of half as many float32 units as issue slots
# Enough that every layer of a batch goes through main memory, as in an implementation layer by layer.
UNFUSED_BYTES = {"cpu": 1 << 30, "cuda": 16 << 30}
LARGEST_SIDE = 8192  # sums and results of such a block take about 32 bytes a pair, 2 GB
CIFAR10_TRAIN, CIFAR10_TEST = 50_000, 10_000

log = logging.getLogger("ntk")

Compute = Callable[[Tensor, Tensor, Pass], Tensor]


def _backends(device: torch.device) -> dict[str, Compute]:
    names = {resolve_backend(name, device, torch.float32, 32, 32, "gap") for name in ("auto", "reference")}
    found: dict[str, Compute] = {
        name: functools.partial(cntk_pass, backend=name, dtype=torch.float32) for name in sorted(names)
    }
    budget = UNFUSED_BYTES[device.type]
    if device.type == "cuda":
        budget = min(budget, torch.cuda.get_device_properties(device).total_memory // 4)
    found["layer by layer"] = functools.partial(reference.cntk_pass, dtype=torch.float32, byte_budget=budget)
    return found


def _pairs_per_second(
    compute: Compute, job: Pass, shape: tuple[int, int, int], device: torch.device, seconds: float
) -> tuple[float, int]:
    """On square blocks that grow until one takes `seconds` or so: (pairs/s, side of the last block)."""
    side, most = 2, LARGEST_SIDE
    if device.type == "cuda":
        most = min(most, math.isqrt(torch.cuda.get_device_properties(device).total_memory // (8 * 32)))
        # The first call of a kind compiles and loads its kernels.
        x = torch.ones(1, *shape, device=device)
        compute(x, x, job).sum().item()
    while True:
        x = torch.randn(2 * side, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        start = time.perf_counter()
        compute(x[:side], x[side:], job).sum().item()
        spent = time.perf_counter() - start
        if spent >= seconds / 2 or side == most:
            return side**2 / spent, side
        side = min(most, max(side + 1, int(side * min(4.0, (seconds / spent) ** 0.5))))


def _limit(device: torch.device) -> dict[str, float] | None:
    backend = resolve_backend("auto", device, torch.float32, 32, 32, "gap")
    if backend == "fused-cpu":
        issue = fused_cpu.multiply_adds_per_second(torch.get_num_threads())
    elif backend == "fused-cuda":
        issue = gpu_launch.multiply_adds_per_second(device)
    else:
        return None
    slow = device.type == "cuda" and torch.cuda.get_device_capability(device) in TWO_SLOTS
    each = MULTIPLY_ADDS["cuda, two slots" if slow else device.type]
    return {
        "multiply_adds_per_second": issue,
        "multiply_adds_per_entry_layer": each,
        "entry_layers_per_second": issue / each,
    }


def run_bench(device: torch.device, seconds: float = 2.0) -> dict[str, Any]:
    """Measure every backend that `device` has, on random images; each figure takes about twice `seconds`.

    Returns a dict for JSON: "machine", "limit" (where fused kernels run: multiply-adds/s of the whole device, and
    the entry-layers/s they would allow), and "rates": backend, readout, image, depth, pairs, entry_layers_per_second,
    share_of_limit (None without a limit) and, at 32 x 32, full_table_hours: all of CIFAR-10's training and
    test pairs at this rate.
    """
    limit = _limit(device)
    rates = []
    for name, compute in _backends(device).items():
        for readout in ("vanilla", "gap"):
            for shape in IMAGES:
                for depth in DEPTHS:
                    log.info(f"{name}, {readout}, {shape[1]} x {shape[2]}, depth {depth}")
                    trained = trained_by_default(readout)
                    job = Pass(readout, (depth,), (readout,), trained, trained)
                    pairs, side = _pairs_per_second(compute, job, shape, device, seconds)
                    rates.append(_record(name, job, shape, side, pairs, limit))
    return {"machine": describe(device), "limit": limit, "rates": rates}


def _record(
    name: str, job: Pass, shape: tuple[int, int, int], side: int, pairs: float, limit: dict[str, float] | None
) -> dict[str, Any]:
    rate = job.entry_layers(1, *shape[1:]) * pairs
    full = CIFAR10_TRAIN * (CIFAR10_TRAIN + 1) // 2 + CIFAR10_TRAIN * CIFAR10_TEST
    return {
        "backend": name,
        "readout": job.family,
        "image": list(shape),
        "depth": job.depths[-1],
        "pairs": side**2,
        "entry_layers_per_second": rate,
        "share_of_limit": rate / limit["entry_layers_per_second"] if limit else None,
        "full_table_hours": full / pairs / 3600 if shape == (3, 32, 32) else None,
    }


def format_bench(bench: dict[str, Any]) -> str:
    """The dict of `run_bench` as lines of text."""
    return "\n".join([*about(bench), aligned(*rates_grid(bench))])


def about(bench: dict[str, Any]) -> list[str]:
    """The machine, and its limit where fused kernels run."""
    machine, limit = bench["machine"], bench["limit"]
    lines = [f"{machine['device']}, {machine['threads']} threads, torch {machine['versions'].get('torch')}"]
    if limit:
        lines.append(
            f"limit: {limit['multiply_adds_per_second']:.3g} multiply-adds/s measured, over "
            f"{limit['multiply_adds_per_entry_layer']:.3g} an entry-layer: "
            f"{limit['entry_layers_per_second']:.3g} entry-layers/s"
        )
    return lines


def rates_grid(bench: dict[str, Any]) -> Grid:
    """Header and rows: a row a rate."""
    rows = [
        [
            rate["backend"],
            rate["readout"],
            "{1}x{2}x{0}".format(*rate["image"]),
            str(rate["depth"]),
            f"{rate['entry_layers_per_second']:.3g}",
            "-" if rate["share_of_limit"] is None else f"{rate['share_of_limit']:.1%}",
            "-" if rate["full_table_hours"] is None else f"{rate['full_table_hours']:.3g} h",
        ]
        for rate in bench["rates"]
    ]
    return ["backend", "readout", "image", "depth", "entry-layers/s", "of limit", "CIFAR-10"], rows
