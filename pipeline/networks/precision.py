"""The arithmetic of training: float32 unless TF32 or bfloat16 is asked for, and the same bits for the same run."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

Autocast = Callable[[], AbstractContextManager]


def _tf32_switches() -> tuple[list[tuple[Any, str]], Any, Any]:
    """Where torch keeps whether TF32 is used, for products and convolutions, and its words for yes and no."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):  # torch 2.9: reading allow_tf32 raises once anything was set by the new name
        return [(matmul, "fp32_precision"), (cudnn.conv, "fp32_precision")], "tf32", "ieee"
    return [(matmul, "allow_tf32"), (cudnn, "allow_tf32")], True, False


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[Autocast]:
    """Set a precision, "float32", "tf32" or "bf16", and repeatable cuDNN algorithms; the caller's settings come back.

    Yields what makes the autocast context of a forward pass: bfloat16 for "bf16", nothing otherwise.
    """
    switches, on, off = _tf32_switches()
    before = [getattr(*switch) for switch in switches]
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    for switch in switches:
        setattr(*switch, on if precision == "tf32" else off)
    # Timing the algorithms would choose now one, now another, of different rounding.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        if precision == "bf16":
            yield lambda: torch.autocast(device.type, torch.bfloat16)
        else:
            yield contextlib.nullcontext
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
