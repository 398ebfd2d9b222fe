"""The arithmetic of training: float32 unless TF32 or bfloat16 is asked for, and the same bits for the same run."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

Autocast = Callable[[], AbstractContextManager]


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[Autocast]:
    """Set a precision, "float32", "tf32" or "bf16", and repeatable cuDNN algorithms; the caller's settings come back.

    Yields what makes the autocast context of a forward pass: bfloat16 for "bf16", nothing otherwise.
    """
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Timing the algorithms would choose now one, now another, of different rounding.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        if precision == "bf16":
            yield lambda: torch.autocast(device.type, torch.bfloat16)
        else:
            yield contextlib.nullcontext
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
